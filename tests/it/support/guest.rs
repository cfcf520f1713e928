//! A world with systemd: a guest that is reached over ssh by a user who becomes root with sudo.

use anyhow::Result;
use testbed::action::{Action, Run};
use testbed::guest::{Guest, GuestSpec, Lab, ran_as_root};
use testbed::load::{Load, LoadSpec};
use testbed::service::{self, NAME, Settings};

use super::{OLD, binary};

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
        test(&mut GuestWorld { guest, settings: Settings::default(), lab }).await
    })
}

impl GuestWorld {
    /// Load of every kind on the service, with the oracle, from another machine than the guest.
    pub(crate) async fn load(&self) -> Result<Load> {
        let load = Load::start(LoadSpec::mixed(self.guest.nginx_addr(), NAME));
        load.wait_until(|tally| tally.total() > 20).await?;
        Ok(load)
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
}
