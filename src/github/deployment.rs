//! One deployment for each swap, and its statuses.
//!
//! Nothing is posted twice on a guess: where the answer to a POST is in doubt, its effect is looked for first.
//! Bodies and states: GitHub's REST documentation, "Deployments" and "Deployment statuses".

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, ApiError, ApiSpec, one_line};
use super::run::Reference;
use super::status::{ACTIVE, DESCRIPTION_LIMIT, State, Status};
use crate::model::ids::SwapId;
use crate::model::plan::Plan;
use crate::model::replica::Revision;

mod search;

use search::Automatic;
pub use search::{Found, Known};

/// What a deployment of ours is for; tells them from other deployments to the same environment.
pub const TASK: &str = "deploy:model";

/// How often a deployment is posted: once, and once more if the first is known not to be there.
const CREATE_TRIES: usize = 2;

/// How often a status is posted.
const STATUS_TRIES: usize = 3;

/// How many deployments or statuses are asked for at once (the most a page holds).
const PAGE: &str = "100";

/// GitHub's id of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub u64);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The deployment of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// We have made it.
    Ours(DeploymentId),
    /// An earlier attempt of the job has made it, and left it in this state, in GitHub's words.
    Found(DeploymentId, String),
    /// GitHub has made it for the job. It ends as the job does.
    Automatic(DeploymentId),
}

impl Opened {
    /// GitHub's id of it.
    pub fn id(&self) -> DeploymentId {
        match self {
            Self::Ours(id) | Self::Found(id, _) | Self::Automatic(id) => *id,
        }
    }

    /// Whether an earlier attempt has told how the swap ended.
    pub fn is_told(&self) -> bool {
        matches!(self, Self::Found(_, before) if [ACTIVE, "failure"].contains(&before.as_str()))
    }

    /// Whether a status in this state would tell anything new of a swap that has gone on meanwhile. A last word stays: one
    /// that it serves, or somebody's that it has failed since. But where a swap is stuck nobody can have said that: it never
    /// served, and only a step that was cancelled took it for given up.
    pub fn lacks(&self, state: State) -> bool {
        match self {
            Self::Ours(_) | Self::Automatic(_) => true,
            Self::Found(_, before) if before == "failure" => state == State::Error,
            Self::Found(..) if self.is_told() => false,
            Self::Found(_, before) => state != State::InProgress || before != "in_progress",
        }
    }

    /// A status of a swap as this deployment needs it: one of GitHub's own does not name the swap.
    pub fn worded(&self, status: Status, swap: &SwapId) -> Status {
        match self {
            Self::Ours(_) | Self::Found(..) => status,
            Self::Automatic(_) => status.marked(swap),
        }
    }
}

/// A deployment to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeployment {
    /// The swap; what it is found by.
    pub swap: SwapId,
    /// What is deployed.
    pub reference: Reference,
    /// What is named instead where the repository does not have the reference.
    pub otherwise: Option<Reference>,
    /// GitHub's environment.
    pub environment: String,
    /// One line on the deployment's page.
    pub description: String,
    /// What will serve.
    pub revision: Revision,
    /// What serves until then.
    pub previous: Option<Revision>,
}

impl NewDeployment {
    /// The deployment of a plan that is about to be carried out by a run for `reference`.
    ///
    /// A rollback's is of the commit that the revision came from: the run's own is of what is taken out of service.
    pub fn of_plan(plan: &Plan, swap: SwapId, reference: Reference, environment: String) -> Self {
        let came_from = plan.candidate.revision.git_sha.clone();
        let (reference, otherwise) = match came_from.filter(|_| plan.strategy.is_rollback()) {
            Some(commit) => (Reference::fixed(commit), Some(reference)),
            None => (reference, None),
        };
        let candidate = &plan.candidate.revision;
        let previous = plan.incumbent.as_ref().map(|side| side.revision.clone());
        let description = match &previous {
            Some(previous) => {
                format!("{}: {} -> {}", plan.service, previous.model, candidate.model)
            }
            None => format!("{}: {}", plan.service, candidate.model),
        };
        Self {
            swap,
            reference,
            otherwise,
            environment,
            description,
            revision: candidate.clone(),
            previous,
        }
    }

