//! The few steps that every strategy is a list of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::SlotName;

/// One step of a plan. Its `do` and its `undo` are in `executor::steps`, one file a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Brings image and weights to the server, before anything is reserved.
    Fetch,
    /// Claims port and GPUs of a slot: nobody else listens, the program resolves.
    ReserveSlot {
        /// The slot.
        slot: SlotName,
    },
    /// Starts the candidate.
    StartReplica {
        /// The slot.
        slot: SlotName,
    },
    /// Waits until the replica in the slot is truly ready.
    AwaitReady {
        /// The slot.
        slot: SlotName,
    },
    /// Points the upstream at the slot and proves it.
    CutOver {
        /// Where traffic goes until then.
        from: SlotName,
        /// Where it goes after.
        to: SlotName,
    },
    /// Waits for the runner's word that customers meet the replica in the slot.
    Verify {
        /// The slot.
        slot: SlotName,
    },
    /// Records the replica in the slot as the incumbent.
    Promote {
        /// The slot.
        slot: SlotName,
    },
    /// Waits until the replica in the slot has nothing in flight.
    Drain {
        /// The slot.
        slot: SlotName,
    },
    /// Stops the replica in the slot for good and proves it. Point of no return.
    Retire {
        /// The slot.
        slot: SlotName,
    },
}

impl Step {
    /// The step's name in logs, journal and documentation.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::ReserveSlot { .. } => "reserve_slot",
            Self::StartReplica { .. } => "start_replica",
            Self::AwaitReady { .. } => "await_ready",
            Self::CutOver { .. } => "cut_over",
            Self::Verify { .. } => "verify",
            Self::Promote { .. } => "promote",
            Self::Drain { .. } => "drain",
            Self::Retire { .. } => "retire",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOver { from, to } => write!(f, "cut_over {from} -> {to}"),
            Self::Fetch => f.write_str(self.name()),
            Self::ReserveSlot { slot }
            | Self::StartReplica { slot }
            | Self::AwaitReady { slot }
            | Self::Promote { slot }
            | Self::Drain { slot }
            | Self::Verify { slot }
            | Self::Retire { slot } => write!(f, "{} {slot}", self.name()),
        }
    }
}
