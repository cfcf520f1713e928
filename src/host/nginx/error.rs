//! Why traffic could not be moved, in nginx's own words where it has some.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::Unloaded;
use crate::host::durable::DurableError;
use crate::host::exec::ExecError;
use crate::model::failure::Hint;
use crate::swap::nginx_conf::ConfError;

/// nginx is not as it must be, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum NginxError {
    /// The program does not exist.
    #[error("`{command}` is not installed where it was looked for")]
    NotFound {
        /// The program, as it was called.
        command: String,
        /// Why.
        source: ExecError,
    },
    /// The program could not be run to its end.
    #[error("cannot ask nginx")]
    Exec(
        /// Why.
        #[from]
        ExecError,
    ),
    /// The program failed without a word about the configuration.
    #[error("`{command}` failed with {}", code.map_or("a signal".to_owned(), |code| format!("exit code {code}")))]
    Failed {
        /// The command line.
        command: String,
        /// Its exit code.
        code: Option<i32>,
        /// The end of its standard error.
        stderr: Vec<String>,
    },
    /// `nginx -t` rejects what is on disk.
    #[error("nginx rejects the configuration: {}", first(lines))]
    Rejected {
        /// Its `[emerg]` lines.
        lines: Vec<String>,
    },
    /// `nginx -t` was content, but the running nginx did not load it.
    #[error(
        "nginx did not load the configuration, although it had passed its test: {}",
        first(lines)
    )]
    NotLoaded {
        /// The `[emerg]` lines that the master wrote since it was told to reload.
        lines: Vec<String>,
    },
    /// No new worker appeared, and no word why.
    #[error("nginx (pid {master}) started no new worker within {} of a reload", humantime::format_duration(*limit))]
    NoNewWorkers {
        /// The master's pid.
        master: i32,
        /// The bound.
        limit: Duration,
    },
    /// The master ended.
    #[error("the nginx master (pid {master}) is gone")]
    MasterGone {
        /// Its pid.
        master: i32,
    },
    /// The nginx that was started in place of one that ended does not load it either; it may have read it when it started.
    #[error(transparent)]
    Restarted(
        /// Why not.
        Box<NginxError>,
    ),
    /// No running nginx was found by its pid file.
    #[error("no running nginx was found: {} {problem}", file.display())]
    PidFile {
        /// The pid file.
        file: PathBuf,
        /// `does not exist`, `is empty`, or whom it names.
        problem: String,
        /// Pids of nginx masters that run all the same.
        running: Vec<i32>,
    },
    /// Requests are taken by two masters, as while nginx's binary is upgraded.
    #[error(
        "two nginx masters take requests from the same sockets: {master}, which the pid file names, and {other}"
    )]
    TwoMasters {
        /// The master's pid.
        master: i32,
        /// The other one's.
        other: i32,
    },
    /// The running nginx belongs to somebody else.
    #[error("nginx (pid {pid}) belongs to another user")]
    Foreign {
        /// The master's pid.
        pid: i32,
        /// What was refused.
        source: io::Error,
    },
    /// The configuration cannot be read or edited.
    #[error(transparent)]
    Conf(
        /// Why.
        #[from]
        ConfError,
    ),
    /// The configured file cannot be read.
    #[error("cannot read {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configured file is not one that nginx reads.
    #[error("{} is not part of the configuration that starts at {}", config.display(), main.display())]
    NotIncluded {
        /// `nginx.config`.
        config: PathBuf,
        /// nginx's main file.
        main: PathBuf,
    },
    /// The upstream is not in the configured file, nor in one that it includes.
    #[error("the `server` line of upstream `{upstream}` is in {}, which {} does not include", file.display(), config.display())]
    Elsewhere {
        /// The upstream.
        upstream: String,
        /// The file that holds the line.
        file: PathBuf,
        /// `nginx.config`.
        config: PathBuf,
    },
    /// The file itself is a mount point: a rename over it fails, or is not seen.
    #[error("{} is a bind mount of a single file", file.display())]
    BindMount {
        /// The mount point.
        file: PathBuf,
    },
    /// The file cannot be replaced by this user.
    #[error("cannot replace {}", file.display())]
    NotWritable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was not written; it is as it was.
    #[error("the upstream was not changed")]
    Write(
        /// Why.
        #[source]
        DurableError,
    ),
    /// A rejected change could not be taken back.
    #[error("{why}, and the file could not be put back")]
    NotPutBack {
        /// Why the change was to be taken back.
        why: Box<NginxError>,
        /// Why it could not be.
        source: Box<NginxError>,
    },
    /// A process cannot be looked at.
    #[error("cannot look at process {pid}")]
    Process {
        /// Its pid.
        pid: i32,
        /// Why.
        source: procfs::ProcError,
    },
    /// The master could not be told to reload.
    #[error("cannot tell nginx (pid {master}) to reload")]
    Signal {
        /// The master's pid.
        master: i32,
        /// Why.
        source: io::Error,
    },
    /// No HTTP client for the probe.
    #[error("cannot make an HTTP client")]
    Client(
        /// Why.
        #[source]
        reqwest::Error,
    ),
    /// Nothing showed that new requests go to the candidate.
    #[error(
        "no proof within {} that new requests go to port {port}: {url} answered {answer}; {sockets}",
        humantime::format_duration(*limit)
    )]
    Unproven {
        /// The bound.
        limit: Duration,
        /// The candidate's port.
        port: crate::model::ids::Port,
        /// The probe's URL.
        url: String,
        /// The last answer, in words.
        answer: String,
        /// What the new workers' sockets showed, in words.
        sockets: String,
    },
}

