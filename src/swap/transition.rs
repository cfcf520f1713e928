//! The one table that says what may follow what. Live recording and crash replay both go through [`apply`].

use crate::model::outcome::Outcome;
use crate::model::plan::Plan;
use crate::model::record::{Record, RecordKind};
use crate::model::step::Step;

/// Where one step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// Acting, or interrupted while acting.
    Started,
    /// Done.
    Succeeded,
    /// Failed, perhaps half-done.
    Failed,
    /// Being undone, or interrupted while being undone.
    Undoing,
    /// Undone.
    Undone,
    /// Its undo failed.
    UndoFailed,
}

/// Where a swap stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// One entry a step: those up to `promote`, then those after.
    pub steps: Vec<StepStatus>,
    /// Which of them are past the point of no return once started.
    retires: Vec<bool>,
    /// Which of them moves traffic.
    cutover: Option<usize>,
    /// How many steps there are up to and including `promote`.
    pub until_promote: usize,
    /// The outcome, once known.
    pub outcome: Option<Outcome>,
    /// Whether nothing may follow.
    pub closed: bool,
}

/// A record that may not follow what was recorded before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{record} may not follow: {reason}")]
pub struct Illegal {
    /// The record's name and step.
    pub record: String,
    /// The rule it breaks.
    pub reason: &'static str,
}

impl Status {
    /// The status of a plan of which nothing is begun.
    pub fn of_plan(plan: &Plan) -> Self {
        Self {
            steps: plan.all_steps().map(|_| StepStatus::Pending).collect(),
            retires: plan.all_steps().map(|s| matches!(s.step, Step::Retire { .. })).collect(),
            cutover: plan.steps.iter().position(|s| matches!(s.step, Step::CutOver { .. })),
            until_promote: plan.steps.len(),
            outcome: None,
            closed: false,
        }
    }

    /// The steps to undo, in the order of undoing: backwards, never past a `retire` that was begun.
    pub fn to_undo(&self) -> Vec<usize> {
        let floor = self.no_return().map_or(0, |index| index + 1);
        (floor..self.until_promote)
            .rev()
            .filter(|&index| !matches!(self.steps[index], StepStatus::Pending | StepStatus::Undone))
            .collect()
    }

    /// Whether every step up to and including `promote` is done.
    pub fn promoted(&self) -> bool {
        self.steps[..self.until_promote].iter().all(|status| *status == StepStatus::Succeeded)
    }

    /// The last `retire` that was begun: nothing up to it can be undone.
    fn no_return(&self) -> Option<usize> {
        (0..self.steps.len())
            .rev()
            .find(|&index| self.retires[index] && self.steps[index] != StepStatus::Pending)
    }

    /// Whether the step is a cutover whose undo was begun and is not done: it may be done again instead, and what comes after it.
    fn turns_at(&self, step: usize) -> bool {
        self.cutover == Some(step)
            && matches!(self.steps[step], StepStatus::Undoing | StepStatus::UndoFailed)
            && matches!(self.outcome, None | Some(Outcome::Stuck))
    }

    fn unwinding(&self) -> bool {
        self.steps.iter().any(|status| {
            matches!(status, StepStatus::Undoing | StepStatus::Undone | StepStatus::UndoFailed)
        })
    }
}

