//! What `doctor` finds: one fact each, what to think of it, and how to mend it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::refusal::Fault;

/// One thing that a swap needs, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, a few words.
    pub what: String,
    /// What to think of it.
    pub mark: Mark,
    /// The fact that was seen, a fragment.
    pub seen: String,
    /// How to mend it, each a full instruction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mend: Vec<String>,
}

/// What to think of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// A swap goes on all the same, and somebody should know.
    Warn,
    /// A swap would be refused, or would fail.
    Fail(Fault),
    /// It could not be looked at, because of something else.
    Unseen,
}

/// What the server's side of `doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// The server's clock when it answered.
    pub at: Timestamp,
    /// In the order in which a person would mend them.
    pub findings: Vec<Finding>,
}

/// What was found in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The place, as people name it.
    pub place: String,
    /// What was found there.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { what: what.into(), mark: Mark::Ok, seen: seen.into(), mend: Vec::new() }
    }

    /// Worth knowing.
    pub fn warn(what: impl Into<String>, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { mark: Mark::Warn, mend: vec![mend.into()], ..Self::ok(what, seen) }
    }

    /// The server is not as a swap needs it.
    pub fn fail(what: impl Into<String>, failure: impl Into<Failure>) -> Self {
        Self::of_failure(what, Fault::Environment, failure)
    }

    /// Something went wrong, by whose fault.
    pub fn of_failure(what: impl Into<String>, fault: Fault, failure: impl Into<Failure>) -> Self {
        let failure = failure.into();
        let seen = failure.to_string();
        Self { mark: Mark::Fail(fault), mend: failure.hints, ..Self::ok(what, seen) }
    }

    /// It could not be looked at; why, a fragment.
    pub fn unseen(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { mark: Mark::Unseen, ..Self::ok(what, why) }
    }

    /// Whether a swap would be refused, or would fail.
    pub fn is_failure(&self) -> bool {
        matches!(self.mark, Mark::Fail(_))
    }
}
