//! F2: the host. The only place of the agent's side that spawns, connects or writes.
//!
//! [`Host`] is the thin world that steps act on: a few verbs of the domain. [`SystemHost`] is the real one; the only other
//! one is a simulation for the fault loops of the tests.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::failure::Failure;
use crate::model::ids::{Port, ProcessId, SlotName};
use crate::model::record::UpstreamImage;
use crate::model::replica::{Found, ImageHere, Keeper, Replica, Systemd};

pub mod agent_unit;
pub mod body;
pub mod disk;
pub mod docker;
pub mod durable;
pub mod engine;
pub mod exec;
pub mod fetch;
pub mod gpu;
pub mod logind;
pub mod nginx;
pub mod process;
pub mod runtime;
mod sock_diag;
pub mod survey;
mod system;
pub mod systemctl;
pub mod watch;

use engine::{Answer, Models};
use fetch::Fetch;
use gpu::Gpus;
use nginx::{Expectation, Proof, Reloaded, UpstreamView, WorkerLeft};
use process::{Inherited, Launch, StopOrder, Stopped};
use runtime::{Boot, Started};
pub use system::SystemHost;

/// The thin world. One failure type: what steps journal and people read.
#[expect(async_fn_in_trait, reason = "one thread, and no caller outside this crate and its tests")]
pub trait Host {
    /// The server's clock when this process began, and the time that has passed since: deadlines count by it, so that a
    /// clock that is set while a replica drains cuts nobody short. It may jump from one process to the next.
    fn now(&self) -> Timestamp;

    /// Waits.
    async fn pause(&self, time: Duration);

    /// What of systemd there is for replicas.
    fn systemd(&self) -> Systemd;

    /// Whether this server is being shut down: what fails meanwhile fails of that.
    async fn is_going_down(&self) -> bool;

    /// The process tree that listens on a port.
    ///
    /// # Errors
    /// If that cannot be seen, or unrelated ones share it.
    async fn find(&self, port: Port) -> Result<Option<Found>, Failure>;

    /// Every process that listens on a port; of a container whose port is published, its first process.
    ///
    /// # Errors
    /// If that cannot be seen.
    async fn listeners(&self, port: Port) -> Result<Vec<ProcessId>, Failure>;

    /// Whether it is seen that nobody at all listens on a port.
    fn is_silent(&self, port: Port) -> bool;

    /// The addresses of this machine at which somebody listens on a port; none where that cannot be seen.
    fn addresses(&self, port: Port) -> BTreeSet<IpAddr>;

    /// Whether the process is there. A zombie is not.
    fn alive(&self, process: ProcessId) -> bool;

    /// The process and its descendants.
    ///
    /// # Errors
    /// If that cannot be seen.
    fn tree(&self, main: ProcessId) -> Result<Vec<ProcessId>, Failure>;

    /// What a candidate takes over: the incumbent's user, home, folder and `PATH`, or those of the spec's user.
    ///
    /// # Errors
    /// If the incumbent is gone or the user unknown.
    fn inherited(&self, incumbent: Option<ProcessId>) -> Result<Inherited, Failure>;

    /// Whether the spec's program can be run with what a candidate takes over.
    ///
    /// # Errors
    /// If not, naming it and where it was looked for.
    fn runnable(&self, incumbent: Option<ProcessId>) -> Result<(), Failure>;

    /// The spec's image; `None` if it is not here, or the spec names none.
    ///
    /// # Errors
    /// If it names one and Docker does not say.
    async fn image(&self) -> Result<Option<ImageHere>, Failure>;

    /// Pulls the spec's image, and tells how far it has come. What was pulled so far is kept if this is dropped.
    ///
    /// # Errors
    /// If Docker refuses.
    async fn pull(&self, told: impl Fn(String)) -> Result<(), Failure>;

    /// Brings weights here, and tells how far they have come; says what is there then.
    ///
    /// # Errors
    /// If there is no room for them, or the program fails.
    async fn fetch(&self, order: &Fetch, told: impl Fn(String)) -> Result<String, Failure>;

    /// The GPUs by all their names; none where the driver does not tell.
    async fn gpus(&self) -> Gpus;

    /// Starts a replica under its keeper. Neither a boot nor its end starts it again.
    ///
    /// # Errors
    /// If it cannot be started; naming the program.
    async fn start(&self, launch: &Launch) -> Result<Started, Failure>;

    /// What was started, once its own program runs: somebody's unit may run others first, and this tells that it does.
    ///
    /// # Errors
    /// If it ends before that, or is not that far within the limit.
    async fn until_runs(
        &self,
        started: &Started,
        limit: Duration,
        told: impl Fn(String),
    ) -> Result<Started, Failure>;

    /// Returns once the process is gone.
    async fn exited(&self, process: ProcessId);

    /// Whether what supervises a replica can be asked: an Engine, or a manager of systemd's.
    ///
    /// # Errors
    /// If it does not answer.
    async fn answers(&self, keeper: &Keeper) -> Result<(), Failure>;

    /// The order to stop whatever carries the marker under a keeper; `None` if nothing does.
    ///
    /// # Errors
    /// If that cannot be seen.
    async fn marked(&self, keeper: &Keeper, marker: &str) -> Result<Option<StopOrder>, Failure>;

