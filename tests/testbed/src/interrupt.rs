//! Programs that leave nothing behind, however they end.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports of a program that SIGINT ended: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// Does `work` and says how the program should exit: 0, 1 with the reason on standard error, or 130 after SIGINT,
/// SIGTERM or SIGHUP. Then the work is dropped where it is, and with it ends all that it owns.
pub fn run(work: impl Future<Output = Result<()>>) -> ExitCode {
    let ended = tokio::runtime::Runtime::new()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(unless_interrupted(work)));
    let mut stderr = std::io::stderr();
    // Nobody is there to be told of a standard error that is gone.
    match ended {
        Ok(Some(())) => ExitCode::SUCCESS,
        Ok(None) => {
            let _ = writeln!(stderr, "interrupted: everything is ended and removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            let _ = writeln!(stderr, "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGINT, SIGTERM or SIGHUP, whichever comes first.
///
/// # Errors
/// If they cannot be waited for.
pub async fn interrupted() -> Result<()> {
    let [mut interrupt, mut terminate, mut hangup] = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    }
}

async fn unless_interrupted(work: impl Future<Output = Result<()>>) -> Result<Option<()>> {
    tokio::select! {
        done = work => done.map(Some),
        told = interrupted() => told.map(|()| None),
    }
}
