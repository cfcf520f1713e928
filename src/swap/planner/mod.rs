//! The planner: observed state + spec → plan. Pure, so that `plan` prints exactly what `swap` will do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::model::failure::Failure;
use crate::model::ids::{Port, SlotName};
use crate::model::moment::moment;
use crate::model::plan::{Plan, PlannedStep, Side, Strategy};
use crate::model::record::Retained;
use crate::model::replica::{
    Found, ImageHere, Keeper, Replica, Revision, Systemd, Unit, container_of_slot,
};
use crate::model::spec::{Runtime, SwapSpec};
use crate::model::state::ServiceState;
use crate::model::wire::When;

use super::{revision, weights};

mod fetch;
mod obstacles;
mod rollback;
mod steps;

use fetch::fetch;
pub(super) use fetch::fetched;
pub use obstacles::{LOOPBACK_WAY, cutting_nginx, forwarded, unasked};
use obstacles::{company, obstacles, unpublished};
pub use rollback::{
    Again, free_slot, is_retained, kept_warm, plan_cold_rollback, plan_warm_rollback, warm_replica,
};
pub(super) use steps::{ROLL_BACK, bound, drained, verified};
use steps::{await_ready, cut_over, drain, promote, reserve, retire, spec_argv, start, verify};

/// What the server looks like before anything is done.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The service's state file.
    pub state: ServiceState,
    /// The port that nginx's upstream names.
    pub nginx_port: Port,
    /// The address of this machine that the upstream names, if that is surely another one than 127.0.0.1.
    pub beside_loopback: Option<IpAddr>,
    /// nginx's `worker_shutdown_timeout`, if set: old workers are cut after it.
    pub worker_shutdown_timeout: Option<Duration>,
    /// What runs in each slot.
    pub slots: BTreeMap<SlotName, Occupant>,
    /// What the spec asks for.
    pub wanted: Revision,
    /// The digest of that while its image is not here: by the image's reference.
    pub wanted_by_reference: String,
    /// A keyed hash of the secret values, which is a part of that.
    pub secrets: String,
    /// The spec's image, if there is one and it is here.
    pub image: Option<ImageHere>,
    /// What of systemd there is for replicas.
    pub systemd: Systemd,
    /// Slots whose port or GPU another service has claimed, and how that is said.
    pub claimed: BTreeMap<SlotName, Failure>,
    /// Whether the spec's image is not here yet.
    pub must_pull: bool,
    /// Why `argv[0]` of the command cannot be run, if so.
    pub program: Result<(), Failure>,
    /// The public names that the spec's replica will answer to, where they can be told.
    pub wanted_names: Vec<String>,
}

/// What is found on a slot's port.
#[derive(Debug, Clone, Default)]
pub struct Occupant {
    /// The process tree that listens; `None` if nobody does.
    pub found: Option<Found>,
    /// Whether the port answers although nobody listens: a packet filter forwards it.
    pub forwarded: bool,
    /// Where it listens, if 127.0.0.1, at which replicas are asked, is surely none of that.
    pub beside: BTreeSet<IpAddr>,
    /// Whether it answers as ready.
    pub ready: bool,
    /// Public names that it answers to.
    pub names: Vec<String>,
    /// The model that it says it runs.
    pub model: Option<String>,
    /// Why its requests in flight cannot be counted, if so.
    pub uncounted: Option<Failure>,
    /// What would be stopped together with it, or start it again, if anything.
    pub company: Option<Failure>,
}

/// What a command comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing has to change; why, one line.
    Unchanged(String),
    /// This has to be done.
    Act(Box<Plan>),
}

/// The replica in a slot: the recorded one if it is the one found, else an adopted one.
pub fn replica_in(slot: &SlotName, spec: &SwapSpec, observed: &Observed) -> Option<Replica> {
    let occupant = observed.slots.get(slot)?;
    let found = occupant.found.as_ref()?;
    Some(recorded(slot, found, &observed.state).unwrap_or_else(|| Replica {
        slot: slot.clone(),
        port: spec.slots[slot].port,
        main: found.main,
        revision: revision::adopted(&found.argv, occupant.model.clone()),
        swap: None,
        log: None,
        keeper: found.keeper.clone(),
        invocation: None,
    }))
}

