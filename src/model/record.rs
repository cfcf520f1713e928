//! Journal records: intent for machines. A version 1 journal must parse for ever.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::ids::{ProcessId, SlotName, SwapId};
use super::outcome::Outcome;
use super::plan::Plan;
use super::replica::Replica;
use super::state::ServiceState;

/// Version of the journal's format.
pub const JOURNAL_VERSION: u32 = 1;

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`JOURNAL_VERSION`] of the writer.
    pub v: u32,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// What.
    pub kind: RecordKind,
}

/// What is about to be done, or was done. Indices are into `plan.steps`, then `plan.later`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum RecordKind {
    /// Always first.
    Planned {
        /// The swap.
        swap: SwapId,
        /// Its plan.
        plan: Box<Plan>,
    },
    /// A step is about to act.
    Started {
        /// Index.
        step: usize,
        /// What its undo needs.
        undo: Undo,
    },
    /// A step acted.
    Succeeded {
        /// Index.
        step: usize,
        /// What later steps need to know of it.
        done: Done,
    },
    /// A step failed, perhaps half-done.
    Failed {
        /// Index.
        step: usize,
        /// Why.
        failure: Failure,
    },
    /// A step is about to be undone.
    UndoStarted {
        /// Index.
        step: usize,
    },
    /// A step is undone.
    UndoFinished {
        /// Index.
        step: usize,
        /// What requests noticed of it.
        traffic: Traffic,
    },
    /// A step could not be undone.
    UndoFailed {
        /// Index.
        step: usize,
        /// Why.
        failure: Failure,
    },
    /// The outcome is known.
    Concluded {
        /// The outcome.
        outcome: Outcome,
    },
    /// Always last.
    Closed,
}

/// Where requests went while a step was done and undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// Where they went before, all the time.
    Untouched,
    /// Elsewhere, perhaps for a moment only, and back.
    Returned,
}

/// What an undo needs, recorded before the act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Nothing to undo.
    Nothing,
    /// Release the reservation of a slot.
    Release {
        /// The slot.
        slot: SlotName,
    },
    /// Stop whatever carries the marker in its environment.
    Stop {
        /// Value of `MODEL_SWAP_REPLICA`.
        marker: String,
    },
    /// Put the `server` lines back.
    Upstream(UpstreamImage),
    /// Put the service state back.
    State(ServiceState),
}

/// The `server` lines of an upstream, before and after a change.
///
/// Only the directives' text: the rest of the file may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamImage {
    /// The file that holds the lines, symlinks resolved.
    pub file: PathBuf,
    /// The directives as they were, in order.
    pub before: Vec<String>,
    /// The directives as they will be.
    pub after: Vec<String>,
}

/// What a finished step leaves for later ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub enum Done {
    /// Nothing.
    Nothing,
    /// The replica that was started.
    Started {
        /// The root of its process tree.
        main: ProcessId,
    },
    /// Traffic was moved.
    CutOver {
        /// Every nginx worker that existed before the reload.
        old_workers: Vec<ProcessId>,
    },
}

/// A replica that lost its traffic and is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// The replica.
    pub replica: Replica,
    /// The swap that took its traffic away.
    pub swap: SwapId,
    /// When its traffic was taken away: the drain's clock starts here.
    pub since: Timestamp,
    /// It is warm until then, and retired after.
    pub until: Timestamp,
    /// nginx workers that may still send it requests.
    pub old_workers: Vec<ProcessId>,
}
