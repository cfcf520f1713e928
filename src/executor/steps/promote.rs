//! `promote`: records the candidate as what serves, and the other as retained; undo: the state as it was.

use std::time::Duration;

use jiff::Timestamp;

use super::await_ready::serves_what_it_should;
use super::{Acted, Undone};
use crate::executor::context::{Context, old_workers};
use crate::host::Host;
use crate::host::engine::Answer;
use crate::model::failure::Failure;
use crate::model::ids::{ProcessId, SlotName};
use crate::model::outcome::Outcome;
use crate::model::plan::Strategy;
use crate::model::record::{Record, Retained, Undo};
use crate::model::replica::Replica;
use crate::model::state::{Past, ServiceState};
use crate::model::step::Step;
use crate::service_dir::StateError;

pub(super) fn prepare<H: Host>(cx: &Context<'_, H>) -> Result<Undo, Failure> {
    Ok(Undo::State(cx.dir.load()?))
}

pub(super) async fn act<H: Host>(
    cx: &Context<'_, H>,
    records: &[Record],
) -> Result<Acted, Failure> {
    let now = cx.host.now();
    let mut state = cx.dir.load()?;
    let Some(candidate) = cx.candidate(records) else {
        return Err(Failure::new("the replica that serves now is not the one that was planned"));
    };
    let candidate = alive(cx, candidate).await?;
    let (outcome, serving_swap, warm) = match cx.plan.strategy {
        Strategy::BlueGreen => (Outcome::Promoted, Some(cx.swap.clone()), cx.spec().retain),
        // The revision that was rolled back is not worth keeping warm, and nothing may bring it back by mistake.
        Strategy::WarmRollback | Strategy::ColdRollback => {
            (Outcome::RolledBack, None, Duration::ZERO)
        }
    };
    state.retained = left(cx, &state, (records, warm));
    let detail = match &state.retained {
        Some(retained) if !warm.is_zero() => format!(
            "{} serves; {} stays warm in slot {} until {}",
            candidate.revision, retained.replica.revision, retained.replica.slot, retained.until
        ),
        _ => format!("{} serves", candidate.revision),
    };
    if let Some(slot) = newcomer(cx, &state).filter(|_| state.retained.is_some()) {
        // Another service may be about to claim the same.
        match cx.claim(slot).await? {
            // Where somebody else holds its place, the two share it by a person's choice.
            Ok(()) | Err(StateError::Claimed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    cx.host.promoted(&candidate.keeper).await?;
    // Who died before its keeper was to start it again stays dead.
    let candidate = alive(cx, candidate).await?;
    let revision = candidate.revision.clone();
    state.serving = Some(candidate);
    state.serving_swap = serving_swap;
    let (swap, strategy) = (cx.swap.clone(), Some(cx.plan.strategy));
    state.remember(Past { swap, at: now, outcome, revision, strategy });
    cx.dir.save(&state)?;
    Ok(Acted::plainly(detail))
}

/// What served before, to be kept warm for so long and then retired.
fn left<H: Host>(
    cx: &Context<'_, H>,
    state: &ServiceState,
    (records, warm): (&[Record], Duration),
) -> Option<Retained> {
    let before = cx.plan.incumbent.as_ref().and_then(|side| cx.replicas.get(&side.slot));
    let (replica, warm) = match before {
        Some(replica) => (replica, warm),
        None => (away(cx, state)?, Duration::ZERO),
    };
    let since = cx.host.now();
    Some(Retained {
        replica: replica.clone(),
        swap: cx.swap.clone(),
        since,
        until: whole_second(since + warm),
        old_workers: old_workers(records),
    })
}

/// What served by the record, was not there when the swap was planned, and is to be retired: its keeper may have brought it back.
fn away<'a, H: Host>(cx: &Context<'_, H>, state: &'a ServiceState) -> Option<&'a Replica> {
    let recorded = state.serving.as_ref().filter(|_| cx.plan.incumbent.is_none())?;
    let retires = |step: &Step| matches!(step, Step::Retire { slot } if slot == &recorded.slot);
    cx.plan.later.iter().any(|planned| retires(&planned.step)).then_some(recorded)
}

/// The candidate as it runs now: after a boot its keeper has started another process in its place.
///
/// It may have died since it was proven. Where its keeper starts it again, as Docker does from the cutover on, it loads: what
/// served before is brought back then too, unless that does not come back.
pub(super) async fn alive<H: Host>(
    cx: &Context<'_, H>,
    candidate: Replica,
) -> Result<Replica, Failure> {
    if cx.host.alive(candidate.main) {
        return Ok(candidate);
    }
    let ended = || {
        Failure::new(format!(
            "the replica in slot {} (process {}) ended before it was promoted",
            candidate.slot, candidate.main
        ))
        .hint("`model-swap logs` shows its last words")
    };
    let Some(found) = cx.host.find(candidate.port).await?.filter(|found| candidate.is(found))
    else {
        return Err(ended());
    };
    let again = Replica { main: found.main, ..candidate.clone() };
    // After a boot it was waited for, and the way back leads nowhere.
    if cx.goes_forward() {
        return Ok(again);
    }
    match cx.host.ask(again.port).await {
        Answer::Ready(models) => serves_what_it_should(cx, &again, &models).map(|()| again),
        Answer::Locked if again.swap.as_ref() != Some(&cx.swap) => Ok(again),
        Answer::Refused | Answer::Unwell(_) | Answer::Locked => Err(Failure {
            causes: vec![format!("{} has started it again, and it is not ready", again.keeper)],
            ..ended()
        }),
    }
}

pub(super) fn undo<H: Host>(cx: &Context<'_, H>, before: &ServiceState) -> Result<Undone, Failure> {
    if let Some(slot) = newcomer(cx, before) {
        cx.dir.release(slot)?;
    }
    let now = cx.dir.load()?;
    let is_ours = |past: &Past| {
        past.swap == cx.swap && matches!(past.outcome, Outcome::Promoted | Outcome::RolledBack)
    };
    // Where it was never saved, what is there may be newer than what was before.
    if now.history.iter().any(is_ours) {
        let mut before = before.clone();
        // Of another boot: whoever has these pids now is somebody else.
        if now.serving.is_some_and(|serving| serving.main == ProcessId::GONE) {
            before.forget_processes();
        }
        cx.dir.save(&before)?;
    }
    Ok(Undone::Quietly("the record of what serves is as before".to_owned()))
}

/// The slot of an incumbent that was started by somebody else and has claimed nothing: from now on it is this service's
/// to keep warm, and nobody may start another model on its GPU.
fn newcomer<'a, H: Host>(cx: &'a Context<'_, H>, before: &ServiceState) -> Option<&'a SlotName> {
    let slot = cx.plan.incumbent.as_ref().map(|side| &side.slot)?;
    let known = before.serving.as_ref().is_some_and(|serving| &serving.slot == slot);
    (!known).then_some(slot)
}

/// People read it; nobody needs its nanoseconds.
fn whole_second(moment: Timestamp) -> Timestamp {
    Timestamp::from_second(moment.as_second()).unwrap_or(moment)
}
