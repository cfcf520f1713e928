//! What runner and agent say to each other: one request line in, frames as NDJSON out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::checkup::Checkup;
use super::digest::{Parts, PlanDigest};
use super::event::Event;
use super::ids::SwapId;
use super::plan::Plan;
use super::refusal::Refusal;
use super::spec::SwapSpec;
use super::state::{HistoryReport, Holder, Requester, StatusReport};
use super::survey::Survey;

/// Version of the wire. An agent answers this one and the two before it.
///
/// Version 2: `repair`, what is refused while a swap is stuck, and `confirm` of a swap that waits for it. An agent of version 1 may know nothing of a plan's digest and would swap whatever the plan is; it
/// refuses a request of this version.
pub const WIRE_VERSION: u32 = 2;

/// The versions that an agent whose own is `own` answers. Which agent a runner meets may not be its choice: a forced
/// command in `authorized_keys` names one.
pub const fn spoken(own: u32) -> RangeInclusive<u32> {
    let oldest = own.saturating_sub(2);
    // There never was a version 0.
    if oldest == 0 { 1..=own } else { oldest..=own }
}

/// The line before the first frame: a login script may print before it.
pub const SENTINEL: &str = "--- model-swap agent ---";

/// The environment variable that marks a replica as ours: `<service>/<swap>/<slot>`.
pub const MARKER: &str = "MODEL_SWAP_REPLICA";

/// One request: the first and only line on the agent's stdin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`WIRE_VERSION`] of the runner.
    pub v: u32,
    /// What is asked.
    pub command: Command,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// What would a swap do?
    Plan(SwapRequest),
    /// Do it, and follow.
    Swap(SwapRequest),
    /// Bring the retained replica back, and follow.
    Rollback(RollbackRequest),
    /// Give a swap up before `promote`, and follow that.
    Abort(AbortRequest),
    /// The runner's word that customers meet the candidate.
    Confirm(ConfirmRequest),
    /// Bring a swap to its end that is stuck, or whose agent died, and follow that.
    Repair(RepairRequest),
    /// What serves?
    Status(Asked),
    /// The log of the replica that was started last.
    Logs(Asked),
    /// What could a rollback go back to?
    History(Asked),
    /// Is everything there that a swap needs?
    Doctor(Asked),
    /// Remove everything of a service but what serves.
    Uninstall(UninstallRequest),
    /// What is there that a configuration could be made of?
    Survey(SurveyRequest),
    /// Follow a swap that is under way, or was.
    Follow {
        /// Where.
        asked: Asked,
        /// The swap.
        swap: SwapId,
        /// Send events after this number.
        since: u64,
        /// Where the stream may end.
        wait: Wait,
    },
}

impl Command {
    /// Every [`Command::name`] that is about one service, so that a listing may allow it.
    pub const NAMES: [&str; 9] =
        ["plan", "swap", "rollback", "abort", "repair", "status", "logs", "doctor", "uninstall"];

    /// The name that people know it by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plan(_) => "plan",
            // Whoever may swap may say that he has seen it.
            Self::Swap(_) | Self::Confirm(_) => "swap",
            Self::Rollback(_) => "rollback",
            Self::Abort(_) => "abort",
            Self::Repair(_) => "repair",
            // Whoever may see what serves may see how it came to that.
            Self::Status(_) | Self::History(_) | Self::Follow { .. } => "status",
            Self::Logs(_) => "logs",
            Self::Doctor(_) => "doctor",
            Self::Uninstall(_) => "uninstall",
            Self::Survey(_) => "init",
        }
    }

    /// The id of the swap that it may begin.
    pub fn begins(&self) -> Option<&SwapId> {
        match self {
            Self::Swap(request) => Some(&request.swap),
            Self::Rollback(request) => Some(&request.swap),
            _ => None,
        }
    }

    /// Which service it is about; `None` if it is about the server.
    pub fn asked(&self) -> Option<&Asked> {
        Some(match self {
            Self::Plan(request) | Self::Swap(request) => &request.asked,
            Self::Rollback(request) => &request.asked,
            Self::Abort(request) => &request.asked,
            Self::Confirm(request) => &request.asked,
            Self::Repair(request) => &request.asked,
            Self::Uninstall(request) => &request.asked,
            Self::Status(asked)
            | Self::Logs(asked)
            | Self::History(asked)
            | Self::Doctor(asked)
            | Self::Follow { asked, .. } => asked,
            Self::Survey(_) => return None,
        })
    }
}

