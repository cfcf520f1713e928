//! What an interrupted swap needs, decided from its journal alone.

use super::transition::Status;
use crate::model::outcome::Outcome;

/// What to do with a swap whose agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: its outcome is known. What it left retained is in the service state.
    Finished,
    /// Every step up to `promote` is done: say so.
    Conclude,
    /// Undo what was begun, backwards.
    Unwind,
    /// An undo failed: a person is needed.
    Stuck,
}

/// Decides from a replayed journal.
pub fn decide(status: &Status) -> Recovery {
    match status.outcome {
        Some(Outcome::Stuck) => Recovery::Stuck,
        Some(_) => Recovery::Finished,
        None if status.promoted() => Recovery::Conclude,
        None => Recovery::Unwind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::{Done, RecordKind, Undo};
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
}
