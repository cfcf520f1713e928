//! A throwaway GPU server: the real sshd and the real nginx on loopback, with everything they write in one scratch
//! folder, as the user that runs the test.
//!
//! Whatever starts on this server carries `TESTBED=<its scratch folder>` in its environment, so that the end of the
//! server is the end of every process that was started on it, however detached, and of no other process.

pub(crate) mod faults;
mod incumbent;
mod nginx;
mod ports;
pub(crate) mod processes;
pub(crate) mod programs;
pub(crate) mod sshd;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::Context;
use tempfile::TempDir;

pub use self::faults::{Aim, Deed};
pub use self::incumbent::{ByHand, Wrapped};
pub use self::ports::{free_listener, free_port};
use self::processes::Owner;
pub(crate) use self::processes::parent_of;
use self::sshd::Keys;

/// Name of the environment variable that marks what was started on a server; its value is the scratch folder.
pub const MARK: &str = "TESTBED";

/// The ports of one server, all free when it was started and below the range of outgoing connections.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Where nginx listens in the default file.
    pub nginx: u16,
    /// Where sshd listens.
    pub ssh: u16,
    /// Port of slot a; nothing listens there at first.
    pub a: u16,
    /// Port of slot b; nothing listens there at first.
    pub b: u16,
}

/// What may differ from one throwaway server to the next.
pub struct ServerSpec {
    /// Text of the included file that holds the upstream. Default: [`default_upstream_file`].
    pub upstream_file: Box<dyn Fn(Ports) -> String + Send>,
    /// Lines for nginx's main context, as `worker_shutdown_timeout 1s;`.
    pub main_lines: String,
    /// Lines for nginx's http context.
    pub http_lines: String,
    /// User and group id that the whole of nginx runs as; only root can choose another than its own. Whatever a
    /// configuration test run by root finds good, such a master may be unable to load.
    pub nginx_uid: Option<u32>,
    /// Whether the agents of this server can be struck by [`GpuServer::strike`] and [`GpuServer::set_clock`].
    pub faults: bool,
    /// Variables of every ssh session, without blanks.
    pub session_env: Vec<(String, String)>,
    /// Where sshd listens: another address than loopback's is reached by containers too.
    pub ssh_address: Ipv4Addr,
    /// More lines of sshd's configuration.
    pub ssh_lines: String,
}

impl Default for ServerSpec {
    fn default() -> Self {
        Self {
            upstream_file: Box::new(default_upstream_file),
            main_lines: String::new(),
            http_lines: String::new(),
            nginx_uid: None,
            faults: false,
            session_env: Vec::new(),
            ssh_address: Ipv4Addr::LOCALHOST,
            ssh_lines: String::new(),
        }
    }
}

/// The nginx file of a small team: one upstream `llm` on slot a, streaming on, comments and keepalive in place.
pub fn default_upstream_file(ports: Ports) -> String {
    let Ports { nginx, a, .. } = ports;
    format!(
        "upstream llm {{
    server 127.0.0.1:{a};      # comments, weights, keepalive and the rest of the file stay as they are
    keepalive 32;
}}
server {{
    listen 127.0.0.1:{nginx};
    location / {{
        proxy_pass http://llm;
        proxy_http_version 1.1;  proxy_set_header Connection \"\";
        proxy_buffering off;     proxy_read_timeout 600s;
    }}
}}
"
    )
}

/// A running throwaway server. Dropping it ends it; [`GpuServer::stop`] also says whether that worked.
pub struct GpuServer {
    scratch: TempDir,
    ports: Ports,
    keys: Keys,
    nginx_command: Vec<String>,
    bash: PathBuf,
    sshd: Option<Child>,
}

impl GpuServer {
    /// Starts sshd and nginx and returns when both accept connections.
    ///
    /// # Errors
    /// If a program is missing (the message names the Debian package), or one of them does not come up.
    pub fn start(spec: ServerSpec) -> anyhow::Result<Self> {
        let bash = programs::find("bash")?;
        let nginx = programs::find("nginx")?;
        let scratch = tempfile::Builder::new()
            .prefix("gpu-")
            .tempdir_in("/tmp")
            .context("no scratch folder under /tmp")?;
        let ports =
            Ports { nginx: free_port()?, ssh: free_port()?, a: free_port()?, b: free_port()? };
        for folder in ["ssh", "run", "logs", "temp", "state", "home", "bin"] {
            fs::create_dir(scratch.path().join(folder))?;
        }
        let ssh = SocketAddrV4::new(spec.ssh_address, ports.ssh);
        let keys = Keys::make(scratch.path(), ssh)?;
        let nginx_command = nginx::command(&nginx, scratch.path());
        // From here on a failure drops the server, and that ends what already runs.
        let mut server = Self { scratch, ports, keys, nginx_command, bash, sshd: None };
        let mut env = String::new();
        if spec.faults {
            faults::make(server.scratch())?;
            env = faults::environment(server.scratch(), &server.state_dir()).join(" ");
        }
        env.extend(spec.session_env.iter().map(|(name, value)| format!(" {name}={value}")));
        server.sshd = Some(sshd::start(server.scratch(), ssh, (&env, &spec.ssh_lines))?);
        nginx::start(&server, &spec)?;
        Ok(server)
    }

