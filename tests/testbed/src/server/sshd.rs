//! The real sshd, with keys of its own.

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::MARK;
use super::processes::until;
use super::programs;

/// How long a banner may take: sshd sends it at once.
const BANNER_WITHIN: Duration = Duration::from_secs(2);

/// `PATH` of a session behind the server's own `bin`, where a test puts programs that this machine lacks.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// For every sshd of the tests: a development binary of tens of megabytes crosses hundreds of times, and the exchange of keys that
/// OpenSSH 9 prefers (`sntrup761`) costs each connection more than all that it then carries.
pub(crate) const CHEAP: &str = "KexAlgorithms curve25519-sha256
Ciphers aes128-gcm@openssh.com";

/// Who logs in how.
pub(super) struct Keys {
    /// `user@` the address.
    pub(super) host: String,
    /// Text of the private key that may log in.
    pub(super) private_key: String,
    /// One line for each host key.
    pub(super) known_hosts: String,
}

impl Keys {
    /// Makes the host keys and one authorised key under `scratch/ssh`.
    pub(super) fn make(scratch: &Path, at: SocketAddrV4) -> anyhow::Result<Self> {
        let keygen = programs::find("ssh-keygen")?;
        let folder = scratch.join("ssh");
        for (kind, name) in
            [("ed25519", "host_ed25519"), ("ecdsa", "host_ecdsa"), ("ed25519", "login")]
        {
            let path = folder.join(name).display().to_string();
            programs::run(&keygen, &["-q", "-t", kind, "-N", "", "-C", "testbed", "-f", &path])?;
        }
        fs::copy(folder.join("login.pub"), folder.join("authorized_keys"))?;
        let mut known_hosts = String::new();
        for name in ["host_ed25519.pub", "host_ecdsa.pub"] {
            let public = fs::read_to_string(folder.join(name))?;
            let mut words = public.split_whitespace();
            let (kind, key) =
                words.next().zip(words.next()).context("ssh-keygen wrote no public key")?;
            known_hosts.push_str(&format!("[{}]:{} {kind} {key}\n", at.ip(), at.port()));
        }
        let user = programs::run(&programs::find("id")?, &["-un"])?;
        Ok(Self {
            host: format!("{}@{}", user.trim(), at.ip()),
            private_key: fs::read_to_string(folder.join("login"))?,
            known_hosts,
        })
    }
}

/// Starts sshd as a child and returns when it greets. `env` is given to every session as well; `lines` are its own.
pub(super) fn start(
    scratch: &Path,
    at: SocketAddrV4,
    (env, lines): (&str, &str),
) -> anyhow::Result<Child> {
    let program = programs::find("sshd")?;
    if rustix::process::getuid().is_root() {
        // Where sshd, as root, jails its unprivileged half; a boot would have made it.
        fs::create_dir_all("/run/sshd").context("/run/sshd cannot be made")?;
    }
    let config = scratch.join("ssh/sshd_config");
    fs::write(&config, config_text(scratch, at, env) + lines)?;
    let log = scratch.join("logs/sshd.log");
    let mut child = Command::new(program)
        .arg("-D")
        .arg("-f")
        .arg(config)
        .arg("-E")
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(scratch.join("logs/sshd.err"))?)
        // Ctrl-C on a terminal is for the test, which then ends this server in order.
        .process_group(0)
        .spawn()?;
    let greets = until("sshd greets", || {
        if let Some(status) = child.try_wait()? {
            bail!("sshd ended at once ({status})");
        }
        Ok(greets(at))
    });
    greets.with_context(|| {
        let _ = child.kill().and_then(|()| child.wait());
        format!(
            "{}{}",
            fs::read_to_string(&log).unwrap_or_default(),
            fs::read_to_string(scratch.join("logs/sshd.err")).unwrap_or_default()
        )
    })?;
    Ok(child)
}

fn config_text(scratch: &Path, listen: SocketAddrV4, env: &str) -> String {
    let at = scratch.display();
    // PAM and strict modes ask for a system's own accounts and homes, which a scratch folder is not. A home in scratch
    // keeps the login scripts of whoever runs the test out of every session: bash reads ~/.bashrc under sshd.
    format!(
        "ListenAddress {listen}
HostKey {at}/ssh/host_ed25519
HostKey {at}/ssh/host_ecdsa
AuthorizedKeysFile {at}/ssh/authorized_keys
PidFile {at}/run/sshd.pid
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
{CHEAP}
SetEnv {MARK}={at} HOME={at}/home PATH={at}/bin:{PATH} {env}
Subsystem sftp internal-sftp
"
    )
}

fn greets(address: SocketAddrV4) -> bool {
    let mut banner = [0; 4];
    TcpStream::connect_timeout(&address.into(), BANNER_WITHIN)
        .and_then(|mut stream| {
            stream.set_read_timeout(Some(BANNER_WITHIN))?;
            stream.read_exact(&mut banner)
        })
        .is_ok_and(|()| banner == *b"SSH-")
}