/// The status after one more record.
///
/// # Errors
/// If the record may not follow; the status is then unchanged and nothing may be written.
pub fn apply(status: &Status, kind: &RecordKind) -> Result<Status, Illegal> {
    let mut next = status.clone();
    let refuse = |reason| Err(Illegal { record: name(kind), reason });
    let turns = matches!(kind, RecordKind::Started { step, .. } if status.turns_at(*step));
    let reopens = status.outcome == Some(Outcome::Stuck)
        && (turns || matches!(kind, RecordKind::UndoStarted { .. }));
    if status.closed && !reopens {
        return refuse("the swap is closed");
    }
    match kind {
        RecordKind::Planned { .. } => return refuse("a journal has one plan"),
        RecordKind::Started { step, .. } if turns => {
            // A person keeps the new model: what comes after is to be done yet.
            next.steps[*step..status.until_promote].fill(StepStatus::Pending);
            next.steps[*step] = StepStatus::Started;
            (next.outcome, next.closed) = (None, false);
        }
        RecordKind::Started { step, .. } => {
            if let Some(reason) = cannot_start(status, *step) {
                return refuse(reason);
            }
            next.steps[*step] = StepStatus::Started;
        }
        RecordKind::Succeeded { step, .. } | RecordKind::Failed { step, .. } => {
            if status.steps.get(*step) != Some(&StepStatus::Started) {
                return refuse("the step is not started");
            }
            // A retire that was interrupted stays begun when the rest is unwound.
            if *step < status.until_promote && status.outcome.is_some() {
                return refuse("the outcome is known");
            }
            next.steps[*step] = match kind {
                RecordKind::Succeeded { .. } => StepStatus::Succeeded,
                _ => StepStatus::Failed,
            };
        }
        RecordKind::UndoStarted { step } => {
            let first = status.to_undo().first().copied();
            // A person has mended what the undo failed of.
            if status.outcome.is_some() && !reopens {
                return refuse("the outcome is known");
            }
            if status.promoted() {
                return refuse("every step is done");
            }
            if first != Some(*step) {
                return refuse("undo goes backwards, step by step, and never past a retire");
            }
            next.steps[*step] = StepStatus::Undoing;
            (next.outcome, next.closed) = (None, false);
        }
        RecordKind::UndoFinished { step, .. } | RecordKind::UndoFailed { step, .. } => {
            if status.steps.get(*step) != Some(&StepStatus::Undoing) {
                return refuse("the step is not being undone");
            }
            next.steps[*step] = match kind {
                RecordKind::UndoFinished { .. } => StepStatus::Undone,
                _ => StepStatus::UndoFailed,
            };
        }
        RecordKind::Concluded { outcome } => {
            if let Some(reason) = cannot_conclude(status, *outcome) {
                return refuse(reason);
            }
            next.outcome = Some(*outcome);
        }
        RecordKind::Closed => {
            if status.outcome.is_none() {
                return refuse("the outcome is not known");
            }
            next.closed = true;
        }
    }
    Ok(next)
}

/// Replays a journal.
///
/// # Errors
/// If it does not begin with its plan or holds a record that may not follow.
pub fn replay(records: &[Record]) -> Result<Status, Illegal> {
    let Some((Record { kind: RecordKind::Planned { plan, .. }, .. }, rest)) = records.split_first()
    else {
        let record =
            records.first().map_or_else(|| "an empty journal".to_owned(), |r| name(&r.kind));
        return Err(Illegal { record, reason: "a journal begins with its plan" });
    };
    rest.iter().try_fold(Status::of_plan(plan), |status, record| apply(&status, &record.kind))
}

fn cannot_start(status: &Status, step: usize) -> Option<&'static str> {
    let after_promote = step >= status.until_promote;
    let again = matches!(status.steps.get(step), Some(StepStatus::Started | StepStatus::Failed));
    if status.steps.get(step) != Some(&StepStatus::Pending) && !(after_promote && again) {
        // Draining and retiring only go forward, so an interrupted one is simply begun again.
        Some("the step is not pending")
    } else if status.unwinding() {
        Some("the swap is being unwound")
    } else if status.steps[..step].iter().any(|s| *s != StepStatus::Succeeded) {
        Some("a step before it is not done")
    } else if after_promote && status.outcome.is_none() {
        Some("the outcome is not known")
    } else if !after_promote && status.outcome.is_some() {
        Some("the outcome is known")
    } else {
        None
    }
}

fn cannot_conclude(status: &Status, outcome: Outcome) -> Option<&'static str> {
    let done = status.promoted();
    let stuck = status.steps.contains(&StepStatus::UndoFailed);
    let unwound = !done && !stuck && status.to_undo().is_empty();
    if status.outcome.is_some() {
        return Some("the outcome is known");
    }
    match outcome {
        Outcome::Promoted if !done => Some("not every step is done"),
        Outcome::Failed | Outcome::Aborted if !unwound => Some("not every step is undone"),
        // A requested rollback ends so when all its steps are done, a swap when all are undone.
        Outcome::RolledBack if !done && !unwound => {
            Some("steps are neither all done nor all undone")
        }
        Outcome::Stuck if !stuck => Some("no undo failed"),
        Outcome::Unchanged => Some("a swap that changes nothing has no journal"),
        _ => None,
    }
}