    /// Whether a boot starts what a keeper keeps.
    ///
    /// # Errors
    /// If that cannot be seen.
    async fn booted(&self, keeper: &Keeper) -> Result<bool, Failure>;

    /// Decides whether a boot starts what a keeper keeps. Nothing where nobody keeps it.
    ///
    /// # Errors
    /// If the keeper refuses.
    async fn on_boot(&self, keeper: &Keeper, boot: Boot) -> Result<(), Failure>;

    /// From now on its keeper starts a replica again whenever it ends by itself.
    ///
    /// # Errors
    /// If the keeper refuses.
    async fn promoted(&self, keeper: &Keeper) -> Result<(), Failure>;

    /// Whether the means by which a keeper's replica is stopped end it for good, and nothing else.
    ///
    /// # Errors
    /// If they do not, naming what is in the way; or if that cannot be seen.
    async fn stops_alone(&self, _: &Found) -> Result<(), Failure> {
        Ok(())
    }

    /// Stops a replica for good, by its keeper's means, and proves that it is gone: no boot starts it again either.
    ///
    /// # Errors
    /// If something of it is left.
    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure>;

    /// How long an engine that was started with this argv may take from SIGTERM to its end; never shorter than the spec's.
    fn stop_grace(&self, argv: &[String]) -> Duration;

    /// The process that a wrapper started again after its program was stopped.
    async fn restarted(&self, wrapper: ProcessId, argv: &[String]) -> Option<ProcessId>;

    /// The last lines of what a replica said.
    async fn log_tail(&self, replica: &Replica, lines: usize) -> Vec<String>;

    /// How far loading has come, by what the replica said.
    async fn loading(&self, replica: &Replica) -> Option<String>;

    /// Asks the replica on a port whether it is ready, and what it serves.
    async fn ask(&self, port: Port) -> Answer;

    /// Whether a replica that the spec started in a slot serves what it should.
    ///
    /// # Errors
    /// If not, naming both.
    fn check(&self, slot: &SlotName, models: &Models) -> Result<(), Failure>;

    /// The public names that a replica of the spec answers to.
    fn names(&self) -> Vec<String>;

    /// Requests in flight by the engine's own count.
    ///
    /// # Errors
    /// If the engine does not say.
    async fn in_flight(&self, port: Port) -> Result<u64, Failure>;

    /// What identifies the replica in its completions.
    async fn fingerprint(&self, port: Port, name: &str) -> Option<String>;

    /// nginx's upstream as it stands.
    ///
    /// # Errors
    /// If nginx is not running, its configuration is broken, or the upstream is not there.
    async fn upstream(&self) -> Result<UpstreamView, Failure>;

    /// The same, once a restart of nginx or an upgrade of its binary is over that is under way.
    ///
    /// # Errors
    /// As [`Host::upstream`].
    async fn upstream_at_rest(&self) -> Result<UpstreamView, Failure> {
        self.upstream().await
    }

    /// The `server` lines as they are, and as they would be with another port, and the master of that nginx; looked at as
    /// [`Host::upstream_at_rest`] does.
    ///
    /// # Errors
    /// As [`Host::upstream`].
    async fn upstream_image(&self, to: Port) -> Result<(UpstreamImage, ProcessId), Failure>;

    /// Asks the replica that a `server` line names at the very address that it names, from where nginx is. `None` if that is
    /// where [`Host::ask`] asks, or if nobody can tell from here.
    ///
    /// # Errors
    /// If that master is gone.
    async fn ask_as_nginx(
        &self,
        master: ProcessId,
        server: &str,
    ) -> Result<Option<Answer>, Failure>;

    /// nginx's workers as they are now, without a reload: those that take requests, and those that are shutting down.
    ///
    /// # Errors
    /// If that master is gone.
    fn loaded(&self, master: ProcessId) -> Result<Reloaded, Failure>;

    /// Puts the new lines in place and makes nginx load them; puts the old ones back if it does not.
    ///
    /// # Errors
    /// If nginx rejects them, in its own words, or is not seen to load them.
    async fn load(&self, image: &UpstreamImage) -> Result<Reloaded, Unloaded>;

    /// Puts the old lines back; `None` if nginx never loaded others.
    ///
    /// # Errors
    /// If nginx rejects them, is not seen to load them, or somebody else changed the file.
    async fn restore(&self, image: &UpstreamImage) -> Result<Option<Reloaded>, Unloaded>;

    /// Proves that new requests go where they should.
    ///
    /// # Errors
    /// If they do not, or nothing tells.
    async fn prove(&self, expected: &Expectation, reloaded: &Reloaded) -> Result<Proof, Failure>;

    /// Which of these nginx workers are left, and their connections to a port.
    fn workers_left(&self, old: &[ProcessId], port: Port) -> Vec<WorkerLeft>;
}

/// Why nginx was not seen to load new lines.
#[derive(Debug)]
pub enum Unloaded {
    /// It refused them, or was never told of them: what it had loaded before is in force.
    Surely(Failure),
    /// It may load them yet: a reload that is slow looks like one that never was.
    Perhaps(Failure),
}

impl From<Unloaded> for Failure {
    fn from(unloaded: Unloaded) -> Self {
        match unloaded {
            Unloaded::Surely(failure) | Unloaded::Perhaps(failure) => failure,
        }
    }
}

/// How a tree is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Asked to end, and killed after its grace.
    Graceful,
    /// Killed at once, with its requests in flight.
    Cut,
}
