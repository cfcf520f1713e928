//! The unit that brings the agent back, after a crash and after a boot: there while anything of a service is unfinished or
//! kept warm.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::runtime::{self, UNITS};
use super::watch::Watch;
use super::{durable, exec, systemctl};
use crate::model::failure::Failure;
use crate::model::ids::ServiceName;
use crate::model::replica::Unit;

/// What of its environment decides which programs an agent finds, and which Docker Engine and user's systemd they speak to: sudo, a
/// login and `/etc/environment` give an agent more of it than systemd gives the one that comes back. Everybody can read a unit, so
/// nothing that may be secret is passed, as `DOCKER_AUTH_CONFIG` is.
const PASSED: [&str; 12] = [
    "PATH",
    "HOME",
    "DOCKER_API_VERSION",
    "DOCKER_CERT_PATH",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_HOST",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    // Podman's, where `docker` is its own.
    "CONTAINER_HOST",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
];

/// The unit of one service's agent.
#[derive(Debug)]
pub struct AgentUnit {
    unit: Unit,
    service: ServiceName,
}

impl AgentUnit {
    /// The unit of a service.
    pub fn of(service: &ServiceName) -> Self {
        let unit = Unit { name: format!("model-swap-agent@{service}.service"), user: None };
        Self { unit, service: service.clone() }
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.file().exists()
    }

    /// Has it run from now on, and after every boot, with what this process has of the environment.
    ///
    /// # Errors
    /// If systemd or the disk refuses.
    pub async fn arm(&self, state_dir: &Path) -> Result<(), Failure> {
        let text = self.text(state_dir)?;
        let is_same = fs::read_to_string(self.file()).is_ok_and(|there| there == text);
        if is_same && self.is_kept().await? {
            return Ok(());
        }
        durable::write(&self.file(), text.as_bytes(), 0o644)
            .map_err(|error| Failure::from_error(&error))?;
        systemctl::reload(&self.unit).await?;
        systemctl::order(&self.unit, "enable", &["enable"], Duration::ZERO).await?;
        runtime::make_durable()?;
        // One that is about to end must not pass for one that has started.
        let restart = ["restart", "--no-block"];
        Ok(systemctl::order(&self.unit, "start", &restart, Duration::ZERO).await?)
    }

    /// Returns once there is none.
    pub async fn removed(&self) {
        let mut watch = Watch::folder(Path::new(UNITS));
        while self.is_there() {
            watch.changed().await;
        }
    }

    /// Removes it, if it is there; what runs of it is not stopped.
    ///
    /// # Errors
    /// If systemd or the disk refuses.
    pub async fn disarm(&self) -> Result<(), Failure> {
        if !self.is_there() {
            return Ok(());
        }
        systemctl::order(&self.unit, "disable", &["disable"], Duration::ZERO).await?;
        match fs::remove_file(self.file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::from_error(&error));
            }
            _ => {}
        }
        runtime::make_durable()?;
        Ok(systemctl::reload(&self.unit).await?)
    }

    /// Whether it runs and a boot starts it: an agent may have been killed while it removed it, or a person have disabled it.
    async fn is_kept(&self) -> Result<bool, Failure> {
        Ok(systemctl::show(&self.unit).await?.is_up()
            && systemctl::enablement(&self.unit).await? == "enabled")
    }

    fn file(&self) -> PathBuf {
        Path::new(UNITS).join(&self.unit.name)
    }

    fn text(&self, state_dir: &Path) -> Result<String, Failure> {
        let failed = |error: io::Error| Failure::from_error(&error);
        let program = exec::own_file().map_err(failed)?;
        let state_dir = state_dir.display().to_string();
        let words = ["model-swap", "agent", "resume", "--state-dir", &state_dir, "--service"];
        let argv: Vec<_> =
            words.into_iter().chain([self.service.as_str()]).map(str::to_owned).collect();
        Ok(format!(
            "# Written by model-swap, and removed by it when nothing is left to be done.
[Unit]
Description=model-swap goes on with what is unfinished or kept warm for {service}
After=network-online.target nginx.service docker.service
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec=5
KillMode=process
{environment}
[Install]
WantedBy=multi-user.target
",
            service = self.service,
            command = runtime::command_line(&program, &argv)?,
            environment = runtime::assignments(&passed()),
        ))
    }
}

/// What there is of [`PASSED`], as far as it is text.
fn passed() -> Vec<(&'static str, String)> {
    PASSED.into_iter().filter_map(|name| Some((name, env::var(name).ok()?))).collect()
}
