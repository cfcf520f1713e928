//! A plan is data: exactly what `swap` or `rollback` will do, step by step.

use serde::{Deserialize, Serialize};

use super::ids::{Port, ServiceName, SlotName};
use super::replica::Revision;
use super::step::Step;

/// What a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The candidate gets ready in a slot of its own, then traffic moves.
    BlueGreen,
    /// Traffic moves back to the retained replica.
    WarmRollback,
}

/// One side of a plan: a slot and what runs there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The slot.
    pub slot: SlotName,
    /// Its port.
    pub port: Port,
    /// What runs, or will run, there.
    pub revision: Revision,
}

/// Steps in order, and what people should know before they start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The service.
    pub service: ServiceName,
    /// The strategy.
    pub strategy: Strategy,
    /// What serves now; `None` when nothing answers on the port nginx points at.
    pub incumbent: Option<Side>,
    /// What will serve.
    pub candidate: Side,
    /// Steps up to and including `promote`.
    pub steps: Vec<PlannedStep>,
    /// Steps after `promote`, when the other replica's time has come.
    pub later: Vec<PlannedStep>,
    /// What a person should know: warnings that do not stop the swap.
    pub notes: Vec<String>,
    /// `p-` and 12 hex digits over spec, strategy, steps and the incumbent's revision; never over pids or times.
    pub digest: String,
}

impl Plan {
    /// Every step by its index: those up to `promote`, then those after.
    pub fn all_steps(&self) -> impl Iterator<Item = &PlannedStep> {
        self.steps.iter().chain(&self.later)
    }
}

/// A step and what it will do here, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The step.
    #[serde(flatten)]
    pub step: Step,
    /// What it will do, with port, model and bounds.
    pub does: String,
}
