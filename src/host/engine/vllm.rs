//! vLLM's OpenAI-compatible server, as of 0.32 and 0.33.

mod template;

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, COMPLETION_LIMIT, EngineError, Expected, InFlight, LONGEST_LIST, LONGEST_METRICS,
    LONGEST_NAME, ModelEntry, Models, get, is_refused, metrics, request, url, url_at,
};
use crate::host::body;
use crate::model::ids::Port;
use crate::model::sample::Load;

pub(super) use template::template;

/// Summed over data-parallel engines by the label `engine` (vllm/v1/metrics/loggers.py).
const RUNNING: &str = "vllm:num_requests_running";
const WAITING: &str = "vllm:num_requests_waiting";

/// By `finished_reason`; a request whose client left is not counted (measured with 0.32).
const FINISHED: &str = "vllm:request_success_total";
/// A histogram: from arrival to the last token.
const LATENCY: &str = "vllm:e2e_request_latency_seconds";

/// Measured with a drained 0.32: exit about 5 s after the last token. The rest is for many GPUs on a busy machine.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// What a person who waits for a replica wants to know, as vLLM's log says it.
const MILESTONES: &[&str] = &[
    "Starting to load model",
    "Loading safetensors checkpoint shards",
    "Loading pt checkpoint shards",
    "Loading weights took",
    "Model loading took",
    "Dynamo bytecode transform time",
    "Compiling a graph for",
    "torch.compile takes",
    "GPU KV cache size",
    "Capturing CUDA graph",
    "Graph capturing finished",
    "init engine",
    "Application startup complete",
];

/// Longest progress that is shown, in characters: one line beside a time.
const PROGRESS_LENGTH: usize = 120;

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ModelCard>,
}

#[derive(Deserialize)]
struct ModelCard {
    id: String,
    root: Option<String>,
    max_model_len: Option<u64>,
}

/// `/health` needs no key and is 200 unless the engine is dead; `/v1/models` may need one.
pub(super) async fn ask(at: SocketAddr, api_key: Option<&str>) -> Answer {
    match get(&url_at(at, "/health"), None).await {
        Err(error) if is_refused(&error) => return Answer::Refused,
        Err(error) => return Answer::Unwell(format!("/health: {}", cause(&error))),
        Ok(health) if health.status() != StatusCode::OK => {
            return Answer::Unwell(format!("/health answered {}", health.status()));
        }
        Ok(_) => {}
    }
    let answer = match get(&url_at(at, "/v1/models"), api_key).await {
        Ok(answer) => answer,
        Err(error) => return Answer::Unwell(format!("/v1/models: {}", cause(&error))),
    };
    match answer.status() {
        StatusCode::OK => match models(answer).await {
            Ok(list) => Answer::Ready(list.into()),
            Err(error) => Answer::Unwell(format!("/v1/models: {}", cause(&*error))),
        },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Answer::Locked,
        status => Answer::Unwell(format!("/v1/models answered {status}")),
    }
}

async fn models(answer: Response) -> Result<ModelList, Box<dyn Error>> {
    Ok(serde_json::from_slice(&body::read(answer, LONGEST_LIST).await?)?)
}

pub(super) fn expected(argv: &[String], model: &str) -> Expected {
    let root = flag(argv, "--model")
        .and_then(|values| values.first().cloned())
        .or_else(|| positional(argv));
    let root = root.unwrap_or(model).to_owned();
    let names = flag(argv, "--served-model-name").filter(|names| !names.is_empty());
    let names = match names {
        Some(names) => names.into_iter().map(str::to_owned).collect(),
        None if says_it_all(argv) => vec![root.clone()],
        None => Vec::new(),
    };
    Expected { root, names }
}

/// The last `--port` counts (Python's argparse), and each is changed.
pub(super) fn on_port(mut argv: Vec<String>, port: Port) -> Option<Vec<String>> {
    let mut found = false;
    for at in 0..argv.len() {
        if argv[at] == "--port" && at + 1 < argv.len() {
            argv[at + 1] = port.to_string();
            found = true;
        } else if argv[at].starts_with("--port=") {
            argv[at] = format!("--port={port}");
            found = true;
        }
    }
    found.then_some(argv)
}

/// Whether a program is vLLM, by its argv or by its title.
pub(super) fn is_it(argv: &[String]) -> bool {
    argv.iter().any(|word| word.to_lowercase().contains("vllm"))
}

