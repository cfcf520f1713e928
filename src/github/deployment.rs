//! One deployment for each swap, and its statuses.
//!
//! Nothing is posted twice on a guess: where the answer to a POST is in doubt, its effect is looked for first.
//! Bodies and states: GitHub's REST documentation, "Deployments" and "Deployment statuses".

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, ApiError, ApiSpec, one_line};
use crate::model::event::Conclusion;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Strategy};
use crate::model::replica::Revision;

/// What a deployment of ours is for; tells them from other deployments to the same environment.
pub const TASK: &str = "deploy:model";

/// The longest description that GitHub takes, in characters.
pub const DESCRIPTION_LIMIT: usize = 140;

/// How often a deployment is posted: once, and once more if the first is known not to be there.
const CREATE_TRIES: usize = 2;

/// How often a status is posted.
const STATUS_TRIES: usize = 3;

/// How many of the newest deployments or statuses are looked through (the most a page holds).
const PAGE: u8 = 100;

/// GitHub's id of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub u64);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A deployment to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeployment {
    /// The swap; what it is found by.
    pub swap: SwapId,
    /// Branch, tag or commit.
    pub reference: String,
    /// GitHub's environment.
    pub environment: String,
    /// One line on the deployment's page.
    pub description: String,
    /// What will serve.
    pub revision: Revision,
    /// What serves until then.
    pub previous: Option<Revision>,
}

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

impl NewDeployment {
    /// The deployment of a plan that is about to be carried out.
    pub fn of_plan(plan: &Plan, swap: SwapId, reference: String, environment: String) -> Self {
        let candidate = &plan.candidate.revision;
        let previous = plan.incumbent.as_ref().map(|side| side.revision.clone());
        let description = match &previous {
            Some(previous) => {
                format!("{}: {} -> {}", plan.service, previous.model, candidate.model)
            }
            None => format!("{}: {}", plan.service, candidate.model),
        };
        Self { swap, reference, environment, description, revision: candidate.clone(), previous }
    }

    fn body(&self) -> Value {
        let previous = self.previous.as_ref();
        json!({
            "ref": self.reference,
            "task": TASK,
            // The default would merge the default branch, or wait for every check of the commit.
            "auto_merge": false,
            "required_contexts": [],
            "environment": self.environment,
            "description": one_line(&self.description, DESCRIPTION_LIMIT),
            "payload": {
                "swap_id": self.swap,
                "revision": self.revision.digest,
                "previous_revision": previous.map(|revision| &revision.digest),
                "git_sha": self.revision.git_sha,
                "previous_git_sha": previous.and_then(|revision| revision.git_sha.as_ref()),
            },
        })
    }
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

    fn line(&self) -> String {
        one_line(&self.description, DESCRIPTION_LIMIT)
    }

    fn body(&self) -> Value {
        let mut body = json!({ "state": self.state, "description": self.line() });
        if let Some(url) = &self.log_url {
            body["log_url"] = json!(url);
        }
        body
    }
}

/// The deployments of one repository.
#[derive(Debug, Clone)]
pub struct Deployments {
    api: Api,
}

impl Deployments {
    /// A client; makes no request. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the token cannot stand in a header, the address is none, or the machine has no CA certificates.
    pub fn new(spec: ApiSpec) -> Result<Self, ApiError> {
        Api::new(spec).map(|api| Self { api })
    }

    /// Creates the deployment of a swap that has just begun.
    ///
    /// # Errors
    /// If GitHub refuses, or if it is still in doubt after the operation's bound.
    pub async fn create(&self, new: &NewDeployment) -> Result<DeploymentId, ApiError> {
        let tried =
            format!("create a deployment to {} in {}", new.environment, self.api.repository);
        let post = async || {
            let made: Made = self.api.post(&tried, "/deployments", &new.body()).await?;
            Ok(made.id)
        };
        let created = self.post_once(CREATE_TRIES, post, async || self.look(new).await);
        self.api.operation(&tried, created).await
    }

    /// The deployment of a swap that an earlier attempt may have begun; creates it if there is none.
    ///
    /// # Errors
    /// Those of [`Deployments::create`], and if GitHub cannot be asked what there is.
    pub async fn find_or_create(&self, new: &NewDeployment) -> Result<DeploymentId, ApiError> {
        let tried =
            format!("find or create the deployment of {} in {}", new.swap, self.api.repository);
        let found = async {
            match self.look(new).await? {
                Some(id) => Ok(id),
                None => self.create(new).await,
            }
        };
        self.api.operation(&tried, found).await
    }

    /// Adds a status to a deployment.
    ///
    /// # Errors
    /// If GitHub refuses, or if it is still in doubt after the operation's bound.
    pub async fn add_status(&self, id: DeploymentId, status: &Status) -> Result<(), ApiError> {
        let tried = format!("add a status to deployment {id} in {}", self.api.repository);
        let route = format!("/deployments/{id}/statuses");
        let post = async || {
            let _made: Made = self.api.post(&tried, &route, &status.body()).await?;
            Ok(())
        };
        let look = async || {
            let there: Vec<Posted> = self.api.get(&tried, &route, &[("per_page", PAGE)]).await?;
            let ours = |posted: &Posted| {
                posted.state == json!(status.state)
                    && posted.description.as_deref() == Some(&*status.line())
            };
            Ok(there.iter().any(ours).then_some(()))
        };
        self.api.operation(&tried, self.post_once(STATUS_TRIES, post, look)).await
    }

    /// Posts until the effect is known to be there, and never while it may be.
    async fn post_once<T>(
        &self,
        tries: usize,
        post: impl AsyncFn() -> Result<T, ApiError>,
        look: impl AsyncFn() -> Result<Option<T>, ApiError>,
    ) -> Result<T, ApiError> {
        let mut tried = 1;
        loop {
            let doubt = match post().await {
                Err(error) if error.is_ambiguous() => error,
                settled => return settled,
            };
            tokio::time::sleep(self.api.bounds.pause).await;
            match look().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) if tried < tries => tried += 1,
                Ok(None) | Err(_) => return Err(doubt),
            }
        }
    }

    /// The newest deployments of our task to the environment, searched for the swap's id.
    async fn look(&self, new: &NewDeployment) -> Result<Option<DeploymentId>, ApiError> {
        let tried =
            format!("list the deployments to {} in {}", new.environment, self.api.repository);
        let query = Query { environment: &new.environment, task: TASK, per_page: PAGE };
        let there: Vec<Listed> = self.api.get(&tried, "/deployments", &query).await?;
        Ok(there.iter().find(|listed| listed.is_of(&new.swap)).map(|listed| listed.id))
    }
}

#[derive(Serialize)]
struct Query<'a> {
    environment: &'a str,
    task: &'a str,
    per_page: u8,
}

/// Only what is needed is read: Enterprise Servers differ in the rest.
#[derive(Deserialize)]
struct Made {
    id: DeploymentId,
}

#[derive(Deserialize)]
struct Listed {
    id: DeploymentId,
    #[serde(default)]
    payload: Value,
}

impl Listed {
    fn is_of(&self, swap: &SwapId) -> bool {
        // The schema allows the payload as an object and as a text that holds one.
        let object = match &self.payload {
            Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            other => other.clone(),
        };
        object.get("swap_id").and_then(Value::as_str) == Some(swap.as_str())
    }
}

#[derive(Deserialize)]
struct Posted {
    state: Value,
    description: Option<String>,
}

#[cfg(test)]
mod tests;
