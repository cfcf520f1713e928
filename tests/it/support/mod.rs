//! A world for one test: a throwaway GPU server, an old model that somebody started by hand, and the real binary.

pub(crate) mod docked;
pub(crate) mod guest;
pub(crate) mod relayed;
pub(crate) mod scene;
pub(crate) mod snapshot;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::PATIENCE;
pub(crate) use testbed::action::{Action, Run};
use testbed::load::{Load, LoadSpec};
use testbed::server::{ByHand, GpuServer, ServerSpec};
use testbed::service;
pub(crate) use testbed::service::{NAME, Settings, engine};

/// The model that serves before the first swap.
pub(crate) const OLD: &str = "Qwen/Old";
/// The model of the first swap.
pub(crate) const NEW: &str = "Qwen/New";

/// A server with an old model behind nginx.
pub(crate) struct World {
    pub(crate) server: GpuServer,
    pub(crate) old: ByHand,
    /// Settings that differ from a test's defaults, as top-level YAML lines.
    pub(crate) settings: Settings,
}

impl World {
    /// A server as the README has it, with [`OLD`] in slot a.
    pub(crate) async fn start() -> Result<Self> {
        Self::on(ServerSpec::default(), &[]).await
    }

    /// A server of another kind, and more flags for the old model.
    pub(crate) async fn on(spec: ServerSpec, flags: &[&str]) -> Result<Self> {
        let world = Self::begin(spec, flags)?;
        world.until_serves(OLD).await?;
        Ok(world)
    }

    /// A server whose agents can be struck.
    pub(crate) async fn with_faults() -> Result<Self> {
        Self::on(ServerSpec { faults: true, ..ServerSpec::default() }, &[]).await
    }

    /// As [`World::on`], with an old model that may still be loading.
    pub(crate) fn begin(spec: ServerSpec, flags: &[&str]) -> Result<Self> {
        Self::begun_by(spec, |server, mut argv| {
            argv.extend(flags.iter().map(ToString::to_string));
            server.start_by_hand(&argv, &[])
        })
    }

    /// A server whose old model is started from its plain argv in a way of its own.
    pub(crate) async fn started_by(
        spec: ServerSpec,
        start: impl FnOnce(&GpuServer, Vec<String>) -> Result<ByHand>,
    ) -> Result<Self> {
        let world = Self::begun_by(spec, start)?;
        world.until_serves(OLD).await?;
        Ok(world)
    }

    fn begun_by(
        spec: ServerSpec,
        start: impl FnOnce(&GpuServer, Vec<String>) -> Result<ByHand>,
    ) -> Result<Self> {
        let server = GpuServer::start(spec)?;
        let old = start(&server, engine(OLD, server.slot_ports().0)?)?;
        Ok(Self { server, old, settings: Settings::default() })
    }

    /// Load of every kind on the service, with the oracle.
    pub(crate) async fn load(&self) -> Result<Load> {
        let load = Load::start(LoadSpec::mixed(self.server.nginx_addr(), NAME));
        load.wait_until(|tally| tally.total() > 20).await?;
        Ok(load)
    }

    /// The root of the model that a fresh request through nginx meets.
    pub(crate) async fn serves(&self) -> Result<String> {
        service::serves(self.server.nginx_addr()).await
    }

    /// Waits until fresh requests meet a model: for about 100 ms after a reload nginx's old workers accept as well.
    pub(crate) async fn until_serves(&self, model: &str) -> Result<()> {
        service::until_serves(self.server.nginx_addr(), model).await
    }

    /// Whether the old model listens on its port, and nobody else does.
    pub(crate) fn old_runs(&self) -> Result<bool> {
        Ok(testbed::server::listeners(self.server.ports().a)? == [self.old.pid])
    }

    /// Waits until a swap's event log on the server holds the text.
    pub(crate) async fn until_told(&self, text: &str) -> Result<()> {
        until(&format!("told of {text:?}"), || self.told().contains(text)).await
    }

    /// The event logs of all swaps on the server, as they are on its disk.
    pub(crate) fn told(&self) -> String {
        let swaps = std::fs::read_dir(self.server.state_dir().join("chat/swaps"));
        let logs = swaps.into_iter().flatten().flatten().map(|swap| swap.path());
        logs.filter_map(|swap| std::fs::read_to_string(swap.join("events.ndjson")).ok()).collect()
    }

    /// `model-swap.yaml` for this server.
    pub(crate) fn config(&self, model: &str) -> String {
        self.settings.config(&self.server, model).expect("the stub engine can be built")
    }

    /// Runs a command as GitHub runs a container action.
    pub(crate) async fn run(
        &self,
        command: &str,
        model: &str,
        inputs: &[(&str, &str)],
    ) -> Result<Run> {
        let action = self.action(command, model, inputs)?;
        action.spawn()?.finish().await
    }

    /// The action, ready to be run.
    pub(crate) fn action(
        &self,
        command: &str,
        model: &str,
        inputs: &[(&str, &str)],
    ) -> Result<Action> {
        Ok(Action::new(&binary(), &self.config(model))?
            .with_access_to(&self.server)
            .with_inputs(&[("command", command)])
            .with_inputs(inputs))
    }
}

/// Waits until a fact holds that no event announces.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Whether a process runs; one that has ended and was not reaped does not.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_model-swap")).to_owned()
}
