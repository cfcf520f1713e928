//! A real Docker Engine of our own: its own data, socket and containerd namespace, no firewall rules. It shares nothing
//! with one that may run on the machine, and ends with this value.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::PATIENCE;

/// By path: other programs of this name may come first in `PATH`, and need not speak to an Engine of ours.
const DOCKER: &str = "/usr/bin/docker";

/// Between two looks whether it answers, or has ended: a destructor cannot await.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running Engine.
pub struct Engine {
    daemon: Child,
    folder: TempDir,
}

impl Engine {
    /// Starts one that keeps images, containers and build cache in `data` and gives containers no network but the
    /// machine's own; returns when it answers.
    ///
    /// # Errors
    /// If dockerd is missing or does not come up.
    pub fn start(data: &Path) -> Result<Self> {
        // Short, for sockets have short names.
        let folder = tempfile::Builder::new().prefix("docker-").tempdir_in("/tmp")?;
        fs::create_dir_all(data)?;
        let at = |name: &str| folder.path().join(name);
        let namespace = at("").file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = fs::File::create(at("log"))?;
        let mut daemon = privileged("dockerd");
        daemon.arg("--data-root").arg(data).arg("--exec-root").arg(at("exec"));
        daemon.arg("--pidfile").arg(at("pid"));
        daemon.arg("--host").arg(format!("unix://{}", at("socket").display()));
        daemon.arg("--group").arg(rustix::process::getegid().as_raw().to_string());
        daemon.args(["--containerd-namespace", &namespace]);
        daemon.args(["--containerd-plugins-namespace", &format!("{namespace}-plugins")]);
        daemon.args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]);
        let daemon = daemon
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("dockerd is missing (Debian: docker.io)")?;
        let mut engine = Self { daemon, folder };
        engine.until_it_answers()?;
        Ok(engine)
    }

    fn until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.daemon.try_wait()?;
            let answers = UnixStream::connect(self.socket()).is_ok();
            if answers && ended.is_none() {
                return Ok(());
            }
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            ensure!(ended.is_none(), "dockerd ended:\n{}", log());
            ensure!(Instant::now() < deadline, "dockerd does not answer:\n{}", log());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The value of `DOCKER_HOST` with which clients find it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A command of its client.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = docker(args);
        command.env("DOCKER_HOST", self.host());
        command
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(pid) = Pid::from_raw(self.daemon.id().cast_signed()) else { return };
        // It ends its containers and containerd first. As another user's sudo cannot be signalled by us, sudo does.
        if kill_process(pid, Signal::TERM).is_err() {
            let _gone = privileged("kill").args(["-TERM", &self.daemon.id().to_string()]).status();
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
        // dockerd leaves the namespace of the machine's own network mounted. What root wrote there, only root removes.
        for mounted in mounts_below(self.folder.path()) {
            let _gone = privileged("umount").arg(mounted).status();
        }
        let _gone = privileged("rm").arg("-rf").arg(self.folder.path().join("exec")).status();
    }
}

/// Mount points below a folder (proc(5)), the last mounted first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(folder)).collect();
    below.reverse();
    below
}

/// A command of Docker's client, for the Engine that `DOCKER_HOST` names.
pub fn docker<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(DOCKER);
    command.args(args).env("DOCKER_BUILDKIT", "1").stdin(Stdio::null());
    command
}

/// What the command prints.
///
/// # Errors
/// If it fails; with what it said.
pub fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A command as root.
pub fn privileged(program: &str) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
