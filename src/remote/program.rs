//! Runs one of OpenSSH's own programs on this machine to its end.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// One of OpenSSH's programs could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started.
    #[error("cannot run {program} on this machine")]
    Start {
        /// `argv[0]`.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {}", humantime::format_duration(*.limit))]
    Timeout {
        /// `argv[0]`.
        program: &'static str,
        /// The bound.
        limit: Duration,
    },
}

/// What a finished program left.
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs `program` with an empty standard input and waits for its end, at most `limit`.
pub(super) async fn run(
    program: &'static str,
    args: &[&OsStr],
    limit: Duration,
) -> Result<Finished, ProgramError> {
    let ended = Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(limit, ended).await {
        Ok(Ok(output)) => Ok(Finished {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(source)) => Err(ProgramError::Start { program, source }),
        Err(_) => Err(ProgramError::Timeout { program, limit }),
    }
}
