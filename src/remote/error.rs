//! What can go wrong between here and the agent, and how to mend it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::key::KeyError;
use super::known_hosts::KnownHostsError;
use super::program::ProgramError;
use super::public_key::PublicKey;
pub use super::refusal::HostKeyFault;
use crate::model::failure::Hint;
use crate::model::target::InvalidHost;

/// The agent was not reached, or its answer was not understood or not heard to its end.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The private key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pinned host keys cannot be used.
    #[error(transparent)]
    KnownHosts(#[from] KnownHostsError),
    /// The hosts to jump through cannot be read.
    #[error("ssh.jump cannot be used")]
    Jump(#[source] InvalidHost),
    /// A file of the connection could not be written or read.
    #[error("cannot use {}", .path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program is missing on this machine.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The host key is not trusted.
    #[error("the host key of {known_as} is {}", match .fault {
        HostKeyFault::Unknown => "not among the known hosts",
        HostKeyFault::Changed => "not the known one",
        HostKeyFault::Revoked => "revoked",
    })]
    HostKey {
        /// The host as known_hosts names it: `gpu-1` or `[gpu-1]:2222`.
        known_as: String,
        /// What is wrong with it.
        fault: HostKeyFault,
        /// What the server offers; empty when it could not be asked.
        offered: Vec<PublicKey>,
    },
    /// The server does not take our key.
    #[error("the server does not let us in: {said}")]
    Denied {
        /// What ssh said; begins with user and host.
        said: String,
        /// Fingerprint of the key that was given.
        fingerprint: Option<String>,
    },
    /// There is no such host.
    #[error("{name} is not known by that name: {said}")]
    Unresolved {
        /// The server.
        name: String,
        /// What ssh said.
        said: String,
    },
    /// Nobody answers, or nobody who speaks ssh.
    #[error("{name} does not answer ssh on port {port}: {said}")]
    Unreachable {
        /// The server.
        name: String,
        /// The port.
        port: u16,
        /// What ssh said.
        said: String,
    },
    /// The connection was not made in time.
    #[error("no connection to {name} within {}", humantime::format_duration(*.limit))]
    Slow {
        /// The server.
        name: String,
        /// The bound.
        limit: Duration,
    },
    /// ssh gave up for another reason.
    #[error("ssh to {name} failed: {said}")]
    Refused {
        /// The server.
        name: String,
        /// What ssh said.
        said: String,
    },
    /// The connection does not take a command (any more); nothing was sent.
    #[error("the connection to {name} does not take a command")]
    NoChannel {
        /// The server.
        name: String,
        /// Why.
        source: openssh::Error,
    },
    /// The answer ended without its end. What was asked for may go on, be done, or never have begun.
    #[error("lost {name} while {doing}: {detail}")]
    Lost {
        /// The server.
        name: String,
        /// What was under way.
        doing: &'static str,
        /// How it ended.
        detail: String,
    },
    /// Something else than the agent answered.
    #[error("on {name} something else than the agent answered, and ended with exit code {code}")]
    NoAgent {
        /// The server.
        name: String,
        /// Exit code.
        code: i32,
        /// The last lines that it said.
        said: Vec<String>,
    },
    /// sudo refused.
    #[error("{name} does not let us become root: {said}")]
    Sudo {
        /// The server.
        name: String,
        /// What sudo said.
        said: String,
    },
    /// The agent could not be brought.
    #[error("the agent could not be installed on {name}: {said}")]
    Bring {
        /// The server.
        name: String,
        /// What the server said.
        said: String,
    },
    /// The server's processor is of another kind.
    #[error(
        "{name} is {theirs}, and this program is built for {ours} and has no other build beside it"
    )]
    Architecture {
        /// The server.
        name: String,
        /// This program's architecture.
        ours: &'static str,
        /// What `uname -m` says there.
        theirs: String,
    },
    /// A value may not become part of a command line.
    #[error("{what} {value:?} has a character that cannot be used on the server's command line")]
    Value {
        /// Which value.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// This program cannot read its own executable.
    #[error("cannot read {}", .path.display())]
    Own {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request has a value that the wire cannot carry.
    #[error("the request cannot be written")]
    Request(#[source] serde_json::Error),
    /// A frame could not be understood.
    #[error("the agent on {name} sent a {frame} frame that cannot be read")]
    Garbled {
        /// The server.
        name: String,
        /// Which kind of frame.
        frame: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A line was longer than any frame.
    #[error("{name} sent a line of more than {limit} bytes")]
    TooLong {
        /// The server.
        name: String,
        /// The bound in bytes.
        limit: usize,
    },
}

impl RemoteError {
    /// Whether what was asked for may have been heard: then it is to be followed, never asked again or called failed.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Garbled { .. } | Self::TooLong { .. })
    }

    /// Whether the connection is there, and takes no command beside those that it has.
    pub fn is_refused_session(&self) -> bool {
        let broke = |source: &openssh::Error| matches!(source, openssh::Error::Disconnected);
        matches!(self, Self::NoChannel { source, .. } if !broke(source))
    }

    /// Whether what was given is at fault, and neither this machine nor the server.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Key(error) => !matches!(error, KeyError::Write { .. } | KeyError::Program(_)),
            Self::KnownHosts(_) | Self::Jump(_) | Self::Value { .. } => true,
            _ => false,
        }
    }
}

