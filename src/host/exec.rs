//! Runs one program to its end: argv only, never a shell, always bounded.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// A program could not be run to its end. Its exit status is no error here.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("cannot run {program}")]
    Start {
        /// `argv[0]`.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {}", humantime::format_duration(*.limit))]
    Timeout {
        /// `argv[0]`.
        program: String,
        /// The bound.
        limit: Duration,
    },
}

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs `argv` with an empty standard input and waits for its end, at most `limit`.
///
/// # Errors
/// If it cannot be started or does not end in time.
pub async fn run(argv: &[String], limit: Duration) -> Result<Output, ExecError> {
    run_with(argv, &[], limit).await
}

/// The same, with more variables.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    argv: &[String],
    env: &[(&str, &str)],
    limit: Duration,
) -> Result<Output, ExecError> {
    let program = argv.first().cloned().unwrap_or_default();
    let child = Command::new(&program)
        .args(argv.iter().skip(1))
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ExecError::Start { program: program.clone(), source })?;
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) => Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(source)) => Err(ExecError::Start { program, source }),
        Err(_) => Err(ExecError::Timeout { program, limit }),
    }
}

/// The file of this program, for others to start.
///
/// # Errors
/// If `/proc` does not say.
pub fn own_file() -> std::io::Result<PathBuf> {
    Ok(in_place(std::env::current_exe()?))
}

/// Behind the path of a file that another one has taken the place of the kernel says ` (deleted)` (proc_pid_exe(5)): the other one
/// is what can be started.
fn in_place(file: PathBuf) -> PathBuf {
    let before = file.as_os_str().as_bytes().strip_suffix(b" (deleted)");
    let before = before.map(|path| PathBuf::from(OsStr::from_bytes(path)));
    match before.filter(|path| path.is_file() && !file.exists()) {
        Some(other) => other,
        None => file,
    }
}

/// Starts this very binary again, detached: it outlives whoever asked for it.
///
/// Its standard input and output are pipes; its folder is `/`, so that it pins no file system. The words of a wrapper, if
/// there are any, come before its own.
///
/// # Errors
/// If it cannot be started.
pub fn detached(wrapper: &[&str], arguments: &[&OsStr], stderr: Stdio) -> std::io::Result<Child> {
    let mut command = match wrapper {
        [] => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("model-swap");
            command
        }
        [program, words @ ..] => {
            let mut command = Command::new(program);
            command.args(words).arg(own_file()?);
            command
        }
    };
    command
        .args(arguments)
        .current_dir("/")
        // GitHub's runner ends what carries it when the job is over; on a self-hosted one with `host: local` that is us.
        .env_remove("RUNNER_TRACKING_ID")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_whose_file_was_replaced_is_started_from_the_one_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model-swap");
        let replaced = folder.path().join("model-swap (deleted)");
        assert_eq!(in_place(replaced.clone()), replaced, "nothing is in its place");
        std::fs::write(&path, "").unwrap();
        assert_eq!(in_place(replaced.clone()), path);
        assert_eq!(in_place(path.clone()), path);
        std::fs::write(&replaced, "").unwrap();
        assert_eq!(in_place(replaced.clone()), replaced, "that is its name");
    }
}
