//! A job that is run again: its step finds the swap that it has begun before, under way or at its end.

use crate::event_log;
use crate::journal::Journal;
use crate::model::ids::SwapId;
use crate::model::plan::Strategy;
use crate::model::state::{Holder, Past, Requester, ServiceState, StatusReport, brought_by};
use crate::service_dir::ServiceDir;

/// [`Holder::command`] of a rollback.
pub(super) const ROLLBACK: &str = "rollback";

/// [`Holder::command`] of a swap.
pub(super) const SWAP: &str = "swap";

/// The swap to follow in the place of one's own, where this one holds the lease: it is the same one, or that of the same step.
pub(super) fn attaches_to(held: &Holder, own: &Holder) -> Option<SwapId> {
    let mut unfinished = std::iter::once(held).chain(held.recovers.as_deref());
    let is_own = |one: &Holder| {
        let same = one.command == own.command && same_step(&one.requester, &own.requester);
        one.swap == own.swap || same
    };
    unfinished.find(|one| is_own(one)).map(|one| one.swap.clone())
}

/// The swap to tell of where nothing has to change: it brought what serves, and an earlier attempt of the same step has asked
/// for it. Within one attempt a step that comes twice asks twice.
pub(super) fn has_ended(dir: &ServiceDir, report: &StatusReport, own: &Holder) -> Option<SwapId> {
    let brought = report.brought_by()?;
    let is_own = is_earlier(dir, (brought, &report.history), (&own.command, &own.requester));
    is_own.then(|| brought.clone())
}

/// Whether what serves, by its revision's digest, was brought by an earlier attempt of the step that asks for a swap now. Forced
/// or not, it is not brought once more: the way back to what served before would go.
pub(super) fn has_brought(
    dir: &ServiceDir,
    (state, serves): (&ServiceState, Option<&str>),
    requester: &Requester,
) -> bool {
    let brought = brought_by(state.serving_swap.as_ref(), &state.history, serves);
    brought.is_some_and(|brought| is_earlier(dir, (brought, &state.history), (SWAP, requester)))
}

/// Whether a swap of the past was asked for by an earlier attempt of the step that asks now.
fn is_earlier(
    dir: &ServiceDir,
    (swap, history): (&SwapId, &[Past]),
    (command, requester): (&str, &Requester),
) -> bool {
    let folder = dir.swap(swap);
    let past = history.iter().rfind(|past| past.swap == *swap);
    let (Some(past), Some(before)) = (past, Journal::requester(&folder)) else { return false };
    before.run_attempt != requester.run_attempt
        && same_step(&before, requester)
        && is_command(past, command)
        // Without its end nobody could be told how it ended.
        && event_log::is_concluded(&folder)
}

/// Whether this command led to that.
fn is_command(past: &Past, command: &str) -> bool {
    past.strategy.is_some_and(Strategy::is_rollback) == (command == ROLLBACK)
}

