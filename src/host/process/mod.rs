//! Processes of this host: found by port, started in a session of their own, stopped and proven gone.
//!
//! Only processes proven to belong to a replica are ever signalled, each by its pidfd after a look at its start
//! time; never a process group, because a hand-started process may share its group with strangers. Proof is descent:
//! by parent pid, or by membership of a session that the replica's main process leads (a session can only be
//! inherited from its leader). A zombie counts as gone everywhere.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::systemctl::SystemctlError;
use crate::model::failure::Hint;
use crate::model::ids::{Port, ProcessId};

mod beside;
mod find;
mod inherit;
mod keeper;
mod launch;
mod listen;
mod log;
mod program;
mod resolve;
mod snapshot;
mod stop;
mod table;
#[cfg(test)]
mod testing;

pub use crate::swap::redact::redact;
pub(in crate::host) use beside::beside;
pub use find::{find, listeners};
pub(in crate::host) use find::{no_foundation, spare};
pub use inherit::{
    Identity, Inherited, argv, environment, inherited, may_write, reaches, user_name,
};
pub use keeper::starter;
pub(in crate::host) use keeper::{cgroups, container_of, forwards, in_service, outside};
pub use launch::{Contained, Launch, Launcher, Started, launch_main, start};
pub(in crate::host) use listen::listens_within;
pub use listen::{addresses, ports};
pub use log::{KEPT, LogEnd, keep_end, last_lines, log_tail};
pub use resolve::resolve;
pub use snapshot::Snapshot;
pub use stop::{StopOrder, Stopped, cut, exited, restarted_by, stop};
pub use table::{alive, boot, carrying, find_marked, outputs, own, programs_in, tree, with_pid};

/// Something could not be learned about a process, or done to it.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `/proc` could not be listed.
    #[error("cannot list the processes of this host")]
    Table(#[source] procfs::ProcError),
    /// `/proc/net/tcp` or `tcp6` could not be read.
    #[error("cannot list the listening sockets of this host")]
    Sockets(#[source] procfs::ProcError),
    /// Somebody listens, and it can't be seen who.
    #[error("cannot see which process of user id {uid} listens on port {port}")]
    UnseenOwner {
        /// The port.
        port: Port,
        /// Owner of the socket.
        uid: u32,
    },
    /// `SO_REUSEPORT`, or different addresses: the kernel deals requests out to several programs.
    #[error("port {port} is shared by unrelated processes: {}", .processes.join(", "))]
    SharedPort {
        /// The port.
        port: Port,
        /// The root of each tree that listens: pid and redacted command.
        processes: Vec<String>,
    },
    /// Not a model, by its name: an engine of containers, a server of others, or process 1.
    #[error("port {port} is held by process {process}, which is never stopped as a model is")]
    Foundation {
        /// The port.
        port: Port,
        /// Pid and redacted command.
        process: String,
    },
    /// The main process of a tree to be stopped is one that others live on, whatever made it pass for a replica's.
    #[error("process {0} has others live on it, and is not stopped")]
    Spared(String),
    /// The process ended meanwhile, or its pid belongs to another one by now.
    #[error("process {0} is gone")]
    Gone(ProcessId),
    /// A file of `/proc/PID` could not be read.
    #[error("cannot read the {what} of process {process}")]
    Unreadable {
        /// The process.
        process: ProcessId,
        /// What was wanted.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The process wrote its title over its environment, as `setproctitle` does.
    #[error("process {0} has overwritten its environment with its title")]
    BlankEnvironment(ProcessId),
    /// Nothing on this server knows the user.
    #[error("there is no user {0}, by /etc/passwd or getent")]
    UnknownUser(String),
    /// `/etc/passwd`, `/etc/group` or the working folder could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// What was wanted.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `argv[0]` names no file.
    #[error("there is no program {program:?} in {searched}")]
    NoProgram {
        /// `argv[0]`.
        program: String,
        /// Where it was looked for: `PATH`, or the working folder.
        searched: String,
    },
    /// `argv[0]` names a file that can't be executed.
    #[error("{} is not executable", .0.display())]
    NotExecutable(PathBuf),
    /// The launcher could not be started, or did not do its work.
    #[error("cannot run the launcher {}", .launcher.display())]
    Launcher {
        /// Its executable.
        launcher: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The launcher could not become the program.
    #[error("cannot {doing}")]
    Launch {
        /// What it was about to do: `run vllm`, `enter /srv/llm`.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// The process could not be watched or signalled.
    #[error("cannot {what} process {process}")]
    Signal {
        /// `watch`, `end` or `kill`.
        what: &'static str,
        /// The process.
        process: ProcessId,
        /// Why.
        source: io::Error,
    },
    /// A tree to be stopped holds the process that is to stop it, or one of its ancestors.
    #[error("process {0} is this agent or one that it descends from, and is not signalled")]
    Own(ProcessId),
    /// Processes outlived SIGKILL.
    #[error(
        "still there {} after SIGKILL: process {}",
        humantime::format_duration(*.limit),
        .processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Survivors {
        /// Who is left.
        processes: Vec<ProcessId>,
        /// How long they were waited for.
        limit: Duration,
    },
    /// A process is in a unit of a user's, whose manager is not reached: what would stop it for good is not known.
    #[error("the systemd manager of user id {user}, which runs unit {unit}, does not answer")]
    Manager {
        /// The unit, by the control group of its process.
        unit: String,
        /// The user.
        user: u32,
        /// What systemctl said.
        source: Box<SystemctlError>,
    },
    /// systemd did not say what the main process of a unit is.
    #[error("cannot tell what supervises a process")]
    Keeper(#[from] SystemctlError),
}

impl Hint for ProcessError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::UnseenOwner { .. } | Self::Unreadable { .. } => {
                "let the agent run as root (passwordless sudo), or as the user who runs the model".to_owned()
            }
            Self::SharedPort { port, .. } => {
                format!("stop all but one of them, or give the model a port that nobody else listens on at any address: requests to port {port} are shared out, or go by their address")
            }
            Self::Foundation { .. } => {
                "Give the slot the port that the model itself listens on, and let the upstream name that".to_owned()
            }
            Self::Spared(_) => {
                "A record takes it for a replica: model-swap status names the slot; give that another port".to_owned()
            }
            Self::Manager { unit, user, .. } => format!(
                "root reaches it with systemd 248 or newer: systemctl --user --machine={user}@.host status {unit}; else let the \
                 agent run as that user, or make the model a unit of the system's"
            ),
            Self::BlankEnvironment(_) => {
                "name the variables that it needs under replica.env and replica.secret_env".to_owned()
            }
            Self::UnknownUser(_) => {
                "name a user in replica.user whom `getent passwd` knows on the server, or leave it out to keep the incumbent's"
                    .to_owned()
            }
            Self::NoProgram { .. } => {
                "write the full path of the program as the first word of the command".to_owned()
            }
            Self::NotExecutable(file) => {
                format!("name another program, or, if it is this one, chmod +x {}", file.display())
            }
            Self::Survivors { .. } => {
                "a process in state D waits for a driver: look at ps -o pid,stat,wchan and at dmesg".to_owned()
            }
            _ => return Vec::new(),
        };
        vec![hint]
    }
}
