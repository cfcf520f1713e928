//! A real Docker Engine of our own: its own data, socket and containerd namespace, no firewall rules. It shares nothing
//! with one that may run on the machine, and ends with this value.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
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
    bridge: Bridge,
}

/// A network of an Engine's own.
struct Bridge {
    name: String,
    /// Where containers on it find this machine.
    address: Ipv4Addr,
}

impl Engine {
    /// Starts one that keeps images, containers and build cache in `data`; returns when it answers. Its containers have a
    /// bridge of their own, on which it publishes ports, and which reaches nothing but this machine.
    ///
    /// # Errors
    /// If dockerd is missing or does not come up, or there can be no bridge.
    pub fn start(data: &Path) -> Result<Self> {
        fs::create_dir_all(data)?;
        Self::launch(folder()?, data)
    }

    /// Starts one with nothing in it but what is put there.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn empty() -> Result<Self> {
        let folder = folder()?;
        let data = folder.path().join("data");
        Self::launch(folder, &data)
    }

    fn launch(folder: TempDir, data: &Path) -> Result<Self> {
        let bridge = Bridge::make(folder.path())?;
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
        daemon.arg(format!("--bridge={}", bridge.name));
        // Published ports go through its proxies, which need no rule of the firewall.
        daemon.args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"]);
        let daemon = daemon
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("dockerd is missing (Debian: docker.io)")?;
        let mut engine = Self { daemon, folder, bridge };
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

    /// Where its containers find this machine.
    pub fn address(&self) -> Ipv4Addr {
        self.bridge.address
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
        let owned = ["exec", "data"].map(|name| self.folder.path().join(name));
        let _gone = privileged("rm").arg("-rf").args(owned).status();
    }
}

/// Short, for sockets have short names.
fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("docker-").tempdir_in("/tmp")?)
}

impl Bridge {
    /// One that is named after the folder, with a network that no other process's Engine has.
    fn make(folder: &Path) -> Result<Self> {
        let name = folder.to_string_lossy().rsplit('-').next().map(|id| format!("msd-{id}"));
        let name = name.context("the folder has no name")?;
        // One of the private networks that are the least in use, by the number of this process and of this bridge in it.
        static BRIDGES: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() * 8 + BRIDGES.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(172, 30, u8::try_from(number % 250)?, 1);
        let ip = |args: &[&str]| said(privileged("ip").args(args)).context("Debian: iproute2");
        ip(&["link", "add", &name, "type", "bridge"])?;
        let bridge = Self { name, address };
        ip(&["addr", "add", &format!("{address}/24"), "dev", &bridge.name])?;
        ip(&["link", "set", &bridge.name, "up"])?;
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _gone = privileged("ip").args(["link", "delete", &self.name]).status();
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

impl Engine {
    /// An image that holds a program with the libraries it needs, and starts it with `arguments` in front of a container's
    /// own.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn image_of(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let name = program.file_name().context("no program")?.to_string_lossy().into_owned();
        let image = format!("{name}:here");
        let linked = said(Command::new("ldd").arg(program))?;
        let mut files = vec![program.display().to_string()];
        files.extend(
            linked.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned),
        );
        let entrypoint = [&[files[0].as_str()], arguments].concat();
        let mut tar = Command::new("tar");
        // Libraries are often links, and a link alone is no library.
        tar.args(["--create", "--dereference", "--absolute-names"]).args(&files);
        let mut tar = tar.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stream = tar.stdout.take().context("a pipe is missing")?;
        let change = format!("ENTRYPOINT {entrypoint:?}");
        said(self.docker(["import", "--change", &change, "-", &image]).stdin(stream))?;
        ensure!(tar.wait()?.success(), "tar failed");
        Ok(image)
    }
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
