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
    /// What was looked at.
    pub(super) name: String,
    /// Whether the swap could go on.
    pub(super) passed: bool,
    /// What was seen there.
    pub(super) measured: String,
}

impl Gates {
    /// Takes an event in. A step that is taken up again meets its gates again: the latest word of each counts.
    pub(super) fn take(&mut self, plan: Option<&Plan>, event: &Event) {
        match &event.kind {
            EventKind::GatePassed { gate, measured, .. } => {
                self.put(Gate { name: gate.clone(), passed: true, measured: measured.clone() });
            }
            EventKind::StepFailed { index, failure, .. } => {
                let step = plan.and_then(|plan| plan.all_steps().nth(*index)).map(|it| &it.step);
                if let Some(step) = step.filter(|step| is_gate(step)) {
                    let (name, measured) = (step.to_string(), failure.message.clone());
                    self.put(Gate { name, passed: false, measured });
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, gate: Gate) {
        self.met.retain(|met| met.name != gate.name);
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
