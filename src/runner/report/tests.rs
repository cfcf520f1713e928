use std::time::Duration;

use testbed::github::{Deployment, FakeGitHub};

use super::*;
use crate::github::api::Bounds;
use crate::github::run::Repository;
use crate::model::outcome::Outcome;
use crate::model::secret::Secret;
use crate::model::state::Requester;
use crate::swap::planner::tests::two_slot_plan;

const RUN: &str = "https://github.example.com/acme/llm/actions/runs/77/attempts/1";

fn spec(github: &FakeGitHub) -> ApiSpec {
    let base = github.ghes_url();
    ApiSpec {
        graphql: format!("{base}/graphql"),
        base,
        token: Secret::new(github.token()),
        permission: "deployments: write",
        repository: Repository::parse("acme/llm").unwrap(),
        bounds: Bounds {
            request: Duration::from_secs(10),
            operation: Duration::from_secs(60),
            pause: Duration::from_millis(1),
        },
    }
}

/// Tells of swap s-1 that it began in the place of s-0, and how it ended, if it did.
async fn report(github: &FakeGitHub, attempt: &str, outcome: Option<Outcome>) {
    let requester = Requester { run_attempt: Some(attempt.to_owned()), ..Default::default() };
    let frame = Frame {
        reference: Reference::fixed("main".to_owned()),
        environment: "chat".to_owned(),
        purpose: Purpose::Swap,
        log_url: Some(RUN.to_owned()),
        run: Some("77".to_owned()),
        is_rerun: requester.is_rerun(),
    };
    let plan = Box::new(two_slot_plan());
    let concluded = |outcome| {
        EventKind::Concluded(Conclusion {
            outcome,
            traffic: "Qwen/B serves from slot b".to_owned(),
            slot: None,
            revision: None,
            previous_revision: None,
            rollback_until: None,
            failure: None,
        })
    };
    let kinds = [
        Some(EventKind::Planned { plan, replaces: Some("s-0".parse().unwrap()) }),
        outcome.map(concluded),
    ];
    let (news, heard) = unbounded_channel();
    for (kind, seq) in kinds.into_iter().flatten().zip(1..) {
        let (at, swap) = (jiff::Timestamp::UNIX_EPOCH, "s-1".parse().unwrap());
        news.send(Event { v: 1, swap, seq, at, kind }).unwrap();
    }
    drop(news);
    let told = tell(spec(github), frame, heard).await;
    assert!(told.failures.is_empty() && github.violations().is_empty(), "{:?}", told.failures);
}

fn states(deployment: &Deployment) -> Vec<&str> {
    deployment.statuses.iter().map(|status| &*status.state).collect()
}

fn of(swap: &str) -> serde_json::Value {
    serde_json::json!({ "swap_id": swap })
}

#[tokio::test]
async fn what_a_swap_replaced_is_superseded_also_where_its_own_end_was_told_before() {
    let github = FakeGitHub::start().unwrap();
    github.deploy("chat", &of("s-0"));
    github.deploy("chat", &of("s-1"));
    for _ in 0..2 {
        report(&github, "2", Some(Outcome::Promoted)).await;
        let [before, own] = &*github.deployments() else { panic!("{github}") };
        assert_eq!(states(before), ["success", "inactive"], "{github}");
        assert_eq!(states(own), ["success"], "{github}");
    }
}

#[tokio::test]
async fn a_swap_that_was_taken_for_given_up_and_is_stuck_says_so() {
    let github = FakeGitHub::start().unwrap();
    // The step that was cancelled.
    report(&github, "1", Some(Outcome::Aborted)).await;
    // Nobody knows better.
    report(&github, "2", None).await;
    report(&github, "3", Some(Outcome::Failed)).await;
    assert_eq!(states(&github.deployments()[0]), ["in_progress", "failure"], "{github}");
    report(&github, "4", Some(Outcome::Stuck)).await;
    assert_eq!(states(&github.deployments()[0]), ["in_progress", "failure", "error"], "{github}");
}

#[tokio::test]
async fn of_a_job_that_is_run_again_the_deployment_that_github_made_before_is_closed() {
    let github = FakeGitHub::start().unwrap();
    github.begin_job("chat", 77);
    report(&github, "1", Some(Outcome::Promoted)).await;
    github.begin_job("chat", 77);
    for _ in 0..2 {
        report(&github, "2", Some(Outcome::Promoted)).await;
        let [first, second] = &*github.deployments() else { panic!("{github}") };
        assert_eq!(states(first).last(), Some(&"inactive"), "{github}");
        assert_eq!(states(first).len(), 4, "{github}");
        assert_eq!(second.state(), "success", "{github}");
    }
}
