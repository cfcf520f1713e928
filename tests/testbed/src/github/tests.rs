use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::json;

use super::*;
use crate::PATIENCE;

const REPOSITORY: &str = "/repos/acme/models";

const HANGS: Duration = Duration::from_millis(300);

fn call(base: &str, method: Method, path: &str) -> RequestBuilder {
    let client = Client::builder().timeout(PATIENCE).user_agent("a test").build().unwrap();
    client.request(method, format!("{base}{REPOSITORY}{path}")).bearer_auth(server::TOKEN)
}

async fn post(github: &FakeGitHub, path: &str, body: &Value) -> (u16, Value) {
    answer(call(&github.url(), Method::POST, path).json(body)).await
}

async fn get(github: &FakeGitHub, path: &str) -> (u16, Value) {
    answer(call(&github.url(), Method::GET, path)).await
}

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
}

fn deployment(git_ref: &str, environment: &str) -> Value {
    json!({ "ref": git_ref, "environment": environment, "task": "deploy:model", "auto_merge": false,
        "required_contexts": [], "production_environment": false, "payload": { "swap": "s-1" } })
}

fn ids(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|item| item["id"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_deployment_gets_statuses_and_shows_them() {
    let github = FakeGitHub::start().unwrap();
    let (status, created) = post(&github, "/deployments", &deployment("main", "chat")).await;
    assert_eq!(status, 201);
    assert_eq!(created["payload"]["swap"], "s-1");
    let statuses = format!("/deployments/{}/statuses", created["id"]);
    for (state, description) in [("in_progress", "starting b"), ("success", "new model on b")] {
        let body = json!({ "state": state, "description": description, "log_url": "https://github.com/acme/runs/7" });
        let (status, shown) = post(&github, &statuses, &body).await;
        assert_eq!((status, &shown["state"]), (201, &json!(state)));
        let (status, again) = get(&github, &format!("{statuses}/{}", shown["id"])).await;
        assert_eq!((status, again), (200, shown));
    }
    let (_, list) = get(&github, &statuses).await;
    assert_eq!((&list[0]["state"], &list[1]["state"]), (&json!("success"), &json!("in_progress")));
    let (status, one) = get(&github, &format!("/deployments/{}", created["id"])).await;
    assert_eq!((status, &one["sha"]), (200, &created["sha"]));

    assert_eq!(github.violations(), Vec::<String>::new());
    let commit = &github.deployments()[0].sha[..7];
    let page = format!(
        "chat  success  #1 deploy:model, main ({commit})
    success     new model on b
                https://github.com/acme/runs/7
    in_progress starting b
                https://github.com/acme/runs/7
"
    );
    assert_eq!(github.to_string(), page);
}

#[tokio::test]
async fn lists_filter_and_turn_pages_newest_first() {
    let github = FakeGitHub::start().unwrap();
    let sha = "0123456789abcdef0123456789abcdef01234567";
    for (git_ref, environment) in [("main", "chat"), (sha, "chat"), ("main", "embed")] {
        post(&github, "/deployments", &deployment(git_ref, environment)).await;
    }
    let main = github.deployments()[0].sha.clone();
    for (query, expected) in [
        (String::new(), vec![3, 2, 1]),
        ("?environment=chat".into(), vec![2, 1]),
        (format!("?sha={sha}"), vec![2]),
        (format!("?sha={main}&environment=embed"), vec![3]),
        ("?ref=main&task=deploy:model".into(), vec![3, 1]),
        ("?task=deploy".into(), vec![]),
        ("?per_page=2&page=2".into(), vec![1]),
    ] {
        let (status, list) = get(&github, &format!("/deployments{query}")).await;
        assert_eq!((status, ids(&list)), (200, expected), "{query}");
    }
    let first =
        call(&github.ghes_url(), Method::GET, "/deployments?per_page=2").send().await.unwrap();
    let next =
        format!("<{}{REPOSITORY}/deployments?per_page=2&page=2>; rel=\"next\"", github.ghes_url());
    assert_eq!(first.headers()["link"], next.as_str());
    assert_eq!(github.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_success_makes_the_one_before_inactive_but_not_in_production() {
    let github = FakeGitHub::start().unwrap();
    for (production, expected) in [(false, "inactive"), (true, "success")] {
        for _ in 0..2 {
            let mut body = deployment("main", if production { "live" } else { "chat" });
            body["production_environment"] = production.into();
            let (_, created) = post(&github, "/deployments", &body).await;
            post(
                &github,
                &format!("/deployments/{}/statuses", created["id"]),
                &json!({ "state": "success" }),
            )
            .await;
        }
        let all = github.deployments();
        let states: Vec<&str> =
            all.iter().filter(|d| d.production == production).map(Deployment::state).collect();
        assert_eq!(states, [expected, "success"]);
    }
    assert_eq!(github.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn what_the_description_forbids_is_refused_and_remembered() {
    let github = FakeGitHub::start().unwrap();
    post(&github, "/deployments", &deployment("main", "chat")).await;
    let statuses = "/deployments/1/statuses";
    let mut misspelt = deployment("main", "chat");
    misspelt["enviroment"] = "chat".into();
    let long = "ä".repeat(141);
    for (path, body, named) in [
        ("/deployments", json!({ "environment": "chat" }), "ref"),
        ("/deployments", misspelt, "enviroment"),
        ("/deployments", json!({ "ref": 1 }), "/ref"),
        (statuses, json!({ "state": "failed" }), "/state"),
        (statuses, json!({ "state": "failure", "description": long }), "141 characters"),
        (statuses, json!({ "state": "failure", "description": null }), "/description"),
        (statuses, json!({ "state": "failure", "log_url": "run 7" }), "/log_url"),
        ("/deployments/one/statuses", json!({ "state": "failure" }), "deployment_id"),
        ("/dispatches", json!({ "client_payload": {} }), "event_type"),
        (
            "/actions/workflows/swap.yml/dispatches",
            json!({ "ref": "main", "inputs": [] }),
            "/inputs",
        ),
    ] {
        let before = github.violations().len();
        let (status, answer) = post(&github, path, &body).await;
        assert_eq!(
            (status, answer["message"].as_str()),
            (422, Some("Validation Failed")),
            "{body}"
        );
        assert!(answer["errors"].to_string().contains(named), "{named}: {answer}");
        let violations = github.violations();
        assert!(
            violations.len() > before && violations.last().unwrap().contains(named),
            "{violations:?}"
        );
    }
    let (status, _) = get(&github, "/deployments?enviroment=chat").await;
    assert_eq!(status, 422);
    let (status, _) = get(&github, "/releases").await;
    assert_eq!(status, 404);
    assert!(github.violations().last().unwrap().ends_with("/releases: no such call"));
    assert_eq!(github.deployments().len(), 1);
    assert!(github.deployments()[0].statuses.is_empty());
}

#[tokio::test]
async fn a_description_may_have_140_characters() {
    let github = FakeGitHub::start().unwrap();
    post(&github, "/deployments", &deployment("main", "chat")).await;
    let body = json!({ "state": "failure", "description": "ä".repeat(140) });
    assert_eq!(post(&github, "/deployments/1/statuses", &body).await.0, 201);
    assert_eq!(github.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_create_that_leaves_merging_and_checks_to_github_makes_nothing() {
    let github = FakeGitHub::start().unwrap();
    let mut body = deployment("main", "chat");
    body.as_object_mut().unwrap().remove("required_contexts");
    assert_eq!(post(&github, "/deployments", &body).await.0, 409);
    body.as_object_mut().unwrap().remove("auto_merge");
    let (status, answer) = post(&github, "/deployments", &body).await;
    assert_eq!(status, 202);
    assert!(answer["message"].is_string() && answer["id"].is_null());
    assert!(github.deployments().is_empty());
    assert_eq!(
        post(&github, "/deployments/9/statuses", &json!({ "state": "success" })).await.0,
        404
    );
    assert_eq!(github.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn only_its_token_is_let_in() {
    let github = FakeGitHub::start().unwrap();
    let url = format!("{}{REPOSITORY}/deployments", github.url());
    let client = Client::builder().user_agent("a test").build().unwrap();
    assert_eq!(answer(client.get(&url)).await.0, 401);
    assert_eq!(answer(client.get(&url).bearer_auth("ghs_other")).await.0, 401);
    assert_eq!(
        answer(client.get(&url).header("authorization", format!("token {}", github.token())))
            .await
            .0,
        200
    );
    assert_eq!(answer(Client::new().get(&url).bearer_auth(github.token())).await.0, 403);
}

#[tokio::test]
async fn dispatches_are_taken() {
    let github = FakeGitHub::start().unwrap();
    assert_eq!(post(&github, "/dispatches", &json!({ "event_type": "rollback" })).await.0, 204);
    let workflow = "/actions/workflows/swap.yml/dispatches";
    assert_eq!(post(&github, workflow, &json!({ "ref": "main" })).await.0, 204);
    let (status, run) =
        post(&github, workflow, &json!({ "ref": "main", "return_run_details": true })).await;
    assert_eq!(status, 200);
    assert!(run["workflow_run_id"].is_u64());
    assert_eq!(github.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn faults_hit_what_they_are_set_for_and_end() {
    let github = FakeGitHub::start().unwrap();
    for status in [403, 404, 422, 500, 502] {
        github.fail(Fault::Status(status), &[Operation::CreateDeployment], Times::Next(1));
        assert_eq!(get(&github, "/deployments").await.0, 200);
        let (answered, body) = post(&github, "/deployments", &deployment("main", "chat")).await;
        assert_eq!(answered, status);
        assert!(body["message"].is_string());
    }
    assert!(github.deployments().is_empty());
    assert_eq!(post(&github, "/deployments", &deployment("main", "chat")).await.0, 201);

    github.fail(Fault::Status(502), &Operation::ALL, Times::Always);
    for _ in 0..3 {
        assert_eq!(get(&github, "/deployments").await.0, 502);
    }
    github.heal();
    assert_eq!(get(&github, "/deployments").await.0, 200);
    assert_eq!(github.violations(), Vec::<String>::new());

    github.fail(Fault::Status(502), &[Operation::CreateDeployment], Times::Next(1));
    assert_eq!(post(&github, "/deployments", &json!({})).await.0, 502);
    assert_eq!(github.violations().len(), 1, "a fault must not hide a bad request");
}

#[tokio::test]
#[should_panic(expected = "GitHub would not have it")]
async fn what_nobody_asks_for_fails_the_test_that_made_it() {
    let github = FakeGitHub::start().unwrap();
    get(&github, "/releases").await;
}

#[tokio::test]
async fn connections_hang_or_are_cut() {
    let github = FakeGitHub::start().unwrap();
    let create =
        || call(&github.url(), Method::POST, "/deployments").json(&deployment("main", "chat"));
    let once = |fault| github.fail(fault, &[Operation::CreateDeployment], Times::Next(1));

    once(Fault::Hang);
    assert!(create().timeout(HANGS).send().await.unwrap_err().is_timeout());
    once(Fault::Cut);
    let error = create().send().await.unwrap_err();
    assert!(error.is_request() && !error.is_connect() && !error.is_timeout(), "{error:?}");
    assert!(github.deployments().is_empty());
    once(Fault::LostAnswer);
    assert!(create().send().await.is_err());
    assert_eq!(github.deployments().len(), 1);
    once(Fault::LateHang);
    assert!(create().timeout(HANGS).send().await.unwrap_err().is_timeout());
    once(Fault::LateStatus(502));
    assert_eq!(create().send().await.unwrap().status(), 502);
    assert_eq!(github.deployments().len(), 3);
    assert_eq!(create().send().await.unwrap().status(), 201);
    assert_eq!(
        github.requests().iter().map(|r| r.answer).collect::<Vec<_>>(),
        [None, None, None, None, Some(502), Some(201)]
    );
}

#[tokio::test]
async fn down_is_down_and_up_again_with_all_it_knew() {
    let mut github = FakeGitHub::start().unwrap();
    post(&github, "/deployments", &deployment("main", "chat")).await;
    github.down();
    let error = call(&github.url(), Method::GET, "/deployments").send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    github.up().unwrap();
    assert_eq!(ids(&get(&github, "/deployments").await.1), [1]);
}

#[tokio::test]
async fn requests_are_logged() {
    let github = FakeGitHub::start().unwrap();
    let listing = call(&github.ghes_url(), Method::GET, "/deployments?environment=a%20b");
    listing.header("X-GitHub-Api-Version", "2022-11-28").send().await.unwrap();
    post(&github, "/dispatches", &json!({ "event_type": "rollback" })).await;
    let [list, dispatch] = <[Request; 2]>::try_from(github.requests()).unwrap();
    assert_eq!(
        (list.method.as_str(), list.path.as_str()),
        ("GET", "/api/v3/repos/acme/models/deployments")
    );
    assert_eq!(list.query, [("environment".to_owned(), "a b".to_owned())]);
    assert_eq!(
        (list.api_version.as_deref(), list.body, list.answer),
        (Some("2022-11-28"), None, Some(200))
    );
    assert_eq!(dispatch.body, Some(json!({ "event_type": "rollback" })));
    assert_eq!((dispatch.api_version, dispatch.answer), (None, Some(204)));
}

#[test]
fn its_own_answers_are_judged() {
    let contract = Contract::load().unwrap();
    let whole = state::State::new("http://127.0.0.1".into())
        .create("acme/models".into(), &json!({ "ref": "main" }));
    let judge = |answer: &Value| {
        contract.judge_answer(Operation::CreateDeployment, None, 201, Some(answer))
    };
    assert_eq!(judge(&whole), Vec::<String>::new());
    for (field, value) in
        [("url", json!("no address")), ("node_id", Value::Null), ("creator", json!({}))]
    {
        let mut broken = whole.clone();
        broken[field] = value;
        assert!(!judge(&broken).is_empty(), "{field}");
    }
    let mut nobody = whole.clone();
    nobody["creator"] = Value::Null;
    assert_eq!(judge(&nobody), Vec::<String>::new(), "nullable in the description");
    assert!(
        !contract.judge_answer(Operation::CreateDeployment, None, 200, Some(&whole)).is_empty()
    );
}
