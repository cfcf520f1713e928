//! A throwaway GPU server with systemd: Debian in a container of systemd-nspawn, with sshd, nginx and the model as units
//! of its own, a user who may use sudo, and an address in a network of the test's own. It reboots, and loses its power.
//!
//! Only root can have one. When the test's process ends, however it ends, the guest ends with it.

mod docker;
mod elevated;
mod files;
mod groups;
mod lab;
mod machine;
mod root;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

pub use self::docker::IMAGE;
pub use self::elevated::ran_as_root;
pub use self::files::{ENGINE, GPUS, UPSTREAM_FILE, upstream_file};
use self::files::{Keys, Seed, engine_argv};
pub use self::lab::Lab;
use self::lab::Port;
use self::machine::Machine;
use crate::server::{Aim, faults};
use crate::service::Site;
use crate::{PATIENCE, end};

/// The unit of the model that serves before anything else is known of it.
pub const INCUMBENT: &str = "vllm.service";
/// The user who logs in.
pub const USER: &str = "deploy";
/// Ports of the two slots.
pub const SLOTS: (u16, u16) = (8001, 8002);

/// `PATH` of programs that are run in a guest.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between two looks at a machine that boots: it tells nobody outside.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What starts models on a server, and keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The first one is the unit [`INCUMBENT`].
    Systemd,
    /// The first one is the container [`COMPOSED`](crate::docker::COMPOSED). No other server has an Engine.
    Docker,
}

/// What may differ from one guest to the next.
pub struct GuestSpec {
    /// Its host name.
    pub name: String,
    /// What keeps its incumbent.
    pub runtime: Runtime,
    /// The model that serves, and more flags for it; `None`: there is none.
    pub incumbent: Option<(String, String)>,
    /// Whether the agents that come over ssh can be struck by [`Guest::strike`].
    pub faults: bool,
    /// More files, or others in place of those that are always there: path, mode, text. All are root's.
    pub files: Vec<(String, u32, String)>,
}

impl GuestSpec {
    /// A server on which no model serves.
    pub fn bare() -> Self {
        let name = "gpu-1".to_owned();
        let (runtime, faults) = (Runtime::Systemd, false);
        Self { name, runtime, incumbent: None, faults, files: Vec::new() }
    }

    /// A server whose unit [`INCUMBENT`] serves a model in slot a.
    pub fn serving(model: &str) -> Self {
        Self { incumbent: Some((model.to_owned(), String::new())), ..Self::bare() }
    }
}

/// A guest that is up, or was. Dropping it pulls its plug and removes what it wrote.
pub struct Guest {
    keys: Keys,
    machine: Machine,
    port: Port,
    scratch: TempDir,
    runtime: Runtime,
    /// Its processes end with the thread that started them.
    _thread: PhantomData<*const ()>,
}

impl Guest {
    /// Makes a guest in the network and returns when it has booted.
    ///
    /// # Errors
    /// If something is missing (the message says how to get it), or it does not come up.
    pub async fn boot(lab: &Lab, spec: GuestSpec) -> Result<Self> {
        let root = root::find()?;
        let scratch = tempfile::Builder::new().prefix("guest-").tempdir_in("/tmp")?;
        let port = lab.attach()?;
        let seed = Seed::under(&scratch.path().join("upper"));
        let keys = files::write(&seed, &spec, port.address)?;
        files::keep(&keys, scratch.path())?;
        let mut machine = Machine::new(&root, scratch.path(), &spec.name, port.path())?;
        let runtime = spec.runtime;
        if runtime == Runtime::Docker {
            machine.with(docker::arguments(scratch.path())?);
        }
        let mut guest = Self { keys, machine, port, scratch, runtime, _thread: PhantomData };
        guest.power_on().await?;
        if runtime == Runtime::Docker {
            guest.import_image().await?;
            if let Some((model, flags)) = &spec.incumbent {
                guest.compose(model, flags).await?;
            }
        }
        Ok(guest)
    }

    /// What keeps its models.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// Its address in the network.
    pub fn address(&self) -> Ipv4Addr {
        self.port.address
    }

    /// Where clients reach its nginx.
    pub fn nginx_addr(&self) -> SocketAddr {
        (self.address(), 80).into()
    }

    /// `deploy@` its address.
    pub fn ssh_host(&self) -> String {
        format!("{USER}@{}", self.address())
    }

    /// Text of a private key that logs the user in.
    pub fn private_key(&self) -> &str {
        &self.keys.private_key
    }

    /// Its line of `known_hosts`.
    pub fn known_hosts(&self) -> &str {
        &self.keys.known_hosts
    }

    /// What a configuration says of it. The agent works as root, and state is where root keeps it.
    pub fn site(&self) -> Site {
        let gpus = match self.runtime {
            Runtime::Systemd => GPUS,
            // Its Engine has none of NVIDIA's to give.
            Runtime::Docker => [""; 2],
        };
        Site {
            host: self.ssh_host(),
            ssh_port: None,
            slots: [(SLOTS.0, gpus[0].to_owned()), (SLOTS.1, gpus[1].to_owned())],
            engine: ENGINE.to_owned(),
            env: String::new(),
            state_dir: None,
            nginx_config: UPSTREAM_FILE.into(),
            nginx_command: None,
            probe: "http://127.0.0.1/v1/models".to_owned(),
        }
    }

    /// Process id, on this machine, of its PID 1.
    ///
    /// # Errors
    /// If it is down.
    pub fn pid1(&self) -> Result<u32> {
        self.machine.pid1().context("the guest is down")
    }

