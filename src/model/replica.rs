//! Replicas and their revisions, as recorded and as observed.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ids::{Port, ProcessId, SlotName, SwapId};

/// Immutable what: everything that makes two replicas give the same answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// `r-` and 12 hex digits of the SHA-256 of the parts; `adopted-…` for one that nobody here started.
    pub digest: String,
    /// Model name or path.
    pub model: String,
    /// Git commit of the workflow that asked for it, where known.
    pub git_sha: Option<String>,
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
    /// Where its output goes, if this project started it.
    pub log: Option<PathBuf>,
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

/// What would notice that a found process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// Nobody: started by hand.
    Nobody,
    /// A systemd unit whose main process it is.
    Unit(String),
    /// A container, by its id.
    Container(String),
    /// A parent that may start it again: a shell script or a supervisor. Pid and argv, redacted.
    Wrapper {
        /// The parent.
        process: ProcessId,
        /// Its argv, redacted, joined by blanks.
        command: String,
    },
}
