use std::collections::BTreeMap;
use std::time::Duration;

use testbed::github::{Deployment, FakeGitHub, Fault, Operation, Times};

use super::*;
use crate::github::api::Bounds;
use crate::github::outside::Proxies;
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
        proxies: Proxies::from_env(&BTreeMap::new()),
    }
}

fn frame(attempt: &str) -> Frame {
    let requester = Requester { run_attempt: Some(attempt.to_owned()), ..Default::default() };
    Frame {
        reference: Reference::fixed("main".to_owned()),
        environment: "chat".to_owned(),
        purpose: Purpose::Swap,
        log_url: Some(RUN.to_owned()),
        run: Some("77".to_owned()),
        is_rerun: requester.is_rerun(),
        again: Duration::from_millis(1),
    }
}

/// Swap s-1 begins in the place of s-0.
fn planned() -> Event {
    let plan = Box::new(two_slot_plan());
    event(1, EventKind::Planned { plan, replaces: Some("s-0".parse().unwrap()) })
}

fn concluded(outcome: Outcome) -> Event {
    let conclusion = Conclusion {
        outcome,
        traffic: "Qwen/B serves from slot b".to_owned(),
        slot: None,
        revision: None,
        previous_revision: None,
        rollback_until: None,
        failure: None,
    };
    event(2, EventKind::Concluded(conclusion))
}

fn event(seq: u64, kind: EventKind) -> Event {
    Event { v: 1, swap: "s-1".parse().unwrap(), seq, at: jiff::Timestamp::UNIX_EPOCH, kind }
}

/// Tells of swap s-1 that it began in the place of s-0, and how it ended, if it did.
async fn report(github: &FakeGitHub, attempt: &str, outcome: Option<Outcome>) {
    let (news, heard) = unbounded_channel();
    for event in std::iter::once(planned()).chain(outcome.map(concluded)) {
        news.send(event).unwrap();
    }
    drop(news);
    let told = tell(spec(github), frame(attempt), heard).await;
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

const EARLIER: &str = "https://github.example.com/acme/llm/actions/runs/76";

/// Parallel jobs of one run, as for two services, may share a deployment that GitHub has made.
#[tokio::test]
async fn what_another_swap_is_told_in_as_well_is_not_superseded() {
    for (other, last) in [("s-0", "inactive"), ("s-other", "success")] {
        let github = FakeGitHub::start().unwrap();
        github.begin_job("chat", 76);
        let deployments = Deployments::new(spec(&github)).unwrap();
        for swap in ["s-0", other] {
            let end = Status::continued(&swap.parse().unwrap(), DeploymentId(1));
            let end = Status { state: State::Success, log_url: Some(EARLIER.to_owned()), ..end };
            let end = end.marked(&swap.parse().unwrap());
            deployments.add_status(DeploymentId(1), &end).await.unwrap();
        }
        report(&github, "1", Some(Outcome::Promoted)).await;
        assert_eq!(github.deployments()[0].state(), last, "{github}");
    }
}

/// What is rolled back in a deployment of GitHub's is told from GitHub's own word on a job.
#[tokio::test]
async fn what_supersedes_a_swap_names_it() {
    let github = FakeGitHub::start().unwrap();
    github.deploy("chat", &of("s-0"));
    report(&github, "1", Some(Outcome::Promoted)).await;
    let last = github.deployments()[0].statuses.pop().unwrap();
    assert_eq!((&*last.state, last.log_url), ("inactive", format!("{RUN}#s-0")));
}

/// How often one operation posts a deployment.
const TRIES: u32 = 2;

/// What has not come by then does not come.
const NEVER: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_deployment_that_github_did_not_make_is_made_while_the_swap_goes_on() {
    let github = FakeGitHub::start().unwrap();
    github.fail(Fault::Status(502), &[Operation::CreateDeployment], Times::Next(2 * TRIES));
    let (news, heard) = unbounded_channel();
    news.send(planned()).unwrap();
    let told = async {
        let made = async {
            while github.deployments().iter().all(|made| made.statuses.is_empty()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(NEVER, made).await.expect("it is not asked for again");
        news.send(concluded(Outcome::Promoted)).unwrap();
        drop(news);
    };
    let (told, ()) = tokio::join!(tell(spec(&github), frame("1"), heard), told);
    assert!(told.failures.is_empty(), "nothing is missing: {:?}", told.failures);
    let [own] = &*github.deployments() else { panic!("{github}") };
    assert_eq!(states(own), ["in_progress", "success"], "{github}");
    assert_eq!(told.deployment, Some(DeploymentId(own.id)));
}

#[tokio::test]
async fn a_deployment_that_github_did_not_make_is_made_when_the_swap_has_ended() {
    for (outcome, state, before) in [
        (Some(Outcome::Promoted), "success", "inactive"),
        (Some(Outcome::Failed), "failure", "success"),
        (None, "error", "success"),
    ] {
        let github = FakeGitHub::start().unwrap();
        github.deploy("chat", &of("s-0"));
        github.fail(Fault::Status(502), &[Operation::CreateDeployment], Times::Next(TRIES));
        report(&github, "1", outcome).await;
        let [other, own] = &*github.deployments() else { panic!("{github}") };
        assert_eq!((other.state(), &*states(own)), (before, &[state][..]), "{github}");
    }
}

#[tokio::test]
async fn what_a_swap_replaced_is_superseded_also_where_it_has_no_deployment_itself() {
    for refused in [403, 502] {
        let github = FakeGitHub::start().unwrap();
        github.deploy("chat", &of("s-0"));
        github.fail(Fault::Status(refused), &[Operation::CreateDeployment], Times::Always);
        let (news, heard) = unbounded_channel();
        news.send(planned()).unwrap();
        news.send(concluded(Outcome::Promoted)).unwrap();
        drop(news);
        let told = tell(spec(&github), frame("1"), heard).await;
        assert!(told.deployment.is_none() && told.failures.len() == 1, "{:?}", told.failures);
        let [before] = &*github.deployments() else { panic!("{github}") };
        assert_eq!(states(before), ["success", "inactive"], "{github}");
        let posts = github.requests().into_iter().filter(|it| it.path.ends_with("/deployments"));
        let posts = posts.filter(|request| request.method == "POST").count();
        assert_eq!(posts, if refused == 403 { 1 } else { 4 }, "what GitHub forbids it forbids");
    }
}
