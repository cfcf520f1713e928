//! A real registry of images (Debian's `docker-registry`) on loopback, where an Engine speaks plain http.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::LOOK_AGAIN;
use crate::PATIENCE;
use crate::server::free_port;

/// Who may pull and push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Everybody.
    Open,
    /// Nobody: it asks for a name and a password, and accepts none.
    Locked,
}

/// A running registry. Dropping it ends it; what it keeps is its owner's.
pub struct Registry {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl Registry {
    /// Starts one that keeps its images in `images`, which several may share; returns when it listens.
    ///
    /// # Errors
    /// If docker-registry is missing or does not come up.
    pub fn start(images: &Path, door: Door) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("registry-").tempdir_in("/tmp")?;
        let port = free_port()?;
        let mut config = format!(
            "version: 0.1
log: {{ level: warn }}
storage: {{ filesystem: {{ rootdirectory: {} }} }}
http: {{ addr: '127.0.0.1:{port}' }}
",
            images.display()
        );
        if door == Door::Locked {
            let names = folder.path().join("names");
            fs::write(&names, "")?;
            config +=
                &format!("auth: {{ htpasswd: {{ realm: llm, path: {} }} }}\n", names.display());
        }
        let file = folder.path().join("config.yml");
        fs::write(&file, config)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()
            .context("docker-registry is missing (Debian: docker-registry)")?;
        let mut registry = Self { process, port, folder };
        registry.until_it_listens()?;
        Ok(registry)
    }

    fn until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            ensure!(self.process.try_wait()?.is_none(), "docker-registry ended:\n{}", log());
            ensure!(Instant::now() < deadline, "docker-registry does not listen:\n{}", log());
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// What images are called that are kept here: `127.0.0.1:5000/llm` with another port.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}/llm", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}
