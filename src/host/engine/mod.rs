//! Inference server programs: how they are asked, what they count, how they stop. One file per engine.
//!
//! Every question is one fresh connection, mostly to 127.0.0.1, because a kept one could belong to a replica that is gone, and
//! never goes through a proxy.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};

use super::body::BodyError;
use crate::model::failure::Hint;
use crate::model::ids::Port;
use crate::model::sample::Load;
use crate::model::spec::Engine;
use crate::model::survey::Listener;

pub mod metrics;
mod vllm;

/// A busy engine answers `/health` and `/metrics` late: probes of one or two seconds are known to fail under load.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// The first completion of a fresh engine may compile kernels: 30 to 60 seconds are known.
const COMPLETION_LIMIT: Duration = Duration::from_secs(120);

/// The longest list of models that is read, in bytes: thousands of adapters.
const LONGEST_LIST: usize = 1 << 20;

/// The longest page of metrics that is read, in bytes: vLLM 0.33 with one engine sends 50 kB, and one engine more
/// adds as much at most.
const LONGEST_METRICS: usize = 16 << 20;

/// The longest name that is kept whole, in characters: as long as a path can be.
const LONGEST_NAME: usize = 4096;

/// How many names are shown.
const SHOWN: usize = 16;

/// What a replica says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody listens. vLLM does so while it loads, so this tells nothing about whether it lives.
    Refused,
    /// Healthy, and it names its models.
    Ready(Models),
    /// It wants an API key, or another one. It may well be ready.
    Locked,
    /// It answers, but not as a ready replica does; why, in one fragment.
    Unwell(String),
}

impl Answer {
    /// Whether a replica surely answers. Silence, refusals and errors may be another program's, or a packet filter's own.
    pub fn is_a_replicas(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::Locked)
    }
}

/// The models that a replica serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Models {
    /// In the order of the answer.
    pub entries: Vec<ModelEntry>,
}

/// One served name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// The name that clients use.
    pub id: String,
    /// What was loaded: a model's name or path. This tells two replicas of one served name apart.
    pub root: Option<String>,
    /// Longest context in tokens.
    pub max_model_len: Option<u64>,
}

/// What a replica should say of itself, read from its command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// What it should have loaded.
    pub root: String,
    /// The names that it should serve it under; none where the command does not say.
    pub names: Vec<String>,
}

/// The command of a running replica, as `replica.command` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its words, with tokens.
    pub words: Vec<String>,
    /// Flags whose values are secret, left out with them.
    pub left_out: Vec<String>,
}

/// A replica serves something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it should serve {expected}, and serves {found}")]
pub struct Mismatch {
    /// `chat (Qwen/X)`.
    pub expected: String,
    /// `chat (Qwen/Y), extra (Qwen/Y)`, or `nothing`.
    pub found: String,
}

/// Requests that a replica works on, by its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// In execution.
    pub running: u64,
    /// Queued.
    pub waiting: u64,
}

impl InFlight {
    /// Running and waiting.
    pub fn total(self) -> u64 {
        self.running + self.waiting
    }
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} running, {} waiting", self.running, self.waiting)
    }
}

/// A replica did not say how many requests it works on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No answer.
    #[error("cannot read {url}")]
    NoAnswer {
        /// The page.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// An answer that is not read to its end.
    #[error("cannot read {url}")]
    Body {
        /// The page.
        url: String,
        /// Why.
        source: BodyError,
    },
    /// An answer of another kind.
    #[error("{url} answered {status}")]
    Status {
        /// The page.
        url: String,
        /// The status line.
        status: StatusCode,
    },
    /// The page lacks a number, or it is none.
    #[error("{url} has no count named {name}")]
    NoCount {
        /// The page.
        url: String,
        /// The metric.
        name: &'static str,
    },
}

impl Hint for EngineError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoCount { .. } | Self::Status { .. } => {
                vec![
                    "Start the engine with its metrics on (vLLM: without --disable-log-stats)"
                        .to_owned(),
                ]
            }
            Self::NoAnswer { .. } | Self::Body { .. } => Vec::new(),
        }
    }
}

impl Hint for Mismatch {
    fn hints(&self) -> Vec<String> {
        vec!["Check {model} and --served-model-name in replica.command".to_owned()]
    }
}

/// Asks the replica on a port whether it is ready, and what it serves.
pub async fn ask(engine: Engine, port: Port, api_key: Option<&str>) -> Answer {
    ask_at(engine, (Ipv4Addr::LOCALHOST, port.0).into(), api_key).await
}

/// The same, of what has these addresses: the first that answers as a replica does, else the last.
pub async fn ask_any(engine: Engine, addresses: &[SocketAddr], api_key: Option<&str>) -> Answer {
    let mut answer = Answer::Refused;
    for at in addresses {
        answer = ask_at(engine, *at, api_key).await;
        if matches!(answer, Answer::Ready(_) | Answer::Locked) {
            break;
        }
    }
    answer
}

