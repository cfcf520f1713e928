//! A stub engine as a process of a test: started on a free port, signalled, waited for, and gone at the end.

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use rustix::process::{Pid, Signal};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::options::{Options, Serve};
use crate::PATIENCE;
use crate::built;

/// Between two looks at a port: a stub tells nobody that it listens.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A running stub engine. Dropping it kills it and everything in its process group.
#[derive(Debug)]
pub struct StubEngine {
    child: Child,
    pid: Pid,
    options: Serve,
    stderr: NamedTempFile,
}

impl StubEngine {
    /// Starts `stub-engine serve MODEL FLAGS…` on a free port of 127.0.0.1 and does not wait for it.
    ///
    /// # Errors
    /// If the program cannot be built or started, or does not know a flag.
    pub fn start(model: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let port = crate::server::free_port()?.to_string();
        let mut arguments = vec!["serve", model, "--port", &port];
        arguments.extend(flags);
        let options = Options::try_parse_from([&["stub-engine"], arguments.as_slice()].concat())?
            .into_serve();
        let stderr = NamedTempFile::new()?;
        let child = Command::new(binary()?)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.reopen()?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .context("it ended at once")?;
        Ok(Self { child, pid, options, stderr })
    }

    /// As [`Self::start`], and waits until it listens.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::ready`].
    pub async fn serving(model: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let mut engine = Self::start(model, flags)?;
        engine.ready().await?;
        Ok(engine)
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// If it ends first, or takes longer than a minute.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let listens = async {
            while TcpStream::connect(self.address()).await.is_err() {
                if let Some(status) = self.child.try_wait()? {
                    bail!("the stub engine ended with {status}: {}", self.stderr()?);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, listens).await.context("the stub engine does not listen")?
    }

    /// Where it listens, or will.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.options.host, self.options.port)
    }

    /// The server's process, which leads a process group.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// What its answers carry as `system_fingerprint`.
    pub fn fingerprint(&self) -> String {
        self.options.fingerprint()
    }

    /// What it has written to standard error so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stderr(&self) -> io::Result<String> {
        std::fs::read_to_string(self.stderr.path())
    }

    /// Sends SIGTERM to the server alone.
    ///
    /// # Errors
    /// If there is no such process any more.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(rustix::process::kill_process(self.pid, Signal::TERM)?)
    }

    /// Sends SIGKILL to the server alone.
    ///
    /// # Errors
    /// If there is no such process any more.
    pub fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::kill_process(self.pid, Signal::KILL)?)
    }

    /// Waits for the server's end: its exit code, or the negative number of the signal that ended it.
    ///
    /// # Errors
    /// If that takes longer than a minute.
    pub async fn ended(&mut self) -> anyhow::Result<i32> {
        let status: ExitStatus = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .context("the stub engine does not end")??;
        status
            .code()
            .or_else(|| status.signal().map(|signal| -signal))
            .context("neither code nor signal")
    }
}

impl Drop for StubEngine {
    fn drop(&mut self) {
        // The whole group, for a child that outlived the server; an error means that nobody is left.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }
}

/// The `stub-engine` program of this source tree.
///
/// # Errors
/// If it does not compile.
pub fn binary() -> anyhow::Result<PathBuf> {
    built::program("stub-engine")
}
