//! A throwaway sshd, and a stand-in for the agent.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::model::secret::Secret;
use crate::model::target::{HostAddr, Target};
use crate::model::wire::SENTINEL;
use crate::remote::agent::Install;
use crate::remote::build::Build;
use crate::remote::error::RemoteError;
use crate::remote::session::{Credentials, Session};

/// sshd listens, and ssh ends when it was told to, within milliseconds; on a busy machine later.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

/// A real sshd that lets the current user in with one key.
pub(super) struct Sshd {
    child: Child,
    pub(super) folder: TempDir,
    pub(super) port: u16,
}

impl Sshd {
    /// With one host key of each type.
    pub(super) fn start() -> Self {
        Self::start_with("")
    }

    pub(super) fn start_with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        keygen(&path("host_ed25519"), "ed25519");
        keygen(&path("host_ecdsa"), "ecdsa");
        keygen(&path("client"), "ed25519");
        std::fs::copy(path("client.pub"), path("authorized")).unwrap();
        let port = testbed::server::free_port().unwrap();
        let config = format!(
            "{config}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {}\nHostKey {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nAuthorizedKeysFile {}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n",
            path("host_ed25519"),
            path("host_ecdsa"),
            path("authorized"),
        );
        std::fs::write(path("config"), config).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &path("config")])
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let sshd = Self { child, folder, port };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(begun.elapsed() < LIMIT, "sshd does not listen: {}", sshd.read("log"));
            std::thread::sleep(POLL);
        }
        sshd
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    pub(super) fn target(&self) -> Target {
        let host = HostAddr::Ssh { user: None, host: "127.0.0.1".to_owned() };
        Target { host, port: self.port, jump: None }
    }

    /// A line of known_hosts for one of the host keys, under `name`.
    pub(super) fn pin(&self, name: &str, kind: &str) -> String {
        let public = self.read(&format!("host_{kind}.pub"));
        format!("{name} {public}")
    }

    /// The right key and the right host key.
    pub(super) fn credentials(&self) -> Credentials {
        let pin = self.pin(&format!("[127.0.0.1]:{}", self.port), "ed25519");
        Credentials { key: Some(Secret::from(self.read("client"))), known_hosts: Some(pin) }
    }

    pub(super) async fn open(&self) -> Session {
        Session::open(&self.target(), self.credentials()).await.unwrap()
    }

    pub(super) async fn refused(&self, credentials: Credentials) -> RemoteError {
        Session::open(&self.target(), credentials).await.expect_err("must be refused")
    }

    /// Cuts every connection: the processes of sshd that serve one are its descendants.
    pub(super) fn cut(&self) {
        for pid in descendants(self.child.id()) {
            let _gone =
                Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.cut();
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

pub(super) fn keygen(path: &str, kind: &str) {
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f", path]).status().unwrap();
    assert!(made.success());
}

fn descendants(of: u32) -> Vec<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .flat_map(|pid| descendants(pid).into_iter().chain([pid]))
        .collect()
}

/// Command lines of running processes that name `path`.
pub(super) fn processes_with(path: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(path))
        .collect()
}

/// Waits until no running process names `path`.
pub(super) fn gone(path: &str) {
    let begun = Instant::now();
    while !processes_with(path).is_empty() {
        assert!(begun.elapsed() < LIMIT, "still there: {:?}", processes_with(path));
        std::thread::sleep(POLL);
    }
}

/// Stands in for this program's executable: speaks the agent's part of the exchange and nothing else.
///
/// `session` is what it does when asked; it has read the request as `$request` by then.
pub(super) fn stand_in(folder: &Path, session: &str) -> Install {
    let script = format!(
        "#!/bin/sh\n\
         case \"$1 $2\" in\n\
         \"agent install\") mv \"$0\" \"${{0%/*}}/model-swap\" && echo installed;;\n\
         \"agent session\") echo \"{SENTINEL}\"; read -r request; {session};;\n\
         esac\n"
    );
    let binary = folder.join("stand-in");
    std::fs::write(&binary, script).unwrap();
    Install {
        build: Build { digest: "0123abc".to_owned(), path: binary },
        others: Some(folder.to_owned()),
        state_dir: Some(folder.join("state")),
        nginx_config: Some(owned_file(folder)),
    }
}

fn owned_file(folder: &Path) -> PathBuf {
    let path = folder.join("nginx.conf");
    std::fs::write(&path, "").unwrap();
    path
}

/// Puts an executable script into `folder`.
pub(super) fn script(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
