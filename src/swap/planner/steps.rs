//! Steps of a plan, each with what it does in words.

use std::time::Duration;

use super::Observed;
use crate::config::command;
use crate::model::ids::SlotName;
use crate::model::plan::PlannedStep;
use crate::model::replica::{Keeper, Replica, is_own_container};
use crate::model::spec::{OnTimeout, Slot, SwapSpec, VerifySpec};
use crate::model::step::Step;
use crate::swap::redact::redact;

pub(super) fn reserve(spec: &SwapSpec, slot: &SlotName) -> PlannedStep {
    let Slot { port, gpus } = &spec.slots[slot];
    let gpus = if gpus.is_empty() {
        "no GPU".to_owned()
    } else {
        format!("GPU {}", command::gpu_list(gpus))
    };
    let does = format!("claim port {port} and {gpus}");
    PlannedStep::new(Step::ReserveSlot { slot: slot.clone() }, does)
}

pub(super) fn spec_argv(spec: &SwapSpec, slot: &SlotName) -> Vec<String> {
    let Slot { port, gpus } = &spec.slots[slot];
    command::render(&spec.replica.command, spec.weights(), *port, gpus)
}

pub(super) fn start(
    spec: &SwapSpec,
    argv: &[String],
    slot: &SlotName,
    keeper: &Keeper,
) -> PlannedStep {
    let (argv, step) = (redact(argv).join(" "), Step::StartReplica { slot: slot.clone() });
    let does = match keeper {
        Keeper::Unit(unit) if unit.is_own() => format!("start {argv} as unit {}", unit.name),
        Keeper::Docker(name) if is_own_container(name) => {
            format!("start {argv} in container {name}")
        }
        // It may run other programs first.
        Keeper::Unit(_) => {
            let limit = spec.ready.timeout;
            let does =
                format!("start {keeper} again, at most {} until it runs {argv}", bound(limit));
            return PlannedStep::new(step, does).within(limit);
        }
        Keeper::Container(_) | Keeper::Docker(_) => format!("start {keeper} again: {argv}"),
        Keeper::Nobody | Keeper::Wrapper { .. } => format!("start {argv}"),
    };
    PlannedStep::new(step, does)
}

pub(super) fn await_ready(spec: &SwapSpec, slot: &SlotName) -> PlannedStep {
    let does = format!(
        "wait until port {} is ready, at most {}",
        spec.slots[slot].port,
        bound(spec.ready.timeout)
    );
    PlannedStep::new(Step::AwaitReady { slot: slot.clone() }, does).within(spec.ready.timeout)
}

pub(super) fn cut_over(spec: &SwapSpec, from: &SlotName, to: &SlotName) -> PlannedStep {
    let does = format!(
        "point upstream {} at port {} and prove that new requests go there",
        spec.nginx.upstream, spec.slots[to].port
    );
    PlannedStep::new(Step::CutOver { from: from.clone(), to: to.clone() }, does)
}

/// The gate of a swap before `promote`, which goes on without a word where there is nobody to go back to. Going back waits for
/// nobody: a rollback has none.
pub(super) fn verify(
    spec: &SwapSpec,
    slot: &SlotName,
    before: Option<&Replica>,
) -> Option<PlannedStep> {
    let unmet = if before.is_some() { ROLL_BACK } else { "keep it, since nobody served before" };
    let verify = spec.verify.as_ref()?;
    let step = Step::Verify { slot: slot.clone() };
    Some(PlannedStep::new(step, verified(verify, unmet)).within(verify.within))
}

/// What a swap does whose model nobody meets.
pub(in crate::swap) const ROLL_BACK: &str = "roll back";

/// What is waited for, and what is done if it does not come.
pub(in crate::swap) fn verified(verify: &VerifySpec, unmet: &str) -> String {
    format!(
        "wait until the step has met {} at {}, at most {}, then {unmet}",
        verify.expect_model,
        verify.url,
        bound(verify.within)
    )
}

pub(super) fn promote(spec: &SwapSpec, slot: &SlotName) -> PlannedStep {
    let does = format!("record slot {slot} as what serves {}", spec.service);
    PlannedStep::new(Step::Promote { slot: slot.clone() }, does)
}

/// A bound as people read it.
pub(in crate::swap) fn bound(limit: Duration) -> String {
    humantime::format_duration(limit).to_string()
}

/// How long a drain may take, and what then.
pub(in crate::swap) fn drained(spec: &SwapSpec) -> String {
    let then = match spec.drain.on_timeout {
        OnTimeout::Keep => "then keep it until it is drained",
        OnTimeout::Fail => "then give up and keep it",
        OnTimeout::Cut => "then cut what is left",
    };
    format!("at most {}, {then}", bound(spec.drain.timeout))
}

pub(super) fn drain(spec: &SwapSpec, slot: &SlotName) -> PlannedStep {
    let does = format!(
        "wait until port {} has nothing in flight, {}",
        spec.slots[slot].port,
        drained(spec)
    );
    PlannedStep::new(Step::Drain { slot: slot.clone() }, does).within(spec.drain.timeout)
}

/// What is stopped, by its program where that is seen, and by whose means.
pub(super) fn retire(replica: &Replica, seen: &Observed) -> PlannedStep {
    let found = seen.slots.get(&replica.slot).and_then(|occupant| occupant.found.as_ref());
    let program = found.filter(|found| replica.is(found)).and_then(|found| found.argv.first());
    let mut who = format!("process {}", replica.main);
    if let Some(program) = program {
        who.push_str(&format!(" of {program}"));
    }
    if replica.keeper.restarts() {
        who.push_str(&format!(", kept by {}", replica.keeper));
    }
    let does = format!("stop {} ({who}) for good", replica.revision);
    PlannedStep::new(Step::Retire { slot: replica.slot.clone() }, does)
}
