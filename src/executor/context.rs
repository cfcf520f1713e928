//! What every step of a swap can see: the host, what is asked, what was found, and a way to tell the story.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::observe::names_of_gpus;
use super::running::Running;
use crate::abort::{self, AbortOrder};
use crate::event_log::EventLog;
use crate::host::Host;
use crate::host::process::Snapshot;
use crate::model::event::{Conclusion, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::{ProcessId, SlotName, SwapId};
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Side};
use crate::model::record::{Done, Record, RecordKind, Retained};
use crate::model::replica::{Keeper, Replica};
use crate::model::spec::{Slot, SwapSpec};
use crate::model::wire::Asked;
use crate::service_dir::{HostLock, ServiceDir, StateError};

/// Between two tries for the lock of the host; flock tells nobody when it comes free.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Between two looks whether a shutdown was called off, which nobody tells.
const SHUTDOWN_LOOK: Duration = Duration::from_secs(1);

/// What this process knows of nginx and the cutover of its swap.
#[derive(Debug)]
pub(super) enum Cutover {
    /// Nothing: another process may have made it, or nginx may load it yet.
    Unknown,
    /// nginx has not loaded it.
    NotLoaded,
    /// nginx has loaded it; these workers were there before.
    Loaded(Vec<ProcessId>),
}

/// A swap while it is being executed.
pub struct Context<'a, H> {
    /// The thin world.
    pub host: &'a H,
    /// Specification and secrets.
    pub asked: &'a Asked,
    /// The service's folders.
    pub dir: &'a ServiceDir,
    /// The swap.
    pub swap: SwapId,
    /// Its plan.
    pub plan: Plan,
    /// What ran in each slot when the plan was made.
    pub replicas: BTreeMap<SlotName, Replica>,
    /// What the candidate is started from instead of the specification, in a cold rollback to an adopted revision.
    pub again: Option<Snapshot>,
    events: RefCell<EventLog>,
    cutover: RefCell<Cutover>,
    workers_before: RefCell<Vec<ProcessId>>,
    never_begun: Cell<bool>,
    index: Cell<usize>,
    has_arrived: Cell<bool>,
    goes_forward: Cell<bool>,
    drains_since: Cell<Option<Timestamp>>,
}