    /// The current user's name, `@`, and where sshd listens: `user@127.0.0.1`.
    pub fn ssh_host(&self) -> &str {
        &self.keys.host
    }

    /// Port of sshd.
    pub fn ssh_port(&self) -> u16 {
        self.ports.ssh
    }

    /// Text of an ed25519 private key without passphrase that may log in.
    pub fn private_key(&self) -> &str {
        &self.keys.private_key
    }

    /// A `known_hosts` file: one line `[127.0.0.1]:port type key` for each type of host key.
    pub fn known_hosts(&self) -> &str {
        &self.keys.known_hosts
    }

    /// Address of nginx, as in the default upstream file.
    pub fn nginx_addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.nginx))
    }

    /// How this nginx is called: program, `-c` and `-p`, to which `-t` or `-s reload` can be added.
    pub fn nginx_command(&self) -> &[String] {
        &self.nginx_command
    }

    /// The included file that holds the upstream.
    pub fn nginx_config(&self) -> PathBuf {
        nginx::upstream_path(self.scratch())
    }

    /// nginx's error log.
    pub fn error_log(&self) -> PathBuf {
        nginx::error_log(self.scratch())
    }

    /// An empty folder in scratch for the state of what is under test.
    pub fn state_dir(&self) -> PathBuf {
        self.scratch().join("state")
    }

    /// Puts a script in the first folder of every session's `PATH`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put_program(&self, name: &str, script: &str) -> anyhow::Result<()> {
        let file = self.scratch().join("bin").join(name);
        fs::write(&file, script)?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
    }

    /// The ports of slots a and b.
    pub fn slot_ports(&self) -> (u16, u16) {
        (self.ports.a, self.ports.b)
    }

    /// All ports of this server.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The scratch folder, short enough for sockets in it.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The environment entry for programs that a test starts itself and that should end with this server.
    pub fn mark(&self) -> (&'static str, String) {
        (MARK, self.scratch().display().to_string())
    }

    /// Process id of nginx's master.
    ///
    /// # Errors
    /// If there is no readable pid file.
    pub fn nginx_master(&self) -> anyhow::Result<u32> {
        nginx::master(self.scratch())
    }

    /// Process ids of all workers of the master, those that shut down included, in ascending order.
    ///
    /// # Errors
    /// If there is no readable pid file.
    pub fn nginx_workers(&self) -> anyhow::Result<Vec<u32>> {
        Ok(processes::children(self.nginx_master()?))
    }

    /// Stops nginx at once, with whatever it was doing.
    ///
    /// # Errors
    /// If it does not run, or does not end.
    pub fn stop_nginx(&self) -> anyhow::Result<()> {
        nginx::stop(self)
    }

    /// Starts nginx again on the files that are there.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_nginx(&self) -> anyhow::Result<()> {
        nginx::start_again(self)
    }

    /// Sets the clock of whatever is started on this server over ssh, so many seconds from the true time. Times since the boot go
    /// on as they do where the clock of a machine is set.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn set_clock(&self, seconds: i64) -> anyhow::Result<()> {
        faults::set_clock(self.scratch(), seconds)
    }

    /// Strikes the next agents of this server; `None` lets them live.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn strike(&self, aim: Option<Aim>) -> anyhow::Result<()> {
        faults::order(self.scratch(), aim)
    }

    /// Has the agents of this server note from now on what they bring to the disk.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn note_disk(&self) -> anyhow::Result<()> {
        faults::note_disk(self.scratch())
    }

    /// What they have noted, in turn.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn deeds(&self) -> anyhow::Result<Vec<Deed>> {
        faults::deeds(self.scratch())
    }

    /// What was started on this server (sessions, incumbents, whatever came of them) and still runs, one line each:
    /// `pid: command line`.
    pub fn leftovers(&self) -> Vec<String> {
        leftovers(self.scratch())
    }

    /// Ends nginx, sshd and every process that was started on this server, and removes the scratch folder.
    ///
    /// # Errors
    /// If a process or a file is still there afterwards; it is named.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if let Some(mut sshd) = self.sshd.take() {
            sshd.kill().context("sshd cannot be killed")?;
            sshd.wait().context("sshd cannot be reaped")?;
        }
        processes::end_all(&Owner::of(self.scratch()))?;
        match fs::remove_dir_all(self.scratch()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
                .with_context(|| format!("{} cannot be removed", self.scratch().display())),
            _ => Ok(()),
        }
    }
}

impl Drop for GpuServer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            // A test that fails already must not abort on top, yet what is left behind has to be seen.
            let _ = writeln!(std::io::stderr(), "throwaway server: {error:#}");
        }
    }
}

/// [`GpuServer::leftovers`] by scratch folder, for after the server's end.
pub fn leftovers(scratch: &Path) -> Vec<String> {
    let owner = Owner::of(scratch);
    processes::all()
        .filter(|&pid| owner.marked(pid))
        .map(|pid| format!("{pid}: {}", processes::command_line(pid)))
        .collect()
}

/// Process ids of all that listen on TCP `port`, on any address, in ascending order: two that share a port are both
/// there. Processes of other users are seen by root only.
///
/// # Errors
/// If the kernel's tables cannot be read.
pub fn listeners(port: u16) -> anyhow::Result<Vec<u32>> {
    processes::listeners(port)
}
