//! Answers that GitHub gives instead of what was asked for, to one request each.

use std::collections::BTreeMap;

use serde_json::json;
use testbed::github::{FakeGitHub, Fault, Operation, Refusal, Times};

use super::*;

fn api(github: &FakeGitHub) -> Api {
    let base = github.url();
    let spec = ApiSpec {
        graphql: format!("{base}/graphql"),
        base,
        token: Secret::new(github.token()),
        permission: "deployments: write",
        repository: Repository::parse("acme/serving").unwrap(),
        bounds: Bounds { pause: Duration::from_millis(1), ..Bounds::default() },
        proxies: Proxies::from_env(&BTreeMap::new()),
    };
    Api::new(spec).unwrap()
}

/// The answer to a request that GitHub has nothing against, but for this fault.
async fn met_with(github: &FakeGitHub, fault: Fault, times: Times) -> ApiError {
    github.fail(fault, &[Operation::CreateDeployment], times);
    let new = json!({ "ref": "main" });
    api(github).post::<Value>("try", "/deployments", &new).await.unwrap_err()
}

async fn refused(github: &FakeGitHub, refusal: Refusal) -> ApiError {
    met_with(github, Fault::Refusal(refusal), Times::Next(1)).await
}

#[tokio::test]
async fn every_way_in_which_github_says_that_it_was_asked_too_much() {
    let after = |seconds: u64| {
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
        ("x-ratelimit-reset", (now + seconds).to_string())
    };
    let left = |count: &str| ("x-ratelimit-remaining", count.to_owned());
    let retry = || vec![("retry-after", "120".to_owned())];
    let secondary = "You have exceeded a secondary rate limit. Please wait a few minutes.";
    let primary = "API rate limit exceeded for installation ID 1.";
    type Row = (u16, Vec<(&'static str, String)>, &'static str, Option<u64>);
    let cases: [Row; 7] = [
        (403, vec![left("0"), after(3600)], primary, Some(3600)),
        (429, vec![left("0"), after(3600)], primary, Some(3600)),
        (403, retry(), secondary, Some(120)),
        (429, retry(), secondary, Some(120)),
        // The limit of the hour is not what refused: its end says nothing.
        (403, vec![left("4711"), after(3600)], secondary, Some(60)),
        (429, Vec::new(), secondary, Some(60)),
        (429, Vec::new(), "Too Many Requests", None),
    ];
    let github = FakeGitHub::start().unwrap();
    for (asked, (status, headers, message, expected)) in cases.into_iter().enumerate() {
        let shown = format!("{status} {headers:?} {message}");
        let error = refused(&github, Refusal { status, message, headers }).await;
        let ApiError::RateLimited { holds, .. } = &error else { panic!("{shown}: {error:?}") };
        let holds = holds.map(|holds| holds.as_secs());
        // The clock goes on while it is asked.
        let near = |(one, other): (u64, u64)| other.saturating_sub(one) < 60 && one <= other;
        assert!(holds.is_none() == expected.is_none(), "{shown}: {holds:?}");
        assert!(holds.zip(expected).is_none_or(near), "{shown}: {holds:?}");
        assert_eq!(github.requests().len(), asked + 1, "{shown}");
    }
}

#[tokio::test]
async fn a_token_without_rights_is_no_limit() {
    let github = FakeGitHub::start().unwrap();
    let headers = vec![("x-ratelimit-remaining", "4711".to_owned())];
    let message = "Resource not accessible by integration";
    let error = refused(&github, Refusal { status: 403, message, headers }).await;
    assert!(matches!(error, ApiError::Answered { status: 403, .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_but_this_api_is_sent_the_token_and_no_redirect_goes_round_for_ever() {
    let (github, elsewhere) = (FakeGitHub::start().unwrap(), FakeGitHub::start().unwrap());
    let to = format!("{}/repos/acme/serving/deployments", elsewhere.url());
    let error = met_with(&github, Fault::Redirect(307, to), Times::Next(1)).await;
    assert!(matches!(error, ApiError::Answered { status: 307, .. }), "{error:?}");
    assert_eq!((github.requests().len(), elsewhere.requests().len()), (1, 0));

    let github = FakeGitHub::start().unwrap();
    github.rename("acme/serving", "acme/models");
    let round = "/repositories/1/deployments";
    let error = met_with(&github, Fault::Redirect(301, round.to_owned()), Times::Always).await;
    assert!(matches!(error, ApiError::Answered { status: 301, .. }), "{error:?}");
    let met: Vec<_> = github.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(met, ["/repos/acme/serving/deployments", round, round]);
}

#[test]
fn each_form_of_a_reason_is_told() {
    let of_field = json!({ "resource": "Deployment", "field": "ref", "code": "invalid" });
    let rows = [
        (of_field, "ref: invalid"),
        (
            json!({ "code": "custom", "message": "No ref found for: main" }),
            "No ref found for: main",
        ),
        (json!("No ref found for: main"), "No ref found for: main"),
        (json!({ "code": "invalid" }), r#"{"code":"invalid"}"#),
    ];
    for (error, told) in rows {
        assert_eq!(detail(&error), told);
    }
}
