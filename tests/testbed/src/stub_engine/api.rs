//! The endpoints.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Dialect, Envelope};
use super::engine::{Asked, Engine, Finish, Generation};
use super::metrics;
use super::options::VERSION;

/// Handlers that vLLM leaves out of `http_requests_total`.
const UNCOUNTED: [&str; 3] = ["/health", "/metrics", "/version"];

/// All endpoints of `engine`.
pub(super) fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/version", get(|| async { Json(json!({"version": VERSION})) }))
        .route("/metrics", get(exposition))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(|engine, body| generate(Dialect::Completion, engine, body)))
        .route("/v1/chat/completions", post(|engine, body| generate(Dialect::Chat, engine, body)))
        .route("/v1/realtime", get(realtime))
        .layer(middleware::from_fn_with_state(engine.clone(), authenticate))
        .layer(middleware::from_fn_with_state(engine.clone(), count))
        .with_state(engine)
}

type Shared = State<Arc<Engine>>;

async fn health(State(engine): Shared) -> StatusCode {
    engine
        .options
        .stub
        .stub_health_status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::OK)
}

async fn exposition(State(engine): Shared) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics::exposition(&engine),
    )
        .into_response()
}

async fn models(State(engine): Shared) -> Json<Value> {
    let long = engine.options.stub.stub_long_name.map(|length| "x".repeat(length));
    let cards: Vec<Value> = engine
        .options
        .served_names()
        .iter()
        .chain(&long)
        .map(|name| {
            json!({
                "id": name,
                "object": "model",
                "created": 1_790_000_000,
                "owned_by": "vllm",
                "root": engine.options.root(),
                "parent": null,
                "max_model_len": engine.options.engine.max_model_len,
            })
        })
        .collect();
    Json(json!({"object": "list", "data": cards}))
}

/// The fields of a request that matter here; vLLM ignores unknown ones too.
#[derive(Debug, Deserialize)]
struct Ask {
    model: Option<String>,
    #[serde(default)]
    stream: bool,
    #[serde(alias = "max_completion_tokens")]
    max_tokens: Option<u32>,
    #[serde(alias = "messages")]
    prompt: Value,
}

async fn generate(dialect: Dialect, State(engine): Shared, body: Bytes) -> Response {
    let ask: Ask = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if let Some(model) =
        ask.model.as_ref().filter(|model| !engine.options.served_names().contains(model))
    {
        return refusal(StatusCode::NOT_FOUND, &format!("The model `{model}` does not exist."));
    }
    if ask.max_tokens == Some(0) {
        return refusal(StatusCode::BAD_REQUEST, "max_tokens must be at least 1, got 0.");
    }
    let envelope = Envelope::new(dialect, ask.model, &engine);
    let Some(generation) =
        engine.admit(Asked { prompt: ask.prompt.to_string(), limit: ask.max_tokens })
    else {
        return refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot schedule new futures after shutdown",
        );
    };
    if ask.stream { streamed(envelope, generation) } else { whole(&envelope, generation).await }
}

async fn whole(envelope: &Envelope, mut generation: Generation) -> Response {
    let mut text = String::new();
    let mut tokens = 0;
    let mut finish = Finish::Stop;
    while let Some(piece) = generation.next().await {
        text.push_str(piece.text);
        tokens += u32::from(!piece.text.is_empty());
        finish = piece.finish.unwrap_or(finish);
    }
    let mut answer = envelope.whole(&text, finish);
    answer["usage"] =
        json!({"prompt_tokens": generation.prompt_tokens(), "completion_tokens": tokens});
    Json(answer).into_response()
}

/// Server-sent events; the generation lives in the body, so that a client that leaves ends it.
fn streamed(envelope: Envelope, generation: Generation) -> Response {
    let opening = stream::iter(envelope.opening().map(|chunk| event(&chunk)));
    let pieces = stream::unfold((envelope, generation), |(envelope, mut generation)| async move {
        let piece = generation.next().await?;
        let mut bytes = event(&envelope.chunk(piece));
        if piece.finish.is_some() {
            bytes.push_str("data: [DONE]\n\n");
        }
        Some((bytes, (envelope, generation)))
    });
    let body = Body::from_stream(opening.chain(pieces).map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response()
}

fn event(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

/// Answers 101, then sends back every byte until the client closes: enough to pin a proxy's worker.
async fn realtime(mut request: Request) -> Response {
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return refusal(StatusCode::UPGRADE_REQUIRED, "an upgrade is required");
    };
    tokio::spawn(async move {
        if let Ok(connection) = upgrade.await {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(connection));
            // Whichever side fails, the connection is over.
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "websocket")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// vLLM guards `/v1` alone: health and metrics need no key.
async fn authenticate(State(engine): Shared, request: Request, next: Next) -> Response {
    let key = engine.options.api_key.clone().or_else(|| std::env::var("VLLM_API_KEY").ok());
    let guarded = request.uri().path().starts_with("/v1") && request.method() != Method::OPTIONS;
    if let Some(key) = key.filter(|_| guarded) {
        let given =
            request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if given != Some(&format!("Bearer {key}")) {
            return (StatusCode::UNAUTHORIZED, Json(json!({"error": "Unauthorized"})))
                .into_response();
        }
    }
    next.run(request).await
}

/// Counts an answer when its last byte is made or its client has left, never before.
async fn count(State(engine): Shared, request: Request, next: Next) -> Response {
    let (handler, method) = (request.uri().path().to_owned(), request.method().to_string());
    let response = next.run(request).await;
    if UNCOUNTED.contains(&handler.as_str()) || response.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        return response;
    }
    let entry = Entry { engine, handler, method, status: response.status().as_u16() };
    // A body of known size is complete already, and wrapping it would cost its Content-Length.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::from_stream(body.into_data_stream().inspect(move |_| {
            let _held_until_the_stream_is_dropped = &entry;
        }))
    })
}

/// Written to the books when it is dropped.
struct Entry {
    engine: Arc<Engine>,
    handler: String,
    method: String,
    status: u16,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.engine
            .books
            .send_modify(|books| books.answered(&self.handler, &self.method, self.status));
    }
}

/// An error in vLLM's shape.
fn refusal(status: StatusCode, message: &str) -> Response {
    let kind = match status {
        StatusCode::NOT_FOUND => "NotFoundError",
        StatusCode::BAD_REQUEST => "BadRequestError",
        _ => "InternalServerError",
    };
    let error = json!({"message": message, "type": kind, "param": null, "code": status.as_u16()});
    (status, Json(json!({"error": error}))).into_response()
}