/// The replica on record that was found in a slot, if it is one; its keeper may have started it again since.
pub fn recorded(slot: &SlotName, found: &Found, state: &ServiceState) -> Option<Replica> {
    let known = [state.serving.as_ref(), state.retained.as_ref().map(|r| &r.replica)];
    let is_it = |replica: &&Replica| &replica.slot == slot && is_still(replica, found);
    known.into_iter().flatten().find(is_it).map(|replica| as_found(replica, found))
}

/// Whether a recorded replica is what was found, and of the same revision: a person may have put another model into the
/// unit that was adopted.
fn is_still(replica: &Replica, found: &Found) -> bool {
    let same = || revision::adopted(&found.argv, None).digest == replica.revision.digest;
    replica.is(found)
        && (found.tree.contains(&replica.main) || !replica.revision.is_adopted() || same())
}

/// A recorded replica, which its keeper may have started again since.
fn as_found(replica: &Replica, found: &Found) -> Replica {
    if found.tree.contains(&replica.main) {
        return replica.clone();
    }
    Replica { main: found.main, invocation: None, ..replica.clone() }
}

/// The slot that nginx points at.
///
/// # Errors
/// If it points at no slot.
pub fn serving_slot(spec: &SwapSpec, port: Port) -> Result<&SlotName, Failure> {
    spec.slots.iter().find(|(_, slot)| slot.port == port).map(|(name, _)| name).ok_or_else(|| {
        let slots: Vec<_> = spec.slots.iter().map(|(n, s)| format!("{n}: {}", s.port)).collect();
        Failure::new(format!(
            "upstream {} in {} points at port {port}, which is no slot's (slots: {})",
            spec.nginx.upstream,
            spec.nginx.config.display(),
            slots.join(", ")
        ))
        .hint(format!("give the slot of the running replica the port {port}"))
    })
}

/// Plans a swap.
///
/// # Errors
/// Every reason why it cannot be done, all at once.
pub fn plan_swap(spec: &SwapSpec, seen: &Observed, when: When) -> Result<Decision, Vec<Failure>> {
    let from = serving_slot(spec, seen.nginx_port).map_err(|failure| vec![failure])?;
    let to = other_slot(spec, from);
    let incumbent = replica_in(from, spec, seen);
    let serving = seen.slots.get(from).cloned().unwrap_or_default();
    if let (When::Changed, Some(replica)) = (when, &incumbent)
        && replica.revision.digest == seen.wanted.digest
        && serving.ready
    {
        let reason = format!(
            "{} already serves from slot {from}, ready, and nginx points at it",
            seen.wanted
        );
        return Ok(Decision::Unchanged(reason));
    }
    let warm = replica_in(to, spec, seen).filter(|replica| {
        replica.revision.digest == seen.wanted.digest
            && when == When::Changed
            && seen.slots[to].ready
    });
    let mut failures = obstacles(spec, seen, from, to);
    failures.extend(cutting_nginx(spec, seen.worker_shutdown_timeout));
    // What is warm has its place already.
    if warm.is_none() {
        failures.extend(unpublished(spec, seen));
        failures.extend(company(seen, to));
        failures.extend(seen.claimed.get(to).cloned());
    }
    if !failures.is_empty() {
        return Err(failures);
    }
    let mut steps = Vec::new();
    if warm.is_none() {
        steps.extend(fetch(spec, seen));
        steps.extend(make_room(spec, seen, to));
        steps.push(reserve(spec, to));
        steps.push(start(spec, &spec_argv(spec, to), to, &new_keeper(spec, seen, to)));
    }
    steps.push(await_ready(spec, to));
    steps.push(cut_over(spec, from, to));
    steps.extend(verify(spec, to, incumbent.as_ref()));
    steps.push(promote(spec, to));
    let later = later(spec, seen, incumbent.as_ref().or_else(|| away(from, seen)));
    let mut notes = notes(spec, seen, from);
    notes.extend(unpinned(spec, to));
    notes.extend(stops_warm(spec, seen).filter(|_| warm.is_none()));
    let keeper = warm.map_or_else(|| new_keeper(spec, seen, to), |warm| warm.keeper);
    let candidate = side(spec, to, (seen.wanted.clone(), keeper));
    let mut plan = Plan {
        service: spec.service.clone(),
        strategy: Strategy::BlueGreen,
        incumbent: incumbent.map(|replica| side_of(spec, replica)),
        candidate,
        steps,
        later,
        notes,
        digest: String::new(),
        parts: None,
    };
    plan.digest = revision::of_plan(spec, &plan);
    plan.parts = Some(revision::parts_of_plan(spec, &plan, &seen.secrets));
    Ok(Decision::Act(Box::new(plan)))
}

