//! One line run by a shell, on the server or here, with its three streams.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::{io, mem};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::{Receiver, Sender, pipe};

/// How much of what a program says is kept for diagnosis, in bytes: the last of it.
const TAIL: usize = 16 << 10;

/// A line that runs.
pub(super) struct Exec {
    /// Closed when dropped.
    pub(super) stdin: Sender,
    pub(super) stdout: Receiver,
    pub(super) stderr: Receiver,
    pub(super) process: Process,
}

/// What runs the line.
pub(super) enum Process {
    Local(tokio::process::Child),
    Ssh(openssh::Child<Arc<openssh::Session>>),
}

/// How a line ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this exit code.
    Code(i32),
    /// Nobody knows: by a signal, or the connection is gone.
    Unknown(String),
}

/// The far ends of the three streams.
struct Far {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Three pipes: our ends and the far ends.
fn pipes() -> io::Result<((Sender, Receiver, Receiver), Far)> {
    let (stdin, far_stdin) = pipe()?;
    let (far_stdout, stdout) = pipe()?;
    let (far_stderr, stderr) = pipe()?;
    let far = Far {
        stdin: far_stdin.into_blocking_fd()?,
        stdout: far_stdout.into_blocking_fd()?,
        stderr: far_stderr.into_blocking_fd()?,
    };
    Ok(((stdin, stdout, stderr), far))
}

/// Starts `line` with this machine's sh.
pub(super) fn local(line: &str) -> io::Result<Exec> {
    let ((stdin, stdout, stderr), far) = pipes()?;
    let child = tokio::process::Command::new("sh")
        .args(["-c", line])
        .stdin(far.stdin)
        .stdout(far.stdout)
        .stderr(far.stderr)
        .spawn()?;
    Ok(Exec { stdin, stdout, stderr, process: Process::Local(child) })
}

/// Starts `line` with the login shell of the user on the server.
pub(super) async fn remote(
    mux: &Arc<openssh::Session>,
    line: &str,
) -> Result<Exec, openssh::Error> {
    let ((stdin, stdout, stderr), far) = pipes().map_err(openssh::Error::ChildIo)?;
    let child = openssh::Session::to_raw_command(Arc::clone(mux), line)
        .stdin(far.stdin)
        .stdout(far.stdout)
        .stderr(far.stderr)
        .spawn()
        .await?;
    Ok(Exec { stdin, stdout, stderr, process: Process::Ssh(child) })
}

impl Process {
    /// Waits for the end. A remote program that a signal ended looks like a lost connection: the protocol of ssh's
    /// control socket has no word for it.
    pub(super) async fn ended(self) -> Ended {
        match self {
            Self::Local(mut child) => match child.wait().await {
                Ok(status) => code(status),
                Err(error) => Ended::Unknown(error.to_string()),
            },
            Self::Ssh(child) => match child.wait().await {
                Ok(status) => code(status),
                // The crate's word for exit code 127.
                Err(openssh::Error::Remote(_)) => Ended::Code(127),
                Err(_) => Ended::Unknown("the connection or the program was ended".to_owned()),
            },
        }
    }
}

/// 255 is ssh's own code for a connection that broke, so it says nothing.
fn code(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(255), _) => {
            Ended::Unknown("exit code 255, ssh's word for a broken connection".to_owned())
        }
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Unknown(format!("ended by signal {}", signal.unwrap_or_default())),
    }
}

/// The last of what a program says on a stream.
pub(super) struct Tail {
    stream: Option<Receiver>,
    kept: Vec<u8>,
}

impl Tail {
    pub(super) fn new(stream: Receiver) -> Self {
        Self { stream: Some(stream), kept: Vec::new() }
    }

    /// Reads to the end of the stream. Nothing is lost when this is cancelled.
    pub(super) async fn drain(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut chunk).await {
                Ok(count @ 1..) => self.keep(chunk.get(..count).unwrap_or_default()),
                Ok(0) | Err(_) => self.stream = None,
            }
        }
    }

    fn keep(&mut self, chunk: &[u8]) {
        self.kept.extend_from_slice(chunk);
        let excess = self.kept.len().saturating_sub(TAIL);
        self.kept.drain(..excess);
    }

    /// What was kept, as lines.
    pub(super) fn take(&mut self) -> Vec<String> {
        let kept = mem::take(&mut self.kept);
        String::from_utf8_lossy(&kept).lines().map(|line| line.trim_end().to_owned()).collect()
    }
}
