//! The real host.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::docker::{self, DockerError};
use super::engine::{self, Answer, Models};
use super::fetch::{self, Fetch};
use super::gpu::{self, Gpus};
use super::nginx::{Expectation, Nginx, Proof, Reloaded, UpstreamView, Way, WorkerLeft};
use super::process::{self, Inherited, Launch, ProcessError, Snapshot, StopOrder, Stopped};
use super::runtime::{self, Boot, Started};
use super::{Ending, Host, Unloaded, systemctl};
use crate::config::command;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{Port, ProcessId, SlotName};
use crate::model::plan::Plan;
use crate::model::record::UpstreamImage;
use crate::model::replica::{Found, ImageHere, Keeper, Replica, Systemd};
use crate::model::spec::{Runtime, SwapSpec};
use crate::model::wire::{Asked, Secrets};
use crate::swap::hidden::Hidden;

/// How much of the engine's log is looked through for its progress.
const PROGRESS_LINES: usize = 20;

/// The variable that gives vLLM its API key (vLLM 0.33 `envs.py`).
const VLLM_KEY: &str = "VLLM_API_KEY";

/// This server, as one spec sees it.
pub struct SystemHost {
    spec: SwapSpec,
    api_key: Option<String>,
    /// What no log that is shown may hold.
    hidden: Hidden,
    nginx: Nginx,
    /// The clock and the time since the boot, read together.
    began: (Timestamp, Instant),
}

impl SystemHost {
    /// The host for what is asked.
    pub fn new(asked: &Asked) -> Self {
        let spec = asked.spec.clone();
        let named = key_name(&spec);
        let api_key = asked.secrets.0.get(named).cloned();
        let ports = spec.slots.values().map(|slot| slot.port).collect();
        let nginx = Nginx::new(spec.nginx.clone()).ports(ports).api_key(api_key.clone());
        let began = (Timestamp::now(), Instant::now());
        let mut hidden = Hidden::default();
        hidden.add(asked.secrets.0.values().cloned());
        Self { spec, api_key, hidden, nginx, began }
    }

    /// The same, where a replica may be started from one of these: what is secret in them is shown in no log.
    #[must_use]
    pub fn hiding(mut self, snapshots: impl IntoIterator<Item = Snapshot>) -> Self {
        self.hidden.add(snapshots.into_iter().flat_map(|snapshot| snapshot.secrets()));
        self
    }

    /// The same for the log of a replica that was given secrets of these names, perhaps others than this step has: what they are
    /// its process, its unit's file or its container tells. Where one of them cannot be seen any more, what looks secret in a line, or
    /// stands behind such a name, is hidden.
    #[must_use]
    pub async fn hiding_of(mut self, replica: &Replica, names: &[String]) -> Self {
        let seen = self.snapshot(replica).await.ok();
        let mut values = Vec::new();
        for name in names {
            let value = seen.as_ref().and_then(|seen| seen.env.get(name)).cloned();
            values.push(match value {
                Some(value) => Some(value),
                None => runtime::variable(&replica.keeper, name).await,
            });
        }
        if values.contains(&None) {
            self.hidden.by_names_and_looks(names);
        }
        self.hidden.add(values.into_iter().flatten());
        self.hiding(seen)
    }

    /// The API key, where the unit or the container of one side of a plan was given it: for an agent that nobody hands secrets to.
    pub async fn kept_secrets(spec: &SwapSpec, plan: &Plan) -> Secrets {
        let name = key_name(spec);
        for side in [&plan.candidate].into_iter().chain(&plan.incumbent) {
            if let Some(key) = runtime::variable(&side.keeper, name).await {
                return Secrets([(name.to_owned(), key)].into());
            }
        }
        Secrets::default()
    }

    /// Whether what once kept a replica can start it again by its own means.
    ///
    /// # Errors
    /// If what supervises it does not say.
    pub async fn can_start(&self, keeper: &Keeper) -> Result<bool, Failure> {
        runtime::can_start(keeper).await
    }

    /// What an adopted replica was started with, to start it again.
    ///
    /// # Errors
    /// If it is gone, or another user's.
    pub async fn snapshot(&self, replica: &Replica) -> Result<Snapshot, Failure> {
        match &replica.keeper {
            Keeper::Docker(name) => runtime::docker::snapshot(name).await,
            _ => Ok(Snapshot::of(replica.main)?),
        }
    }

    /// The nginx in front.
    pub fn nginx(&self) -> &Nginx {
        &self.nginx
    }

    fn hide_secrets(&self, lines: &mut [String]) {
        for line in lines {
            self.hidden.hide(line);
        }
    }

    /// argv of the spec's replica in a slot.
    fn argv(&self, slot: &SlotName) -> Vec<String> {
        let slot = &self.spec.slots[slot];
        command::render(&self.spec.replica.command, self.spec.weights(), slot.port, &slot.gpus)
    }