/// Whether the argv is vLLM's own, with no file beside it that may name the model otherwise.
fn says_it_all(argv: &[String]) -> bool {
    let is_vllm = argv.iter().any(|word| word == "serve" || word.starts_with("vllm.entrypoints"));
    is_vllm && flag(argv, "--config").is_none()
}

pub(super) async fn in_flight(port: Port) -> Result<InFlight, EngineError> {
    let (url, page) = metrics_page(port).await?;
    counted(&url, &page)
}

/// What it does, and has done since it was started. What an engine of another version does not count is 0.
pub(super) async fn load(port: Port) -> Result<Load, EngineError> {
    let (url, page) = metrics_page(port).await?;
    let is_abort = |labels: &str| labels.contains("finished_reason=\"abort\"");
    let finished = |aborted: bool| {
        metrics::count_where(&page, FINISHED, |labels| is_abort(labels) == aborted).unwrap_or(0)
    };
    Ok(Load {
        in_flight: counted(&url, &page)?.total(),
        completed: finished(false),
        cut: finished(true),
        timed: metrics::count(&page, &format!("{LATENCY}_count")).unwrap_or(0),
        took_ms: metrics::millis(&page, &format!("{LATENCY}_sum")).unwrap_or(0),
    })
}

fn counted(url: &str, page: &str) -> Result<InFlight, EngineError> {
    let count =
        |name| metrics::count(page, name).ok_or(EngineError::NoCount { url: url.to_owned(), name });
    Ok(InFlight { running: count(RUNNING)?, waiting: count(WAITING)? })
}

/// `/metrics` needs no key.
async fn metrics_page(port: Port) -> Result<(String, String), EngineError> {
    let url = url(port, "/metrics");
    let no_answer = |source| EngineError::NoAnswer { url: url.clone(), source };
    let answer = get(&url, None).await.map_err(no_answer)?;
    if answer.status() != StatusCode::OK {
        return Err(EngineError::Status { url, status: answer.status() });
    }
    match body::read(answer, LONGEST_METRICS).await {
        Ok(page) => Ok((url, String::from_utf8_lossy(&page).into_owned())),
        Err(source) => Err(EngineError::Body { url, source }),
    }
}

/// `system_fingerprint` is `vllm-<version>-<hash of the configuration>`.
pub(super) async fn fingerprint(
    port: Port,
    served_name: &str,
    api_key: Option<&str>,
) -> Option<String> {
    let wanted = json!({ "model": served_name, "prompt": "1", "max_tokens": 1, "temperature": 0 });
    let request =
        request(Method::POST, &url(port, "/v1/completions"), api_key, COMPLETION_LIMIT).ok()?;
    let answer = request.json(&wanted).send().await.ok()?.error_for_status().ok()?;
    let answer: Value =
        serde_json::from_slice(&body::read(answer, LONGEST_LIST).await.ok()?).ok()?;
    answer.get("system_fingerprint")?.as_str().map(str::to_owned)
}

pub(super) fn progress(lines: &[String]) -> Option<String> {
    lines.iter().rev().find_map(|line| {
        let at = MILESTONES.iter().filter_map(|milestone| line.find(milestone)).min()?;
        Some(without_bar(&line[at..]).chars().take(PROGRESS_LENGTH).collect())
    })
}

/// With `--shutdown-timeout N` requests in flight get N seconds after SIGTERM; without it, none.
pub(super) fn stop_grace(argv: &[String]) -> Duration {
    let seconds =
        flag(argv, "--shutdown-timeout").and_then(|values| values.first()?.parse::<f64>().ok());
    let drain =
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default();
    drain.saturating_add(STOP_MARGIN)
}

/// `shards:  25% Completed | 1/4 [00:01<00:03]` and tqdm's `graphs:  25%|██▌   | 1/4 [00:01<00:03]` alike
/// become `…: 25% | 1/4`.
fn without_bar(text: &str) -> String {
    let Some((before, after)) = text.split_once('%') else { return text.trim().to_owned() };
    let Some((_, state)) = after.strip_prefix('|').unwrap_or(after).split_once('|') else {
        return text.trim().to_owned();
    };
    let state = state.split('[').next().unwrap_or(state);
    let words: Vec<_> = before.split_whitespace().collect();
    format!("{}% | {}", words.join(" "), state.trim())
}