impl Hint for RemoteError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Key(error) => return error.hints(),
            Self::KnownHosts(error) => return error.hints(),
            Self::HostKey { known_as, fault, offered } => return pin(known_as, *fault, offered),
            Self::Sudo { name, said } => return root(name, said),
            Self::NoAgent { .. } => return no_agent(),
            Self::Denied { fingerprint, .. } => denied(fingerprint.as_deref()),
            Self::Jump(_) => "write [user@]host[:port], several with commas".to_owned(),
            Self::Program(_) => "install OpenSSH's client (Debian: openssh-client)".to_owned(),
            Self::Unresolved { .. } => "check host for a typing error; a private name needs a runner inside that network, \
                                        or ssh.jump"
                .to_owned(),
            Self::Unreachable { port, .. } => format!(
                "check that sshd listens on port {port} (ssh.port) and that a firewall lets this machine through; \
                 GitHub's own runners have changing addresses"
            ),
            Self::Slow { .. } => "check ssh.port and firewalls: a firewall that drops packets looks like this".to_owned(),
            Self::NoChannel { source: openssh::Error::Disconnected, .. } => {
                "the connection broke before anything was asked: try again".to_owned()
            }
            Self::NoChannel { .. } => {
                "check MaxSessions in the server's sshd_config: it must not be 0".to_owned()
            }
            Self::Lost { .. } => {
                "what was begun on the server goes on without us: see model-swap status before doing anything else"
                    .to_owned()
            }
            Self::Bring { said, .. } => return installing(said),
            Self::Architecture { theirs, .. } => format!(
                "run the build of model-swap for {theirs}, or put it beside this program as model-swap-{theirs}"
            ),
            Self::Value { .. } => "use letters, digits and / . _ - + @ : , = only, and begin paths with /".to_owned(),
            Self::Folder { .. } => "check that the folder for temporary files (TMPDIR) can be written to".to_owned(),
            Self::Refused { .. } | Self::Own { .. } | Self::Request(_) | Self::Garbled { .. } | Self::TooLong { .. } => return Vec::new(),
        };
        vec![hint]
    }

    fn log_tail(&self) -> Vec<String> {
        match self {
            Self::NoAgent { said, .. } => said.clone(),
            _ => Vec::new(),
        }
    }
}

