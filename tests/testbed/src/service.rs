//! The service of tests, demo and bench: a stub engine behind the nginx of a throwaway server, and its configuration.

use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;
use crate::built;
use crate::load::http;
use crate::server::GpuServer;

/// The public name of every model of the service.
pub const NAME: &str = "chat";

/// Between two looks: nobody tells that a model serves.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What may differ from one configuration to the next; durations as in `model-swap.yaml`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `ready.timeout`.
    pub ready: String,
    /// The section `drain`.
    pub drain: String,
    /// `retain`.
    pub retain: String,
    /// `nginx.pinned_workers`.
    pub pinned_workers: String,
    /// More flags for the engine.
    pub flags: String,
    /// More of the replica's environment, as YAML pairs.
    pub env: String,
    /// `ssh.port`; the server's own if not given.
    pub ssh_port: Option<u16>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ready: "2m".to_owned(),
            drain: "{ timeout: 60s }".to_owned(),
            retain: "10m".to_owned(),
            pinned_workers: "wait".to_owned(),
            flags: String::new(),
            env: String::new(),
            ssh_port: None,
        }
    }
}

impl Settings {
    /// `model-swap.yaml` for a model on a server.
    ///
    /// # Errors
    /// If the stub engine cannot be built.
    pub fn config(&self, server: &GpuServer, model: &str) -> Result<String> {
        let (a, b) = server.slot_ports();
        let Self { ready, drain, retain, pinned_workers, flags, env, ssh_port } = self;
        let command = engine("{model}", "{port}")?.join(" ");
        let (mark, scratch) = server.mark();
        let mut text = format!(
            "service: {NAME}
host: {host}
model: {model}
slots:
  a: {{ port: {a}, gpus: [] }}
  b: {{ port: {b}, gpus: [] }}
replica:
  command: {command} {flags}
  env: {{ {mark}: {scratch:?}, {env} }}
ready: {{ timeout: {ready} }}
drain: {drain}
retain: {retain}
ssh: {{ port: {ssh} }}
state_dir: {state}
",
            host = server.ssh_host(),
            ssh = ssh_port.unwrap_or(server.ssh_port()),
            state = server.state_dir().display(),
        );
        write!(
            text,
            "nginx:
  config: {config}
  upstream: llm
  command: {command:?}
  pinned_workers: {pinned_workers}
  probe: {{ url: \"http://{addr}/v1/models\" }}
",
            config = server.nginx_config().display(),
            command = server.nginx_command(),
            addr = server.nginx_addr(),
        )?;
        Ok(text)
    }
}

/// argv of a stub engine, as a model's owner would type it.
///
/// # Errors
/// If it cannot be built.
pub fn engine(model: &str, port: impl fmt::Display) -> Result<Vec<String>> {
    let program = built::program("stub-engine")?.display().to_string();
    let port = port.to_string();
    let words = [
        &program,
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--served-model-name",
        NAME,
    ];
    Ok(words.map(str::to_owned).to_vec())
}

/// The root of the model that a fresh request through nginx meets.
///
/// # Errors
/// If nothing, or no engine, answers.
pub async fn serves(server: &GpuServer) -> Result<String> {
    let answer = http::get(server.nginx_addr(), "/v1/models").await?;
    let body: serde_json::Value =
        serde_json::from_slice(&answer.body).context("no JSON from /v1/models")?;
    Ok(body["data"][0]["root"].as_str().unwrap_or_default().to_owned())
}

/// Waits until requests through nginx meet a model.
///
/// # Errors
/// If that takes longer than [`PATIENCE`].
pub async fn until_serves(server: &GpuServer, model: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while serves(server).await.ok().as_deref() != Some(model) {
        ensure!(Instant::now() < deadline, "{model} does not serve");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
