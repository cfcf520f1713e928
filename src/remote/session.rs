//! A connection to the server: one authenticated ssh that several commands share, or none at all for this machine.
//!
//! Host keys are always checked strictly, and nothing is ever asked. Every file of ours (configuration, key, known
//! hosts, control socket) is in one private folder that goes when the connection goes.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::error::RemoteError;
use super::exec::{self, Exec};
use super::key;
use super::known_hosts::KnownHosts;
use super::program::{self, ProgramError};
use super::public_key;
use super::refusal::{self, Refusal};
use crate::model::secret::Secret;
use crate::model::target::{HostAddr, SSH_PORT, Target, check_jump};

/// From the first packet to an authenticated connection, jumps included: well above a slow VPN with a cold DNS, and
/// far below what a person or a job would wait for nothing.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(45);

/// ssh's bound in seconds per hop, so that it can say itself which hop it was before [`CONNECT_LIMIT`] ends it.
const CONNECT_TIMEOUT_S: u32 = 20;

/// Seconds of silence after which the server is asked whether it is there. Below a minute, the shortest idle timeout
/// of NAT gateways that is met in practice.
const ALIVE_INTERVAL_S: u32 = 10;

/// Questions without an answer until the connection counts as lost: half a minute in all. Another one costs a second, and
/// a server that waits for the word of `verify` has no more than minutes.
const ALIVE_COUNT: u32 = 3;

/// Seconds without a command after which ssh ends by itself: for the case that this process was killed and could not
/// end it.
const ORPHAN_LIMIT_S: u32 = 300;

/// ssh ends at once when told to.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// How long the end of a session takes to reach the server: several round trips to another continent.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries whether it has.
const END_LOOK: Duration = Duration::from_millis(50);

/// The longest folder whose control socket still has a name that fits: `sun_path` has 108 bytes (unix(7)), ssh binds
/// it with a suffix of 17 characters first, and our part of the path needs 20.
const LONGEST_FOLDER: usize = 108 - 17 - 20 - 1;

/// What proves who we are, and who the server is.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The private key; `None`: the user's own agent, keys and ssh configuration.
    pub key: Option<Secret>,
    /// Lines of known_hosts; `None`: the user's own and the machine's.
    pub known_hosts: Option<String>,
}

/// A connection to the server.
#[derive(Debug)]
pub struct Session {
    name: String,
    reach: Reach,
}

#[derive(Debug)]
enum Reach {
    Local,
    Ssh(Master),
}

/// The ssh process that holds the connection. It ends with this value.
#[derive(Debug)]
struct Master {
    mux: Arc<openssh::Session>,
    control: PathBuf,
    /// `None` once it was told to end.
    folder: Option<TempDir>,
}

impl Session {
    /// Connects and authenticates; for [`HostAddr::Local`] there is nothing to do.
    ///
    /// # Errors
    /// If key or known hosts cannot be used, or the server is not reached, not trusted, or does not trust us.
    pub async fn open(target: &Target, credentials: Credentials) -> Result<Self, RemoteError> {
        Self::open_within(target, credentials, CONNECT_LIMIT).await
    }

    pub(super) async fn open_within(
        target: &Target,
        credentials: Credentials,
        limit: Duration,
    ) -> Result<Self, RemoteError> {
        let name = target.host.to_string();
        let HostAddr::Ssh { user, host } = &target.host else {
            return Ok(Self { name, reach: Reach::Local });
        };

        let folder = private_folder()?;
        let (config, fingerprint) = configure(folder.path(), target, host, credentials).await?;
        let control = folder.path().join("c");
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(config).arg("-S").arg(&control).args(["-M", "-f", "-N", "-o"]);
        ssh.arg(format!("ControlPersist={ORPHAN_LIMIT_S}"));
        if let Some(user) = user {
            ssh.args(["-l", user]);
        }
        if target.port != SSH_PORT {
            ssh.args(["-p", &target.port.to_string()]);
        }
        if let Some(jump) = &target.jump {
            ssh.arg("-o")
                .arg(format!("ProxyCommand={}", through(jump, folder.path())))
                .env("SHELL", "/bin/sh");
        }
        ssh.args(["--", host]);

        match launch(ssh, folder.path(), limit).await? {
            Launched::Connected => {
                let mux = Arc::new(openssh::Session::resume_mux(control.clone().into(), None));
                Ok(Self { name, reach: Reach::Ssh(Master { mux, control, folder: Some(folder) }) })
            }
            Launched::Refused(log) => Err(explain(refusal::read(&log), target, fingerprint).await),
            Launched::TooSlow => Err(RemoteError::Slow { name, limit }),
        }
    }

