//! The runner's side of a command: a process group that dies as one.

use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::LOOK_AGAIN;
use crate::PATIENCE;
use crate::action::Action;

/// What GitHub sends to a job that is cancelled, and how long it then waits (runner, `ProcessInvoker.cs`).
const CANCELS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_millis(7500)),
    (Signal::TERM, Duration::from_millis(2500)),
    (Signal::KILL, PATIENCE),
];

pub(super) struct Runner {
    child: Child,
    /// The port that nginx's file named when it began.
    pub(super) serves_at: u16,
    /// Its folder, which holds the configuration.
    _action: Action,
}

impl Runner {
    pub(super) fn start(action: Action, serves_at: u16) -> Result<Self> {
        let mut command = action.command();
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: command.spawn()?, serves_at, _action: action })
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