/// The values of a flag, as argparse takes them: `--x a b` or `--x=a`, the last one wins. vLLM reads `_` as `-`.
fn flag<'a>(argv: &'a [String], name: &str) -> Option<Vec<&'a str>> {
    let at = argv.iter().rposition(|word| flag_name(word) == name)?;
    if let Some((_, value)) = argv[at].split_once('=') {
        return Some(vec![value]);
    }
    let values = argv[at + 1..].iter().map(String::as_str);
    Some(values.take_while(|word| !word.starts_with('-')).collect())
}

fn flag_name(word: &str) -> String {
    if !word.starts_with("--") {
        return String::new();
    }
    word.split('=').next().unwrap_or_default().replace('_', "-")
}

/// The word after `serve`. Behind other flags it can't be told from their values.
fn positional(argv: &[String]) -> Option<&str> {
    let at = argv.iter().position(|word| word == "serve")?;
    argv.get(at + 1).map(String::as_str).filter(|word| !word.starts_with('-'))
}

impl From<ModelList> for Models {
    fn from(list: ModelList) -> Self {
        let entry = |card: ModelCard| ModelEntry {
            id: cut(card.id),
            root: card.root.map(cut),
            max_model_len: card.max_model_len,
        };
        Self { entries: list.data.into_iter().map(entry).collect() }
    }
}

/// A name that is longer than any is, as far as it is told from others.
fn cut(mut name: String) -> String {
    if let Some((end, _)) = name.char_indices().nth(LONGEST_NAME) {
        name.truncate(end);
        name.push('…');
    }
    name
}

/// The innermost cause: the outer ones only repeat the URL.
fn cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        shell_words::split(line).unwrap()
    }

    #[test]
    fn names_and_root_come_from_the_command() {
        for (command, root, names) in [
            ("vllm serve Q/M --port 1", "Q/M", vec!["Q/M"]),
            ("vllm serve Q/M --served-model-name chat --port 1", "Q/M", vec!["chat"]),
            ("vllm serve Q/M --served-model-name a b --port 1", "Q/M", vec!["a", "b"]),
            ("vllm serve Q/M --served_model_name=chat", "Q/M", vec!["chat"]),
            ("vllm serve Q/M --served-model-name a --served-model-name b", "Q/M", vec!["b"]),
            (
                "python -m vllm.entrypoints.openai.api_server --model Q/N --port 1",
                "Q/N",
                vec!["Q/N"],
            ),
            ("python -m vllm.entrypoints.openai.api_server --model=Q/N", "Q/N", vec!["Q/N"]),
            ("uv run vllm serve --port 1 /models/m", "D/D", vec!["D/D"]),
            ("./serve.sh", "D/D", vec![]),
            ("vllm serve Q/M --config c.yaml", "Q/M", vec![]),
        ] {
            assert_eq!(
                expected(&words(command), "D/D"),
                Expected {
                    root: root.to_owned(),
                    names: names.into_iter().map(str::to_owned).collect()
                }
            );
        }
    }

    #[test]
    fn the_grace_covers_the_engines_own_drain() {
        assert_eq!(stop_grace(&words("vllm serve m")), STOP_MARGIN);
        let drain = Duration::from_secs(600);
        assert_eq!(stop_grace(&words("vllm serve m --shutdown-timeout 600")), drain + STOP_MARGIN);
        assert_eq!(stop_grace(&words("vllm serve m --shutdown-timeout=600")), drain + STOP_MARGIN);
        assert_eq!(stop_grace(&words("vllm serve m --shutdown-timeout=-1")), STOP_MARGIN);
    }

    #[test]
    fn progress_is_the_last_milestone() {
        let log = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let shards = "(EngineCore_DP0 pid=9) Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03,  1.02s/it]";
        let graphs = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  45%|████▌     | 30/67 [00:02<00:02, 14.05it/s]";
        let compile = "(EngineCore_DP0 pid=9) INFO 11-14 21:03:23 [backends.py:281] Compiling a graph for dynamic shape takes 15.78 s";
        assert_eq!(
            progress(&log(&[compile, shards, "INFO something else"])).as_deref(),
            Some("Loading safetensors checkpoint shards: 25% | 1/4")
        );
        assert_eq!(
            progress(&log(&[shards, graphs])).as_deref(),
            Some("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 45% | 30/67")
        );
        assert_eq!(
            progress(&log(&[shards, compile])).as_deref(),
            Some("Compiling a graph for dynamic shape takes 15.78 s")
        );
        assert_eq!(progress(&log(&["hello", ""])), None);
    }
}