    /// The server as the user named it: `deploy@gpu-1.example.com`, or `local`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the connection. What runs on the server does not notice more than the end of its streams.
    pub async fn close(self) {
        let Reach::Ssh(mut master) = self.reach else { return };
        if let Some(folder) = master.folder.take() {
            // A connection that is already gone cannot be ended, and need not.
            let _gone = program::run("ssh", &farewell(&master.control), CLOSE_LIMIT).await;
            drop(folder);
        }
    }

    /// Starts one line with a shell on the server.
    pub(super) async fn exec(&self, line: &str) -> Result<Exec, RemoteError> {
        match &self.reach {
            Reach::Local => exec::local(line)
                .map_err(|source| ProgramError::Start { program: "sh", source }.into()),
            Reach::Ssh(master) => exec::remote(&master.mux, line)
                .await
                .map_err(|source| RemoteError::NoChannel { name: self.name.clone(), source }),
        }
    }

    /// The same, where an earlier line has just ended here: an sshd that lets one session pass learns of that a moment later.
    pub(super) async fn exec_next(&self, line: &str) -> Result<Exec, RemoteError> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let refused = match self.exec(line).await {
                Err(error) if error.is_refused_session() => error,
                other => return other,
            };
            if Instant::now() > deadline {
                return Err(refused);
            }
            sleep(END_LOOK).await;
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if self.folder.is_some() {
            let _gone = std::process::Command::new("ssh")
                .args(farewell(&self.control))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The order to end. ssh wants a host's name even here, where none is needed.
fn farewell(control: &Path) -> [&OsStr; 7] {
    let word = OsStr::new;
    [
        word("-F"),
        word("none"),
        word("-S"),
        control.as_os_str(),
        word("-O"),
        word("exit"),
        word("unnamed"),
    ]
}

enum Launched {
    Connected,
    Refused(String),
    TooSlow,
}

/// Runs ssh until it has gone to the background, authenticated, or has given up.
async fn launch(mut ssh: Command, folder: &Path, limit: Duration) -> Result<Launched, RemoteError> {
    let log = folder.join("log");
    let file = File::options().create(true).append(true).open(&log).map_err(in_folder(&log))?;
    // A file, not a pipe: a jump's ssh holds it open for as long as the connection lasts. And a group of its own, so
    // that Ctrl-C in a terminal is ours to answer, and so that a jump's ssh ends with it.
    let mut child = ssh
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProgramError::Start { program: "ssh", source })?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let Ok(ended) = tokio::time::timeout(limit, child.wait()).await else {
        let _gone = group.map(|group| kill_process_group(group, Signal::TERM));
        return Ok(Launched::TooSlow);
    };
    if ended.map_err(in_folder(&log))?.success() {
        return Ok(Launched::Connected);
    }
    let log = std::fs::read(&log).map_err(in_folder(&log))?;
    Ok(Launched::Refused(String::from_utf8_lossy(&log).into_owned()))
}

/// What ssh's `ProxyJump` does, by hand: beside `ControlPersist` it throws away what the jump's ssh says, and so why it
/// failed. The values were checked; a `%` is the zone of an IPv6 address.
fn through(jump: &str, folder: &Path) -> String {
    let folder = folder.display();
    let (earlier, last) = match jump.rsplit_once(',') {
        Some((earlier, last)) => (format!("-J {earlier} "), last),
        None => (String::new(), jump),
    };
    let hops = format!("{earlier}ssh://{last}").replace('%', "%%");
    format!("ssh -F '{folder}/config' -W '[%h]:%p' {hops} 2>>'{folder}/log'")
}

fn in_folder(path: &Path) -> impl FnOnce(io::Error) -> RemoteError {
    let path = path.to_owned();
    move |source| RemoteError::Folder { path, source }
}

/// A short name of plain characters: it goes into a socket's address, ssh's configuration and a shell's command line.
pub(super) fn private_folder() -> Result<TempDir, RemoteError> {
    let usual = std::env::temp_dir();
    let fits = usual.to_str().is_some_and(|path| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
        path.len() <= LONGEST_FOLDER && path.bytes().all(is_plain)
    });
    let parent = if fits { usual } else { PathBuf::from("/tmp") };
    tempfile::Builder::new()
        .prefix("model-swap-")
        .rand_bytes(6)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&parent)
        .map_err(in_folder(&parent))
}

