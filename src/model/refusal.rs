//! Why an agent does nothing of what it was asked for.

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::outcome::Exit;

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// All problems at once.
    pub failures: Vec<Failure>,
    /// Whose fault.
    pub fault: Fault,
    /// What is known of the swap that was asked for or followed.
    #[serde(default, skip_serializing_if = "Known::is_untold")]
    pub known: Known,
}

impl Refusal {
    /// What was asked for cannot be done.
    pub fn input(failure: impl Into<Failure>) -> Self {
        Self::of([failure.into()], Fault::Input)
    }

    /// The server cannot do it.
    pub fn environment(failure: impl Into<Failure>) -> Self {
        Self::of([failure.into()], Fault::Environment)
    }

    /// The same, where it is certain that nothing has begun under the id that was asked for.
    #[must_use]
    pub fn unbegun(self) -> Self {
        Self { known: Known::Unbegun, ..self }
    }

    /// All these problems.
    pub fn of(failures: impl Into<Vec<Failure>>, fault: Fault) -> Self {
        Self { failures: failures.into(), fault, known: Known::Untold }
    }
}

/// What a refusal tells of the swap that was asked for or followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// Nothing: it may be under way. An older agent never tells more.
    #[default]
    Untold,
    /// Its agent is gone, perhaps before it said that it has begun: what has is brought to its end if it is asked for again by its id.
    Left,
    /// Nothing has begun under its id.
    Unbegun,
}

impl Known {
    fn is_untold(&self) -> bool {
        *self == Self::Untold
    }
}

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// What was asked for.
    Input,
    /// The server it was asked of.
    Environment,
    /// Nobody's: it was aborted before it began.
    Aborted,
    /// An earlier swap's, which is stuck.
    Stuck,
}

impl Fault {
    /// The exit that says so.
    pub fn exit(self) -> Exit {
        match self {
            Self::Input => Exit::Input,
            Self::Environment => Exit::Environment,
            Self::Aborted => Exit::Aborted,
            Self::Stuck => Exit::Stuck,
        }
    }
}
