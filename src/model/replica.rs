//! Replicas and their revisions, as recorded and as observed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ids::{Port, ProcessId, ServiceName, SlotName, SwapId};

/// Immutable what: everything that makes two replicas give the same answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// `r-` and 12 hex digits of the SHA-256 of the parts; `adopted-…` for one that nobody here started.
    pub digest: String,
    /// Model name or path.
    pub model: String,
    /// Git commit of the workflow that asked for it, where known.
    pub git_sha: Option<String>,
    /// The image that its containers are made from, where it was here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
}

/// An image of containers, whatever its name has come to mean since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As the Engine knows it: `sha256:` and 64 hex digits.
    pub id: String,
    /// What brings the same one from its registry, like `vllm/vllm-openai@sha256:…`; `None` for one that is in none.
    pub pinned: Option<String>,
}

/// An image that is on this server, with what its containers have where nobody says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHere {
    /// Which one.
    pub image: Image,
    /// Whom they run as: a name or a number, perhaps with a group behind a colon; empty for root.
    pub user: String,
    /// Their variables.
    pub env: BTreeMap<String, String>,
    /// The words in front of their command.
    pub entrypoint: Vec<String>,
    /// The folder that they run in; empty for the topmost.
    pub folder: String,
}

impl Revision {
    /// Whether nobody here started it. Such a revision never equals a specified one.
    pub fn is_adopted(&self) -> bool {
        self.digest.starts_with("adopted-")
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.model, self.digest)
    }
}

/// A running server of a revision, as state and journal hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Where it runs.
    pub slot: SlotName,
    /// The port it listens on.
    pub port: Port,
    /// The root of its process tree.
    pub main: ProcessId,
    /// What it runs.
    pub revision: Revision,
    /// The swap that started it; `None` for an adopted one.
    pub swap: Option<SwapId>,
    /// The file that its output goes to, if it has one of its own.
    pub log: Option<PathBuf>,
    /// What supervises it; in records of the first versions nobody does.
    #[serde(default)]
    pub keeper: Keeper,
    /// What its keeper calls this run of it: systemd's invocation id.
    #[serde(default)]
    pub invocation: Option<String>,
}

impl Replica {
    /// Whether it is what was found: the same process, or what its keeper has started again in its place.
    pub fn is(&self, found: &Found) -> bool {
        found.tree.contains(&self.main) || (self.keeper.restarts() && found.keeper == self.keeper)
    }
}

/// A process tree found by the port that it listens on.
///
/// Holds no environment: that stays in a file of its own, mode 0600.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The root of the tree: what is signalled first.
    pub main: ProcessId,
    /// Every process of the tree, `main` first.
    pub tree: Vec<ProcessId>,
    /// Processes that hold a LISTEN socket on the port.
    pub listeners: Vec<ProcessId>,
    /// argv of `main`, secrets redacted.
    pub argv: Vec<String>,
    /// Working folder of `main`.
    pub cwd: Option<PathBuf>,
    /// User id of `main`.
    pub uid: u32,
    /// What supervises it, as far as it can be told.
    pub keeper: Keeper,
}

/// What supervises a replica: what would notice that its process ended, and by whose means it is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// Nobody: a plain process.
    #[default]
    Nobody,
    /// A systemd unit whose main process it is.
    Unit(Unit),
    /// A container that no Docker Engine of this machine owns up to, by its id or its address.
    Container(String),
    /// A container of the Docker Engine: by its name if it was started here, else by its id.
    Docker(String),
    /// A parent that may start it again: a shell script or a supervisor. Pid and argv, redacted.
    Wrapper {
        /// The parent.
        process: ProcessId,
        /// Its argv, redacted, joined by blanks.
        command: String,
    },
}

impl Keeper {
    /// Whether what it keeps is a plain process to us.
    pub fn is_process(&self) -> bool {
        !self.restarts()
    }

    /// Whether the output of what it keeps is in a file of its own, at the latest when that has ended.
    pub fn leaves_a_log(&self) -> bool {
        match self {
            Self::Nobody | Self::Wrapper { .. } | Self::Docker(_) => true,
            Self::Unit(_) | Self::Container(_) => false,
        }
    }

    /// Whether it starts what it keeps again under its own name, after a death or a reboot.
    pub fn restarts(&self) -> bool {
        match self {
            Self::Nobody | Self::Wrapper { .. } => false,
            Self::Unit(_) | Self::Container(_) | Self::Docker(_) => true,
        }
    }
}

impl fmt::Display for Keeper {
    /// With its article: `the systemd unit vllm.service`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody"),
            Self::Unit(unit) => write!(f, "the systemd unit {}", unit.name),
            Self::Container(id) => write!(f, "the container {id}"),
            Self::Docker(name) => write!(f, "Docker's container {}", short(name)),
            Self::Wrapper { process, command } => write!(f, "process {process} ({command})"),
        }
    }
}

/// How Docker shows an id: its first 12 of 64 hex digits. Names are shown whole.
fn short(name: &str) -> &str {
    let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { &name[..12] } else { name }
}

/// What units and containers of a slot are called. Neither name has a dot in it, so that no two slots share one:
/// slot `b` of `chat-a` is not slot `a-b` of `chat`.
fn name_of_slot(service: &ServiceName, slot: &SlotName) -> String {
    format!("{OWN_PREFIX}{service}.{slot}")
}

/// The container of the replicas that are started in a slot.
pub fn container_of_slot(service: &ServiceName, slot: &SlotName) -> Keeper {
    Keeper::Docker(name_of_slot(service, slot))
}

/// Whether a container of this name is made here, and removed when its replica is retired; others are only stopped.
pub fn is_own_container(name: &str) -> bool {
    name.starts_with(OWN_PREFIX)
}

/// A systemd service unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unit {
    /// Its full name, with `.service`.
    pub name: String,
    /// The user whose own manager runs it; `None`: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

/// Names of units and containers that are made here, and removed again, begin so.
const OWN_PREFIX: &str = "model-swap-";

impl Unit {
    /// The unit of the replicas that are started in a slot.
    pub fn of_slot(service: &ServiceName, slot: &SlotName) -> Self {
        Self { name: format!("{}.service", name_of_slot(service, slot)), user: None }
    }

    /// Whether it is written here, and removed when its replica is retired; others are only stopped and disabled.
    pub fn is_own(&self) -> bool {
        self.user.is_none() && self.name.starts_with(OWN_PREFIX)
    }
}

/// What of systemd there is for replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Systemd {
    /// It is not PID 1.
    Absent,
    /// It is PID 1, and the agent, which is not root, may not tell it what to do.
    Denied,
    /// It is PID 1, and the agent is root.
    Usable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_slots_share_a_name() {
        let name = |service: &str, slot: &str| {
            name_of_slot(&service.parse().unwrap(), &slot.parse().unwrap())
        };
        assert_eq!(name("chat", "a"), "model-swap-chat.a");
        assert_ne!(name("chat-a", "b"), name("chat", "a-b"));
        assert!("a.b".parse::<SlotName>().is_err() && "a.b".parse::<ServiceName>().is_err());
    }
}
