//! A world with systemd: a guest that is reached over ssh by a user who becomes root with sudo.

use std::fs;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::PATIENCE;
use testbed::action::{Action, Run};
use testbed::guest::{Guest, GuestSpec, IMAGE, Lab, Runtime, SLOTS, ran_as_root, upstream_file};
use testbed::load::{Load, LoadSpec};
use testbed::service::{self, NAME, Settings, Site};

use super::{OLD, binary};
use crate::step::LOOK_EVERY;

/// The file of the agent's unit, which is there as long as it has something to do.
const AGENT: &str = "/etc/systemd/system/model-swap-agent@chat.service";

/// A server with systemd and an old model behind its nginx.
pub(crate) struct GuestWorld {
    // Before its network: what is in it ends first.
    pub(crate) guest: Guest,
    pub(crate) settings: Settings,
    pub(crate) lab: Lab,
}

/// Runs a test in a world whose old model is a unit, as root, on a thread that is in the guest's network.
pub(crate) fn on_guest(test: impl AsyncFnOnce(&mut GuestWorld) -> Result<()>) -> Result<()> {
    on_guest_of(GuestSpec::serving(OLD), async |world| {
        world.until_serves(OLD).await?;
        test(world).await
    })
}

/// As [`on_guest`], with another guest.
pub(crate) fn on_guest_of(
    spec: GuestSpec,
    test: impl AsyncFnOnce(&mut GuestWorld) -> Result<()>,
) -> Result<()> {
    if ran_as_root()? {
        return Ok(());
    }
    let lab = Lab::enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let guest = Guest::boot(&lab, spec).await?;
        let is_docker = guest.runtime() == Runtime::Docker;
        let image = is_docker.then(|| IMAGE.to_owned());
        let settings = Settings { image, ..Settings::default() };
        test(&mut GuestWorld { guest, settings, lab }).await
    })
}

impl GuestWorld {
    /// Load of every kind on the service, with the oracle, from another machine than the guest.
    pub(crate) async fn load(&self) -> Result<Load> {
        load_on(self.guest.nginx_addr()).await
    }

    /// Waits until fresh requests meet a model.
    pub(crate) async fn until_serves(&self, model: &str) -> Result<()> {
        service::until_serves(self.guest.nginx_addr(), model).await
    }

    /// `model-swap.yaml` for this server.
    pub(crate) fn config(&self, model: &str) -> Result<String> {
        self.settings.config_on(&self.guest.site(), model)
    }

    /// The action, ready to be run.
    pub(crate) fn action(
        &self,
        command: &str,
        model: &str,
        inputs: &[(&str, &str)],
    ) -> Result<Action> {
        Ok(Action::new(&binary(), &self.config(model)?)?
            .with_inputs(&[
                ("command", command),
                ("ssh-key", self.guest.private_key()),
                ("known-hosts", self.guest.known_hosts()),
            ])
            .with_inputs(inputs))
    }

    /// Runs a command as GitHub runs a container action.
    pub(crate) async fn run(
        &self,
        command: &str,
        model: &str,
        inputs: &[(&str, &str)],
    ) -> Result<Run> {
        self.action(command, model, inputs)?.spawn()?.finish().await
    }

    /// One property of a unit, as systemd has it.
    pub(crate) async fn property(&self, unit: &str, name: &str) -> Result<String> {
        let said =
            self.guest.run(&["systemctl", "show", "--value", "--property", name, unit]).await?;
        Ok(said.trim().to_owned())
    }

    /// What a unit is, in three words: whether it runs, whether a boot starts it, whether it is started again.
    pub(crate) async fn unit(&self, unit: &str) -> Result<String> {
        let mut words = Vec::new();
        for name in ["ActiveState", "UnitFileState", "Restart"] {
            words.push(self.property(unit, name).await?);
        }
        Ok(words.join(" "))
    }

    /// Files that are there only while a unit of ours is.
    pub(crate) async fn left(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in ["/etc/systemd/system", "/var/lib/model-swap/env.d"] {
            let listed = self.guest.run(&["find", folder, "-name", "model-swap-chat.*"]).await;
            found.extend(listed.unwrap_or_default().lines().map(str::to_owned));
        }
        Ok(found)
    }

    /// A file of the last swap: the ids of swaps say when they began.
    pub(crate) async fn of_last_swap(&self, file: &str) -> Result<String> {
        let line = format!("cd /var/lib/model-swap/chat/swaps && cat $(ls | tail -n 1)/{file}");
        self.guest.run(&["sh", "-c", &line]).await
    }

    /// Process id, in the guest, of the agent that works on the last swap.
    pub(crate) async fn agent(&self) -> Result<String> {
        let said: serde_json::Value =
            serde_json::from_str(&self.of_last_swap("agent.json").await?)?;
        Ok(said["pid"].as_i64().context("a pid")?.to_string())
    }

    /// Whether systemd would bring an agent back.
    pub(crate) fn is_armed(&self) -> Result<bool> {
        Ok(self.guest.file(AGENT)?.exists())
    }

    /// Waits until the agent has nothing left to do, and has removed its unit.
    pub(crate) async fn until_through(&self) -> Result<()> {
        until("the agent is through", async || Ok(!self.is_armed()?)).await
    }
}

/// Load of every kind on an nginx, with the oracle.
pub(crate) async fn load_on(nginx: SocketAddr) -> Result<Load> {
    let load = Load::start(LoadSpec::mixed(nginx, NAME));
    load.wait_until(|tally| tally.total() > 20).await?;
    Ok(load)
}

/// The folder of [`users_nginx`].
pub(crate) const USERS_NGINX: &str = "/home/deploy/nginx";

/// Starts an nginx that is all the user's, its upstream pointing at slot a. Returns where it listens, and the server as a
/// configuration describes it.
pub(crate) async fn users_nginx(guest: &Guest) -> Result<(SocketAddr, Site)> {
    const PORT: u16 = 8080;
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {USERS_NGINX}/{name};"))
        .join(" ");
    let main = format!(
        "worker_processes 2; pid {USERS_NGINX}/pid; error_log {USERS_NGINX}/error.log notice;
events {{}}
http {{ access_log off; {temp} include {USERS_NGINX}/llm.conf; }}
"
    );
    guest.run_as_user(&format!("mkdir {USERS_NGINX}")).await?;
    let main_file = format!("{USERS_NGINX}/nginx.conf");
    fs::write(guest.file(&main_file)?, main)?;
    let file = format!("{USERS_NGINX}/llm.conf");
    fs::write(guest.file(&file)?, upstream_file("llm", PORT, SLOTS.0))?;
    guest.run(&["chown", "-R", "deploy:deploy", USERS_NGINX]).await?;
    let words = ["/usr/sbin/nginx", "-c", &main_file];
    guest.run_as_user(&words.join(" ")).await?;
    let nginx_command = Some(words.map(str::to_owned).to_vec());
    let probe = format!("http://127.0.0.1:{PORT}/v1/models");
    let site = Site { nginx_config: file.into(), nginx_command, probe, ..guest.site() };
    Ok(((guest.address(), PORT).into(), site))
}

/// Waits for a fact of a guest, that announces nothing outside.
pub(crate) async fn until(what: &str, mut met: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !met().await? {
        ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