    /// How long the spec's engine may take from SIGTERM to its end.
    fn own_grace(&self) -> Duration {
        engine::stop_grace(self.spec.replica.engine, &self.any_argv())
    }

    /// argv of the spec's replica, in a slot of no matter.
    fn any_argv(&self) -> Vec<String> {
        self.spec.slots.keys().next().map(|slot| self.argv(slot)).unwrap_or_default()
    }
}

/// The variable that holds the API key.
fn key_name(spec: &SwapSpec) -> &str {
    spec.nginx.probe.api_key_env.as_deref().unwrap_or(VLLM_KEY)
}

impl Host for SystemHost {
    fn now(&self) -> Timestamp {
        // Beyond jiff's last year, which no uptime reaches, it stands still.
        let (clock, since) = self.began;
        clock.saturating_add(since.elapsed()).unwrap_or(clock)
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn systemd(&self) -> Systemd {
        // sd_booted(3)
        match Path::new("/run/systemd/system").is_dir() {
            true if rustix::process::geteuid().is_root() => Systemd::Usable,
            true => Systemd::Denied,
            false => Systemd::Absent,
        }
    }

    async fn is_going_down(&self) -> bool {
        self.systemd() != Systemd::Absent && systemctl::is_going_down().await
    }

    async fn find(&self, port: Port) -> Result<Option<Found>, Failure> {
        runtime::docker::find(port, process::find(port).await, self.spec.replica.runtime).await
    }

    async fn listeners(&self, port: Port) -> Result<Vec<ProcessId>, Failure> {
        runtime::docker::listeners(port, process::listeners(port)).await
    }

    fn is_silent(&self, port: Port) -> bool {
        process::listeners(port).is_ok_and(|listeners| listeners.is_empty())
    }

    fn addresses(&self, port: Port) -> BTreeSet<IpAddr> {
        process::addresses(port)
    }

    fn alive(&self, process: ProcessId) -> bool {
        process::alive(process)
    }

    fn tree(&self, main: ProcessId) -> Result<Vec<ProcessId>, Failure> {
        Ok(process::tree(main)?)
    }

    fn inherited(&self, incumbent: Option<ProcessId>) -> Result<Inherited, Failure> {
        let inherited = match (&self.spec.replica.user, incumbent) {
            (Some(user), _) => Inherited::of_user(user)?,
            (None, Some(incumbent)) => process::inherited(incumbent)?,
            (None, None) => Inherited::of_self()?,
        };
        Ok(inherited)
    }

    fn runnable(&self, incumbent: Option<ProcessId>) -> Result<(), Failure> {
        if self.spec.replica.runtime == Runtime::Docker {
            // What is in an image only a container can tell.
            return Ok(());
        }
        let replica = &self.spec.replica;
        self.inherited(incumbent)?.program(&replica.command, &replica.env)?;
        Ok(())
    }

    async fn image(&self) -> Result<Option<ImageHere>, Failure> {
        match self.spec.replica.image_reference() {
            Some(reference) => Ok(docker::image(reference).await?),
            None => Ok(None),
        }
    }

    async fn pull(&self, told: impl Fn(String)) -> Result<(), Failure> {
        match self.spec.replica.image_reference() {
            Some(reference) => {
                docker::room().await.as_ref().and_then(docker::little_room).map(&told);
                Ok(docker::pull(reference, told).await?)
            }
            None => Ok(()),
        }
    }

    async fn fetch(&self, order: &Fetch, told: impl Fn(String)) -> Result<String, Failure> {
        let mut fetched = fetch::fetch(order, told).await;
        if let Err(failure) = &mut fetched {
            self.hide_secrets(&mut failure.log_tail);
        }
        fetched
    }

    async fn gpus(&self) -> Gpus {
        Gpus { devices: gpu::devices().await.unwrap_or_default(), ..Gpus::default() }
    }

    async fn start(&self, launch: &Launch) -> Result<Started, Failure> {
        let mut started = runtime::start(launch, self.stop_grace(&launch.argv)).await;
        if let Err(failure) = &mut started {
            self.hide_secrets(&mut failure.log_tail);
        }
        started
    }

    async fn until_runs(
        &self,
        started: &Started,
        limit: Duration,
        told: impl Fn(String),
    ) -> Result<Started, Failure> {
        let mut runs = runtime::until_runs(started, limit, told).await;
        if let Err(failure) = &mut runs {
            self.hide_secrets(&mut failure.log_tail);
        }
        runs
    }

    async fn exited(&self, process: ProcessId) {
        if process::exited(process).await.is_err() {
            // What cannot be watched is not known to have ended.
            std::future::pending().await
        }
    }

    async fn answers(&self, keeper: &Keeper) -> Result<(), Failure> {
        runtime::answers(keeper).await
    }

    async fn marked(&self, keeper: &Keeper, marker: &str) -> Result<Option<StopOrder>, Failure> {
        runtime::marked(keeper, marker, self.own_grace()).await
    }

    async fn booted(&self, keeper: &Keeper) -> Result<bool, Failure> {
        runtime::booted(keeper).await
    }

    async fn on_boot(&self, keeper: &Keeper, boot: Boot) -> Result<(), Failure> {
        runtime::on_boot(keeper, boot).await
    }

    async fn promoted(&self, keeper: &Keeper) -> Result<(), Failure> {
        runtime::promoted(keeper).await
    }

    async fn stops_alone(&self, found: &Found) -> Result<(), Failure> {
        runtime::stops_alone(found).await
    }

    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure> {
        runtime::stop(order, how).await
    }

    fn stop_grace(&self, argv: &[String]) -> Duration {
        engine::stop_grace(self.spec.replica.engine, argv).max(self.own_grace())
    }

    async fn restarted(&self, wrapper: ProcessId, argv: &[String]) -> Option<ProcessId> {
        process::restarted_by(wrapper, argv).await.ok().flatten()
    }

    async fn log_tail(&self, replica: &Replica, lines: usize) -> Vec<String> {
        let mut tail = runtime::last_words(replica, lines).await.unwrap_or_default();
        self.hide_secrets(&mut tail);
        tail
    }

    async fn loading(&self, replica: &Replica) -> Option<String> {
        let mut said = runtime::log_tail(replica, PROGRESS_LINES).await.ok()?;
        self.hide_secrets(&mut said);
        engine::progress(self.spec.replica.engine, &said)
    }

    async fn ask(&self, port: Port) -> Answer {
        engine::ask(self.spec.replica.engine, port, self.api_key.as_deref()).await
    }

    fn check(&self, slot: &SlotName, models: &Models) -> Result<(), Failure> {
        let expected =
            engine::expected(self.spec.replica.engine, &self.argv(slot), &self.spec.model);
        Ok(engine::check(&expected, models)?)
    }

    fn names(&self) -> Vec<String> {
        engine::expected(self.spec.replica.engine, &self.any_argv(), &self.spec.model).names
    }

    async fn in_flight(&self, port: Port) -> Result<u64, Failure> {
        Ok(engine::in_flight(self.spec.replica.engine, port).await?.total())
    }

    async fn fingerprint(&self, port: Port, name: &str) -> Option<String> {
        engine::fingerprint(self.spec.replica.engine, port, name, self.api_key.as_deref()).await
    }

    async fn upstream(&self) -> Result<UpstreamView, Failure> {
        Ok(self.nginx.view().await?)
    }

    async fn upstream_at_rest(&self) -> Result<UpstreamView, Failure> {
        Ok(self.nginx.view_at_rest().await?)
    }

    async fn upstream_image(&self, to: Port) -> Result<(UpstreamImage, ProcessId), Failure> {
        let view = self.nginx.view_at_rest().await?;
        Ok((self.nginx.image(&view, to)?, view.master))
    }

    async fn ask_as_nginx(
        &self,
        master: ProcessId,
        server: &str,
    ) -> Result<Option<Answer>, Failure> {
        let Some(way) = Way::of(master, server).await? else { return Ok(None) };
        let (engine, api_key) = (self.spec.replica.engine, self.api_key.clone());
        let ask = move |at: Vec<SocketAddr>| async move {
            engine::ask_any(engine, &at, api_key.as_deref()).await
        };
        Ok(way.ask(ask).await)
    }

    fn loaded(&self, master: ProcessId) -> Result<Reloaded, Failure> {
        Ok(self.nginx.loaded(master)?)
    }

    async fn load(&self, image: &UpstreamImage) -> Result<Reloaded, Unloaded> {
        self.nginx.load(image).await.map_err(Unloaded::from)
    }

    async fn restore(&self, image: &UpstreamImage) -> Result<Option<Reloaded>, Unloaded> {
        self.nginx.restore(image).await.map_err(Unloaded::from)
    }

    async fn prove(&self, expected: &Expectation, reloaded: &Reloaded) -> Result<Proof, Failure> {
        Ok(self.nginx.prove(expected, reloaded).await?)
    }

    fn workers_left(&self, old: &[ProcessId], port: Port) -> Vec<WorkerLeft> {
        self.nginx.workers_left(old, port)
    }
}

macro_rules! failures {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                error.to_failure()
            }
        }
    )+};
}

failures!(
    super::nginx::NginxError,
    ProcessError,
    super::systemctl::SystemctlError,
    DockerError,
    engine::EngineError,
    engine::Mismatch
);
