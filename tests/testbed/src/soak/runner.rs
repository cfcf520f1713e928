//! The runner's side of a command: a process group that dies as one.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use super::{LOOK_AGAIN, heard};
use crate::PATIENCE;
use crate::action::Action;

/// What GitHub sends to a job that is cancelled, and how long it then waits (runner, `ProcessInvoker.cs`).
const CANCELS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_millis(7500)),
    (Signal::TERM, Duration::from_millis(2500)),
    (Signal::KILL, PATIENCE),
];

/// The file with what a terminal's command printed.
const PRINTED: &str = "printed";
/// `PATH` of a terminal.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// What it takes to be let in: a private key, and the host keys.
pub(super) type Access<'a> = (&'a str, &'a str);

/// Where a command is given.
pub(super) enum Place {
    /// In a workflow's step.
    Step(Action),
    /// At a terminal, where a program follows: each event is a line of JSON.
    Terminal { program: PathBuf, command: &'static str, folder: TempDir },
}

impl Place {
    /// A terminal in a folder of its own, with the configuration and what lets it in.
    pub(super) fn terminal(
        (program, command): (&Path, &'static str),
        config: &str,
        (key, hosts): Access<'_>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("terminal-").tempdir()?;
        for (name, text) in [("model-swap.yaml", config), ("key", key), ("hosts", hosts)] {
            let file = folder.path().join(name);
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        Ok(Self::Terminal { program: program.to_owned(), command, folder })
    }

    fn command(&self) -> Result<Command> {
        Ok(match self {
            Self::Step(action) => {
                let mut command = action.command();
                command.stdout(Stdio::null());
                command
            }
            Self::Terminal { program, command: word, folder } => {
                let mut command = Command::new(program);
                command
                    .args([word, "--json", "--ssh-key", "key", "--known-hosts", "hosts"])
                    .current_dir(folder.path())
                    .env_clear()
                    .envs([("PATH", PATH), ("USER", "ann")])
                    .env("HOME", folder.path())
                    .stdin(Stdio::null())
                    .stdout(File::create(folder.path().join(PRINTED))?);
                command
            }
        })
    }
}

/// What a runner waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    ForTheOutcome,
    /// Its job is cancelled: that traffic is back will do.
    NotLong,
}

pub(super) struct Runner {
    child: Child,
    /// The port that nginx's file named when it began.
    pub(super) serves_at: u16,
    /// Its folder holds the configuration.
    place: Place,
}

impl Runner {
    pub(super) fn start(place: Place, serves_at: u16) -> Result<Self> {
        let child = place.command()?.process_group(0).stderr(Stdio::null()).spawn()?;
        Ok(Self { child, serves_at, place })
    }

    /// Holds what a program that follows has heard against the logs in the folder with all swaps: each event once, and all up to
    /// the outcome, if the exit code tells of one that was waited for.
    pub(super) fn hold_what_was_heard(
        &self,
        swaps: &Path,
        code: Option<i32>,
        waits: Waits,
    ) -> Result<()> {
        let Place::Terminal { folder, .. } = &self.place else { return Ok(()) };
        let printed = fs::read(folder.path().join(PRINTED)).context("nothing was printed")?;
        let log = |swap: &str| fs::read(swaps.join(swap).join("events.ndjson")).ok();
        let last = heard::last(&printed, log)?;
        let is_to_know = matches!(code, Some(0 | 4..=6)) && waits == Waits::ForTheOutcome;
        let is_cut = is_to_know && last.as_ref().is_some_and(|last| last != "concluded");
        ensure!(!is_cut, "exit {code:?}, and the last event that was heard is {last:?}");
        Ok(())
    }

    /// Its machine is gone.
    pub(super) fn kill(&self) {
        if let Some(group) = pid(self.child.id()) {
            // It may have ended by itself meanwhile.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }

    /// Somebody cancels its job.
    pub(super) async fn cancel(&mut self) -> Result<()> {
        for (told, wait) in CANCELS {
            signal(self.child.id(), told);
            let deadline = Instant::now() + wait;
            while Instant::now() < deadline {
                if self.is_over()? {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    pub(super) fn is_over(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its exit code, once it has ended; `None` if a signal ended it.
    pub(super) async fn ended(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(Instant::now() < deadline, "the runner does not end");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            let _gone = self.child.wait();
        }
    }
}

/// Sends a signal; the process may have ended by itself meanwhile.
pub(super) fn signal(process: u32, signal: Signal) {
    if let Some(process) = pid(process) {
        let _gone = kill_process(process, signal);
    }
}

fn pid(process: u32) -> Option<Pid> {
    i32::try_from(process).ok().and_then(Pid::from_raw)
}
