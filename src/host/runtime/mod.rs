//! What supervises replicas, and its means: one file a kind, and one line in `by_means_of`.
//!
//! A replica is recorded with its [`Keeper`]. Whatever is done to it is done by that keeper's means: what a unit keeps is
//! never signalled by pid.

use std::time::Duration;

use super::Ending;
use super::process::{Launch, StopOrder, Stopped};
use crate::model::failure::Failure;
use crate::model::ids::ProcessId;
use crate::model::replica::{Found, Keeper, Replica};

pub(super) mod docker;
mod process;
mod systemd;

pub use systemd::{ENVIRONMENTS, stray_environments};
pub(super) use systemd::{UNITS, assignments, command_line, make_durable};

use docker::Docker;
use process::Process;
use systemd::Systemd;

/// One kind of supervision, and the replica, unit or container that it is about.
pub(super) trait Runtime {
    /// Starts a replica. It is not started on boot, and not restarted when it ends.
    ///
    /// # Errors
    /// If it cannot be started, naming the program; then nothing of it is left, but perhaps of somebody's own unit.
    async fn start(&self, launch: &Launch, grace: Duration) -> Result<Started, Failure>;

    /// What was started, once its own program runs: what supervises it may run others first. May be given up at any moment.
    ///
    /// # Errors
    /// If it ends before that, or is not that far within the limit.
    async fn until_runs(
        &self,
        started: &Started,
        _limit: Duration,
        _told: impl Fn(String),
    ) -> Result<Started, Failure> {
        Ok(started.clone())
    }

    /// Whether it can be asked.
    ///
    /// # Errors
    /// If not.
    async fn answers(&self) -> Result<(), Failure>;

    /// The order to stop whatever carries the marker, running or not; `None` if nothing does.
    ///
    /// # Errors
    /// If that cannot be seen.
    async fn marked(&self, marker: &str, grace: Duration) -> Result<Option<StopOrder>, Failure>;

    /// Whether a stop ends the tree of a replica for good, and nothing else; it is asked again by whoever stops.
    ///
    /// # Errors
    /// If it does not, naming what would end too, or would bring it back; or if that cannot be seen.
    async fn stops_alone(&self, _tree: &[ProcessId]) -> Result<(), Failure> {
        Ok(())
    }

    /// Stops a replica for good, so that neither its death nor a boot starts it again, and proves that it is gone.
    /// May be asked for what is gone already.
    ///
    /// # Errors
    /// If something of it is left.
    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure>;

    /// Whether a boot starts it.
    ///
    /// # Errors
    /// If that cannot be seen.
    async fn booted(&self) -> Result<bool, Failure>;

    /// Decides whether a boot starts it.
    ///
    /// # Errors
    /// If it cannot be decided.
    async fn on_boot(&self, boot: Boot) -> Result<(), Failure>;

    /// From now on it is started again whenever it ends by itself.
    ///
    /// # Errors
    /// If that cannot be arranged.
    async fn promoted(&self) -> Result<(), Failure>;

    /// Returns once all that was said so far can be read.
    async fn settle(&self) {}

    /// The last lines of what a replica said, oldest first.
    ///
    /// # Errors
    /// If they cannot be read.
    async fn log_tail(&self, replica: &Replica, lines: usize) -> Result<Vec<String>, Failure>;
}

/// A replica that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The root of its process tree; one that never was, where other programs run first.
    pub main: ProcessId,
    /// What supervises it, as it is found later.
    pub keeper: Keeper,
    /// What its keeper calls this run of it.
    pub invocation: Option<String>,
    /// Names of variables that its keeper passes to no program.
    pub left_out: Vec<String>,
}

/// Whether a boot starts a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// It does.
    Starts,
    /// It does not.
    Leaves,
}

/// Does something by the means of a keeper: one line a kind.
macro_rules! by_means_of {
    ($keeper:expr, $runtime:ident => $verb:expr) => {
        match $keeper {
            Keeper::Nobody | Keeper::Wrapper { .. } => {
                let $runtime = Process;
                $verb
            }
            Keeper::Unit(unit) => {
                let $runtime = Systemd(unit);
                $verb
            }
            Keeper::Docker(name) => {
                let $runtime = Docker(name);
                $verb
            }
            keeper @ Keeper::Container(_) => Err(unsupported(keeper)),
        }
    };
}

