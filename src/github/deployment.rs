//! One deployment for each swap, and its statuses.
//!
//! Nothing is posted twice on a guess: where the answer to a POST is in doubt, its effect is looked for first.
//! Bodies and states: GitHub's REST documentation, "Deployments" and "Deployment statuses".

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, ApiError, ApiSpec, one_line};
use super::run::Reference;
use super::status::{ACTIVE, DESCRIPTION_LIMIT, State, Status, marked};
use crate::model::ids::SwapId;
use crate::model::plan::Plan;
use crate::model::replica::Revision;

/// What a deployment of ours is for; tells them from other deployments to the same environment.
pub const TASK: &str = "deploy:model";

/// How often a deployment is posted: once, and once more if the first is known not to be there.
const CREATE_TRIES: usize = 2;

/// How often a status is posted.
const STATUS_TRIES: usize = 3;

/// How many deployments or statuses are asked for at once (the most a page holds).
const PAGE: &str = "100";

/// How many pages of the newest deployments of our task are looked through: several services may share an environment.
const PAGES: usize = 5;

/// How many of the newest deployments of others are looked through, of those on one page: each costs a request.
const AUTOMATIC: usize = 30;

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
        let there: Result<Vec<Branch>, ApiError> = self.api.get(&tried, &route, &[]).await;
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
        let tried =
            format!("find or create the deployment of {} in {}", new.swap, self.api.repository);
        let found = async {
            if let Some(id) = self.look(new).await? {
                return Ok(Opened::Found(id, self.state(id).await?));
            }
            if let Some(run) = run {
                let of_run = format!("/actions/runs/{run}/");
                let is_of_run = |(id, urls): Automatic<'_>| {
                    urls.iter().any(|url| url.contains(&of_run)).then_some(id)
                };
                if let Some(id) = self.automatic(&new.environment, is_of_run).await? {
                    return Ok(Opened::Automatic(id));
                }
            }
            self.create(new).await.map(Opened::Ours)
        };
        self.api.operation(&tried, found).await
    }

    /// The first thing to be found in the deployments to an environment that GitHub has made for jobs, newest first. The links
    /// of their statuses are all that tells the job, or a swap that went on with one.
    async fn automatic<T>(
        &self,
        environment: &str,
        mut found: impl FnMut(Automatic<'_>) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let tried = format!("list the deployments to {environment} in {}", self.api.repository);
        let query = [("environment", environment), ("per_page", PAGE)];
        let there: Vec<Listed> = self.api.get(&tried, "/deployments", &query).await?;
        for listed in there.iter().filter(|listed| listed.task != TASK).take(AUTOMATIC) {
            let route = format!("/deployments/{}/statuses", listed.id);
            let posted: Vec<Posted> = self.api.get(&tried, &route, &[("per_page", PAGE)]).await?;
            let urls: Vec<&str> =
                posted.iter().filter_map(|posted| posted.log_url.as_deref()).collect();
            if let Some(found) = found((listed.id, &urls)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
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
        self.of_swap(&new.environment, &new.swap).await
    }

    async fn of_swap(
        &self,
        environment: &str,
        swap: &SwapId,
    ) -> Result<Option<DeploymentId>, ApiError> {
        self.ours(environment, |(of, id)| (of == *swap).then_some(id)).await
    }

    /// The first thing to be found in the deployments of our task to an environment, newest first, with the swap of each.
    async fn ours<T>(
        &self,
        environment: &str,
        mut found: impl FnMut((SwapId, DeploymentId)) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let tried = format!("list the deployments to {environment} in {}", self.api.repository);
        for page in 1..=PAGES {
            let page = page.to_string();
            let of = [("environment", environment), ("task", TASK)];
            let query = [of[0], of[1], ("per_page", PAGE), ("page", &page)];
            let there: Vec<Listed> = self.api.get(&tried, "/deployments", &query).await?;
            let mut swaps = there.iter().filter_map(|listed| Some((listed.swap()?, listed.id)));
            if let Some(found) = swaps.find_map(&mut found) {
                return Ok(Some(found));
            }
            if there.len().to_string() != PAGE {
                break;
            }
        }
        Ok(None)
    }

    /// The deployments to an environment that are known to be of swaps, with the swap of each, newest first: ours, and those
    /// that GitHub has made for jobs whose swaps went on with them. Of several swaps in one the newest counts.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn list_all(
        &self,
        environment: &str,
    ) -> Result<Vec<(SwapId, DeploymentId)>, ApiError> {
        let mut all = Vec::new();
        let keep = |one| {
            all.push(one);
            None::<()>
        };
        self.ours(environment, keep).await?;
        let keep = |(id, urls): Automatic<'_>| {
            all.extend(urls.iter().find_map(|url| marked(url)).map(|swap| (swap, id)));
            None::<()>
        };
        self.automatic(environment, keep).await?;
        all.sort_by_key(|(_, id)| std::cmp::Reverse(id.0));
        Ok(all)
    }

    /// The state of a deployment's newest status, in GitHub's words; `pending` without one, as GitHub shows it.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn state(&self, id: DeploymentId) -> Result<String, ApiError> {
        let tried = format!("read the state of deployment {id} in {}", self.api.repository);
        let route = format!("/deployments/{id}/statuses");
        let there: Vec<Posted> = self.api.get(&tried, &route, &[("per_page", "1")]).await?;
        let newest =
            there.into_iter().next().and_then(|posted| posted.state.as_str().map(str::to_owned));
        Ok(newest.unwrap_or_else(|| "pending".to_owned()))
    }

    /// The deployment of a swap, if there is one, and its state in GitHub's words.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn find(
        &self,
        environment: &str,
        swap: &SwapId,
    ) -> Result<Option<(DeploymentId, String)>, ApiError> {
        let tried = format!("find the deployment of {swap} in {}", self.api.repository);
        let found = async {
            let is_marked = |(id, urls): Automatic<'_>| {
                urls.iter().any(|url| marked(url).as_ref() == Some(swap)).then_some(id)
            };
            let id = match self.of_swap(environment, swap).await? {
                None => self.automatic(environment, is_marked).await?,
                found => found,
            };
            match id {
                Some(id) => Ok(Some((id, self.state(id).await?))),
                None => Ok(None),
            }
        };
        self.api.operation(&tried, found).await
    }

    /// Takes the deployment of a swap that does not serve any more out of GitHub's list of what does. One that GitHub does
    /// not count as active stays as it is, and so does the deployment `by` of what serves now: a job's own may be both.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn supersede(
        &self,
        environment: &str,
        (swap, by): (&SwapId, DeploymentId),
        status: &Status,
    ) -> Result<(), ApiError> {
        match self.find(environment, swap).await? {
            Some((id, state)) if state == ACTIVE && id != by => self.add_status(id, status).await,
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
        let is_earlier = |(id, urls): Automatic<'_>| {
            let is_its = id != by && urls.iter().any(|url| marked(url).as_ref() == Some(swap));
            is_its.then_some(id)
        };
        let Some(id) = self.automatic(environment, is_earlier).await? else { return Ok(()) };
        let status = Status::continued(swap, by);
        match status.corrects(&self.state(id).await?) {
            true => self.add_status(id, &status).await,
            false => Ok(()),
        }
    }
}

/// A deployment that GitHub has made for a job, and the links of its statuses, newest first.
type Automatic<'a> = (DeploymentId, &'a [&'a str]);

/// Only what is needed is read: Enterprise Servers differ in the rest.
#[derive(Deserialize)]
struct Made {
    id: DeploymentId,
}

#[derive(Deserialize)]
struct Listed {
    id: DeploymentId,
    #[serde(default)]
    task: String,
    #[serde(default)]
    payload: Value,
}

impl Listed {
    fn swap(&self) -> Option<SwapId> {
        // The schema allows the payload as an object and as a text that holds one.
        let object = match &self.payload {
            Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            other => other.clone(),
        };
        object.get("swap_id")?.as_str()?.parse().ok()
    }
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
