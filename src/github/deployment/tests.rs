use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::*;
use crate::github::api::Bounds;
use crate::github::run::Repository;
use crate::github::status::{Purpose, State};
use crate::model::event::Conclusion;
use crate::model::failure::{Failure, Hint};
use crate::model::outcome::Outcome;
use crate::model::secret::Secret;

const DEPLOYMENTS: &str = "/api/v3/repos/acme/serving/deployments";
const STATUSES: &str = "/api/v3/repos/acme/serving/deployments/1/statuses";

/// What GitHub does with the next POST.
#[derive(Clone)]
enum Next {
    /// Refuses with a status and a body.
    Refuse(u16, Value),
    /// Does nothing and answers 502.
    Fail,
    /// Does it, and its answer is lost on the way: 502.
    DoAndFail,
    /// Does it and never answers.
    DoAndHang,
    /// Does it and answers what was not asked for.
    DoAndMumble,
}

#[derive(Default)]
struct Github {
    next: VecDeque<Next>,
    requests: Vec<(String, Value)>,
    authorization: Vec<String>,
    deployments: Vec<Value>,
    statuses: Vec<Value>,
    /// Refuses to list anything.
    secretive: bool,
}

type Fake = Arc<Mutex<Github>>;

async fn github(next: &[Next]) -> (Fake, Deployments) {
    let fake =
        Arc::new(Mutex::new(Github { next: next.iter().cloned().collect(), ..Github::default() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api/v3", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(answer).with_state(fake.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut spec = spec(base);
    if next.iter().any(|next| matches!(next, Next::DoAndHang)) {
        // Only what hangs may meet it, on a busy machine as well.
        spec.bounds.request = Duration::from_secs(3);
    }
    (fake, Deployments::new(spec).unwrap())
}

fn spec(base: String) -> ApiSpec {
    ApiSpec {
        graphql: format!("{base}/graphql"),
        base,
        token: Secret::new("ghs_token"),
        permission: "deployments: write",
        repository: Repository::parse("acme/serving").unwrap(),
        bounds: Bounds {
            request: Duration::from_secs(10),
            operation: Duration::from_secs(60),
            pause: Duration::from_millis(1),
        },
    }
}

async fn answer(Shared(fake): Shared<Fake>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = parts.uri.path().to_owned();
    let next = {
        let mut github = fake.lock().unwrap();
        github.requests.push((format!("{} {}", parts.method, parts.uri), body.clone()));
        github.authorization.push(parts.headers["authorization"].to_str().unwrap().to_owned());
        (parts.method == "POST").then(|| github.next.pop_front()).flatten()
    };
    match next {
        None => fake.lock().unwrap().act(&path, parts.method.as_ref(), body).into_response(),
        Some(Next::Refuse(status, body)) => {
            (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
        }
        Some(Next::Fail) => (StatusCode::BAD_GATEWAY, "<html>bad\ngateway</html>").into_response(),
        Some(Next::DoAndFail) => {
            let _lost = fake.lock().unwrap().act(&path, "POST", body);
            (StatusCode::BAD_GATEWAY, Json(json!({"message": "Server Error"}))).into_response()
        }
        Some(Next::DoAndHang) => {
            let _lost = fake.lock().unwrap().act(&path, "POST", body);
            std::future::pending().await
        }
        Some(Next::DoAndMumble) => {
            let _lost = fake.lock().unwrap().act(&path, "POST", body);
            (StatusCode::ACCEPTED, Json(json!({"message": "Auto-merged"}))).into_response()
        }
    }
}

impl Github {
    fn act(&mut self, path: &str, method: &str, mut body: Value) -> (StatusCode, Json<Value>) {
        let list = match path {
            DEPLOYMENTS => &mut self.deployments,
            STATUSES => &mut self.statuses,
            _ => return (StatusCode::NOT_FOUND, Json(json!({"message": "Not Found"}))),
        };
        if method == "GET" && self.secretive {
            return (StatusCode::FORBIDDEN, Json(json!({"message": "Forbidden"})));
        }
        if method == "GET" {
            return (StatusCode::OK, Json(list.iter().rev().cloned().collect()));
        }
        body["id"] = json!(list.len() + 1);
        list.push(body.clone());
        (StatusCode::CREATED, Json(body))
    }
}

/// The requests so far, without their bodies.
fn requests(fake: &Fake) -> Vec<String> {
    fake.lock().unwrap().requests.iter().map(|(line, _)| line.clone()).collect()
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
        log_url: Some("https://github.com/acme/serving/actions/runs/42".to_owned()),
    }
}

const LIST: &str = "GET /api/v3/repos/acme/serving/deployments\
                    ?environment=chat+%C3%A9&task=deploy%3Amodel&per_page=100&page=1";
const POST: &str = "POST /api/v3/repos/acme/serving/deployments";
const POST_STATUS: &str = "POST /api/v3/repos/acme/serving/deployments/1/statuses";
const LIST_STATUSES: &str = "GET /api/v3/repos/acme/serving/deployments/1/statuses?per_page=100";

#[tokio::test]
async fn a_deployment_and_its_status_are_posted_once() {
    let (fake, deployments) = github(&[]).await;
    let id = deployments.create(&new()).await.unwrap();
    deployments.add_status(id, &status()).await.unwrap();
    let github = fake.lock().unwrap();
    assert_eq!(
        github.requests,
        [
            (
                POST.to_owned(),
                json!({
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
                })
            ),
            (
                POST_STATUS.to_owned(),
                json!({
                    "state": "success",
                    "description": "Qwen/B on slot b serves",
                    "auto_inactive": false,
                    "log_url": "https://github.com/acme/serving/actions/runs/42",
                })
            ),
        ]
    );
    assert!(github.authorization.iter().all(|value| value == "Bearer ghs_token"));
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason_and_not_repeated() {
    let validation = json!({
        "message": "Validation Failed",
        "errors": [{"resource": "Deployment", "field": "ref", "code": "invalid"}, "No ref found for: main"],
    });
    let cases = [
        (
            401,
            json!({"message": "Bad credentials"}),
            "401",
            "Bad credentials",
            Some("was not accepted"),
        ),
        (
            403,
            json!({"message": "Resource not accessible by integration"}),
            "403",
            "Resource not accessible by integration",
            Some("`permissions: deployments: write`"),
        ),
        (
            404,
            json!({"message": "Not Found"}),
            "404",
            "Not Found",
            Some("`permissions: deployments: write`"),
        ),
        (422, validation, "422", "Validation Failed; ref: invalid; No ref found for: main", None),
    ];
    for (code, body, shown, message, hint) in cases {
        let (fake, deployments) = github(&[Next::Refuse(code, body)]).await;
        let error = deployments.create(&new()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "GitHub answered {shown} when asked to create a deployment to chat é in acme/serving: {message}"
            )
        );
        let hints = error.hints();
        match hint {
            Some(part) => assert!(hints[0].contains(part), "{hints:?}"),
            None => assert!(hints.is_empty(), "{hints:?}"),
        }
        assert_eq!(requests(&fake), [POST]);
    }
}

#[tokio::test]
async fn a_commit_that_is_not_there_is_replaced_by_the_runs_own_reference() {
    let gone = || json!({"message": "No ref found for: c0ffee"});
    let new = NewDeployment {
        reference: Reference::fixed("c0ffee".to_owned()),
        otherwise: Some(Reference::fixed("main".to_owned())),
        ..new()
    };
    let (fake, deployments) = github(&[Next::Refuse(422, gone())]).await;
    deployments.create(&new).await.unwrap();
    let references = || {
        let github = fake.lock().unwrap();
        github.requests.iter().map(|(_, body)| body["ref"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(references(), ["c0ffee", "main"]);
    let (fake, deployments) = github(&[Next::Refuse(422, gone()), Next::Refuse(422, gone())]).await;
    assert!(deployments.create(&new).await.is_err());
    assert_eq!(requests(&fake), [POST, POST]);
}

#[tokio::test]
async fn what_was_made_in_spite_of_an_error_is_found_and_not_made_again() {
    for lost in [Next::DoAndFail, Next::DoAndHang, Next::DoAndMumble] {
        let (fake, deployments) = github(&[lost.clone(), lost]).await;
        let id = deployments.create(&new()).await.unwrap();
        assert_eq!(id, DeploymentId(1));
        assert_eq!(requests(&fake), [POST, LIST]);
        deployments.add_status(id, &status()).await.unwrap();
        assert_eq!(requests(&fake)[2..], [POST_STATUS, LIST_STATUSES]);
        assert_eq!(fake.lock().unwrap().statuses.len(), 1);
    }
}

#[tokio::test]
async fn another_swaps_deployment_is_not_taken_for_ours() {
    let (fake, deployments) = github(&[Next::Fail]).await;
    let other = json!({"id": 9, "payload": {"swap_id": "s-0"}});
    fake.lock().unwrap().deployments.push(other);
    assert_eq!(deployments.create(&new()).await.unwrap(), DeploymentId(2));
    assert_eq!(requests(&fake), [POST, LIST, POST]);
}

#[tokio::test]
async fn nothing_is_posted_again_while_it_may_be_there() {
    let (fake, deployments) = github(&[Next::DoAndFail]).await;
    fake.lock().unwrap().secretive = true;
    let error = deployments.create(&new()).await.unwrap_err();
    assert!(matches!(error, ApiError::Answered { status: 502, .. }), "{error}");
    assert_eq!(requests(&fake), [POST, LIST]);
}

#[tokio::test]
async fn a_lasting_error_ends_after_few_tries() {
    let (fake, deployments) = github(&[const { Next::Fail }; 5]).await;
    let error = deployments.create(&new()).await.unwrap_err();
    assert_eq!(requests(&fake), [POST, LIST, POST, LIST]);
    assert_eq!(
        error.to_string(),
        "GitHub answered 502 when asked to create a deployment to chat é in acme/serving: \
         <html>bad gateway</html>"
    );
    let error = deployments.add_status(DeploymentId(1), &status()).await.unwrap_err();
    assert!(error.is_ambiguous());
    let statuses =
        [POST_STATUS, LIST_STATUSES, POST_STATUS, LIST_STATUSES, POST_STATUS, LIST_STATUSES];
    assert_eq!(requests(&fake)[4..], statuses);
}

#[tokio::test]
async fn an_attempt_that_began_earlier_is_found() {
    let (fake, deployments) = github(&[]).await;
    assert_eq!(
        deployments.find_or_create(&new(), None).await.unwrap(),
        Opened::Ours(DeploymentId(1))
    );
    assert_eq!(requests(&fake), [LIST, POST]);
    // A payload may come back as a text.
    fake.lock().unwrap().deployments = vec![json!({"id": 1, "payload": "{\"swap_id\":\"s-1\"}"})];
    assert_eq!(
        deployments.find_or_create(&new(), None).await.unwrap(),
        Opened::Found(DeploymentId(1), "pending".to_owned())
    );
    let state = "GET /api/v3/repos/acme/serving/deployments/1/statuses?per_page=1";
    assert_eq!(requests(&fake)[2..], [LIST, state]);
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
        format!("{base} took longer than 800ms to create a deployment to chat é in acme/serving")
    );
    assert_eq!(error.hints(), [format!("check that the runner reaches {base}")]);
    // A list is asked for three times, and more than one of them.
    let error = deployments.find("chat é", &new().swap).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("longer than 800ms to find the deployment of s-1"), "{said}");
}

#[tokio::test]
async fn a_closed_port_is_told_with_its_cause() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Deployments::new(spec(base.clone())).unwrap().create(&new()).await.unwrap_err();
    let failure = error.to_failure();
    assert_eq!(
        failure.message,
        format!(
            "no usable answer from {base} when asked to create a deployment to chat é in acme/serving"
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
