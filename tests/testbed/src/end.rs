//! The end of a process that a test waits for: one that never comes fails the test, and is brought about.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::PATIENCE;

/// How long a process may take to its end. A step waits for several things, one after the other, for each of which a test has
/// [`PATIENCE`]; and what hangs shall fail its test before CI gives up the whole job, after 45 minutes.
pub const LIMIT: Duration = PATIENCE.saturating_mul(5);

/// Between two looks whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What comes out of a pipe, read as it comes.
#[derive(Debug, Clone)]
pub struct Heard {
    said: Arc<Mutex<Vec<u8>>>,
    listening: Arc<JoinHandle<()>>,
}

impl Heard {
    /// Begins to read.
    pub fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let listening = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&piece[..count]);
            }
        });
        Self { said, listening: Arc::new(listening) }
    }

    /// What has come so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Whether nothing more can come: everybody who held the other end has closed it.
    pub fn is_over(&self) -> bool {
        self.listening.is_finished()
    }

    fn bytes(&self) -> Vec<u8> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits for the end of a process.
///
/// # Errors
/// If it has not ended within [`LIMIT`]: then it is killed.
pub fn of(child: &mut Child) -> Result<ExitStatus> {
    within(LIMIT, child, || true)
}

/// Runs a program without an input to its end, and returns what it said.
///
/// # Errors
/// If it cannot be run; as [`output`].
pub fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    output(command.spawn().with_context(|| format!("cannot run {command:?}"))?)
}

/// Waits for the end of a process, and of what it says through those pipes that it still has.
///
/// # Errors
/// If it, or something else that holds those pipes, has not ended within [`LIMIT`]: then it is killed, and the error has what
/// was said so far.
pub fn output(child: Child) -> Result<Output> {
    output_within(LIMIT, child)
}

fn output_within(limit: Duration, mut child: Child) -> Result<Output> {
    let stdout = child.stdout.take().map(Heard::of);
    let stderr = child.stderr.take().map(Heard::of);
    let is_over = || stdout.iter().chain(&stderr).all(Heard::is_over);
    let status = within(limit, &mut child, is_over).with_context(|| {
        let said = stdout.iter().chain(&stderr).map(Heard::said);
        format!("it said:\n{}", said.collect::<String>())
    })?;
    let bytes = |heard: Option<Heard>| heard.map(|heard| heard.bytes()).unwrap_or_default();
    Ok(Output { status, stdout: bytes(stdout), stderr: bytes(stderr) })
}

/// Waits until a process has ended and something else is so as well.
fn within(limit: Duration, child: &mut Child, also: impl Fn() -> bool) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        let ended = child.try_wait()?;
        if let Some(status) = ended.filter(|_| also()) {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            // Of what has ended by itself, what it started holds its output.
            let what = if ended.is_some() { "the output of process" } else { "process" };
            let id = child.id();
            child.kill().and_then(|()| child.wait())?;
            bail!("{what} {id} has not ended within {} s", limit.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", line]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    #[test]
    fn what_never_ends_is_killed_and_has_said_so_far() {
        let child = shell("echo begun; echo oops >&2; exec sleep infinity");
        let pid = child.id();
        let command_line = format!("/proc/{pid}/cmdline");
        let has_spoken =
            || std::fs::read_to_string(&command_line).is_ok_and(|line| line.starts_with("sleep"));
        while !has_spoken() {
            std::thread::sleep(LOOK_AGAIN);
        }
        let failure = format!("{:#}", output_within(Duration::from_secs(2), child).unwrap_err());
        assert!(!std::path::Path::new(&command_line).exists(), "{failure}");
        for part in ["begun\n", "oops\n", &format!("process {pid} has not ended within 2 s")] {
            assert!(failure.contains(part), "no {part:?} in {failure}");
        }
    }

    #[test]
    fn what_ends_has_said_all_of_it_and_how_it_ended() {
        let output = output(shell("echo out; echo err >&2; exit 3")).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    }
}