impl<'a, H: Host> Context<'a, H> {
    /// A swap that is about to begin, or to be recovered.
    pub fn new(
        (host, asked, dir): (&'a H, &'a Asked, &'a ServiceDir),
        swap: SwapId,
        plan: Plan,
        events: EventLog,
    ) -> Self {
        let replicas = BTreeMap::new();
        Self {
            host,
            asked,
            dir,
            swap,
            plan,
            replicas,
            again: None,
            events: RefCell::new(events),
            cutover: RefCell::new(Cutover::Unknown),
            workers_before: RefCell::default(),
            never_begun: Cell::new(false),
            index: Cell::new(0),
            has_arrived: Cell::new(false),
            goes_forward: Cell::new(false),
            drains_since: Cell::new(None),
        }
    }

    /// The specification.
    pub fn spec(&self) -> &SwapSpec {
        &self.asked.spec
    }

    /// Port and GPUs of a slot.
    pub fn slot(&self, name: &SlotName) -> &Slot {
        &self.asked.spec.slots[name]
    }

    /// Appends an event.
    pub fn tell(&self, kind: EventKind) {
        self.events.borrow_mut().tell(kind, self.host.now());
    }

    /// Whether the swap's story has its end.
    pub(super) fn has_told_its_end(&self) -> bool {
        self.events.borrow().concluded
    }

    /// Tells something worth a line about the step that is being performed.
    pub fn progress(&self, text: impl Into<String>) {
        self.tell(EventKind::Progress { index: self.index.get(), text: text.into() });
    }

    /// Tells that a gate of the step that is being performed lets the swap go on, and what was measured there.
    pub(super) fn passed(&self, gate: &str, measured: impl Into<String>) {
        let (index, gate, measured) = (self.index.get(), gate.to_owned(), measured.into());
        self.tell(EventKind::GatePassed { index, gate, measured });
    }

    /// From now on the swap is finished: nobody served before, or what did does not come back, and traffic cannot.
    pub(super) fn go_forward(&self) {
        self.goes_forward.set(true);
    }

    /// Whether there is nobody whom traffic could go back to, so that the swap is finished.
    pub(super) fn goes_forward(&self) -> bool {
        self.goes_forward.get()
    }

    /// Who gives the swap up, if somebody does. It counts for nothing where what served before does not come back; where
    /// nobody served, a person may want that again.
    pub(super) fn order(&self) -> Option<AbortOrder> {
        abort::ordered(self.dir, &self.swap).filter(|_| self.heeds_orders())
    }

    fn heeds_orders(&self) -> bool {
        !self.goes_forward.get() || self.plan.incumbent.is_none()
    }

    /// Waits for something that changes nothing, unless the swap is to be aborted; after `promote` nobody can.
    pub(super) async fn unless_aborted<T>(
        &self,
        wait: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if self.after_promote() || !self.heeds_orders() {
            return wait.await;
        }
        tokio::select! {
            biased;
            order = abort::until_ordered(self.dir, &self.swap) => Err(order.failure()),
            done = wait => done,
        }
    }

    /// Returns at once, unless the server is being shut down. What has failed then has failed of that, and says nothing of swap or
    /// models: nothing is recorded of it, and this process waits for its own end. Whoever comes after the boot goes on from what
    /// was recorded before.
    pub(super) async fn outlive_shutdown(&self) {
        while self.host.is_going_down().await {
            self.host.pause(SHUTDOWN_LOOK).await;
        }
    }

    /// Tells that from now on no undo touches where new requests go.
    pub(super) fn tell_traffic_is_back(&self) {
        self.tell(EventKind::TrafficIsBack { traffic: self.traffic(self.plan.incumbent.as_ref()) });
    }

    /// Where new requests go, one fragment.
    pub(super) fn traffic(&self, serves: Option<&Side>) -> String {
        // A wrapper or a unit may have started it again. Who recovers knows of no process, and looks at the port.
        let ended = |side: &Side| {
            self.replicas.get(&side.slot).is_none_or(|replica| !self.host.alive(replica.main))
                && self.host.is_silent(side.port)
                // Where the kernel forwards to a container nobody listens.
                && !matches!(side.keeper, Keeper::Docker(_))
        };
        match serves {
            Some(side) if self.plan.incumbent.as_ref() == Some(side) && ended(side) => format!(
                "nobody serves: {} in slot {} has ended, port {}",
                side.revision.model, side.slot, side.port
            ),
            Some(side) => serves_from(side),
            None => "nothing serves, as before".to_owned(),
        }
    }

    /// Whether the step that is being performed is one of those after `promote`.
    pub(super) fn after_promote(&self) -> bool {
        self.index.get() >= self.plan.steps.len()
    }

    /// Notes that from now on the candidate, whose swap is undone, is drained.
    pub(super) fn note_drains(&self) {
        self.drains_since.set(Some(self.host.now()));
    }

    /// Since when the candidate is drained whose swap is undone: its time is not given twice.
    pub(super) fn drains_since(&self) -> Timestamp {
        // Never in the future: the clock may have been set since.
        let now = self.host.now();
        self.drains_since.get().map_or(now, |since| since.min(now))
    }

    /// Notes what this process knows of nginx and the cutover.
    pub(super) fn note(&self, cutover: Cutover) {
        *self.cutover.borrow_mut() = cutover;
    }

    /// Notes that no cutover of the swap was ever begun, by its journal.
    pub(super) fn note_never_begun(&self) {
        self.never_begun.set(true);
    }

    /// Whether no cutover of the swap was ever begun, so that nginx was never told of its candidate.
    pub(super) fn never_begun(&self) -> bool {
        self.never_begun.get()
    }

    /// Notes that the swap's cutover was done once: its candidate had the traffic.
    pub(super) fn note_arrived(&self) {
        self.has_arrived.set(true);
    }

    /// Whether requests were proven to go to the candidate, in this life of the agent or in an earlier one.
    pub(super) fn has_arrived(&self) -> bool {
        self.has_arrived.get()
    }

    /// Whether nginx is known never to have loaded the cutover that was begun.
    pub(super) fn never_loaded(&self) -> bool {
        matches!(*self.cutover.borrow(), Cutover::NotLoaded)
    }

    /// Whether nobody knows what nginx has loaded of a cutover that was begun: a reload may still be under way.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(*self.cutover.borrow(), Cutover::Unknown)
    }

    /// Notes the workers that were there before the cutover, by the swap's journal.
    pub(super) fn note_workers_before(&self, workers: Vec<ProcessId>) {
        *self.workers_before.borrow_mut() = workers;
    }

    /// Those workers that came with the cutover or after it, as far as that is known.
    pub(super) fn since_cutover(&self, workers: &[ProcessId]) -> Vec<ProcessId> {
        let noted = self.workers_before.borrow();
        let cutover = self.cutover.borrow();
        let loaded = match &*cutover {
            Cutover::Loaded(before) => before.as_slice(),
            Cutover::Unknown | Cutover::NotLoaded => &[],
        };
        let is_before = |worker: &ProcessId| noted.contains(worker) || loaded.contains(worker);
        workers.iter().filter(|worker| !is_before(worker)).copied().collect()
    }

    /// Workers that are shutting down and may send the candidate requests yet: one that reads the body of an upload connects only
    /// then. None where nginx never loaded the cutover, or cannot be seen.
    pub(super) async fn retiring_since_cutover(&self) -> Vec<ProcessId> {
        if self.never_begun() || self.never_loaded() {
            return Vec::new();
        }
        let Ok(view) = self.host.upstream().await else { return Vec::new() };
        let now = Running::seen(view.master).workers(self.host).await;
        now.map_or_else(|_| Vec::new(), |now| self.since_cutover(&now.old_workers))
    }

