//! A plan is data: exactly what `swap` or `rollback` will do, step by step.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::{Parts, PlanDigest};
use super::ids::{Port, ServiceName, SlotName};
use super::replica::{Keeper, Revision};
use super::step::Step;

/// What a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The candidate gets ready in a slot of its own, then traffic moves.
    BlueGreen,
    /// Traffic moves back to the retained replica.
    WarmRollback,
    /// A revision of the past is started again, then traffic moves back to it.
    ColdRollback,
}

impl Strategy {
    /// Whether its end is to have what served before serve again.
    pub fn is_rollback(self) -> bool {
        match self {
            Self::BlueGreen => false,
            Self::WarmRollback | Self::ColdRollback => true,
        }
    }
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
    /// What supervises it, or will.
    #[serde(default)]
    pub keeper: Keeper,
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
    /// `p-` and 12 hex digits over spec, strategy, both revisions and the steps that move traffic; never over pids or times.
    pub digest: String,
    /// What its parts are known by, so that a refusal can say which are different; absent of a rollback, which nobody approves, and
    /// in plans of older agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
}

impl Plan {
    /// How it is approved.
    pub fn approval(&self) -> PlanDigest {
        PlanDigest::new(&self.digest, self.parts.as_ref())
    }

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
    /// How long it may take, where it waits for what has a bound of its own; absent in plans of older agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Duration>,
}

impl PlannedStep {
    /// A step, in words, that waits for nothing that has a bound of its own.
    pub fn new(step: Step, does: String) -> Self {
        Self { step, does, limit: None }
    }

    /// The same step, where it may take as long as this.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// What can be known of a plan without the server: nothing that depends on what serves there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outline {
    /// The service.
    pub service: ServiceName,
    /// The strategy.
    pub strategy: Strategy,
    /// What will serve.
    pub model: String,
    /// Where it may go: to the one of these that does not serve.
    pub places: Vec<String>,
    /// Name and act of each step up to and including `promote`.
    pub steps: Vec<(&'static str, String)>,
    /// The steps after `promote`.
    pub later: Vec<(&'static str, String)>,
    /// What only the server can tell, one line each.
    pub unknown: Vec<String>,
    /// `o-` and 12 hex digits over the specification alone, and what its parts are known by.
    pub digest: PlanDigest,
}
