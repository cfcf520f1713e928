//! The stub as a process, looked at from outside.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::*;
use crate::PATIENCE;
use crate::load::http::{self, Connection};

/// Long enough that nothing of it passes within a test.
const FOREVER: &str = "1h";
/// Between two looks at something that tells nobody when it changes.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

fn ask(tokens: u32) -> Value {
    json!({"model": "a", "prompt": "tell", "max_tokens": tokens})
}

fn ask_stream(tokens: u32) -> Value {
    json!({"model": "a", "prompt": "tell", "max_tokens": tokens, "stream": true})
}

async fn complete(engine: &StubEngine, body: &Value) -> (u16, Value) {
    let answer = http::post(engine.address(), "/v1/completions", body).await.unwrap();
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

/// Waits until the sample that begins with `sample` has the value `value`.
async fn metric(engine: &StubEngine, sample: &str, value: &str) {
    let seen = async {
        loop {
            let page = http::get(engine.address(), "/metrics").await.unwrap().text();
            let found = page
                .lines()
                .find(|line| line.starts_with(sample))
                .and_then(|line| line.rsplit(' ').next());
            if found == Some(value) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .unwrap_or_else(|_| panic!("{sample} does not become {value}"));
}

async fn stderr_says(engine: &StubEngine, text: &str) {
    let said = async {
        while !engine.stderr().unwrap().contains(text) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, said)
        .await
        .unwrap_or_else(|_| panic!("standard error lacks {text:?}"));
}

fn children(engine: &StubEngine) -> Vec<String> {
    let file = format!("/proc/{0}/task/{0}/children", engine.pid());
    std::fs::read_to_string(file).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn holds_its_port_but_refuses_connections_while_it_loads() {
    let mut engine = StubEngine::start("a", &["--stub-load-time", FOREVER]).unwrap();
    stderr_says(&engine, "Loading safetensors checkpoint shards:   0% Completed | 0/4").await;
    let refused = TcpStream::connect(engine.address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let taken = Socket::new(Domain::IPV4, Type::STREAM, None)
        .unwrap()
        .bind(&engine.address().into())
        .unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    engine.terminate().unwrap();
    assert_eq!(engine.ended().await.unwrap(), 0);
}

#[tokio::test]
async fn dies_of_memory_while_it_loads() {
    let mut engine =
        StubEngine::start("a", &["--stub-load-time", FOREVER, "--stub-die-after", "10ms"]).unwrap();
    assert_eq!(engine.ended().await.unwrap(), 1);
    assert!(engine.stderr().unwrap().contains("torch.OutOfMemoryError: CUDA out of memory."));
}

#[tokio::test]
async fn a_taken_port_ends_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = Command::new(binary().unwrap())
        .args(["serve", "a", "--port", &port])
        .output()
        .await
        .unwrap();
    assert_eq!((output.status.code(), output.status.signal()), (Some(1), None));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Address already in use"));
}

#[tokio::test]
async fn shares_its_port_if_told_to() {
    let engine = StubEngine::serving("a", &["--stub-reuse-port"]).await.unwrap();
    let second = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    second.set_reuse_port(true).unwrap();
    second.bind(&engine.address().into()).unwrap();
    second.listen(1).unwrap();
}

#[tokio::test]
async fn tells_its_models_to_those_who_have_the_key() {
    let flags = ["--served-model-name", "x", "y", "--api-key", "k", "--stub-report-model", "other"];
    let engine = StubEngine::serving("a", &flags).await.unwrap();
    assert_eq!(http::get(engine.address(), "/v1/models").await.unwrap().status, 401);
    for open in ["/health", "/metrics", "/version"] {
        assert_eq!(http::get(engine.address(), open).await.unwrap().status, 200, "{open}");
    }
    let mut connection = Connection::open(engine.address()).await.unwrap();
    connection.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n").await;
    let answer: Value =
        serde_json::from_slice(&connection.answer(|_| {}).await.unwrap().body).unwrap();
    let cards: Vec<_> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| (&card["id"], &card["root"]))
        .collect();
    assert_eq!(cards, [(&json!("x"), &json!("other")), (&json!("y"), &json!("other"))]);
}

#[tokio::test]
async fn answers_as_long_as_asked_and_always_the_same() {
    let engine = StubEngine::serving("a", &[]).await.unwrap();
    let (status, first) = complete(&engine, &ask(3)).await;
    assert_eq!((status, &first["usage"]["completion_tokens"]), (200, &json!(3)));
    assert_eq!(first["system_fingerprint"], engine.fingerprint());
    assert_eq!(first["choices"][0]["finish_reason"], "length");
    assert_eq!(complete(&engine, &ask(3)).await.1, first);
    let (_, natural) = complete(&engine, &json!({"prompt": "tell"})).await;
    assert_eq!(natural["choices"][0]["finish_reason"], "stop");
    let (status, wrong) = complete(&engine, &json!({"model": "b", "prompt": "tell"})).await;
    assert_eq!((status, &wrong["error"]["type"]), (404, &json!("NotFoundError")));
    assert_eq!(complete(&engine, &ask(0)).await.0, 400);
}

#[tokio::test]
async fn counts_what_it_does_and_forgets_clients_that_left() {
    let flags = ["--max-num-seqs", "1", "--stub-token-delay", "5ms"];
    let engine = StubEngine::serving("a", &flags).await.unwrap();
    complete(&engine, &ask(2)).await;
    metric(
        &engine,
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}",
        "1.0",
    )
    .await;
    let body = ask_stream(1_000_000).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Connection::open(engine.address()).await.unwrap();
        client.send(request.as_bytes()).await;
        clients.push(client);
    }
    metric(&engine, "vllm:num_requests_running", "1.0").await;
    metric(&engine, "vllm:num_requests_waiting{", "1.0").await;
    clients.clear();
    metric(&engine, "vllm:num_requests_running", "0.0").await;
    metric(&engine, "vllm:num_requests_waiting{", "0.0").await;
    metric(&engine, "vllm:request_success_total{engine=\"0\",finished_reason=\"length\"", "1.0")
        .await;
    metric(&engine, "vllm:request_success_total{engine=\"0\",finished_reason=\"abort\"", "0.0")
        .await;
    metric(&engine, "vllm:e2e_request_latency_seconds_count", "1.0").await;
}

#[tokio::test]
async fn a_plain_request_whose_client_left_ends_too() {
    let engine = StubEngine::serving("a", &["--stub-token-delay", FOREVER]).await.unwrap();
    let body = ask(1).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut client = Connection::open(engine.address()).await.unwrap();
    client.send(request.as_bytes()).await;
    metric(&engine, "vllm:num_requests_running", "1.0").await;
    drop(client);
    metric(&engine, "vllm:num_requests_running", "0.0").await;
}

#[tokio::test]
async fn sigterm_aborts_and_calls_it_success() {
    let mut engine = StubEngine::serving("a", &["--stub-token-delay", "10ms"]).await.unwrap();
    let address = engine.address();
    let stream = tokio::spawn(async move {
        http::post(address, "/v1/completions", &ask_stream(1_000_000)).await
    });
    metric(&engine, "vllm:num_requests_running", "1.0").await;
    engine.terminate().unwrap();
    let answer = stream.await.unwrap().unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer.text().contains(r#""finish_reason":"abort""#)
            && answer.text().ends_with("data: [DONE]\n\n")
    );
    assert_eq!(engine.ended().await.unwrap(), 0);
}

#[tokio::test]
async fn with_a_timeout_it_finishes_refuses_and_looks_healthy() {
    let flags = ["--stub-token-delay", "20ms", "--shutdown-timeout", "60"];
    let mut engine = StubEngine::serving("a", &flags).await.unwrap();
    let address = engine.address();
    let stream =
        tokio::spawn(async move { http::post(address, "/v1/completions", &ask_stream(50)).await });
    metric(&engine, "vllm:num_requests_running", "1.0").await;
    engine.terminate().unwrap();
    stderr_says(&engine, "Shutdown initiated").await;
    engine.terminate().unwrap();
    let (status, refused) = complete(&engine, &ask(1)).await;
    assert_eq!(
        (status, &refused["error"]["message"]),
        (500, &json!("cannot schedule new futures after shutdown"))
    );
    for healthy in ["/health", "/v1/models"] {
        assert_eq!(http::get(engine.address(), healthy).await.unwrap().status, 200, "{healthy}");
    }
    let answer = stream.await.unwrap().unwrap().text();
    assert!(
        answer.contains(r#""finish_reason":"length""#) && answer.ends_with("data: [DONE]\n\n"),
        "{answer}"
    );
    assert_eq!(engine.ended().await.unwrap(), 0);
}

#[tokio::test]
async fn the_timeout_bounds_the_drain() {
    let mut engine =
        StubEngine::serving("a", &["--stub-token-delay", "20ms", "--shutdown-timeout", "1"])
            .await
            .unwrap();
    let address = engine.address();
    let stream = tokio::spawn(async move {
        http::post(address, "/v1/completions", &ask_stream(1_000_000)).await
    });
    metric(&engine, "vllm:num_requests_running", "1.0").await;
    engine.terminate().unwrap();
    assert!(stream.await.unwrap().unwrap().text().contains(r#""finish_reason":"abort""#));
    assert_eq!(engine.ended().await.unwrap(), 0);
}

#[tokio::test]
async fn ignores_sigterm_if_told_to() {
    let engine = StubEngine::serving("a", &["--stub-hang-on-term", "--stub-token-delay", "5ms"])
        .await
        .unwrap();
    engine.terminate().unwrap();
    assert_eq!(complete(&engine, &ask(20)).await.1["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn health_answers_what_it_is_told_to() {
    let engine = StubEngine::serving("a", &["--stub-health-status", "503"]).await.unwrap();
    assert_eq!(http::get(engine.address(), "/health").await.unwrap().status, 503);
}

#[tokio::test]
async fn its_child_ends_with_it_but_outlives_a_sigkill() {
    let mut graceful = StubEngine::serving("a", &["--stub-child"]).await.unwrap();
    let core = children(&graceful).remove(0);
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{core}/cmdline")).unwrap(),
        "VLLM::EngineCore\0"
    );
    graceful.terminate().unwrap();
    graceful.ended().await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{core}")).exists());

    let mut killed = StubEngine::serving("a", &["--stub-child"]).await.unwrap();
    let core = children(&killed).remove(0);
    killed.kill().unwrap();
    assert_eq!(killed.ended().await.unwrap(), -9);
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{core}/cmdline")).unwrap(),
        "VLLM::EngineCore\0"
    );
    let refused = TcpStream::connect(killed.address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
