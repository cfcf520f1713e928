//! A failure as it is journalled, sent and shown: a flattened chain, never a live error.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, why, and what a person can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, a lowercase fragment with value and bound.
    pub message: String,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// The last lines of the log of what failed (engine or nginx), oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
    /// Where in a file of the repository it is, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Box<Location>>,
}

/// A place in a file of the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Its path, as the user named it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1.
    pub column: usize,
}

impl Failure {
    /// A failure with nothing but its message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Flattens an error and its sources.
    pub fn from_error(error: &(dyn Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self { message: error.to_string(), causes, ..Self::default() }
    }

    /// The same failure with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same failure with the log lines that belong to it.
    #[must_use]
    pub fn log(mut self, lines: Vec<String>) -> Self {
        self.log_tail = lines;
        self
    }
}

impl fmt::Display for Failure {
    /// Message and causes on one line; hints and log are the renderer's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for Failure {}

/// An error that knows how to mend itself. Hints are kept apart from `Display`.
pub trait Hint: Error {
    /// What a person can do about it, each a full instruction.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }

    /// The log lines that belong to it, oldest first.
    fn log_tail(&self) -> Vec<String> {
        Vec::new()
    }

    /// The failure to journal, send and show.
    fn to_failure(&self) -> Failure
    where
        Self: Sized + 'static,
    {
        Failure { hints: self.hints(), log_tail: self.log_tail(), ..Failure::from_error(self) }
    }
}
