//! What a deployment's status says of its swap.
//!
//! States: GitHub's REST documentation, "Deployment statuses".

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::one_line;
use super::deployment::{DeploymentId, Found};
use crate::model::event::Conclusion;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Strategy};
use crate::model::state::{Past, StatusReport};

/// The state, in GitHub's words, of a deployment that GitHub counts as what serves.
pub const ACTIVE: &str = "success";

/// The longest description that GitHub takes, in characters.
pub const DESCRIPTION_LIMIT: usize = 140;

/// What a status says. Those that GitHub has and a swap does not need are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The swap is under way.
    InProgress,
    /// What was asked for serves.
    Success,
    /// What was asked for does not serve; what served before does.
    Failure,
    /// A person is needed.
    Error,
    /// Nothing was deployed.
    Inactive,
}

/// What the swap was for: going back is a success only where it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To bring a candidate.
    Swap,
    /// To bring back what served before.
    Rollback,
}

/// A status of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Where traffic is; cut to [`DESCRIPTION_LIMIT`] when it is sent.
    pub description: String,
    /// Link to the run.
    pub log_url: Option<String>,
}

/// The swap that a status's link marks; see [`Status::marked`].
pub(super) fn marked(url: &str) -> Option<SwapId> {
    let (_, mark) = url.rsplit_once('#')?;
    mark.strip_prefix("s-")?;
    mark.parse().ok()
}

impl State {
    /// The last state of a deployment whose swap ended so.
    ///
    /// A swap that is known beforehand to change nothing gets no deployment; one that finds out later closes its own.
    pub fn of(purpose: Purpose, outcome: Outcome) -> Self {
        match (purpose, outcome) {
            (_, Outcome::Promoted) | (Purpose::Rollback, Outcome::RolledBack) => Self::Success,
            (Purpose::Swap, Outcome::RolledBack) | (_, Outcome::Failed | Outcome::Aborted) => {
                Self::Failure
            }
            (_, Outcome::Stuck) => Self::Error,
            (_, Outcome::Unchanged) => Self::Inactive,
        }
    }
}

impl Status {
    /// A swap began: says what serves until it is done.
    pub fn started(plan: &Plan, log_url: Option<String>) -> Self {
        let candidate = &plan.candidate;
        let description = match (&plan.incumbent, plan.strategy) {
            (Some(now), Strategy::BlueGreen | Strategy::ColdRollback) => format!(
                "{} on slot {} serves until {} on slot {} is ready",
                now.revision.model, now.slot, candidate.revision.model, candidate.slot
            ),
            (Some(now), Strategy::WarmRollback) => format!(
                "{} on slot {} serves; traffic goes back to {} on slot {}",
                now.revision.model, now.slot, candidate.revision.model, candidate.slot
            ),
            (None, _) => {
                format!(
                    "nothing serves until {} on slot {} is ready",
                    candidate.revision.model, candidate.slot
                )
            }
        };
        Self { state: State::InProgress, description, log_url }
    }

    /// A swap ended: says where traffic is, then why.
    pub fn concluded(purpose: Purpose, conclusion: &Conclusion, log_url: Option<String>) -> Self {
        let description = match &conclusion.failure {
            Some(failure) => {
                format!("{}; {}: {}", conclusion.traffic, conclusion.outcome, failure.message)
            }
            None => conclusion.traffic.clone(),
        };
        Self { state: State::of(purpose, conclusion.outcome), description, log_url }
    }

    /// The job lost sight of the swap, which goes on. A later run of the job that finds it says how it ended.
    pub fn lost(log_url: Option<String>) -> Self {
        let description =
            "the server goes on by itself; `model-swap status` tells what serves".to_owned();
        Self { state: State::Error, description, log_url }
    }