/// Writes ssh's configuration; gives its path and the fingerprint of the key, if one was given.
///
/// A file and not options, because a jump's ssh is given the file and never the options.
pub(super) async fn configure(
    folder: &Path,
    target: &Target,
    host: &str,
    credentials: Credentials,
) -> Result<(PathBuf, Option<String>), RemoteError> {
    if let Some(jump) = &target.jump {
        check_jump(jump).map_err(RemoteError::Jump)?;
    }
    let mut config = format!(
        "BatchMode yes\nStrictHostKeyChecking yes\nUpdateHostKeys no\nConnectTimeout {CONNECT_TIMEOUT_S}\n\
         ConnectionAttempts 1\nServerAliveInterval {ALIVE_INTERVAL_S}\nServerAliveCountMax {ALIVE_COUNT}\n\
         LogLevel INFO\nClearAllForwardings yes\nForwardAgent no\nForwardX11 no\nPermitLocalCommand no\n\
         RemoteCommand none\nRequestTTY no\n"
    );
    let own_only = credentials.key.is_some() && credentials.known_hosts.is_some();
    let mut fingerprint = None;
    if let Some(key) = &credentials.key {
        let key = key::write(folder, key).await?;
        let path = key.path.display();
        let _ = write!(config, "IdentityFile \"{path}\"\nIdentitiesOnly yes\nIdentityAgent none\n");
        fingerprint = Some(key.public.fingerprint);
    }
    if let Some(text) = &credentials.known_hosts {
        let path = folder.join("known_hosts");
        let pinned = KnownHosts::parse(text)?.file(host, target.port);
        std::fs::write(&path, pinned).map_err(in_folder(&path))?;
        let _ = write!(
            config,
            "UserKnownHostsFile \"{}\"\nGlobalKnownHostsFile /dev/null\n",
            path.display()
        );
    }
    if !own_only {
        // The first value wins, so these can add and never loosen.
        config.push_str("Include ~/.ssh/config\nInclude /etc/ssh/ssh_config\n");
    }
    let path = folder.join("config");
    std::fs::write(&path, config).map_err(in_folder(&path))?;
    Ok((path, fingerprint))
}

/// The error for a person; for a host key, the server is asked what it offers.
async fn explain(refusal: Refusal, target: &Target, fingerprint: Option<String>) -> RemoteError {
    let name = target.host.to_string();
    match refusal {
        Refusal::HostKey { name: known_as, fault } => {
            let known_as = known_as.unwrap_or(name);
            let (host, port) = split_known_name(&known_as);
            // Behind a jump another machine may have this address here, and its key must not be suggested.
            let direct = target.jump.as_deref().is_none_or(|jump| first_hop(jump) == host);
            let offered = if direct { public_key::scan(&host, port).await } else { Vec::new() };
            RemoteError::HostKey { known_as, fault, offered }
        }
        Refusal::Denied { said } => RemoteError::Denied { said, fingerprint },
        Refusal::Unresolved { said } => RemoteError::Unresolved { name, said },
        Refusal::Unreachable { said } => RemoteError::Unreachable { name, port: target.port, said },
        Refusal::Other { said } => RemoteError::Refused { name, said },
    }
}

/// Host and port of a name in known_hosts: `gpu-1` or `[gpu-1]:2222`.
fn split_known_name(name: &str) -> (String, u16) {
    name.strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"))
        .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)))
        .unwrap_or_else(|| (name.to_owned(), SSH_PORT))
}

/// The host that a list of jumps begins with.
pub(super) fn first_hop(jump: &str) -> &str {
    let hop = jump.split(',').next().unwrap_or_default();
    let host = hop.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}