/// Whether two requests come from the same step of the same run, in whichever attempt.
fn same_step(one: &Requester, other: &Requester) -> bool {
    let step = |requester: &Requester| {
        let Requester { repository, run_id, job, step, .. } = requester.clone();
        (repository, run_id, job, step)
    };
    one.run_id.is_some() && step(one) == step(other)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event_log::EventLog;
    use crate::host::process;
    use crate::model::event::{Conclusion, EventKind};
    use crate::model::ids::Port;
    use crate::model::outcome::Outcome;
    use crate::model::replica::Revision;
    use crate::model::state::SlotReport;
    use crate::swap::planner::tests::two_slot_plan;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    fn attempt(number: &str) -> Requester {
        let some = |text: &str| Some(text.to_owned());
        Requester {
            repository: some("acme/llm"),
            run_id: some("77"),
            run_attempt: some(number),
            job: some("swap"),
            step: some("model-swap"),
            ..Requester::default()
        }
    }

    fn asking(command: &str, requester: Requester) -> Holder {
        let (swap, command) = ("s-2".parse().unwrap(), command.to_owned());
        Holder { swap, since: AT, process: process::own(), command, requester, recovers: None }
    }

    fn revision() -> Revision {
        let (digest, model) = ("r-1".to_owned(), "Qwen/New".to_owned());
        Revision { digest, model, git_sha: None, image: None }
    }

    /// A server on which the first attempt of a step has brought what serves, by this strategy.
    fn brought_by(strategy: Strategy) -> (tempfile::TempDir, ServiceDir, StatusReport) {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(state_dir.path(), &"chat".parse().unwrap()).unwrap();
        let swap: SwapId = "s-1".parse().unwrap();
        let folder = dir.make_swap(&swap).unwrap();
        Journal::create(&folder, &swap, (&two_slot_plan(), &attempt("1")), AT).unwrap();
        let is_rollback = strategy.is_rollback();
        let outcome = if is_rollback { Outcome::RolledBack } else { Outcome::Promoted };
        EventLog::open(&folder, &swap).unwrap().tell(concluded(outcome), AT);
        let past = Past {
            swap: swap.clone(),
            at: AT,
            outcome,
            revision: revision(),
            strategy: Some(strategy),
        };
        let slot = SlotReport {
            slot: "a".parse().unwrap(),
            port: Port(8001),
            role: "serving".to_owned(),
            revision: Some(revision()),
            ready: true,
            in_flight: None,
        };
        let report = StatusReport {
            service: "chat".parse().unwrap(),
            nginx_port: Some(Port(8001)),
            astray: None,
            slots: vec![slot],
            holder: None,
            agent: None,
            waiting: Vec::new(),
            step: None,
            unfinished: None,
            serving_swap: (!is_rollback).then_some(swap),
            rollback_until: None,
            overdue: None,
            history: vec![past],
        };
        (state_dir, dir, report)
    }

    fn concluded(outcome: Outcome) -> EventKind {
        EventKind::Concluded(Conclusion {
            outcome,
            traffic: String::new(),
            slot: None,
            revision: None,
            previous_revision: None,
            rollback_until: None,
            failure: None,
        })
    }

    #[test]
    fn a_later_attempt_of_the_same_step_tells_of_the_swap_that_brought_what_serves() {
        let (_state_dir, dir, report) = brought_by(Strategy::BlueGreen);
        let ended = |command, requester| has_ended(&dir, &report, &asking(command, requester));
        let first: SwapId = "s-1".parse().unwrap();
        assert_eq!(ended("swap", attempt("2")), Some(first.clone()));
        assert_eq!(ended("swap", attempt("1")), None, "it asks twice");
        assert_eq!(ended(ROLLBACK, attempt("2")), None, "it asks for something else");
        assert_eq!(ended("swap", Requester::default()), None, "nobody knows whose");
        let others = [
            Requester { run_id: Some("78".to_owned()), ..attempt("2") },
            Requester { job: Some("other".to_owned()), ..attempt("2") },
            Requester { step: Some("other".to_owned()), ..attempt("2") },
            Requester { repository: Some("acme/fork".to_owned()), ..attempt("2") },
        ];
        for other in others {
            assert_eq!(ended("swap", other.clone()), None, "{other:?}");
        }
        // Something else was brought meanwhile, as by hand.
        let mut elsewhere = report.clone();
        elsewhere.slots[0].revision.as_mut().unwrap().digest = "r-2".to_owned();
        assert_eq!(has_ended(&dir, &elsewhere, &asking("swap", attempt("2"))), None);
        std::fs::remove_file(dir.swap(&first).join(event_log::FILE)).unwrap();
        assert_eq!(ended("swap", attempt("2")), None, "nobody could be told how it ended");
    }

    #[test]
    fn a_rollback_is_told_of_to_a_rollback() {
        let (_state_dir, dir, report) = brought_by(Strategy::WarmRollback);
        let ended = |command| has_ended(&dir, &report, &asking(command, attempt("2")));
        assert_eq!(ended(ROLLBACK), Some("s-1".parse().unwrap()));
        assert_eq!(ended("swap"), None);
    }
}
