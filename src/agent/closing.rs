//! Closes the story of a swap that is over and whose agent could not: it died before its last word, or the disk refused that.

use std::fs::File;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::follow;
use crate::event_log::EventLog;
use crate::host::process;
use crate::journal::Journal;
use crate::model::event::{Closing, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::Plan;
use crate::model::record::RecordKind;
use crate::model::state::ServiceState;
use crate::model::step::Step;
use crate::service_dir::ServiceDir;
use crate::swap::transition::{Status, StepStatus};

/// The last word about a swap that is over, and of which nothing is kept warm any more. `state` tells whether its result serves.
pub(super) fn last_word(
    (swap, plan): (&SwapId, &Plan),
    status: &Status,
    state: &ServiceState,
) -> Closing {
    let mut later = plan.all_steps().enumerate().skip(status.until_promote);
    let retire = later.find_map(|(index, planned)| match &planned.step {
        Step::Retire { slot } => Some((status.steps[index], slot.clone())),
        _ => None,
    });
    match retire {
        Some((StepStatus::Succeeded, slot)) => Closing::Retired { slot },
        // What it had not stopped yet a rollback may have taken back since.
        Some((StepStatus::Started, slot)) if state.brought_by() == Some(swap) => {
            Closing::Retired { slot }
        }
        Some(_) if status.promoted() => Closing::Superseded { by: None },
        _ => Closing::Nothing,
    }
}

/// The last word of a swap whose agent wrote down that it is over, and died before it told so; and when that was.
pub(super) fn untold(dir: &ServiceDir, swap: &SwapId) -> Option<(Closing, Timestamp)> {
    let folder = dir.swap(swap);
    let status = Journal::look(&folder).ok().filter(|status| status.closed)?;
    let (plan, state) = (Journal::plan(&folder)?, dir.load().ok()?);
    let at = Journal::read(&folder).ok()?.last()?.at;
    let kept = state.retained.as_ref().filter(|retained| retained.swap == *swap);
    let closing = match kept {
        Some(kept) => Closing::Kept { slot: kept.replica.slot.clone(), failure: kept_untold() },
        None => last_word((swap, &plan), &status, &state),
    };
    Some((closing, at))
}

fn kept_untold() -> Failure {
    Failure::new("it could not be retired, and its agent died before it said why")
        .hint("`model-swap status` tells what it has in flight; the next swap retires it")
}

/// The swaps that are over and that nobody has closed or will: what is kept warm is its agent's to close, or its successor's.
pub(super) fn unclosed(dir: &ServiceDir) -> Vec<SwapId> {
    let Ok(state) = dir.load() else { return Vec::new() };
    let warm = state.retained.map(|retained| retained.swap);
    let is_left = |swap: &SwapId| {
        let agent = follow::at_work(&dir.swap(swap)).filter(|agent| *agent != process::own());
        let is_over = Journal::look(&dir.swap(swap)).is_ok_and(|status| is_over(&status));
        is_over && warm.as_ref() != Some(swap) && !agent.is_some_and(process::alive)
    };
    dir.swaps().into_iter().filter(is_left).collect()
}

/// Closes them, for the holder of the lease. What the disk refuses is left for the next time.
pub(super) fn close_all(dir: &ServiceDir) {
    for swap in unclosed(dir) {
        let _ = close(dir, &swap);
    }
}

fn close(dir: &ServiceDir, swap: &SwapId) -> Result<(), Failure> {
    let path = dir.swap(swap);
    let folder = File::open(&path).map_err(|error| Failure::from_error(&error))?;
    // Who goes on with what is kept warm holds it: a journal has one writer.
    let is_ours = flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok();
    let Some(plan) = Journal::plan(&path).filter(|_| is_ours) else { return Ok(()) };
    let mut journal = Journal::open(&path)?;
    if !is_over(journal.status()) {
        return Ok(());
    }
    let now = Timestamp::now();
    journal.append(RecordKind::Closed, now)?;
    let mut events = EventLog::open(&path, swap).map_err(|error| Failure::from_error(&error))?;
    let closing = last_word((swap, &plan), journal.status(), &dir.load()?);
    events.tell(EventKind::Closed(closing), now);
    Ok(())
}

/// Whether nothing but the last word is missing, unless something is kept warm.
fn is_over(status: &Status) -> bool {
    !status.closed && status.outcome.is_some_and(|outcome| outcome != Outcome::Stuck)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::aftermath::tests::left_warm;
    use crate::event_log::EventReader;
    use crate::model::record::{Done, Undo};
    use crate::model::replica::{Replica, Revision};
    use crate::model::state::Past;

    fn service() -> (tempfile::TempDir, ServiceDir) {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        (folder, dir)
    }

    fn forget_what_is_warm(dir: &ServiceDir) {
        let mut state = dir.load().unwrap();
        state.retained = None;
        dir.save(&state).unwrap();
    }

    /// What is told of the end of a swap, and whether its journal is closed, once all are closed that can be.
    fn closed(dir: &ServiceDir, swap: &SwapId) -> (Vec<EventKind>, bool) {
        close_all(dir);
        close_all(dir);
        let told = EventReader::new(&dir.swap(swap)).read().unwrap_or_default();
        let told = told.into_iter().map(|event| event.kind);
        let told = told.filter(|kind| matches!(kind, EventKind::Closed(_))).collect();
        (told, Journal::look(&dir.swap(swap)).unwrap().closed)
    }

    #[test]
    fn what_is_kept_warm_is_not_closed_and_what_was_taken_over_is() {
        let (_folder, dir) = service();
        let swap = left_warm(&dir);
        assert_eq!(closed(&dir, &swap), (Vec::new(), false));
        forget_what_is_warm(&dir);
        let superseded = EventKind::Closed(Closing::Superseded { by: None });
        assert_eq!(closed(&dir, &swap), (vec![superseded], true));
    }

    #[test]
    fn a_swap_whose_agent_died_over_its_retirement_is_closed_as_retired() {
        let (_folder, dir) = service();
        let swap = left_warm(&dir);
        over_its_retirement(&dir, &swap);
        let mut state = dir.load().unwrap();
        let retained = state.retained.take().unwrap();
        let revision = Revision { digest: "r-2".to_owned(), ..retained.replica.revision.clone() };
        let slot = "b".parse().unwrap();
        state.serving = Some(Replica { slot, revision: revision.clone(), ..retained.replica });
        state.serving_swap = Some(swap.clone());
        let (at, outcome) = (Timestamp::UNIX_EPOCH, Outcome::Promoted);
        state.remember(Past { swap: swap.clone(), at, outcome, revision, strategy: None });
        dir.save(&state).unwrap();
        let retired = EventKind::Closed(Closing::Retired { slot: "a".parse().unwrap() });
        assert_eq!(closed(&dir, &swap), (vec![retired], true));
    }

    /// The agent has drained what it had left, and died when it had begun to retire it.
    fn over_its_retirement(dir: &ServiceDir, swap: &SwapId) {
        let plan = Journal::plan(&dir.swap(swap)).unwrap();
        let mut journal = Journal::open(&dir.swap(swap)).unwrap();
        let at = Timestamp::UNIX_EPOCH;
        for step in plan.steps.len()..plan.all_steps().count() {
            journal.append(RecordKind::Started { step, undo: Undo::Nothing }, at).unwrap();
            if step + 1 < plan.all_steps().count() {
                journal.append(RecordKind::Succeeded { step, done: Done::Nothing }, at).unwrap();
            }
        }
    }

    #[test]
    fn a_swap_is_not_said_to_have_retired_what_a_rollback_took_back_meanwhile() {
        let (_folder, dir) = service();
        let swap = left_warm(&dir);
        over_its_retirement(&dir, &swap);
        let mut state = dir.load().unwrap();
        state.serving = state.retained.take().map(|retained| retained.replica);
        state.serving_swap = None;
        dir.save(&state).unwrap();
        let superseded = EventKind::Closed(Closing::Superseded { by: None });
        assert_eq!(closed(&dir, &swap), (vec![superseded], true));
    }

    #[test]
    fn what_was_written_down_and_not_told_is_known_all_the_same() {
        let (_folder, dir) = service();
        let swap = left_warm(&dir);
        assert_eq!(untold(&dir, &swap), None, "it is not over");
        let at = Timestamp::UNIX_EPOCH;
        Journal::open(&dir.swap(&swap)).unwrap().append(RecordKind::Closed, at).unwrap();
        let (slot, failure) = ("a".parse().unwrap(), kept_untold());
        assert_eq!(untold(&dir, &swap), Some((Closing::Kept { slot, failure }, at)));
        forget_what_is_warm(&dir);
        assert_eq!(untold(&dir, &swap), Some((Closing::Superseded { by: None }, at)));
    }

    #[test]
    fn who_goes_on_with_a_swap_closes_it_himself() {
        let (_folder, dir) = service();
        let swap = left_warm(&dir);
        forget_what_is_warm(&dir);
        let other = File::open(dir.swap(&swap)).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        assert_eq!(closed(&dir, &swap), (Vec::new(), false), "the journal has two writers");
    }
}
