//! What can go wrong with a command, and when.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::server::Aim;

/// The records of a swap.
const RECORDS: usize = 17;

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The kernel has no watches (inotify) left until the command has ended.
    Unwatched,
    /// Every connection to the server is dropped.
    LinkCut,
    /// Nothing that is sent on a connection arrives any more, and nobody is told.
    LinkSilent,
    /// The agent's binary is on its way to the server when the link is cut.
    PushCut,
    /// SIGINT, then SIGTERM, then SIGKILL, as GitHub sends them to a job that is cancelled.
    Cancelled,
    /// `abort`, by another job.
    Aborted,
    /// Another job swaps to a third model.
    Rivalled,
    /// Another service behind the same nginx is swapped at the same time.
    Neighboured,
    /// The agent is killed, and an older one finds what it has left: that one refuses, and leaves it to one of its age.
    ReadByOlder,
    /// The agent that is killed was an older one: what it has left is as its version writes it.
    LeftByOlder,
    /// The folder of all state, or the service's own, is given to another user until the command has ended. Whoever is at work goes
    /// on; whoever comes then is refused.
    StateTaken,
    /// Customers cannot be met, so that nobody confirms the swap.
    Unconfirmed,
    /// The server awaits the runner's word of having met the new model: that way breaks, or the runner dies.
    WordLost,
    /// Somebody else makes nginx load its configuration again.
    NginxReloaded,
    /// Somebody else does so all the time until the command has ended.
    NginxReloadedOften,
    /// nginx is stopped, and started again a little later.
    NginxStopped,
    /// nginx's binary is upgraded: a second master takes requests beside the first, until one of them is told to quit.
    NginxUpgraded,
    /// A person writes a comment into nginx's file.
    FileCommented,
    /// A person changes the upstream's own line, and perhaps has nginx load it.
    LineEdited,
    /// A person leaves nginx's file as nginx cannot load it.
    FileSpoiled,
    /// Somebody else takes the port of the free slot.
    PortStolen,
    /// The server's clock is set: minutes ahead, or days back.
    ClockSet,
    /// SIGKILL of what serves when the command begins.
    IncumbentKilled,
    /// SIGKILL of the candidate, while it loads or at any time after.
    CandidateKilled,
    /// The candidate ends by itself while it loads.
    CandidateDies,
    /// The candidate has loaded another model than it was told to.
    WrongModel,
    /// The candidate is never healthy.
    NeverHealthy,
}

impl Fault {
    const ALL: [Self; 32] = [
        Self::Nothing,
        Self::AgentKilled,
        Self::RunnerKilled,
        Self::RecordTorn,
        Self::DiskFull,
        Self::Unwatched,
        Self::LinkCut,
        Self::LinkSilent,
        Self::PushCut,
        Self::Cancelled,
        Self::Aborted,
        Self::Rivalled,
        Self::Neighboured,
        Self::ReadByOlder,
        Self::LeftByOlder,
        Self::StateTaken,
        Self::Unconfirmed,
        Self::WordLost,
        Self::NginxReloaded,
        Self::NginxReloadedOften,
        Self::NginxStopped,
        Self::NginxUpgraded,
        Self::FileCommented,
        Self::LineEdited,
        Self::FileSpoiled,
        Self::PortStolen,
        Self::ClockSet,
        Self::IncumbentKilled,
        Self::CandidateKilled,
        Self::CandidateDies,
        Self::WrongModel,
        Self::NeverHealthy,
    ];

    /// One for a command that is the so many-th of its server, from 1.
    pub(super) fn roll(dice: &mut Rng, number: usize, command: &str) -> Self {
        loop {
            let fault = Self::ALL[dice.usize(..Self::ALL.len())];
            let is_possible = match fault {
                // Later the binary is there.
                Self::PushCut => number == 1,
                // Nobody else gives a folder away.
                Self::StateTaken => rustix::process::geteuid().is_root(),
                _ => command == "swap" || !fault.needs_swap(),
            };
            if is_possible {
                return fault;
            }
        }
    }

    /// Whether it is about a candidate that is started, or about the word that confirms it: a warm rollback has neither.
    fn needs_swap(self) -> bool {
        matches!(self, Self::CandidateKilled | Self::Unconfirmed | Self::WordLost)
            || self.is_of_candidate()
    }

    /// Whether it is how the candidate is from the beginning.
    fn is_of_candidate(self) -> bool {
        matches!(self, Self::CandidateDies | Self::WrongModel | Self::NeverHealthy)
    }

    /// Whether it strikes at no moment, because the command meets it as soon as it can.
    pub(super) fn is_there_from_the_beginning(self) -> bool {
        self.is_of_candidate() || matches!(self, Self::Nothing | Self::Unconfirmed)
    }