/// Which service, and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The specification, for slots, nginx and state folder.
    pub spec: SwapSpec,
    /// Values of `secret_env` and `api_key_env`.
    pub secrets: Secrets,
}

/// A swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapRequest {
    /// What it should be.
    pub asked: Asked,
    /// Id of the new swap, chosen by the runner so that a lost answer can be followed.
    pub swap: SwapId,
    /// Whether an equal revision is swapped all the same.
    pub when: When,
    /// The only plan that may be carried out; `None`: whatever the plan is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<PlanDigest>,
    /// What its parts are known by. Beside it and not in it: an older agent holds its own plan's digest to what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_parts: Option<Parts>,
    /// How long to wait for another command's swap to have its outcome.
    #[serde(default)]
    pub lock_wait: Duration,
    /// Where the stream may end.
    pub wait: Wait,
    /// Who asks.
    pub requester: Requester,
}

impl SwapRequest {
    /// The only plan that may be carried out, with its parts where they are known.
    pub fn approved(&self) -> Option<PlanDigest> {
        let digest = self.plan_digest.as_ref()?;
        Some(PlanDigest::new(digest.whole(), self.plan_parts.as_ref()))
    }
}

/// A rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// Which service.
    pub asked: Asked,
    /// Id of the rollback itself.
    pub swap: SwapId,
    /// The swap to undo; `None`: the one that serves.
    pub of: Option<SwapId>,
    /// The revision to go back to: a digest of the history or the beginning of one; `None`: what served before.
    #[serde(default)]
    pub to: Option<String>,
    /// How long to wait for another command's swap to have its outcome.
    #[serde(default)]
    pub lock_wait: Duration,
    /// Where the stream may end.
    pub wait: Wait,
    /// Who asks.
    pub requester: Requester,
}

/// A request to give a swap up, or to bring it to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortRequest {
    /// Which service.
    pub asked: Asked,
    /// The swap, or what waits for its turn, by its id; `None`: the swap that is under way.
    pub of: Option<SwapId>,
    /// What becomes of the order where the server knows nothing of that id.
    #[serde(default)]
    pub unknown: Unknown,
    /// What is wanted of the swap.
    #[serde(default)]
    pub wish: Wish,
    /// Send events after this number.
    pub since: u64,
    /// Who asks.
    pub requester: Requester,
}

/// What is wanted of a swap that somebody asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// That it is given up: an order.
    #[default]
    GivenUp,
    /// That it comes to its end, as its journal and the server have it, where its agent is gone: whoever only follows decides
    /// nothing.
    Ended,
}

/// What becomes of an order to abort that names what the server does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// It is kept: whoever gives up what he has asked for himself may be ahead of that.
    #[default]
    Kept,
    /// It is refused: an id may be mistyped.
    Refused,
}

/// The runner has looked from outside and met the candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRequest {
    /// Which service.
    pub asked: Asked,
    /// The swap.
    pub swap: SwapId,
    /// The nonce of [`AwaitsWord`](super::event::EventKind::AwaitsWord).
    pub nonce: String,
}

/// A request to bring a swap to its end that nobody works on any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRequest {
    /// Which service.
    pub asked: Asked,
    /// Id of the repair itself, by which it is given up while it waits for its turn; `None` from a runner that knows of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<SwapId>,
    /// How long to wait for another command's swap to have its outcome.
    #[serde(default)]
    pub lock_wait: Duration,
    /// Who asks.
    pub requester: Requester,
}