/// What serves by the record and is not there at this moment, where its keeper brings it back: a swap that goes on without it
/// has to retire it all the same.
fn away<'a>(slot: &SlotName, seen: &'a Observed) -> Option<&'a Replica> {
    let is_empty = seen.slots.get(slot).is_none_or(|occupant| occupant.found.is_none());
    let recorded = seen.state.serving.as_ref();
    recorded.filter(|serving| is_empty && &serving.slot == slot && serving.keeper.restarts())
}

/// The steps after `promote`, about what served before.
fn later(spec: &SwapSpec, seen: &Observed, before: Option<&Replica>) -> Vec<PlannedStep> {
    before.into_iter().flat_map(|old| [drain(spec, &old.slot), retire(old, seen)]).collect()
}

/// Retires what a slot still holds.
fn make_room(spec: &SwapSpec, seen: &Observed, slot: &SlotName) -> Vec<PlannedStep> {
    if let Some(old) = replica_in(slot, spec, seen) {
        // Whoever goes past nginx may come after the drain, and is waited for once more.
        return vec![drain(spec, slot), retire(&old, seen).within(spec.drain.timeout)];
    }
    // It listens no more, but its children may be there still, and hold the GPU.
    let dead = seen.state.retained.as_ref().filter(|retained| &retained.replica.slot == slot);
    dead.map(|dead| retire(&dead.replica, seen)).into_iter().collect()
}

/// That what is kept warm makes room, and so the fast way back ends before its time, if so.
fn stops_warm(spec: &SwapSpec, seen: &Observed) -> Option<String> {
    let Retained { replica, until, .. } = warm_replica(spec, seen)?;
    Some(format!(
        "this stops what is kept warm ({}, until {}): a rollback to it will have to start it again",
        replica.revision.model,
        moment(*until)
    ))
}

/// Plans to retire what a swap has left warm, with nothing else in its place.
///
/// # Errors
/// If nginx points at no slot, or at what was left.
pub fn plan_clearing(
    spec: &SwapSpec,
    seen: &Observed,
    retained: &Retained,
) -> Result<Plan, Failure> {
    let from = serving_slot(spec, seen.nginx_port)?;
    let left = &retained.replica;
    if from == &left.slot {
        let text = format!("nginx points at {}, which was to be retired", left.revision);
        return Err(Failure::new(text)
            .hint("run a swap or a rollback first, so that it is known what serves"));
    }
    let is_there = is_retained(&left.slot, seen);
    let serving = replica_in(from, spec, seen).map(|replica| side_of(spec, replica));
    let first = if is_there { vec![drain(spec, &left.slot)] } else { Vec::new() };
    let mut plan = Plan {
        service: spec.service.clone(),
        strategy: Strategy::BlueGreen,
        candidate: serving.clone().unwrap_or_else(|| side_of(spec, left.clone())),
        incumbent: serving,
        steps: first.into_iter().chain([retire(left, seen)]).collect(),
        later: Vec::new(),
        notes: Vec::new(),
        digest: String::new(),
        parts: None,
    };
    plan.digest = revision::of_plan(spec, &plan);
    Ok(plan)
}