/// What was offered, how to verify it, and what to pin then.
fn pin(known_as: &str, fault: HostKeyFault, offered: &[PublicKey]) -> Vec<String> {
    let mut hints = Vec::new();
    match fault {
        HostKeyFault::Unknown => {}
        HostKeyFault::Changed => hints.push(
            "if nobody reinstalled the server or made new host keys, somebody may stand between: do not pin anything"
                .to_owned(),
        ),
        HostKeyFault::Revoked => return vec!["find out why the key was revoked before doing anything else".to_owned()],
    }
    let Some(best) = offered.first() else {
        hints.push(format!("on the server's console, run `cat /etc/ssh/ssh_host_ed25519_key.pub` and pin `{known_as} ` \
                            followed by what it prints"));
        return hints;
    };
    let list: Vec<String> =
        offered.iter().map(|key| format!("{} {}", key.kind, key.fingerprint)).collect();
    hints.push(format!("the server offers {}", list.join(", ")));
    hints.push(format!(
        "verify on the server's console, not over this network: `ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub` must \
         print {}",
        best.family(),
        best.fingerprint
    ));
    hints.push(format!(
        "only then pin it with this line of known-hosts: {known_as} {} {}",
        best.kind, best.base64
    ));
    hints
}

fn no_agent() -> Vec<String> {
    vec![
        "check that this user may run commands over ssh: ssh USER@HOST sh -c true".to_owned(),
        "if that works, the agent on the server may be damaged: remove its folder (`bin` in state_dir, or \
         /usr/local/libexec/model-swap), and it is brought anew"
            .to_owned(),
    ]
}

fn denied(fingerprint: Option<&str>) -> String {
    match fingerprint {
        Some(fingerprint) => format!(
            "check the user in front of @, and that this user's ~/.ssh/authorized_keys on the server holds the public \
             key {fingerprint} (`ssh-keygen -lf FILE` prints fingerprints; `ssh-keygen -y -f KEY` prints the line to add)"
        ),
        None => "check the user in front of @, and that your ssh agent or ~/.ssh holds a key that this user's \
                 ~/.ssh/authorized_keys on the server lists"
            .to_owned(),
    }
}

/// `said` is sudo's own: its words in any language but English say no more than that it refused.
fn root(name: &str, said: &str) -> Vec<String> {
    let user = name.split_once('@').map_or("USER", |(user, _)| user);
    let rule = format!("`{user} ALL=(root) NOPASSWD: ALL`");
    let first = if said.contains("must have a tty") {
        format!(
            "sudo's option requiretty forbids it to programs: add the line `Defaults:{user} !requiretty` to \
             /etc/sudoers.d/model-swap"
        )
    } else if said.contains("not found") || said.contains("No such file") {
        format!(
            "either install sudo (Debian: apt-get install sudo) with the line {rule} in /etc/sudoers.d/model-swap, or \
             log in as root"
        )
    } else {
        format!(
            "either let the user become root without a password, with this line in /etc/sudoers.d/model-swap: {rule} \
             (bringing a program and running it as root is no less than that)"
        )
    };
    vec![
        first,
        "or let the user own nginx's configuration, nginx and the engine: then nothing is done as root".to_owned(),
    ]
}

fn installing(said: &str) -> Vec<String> {
    let hint = if said.contains("No space left") || said.contains("quota") {
        "make room: the agent needs a few MB"
    } else if said.contains("ermission denied") || said.contains("Operation not permitted") {
        "the folder must be writable, and must allow programs to run (mount option noexec and SELinux forbid it); \
         state_dir chooses another one"
    } else if said.contains("Read-only file system") {
        "choose a writable folder with state_dir"
    } else if said.contains("mkdir") {
        "state_dir must name a folder that is there, or can be made"
    } else if said.contains("xec format error") {
        "run the build of model-swap for the server's architecture"
    } else if said.contains("GLIBC") {
        "use the released, statically linked build of model-swap"
    } else {
        return Vec::new();
    };
    vec![hint.to_owned()]
}
