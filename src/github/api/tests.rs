//! Answers that GitHub gives instead of what was asked for, to one request each.

use std::sync::{Arc, Mutex};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::*;

type Headers = Vec<(&'static str, String)>;

/// Somebody who answers every request alike, and keeps what was asked.
async fn answering(
    status: u16,
    headers: Headers,
    message: &'static str,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let met = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::clone(&met);
    let app = axum::Router::new().fallback(move |uri: axum::http::Uri| async move {
        seen.lock().unwrap().push(uri.path().to_owned());
        let mut response: Response = axum::Json(json!({ "message": message })).into_response();
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            let value = HeaderValue::from_str(&value).unwrap();
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
        response
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (base, met)
}

fn api(base: &str) -> Api {
    let spec = ApiSpec {
        base: base.to_owned(),
        graphql: format!("{base}/graphql"),
        token: Secret::new("ghs_token"),
        permission: "deployments: write",
        repository: Repository::parse("acme/serving").unwrap(),
        bounds: Bounds { pause: Duration::from_millis(1), ..Bounds::default() },
    };
    Api::new(spec).unwrap()
}

async fn refused(base: &str) -> ApiError {
    api(base).post::<Value>("try", "/deployments", &json!({})).await.unwrap_err()
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
    let cases: [(u16, Headers, &'static str, Option<u64>); 7] = [
        (403, vec![left("0"), after(3600)], primary, Some(3600)),
        (429, vec![left("0"), after(3600)], primary, Some(3600)),
        (403, retry(), secondary, Some(120)),
        (429, retry(), secondary, Some(120)),
        // The limit of the hour is not what refused: its end says nothing.
        (403, vec![left("4711"), after(3600)], secondary, Some(60)),
        (429, Vec::new(), secondary, Some(60)),
        (429, Vec::new(), "Too Many Requests", None),
    ];
    for (status, headers, message, expected) in cases {
        let shown = format!("{status} {headers:?} {message}");
        let (base, met) = answering(status, headers, message).await;
        let error = refused(&base).await;
        let ApiError::RateLimited { holds, .. } = &error else { panic!("{shown}: {error:?}") };
        let holds = holds.map(|holds| holds.as_secs());
        // The clock goes on while it is asked.
        let near = |(one, other): (u64, u64)| other.saturating_sub(one) < 60 && one <= other;
        assert!(holds.is_none() == expected.is_none(), "{shown}: {holds:?}");
        assert!(holds.zip(expected).is_none_or(near), "{shown}: {holds:?}");
        assert_eq!(met.lock().unwrap().len(), 1, "{shown}");
    }
}

#[tokio::test]
async fn a_token_without_rights_is_no_limit() {
    let headers = vec![("x-ratelimit-remaining", "4711".to_owned())];
    let (base, _met) = answering(403, headers, "Resource not accessible by integration").await;
    let error = refused(&base).await;
    assert!(matches!(error, ApiError::Answered { status: 403, .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_but_this_api_is_sent_the_token_and_no_redirect_goes_round_for_ever() {
    let (elsewhere, met_elsewhere) = answering(201, Vec::new(), "made").await;
    let location = vec![("location", format!("{elsewhere}/repos/acme/serving/deployments"))];
    let (base, met) = answering(307, location, "Temporary Redirect").await;
    let error = refused(&base).await;
    assert!(matches!(error, ApiError::Answered { status: 307, .. }), "{error:?}");
    assert_eq!((met.lock().unwrap().len(), met_elsewhere.lock().unwrap().len()), (1, 0));

    let round = vec![("location", "/repositories/1/deployments".to_owned())];
    let (base, met) = answering(301, round, "Moved Permanently").await;
    let error = refused(&base).await;
    assert!(matches!(error, ApiError::Answered { status: 301, .. }), "{error:?}");
    let again = "/repositories/1/deployments";
    assert_eq!(*met.lock().unwrap(), ["/repos/acme/serving/deployments", again, again]);
}
