use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// A server that answers requests from a table of `METHOD path` (or with what the request holds) to status and body.
struct Double {
    port: Port,
    task: JoinHandle<()>,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn double(answer: fn(&str) -> (&'static str, String)) -> Double {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = Port(listener.local_addr().unwrap().port());
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 8192];
            let mut length = 0;
            // Requests of these tests have one short body at most.
            loop {
                length += stream.read(&mut request[length..]).await.unwrap();
                let text = std::str::from_utf8(&request[..length]).unwrap();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let wanted = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() == wanted.map_or(0, |length| length.parse().unwrap()) {
                    break;
                }
            }
            let (status, body) = answer(std::str::from_utf8(&request[..length]).unwrap());
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // Nobody has to read it to its end.
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    Double { port, task }
}

const MODELS: &str = r#"{"object":"list","data":[
    {"id":"chat","object":"model","root":"Q/M","parent":null,"max_model_len":4096,"permission":[]},
    {"id":"lora","object":"model","root":"/l","parent":"chat"}]}"#;

fn healthy(request: &str) -> (&'static str, String) {
    match request.split(' ').nth(1).unwrap() {
        "/health" => ("200 OK", String::new()),
        "/v1/models" if request.contains("authorization: Bearer wrong") => {
            ("401 Unauthorized", "{}".to_owned())
        }
        "/v1/models" => ("200 OK", MODELS.to_owned()),
        "/metrics" => (
            "200 OK",
            "vllm:num_requests_running 2.0\nvllm:num_requests_waiting{engine=\"0\"} 1.0\n"
                .to_owned(),
        ),
        "/v1/completions"
            if request.contains("\"model\":\"chat\"") && request.contains("\"max_tokens\":1") =>
        {
            ("200 OK", r#"{"choices":[],"system_fingerprint":"vllm-0.32.0-12345678"}"#.to_owned())
        }
        _ => ("404 Not Found", String::new()),
    }
}

#[tokio::test]
async fn a_closed_port_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = Port(listener.local_addr().unwrap().port());
    drop(listener);
    assert_eq!(ask(Engine::Vllm, port, None).await, Answer::Refused);
    assert!(matches!(in_flight(Engine::Vllm, port).await, Err(EngineError::NoAnswer { .. })));
    assert_eq!(fingerprint(Engine::Vllm, port, "chat", None).await, None);
}

#[tokio::test]
async fn a_ready_replica_names_its_models() {
    let double = double(healthy).await;
    let Answer::Ready(models) = ask(Engine::Vllm, double.port, None).await else { panic!() };
    assert_eq!(models.entries.len(), 2);
    let chat = ModelEntry {
        id: "chat".to_owned(),
        root: Some("Q/M".to_owned()),
        max_model_len: Some(4096),
    };
    assert_eq!(models.entries[0], chat);
    assert_eq!(ask(Engine::Vllm, double.port, Some("wrong")).await, Answer::Locked);
}

#[tokio::test]
async fn the_count_and_the_fingerprint_are_read() {
    let double = double(healthy).await;
    let in_flight = in_flight(Engine::Vllm, double.port).await.unwrap();
    assert_eq!((in_flight, in_flight.total()), (InFlight { running: 2, waiting: 1 }, 3));
    let fingerprint = async |name| fingerprint(Engine::Vllm, double.port, name, None).await;
    assert_eq!(fingerprint("chat").await.as_deref(), Some("vllm-0.32.0-12345678"));
    assert_eq!(fingerprint("other").await, None);
}

#[tokio::test]
async fn a_dead_engine_is_unwell() {
    let double = double(|_| ("503 Service Unavailable", String::new())).await;
    let unwell = Answer::Unwell("/health answered 503 Service Unavailable".to_owned());
    assert_eq!(ask(Engine::Vllm, double.port, None).await, unwell);
    assert!(matches!(in_flight(Engine::Vllm, double.port).await, Err(EngineError::Status { .. })));
}

#[tokio::test]
async fn another_server_is_not_taken_for_a_ready_one() {
    let double = double(|_| ("200 OK", "hello".to_owned())).await;
    let answer = ask(Engine::Vllm, double.port, None).await;
    assert!(
        matches!(&answer, Answer::Unwell(detail) if detail.starts_with("/v1/models: ")),
        "{answer:?}"
    );
    let error = in_flight(Engine::Vllm, double.port).await.unwrap_err();
    assert!(
        matches!(error, EngineError::NoCount { name: "vllm:num_requests_running", .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let endless = double(|request| match request.split(' ').nth(1).unwrap() {
        "/health" => ("200 OK", String::new()),
        "/metrics" => ("200 OK", "# HELP x\n".repeat(LONGEST_METRICS / 8)),
        _ => ("200 OK", MODELS.replace("chat", &"x".repeat(LONGEST_LIST))),
    });
    let endless = endless.await;
    let too_long = Answer::Unwell("/v1/models: the answer is longer than 1048576 bytes".to_owned());
    assert_eq!(ask(Engine::Vllm, endless.port, None).await, too_long);
    let error = in_flight(Engine::Vllm, endless.port).await.unwrap_err();
    assert!(matches!(error, EngineError::Body { .. }), "{error}");
    assert_eq!(fingerprint(Engine::Vllm, endless.port, "chat", None).await, None);
}

#[tokio::test]
async fn a_long_name_is_kept_as_far_as_a_path_can_be_long_and_many_are_counted() {
    let long = double(|request| match request.split(' ').nth(1).unwrap() {
        "/health" => ("200 OK", String::new()),
        _ => ("200 OK", MODELS.replace("chat", &"é".repeat(2 * LONGEST_NAME))),
    });
    let long = long.await;
    let Answer::Ready(mut models) = ask(Engine::Vllm, long.port, None).await else { panic!() };
    assert_eq!(models.entries[0].id, format!("{}…", "é".repeat(LONGEST_NAME)));
    models.entries = vec![models.entries[1].clone(); SHOWN + 3];
    let shown = models.to_string();
    assert!(shown.starts_with("lora (/l), lora (/l), "), "{shown}");
    assert!(shown.ends_with("lora (/l) and 3 more"), "{shown}");
}

#[test]
fn the_wrong_model_is_named() {
    let expected = Expected { root: "Q/M".to_owned(), names: vec!["chat".to_owned()] };
    let entry = |id: &str, root: &str| ModelEntry {
        id: id.to_owned(),
        root: Some(root.to_owned()),
        max_model_len: None,
    };
    let serves =
        |entries| check(&expected, &Models { entries }).map_err(|mismatch| mismatch.to_string());
    assert_eq!(serves(vec![entry("other", "Q/M"), entry("chat", "Q/M")]), Ok(()));
    assert_eq!(
        serves(vec![entry("chat", "Q/N")]),
        Err("it should serve chat (Q/M), and serves chat (Q/N)".to_owned())
    );
    assert_eq!(
        serves(vec![entry("Q/M", "Q/M")]),
        Err("it should serve chat (Q/M), and serves Q/M (Q/M)".to_owned())
    );
    assert_eq!(
        serves(Vec::new()),
        Err("it should serve chat (Q/M), and serves nothing".to_owned())
    );
}