    /// Something else serves now, by the swap or rollback `by`; `traffic` says what.
    pub fn superseded(purpose: Purpose, by: &SwapId, traffic: &str) -> Self {
        let (state, what) = match purpose {
            Purpose::Swap => (State::Inactive, "superseded"),
            Purpose::Rollback => (State::Failure, "rolled back"),
        };
        Self { state, description: format!("{what} by {by}; {traffic}"), log_url: None }
    }

    /// A later attempt of the job tells of the same swap, in the deployment `by`.
    pub fn continued(swap: &SwapId, by: DeploymentId) -> Self {
        let description = format!("run again: deployment {by} tells of {swap}");
        Self { state: State::Inactive, description, log_url: None }
    }

    /// What was promoted has failed since, and still serves. Its link names the swap to whatever this starts: where the deployment
    /// is GitHub's own, nothing else does.
    pub fn failed(swap: &SwapId, log_url: Option<String>) -> Self {
        let description = format!("{swap} has failed since it was promoted");
        Self { state: State::Failure, description, log_url }.marked(swap)
    }

    /// Somebody says that a swap has failed, of which it is not known whether it was ever promoted. As [`Status::failed`] otherwise.
    pub fn said_to_have_failed(swap: &SwapId, log_url: Option<String>) -> Self {
        let description = format!("{swap} is said to have failed; the server was not asked");
        Self { description, ..Self::failed(swap, log_url) }
    }

    /// What serves, by the server's own account.
    pub fn serving(report: &StatusReport) -> Self {
        let description = match report
            .serving()
            .and_then(|slot| Some((slot, slot.revision.as_ref()?)))
        {
            Some((slot, revision)) => format!("{} serves from slot {}", revision.model, slot.slot),
            None => "what serves is not known".to_owned(),
        };
        Self { state: State::Success, description, log_url: None }
    }

    /// What became of a swap or rollback whose result does not serve, by the server's own account.
    pub fn over(past: &Past, report: &StatusReport) -> Self {
        if let Some(by) = report.ended_by(past).filter(|_| past.brought()) {
            let is_rollback = by.strategy.is_some_and(Strategy::is_rollback);
            let purpose = if is_rollback { Purpose::Rollback } else { Purpose::Swap };
            return Self::superseded(purpose, &by.swap, &Self::serving(report).description);
        }
        let state = match past.outcome {
            Outcome::Promoted | Outcome::Unchanged => State::Inactive,
            Outcome::RolledBack if past.brought() => State::Inactive,
            Outcome::RolledBack | Outcome::Aborted | Outcome::Failed => State::Failure,
            Outcome::Stuck => State::Error,
        };
        let description = format!("{}, and does not serve", past.outcome);
        Self { state, description, log_url: None }
    }

    /// Whether a deployment has to be given this status: it is said to serve and does not, or its end was never told. A failure stays
    /// one: somebody has said so of a result that may still serve. But what is stuck never served, and only a step that was cancelled
    /// took it for given up; and GitHub's own word on a job says nothing of the swap, whose result serves.
    pub fn corrects(&self, found: &Found) -> bool {
        match (self.state, &*found.state) {
            (State::Error, "failure") => true,
            (State::Success, "failure") => !found.is_of_swap,
            (_, "failure") | (State::Success, ACTIVE) | (State::Error, "error") => false,
            (State::Success, _) => true,
            (_, state) => state != "inactive",
        }
    }

    /// The same, with the swap marked in its link: the deployment itself does not name it.
    #[must_use]
    pub fn marked(mut self, swap: &SwapId) -> Self {
        self.log_url = self.log_url.map(|url| format!("{url}#{swap}"));
        self
    }

    /// The description as it is sent.
    pub(super) fn line(&self) -> String {
        one_line(&self.description, DESCRIPTION_LIMIT)
    }

    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "state": self.state,
            "description": self.line(),
            // By default GitHub takes every other deployment to the environment out, whatever service it is of.
            "auto_inactive": false,
        });
        if let Some(url) = &self.log_url {
            body["log_url"] = json!(url);
        }
        body
    }
}
