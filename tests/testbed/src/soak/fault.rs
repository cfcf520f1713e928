//! What can go wrong with a command, and when.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::server::Aim;

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    Nothing,
    /// SIGKILL of the detached agent.
    AgentKilled,
    /// SIGKILL of the runner, and of its ssh with it, as when its machine is gone.
    RunnerKilled,
    /// The agent is killed when half of a record of its journal is written.
    RecordTorn,
    /// The disk of the server is full from some write on, until the command has ended.
    DiskFull,
    /// Every connection to the server is dropped.
    LinkCut,
    /// Nothing that is sent on a connection arrives any more, and nobody is told.
    LinkSilent,
    /// SIGINT, as GitHub sends it to a job that is cancelled.
    Cancelled,
    /// `abort`, by another job.
    Aborted,
    /// Another job swaps to a third model.
    Rivalled,
    /// Somebody else makes nginx load its configuration again.
    NginxReloaded,
    /// SIGKILL of the candidate while it loads.
    CandidateKilled,
    /// The candidate ends by itself while it loads.
    CandidateDies,
    /// The candidate has loaded another model than it was told to.
    WrongModel,
    /// The candidate is never healthy.
    NeverHealthy,
}

impl Fault {
    const ALL: [Self; 15] = [
        Self::Nothing,
        Self::AgentKilled,
        Self::RunnerKilled,
        Self::RecordTorn,
        Self::DiskFull,
        Self::LinkCut,
        Self::LinkSilent,
        Self::Cancelled,
        Self::Aborted,
        Self::Rivalled,
        Self::NginxReloaded,
        Self::CandidateKilled,
        Self::CandidateDies,
        Self::WrongModel,
        Self::NeverHealthy,
    ];

    /// One for a swap.
    pub(super) fn roll(dice: &mut Rng) -> Self {
        Self::ALL[dice.usize(..Self::ALL.len())]
    }

    /// Whether it is a fault of a candidate that is started, which a warm rollback has not.
    pub(super) fn needs_candidate(self) -> bool {
        matches!(
            self,
            Self::CandidateKilled | Self::CandidateDies | Self::WrongModel | Self::NeverHealthy
        )
    }

    /// What is to be set up before the command begins, for a fault that strikes at a write and not at a moment. A swap writes some
    /// fifteen records, and each file of its state in turn.
    pub(super) fn aim(self, moment: Moment) -> Option<Aim> {
        match self {
            Self::RecordTorn => Some(Aim::Within(moment.events + 1)),
            Self::DiskFull => Some(Aim::Full(2 * moment.events + 1)),
            _ => None,
        }
    }

    /// More flags for the engine.
    pub(super) fn flags(self) -> &'static str {
        match self {
            Self::CandidateKilled => "--stub-load-time 60s",
            Self::CandidateDies => "--stub-load-time 60s --stub-die-after 200ms",
            Self::WrongModel => "--stub-report-model Qwen/Other",
            Self::NeverHealthy => "--stub-health-status 503",
            _ => "",
        }
    }
}

/// When it strikes: after so many events of the swap, and a little later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) events: usize,
    pub(super) later: Duration,
}

impl Moment {
    /// A swap tells of some fifteen events up to its end; a moment after the last strikes what follows.
    const EVENTS: usize = 16;
    /// Longer than any step but loading takes.
    const LATER_MS: u64 = 60;

    pub(super) fn roll(dice: &mut Rng) -> Self {
        Self {
            events: dice.usize(..Self::EVENTS),
            later: Duration::from_millis(dice.u64(..Self::LATER_MS)),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms after event {}", self.later.as_millis(), self.events)
    }
}
