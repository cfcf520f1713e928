use std::collections::BTreeMap;
use std::time::Duration;

use testbed::github::{FakeGitHub, Fault, Operation, Times};

use super::*;
use crate::github::api::Bounds;
use crate::github::outside::Proxies;
use crate::github::run::Repository;
use crate::github::status::{Purpose, State};
use crate::model::event::Conclusion;
use crate::model::failure::{Failure, Hint};
use crate::model::outcome::Outcome;
use crate::model::secret::Secret;

const CREATE: [Operation; 1] = [Operation::CreateDeployment];

/// What hangs is waited for as long; only that may meet it, on a busy machine as well.
const HANGS: Duration = Duration::from_secs(3);

fn github() -> (FakeGitHub, Deployments) {
    let github = FakeGitHub::start().unwrap();
    let mut spec = spec(github.ghes_url());
    spec.token = Secret::new(github.token());
    (github, Deployments::new(spec).unwrap())
}

fn spec(base: String) -> ApiSpec {
    ApiSpec {
        graphql: format!("{base}/graphql"),
        base,
        token: Secret::new("ghs_token"),
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

/// The requests so far, without their bodies, below the repository's own address.
fn requests(github: &FakeGitHub) -> Vec<String> {
    let requests = github.requests().into_iter().map(|request| {
        let path = request.path.strip_prefix("/api/v3/repos/acme/llm").unwrap_or(&request.path);
        let query: Vec<String> =
            request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("{} {path}{query}", request.method)
    });
    requests.collect()
}

fn revision(model: &str, digest: &str, sha: Option<&str>) -> Revision {
    Revision {
        digest: digest.to_owned(),
        model: model.to_owned(),
        git_sha: sha.map(str::to_owned),
        image: None,
    }
}

fn new() -> NewDeployment {
    NewDeployment {
        swap: "s-1".parse().unwrap(),
        reference: Reference::fixed("main".to_owned()),
        otherwise: None,
        environment: "chat é".to_owned(),
        description: "chat: Qwen/A -> Qwen/B".to_owned(),
        revision: revision("Qwen/B", "r-b", Some("c0ffee")),
        previous: Some(revision("Qwen/A", "adopted-a", None)),
    }
}

fn status() -> Status {
    Status {
        state: State::Success,
        description: "Qwen/B on slot b serves".to_owned(),
        log_url: Some("https://github.com/acme/llm/actions/runs/42".to_owned()),
    }
}

const LIST: &str = "GET /deployments?environment=chat é&task=deploy:model&per_page=100&page=1";
const POST: &str = "POST /deployments";
const POST_STATUS: &str = "POST /deployments/1/statuses";
const LIST_STATUSES: &str = "GET /deployments/1/statuses?per_page=100";

#[tokio::test]
async fn a_deployment_and_its_status_are_posted_once() {
    let (github, deployments) = github();
    let id = deployments.create(&new()).await.unwrap();
    deployments.add_status(id, &status()).await.unwrap();
    assert_eq!(requests(&github), [POST, POST_STATUS]);
    let bodies: Vec<_> = github.requests().into_iter().filter_map(|request| request.body).collect();
    let created = json!({
        "ref": "main",
        "task": "deploy:model",
        "auto_merge": false,
        "required_contexts": [],
        "environment": "chat é",
        "description": "chat: Qwen/A -> Qwen/B",
        "payload": {
            "swap_id": "s-1",
            "revision": "r-b",
            "previous_revision": "adopted-a",
            "git_sha": "c0ffee",
            "previous_git_sha": null,
        },
    });
    let told = json!({
        "state": "success",
        "description": "Qwen/B on slot b serves",
        "auto_inactive": false,
        "log_url": "https://github.com/acme/llm/actions/runs/42",
    });
    assert_eq!(bodies, [created, told]);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason_and_not_repeated() {
    let cases = [
        (401, "Bad credentials", Some("was not accepted")),
        (403, "Resource not accessible by integration", Some("`permissions: deployments: write`")),
        (404, "Not Found", Some("`permissions: deployments: write`")),
        (422, "Validation Failed; set as a fault", None),
    ];
    for (status, message, hint) in cases {
        let (github, deployments) = github();
        github.fail(Fault::Status(status), &CREATE, Times::Next(1));
        let error = deployments.create(&new()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "GitHub answered {status} when asked to create a deployment to chat é in acme/llm: {message}"
            )
        );
        let hints = error.hints();
        match hint {
            Some(part) => assert!(hints[0].contains(part), "{hints:?}"),
            None => assert!(hints.is_empty(), "{hints:?}"),
        }
        assert_eq!(requests(&github), [POST]);
    }
}

#[tokio::test]
async fn a_commit_that_is_not_there_is_replaced_by_the_runs_own_reference() {
    let new = NewDeployment {
        reference: Reference::fixed("c0ffee".to_owned()),
        otherwise: Some(Reference::fixed("main".to_owned())),
        ..new()
    };
    let (fake, deployments) = github();
    fake.fail(Fault::Status(422), &CREATE, Times::Next(1));
    deployments.create(&new).await.unwrap();
    let bodies = fake.requests().into_iter().filter_map(|request| request.body);
    assert_eq!(bodies.map(|body| body["ref"].clone()).collect::<Vec<_>>(), ["c0ffee", "main"]);
    let (fake, deployments) = github();
    fake.fail(Fault::Status(422), &CREATE, Times::Next(2));
    assert!(deployments.create(&new).await.is_err());
    assert_eq!(requests(&fake), [POST, POST]);
}

#[tokio::test]
async fn what_was_made_in_spite_of_an_error_is_found_and_not_made_again() {
    for lost in [Fault::LateStatus(502), Fault::LostAnswer, Fault::LateHang] {
        let (github, mut deployments) = github();
        if lost == Fault::LateHang {
            deployments.api.bounds.request = HANGS;
        }
        github.fail(lost.clone(), &CREATE, Times::Next(1));
        github.fail(lost, &[Operation::CreateStatus], Times::Next(1));
        let id = deployments.create(&new()).await.unwrap();
        assert_eq!(id, DeploymentId(1));
        assert_eq!(requests(&github), [POST, LIST]);
        deployments.add_status(id, &status()).await.unwrap();
        assert_eq!(requests(&github)[2..], [POST_STATUS, LIST_STATUSES]);
        assert_eq!(github.deployments()[0].statuses.len(), 1);
    }
    // An answer to something that was not asked for.
    let (github, deployments) = github();
    github.fail(Fault::LateStatus(202), &CREATE, Times::Next(1));
    assert_eq!(deployments.create(&new()).await.unwrap(), DeploymentId(1));
    assert_eq!(requests(&github), [POST, LIST]);
}

#[tokio::test]
async fn another_swaps_deployment_is_not_taken_for_ours() {
    let (github, deployments) = github();
    github.deploy("chat é", &json!({ "swap_id": "s-0" }));
    github.fail(Fault::Status(502), &CREATE, Times::Next(1));
    let id = deployments.create(&new()).await.unwrap();
    let made = github.deployments().pop().unwrap();
    assert_eq!((made.id, &made.payload["swap_id"]), (id.0, &json!("s-1")));
    assert_eq!(requests(&github), [POST, LIST, POST]);
}

#[tokio::test]
async fn nothing_is_posted_again_while_it_may_be_there() {
    let (github, deployments) = github();
    github.fail(Fault::LateStatus(502), &CREATE, Times::Next(1));
    github.fail(Fault::Status(403), &[Operation::ListDeployments], Times::Always);
    let error = deployments.create(&new()).await.unwrap_err();
    assert!(matches!(error, ApiError::Answered { status: 502, .. }), "{error}");
    assert_eq!(requests(&github), [POST, LIST]);
}

#[tokio::test]
async fn a_lasting_error_ends_after_few_tries() {
    let (github, deployments) = github();
    let posts = [Operation::CreateDeployment, Operation::CreateStatus];
    github.fail(Fault::Page(502), &posts, Times::Always);
    let error = deployments.create(&new()).await.unwrap_err();
    assert_eq!(requests(&github), [POST, LIST, POST, LIST]);
    assert_eq!(
        error.to_string(),
        "GitHub answered 502 when asked to create a deployment to chat é in acme/llm: \
         <html>bad gateway</html>"
    );
    github.deploy("chat é", &json!({}));
    let error = deployments.add_status(DeploymentId(1), &status()).await.unwrap_err();
    assert!(error.is_ambiguous());
    let statuses =
        [POST_STATUS, LIST_STATUSES, POST_STATUS, LIST_STATUSES, POST_STATUS, LIST_STATUSES];
    assert_eq!(requests(&github)[4..], statuses);
}

#[tokio::test]
async fn an_attempt_that_began_earlier_is_found() {
    let (fake, deployments) = github();
    assert_eq!(
        deployments.find_or_create(&new(), None).await.unwrap(),
        Opened::Ours(DeploymentId(1))
    );
    assert_eq!(requests(&fake), [LIST, POST]);
    // A payload may come back as a text.
    let (fake, deployments) = github();
    fake.deploy("chat é", &json!("{\"swap_id\":\"s-1\"}"));
    assert_eq!(
        deployments.find_or_create(&new(), None).await.unwrap(),
        Opened::Found(DeploymentId(1), "success".to_owned())
    );
    assert_eq!(requests(&fake), [LIST, "GET /deployments/1/statuses?per_page=1"]);
}

#[tokio::test]
async fn deployments_of_others_that_are_too_many_to_look_through_do_not_stand_in_the_way() {
    let (fake, mut deployments) = github();
    deployments.api.bounds.operation = HANGS;
    fake.begin_job("chat é", 76);
    fake.fail(Fault::Hang, &[Operation::ListStatuses], Times::Always);
    let opened = deployments.find_or_create(&new(), Some("77")).await.unwrap();
    assert!(matches!(opened, Opened::Ours(_)), "{opened:?}");
}

#[tokio::test]
async fn githubs_own_word_on_a_job_is_told_from_ours_on_its_swap() {
    let (fake, deployments) = github();
    fake.begin_job("chat é", 77);
    let (id, swap) = (DeploymentId(1), new().swap);
    let is_of_swap = async |expected: &str| {
        let found = deployments.find("chat é", &swap).await.unwrap().unwrap();
        assert_eq!((found.id, &*found.state), (id, expected));
        found.is_of_swap
    };
    deployments.add_status(id, &status().marked(&swap)).await.unwrap();
    assert!(is_of_swap("success").await);
    fake.set_state(id.0, "failure");
    assert!(!is_of_swap("failure").await, "the job has failed after its swap");
    deployments.add_status(id, &Status::failed(&swap, status().log_url)).await.unwrap();
    assert!(is_of_swap("failure").await);

    // One of our own is of nothing else.
    let (fake, deployments) = github();
    fake.deploy("chat é", &json!({ "swap_id": "s-1" }));
    fake.set_state(1, "failure");
    assert!(deployments.find("chat é", &swap).await.unwrap().unwrap().is_of_swap);
}

#[tokio::test]
async fn branches_that_are_not_told_do_not_stand_in_the_way() {
    let (fake, mut deployments) = github();
    deployments.api.bounds.request = HANGS;
    // Time for one question that hangs, and not for three.
    deployments.api.bounds.operation = 2 * HANGS;
    fake.fail(Fault::Hang, &[Operation::ListBranches], Times::Always);
    let commit = Some("c0ffee".to_owned());
    let reference = Reference { name: "main".to_owned(), commit };
    deployments.create(&NewDeployment { reference, ..new() }).await.unwrap();
    let posted = fake.requests().pop().unwrap().body.unwrap();
    assert_eq!(posted["ref"], "c0ffee", "which is right in any case");
}

#[test]
fn what_an_earlier_attempt_has_told_is_not_told_again() {
    let found = |state: &str| Opened::Found(DeploymentId(1), state.to_owned());
    let table = [
        (Opened::Ours(DeploymentId(1)), true, true),
        (Opened::Automatic(DeploymentId(1)), true, true),
        // Killed before it could say so much, while it was under way, and when it had lost sight of it.
        (found("pending"), true, true),
        (found("in_progress"), false, true),
        (found("error"), true, true),
        (found("success"), false, false),
        // Somebody says that it has failed since.
        (found("failure"), false, false),
    ];
    for (opened, begins, ends) in table {
        assert_eq!(opened.lacks(State::InProgress), begins, "{opened:?}");
        assert_eq!(opened.lacks(State::Success), ends, "{opened:?}");
        // What is stuck never served: it can have been given up too early, and not have failed since.
        assert_eq!(opened.lacks(State::Error), opened != found("success"), "{opened:?}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_bound() {
    // Accepted by the kernel, answered by nobody.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let mut spec = spec(base.clone());
    spec.bounds.request = Duration::from_millis(500);
    spec.bounds.operation = Duration::from_millis(800);
    let deployments = Deployments::new(spec).unwrap();
    let error = deployments.create(&new()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{base} took longer than 800ms to create a deployment to chat é in acme/llm")
    );
    assert_eq!(error.hints(), [format!("check that the runner reaches {base}")]);
    // A list is asked for three times, and more than one of them.
    let error = deployments.find("chat é", &new().swap).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("longer than 800ms to find the deployment of s-1"), "{said}");
}

#[tokio::test]
async fn a_closed_port_is_told_with_its_cause() {
    let base = format!("http://127.0.0.1:{}", testbed::server::free_port().unwrap());
    let error = Deployments::new(spec(base.clone())).unwrap().create(&new()).await.unwrap_err();
    let failure = error.to_failure();
    assert_eq!(
        failure.message,
        format!(
            "no usable answer from {base} when asked to create a deployment to chat é in acme/llm"
        )
    );
    assert!(failure.causes.iter().any(|cause| cause.contains("Connection refused")), "{failure}");
}

#[tokio::test]
async fn what_no_client_can_be_made_of_is_an_error_and_no_panic() {
    let mut broken = spec("http://127.0.0.1:1".to_owned());
    broken.token = Secret::new("a\nb");
    assert!(matches!(Deployments::new(broken), Err(ApiError::Token)));
    let error = Deployments::new(spec("not a url".to_owned())).unwrap_err();
    assert_eq!(error.to_string(), "cannot set up a client for not a url");
}

#[test]
fn every_outcome_has_its_state() {
    let table = [
        (Outcome::Promoted, State::Success, State::Success),
        (Outcome::RolledBack, State::Failure, State::Success),
        (Outcome::Failed, State::Failure, State::Failure),
        (Outcome::Aborted, State::Failure, State::Failure),
        (Outcome::Stuck, State::Error, State::Error),
        (Outcome::Unchanged, State::Inactive, State::Inactive),
    ];
    for (outcome, swap, rollback) in table {
        assert_eq!(State::of(Purpose::Swap, outcome), swap, "{outcome}");
        assert_eq!(State::of(Purpose::Rollback, outcome), rollback, "{outcome}");
    }
}

#[test]
fn a_status_says_where_traffic_is_and_is_cut_between_characters() {
    let conclusion = Conclusion {
        outcome: Outcome::Failed,
        traffic: "Qwen/A on slot a serves".to_owned(),
        slot: None,
        revision: None,
        previous_revision: None,
        rollback_until: None,
        failure: Some(Failure::new(format!("the engine\nsaid {}", "é".repeat(200)))),
    };
    let status = Status::concluded(Purpose::Swap, &conclusion, None);
    assert_eq!(status.state, State::Failure);
    let expected =
        format!("Qwen/A on slot a serves; failed: the engine said {}…", "é".repeat(140 - 50));
    assert_eq!(expected.chars().count(), 140);
    assert_eq!(
        status.body(),
        json!({"state": "failure", "description": expected, "auto_inactive": false})
    );
}
