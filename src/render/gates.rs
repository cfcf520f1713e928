//! The gates of a swap: what was looked at before it went on, and what was measured there.

use crate::model::event::{Event, EventKind};
use crate::model::plan::Plan;
use crate::model::step::Step;

/// Gates in the order in which they were met.
#[derive(Debug, Clone, Default)]
pub(super) struct Gates {
    met: Vec<Gate>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// Index of the step that it lets go on.
    step: usize,
    /// What was looked at.
    pub(super) name: String,
    /// Whether the swap could go on.
    pub(super) passed: bool,
    /// What was seen there.
    pub(super) measured: String,
}

impl Gates {
    /// Takes an event in.
    pub(super) fn take(&mut self, plan: Option<&Plan>, event: &Event) {
        match &event.kind {
            EventKind::GatePassed { index, gate, measured } => {
                let (step, name, measured) = (*index, gate.clone(), measured.clone());
                self.put(Gate { step, name, passed: true, measured });
            }
            EventKind::StepFailed { index, failure, .. } => {
                let step = plan.and_then(|plan| plan.all_steps().nth(*index)).map(|it| &it.step);
                if let Some(gate) = step.filter(|step| is_gate(step)) {
                    let (name, measured) = (gate.to_string(), failure.message.clone());
                    self.put(Gate { step: *index, name, passed: false, measured });
                }
            }
            _ => {}
        }
    }

    /// A step that is taken up again meets its gates again: the latest word of each counts, and that it failed no more.
    fn put(&mut self, gate: Gate) {
        let is_over = |met: &Gate| met.step == gate.step && (met.name == gate.name || !met.passed);
        self.met.retain(|met| !is_over(met));
        self.met.push(gate);
    }

    /// All that were met.
    pub(super) fn met(&self) -> &[Gate] {
        &self.met
    }
}

/// Whether a step does little else than to look.
fn is_gate(step: &Step) -> bool {
    match step {
        Step::AwaitReady { .. } | Step::CutOver { .. } | Step::Verify { .. } => true,
        Step::Fetch
        | Step::ReserveSlot { .. }
        | Step::StartReplica { .. }
        | Step::Promote { .. }
        | Step::Drain { .. }
        | Step::Retire { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{events, failure, passed, plan};
    use super::*;

    fn met(kinds: Vec<EventKind>) -> Vec<(String, bool)> {
        let mut gates = Gates::default();
        for event in events(kinds.into_iter().map(|kind| (0, kind)).collect()) {
            gates.take(Some(&plan()), &event);
        }
        gates.met().iter().map(|gate| (gate.name.clone(), gate.passed)).collect()
    }

    fn failed(index: usize) -> EventKind {
        EventKind::StepFailed { index, took_ms: 1, failure: failure() }
    }

    #[test]
    fn a_step_that_failed_keeps_the_gates_that_it_had_passed() {
        let story = vec![passed(0, "health", "200"), failed(0)];
        assert_eq!(met(story), [("health".to_owned(), true), ("await_ready b".to_owned(), false)]);
        assert_eq!(met(vec![failed(2)]), [], "to stop a replica is no gate");
    }

    #[test]
    fn a_step_that_is_taken_up_again_has_not_failed_until_it_fails_again() {
        let route = || passed(1, "route", "8 in a row");
        let other = || passed(0, "route", "of another step");
        assert_eq!(
            met(vec![other(), failed(1), route()]),
            ["route", "route"].map(|name| (name.to_owned(), true))
        );
        let twice = vec![failed(1), route(), route(), failed(1)];
        assert_eq!(met(twice), [("route".to_owned(), true), ("cut_over a -> b".to_owned(), false)]);
    }
}