fn name(kind: &RecordKind) -> String {
    match kind {
        RecordKind::Planned { .. } => "planned".to_owned(),
        RecordKind::Started { step, .. } => format!("started {step}"),
        RecordKind::Succeeded { step, .. } => format!("succeeded {step}"),
        RecordKind::Failed { step, .. } => format!("failed {step}"),
        RecordKind::UndoStarted { step } => format!("undo_started {step}"),
        RecordKind::UndoFinished { step, .. } => format!("undo_finished {step}"),
        RecordKind::UndoFailed { step, .. } => format!("undo_failed {step}"),
        RecordKind::Concluded { outcome } => format!("concluded {outcome}"),
        RecordKind::Closed => "closed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::failure::Failure;
    use crate::model::record::{Done, Traffic, Undo};
    use crate::swap::planner::tests::two_slot_plan;

    fn started(step: usize) -> RecordKind {
        RecordKind::Started { step, undo: Undo::Nothing }
    }

    fn succeeded(step: usize) -> RecordKind {
        RecordKind::Succeeded { step, done: Done::Nothing }
    }

    fn failed(step: usize) -> RecordKind {
        RecordKind::Failed { step, failure: Failure::new("x") }
    }

    fn undone(step: usize) -> [RecordKind; 2] {
        let traffic = Traffic::Untouched;
        [RecordKind::UndoStarted { step }, RecordKind::UndoFinished { step, traffic }]
    }

    fn concluded(outcome: Outcome) -> RecordKind {
        RecordKind::Concluded { outcome }
    }

    fn run(kinds: &[RecordKind]) -> Result<Status, Illegal> {
        let plan = two_slot_plan();
        kinds.iter().try_fold(Status::of_plan(&plan), |status, kind| apply(&status, kind))
    }

    /// The plan used here: reserve, start, ready, cut_over, promote; later drain, retire.
    fn all_done() -> Vec<RecordKind> {
        (0..5).flat_map(|step| [started(step), succeeded(step)]).collect()
    }

    #[test]
    fn a_whole_swap_is_legal() {
        let mut kinds = all_done();
        kinds.push(concluded(Outcome::Promoted));
        kinds.extend((5..7).flat_map(|step| [started(step), succeeded(step)]));
        kinds.push(RecordKind::Closed);
        assert!(run(&kinds).unwrap().closed);
    }

    #[test]
    fn a_failed_step_is_unwound_backwards() {
        let mut kinds = vec![started(0), succeeded(0), started(1), failed(1)];
        assert_eq!(run(&kinds).unwrap().to_undo(), [1, 0]);
        kinds.extend(undone(1));
        kinds.extend(undone(0));
        kinds.push(concluded(Outcome::Failed));
        assert_eq!(run(&kinds).unwrap().outcome, Some(Outcome::Failed));
    }

    #[test]
    fn what_may_not_follow_is_refused() {
        let rows: [(&str, Vec<RecordKind>); 11] = [
            ("skipping a step", vec![started(1)]),
            ("starting twice", vec![started(0), started(0)]),
            ("success without start", vec![succeeded(0)]),
            ("next while one runs", vec![started(0), started(1)]),
            ("next after a failure", vec![started(0), failed(0), started(1)]),
            ("undo forwards", {
                let mut k = vec![started(0), succeeded(0), started(1), failed(1)];
                k.extend(undone(0));
                k
            }),
            ("start while unwinding", {
                let mut k = vec![started(0), failed(0)];
                k.extend(undone(0));
                k.push(started(1));
                k
            }),
            ("promoted before the end", vec![started(0), concluded(Outcome::Promoted)]),
            ("drain before the outcome", {
                let mut k = all_done();
                k.push(started(5));
                k
            }),
            ("undo when all is done", {
                let mut k = all_done();
                k.push(RecordKind::UndoStarted { step: 4 });
                k
            }),
            ("undo after the outcome", {
                let mut k = all_done();
                k.push(concluded(Outcome::Promoted));
                k.push(RecordKind::UndoStarted { step: 4 });
                k
            }),
        ];
        for (what, kinds) in rows {
            assert!(run(&kinds).is_err(), "{what}");
        }
    }

    #[test]
    fn nothing_up_to_a_begun_retire_is_undone() {
        let mut plan = two_slot_plan();
        let drain = plan.later.remove(0);
        let retire = plan.later.remove(0);
        plan.steps.splice(0..0, [drain, retire]);
        let kinds = [started(0), succeeded(0), started(1), succeeded(1), started(2), failed(2)];
        let status = kinds
            .iter()
            .try_fold(Status::of_plan(&plan), |status, kind| apply(&status, kind))
            .unwrap();
        assert_eq!(status.to_undo(), [2]);
        assert!(apply(&status, &RecordKind::UndoStarted { step: 1 }).is_err());
    }

    #[test]
    fn an_interrupted_retire_is_not_finished_after_the_outcome() {
        let mut plan = two_slot_plan();
        plan.steps.insert(0, plan.later.remove(1));
        let kinds = [started(0), concluded(Outcome::Failed)];
        let status = kinds
            .iter()
            .try_fold(Status::of_plan(&plan), |status, kind| apply(&status, kind))
            .unwrap();
        assert!(apply(&status, &succeeded(0)).is_err());
    }

    #[test]
    fn a_failed_undo_ends_stuck_and_in_nothing_else() {
        let mut kinds = vec![started(0), failed(0), RecordKind::UndoStarted { step: 0 }];
        kinds.push(RecordKind::UndoFailed { step: 0, failure: Failure::new("x") });
        let status = run(&kinds).unwrap();
        assert!(apply(&status, &concluded(Outcome::Failed)).is_err());
        assert!(apply(&status, &concluded(Outcome::Stuck)).is_ok());
    }

    #[test]
    fn a_cutover_whose_undo_was_begun_may_be_done_again_and_what_comes_after_it() {
        // Up to cut_over, and promote failed.
        let mut kinds: Vec<_> = all_done().into_iter().take(9).collect();
        kinds.push(failed(4));
        kinds.extend(undone(4));
        assert!(run(&[&kinds[..], &[started(3)]].concat()).is_err(), "its undo was not begun");
        kinds.push(RecordKind::UndoStarted { step: 3 });
        let ends: [&[RecordKind]; 3] = [
            &[],
            &[RecordKind::UndoFailed { step: 3, failure: Failure::new("x") }],
            &[
                RecordKind::UndoFailed { step: 3, failure: Failure::new("x") },
                concluded(Outcome::Stuck),
                RecordKind::Closed,
            ],
        ];
        for end in ends {
            let kinds = [&kinds[..], end].concat();
            for (step, what) in [(2, "one before it"), (4, "one after it")] {
                assert!(run(&[&kinds[..], &[started(step)]].concat()).is_err(), "{what}");
            }
            let rest = [started(3), succeeded(3), started(4), succeeded(4)];
            let again = [&kinds[..], &rest, &[concluded(Outcome::Promoted)]].concat();
            assert_eq!(run(&again).unwrap().outcome, Some(Outcome::Promoted));
            assert_eq!(run(&again[..again.len() - 4]).unwrap().to_undo(), [3, 2, 1, 0]);
        }
        kinds.push(RecordKind::UndoFinished { step: 3, traffic: Traffic::Returned });
        kinds.push(RecordKind::UndoStarted { step: 2 });
        for step in [2, 3] {
            assert!(run(&[&kinds[..], &[started(step)]].concat()).is_err(), "traffic is back");
        }
    }

    #[test]
    fn only_what_is_stuck_is_taken_up_again_and_by_the_undo_that_failed() {
        let mut kinds = vec![started(0), succeeded(0), started(1), failed(1)];
        kinds.push(RecordKind::UndoStarted { step: 1 });
        kinds.push(RecordKind::UndoFailed { step: 1, failure: Failure::new("x") });
        kinds.extend([concluded(Outcome::Stuck), RecordKind::Closed]);
        let stuck = run(&kinds).unwrap();
        assert!(apply(&stuck, &RecordKind::UndoStarted { step: 0 }).is_err());
        assert!(apply(&stuck, &started(2)).is_err());
        assert!(apply(&stuck, &concluded(Outcome::Failed)).is_err());
        kinds.extend(undone(1));
        kinds.extend(undone(0));
        kinds.extend([concluded(Outcome::Failed), RecordKind::Closed]);
        let repaired = run(&kinds).unwrap();
        assert_eq!((repaired.outcome, repaired.closed), (Some(Outcome::Failed), true));
        assert!(apply(&repaired, &RecordKind::UndoStarted { step: 0 }).is_err());
    }
}