/// A request to give the server back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UninstallRequest {
    /// Which service.
    pub asked: Asked,
    /// Id of the work itself, where something has to be retired first.
    pub swap: SwapId,
    /// What becomes of a replica that is still kept warm.
    pub kept: KeptWarm,
    /// Who asks.
    pub requester: Requester,
}

/// A look at a server that has no configuration yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyRequest {
    /// How nginx is called; empty: whichever run.
    pub nginx: Vec<String>,
    /// The folder of state and journals, if it is another one than usual.
    pub state_dir: Option<PathBuf>,
}

/// What becomes of a replica that is still kept warm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptWarm {
    /// It is in the way.
    Refuse,
    /// It is drained and retired first (`--retire-now`).
    RetireNow,
}

impl From<bool> for KeptWarm {
    /// From an option `--retire-now`.
    fn from(retire_now: bool) -> Self {
        if retire_now { Self::RetireNow } else { Self::Refuse }
    }
}

/// What has become of everything of a service, one line each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Uninstalled {
    /// What is gone.
    pub removed: Vec<String>,
    /// What stays, and why.
    pub left: Vec<String>,
}

/// When a swap is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// If the serving replica differs.
    Changed,
    /// Always (`--force`).
    Always,
}

impl From<bool> for When {
    /// From an option `--force`.
    fn from(force: bool) -> Self {
        if force { Self::Always } else { Self::Changed }
    }
}

/// How far a command is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Until the outcome is known.
    Promoted,
    /// Until the other replica is retired.
    Retired,
}

/// Names and values that must be seen nowhere.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One line of the agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum Frame {
    /// Always first.
    Hello(Hello),
    /// The answer to `plan`, when there is something to do.
    Plan {
        /// The plan.
        plan: Box<Plan>,
        /// What it will likely meet, one fragment each: of the moment, and of no digest.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        outlook: Vec<String>,
    },
    /// The answer to `plan`, `swap` or `rollback`, when nothing has to change.
    Unchanged {
        /// What serves, one line.
        reason: String,
        /// The service as observed.
        status: Box<StatusReport>,
    },
    /// Another command works on the service, and its end is waited for.
    Waiting {
        /// Whose.
        holder: Box<Holder>,
        /// For how long at most.
        limit: Duration,
        /// The id of what waits, by which it can be given up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<SwapId>,
    },
    /// The swap is under way; its events follow.
    Accepted {
        /// The swap that is followed: an older one if this step had already begun it.
        swap: SwapId,
    },
    /// An event.
    Event(Event),
    /// The answer to `status`.
    Status {
        /// The report.
        report: Box<StatusReport>,
    },
    /// The answer to `status` where nginx cannot be asked. A refusal follows, which says why: it is all that a runner of an earlier
    /// release hears.
    Unseen {
        /// What is known all the same.
        report: Box<StatusReport>,
    },
    /// The answer to `history`.
    History {
        /// The report.
        report: Box<HistoryReport>,
    },
    /// The answer to `doctor`.
    Checkup {
        /// What was found on the server.
        checkup: Box<Checkup>,
    },
    /// The answer to `init`.
    Survey {
        /// What was seen.
        survey: Box<Survey>,
    },
    /// The answer to `uninstall`.
    Uninstalled(Uninstalled),
    /// A line of the answer to `logs`.
    Line {
        /// The line.
        text: String,
    },
    /// Nothing was done.
    Refused(Refusal),
    /// Always last, if the agent could say so.
    End,
}

/// The agent introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`WIRE_VERSION`] of the agent.
    pub v: u32,
    /// Version of the program.
    pub version: String,
    /// The folder of state and journals.
    pub state_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::spoken;

    #[test]
    fn an_agent_answers_its_own_version_and_the_two_before_it() {
        for (own, versions) in [(1, 1..=1), (2, 1..=2), (3, 1..=3), (4, 2..=4), (9, 7..=9)] {
            assert_eq!(spoken(own), versions);
        }
    }
}
