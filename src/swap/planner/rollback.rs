//! Plans of the way back: by the replica that is still warm, or by starting a revision of the past again.

use super::steps::{await_ready, cut_over, promote, reserve, spec_argv, start};
use super::{
    Decision, Observed, away, company, cutting_nginx, fetch, is_still, later, make_room,
    new_keeper, notes, obstacles, other_slot, replica_in, serving_slot, side, side_of, unpinned,
    unpublished,
};
use crate::model::failure::Failure;
use crate::model::ids::SlotName;
use crate::model::plan::{Plan, PlannedStep, Strategy};
use crate::model::record::Retained;
use crate::model::replica::{Keeper, Replica, Revision};
use crate::model::spec::SwapSpec;
use crate::model::state::ServiceState;
use crate::swap::revision;

/// A revision of the past that is to be started again. The spec has what it was once brought and started from, and is today's
/// otherwise.
#[derive(Debug, Clone)]
pub struct Again {
    /// The revision, as the history has it.
    pub revision: Revision,
    /// argv of an adopted one; `None`: what the spec says.
    pub argv: Option<Vec<String>>,
    /// What once kept an adopted one, and can start it in this slot by its own means.
    pub keeper: Option<Keeper>,
}

/// The replica that the swap that serves has left warm in the other slot, if it is still there.
pub fn warm_replica<'a>(spec: &SwapSpec, seen: &'a Observed) -> Option<&'a Retained> {
    let to = free_slot(spec, seen).ok()?;
    seen.state.retained.as_ref().filter(|retained| {
        Some(&retained.swap) == seen.state.serving_swap.as_ref() && is_retained(to, seen)
    })
}

/// Whether the replica in a slot is the one that is kept warm; its keeper may have started it again since.
pub fn is_retained(slot: &SlotName, seen: &Observed) -> bool {
    let found = seen.slots.get(slot).and_then(|occupant| occupant.found.as_ref());
    let retained = seen.state.retained.as_ref().map(|retained| &retained.replica);
    found
        .zip(retained)
        .is_some_and(|(found, retained)| &retained.slot == slot && is_still(retained, found))
}

/// What is kept warm in a slot by what starts it again after a boot: where nobody listens there, it may be loading.
pub fn kept_warm<'a>(slot: &SlotName, state: &'a ServiceState) -> Option<&'a Replica> {
    let kept = state.retained.as_ref().map(|retained| &retained.replica);
    kept.filter(|replica| &replica.slot == slot && replica.keeper.restarts())
}

/// The slot that nginx does not point at.
///
/// # Errors
/// If it points at none.
pub fn free_slot<'a>(spec: &'a SwapSpec, seen: &Observed) -> Result<&'a SlotName, Failure> {
    Ok(other_slot(spec, serving_slot(spec, seen.nginx_port)?))
}

/// Plans to move traffic back to the replica that is warm.
///
/// # Errors
/// If the way is barred.
pub fn plan_warm_rollback(
    spec: &SwapSpec,
    seen: &Observed,
    retained: &Retained,
) -> Result<Decision, Vec<Failure>> {
    let to = free_slot(spec, seen).map_err(|failure| vec![failure])?;
    let Replica { revision, keeper, .. } = retained.replica.clone();
    let back = Back { strategy: Strategy::WarmRollback, what: (revision, keeper) };
    back.plan(spec, seen, (to, Vec::new(), Vec::new()))
}

/// Plans to start a revision of the past again, and to move traffic to it.
///
/// # Errors
/// Every reason why it cannot be done, all at once.
pub fn plan_cold_rollback(
    spec: &SwapSpec,
    seen: &Observed,
    again: &Again,
) -> Result<Decision, Vec<Failure>> {
    let from = serving_slot(spec, seen.nginx_port).map_err(|failure| vec![failure])?;
    let to = other_slot(spec, from);
    let mut failures = obstacles(spec, seen, from, to);
    // What somebody else made has its port published as he said.
    failures.extend(unpublished(spec, seen).filter(|_| again.argv.is_none()));
    failures.extend(company(seen, to));
    failures.extend(seen.claimed.get(to).cloned());
    if !failures.is_empty() {
        return Err(failures);
    }
    let mut first: Vec<_> =
        fetch(spec, seen).into_iter().filter(|_| again.argv.is_none()).collect();
    first.extend(make_room(spec, seen, to));
    first.push(reserve(spec, to));
    let mut told = notes(spec, seen, from);
    let keeper = again.keeper.clone().unwrap_or_else(|| new_keeper(spec, seen, to));
    let revision = match &again.argv {
        Some(argv) => {
            first.push(start(spec, argv, to, &keeper));
            again.revision.clone()
        }
        None => {
            told.extend(unpinned(spec, to));
            first.push(start(spec, &spec_argv(spec, to), to, &keeper));
            // An image that is pulled by its digest is the one that it was.
            let known = if seen.must_pull { &again.revision } else { &seen.wanted };
            let digest = known.digest.clone();
            if digest != again.revision.digest {
                told.push(format!(
                    "values of secret_env have changed since {} was started: it comes back as {digest}",
                    again.revision
                ));
            }
            Revision { digest, ..again.revision.clone() }
        }
    };
    Back { strategy: Strategy::ColdRollback, what: (revision, keeper) }.plan(
        spec,
        seen,
        (to, first, told),
    )
}

/// What comes back, and how.
struct Back {
    strategy: Strategy,
    what: (Revision, Keeper),
}

impl Back {
    /// The plan, with what comes before the candidate can be waited for, and what people should know.
    fn plan(
        self,
        spec: &SwapSpec,
        seen: &Observed,
        (to, mut steps, mut notes): (&SlotName, Vec<PlannedStep>, Vec<String>),
    ) -> Result<Decision, Vec<Failure>> {
        let from = other_slot(spec, to);
        let incumbent = replica_in(from, spec, seen);
        steps.extend([await_ready(spec, to), cut_over(spec, from, to), promote(spec, to)]);
        // Going back is worth more than the streams that a hasty nginx may cut.
        notes.extend(
            cutting_nginx(spec, seen.worker_shutdown_timeout).map(|failure| failure.to_string()),
        );
        let mut plan = Plan {
            service: spec.service.clone(),
            strategy: self.strategy,
            later: later(spec, seen, incumbent.as_ref().or_else(|| away(from, seen))),
            incumbent: incumbent.map(|replica| side_of(spec, replica)),
            candidate: side(spec, to, self.what),
            steps,
            notes,
            digest: String::new(),
            parts: None,
        };
        plan.digest = revision::of_plan(spec, &plan);
        Ok(Decision::Act(Box::new(plan)))
    }
}
