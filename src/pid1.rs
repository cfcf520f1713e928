//! What a container's first process has to do beside its work: pass signals on, and reap whom nobody waits for.
//!
//! ssh goes to the background, and is the first process's child from then on. The work is done in a child, so that reaping
//! never takes away the end of a process that the work itself waits for.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell adds to a signal's number to report who was ended by it.
const BY_SIGNAL: i32 = 128;

/// This program, whatever its file is called by now (proc(5)).
const OWN_IMAGE: &str = "/proc/self/exe";

/// Whether this is a container's first process.
pub fn is_first() -> bool {
    getpid().is_init()
}

/// Runs this program as a child, with the same arguments, and exits as it does.
///
/// # Errors
/// If it cannot be started.
pub async fn attend() -> io::Result<ExitCode> {
    // Before the child is there: what comes early is for it.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ended = signal(SignalKind::child())?;
    let mut args = std::env::args_os();
    let mut command = Command::new(OWN_IMAGE);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    // A group of its own: at a terminal everybody in ours hears Ctrl-C, and the child would hear it twice.
    let child = command.args(args).process_group(0).spawn()?;
    let child = Pid::from_child(&child);
    loop {
        let passed = tokio::select! {
            _ = interrupt.recv() => Some(Signal::INT),
            _ = terminate.recv() => Some(Signal::TERM),
            _ = ended.recv() => None,
        };
        match passed {
            // It may be over already, and is reaped in a moment.
            Some(signal) => kill_process(child, signal).unwrap_or_default(),
            None => {
                if let Some(code) = reap(child)? {
                    return Ok(code);
                }
            }
        }
    }
}

/// Reaps everybody who has ended; says how the child did, once it has.
fn reap(child: Pid) -> io::Result<Option<ExitCode>> {
    while let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
        if pid == child {
            let signal = || status.terminating_signal().map(|signal| BY_SIGNAL + signal);
            let code = status.exit_status().or_else(signal).and_then(|code| code.try_into().ok());
            return Ok(code.map(|code: u8| ExitCode::from(code)));
        }
    }
    Ok(None)
}