    /// Waits for the lock of this host; another service's cutover is over within seconds.
    pub(super) async fn lock_host(&self) -> Result<HostLock, Failure> {
        loop {
            if let Some(lock) = self.dir.try_lock_host()? {
                return Ok(lock);
            }
            self.host.pause(LOCK_RETRY).await;
        }
    }

    /// Claims port and GPUs of a slot, under the lock of this host; the driver is asked only where names may mean the same.
    pub(super) async fn claim(&self, slot: &SlotName) -> Result<Result<(), StateError>, Failure> {
        let place = self.slot(slot);
        let lock = self.unless_aborted(self.lock_host()).await?;
        let gpus = names_of_gpus((self.host, self.dir), place).await;
        Ok(self.dir.claim(&lock, (slot, place), &gpus))
    }

    pub(super) fn begin(&self, index: usize) {
        self.index.set(index);
    }

    /// The marker in the environment of the replica that this swap starts.
    pub(super) fn marker(&self, slot: &SlotName) -> String {
        self.marker_of(&self.swap, slot)
    }

    /// The marker of the replica that a swap started in a slot.
    pub(super) fn marker_of(&self, swap: &SwapId, slot: &SlotName) -> String {
        format!("{}/{swap}/{slot}", self.spec().service)
    }

    /// The replica that this plan makes serve.
    pub(super) fn candidate(&self, records: &[Record]) -> Option<Replica> {
        // Else a replica that is already there: retained by an earlier swap.
        started(&self.plan, &self.swap, records, self.replica_log())
            .or_else(|| self.replicas.get(&self.plan.candidate.slot).cloned())
    }

    /// Where the output of the replica that this swap starts goes.
    pub(super) fn replica_log(&self) -> PathBuf {
        self.dir.replica_log(&self.swap)
    }

    /// What is known of a replica that lost its traffic; a bare record if it lost it behind our back.
    pub(super) async fn retained(&self, slot: &SlotName) -> Result<Option<Retained>, Failure> {
        if let Some(retained) =
            self.dir.load()?.retained.filter(|retained| &retained.replica.slot == slot)
        {
            return Ok(Some(retained));
        }
        let Some(replica) = self.replicas.get(slot).cloned() else { return Ok(None) };
        // Which workers still know it nobody has written down: those that are shutting down may.
        let master = self.host.upstream_at_rest().await?.master;
        let old_workers = Running::seen(master).workers(self.host).await?.old_workers;
        let (since, until) = (self.host.now(), self.host.now());
        Ok(Some(Retained { replica, swap: self.swap.clone(), since, until, old_workers }))
    }

    /// How this swap ended if every step is done, in words and values.
    pub(super) fn done(&self, outcome: Outcome) -> Conclusion {
        let plan = &self.plan;
        let state = self.dir.load().unwrap_or_default();
        let warm = state.retained.filter(|retained| {
            outcome == Outcome::Promoted
                && retained.swap == self.swap
                && retained.until > retained.since
        });
        // What serves may be known better than it was to the plan.
        let serving = state.serving.filter(|serving| serving.swap.as_ref() == Some(&self.swap));
        let revision =
            serving.map_or_else(|| plan.candidate.revision.clone(), |serving| serving.revision);
        Conclusion {
            outcome,
            traffic: self.traffic(Some(&plan.candidate)),
            slot: Some(plan.candidate.slot.clone()),
            revision: Some(revision),
            previous_revision: plan.incumbent.as_ref().map(|side| side.revision.clone()),
            rollback_until: warm.map(|retained| retained.until),
            failure: None,
        }
    }
}

/// Who serves, and where, one fragment.
pub(super) fn serves_from(side: &Side) -> String {
    format!("{} serves from slot {}, port {}", side.revision.model, side.slot, side.port)
}

/// Every nginx worker that existed before this swap's reload.
pub(super) fn old_workers(records: &[Record]) -> Vec<ProcessId> {
    let workers = records.iter().rev().find_map(|record| match &record.kind {
        RecordKind::Succeeded { done: Done::CutOver { old_workers }, .. } => {
            Some(old_workers.clone())
        }
        _ => None,
    });
    workers.unwrap_or_default()
}

/// The replica that a swap started, by its journal.
pub fn started(plan: &Plan, swap: &SwapId, records: &[Record], log: PathBuf) -> Option<Replica> {
    let side = &plan.candidate;
    records.iter().rev().find_map(|record| match &record.kind {
        RecordKind::Succeeded {
            done: Done::Started { main, keeper, invocation, revision },
            ..
        } => Some(Replica {
            slot: side.slot.clone(),
            port: side.port,
            main: *main,
            revision: revision.as_ref().unwrap_or(&side.revision).clone(),
            swap: Some(swap.clone()),
            log: keeper.leaves_a_log().then(|| log.clone()),
            keeper: keeper.clone(),
            invocation: invocation.clone(),
        }),
        _ => None,
    })
}
