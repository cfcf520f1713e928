//! Starts a program in a session of its own, as another user where asked.
//!
//! Between fork and exec only a launcher may run, and no `unsafe` is wanted here: so the binary runs itself once more as
//! `model-swap agent launch`, reads what to do from its standard input (secrets are in no argv), and becomes the program.
//! Until that moment its standard error is a pipe that closes when exec succeeds, and says why when it does not. It carries
//! the replica's marker from its beginning: whoever clears up after a dead agent finds it, wherever it hangs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Gid, Uid, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::ProcessError;
use super::inherit::Identity;
use crate::model::ids::{Port, ProcessId};
use crate::model::replica::{Image, Keeper};
use crate::model::spec::Gpu;
use crate::model::wire::MARKER;

/// The launcher needs milliseconds; only a file system that hangs makes it slow.
const LAUNCH_LIMIT: Duration = Duration::from_secs(30);

/// A program to be started.
#[derive(Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The program, looked up in the `PATH` of `env`, and its arguments.
    pub argv: Vec<String>,
    /// Its complete environment.
    pub env: BTreeMap<String, String>,
    /// Its working folder.
    pub cwd: PathBuf,
    /// As whom it runs.
    pub identity: Identity,
    /// The file that its output is appended to, where nothing else takes it; created with mode 0600, in a folder that
    /// exists.
    pub log: PathBuf,
    /// What supervises it.
    #[serde(default)]
    pub keeper: Keeper,
    /// What makes it a container's program.
    #[serde(default)]
    pub container: Option<Contained>,
}

/// The container that a program is started in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Contained {
    /// The image; its id is what no tag moves.
    pub image: Image,
    /// The port that is published on the loopback, the same inside and outside; none where it is in the server's network.
    pub port: Option<Port>,
    /// The GPUs that it sees.
    pub gpus: Vec<Gpu>,
    /// More options of `docker run`.
    pub options: Vec<String>,
}

impl fmt::Debug for Launch {
    /// Names of variables only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("argv", &super::redact(&self.argv))
            .field("env", &self.env.keys())
            .field("cwd", &self.cwd)
            .field("identity", &self.identity)
            .field("log", &self.log)
            .finish()
    }
}

/// How the launcher is called.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// Its executable.
    pub program: PathBuf,
    /// Arguments that make it call [`launch_main`].
    pub arguments: Vec<String>,
}

impl Default for Launcher {
    /// This very binary, even if its file was replaced since: `/proc/self/exe agent launch`.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec!["agent".to_owned(), "launch".to_owned()],
        }
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Started {
    /// Its process, which leads a session of its own.
    pub main: ProcessId,
    /// To wait for its end and its exit status; it is reaped, and not ended, if this is dropped.
    pub child: Child,
}

/// Why the launcher could not become the program: a line of JSON on its standard error.
#[derive(Serialize, Deserialize)]
struct Refusal {
    doing: String,
    errno: Option<i32>,
    reason: String,
}

/// Starts a program; it runs when this returns.
///
/// # Errors
/// If the launcher can't be run, or can't become the program: the message then names `argv[0]`.
pub async fn start(launch: &Launch, launcher: &Launcher) -> Result<Started, ProcessError> {
    let failed = |source| ProcessError::Launcher { launcher: launcher.program.clone(), source };
    let order = serde_json::to_vec(launch).map_err(|error| failed(error.into()))?;
    let mut child = Command::new(&launcher.program)
        .arg0("model-swap")
        .args(&launcher.arguments)
        .envs(launch.env.get_key_value(MARKER))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    // Not yet waited for, so even an ended process still has its entry.
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    let start = stat.map_err(|error| failed(io::Error::other(error)))?.starttime;
    let (input, output) = (child.stdin.take(), child.stderr.take());
    let talk = async {
        if let Some(mut input) = input {
            // A launcher that died says more in its output than the broken pipe does.
            drop(input.write_all(&order).await);
        }
        let mut said = String::new();
        if let Some(mut output) = output {
            output.read_to_string(&mut said).await?;
        }
        Ok(said)
    };
    let said = tokio::time::timeout(LAUNCH_LIMIT, talk)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match said {
        Ok(said) if said.is_empty() => Ok(Started { main: ProcessId { pid, start }, child }),
        Ok(said) => {
            Err(refusal(&said).unwrap_or_else(|| failed(io::Error::other(said.trim().to_owned()))))
        }
        Err(error) => {
            // Nothing else knows of it yet.
            drop(child.start_kill());
            Err(failed(error))
        }
    }
}

fn refusal(said: &str) -> Option<ProcessError> {
    let Refusal { doing, errno, reason } = serde_json::from_str(said.lines().next()?).ok()?;
    let source = errno.map_or_else(|| io::Error::other(reason), io::Error::from_raw_os_error);
    Some(ProcessError::Launch { doing, source })
}

/// The launcher: reads a [`Launch`] from standard input and becomes that program.
///
/// Returns only if that failed, after having said why on standard error. To be called before any other thread runs.
pub fn launch_main() -> ExitCode {
    let Ok(report) = io::stderr().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let Err((doing, error)) = become_program(&report);
    let refusal = Refusal { doing, errno: error.raw_os_error(), reason: error.to_string() };
    // Standard error may be the log by now. If the report can't be written, nobody is there to read it.
    drop(serde_json::to_writer(File::from(report), &refusal));
    ExitCode::FAILURE
}

fn become_program(report: &OwnedFd) -> Result<Infallible, (String, io::Error)> {
    fn doing<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> (String, io::Error) {
        move |error| (what.into(), error.into())
    }
    let mut order = Vec::new();
    io::stdin().read_to_end(&mut order).map_err(doing("read what to launch"))?;
    let launch: Launch =
        serde_json::from_slice(&order).map_err(doing("understand what to launch"))?;
    close_inherited(report).map_err(doing("list the open files"))?;
    setsid().map_err(doing("open a session"))?;
    let path = launch.log.display();
    let mut options = OpenOptions::new();
    let log = options.append(true).create(true).mode(0o600).open(&launch.log);
    let log = log.map_err(doing(format!("open the log {path}")))?;
    let errors = log.try_clone().map_err(doing(format!("open the log {path}")))?;
    take_identity(&launch.identity)
        .map_err(doing(format!("become user id {}", launch.identity.uid)))?;
    std::env::set_current_dir(&launch.cwd)
        .map_err(doing(format!("enter {}", launch.cwd.display())))?;
    let (program, arguments) = launch
        .argv
        .split_first()
        .ok_or_else(|| ("run nothing".to_owned(), io::ErrorKind::InvalidInput.into()))?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear().envs(&launch.env);
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    Err((format!("run {program}"), command.exec()))
}

/// Closes every file that the agent's own parents left open for it, such as the lock of a script around it.
fn close_inherited(report: &OwnedFd) -> io::Result<()> {
    let entries = std::fs::read_dir("/proc/self/fd")?.flatten();
    let open: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The listing's own descriptor is closed already; closing it again fails without harm.
    for fd in open.into_iter().filter(|fd| *fd > 2 && *fd != report.as_raw_fd()) {
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Only this thread changes, and it is the one that becomes the program.
fn take_identity(identity: &Identity) -> io::Result<()> {
    if identity.is_own() {
        return Ok(());
    }
    let groups: Vec<_> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)?;
    set_thread_gid(Gid::from_raw(identity.gid))?;
    set_thread_uid(Uid::from_raw(identity.uid))?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
