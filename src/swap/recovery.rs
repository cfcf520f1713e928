//! What an interrupted swap needs, decided from its journal alone.

use super::transition::{Status, StepStatus};
use crate::model::outcome::Outcome;
use crate::model::plan::Plan;
use crate::model::step::Step;

/// What a person does about a swap that is stuck.
pub const MEND_FIRST: &str = "mend that first, then `model-swap repair` (in a workflow `command: repair`) undoes this and the rest";

/// What to do with a swap whose agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: its outcome is known. What it left retained is in the service state.
    Finished,
    /// Every step up to `promote` is done: say so.
    Conclude,
    /// Undo what was begun, backwards.
    Unwind,
    /// An undo failed, and nobody has said so yet: say so. It is not tried again.
    GiveUp,
    /// An undo failed, and a person knows.
    Stuck,
}

/// Decides from a replayed journal.
pub fn decide(status: &Status) -> Recovery {
    match status.outcome {
        Some(Outcome::Stuck) => Recovery::Stuck,
        Some(_) => Recovery::Finished,
        None if status.promoted() => Recovery::Conclude,
        None if status.steps.contains(&StepStatus::UndoFailed) => Recovery::GiveUp,
        None => Recovery::Unwind,
    }
}

/// Whether traffic may be at the candidate, and the swap is neither promoted nor given up: then it can be finished as well
/// as unwound.
pub fn is_past_cutover(status: &Status, plan: &Plan) -> bool {
    let goes_forward = status.steps.iter().all(|step| {
        matches!(step, StepStatus::Pending | StepStatus::Started | StepStatus::Succeeded)
    });
    status.outcome.is_none()
        && !status.promoted()
        && goes_forward
        && cutover(status, plan) != StepStatus::Pending
}

/// Whether the undo of the cutover was begun and is not done, so that nothing before it is undone: where what served before cannot be
/// had back, a person may have the swap finished.
pub fn undoes_cutover(status: &Status, plan: &Plan) -> bool {
    matches!(status.outcome, None | Some(Outcome::Stuck))
        && matches!(cutover(status, plan), StepStatus::Undoing | StepStatus::UndoFailed)
}

/// Whether nginx may send requests to the candidate of a swap that is not at its end.
pub fn may_be_moved(status: &Status, plan: &Plan) -> bool {
    let is_at_its_end = match decide(status) {
        Recovery::Finished | Recovery::Conclude => true,
        Recovery::Unwind | Recovery::GiveUp | Recovery::Stuck => false,
    };
    !is_at_its_end && !matches!(cutover(status, plan), StepStatus::Pending | StepStatus::Undone)
}

/// Whether no cutover of the swap was ever begun: nginx was never told of its candidate.
pub fn never_cut_over(status: &Status, plan: &Plan) -> bool {
    cutover(status, plan) == StepStatus::Pending
}

/// Where the cutover of a plan stands.
fn cutover(status: &Status, plan: &Plan) -> StepStatus {
    let index = plan.steps.iter().position(|p| matches!(p.step, Step::CutOver { .. }));
    index.map_or(StepStatus::Pending, |index| status.steps[index])
}

