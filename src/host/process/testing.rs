//! Real processes for tests, each ended when its test ends.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::model::ids::{Port, ProcessId};

/// Bound on what takes milliseconds, for a machine that is busy.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// A child that is killed and reaped when dropped.
pub(super) struct Process(pub(super) Child, ProcessId);

impl Process {
    /// Starts a command.
    pub(super) fn start(argv: &[&str], stdin: impl Into<Stdio>) -> Self {
        Self::spawn(Command::new(argv[0]).args(&argv[1..]).stdin(stdin))
    }

    pub(super) fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        let pid = child.id().cast_signed();
        // Not through `row`: it may have ended already.
        let start = procfs::process::Process::new(pid).unwrap().stat().unwrap().starttime;
        Self(child, ProcessId { pid, start })
    }

    pub(super) fn id(&self) -> ProcessId {
        self.1
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes that are nobody's child any more, killed when dropped.
pub(super) struct Strays(pub(super) Vec<ProcessId>);

impl Drop for Strays {
    fn drop(&mut self) {
        for stray in &self.0 {
            let _ = super::stop::signal(*stray, rustix::process::Signal::KILL, "kill");
        }
    }
}

/// A listening socket to be handed to a child, and its port.
pub(super) fn socket() -> (OwnedFd, Port) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port(listener.local_addr().unwrap().port());
    (listener.into(), port)
}

/// Waits until something is so.
pub(super) async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the process runs a program of that name, given by its argv: before its exec it is a copy of its parent.
pub(super) async fn until_runs(process: ProcessId, name: &str) {
    let first = format!("{name}\0");
    let runs = || {
        std::fs::read_to_string(format!("/proc/{process}/cmdline"))
            .ok()
            .filter(|argv| argv.starts_with(&first))
    };
    until(&format!("{process} runs {name}"), runs).await;
}
