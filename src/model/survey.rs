//! What `init` sees of a server before there is a configuration. Holds no secret: values that may be one are left out
//! where they are seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::ids::{Port, ProcessId};
use super::replica::Keeper;

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Survey {
    /// Every nginx that runs, or the one that was named.
    pub proxies: Vec<Proxy>,
    /// Who listens behind an upstream, and every engine besides, by port.
    pub listeners: Vec<Listener>,
    /// Every TCP port that somebody listens on.
    pub taken: BTreeSet<Port>,
    /// The GPUs, in the order of their indices.
    pub gpus: Vec<SeenGpu>,
    /// Names of the instances that GPUs are divided into (`MIG-…`).
    #[serde(default)]
    pub instances: Vec<String>,
    /// Why no GPU was seen, if there is a reason; a fragment.
    pub no_gpus: Option<String>,
    /// Who has looked, where that was not root.
    #[serde(default)]
    pub looked_as: Option<String>,
}

impl Survey {
    /// Why no nginx could be read at all, if it is for lack of rights: others than root are refused files, and nginx says so
    /// with the text of EACCES (strerror(3)), which OpenSSL gives too.
    pub fn barrier(&self) -> Option<&Failure> {
        let denied = |failure: &&Failure| failure.to_string().contains("Permission denied");
        let is_read = self.proxies.iter().any(|proxy| proxy.failure.is_none());
        let mut failures = self.proxies.iter().filter_map(|proxy| proxy.failure.as_ref());
        failures.find(denied).filter(|_| self.looked_as.is_some() && !is_read)
    }
}

/// An nginx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// How it is called, as `nginx.command` has it.
    pub command: Vec<String>,
    /// The container that it runs in, if it does.
    pub container: Option<String>,
    /// Its upstreams, in the order in which it reads them.
    pub upstreams: Vec<Upstream>,
    /// Places that proxy straight to a port of this machine: `/etc/nginx/conf.d/llm.conf:7: proxy_pass http://127.0.0.1:8001`.
    pub direct: Vec<String>,
    /// Why its configuration could not be read.
    pub failure: Option<Failure>,
}

/// An upstream as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// The file with its `server` lines, as this machine names it; `None` where only a container can.
    pub file: Option<PathBuf>,
    /// Its active `server` directives.
    pub servers: Vec<String>,
    /// The port of this machine that its only `server` names.
    pub port: Option<Port>,
    /// A way through nginx to `/v1/models` behind it, over plain http.
    pub entrance: Option<Entrance>,
}

/// How a request gets through nginx to an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entrance {
    /// The URL of `/v1/models`, on this machine.
    pub url: String,
    /// The `Host` header that meets the right server block.
    pub host: Option<String>,
    /// Why a request there does not meet the model that listens behind the upstream, a fragment; `None` also where it was not
    /// tried.
    #[serde(default)]
    pub unmet: Option<String>,
}

/// Who listens on a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The port.
    pub port: Port,
    /// The root of the process tree.
    pub process: ProcessId,
    /// What supervises it.
    pub keeper: Keeper,
    /// Name of its user.
    pub user: String,
    /// How it answers, one fragment: `serves chat (Qwen/X)`.
    pub answer: String,
    /// Why it is no engine that is known, if it is none.
    pub unknown: Option<String>,
    /// Whether it wants an API key.
    pub locked: bool,
    /// The model that it has loaded.
    pub model: Option<String>,
    /// The names that clients call it by.
    pub names: Vec<String>,
    /// How it was started.
    pub start: Start,
    /// Indices of the GPUs that it uses, as far as that can be seen.
    pub gpus: Vec<u32>,
    /// The instances of divided GPUs that it was given, by their whole names (`MIG-…`).
    #[serde(default)]
    pub instances: Vec<String>,
    /// What it was given that names no GPU here, where nothing else tells which it uses.
    #[serde(default)]
    pub no_gpus: Vec<String>,
    /// Indices that it was given by which CUDA may mean other GPUs than nvidia-smi, where nothing else tells which it uses.
    #[serde(default)]
    pub uncounted: Vec<String>,
}

/// How a model was started, as far as another one can be started so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Start {
    /// As `replica.command` has it, with its tokens; `None` where argv does not tell.
    pub command: Option<Vec<String>>,
    /// The image of its container, with the options that it needs.
    pub image: Option<(String, Vec<String>)>,
    /// More options of its container, which another one may need.
    #[serde(default)]
    pub other_options: Vec<String>,
    /// Whom its container runs as, where its image says another: a name inside, or numbers.
    #[serde(default)]
    pub user_inside: Option<String>,
    /// Flags whose values are secret, left out of the command.
    pub left_out: Vec<String>,
    /// Variables that engines know, with their values.
    pub env: BTreeMap<String, String>,
    /// Names of variables that engines know, whose values are secret.
    pub secret_env: BTreeSet<String>,
    /// Names of its other variables.
    pub other_env: BTreeSet<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenGpu {
    /// In PCI bus order.
    pub index: u32,
    /// `NVIDIA H200`
    pub name: String,
    /// Memory in MiB; `None` where the driver does not say.
    pub total_mib: Option<u64>,
    /// Free memory in MiB.
    pub free_mib: Option<u64>,
    /// Pids of those who use it.
    pub users: BTreeSet<i32>,
}