/// [`Runtime::start`], by the means of the launch's keeper.
pub(super) async fn start(launch: &Launch, grace: Duration) -> Result<Started, Failure> {
    by_means_of!(&launch.keeper, runtime => runtime.start(launch, grace).await)
}

/// [`Runtime::until_runs`], by the means of the keeper of what was started.
pub(super) async fn until_runs(
    started: &Started,
    limit: Duration,
    told: impl Fn(String),
) -> Result<Started, Failure> {
    by_means_of!(&started.keeper, runtime => runtime.until_runs(started, limit, told).await)
}

/// [`Runtime::answers`], of a keeper.
pub(super) async fn answers(keeper: &Keeper) -> Result<(), Failure> {
    by_means_of!(keeper, runtime => runtime.answers().await)
}

/// [`Runtime::marked`], by the means of a keeper.
pub(super) async fn marked(
    keeper: &Keeper,
    marker: &str,
    grace: Duration,
) -> Result<Option<StopOrder>, Failure> {
    by_means_of!(keeper, runtime => runtime.marked(marker, grace).await)
}

/// [`Runtime::stops_alone`], by the means of the keeper that was found.
pub(super) async fn stops_alone(found: &Found) -> Result<(), Failure> {
    match &found.keeper {
        // It is refused for what it is.
        Keeper::Container(_) => Ok(()),
        keeper => by_means_of!(keeper, runtime => runtime.stops_alone(&found.tree).await),
    }
}

/// [`Runtime::stop`], by the means of the order's keeper.
pub(super) async fn stop(order: &StopOrder, how: Ending) -> Result<Stopped, Failure> {
    by_means_of!(&order.keeper, runtime => runtime.stop(order, how).await)
}

/// [`Runtime::booted`], by the means of a keeper.
pub(super) async fn booted(keeper: &Keeper) -> Result<bool, Failure> {
    by_means_of!(keeper, runtime => runtime.booted().await)
}

/// [`Runtime::on_boot`], by the means of a keeper.
pub(super) async fn on_boot(keeper: &Keeper, boot: Boot) -> Result<(), Failure> {
    by_means_of!(keeper, runtime => runtime.on_boot(boot).await)
}

/// [`Runtime::promoted`], by the means of a keeper.
pub(super) async fn promoted(keeper: &Keeper) -> Result<(), Failure> {
    by_means_of!(keeper, runtime => runtime.promoted().await)
}

/// The last lines of what a replica has said until now, by the means of its keeper.
pub(super) async fn last_words(replica: &Replica, lines: usize) -> Result<Vec<String>, Failure> {
    by_means_of!(&replica.keeper, runtime => {
        runtime.settle().await;
        runtime.log_tail(replica, lines).await
    })
}

/// What the program of one of our units, or of a container, was given in a variable; `None` where that cannot be seen.
pub(super) async fn variable(keeper: &Keeper, name: &str) -> Option<String> {
    match keeper {
        Keeper::Unit(unit) => Systemd(unit).variable(name),
        Keeper::Docker(container) => Docker(container).variable(name).await,
        Keeper::Nobody | Keeper::Wrapper { .. } | Keeper::Container(_) => None,
    }
}

/// Whether a unit or a container can be started again by its own means.
///
/// # Errors
/// If what supervises it does not say.
pub(super) async fn can_start(keeper: &Keeper) -> Result<bool, Failure> {
    match keeper {
        Keeper::Unit(unit) => Systemd(unit).can_start().await,
        Keeper::Docker(name) => Docker(name).is_there().await,
        Keeper::Nobody | Keeper::Wrapper { .. } | Keeper::Container(_) => Ok(false),
    }
}

/// [`Runtime::log_tail`], by the means of a replica's keeper.
pub(super) async fn log_tail(replica: &Replica, lines: usize) -> Result<Vec<String>, Failure> {
    by_means_of!(&replica.keeper, runtime => runtime.log_tail(replica, lines).await)
}

fn unsupported(keeper: &Keeper) -> Failure {
    Failure::new(format!(
        "{keeper} can be stopped by its own means only, which this version does not have"
    ))
}
