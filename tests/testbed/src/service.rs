//! The service of tests, demo and bench: a stub engine behind the nginx of a throwaway server, and its configuration.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
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
    /// The section `verify`.
    pub verify: String,
    /// The section `fetch`, its name included; none if empty.
    pub fetch: String,
    /// The image of the containers that replicas are; no containers if not given.
    pub image: Option<String>,
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
            verify: "{}".to_owned(),
            fetch: String::new(),
            image: None,
            ssh_port: None,
        }
    }
}

/// A server as a configuration describes it.
#[derive(Debug, Clone)]
pub struct Site {
    /// `host`.
    pub host: String,
    /// `ssh.port`, where it is another than usual.
    pub ssh_port: Option<u16>,
    /// Port of each slot, and its GPUs as in a list.
    pub slots: [(u16, String); 2],
    /// The engine's program there.
    pub engine: String,
    /// The replica's environment, as YAML pairs.
    pub env: String,
    /// `state_dir`, where it is another than the agent's own.
    pub state_dir: Option<PathBuf>,
    /// `nginx.config`.
    pub nginx_config: PathBuf,
    /// `nginx.command`, where it is another than usual.
    pub nginx_command: Option<Vec<String>>,
    /// `nginx.probe.url`.
    pub probe: String,
}

impl Site {
    /// A throwaway server, with all that it writes in its scratch folder.
    ///
    /// # Errors
    /// If the stub engine cannot be built.
    pub fn of(server: &GpuServer) -> Result<Self> {
        let (a, b) = server.slot_ports();
        let (mark, scratch) = server.mark();
        Ok(Self {
            host: server.ssh_host().to_owned(),
            ssh_port: Some(server.ssh_port()),
            slots: [a, b].map(|port| (port, String::new())),
            engine: built::program("stub-engine")?.display().to_string(),
            env: format!("{mark}: {scratch:?}"),
            state_dir: Some(server.state_dir()),
            nginx_config: server.nginx_config(),
            nginx_command: Some(server.nginx_command().to_vec()),
            probe: format!("http://{}/v1/models", server.nginx_addr()),
        })
    }
}

impl Settings {
    /// `model-swap.yaml` for a model on a server.
    ///
    /// # Errors
    /// If the stub engine cannot be built.
    pub fn config(&self, server: &GpuServer, model: &str) -> Result<String> {
        self.config_on(&Site::of(server)?, model)
    }

    /// `model-swap.yaml` for a model on a server that is described.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn config_on(&self, site: &Site, model: &str) -> Result<String> {
        let [(a, gpus_a), (b, gpus_b)] = &site.slots;
        let Self {
            ready,
            drain,
            retain,
            pinned_workers,
            flags,
            env,
            verify,
            fetch,
            image,
            ssh_port,
        } = self;
        let started = match image {
            None => {
                format!("command: {} {flags}", argv(&site.engine, "{model}", "{port}").join(" "))
            }
            // The image has the first words.
            Some(image) => format!(
                "command: \"{{model}} --host 0.0.0.0 --port {{port}} --served-model-name {NAME} {flags}\"
  runtime: docker
  image: {image}
  docker_options: [--label=team=llm]"
            ),
        };
        let env = [site.env.as_str(), env].map(str::trim).join(", ");
        let mut text = format!(
            "service: {NAME}
host: {host}
model: {model}
slots:
  a: {{ port: {a}, gpus: [{gpus_a}] }}
  b: {{ port: {b}, gpus: [{gpus_b}] }}
replica:
  {started}
  env: {{ {env} }}
{fetch}
ready: {{ timeout: {ready} }}
drain: {drain}
retain: {retain}
verify: {verify}
",
            host = site.host,
            env = env.trim_matches([',', ' ']),
        );
        if let Some(port) = ssh_port.or(site.ssh_port) {
            writeln!(text, "ssh: {{ port: {port} }}")?;
        }
        if let Some(folder) = &site.state_dir {
            writeln!(text, "state_dir: {}", folder.display())?;
        }
        writeln!(text, "nginx:\n  config: {}\n  upstream: llm", site.nginx_config.display())?;
        if let Some(command) = &site.nginx_command {
            writeln!(text, "  command: {command:?}")?;
        }
        writeln!(text, "  pinned_workers: {pinned_workers}\n  probe: {{ url: {:?} }}", site.probe)?;
        Ok(text)
    }
}

/// argv of a stub engine, as a model's owner would type it.
///
/// # Errors
/// If it cannot be built.
pub fn engine(model: &str, port: impl fmt::Display) -> Result<Vec<String>> {
    let program = built::program("stub-engine")?.display().to_string();
    Ok(argv(&program, model, &port.to_string()))
}

pub(crate) fn argv(program: &str, model: &str, port: &str) -> Vec<String> {
    let words = [program, "serve", model, "--host", "127.0.0.1", "--port", port];
    words.into_iter().chain(["--served-model-name", NAME]).map(str::to_owned).collect()
}

/// The root of the model that a fresh request through nginx meets.
///
/// # Errors
/// If nothing, or no engine, answers.
pub async fn serves(nginx: SocketAddr) -> Result<String> {
    let answer = http::get(nginx, "/v1/models").await?;
    let body: serde_json::Value =
        serde_json::from_slice(&answer.body).context("no JSON from /v1/models")?;
    Ok(body["data"][0]["root"].as_str().unwrap_or_default().to_owned())
}

/// Waits until requests through nginx meet a model.
///
/// # Errors
/// If that takes longer than [`PATIENCE`].
pub async fn until_serves(nginx: SocketAddr, model: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while serves(nginx).await.ok().as_deref() != Some(model) {
        ensure!(Instant::now() < deadline, "{model} does not serve");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