    /// Whether it costs the command nothing.
    fn is_harmless(self) -> bool {
        matches!(
            self,
            Self::Nothing
                | Self::NginxReloaded
                | Self::NginxReloadedOften
                | Self::FileCommented
                | Self::ClockSet
                | Self::Unwatched
                | Self::Neighboured
        )
    }

    /// Whether it is about the runner and its ways alone, so that the server goes on by itself.
    fn is_of_runner(self) -> bool {
        matches!(self, Self::RunnerKilled | Self::LinkCut | Self::LinkSilent)
    }

    /// Whether a swap that meets it may be stuck until a person has mended it: words in nginx's file that no undo may overwrite, or
    /// that nginx refuses, and an old model that nobody but a person starts again.
    pub(super) fn may_stick(self) -> bool {
        matches!(self, Self::LineEdited | Self::FileSpoiled | Self::IncumbentKilled)
    }

    /// What is to be set up before the command begins, for a fault that strikes at a write and not at a moment. A swap writes each
    /// file of its state in turn, too.
    pub(super) fn aim(self, moment: Moment) -> Option<Aim> {
        match self {
            Self::RecordTorn => Some(Aim::Within(moment.events % RECORDS + 1)),
            Self::DiskFull => Some(Aim::Full(2 * (moment.events % RECORDS) + 1)),
            Self::Unwatched => Some(Aim::Unwatched),
            _ => None,
        }
    }

    /// More flags for the engine.
    pub(super) fn flags(self, dice: &mut Rng) -> String {
        match self {
            Self::CandidateDies => "--stub-load-time 60s --stub-die-after 200ms".to_owned(),
            Self::WrongModel => "--stub-report-model Qwen/Other".to_owned(),
            Self::NeverHealthy => "--stub-health-status 503".to_owned(),
            _ => format!("--stub-load-time {}ms", dice.u64(..400)),
        }
    }

    /// What is wrong with how a command ended that met it, if something is.
    pub(super) fn blame(self, end: &End) -> Option<&'static str> {
        let End { code, outcomes, struck, verified, .. } = end;
        let is_done = outcomes.iter().all(|outcome| outcome == end.aim);
        // Where no swap has begun yet, a rollback is refused.
        let is_idle = end.aim == "rolled-back" && outcomes.is_empty();
        let is_refused = *code == Some(3) && outcomes.is_empty();
        let only = |outcome: &str| matches!(&outcomes[..], [one] if one == outcome);
        if outcomes.iter().any(|outcome| outcome == "stuck") && !self.may_stick() {
            return Some("it is stuck");
        }
        match code {
            None | Some(0 | 3..=6) => {}
            Some(7) if self.may_stick() => {}
            _ => return Some("the exit of a bug, of bad input or of a swap that is stuck"),
        }
        match self {
            fault if fault.is_harmless() && *code != Some(0) && !is_idle => {
                Some("it was to succeed")
            }
            fault if fault.is_of_candidate() && !(*code == Some(4) && only("failed")) => {
                Some("it was to fail before the cutover")
            }
            Self::Unconfirmed if !(*code == Some(5) && only("rolled-back")) => {
                Some("it was to be rolled back")
            }
            Self::PushCut if *struck == Struck::InTime && !is_refused => {
                Some("nothing was to begin")
            }
            // Who works goes on, and who comes is refused: also the runner that brings its word.
            Self::StateTaken if !(*verified || is_done || is_refused) => {
                Some("it was to be refused or to succeed")
            }
            fault if fault.is_of_runner() && !verified && !is_done => {
                Some("the server was to go on without the runner")
            }
            _ => None,
        }
    }
}

/// Whether a fault struck before all was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Struck {
    InTime,
    TooLate,
}

/// How a command ended.
pub(super) struct End<'a> {
    /// Exit code of its runner; `None`: a signal ended it.
    pub(super) code: Option<i32>,
    /// Of each swap that began meanwhile.
    pub(super) outcomes: Vec<String>,
    /// The outcome that was asked for.
    pub(super) aim: &'a str,
    pub(super) struck: Struck,
    /// Whether the swap waits for the runner's word.
    pub(super) verified: bool,
}

/// When it strikes: after so many events of the swap, and a little later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) events: usize,
    pub(super) later: Duration,
}

impl Moment {
    /// A swap tells of some thirty events until its old model is retired, and a warm rollback of half as many.
    const OF_SWAP: usize = 30;
    const OF_ROLLBACK: usize = 15;
    /// Longer than any step but loading takes.
    const LATER_MS: u64 = 60;

    pub(super) fn roll(dice: &mut Rng, command: &str) -> Self {
        let events = if command == "swap" { Self::OF_SWAP } else { Self::OF_ROLLBACK };
        Self {
            events: dice.usize(..events),
            later: Duration::from_millis(dice.u64(..Self::LATER_MS)),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms after event {}", self.later.as_millis(), self.events)
    }
}