fn notes(spec: &SwapSpec, seen: &Observed, from: &SlotName) -> Vec<String> {
    let mut notes = Vec::new();
    let serving = seen.slots.get(from).cloned().unwrap_or_default();
    match &serving.found {
        None if serving.forwarded => notes.push(forwarded(from, seen.nginx_port).to_string()),
        None => notes
            .push(format!("nothing listens on port {} now: the service is down", seen.nginx_port)),
        Some(found) => {
            if let Keeper::Wrapper { process, command } = &found.keeper {
                notes.push(format!(
                    "the replica in slot {from} was started by process {process} ({command}), which may start it again when it is retired"
                ));
            }
        }
    }
    if let Some(why) = &serving.uncounted {
        notes.push(format!(
            "the requests in flight on port {} cannot be counted ({why}): the replica there will not be retired by itself",
            seen.nginx_port
        ));
    }
    let lost: Vec<_> =
        serving.names.iter().filter(|name| !seen.wanted_names.contains(name)).collect();
    if !lost.is_empty() && !seen.wanted_names.is_empty() {
        let names =
            |list: &[&String]| list.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "clients that ask for {} will get 404: the new replica answers to {}; add --served-model-name",
            names(&lost),
            names(&seen.wanted_names.iter().collect::<Vec<_>>())
        ));
    }
    notes.extend(weights::unseen_in_a_container(spec, seen.image.as_ref()));
    let why = match (spec.replica.runtime, seen.systemd) {
        (Runtime::Process, Systemd::Denied | Systemd::Usable) => "as replica.runtime says",
        (Runtime::Auto, Systemd::Denied) => "because the agent is not root and may not write units",
        _ => return notes,
    };
    notes.push(format!(
        "the new replica is a plain process, {why}: after a reboot nothing starts it again"
    ));
    notes
}

/// Why the pinned commit of the weights may not be what serves, if so. A path is what it is.
fn unpinned(spec: &SwapSpec, slot: &SlotName) -> Option<String> {
    let pinned = spec.model_revision.as_deref().filter(|_| !spec.model.starts_with('/'))?;
    let is_named = spec_argv(spec, slot).iter().any(|word| word.contains(pinned));
    (!is_named).then(|| {
        format!(
            "model_revision pins the weights to {pinned}, and replica.command does not name it: the engine loads what it finds; \
             add --revision {{revision}}"
        )
    })
}

fn other_slot<'a>(spec: &'a SwapSpec, slot: &SlotName) -> &'a SlotName {
    // A valid spec has exactly two slots.
    spec.slots.keys().find(|name| *name != slot).unwrap_or_else(|| unreachable!("two slots"))
}

fn side(spec: &SwapSpec, slot: &SlotName, (revision, keeper): (Revision, Keeper)) -> Side {
    Side { slot: slot.clone(), port: spec.slots[slot].port, revision, keeper }
}

/// The side of a replica that is there.
fn side_of(spec: &SwapSpec, replica: Replica) -> Side {
    side(spec, &replica.slot, (replica.revision, replica.keeper))
}

/// What will supervise a replica that is started in a slot.
fn new_keeper(spec: &SwapSpec, seen: &Observed, slot: &SlotName) -> Keeper {
    match (spec.replica.runtime, seen.systemd) {
        (Runtime::Docker, _) => container_of_slot(&spec.service, slot),
        (Runtime::Process, _) | (Runtime::Auto, Systemd::Absent | Systemd::Denied) => {
            Keeper::Nobody
        }
        (Runtime::Systemd, _) | (Runtime::Auto, Systemd::Usable) => {
            Keeper::Unit(Unit::of_slot(&spec.service, slot))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