    fn body(&self, reference: &str) -> Value {
        let previous = self.previous.as_ref();
        json!({
            "ref": reference,
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
        let created = async {
            match (self.create_at(new, &new.reference, &tried).await, &new.otherwise) {
                // A commit of another repository, or one that is gone.
                (Err(ApiError::Answered { status: 422, .. }), Some(otherwise)) => {
                    self.create_at(new, otherwise, &tried).await
                }
                (settled, _) => settled,
            }
        };
        self.api.operation(&tried, created).await
    }

    async fn create_at(
        &self,
        new: &NewDeployment,
        reference: &Reference,
        tried: &str,
    ) -> Result<DeploymentId, ApiError> {
        let reference = self.true_name(reference).await;
        let post = async || {
            let made: Made = self.api.post(tried, "/deployments", &new.body(reference)).await?;
            Ok(made.id)
        };
        self.post_once(CREATE_TRIES, post, async || self.look(new).await).await
    }

    /// A branch by its name while the run's commit is its newest, else the commit: GitHub takes a branch for whatever it is at
    /// by now, and a run may have waited. Where it does not answer, the commit is right in any case.
    async fn true_name<'a>(&self, reference: &'a Reference) -> &'a str {
        let Some(commit) = &reference.commit else { return &reference.name };
        let tried = format!("list the branches that are at {commit} in {}", self.api.repository);
        let route = format!("/commits/{commit}/branches-where-head");
        let there: Result<Vec<Branch>, ApiError> = self.api.get_once(&tried, &route).await;
        let is_there =
            there.is_ok_and(|there| there.iter().any(|branch| branch.name == reference.name));
        if is_there { &reference.name } else { commit }
    }

    /// The deployment of a swap: one that an earlier attempt has begun, or that GitHub has made for the job of this run
    /// because of its `environment:`; creates it if there is neither.
    ///
    /// # Errors
    /// Those of [`Deployments::create`], and if GitHub cannot be asked what there is.
    pub async fn find_or_create(
        &self,
        new: &NewDeployment,
        run: Option<&str>,
    ) -> Result<Opened, ApiError> {
        let tried = format!("find the deployment of {} in {}", new.swap, self.api.repository);
        let found = async {
            match self.look(new).await? {
                Some(id) => Ok(Some(Opened::Found(id, self.state(id).await?))),
                None => Ok(None),
            }
        };
        if let Some(found) = self.api.operation(&tried, found).await? {
            return Ok(found);
        }
        if let Some(run) = run {
            let of_run = format!("/actions/runs/{run}/");
            let is_of_run = |(id, urls): Automatic<'_>| {
                urls.iter().any(|url| url.contains(&of_run)).then_some(id)
            };
            let found = self.automatic(&new.environment, is_of_run);
            match self.api.operation(&tried, found).await {
                Ok(Some(id)) => return Ok(Opened::Automatic(id)),
                // Where there are so many of others that it takes too long, one of our own is better than none.
                Ok(None) | Err(ApiError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.create(new).await.map(Opened::Ours)
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

    /// Takes the deployment of a swap that does not serve any more out of GitHub's list of what does. One that GitHub does
    /// not count as active stays as it is, and so does the deployment `by` of what serves now, if it has one: a job's own may be
    /// both. So does one that tells of other swaps as well: parallel jobs of one run may share one that GitHub has made, and another
    /// service's result may still serve.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn supersede(
        &self,
        environment: &str,
        (swap, by): (&SwapId, Option<DeploymentId>),
        status: &Status,
    ) -> Result<(), ApiError> {
        match self.find(environment, swap).await? {
            Some(found) if found.state == ACTIVE && Some(found.id) != by && !found.is_shared => {
                self.add_status(found.id, status).await
            }
            _ => Ok(()),
        }
    }

    /// Closes the deployment that GitHub has made for an earlier attempt of a job, where its swap goes on in the one `by` that
    /// GitHub has made for this attempt.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn close_earlier(
        &self,
        environment: &str,
        (swap, by): (&SwapId, DeploymentId),
    ) -> Result<(), ApiError> {
        let is_earlier = |automatic: Automatic<'_>| {
            Known::automatic(automatic, Some(swap)).filter(|known| known.id != by)
        };
        let tried = format!("find the earlier deployment of {swap} in {}", self.api.repository);
        let found = self.automatic(environment, is_earlier);
        let Some(known) = self.api.operation(&tried, found).await? else { return Ok(()) };
        let status = Status::continued(swap, by);
        match status.corrects(&self.found(&known).await?) {
            true => self.add_status(known.id, &status).await,
            false => Ok(()),
        }
    }
}

/// Only what is needed is read: Enterprise Servers differ in the rest.
#[derive(Deserialize)]
struct Made {
    id: DeploymentId,
}

#[derive(Deserialize)]
struct Branch {
    name: String,
}

#[derive(Deserialize)]
struct Posted {
    state: Value,
    description: Option<String>,
    log_url: Option<String>,
}

#[cfg(test)]
mod tests;
