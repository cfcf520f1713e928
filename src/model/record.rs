//! Journal records: intent for machines. A version 1 journal must parse for ever.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::ids::{ProcessId, SlotName, SwapId};
use super::outcome::Outcome;
use super::plan::Plan;
use super::replica::{Keeper, Replica, Revision};
use super::state::{Requester, ServiceState};

/// Version of the journal's format.
///
/// Version 2: a stuck swap may be taken up again, by the undo that failed.
pub const JOURNAL_VERSION: u32 = 2;

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
        /// Who asked for it; nobody in what was written before this was kept.
        #[serde(default)]
        requester: Box<Requester>,
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
    /// Stop whatever carries the marker, for good.
    Stop {
        /// Value of `MODEL_SWAP_REPLICA` in its environment.
        marker: String,
        /// What supervises it.
        #[serde(default)]
        keeper: Keeper,
    },
    /// Put the `server` lines back.
    Upstream {
        /// The lines.
        #[serde(flatten)]
        image: UpstreamImage,
        /// The keeper of the candidate, if it was not to be started on boot before.
        #[serde(default)]
        unbooted: Option<Keeper>,
        /// The nginx workers that were there before: they never knew the candidate, however long a stream pins them.
        #[serde(default)]
        workers: Vec<ProcessId>,
    },
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

impl UpstreamImage {
    /// The change back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let Self { file, before, after } = self.clone();
        Self { file, before: after, after: before }
    }
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
        /// What supervises it.
        #[serde(default)]
        keeper: Keeper,
        /// What its keeper calls this run of it.
        #[serde(default)]
        invocation: Option<String>,
        /// What it runs, where that was not known when the plan was made: its image was not here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<Revision>,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as the first version wrote them.
    const FIRST: [&str; 4] = [
        r#"{"v":1,"at":"2026-11-24T09:00:00Z","kind":{"record":"started","step":1,"undo":{"undo":"stop","marker":"chat/s-1/b"}}}"#,
        r#"{"v":1,"at":"2026-11-24T09:00:00Z","kind":{"record":"succeeded","step":1,"done":{"done":"started","main":{"pid":7,"start":9}}}}"#,
        r#"{"v":1,"at":"2026-11-24T09:00:00Z","kind":{"record":"started","step":3,"undo":{"undo":"upstream","file":"/etc/nginx/llm.conf","before":["server a:1"],"after":["server a:2"]}}}"#,
        r#"{"v":1,"at":"2026-11-24T09:00:00Z","kind":{"record":"started","step":4,"undo":{"undo":"state","v":1,"serving":{"slot":"a","port":8001,"main":{"pid":7,"start":9},"revision":{"digest":"r-1","model":"m","git_sha":null},"swap":null,"log":null},"serving_swap":null,"retained":null,"history":[]}}}"#,
    ];

    #[test]
    fn what_the_first_version_wrote_is_read_as_plain_processes() {
        let records: Vec<Record> =
            FIRST.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let undo = |at: usize| match &records[at].kind {
            RecordKind::Started { undo, .. } => undo.clone(),
            other => panic!("{other:?}"),
        };
        let stop = Undo::Stop { marker: "chat/s-1/b".to_owned(), keeper: Keeper::Nobody };
        assert_eq!(undo(0), stop);
        let main = ProcessId { pid: 7, start: 9 };
        let (keeper, invocation, revision) = (Keeper::Nobody, None, None);
        let done = Done::Started { main, keeper, invocation, revision };
        assert_eq!(records[1].kind, RecordKind::Succeeded { step: 1, done });
        let Undo::Upstream { image, unbooted: None, .. } = undo(2) else { panic!("{:?}", undo(2)) };
        assert_eq!((image.before, image.after.len()), (vec!["server a:1".to_owned()], 1));
        let Undo::State(state) = undo(3) else { panic!("{:?}", undo(3)) };
        assert_eq!(state.serving.unwrap().keeper, Keeper::Nobody);
    }
}
