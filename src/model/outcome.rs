//! How a command ended, and the exit code that says so.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a swap or a rollback ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The candidate serves and is recorded as the incumbent.
    Promoted,
    /// Nothing had to change.
    Unchanged,
    /// The replica that served before serves again.
    RolledBack,
    /// Given up on request before `promote`; what served before serves.
    Aborted,
    /// Failed before cutover, traffic was never touched; or a rollback that failed, and traffic is where it was before; or nobody
    /// served before, and nobody does.
    Failed,
    /// An undo failed; a person is needed.
    Stuck,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Promoted => "promoted",
            Self::Unchanged => "unchanged",
            Self::RolledBack => "rolled-back",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
            Self::Stuck => "stuck",
        })
    }
}

/// Everything that the process can end with. The README's table is held equal to this by a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: promoted, unchanged, a requested rollback, abort or repair done, or a question answered.
    Done,
    /// 1: a bug in model-swap.
    Bug,
    /// 2: bad input: configuration, inputs or arguments.
    Input,
    /// 3: the environment: ssh, host, nginx or a lost connection; GitHub, where a command cannot do without its answer.
    Environment,
    /// 4: failed before cutover, traffic untouched; also after it a rollback, and traffic is back, or where nobody served before.
    Failed,
    /// 5: rolled back after cutover.
    RolledBack,
    /// 6: aborted.
    Aborted,
    /// 7: stuck; a person is needed.
    Stuck,
}

impl Exit {
    /// Every exit, in the order of its code.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::Bug,
        Self::Input,
        Self::Environment,
        Self::Failed,
        Self::RolledBack,
        Self::Aborted,
        Self::Stuck,
    ];

    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Bug => 1,
            Self::Input => 2,
            Self::Environment => 3,
            Self::Failed => 4,
            Self::RolledBack => 5,
            Self::Aborted => 6,
            Self::Stuck => 7,
        }
    }

    /// The exit of a `swap` that ended so.
    pub fn of_swap(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Promoted | Outcome::Unchanged => Self::Done,
            Outcome::RolledBack => Self::RolledBack,
            Outcome::Aborted => Self::Aborted,
            Outcome::Failed => Self::Failed,
            Outcome::Stuck => Self::Stuck,
        }
    }

    /// The exit of a requested `abort` that ended so.
    pub fn of_abort(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Aborted | Outcome::Unchanged => Self::Done,
            other => Self::of_swap(other),
        }
    }

    /// The exit of a requested `repair` that ended so: whatever became of the swap, it is at its end.
    pub fn of_repair(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Stuck => Self::Stuck,
            _ => Self::Done,
        }
    }

    /// The exit of a requested `rollback` that ended so.
    pub fn of_rollback(outcome: Outcome) -> Self {
        match outcome {
            Outcome::RolledBack | Outcome::Promoted | Outcome::Unchanged => Self::Done,
            Outcome::Aborted => Self::Aborted,
            Outcome::Failed => Self::Failed,
            Outcome::Stuck => Self::Stuck,
        }
    }
}