async fn ask_at(engine: Engine, at: SocketAddr, api_key: Option<&str>) -> Answer {
    match engine {
        Engine::Vllm => vllm::ask(at, api_key).await,
    }
}

/// What a replica started with this argv (tokens replaced) should say of itself; `model` where the argv names none.
pub fn expected(engine: Engine, argv: &[String], model: &str) -> Expected {
    match engine {
        Engine::Vllm => vllm::expected(argv, model),
    }
}

/// The argv with another port; `None` where it names none.
pub fn on_port(engine: Engine, argv: Vec<String>, port: Port) -> Option<Vec<String>> {
    match engine {
        Engine::Vllm => vllm::on_port(argv, port),
    }
}

/// Whether every expected name is served, and from what was expected.
///
/// # Errors
/// If not, with both.
pub fn check(expected: &Expected, models: &Models) -> Result<(), Mismatch> {
    let is_served = |name: &String| {
        models
            .entries
            .iter()
            .any(|entry| entry.id == *name && entry.root.as_deref() == Some(expected.root.as_str()))
    };
    let is_loaded =
        models.entries.iter().any(|entry| entry.root.as_deref() == Some(expected.root.as_str()));
    if is_loaded && expected.names.iter().all(is_served) {
        return Ok(());
    }
    Err(Mismatch {
        expected: format!("{} ({})", expected.names.join(", "), expected.root).trim().to_owned(),
        found: if models.entries.is_empty() { "nothing".to_owned() } else { models.to_string() },
    })
}

impl Models {
    /// What was loaded, by the first entry: LoRA adapters follow their base model.
    pub fn root(&self) -> Option<&str> {
        self.entries.first()?.root.as_deref()
    }

    /// A name that clients use.
    pub fn name(&self) -> Option<&str> {
        self.entries.first().map(|entry| entry.id.as_str())
    }

    /// Every name that clients use.
    pub fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.id.clone()).collect()
    }
}

impl fmt::Display for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.entries.iter().take(SHOWN).map(ToString::to_string).collect();
        f.write_str(&entries.join(", "))?;
        match self.entries.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for ModelEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id, self.root.as_deref().unwrap_or("unknown"))
    }
}

/// Requests in flight by the engine's own count, summed over its engines.
///
/// # Errors
/// If the replica does not say.
pub async fn in_flight(engine: Engine, port: Port) -> Result<InFlight, EngineError> {
    match engine {
        Engine::Vllm => vllm::in_flight(port).await,
    }
}

/// The command that starts a model as the running one was started; `None` if its redacted argv, of which an image has
/// the first `fixed` words, does not tell.
pub fn template(
    engine: Engine,
    argv: &[String],
    fixed: usize,
    seen: &Listener,
) -> Option<Template> {
    match engine {
        Engine::Vllm => vllm::template(argv, fixed, seen),
    }
}

/// The engine that a program is, by its argv or by its title; `None` for any other program.
pub fn of_program(argv: &[String]) -> Option<Engine> {
    vllm::is_it(argv).then_some(Engine::Vllm)
}

/// What the replica does, and has done since it was started.
///
/// # Errors
/// If the replica does not say.
pub async fn load(engine: Engine, port: Port) -> Result<Load, EngineError> {
    match engine {
        Engine::Vllm => vllm::load(port).await,
    }
}

/// What identifies the replica in its completions (`system_fingerprint`), by a completion of one token.
///
/// `None` if it does not say.
pub async fn fingerprint(
    engine: Engine,
    port: Port,
    served_name: &str,
    api_key: Option<&str>,
) -> Option<String> {
    match engine {
        Engine::Vllm => vllm::fingerprint(port, served_name, api_key).await,
    }
}

/// The last state of loading that is worth showing, from the engine's log lines, oldest first.
pub fn progress(engine: Engine, lines: &[String]) -> Option<String> {
    match engine {
        Engine::Vllm => vllm::progress(lines),
    }
}

/// How long an engine with this argv may take from SIGTERM to its end.
pub fn stop_grace(engine: Engine, argv: &[String]) -> Duration {
    match engine {
        Engine::Vllm => vllm::stop_grace(argv),
    }
}

fn url(port: Port, path: &str) -> String {
    url_at((Ipv4Addr::LOCALHOST, port.0).into(), path)
}

fn url_at(at: SocketAddr, path: &str) -> String {
    format!("http://{at}{path}")
}

fn request(
    method: Method,
    url: &str,
    api_key: Option<&str>,
    limit: Duration,
) -> Result<RequestBuilder, reqwest::Error> {
    let client =
        Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
    let request = client.request(method, url).timeout(limit);
    Ok(match api_key {
        Some(key) => request.bearer_auth(key),
        None => request,
    })
}

async fn get(url: &str, api_key: Option<&str>) -> Result<Response, reqwest::Error> {
    request(Method::GET, url, api_key, PROBE_LIMIT)?.send().await
}

/// Whether nobody listened.
fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
