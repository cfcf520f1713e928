//! The story of a swap, for people. The journal, for machines, is another file.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::ids::{SlotName, SwapId};
use super::outcome::Outcome;
use super::plan::Plan;
use super::replica::Revision;
use super::sample::Sample;

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Version of the wire.
    pub v: u32,
    /// The swap.
    pub swap: SwapId,
    /// 1, 2, 3, … without gaps within a swap.
    pub seq: u64,
    /// When it happened, by the server's clock.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// What happened. Steps are named by their index in the plan of the first event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// Always first: every step that will follow.
    Planned {
        /// The plan.
        plan: Box<Plan>,
        /// The swap or rollback whose result serves until then, where it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<SwapId>,
    },
    /// A step began.
    StepStarted {
        /// Index in the plan.
        index: usize,
    },
    /// Something worth a line happened within a step.
    Progress {
        /// Index in the plan.
        index: usize,
        /// One line.
        text: String,
    },
    /// A gate of a step lets the swap go on: something was looked at, and is as it has to be.
    GatePassed {
        /// Index in the plan.
        index: usize,
        /// What was looked at, in a word or two.
        gate: String,
        /// What was seen there, one line.
        measured: String,
    },
    /// A step is done.
    StepSucceeded {
        /// Index in the plan.
        index: usize,
        /// How long it took, in milliseconds.
        took_ms: u64,
        /// What was found or done, one line.
        detail: String,
    },
    /// A step failed; the steps before it will be undone.
    StepFailed {
        /// Index in the plan.
        index: usize,
        /// How long it took, in milliseconds.
        took_ms: u64,
        /// Why.
        failure: Failure,
    },
    /// The swap is being unwound, and no undo that is left touches where new requests go.
    TrafficIsBack {
        /// Where they go, one fragment: `Qwen/X serves from slot a, port 8001`.
        traffic: String,
    },
    /// A step's undo began.
    UndoStarted {
        /// Index in the plan.
        index: usize,
    },
    /// A step is undone.
    UndoFinished {
        /// Index in the plan.
        index: usize,
        /// What was undone, one line.
        detail: String,
    },
    /// A step could not be undone: the swap is stuck.
    UndoFailed {
        /// Index in the plan.
        index: usize,
        /// Why.
        failure: Failure,
    },
    /// The server waits for the runner's word that customers meet the candidate. What is looked at, and how, the runner
    /// knows from its own configuration: it goes nowhere because a server says so.
    AwaitsWord {
        /// What the word must carry; another attempt has another one.
        nonce: String,
    },
    /// Another process takes the swap up again; an outcome that was told before counts no more.
    TakenUp {
        /// What it found, one line.
        found: String,
    },
    /// Worth knowing, and no failure.
    Warning {
        /// One line.
        text: String,
    },
    /// The replica that lost its traffic is kept, watched, and retired later: the drain's deadline passed, or something that may
    /// pass is in the way.
    Overdue {
        /// What is left in flight, or what is in the way.
        failure: Failure,
    },
    /// What replicas and GPUs do; told now and then, whatever step is performed.
    Sampled(Sample),
    /// The outcome is known. Steps after `promote` may follow.
    Concluded(Conclusion),
    /// Always last: nothing will follow.
    Closed(Closing),
    /// An event of a newer agent, that this binary does not know.
    #[serde(other)]
    Unknown,
}

/// How a swap ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclusion {
    /// The outcome.
    pub outcome: Outcome,
    /// Where traffic goes now, one fragment: `Qwen/X on slot b serves`.
    pub traffic: String,
    /// The slot that serves.
    pub slot: Option<SlotName>,
    /// What serves now.
    pub revision: Option<Revision>,
    /// What served before.
    pub previous_revision: Option<Revision>,
    /// Until when the previous replica stays warm.
    pub rollback_until: Option<Timestamp>,
    /// Why, unless all went well.
    pub failure: Option<Failure>,
}

/// What became of the replica that lost its traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "closing", rename_all = "snake_case")]
pub enum Closing {
    /// There was none, or the swap did not get so far.
    Nothing,
    /// It is drained and gone.
    Retired {
        /// The slot that is free now.
        slot: SlotName,
    },
    /// It runs on, undrained or unstopped.
    Kept {
        /// Where it runs.
        slot: SlotName,
        /// Why.
        failure: Failure,
    },
    /// Another command took over.
    Superseded {
        /// Which.
        by: Option<SwapId>,
    },
}