/// What is found of a swap that nobody works on, and what it needs, one line for people.
pub fn found(status: &Status, plan: &Plan) -> String {
    let name = |index: usize| {
        plan.all_steps().nth(index).map_or_else(|| "a step".to_owned(), |s| s.step.to_string())
    };
    let at = |wanted: StepStatus| status.steps.iter().rposition(|found| *found == wanted).map(name);
    let undone = status.to_undo().into_iter().map(name).collect::<Vec<_>>().join(", ");
    let rest = match undone.as_str() {
        "" => "nothing is left to undo".to_owned(),
        undone => format!("to undo: {undone}"),
    };
    if let Some(step) = at(StepStatus::UndoFailed) {
        return format!("{step} could not be undone; {rest}");
    }
    if status.outcome.is_some() {
        return "it has its outcome".to_owned();
    }
    if status.promoted() {
        return "its agent ended when every step was done, and did not say so".to_owned();
    }
    if let Some(step) = at(StepStatus::Undoing) {
        return format!("its agent ended while it undid {step}; {rest}");
    }
    match at(StepStatus::Started) {
        Some(step) => format!("its agent ended in {step}; {rest}"),
        None => format!("its agent ended between two steps; {rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::failure::Failure;
    use crate::model::record::{Done, RecordKind, Traffic, Undo};
    use crate::swap::planner::tests::two_slot_plan;
    use crate::swap::transition::apply;

    fn after(kinds: &[RecordKind]) -> Recovery {
        let status = Status::of_plan(&two_slot_plan());
        decide(&kinds.iter().fold(status, |status, kind| apply(&status, kind).unwrap()))
    }

    #[test]
    fn every_prefix_of_a_swap_has_its_recovery() {
        let mut kinds = Vec::new();
        for step in 0..5 {
            assert_eq!(after(&kinds), Recovery::Unwind, "before step {step}");
            kinds.push(RecordKind::Started { step, undo: Undo::Nothing });
            assert_eq!(after(&kinds), Recovery::Unwind, "in step {step}");
            kinds.push(RecordKind::Succeeded { step, done: Done::Nothing });
        }
        assert_eq!(after(&kinds), Recovery::Conclude);
        kinds.push(RecordKind::Concluded { outcome: Outcome::Promoted });
        assert_eq!(after(&kinds), Recovery::Finished);
    }

    #[test]
    fn an_undo_that_failed_is_not_tried_again_whether_or_not_it_was_concluded() {
        let started = RecordKind::Started { step: 0, undo: Undo::Nothing };
        let mut kinds = vec![started, RecordKind::UndoStarted { step: 0 }];
        assert_eq!(after(&kinds), Recovery::Unwind);
        kinds.push(RecordKind::UndoFailed { step: 0, failure: Failure::new("x") });
        assert_eq!(after(&kinds), Recovery::GiveUp);
        kinds.push(RecordKind::Concluded { outcome: Outcome::Stuck });
        assert_eq!(after(&kinds), Recovery::Stuck);
        // A person has mended it, and the agent that he asked has died.
        kinds.push(RecordKind::UndoStarted { step: 0 });
        assert_eq!(after(&kinds), Recovery::Unwind);
    }

    #[test]
    fn only_what_was_cut_over_and_not_given_up_can_be_finished() {
        let plan = two_slot_plan();
        let mut status = Status::of_plan(&plan);
        let mut may = |kind: RecordKind| {
            status = apply(&status, &kind).unwrap();
            is_past_cutover(&status, &plan)
        };
        for step in 0..3 {
            assert!(!may(RecordKind::Started { step, undo: Undo::Nothing }));
            assert!(!may(RecordKind::Succeeded { step, done: Done::Nothing }));
        }
        assert!(may(RecordKind::Started { step: 3, undo: Undo::Nothing }));
        assert!(may(RecordKind::Succeeded { step: 3, done: Done::Nothing }));
        assert!(!may(RecordKind::UndoStarted { step: 3 }));
    }

    #[test]
    fn from_a_cutover_that_was_begun_until_it_is_undone_traffic_may_be_moved() {
        let plan = two_slot_plan();
        let mut status = Status::of_plan(&plan);
        let mut may = |kind: RecordKind| {
            status = apply(&status, &kind).unwrap();
            may_be_moved(&status, &plan)
        };
        let (undo, failure) = (Undo::Nothing, Failure::new("x"));
        for step in 0..3 {
            assert!(!may(RecordKind::Started { step, undo: undo.clone() }));
            assert!(!may(RecordKind::Succeeded { step, done: Done::Nothing }));
        }
        assert!(may(RecordKind::Started { step: 3, undo }));
        assert!(may(RecordKind::Failed { step: 3, failure: failure.clone() }));
        assert!(may(RecordKind::UndoStarted { step: 3 }));
        assert!(may(RecordKind::UndoFailed { step: 3, failure }));
        assert!(may(RecordKind::Concluded { outcome: Outcome::Stuck }));
        assert!(may(RecordKind::UndoStarted { step: 3 }));
        let traffic = Traffic::Returned;
        assert!(!may(RecordKind::UndoFinished { step: 3, traffic }));
    }

    #[test]
    fn what_is_found_is_said_with_what_is_left_to_undo() {
        let plan = two_slot_plan();
        let mut kinds = Vec::new();
        let mut found = |more: Vec<RecordKind>| {
            kinds.extend(more);
            let status = Status::of_plan(&plan);
            found(&kinds.iter().fold(status, |status, kind| apply(&status, kind).unwrap()), &plan)
        };
        let started = |step| RecordKind::Started { step, undo: Undo::Nothing };
        let done = |step| RecordKind::Succeeded { step, done: Done::Nothing };
        let rows = [
            (vec![], "its agent ended between two steps; nothing is left to undo"),
            (vec![started(0)], "its agent ended in reserve_slot b; to undo: reserve_slot b"),
            (
                vec![done(0), started(1)],
                "its agent ended in start_replica b; to undo: start_replica b, reserve_slot b",
            ),
            (
                vec![RecordKind::UndoStarted { step: 1 }],
                "its agent ended while it undid start_replica b; to undo: start_replica b, reserve_slot b",
            ),
            (
                vec![RecordKind::UndoFailed { step: 1, failure: Failure::new("x") }],
                "start_replica b could not be undone; to undo: start_replica b, reserve_slot b",
            ),
        ];
        for (more, text) in rows {
            assert_eq!(found(more), text);
        }
    }
}
