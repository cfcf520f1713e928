//! What the user asks for: the validated, normalised content of `model-swap.yaml`.
//!
//! Values here come from `config::load` (or the wire) and are already checked; defaults are applied.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{Port, ServiceName, SlotName};

/// One service on one server, as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapSpec {
    /// What clients call.
    pub service: ServiceName,
    /// Model name or path, the value of `{model}`.
    pub model: String,
    /// Pinned commit of the weights; part of the revision.
    pub model_revision: Option<String>,
    /// The two places for a replica.
    pub slots: BTreeMap<SlotName, Slot>,
    /// What brings the weights to the server, if something is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<FetchSpec>,
    /// How a replica is started.
    pub replica: ReplicaSpec,
    /// How long a candidate may take to get ready.
    pub ready: ReadySpec,
    /// How the replica that lost its traffic is drained.
    pub drain: DrainSpec,
    /// How long the previous replica stays warm after promote.
    pub retain: Duration,
    /// The proxy in front.
    pub nginx: NginxSpec,
    /// What the runner must see from outside before a swap is promoted; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifySpec>,
    /// Folder of state and journals; `None`: `/var/lib/model-swap` as root, else `$XDG_STATE_HOME/model-swap`.
    pub state_dir: Option<PathBuf>,
}

/// As long as an image is pulled where the configuration has no `fetch.timeout`: as long as that is by itself.
const PULL: Duration = Duration::from_secs(2 * 60 * 60);

impl SwapSpec {
    /// How long an image may be pulled, if one has to be.
    pub fn pull_limit(&self) -> Duration {
        self.fetch.as_ref().map_or(PULL, |fetch| fetch.timeout)
    }

    /// The model, and the commit of its weights where that is pinned.
    pub fn weights(&self) -> (&str, Option<&str>) {
        (&self.model, self.model_revision.as_deref())
    }
}

/// Port and GPUs of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The port that a replica in this slot listens on.
    pub port: Port,
    /// GPU indices in PCI bus order, or UUIDs; empty for none.
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gpu {
    /// Index in PCI bus order, as `nvidia-smi` counts.
    Index(u32),
    /// `GPU-…` or `MIG-…`.
    Uuid(String),
}

impl Gpu {
    /// The GPU that a name means: digits are an index.
    pub fn named(name: &str) -> Self {
        name.parse().map_or_else(|_| Self::Uuid(name.to_owned()), Self::Index)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

/// How a replica is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// argv with the exact tokens `{model}`, `{revision}`, `{port}`, `{gpus}` not yet replaced; never given to a shell.
    pub command: Vec<String>,
    /// The inference server program.
    pub engine: Engine,
    /// What supervises the replica.
    pub runtime: Runtime,
    /// User to run as; `None`: the incumbent's, else the agent's.
    pub user: Option<String>,
    /// Environment on top of `HOME`, `USER`, `LOGNAME` and `PATH`.
    pub env: BTreeMap<String, String>,
    /// Names of variables whose values come from the step's environment.
    pub secret_env: Vec<String>,
    /// The image that a container is made from; there with [`Runtime::Docker`] and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What the image's name meant once, by id or digest; a cold rollback goes back to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// More options of `docker run`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub docker_options: Vec<String>,
}

impl ReplicaSpec {
    /// What Docker is asked for to have the image.
    pub fn image_reference(&self) -> Option<&str> {
        self.pinned.as_deref().or(self.image.as_deref())
    }

    /// Whether its containers are in the server's own network: nothing is published then.
    pub fn shares_network(&self) -> bool {
        let network = |option: &String| {
            let (name, value) = option.split_once('=')?;
            ["--network", "--net"].contains(&name).then_some(["host", "name=host"].contains(&value))
        };
        self.docker_options.iter().filter_map(network).any(|is_servers| is_servers)
    }
}

/// The inference server program; decides paths, metrics and manners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// vLLM's OpenAI-compatible server.
    Vllm,
}

/// What supervises a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// systemd where it is PID 1, else process.
    Auto,
    /// A systemd unit.
    Systemd,
    /// A plain process in a session of its own.
    Process,
    /// A container of the Docker Engine.
    Docker,
}

impl Runtime {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Systemd, Self::Process, Self::Docker];

    /// How it is called in a file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Systemd => "systemd",
            Self::Process => "process",
            Self::Docker => "docker",
        }
    }
}

/// How weights come to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchSpec {
    /// argv with the exact tokens `{model}` and `{revision}` not yet replaced; never given to a shell. It succeeds at once
    /// where everything is there.
    pub command: Vec<String>,
    /// From its start to its end.
    pub timeout: Duration,
    /// The folder of this model alone, whose growth is its progress; `None`: `model` if that is a path, else its folder in
    /// the cache of Hugging Face's library.
    pub folder: Option<PathBuf>,
    /// What the model needs on the disk, in bytes: with less, nothing is begun.
    pub size: Option<u64>,
}

/// Bound on loading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadySpec {
    /// From the start of the process until it is ready.
    pub timeout: Duration,
}

/// Bound on draining, and what then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainSpec {
    /// From cutover until nothing is in flight.
    pub timeout: Duration,
    /// What happens to a replica that is not drained by then.
    pub on_timeout: OnTimeout,
}

/// What happens when a drain meets its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The replica keeps running and is retired once it is drained.
    Keep,
    /// The replica keeps running and the drain is reported as failed.
    Fail,
    /// The replica is stopped with its requests in flight.
    Cut,
}

/// The nginx in front of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NginxSpec {
    /// The file that holds (or includes) the upstream block; absolute.
    pub config: PathBuf,
    /// Name of the upstream block.
    pub upstream: String,
    /// How nginx is called.
    pub command: Vec<String>,
    /// How to reach the service through nginx.
    pub probe: ProbeSpec,
    /// How long old workers are waited for.
    pub pinned_workers: PinnedWorkers,
}

/// A request through nginx whose answer identifies the replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// `http://` URL of `/v1/models` through nginx.
    pub url: String,
    /// `Host` header, where the URL's own would meet another server block.
    pub host: Option<String>,
    /// Name of the variable in the step's environment that holds the API key.
    pub api_key_env: Option<String>,
}

/// A request of the runner's that a customer could send, whose answer decides whether a swap stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySpec {
    /// `http://` or `https://` URL of the service's `/v1/models`, as customers reach it.
    pub url: String,
    /// The model that its answer must name, as `id` or `root`.
    pub expect_model: String,
    /// From the cutover until the server has the runner's word; then it rolls back.
    pub within: Duration,
    /// Name of the variable in the step's environment that holds a customer's API key. It stays with the runner.
    pub api_key_env: Option<String>,
}

/// How long old nginx workers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinnedWorkers {
    /// Until they are gone.
    Wait,
    /// After this time, those that hold no connection to the old port no longer count.
    IgnoreAfter(Duration),
}