impl NginxError {
    /// Whether nginx may load yet, or have loaded, what this came of. Every other failure came before it was told, or of its own word.
    pub fn leaves_doubt(&self) -> bool {
        matches!(
            self,
            Self::NoNewWorkers { .. }
                | Self::MasterGone { .. }
                | Self::Restarted(_)
                | Self::Process { .. }
                | Self::TwoMasters { .. }
                | Self::NotPutBack { .. }
        )
    }
}

impl From<NginxError> for Unloaded {
    fn from(error: NginxError) -> Self {
        let in_doubt = error.leaves_doubt();
        let failure = error.to_failure();
        if in_doubt { Self::Perhaps(failure) } else { Self::Surely(failure) }
    }
}

const BECOME_ROOT: &str =
    "let the SSH user become root by `sudo -n`, or let that user own nginx and its configuration";

/// Whether nginx could not read or write a file: root's keys of certificates, pid file or logs, where another user asks it.
fn is_denied(lines: &[String]) -> bool {
    !rustix::process::geteuid().is_root()
        && lines.iter().any(|line| line.contains("(13: Permission denied)"))
}

impl Hint for NginxError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Conf(error) => return error.hints(),
            Self::Restarted(why) => return why.hints(),
            Self::NotPutBack { why, source } => return [why.hints(), source.hints()].concat(),
            Self::NotFound { .. } => {
                "set nginx.command to the way nginx is called on the server, like [docker, exec, edge, nginx] where it is in a \
                 container"
                    .to_owned()
            }
            Self::Rejected { lines } | Self::Failed { stderr: lines, .. } if is_denied(lines) => BECOME_ROOT.to_owned(),
            Self::Rejected { .. } => "run `nginx -t` on the server and mend what it names".to_owned(),
            Self::NotLoaded { .. } => {
                "the old configuration is still in force; mend what nginx names, then run the swap again".to_owned()
            }
            Self::NoNewWorkers { .. } | Self::MasterGone { .. } => "look at nginx's error log".to_owned(),
            Self::PidFile { running, .. } if running.is_empty() => "start nginx, then try again".to_owned(),
            Self::PidFile { running, .. } => {
                let running: Vec<String> = running.iter().map(i32::to_string).collect();
                format!(
                    "nginx masters run with pid {}: let `pid` in nginx.conf name the file of the one that serves, or set \
                     nginx.command to the way it was started",
                    running.join(", ")
                )
            }
            Self::TwoMasters { other, .. } => format!(
                "only one of them would be told of another model: bring the upgrade of nginx's binary to its end first, as with \
                 `kill -QUIT {other}`"
            ),
            Self::Foreign { .. } | Self::NotWritable { .. } | Self::Signal { .. } => BECOME_ROOT.to_owned(),
            Self::NotIncluded { .. } => {
                "set nginx.config to a file that `nginx -T` lists, and nginx.command to the way nginx is called with the \
                 same -c and -p as the running one"
                    .to_owned()
            }
            Self::Elsewhere { file, .. } => format!("set nginx.config to {}", file.display()),
            Self::BindMount { .. } => "mount the folder instead of the file".to_owned(),
            Self::Unproven { .. } => {
                "let nginx.probe.url (and nginx.probe.host) name a URL that nginx proxies to this upstream, with an API key \
                 that the replicas accept"
                    .to_owned()
            }
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "set nginx.config to the file that holds (or includes) the upstream block; `nginx -T` lists them all"
                    .to_owned()
            }
            Self::Exec(_)
            | Self::Failed { .. }
            | Self::Unreadable { .. }
            | Self::Write(_)
            | Self::Process { .. }
            | Self::Client(_) => return Vec::new(),
        };
        vec![hint]
    }

    fn log_tail(&self) -> Vec<String> {
        match self {
            Self::Rejected { lines }
            | Self::NotLoaded { lines }
            | Self::Failed { stderr: lines, .. } => lines.clone(),
            Self::NotPutBack { why, .. } | Self::Restarted(why) => why.log_tail(),
            _ => Vec::new(),
        }
    }
}

/// What the first `[emerg]` line says, without the time before it and the pid after it: `[emerg] 123#123: …`.
fn first(lines: &[String]) -> String {
    const EMERG: &str = "[emerg] ";
    let line = lines.first().map_or("", String::as_str);
    let Some((_, rest)) = line.split_once(EMERG) else { return line.to_owned() };
    let said = rest.split_once(": ").filter(|(pid, _)| pid.contains('#')).map_or(rest, |it| it.1);
    format!("{EMERG}{said}")
}