    /// Where a file of the running guest is seen from this machine.
    ///
    /// # Errors
    /// If it is down.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.pid1()?)))
    }

    /// Runs a program in it, as root, and returns its standard output.
    ///
    /// # Errors
    /// If it fails: with its standard error; or if the guest is down.
    pub async fn run(&self, argv: &[&str]) -> Result<String> {
        let output = ended(&mut self.command(argv)?).await?;
        ensure!(
            output.status.success(),
            "{argv:?} in the guest: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a line with the shell of the user who logs in, over ssh, as a person does.
    ///
    /// # Errors
    /// If it fails: with its standard error.
    pub async fn ssh(&self, line: &str) -> Result<String> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"])
            .arg(self.scratch.path().join("login"))
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.scratch.path().join("known").display()))
            .args([&self.ssh_host(), line])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = ended(&mut ssh).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line:?} over ssh: {}: {said}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a line with a shell as the user who logs in, in no session: what it leaves behind stays, whatever becomes of
    /// sessions.
    ///
    /// # Errors
    /// If it fails: with its standard error.
    pub async fn run_as_user(&self, line: &str) -> Result<String> {
        let home = format!("HOME=/home/{USER}");
        let line = format!("cd && {line}");
        let user = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"];
        self.run(&[&user[..], &["env", &home, "sh", "-c", &line]].concat()).await
    }

    /// Strikes the next agents that come over ssh; `None` lets them live. What systemd starts nothing strikes.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn strike(&self, aim: Option<Aim>) -> Result<()> {
        faults::order(&self.file(files::FAULTS)?, aim)
    }

    /// Starts a model the way a person does who is logged in, and leaves it behind. Returns its process id there.
    ///
    /// # Errors
    /// If that fails; that the engine does shows nowhere but in its log.
    pub async fn start_by_hand(&self, model: &str, port: u16) -> Result<u32> {
        Ok(self.ssh(&left_behind_line(model, port)).await?.trim().parse()?)
    }

    /// Starts a model as the user who logs in, in no session.
    ///
    /// # Errors
    /// As [`Guest::start_by_hand`].
    pub async fn start_as_user(&self, model: &str, port: u16) -> Result<u32> {
        Ok(self.run_as_user(&left_behind_line(model, port)).await?.trim().parse()?)
    }

    /// Process ids, in the guest, of all that listen on TCP `port` there.
    ///
    /// # Errors
    /// If the guest cannot say.
    pub async fn listeners(&self, port: u16) -> Result<Vec<u32>> {
        let shown = self.run(&["ss", "-Hltnp", &format!("sport = :{port}")]).await?;
        let pids = shown.split("pid=").skip(1).filter_map(|rest| rest.split([',', ')']).next());
        Ok(pids.map(str::parse).collect::<Result<_, _>>()?)
    }

    /// `systemctl reboot` from within; returns when it is up again.
    ///
    /// # Errors
    /// If it does not come back.
    pub async fn reboot(&mut self) -> Result<()> {
        let before = self.pid1()?;
        // It may go down before it has answered.
        let _answer = ended(&mut self.command(&["systemctl", "reboot"])?).await?;
        self.until("it goes down", |guest| Ok(guest.machine.pid1() != Some(before))).await?;
        self.until_booted().await
    }

    /// SIGKILL for its PID 1: no process of it gets another instruction. It stays off.
    ///
    /// # Errors
    /// If it is down already.
    pub async fn power_loss(&mut self) -> Result<()> {
        machine::signal(self.pid1()?, Signal::KILL)?;
        self.machine.until_off().await
    }

    /// Starts what is off, on the disk that it had; returns when it has booted.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn power_on(&mut self) -> Result<()> {
        self.machine.start()?;
        self.until_booted().await
    }

    /// Shuts it down in order and removes what it wrote.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn stop(mut self) -> Result<()> {
        machine::signal(self.machine.supervisor().context("the guest is down")?, Signal::TERM)?;
        self.machine.until_off().await
    }

    fn command(&self, argv: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid1()?.to_string(), "--all", "--"]).args(argv);
        command.env_clear().env("PATH", PATH).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    async fn until_booted(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut question) = self.command(&["systemctl", "is-system-running", "--wait"]) {
                let said = ended(&mut question).await?.stdout;
                match String::from_utf8_lossy(&said).trim() {
                    // A unit that failed is the test's own business.
                    "running" | "degraded" => return Ok(()),
                    _ => {}
                }
            }
            if let Some(ended) = self.machine.ended()? {
                bail!("the guest did not boot ({ended}):\n{}", self.machine.console());
            }
            ensure!(Instant::now() < deadline, "it does not boot:\n{}", self.machine.console());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn until(&self, what: &str, met: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !met(self)? {
            ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// How a program ended, and what it said.
async fn ended(command: &mut Command) -> Result<Output> {
    let output = timeout(end::LIMIT, command.output()).await;
    Ok(output.with_context(|| format!("{command:?} does not end"))??)
}

/// How a person starts a model and leaves it behind; its process id is said.
fn left_behind_line(model: &str, port: u16) -> String {
    let argv = engine_argv(model, port).join(" ");
    format!("{{ nohup {argv} >llm.log 2>&1 </dev/null & echo $!; }}")
}

/// Whether a path is left of guests of this process: their scratch, their control groups. For after their end.
pub fn left_behind() -> Vec<PathBuf> {
    groups::left()
}

/// The folder as text, for command lines.
fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}
