//! Finds deployments: ours by the swap in their payload, GitHub's own by the links of their statuses.

use serde::Deserialize;
use serde_json::Value;

use super::{DeploymentId, Deployments, NewDeployment, PAGE, Posted, TASK};
use crate::github::api::ApiError;
use crate::github::status::marked;
use crate::model::ids::SwapId;

/// How many pages of the newest deployments of our task are looked through: several services may share an environment.
const PAGES: usize = 5;

/// How many of the newest deployments of others are looked through, of those on one page: each costs a request.
const AUTOMATIC: usize = 30;

/// A deployment that GitHub has made for a job, and the links of its statuses, newest first.
pub(super) type Automatic<'a> = (DeploymentId, &'a [&'a str]);

/// A deployment that is known to be of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// GitHub's id of it.
    pub id: DeploymentId,
    /// The swap.
    pub swap: SwapId,
    /// The other swaps that it tells of, newest first: a job may swap more than once, and jobs of one run may share one that GitHub has
    /// made.
    pub others: Vec<SwapId>,
    /// Whether we have made it: then all of it is about the swap.
    pub is_ours: bool,
}

impl Known {
    fn ours((swap, id): (SwapId, DeploymentId)) -> Self {
        Self { id, swap, others: Vec::new(), is_ours: true }
    }

    /// One that GitHub has made, if its statuses mark the swap `of`; else of the swap that they mark last.
    pub(super) fn automatic((id, urls): Automatic<'_>, of: Option<&SwapId>) -> Option<Self> {
        let marks: Vec<SwapId> = urls.iter().filter_map(|url| marked(url)).collect();
        let swap = of.or(marks.first()).filter(|swap| marks.contains(swap))?.clone();
        let others = marks.into_iter().filter(|other| *other != swap).collect();
        Some(Self { id, swap, others, is_ours: false })
    }
}

/// The deployment of a swap, as it stands on GitHub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// GitHub's id of it.
    pub id: DeploymentId,
    /// The state of its newest status, in GitHub's words; `pending` without one, as GitHub shows it.
    pub state: String,
    /// Whether that status tells of the swap. One of a deployment that GitHub has made may tell how the job ended, of which the swap
    /// was a part.
    pub is_of_swap: bool,
    /// Whether it tells of other swaps as well.
    pub is_shared: bool,
}

impl Deployments {
    /// The first thing to be found in the deployments to an environment that GitHub has made for jobs, newest first. The links
    /// of their statuses are all that tells the job, or a swap that went on with one.
    pub(super) async fn automatic<T>(
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

    /// The newest deployments of our task to the environment, searched for the swap's id.
    pub(super) async fn look(&self, new: &NewDeployment) -> Result<Option<DeploymentId>, ApiError> {
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

    /// The deployments to an environment that are known to be of swaps, newest first: ours, and those that GitHub has made for
    /// jobs whose swaps went on with them. Of several swaps in one the newest counts.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn list_all(&self, environment: &str) -> Result<Vec<Known>, ApiError> {
        let mut all = Vec::new();
        let keep = |one| {
            all.push(Known::ours(one));
            None::<()>
        };
        self.ours(environment, keep).await?;
        let keep = |automatic: Automatic<'_>| {
            all.extend(Known::automatic(automatic, None));
            None::<()>
        };
        self.automatic(environment, keep).await?;
        all.sort_unstable_by_key(|known| std::cmp::Reverse(known.id.0));
        Ok(all)
    }

    /// The state of a deployment's newest status, in GitHub's words; `pending` without one, as GitHub shows it.
    pub(super) async fn state(&self, id: DeploymentId) -> Result<String, ApiError> {
        Ok(self.newest(id).await?.0)
    }

    /// The same, with the link of that status.
    async fn newest(&self, id: DeploymentId) -> Result<(String, Option<String>), ApiError> {
        let tried = format!("read the state of deployment {id} in {}", self.api.repository);
        let route = format!("/deployments/{id}/statuses");
        let there: Vec<Posted> = self.api.get(&tried, &route, &[("per_page", "1")]).await?;
        let newest = there.into_iter().next();
        let newest =
            newest.and_then(|posted| Some((posted.state.as_str()?.to_owned(), posted.log_url)));
        Ok(newest.unwrap_or_else(|| ("pending".to_owned(), None)))
    }

    /// The deployment of a swap, if there is one.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn find(&self, environment: &str, swap: &SwapId) -> Result<Option<Found>, ApiError> {
        let tried = format!("find the deployment of {swap} in {}", self.api.repository);
        // Each has a bound of its own: an environment that others use as well takes many requests.
        let ours = self.api.operation(&tried, self.of_swap(environment, swap)).await?;
        let is_its = |automatic: Automatic<'_>| Known::automatic(automatic, Some(swap));
        let known = match ours {
            Some(id) => Some(Known::ours((swap.clone(), id))),
            None => self.api.operation(&tried, self.automatic(environment, is_its)).await?,
        };
        let Some(known) = known else { return Ok(None) };
        self.api.operation(&tried, self.found(&known)).await.map(Some)
    }

    /// How a deployment stands.
    ///
    /// # Errors
    /// If GitHub refuses or does not answer.
    pub async fn found(&self, known: &Known) -> Result<Found, ApiError> {
        let (state, url) = self.newest(known.id).await?;
        let is_marked = url.is_some_and(|url| marked(&url).as_ref() == Some(&known.swap));
        let is_of_swap = known.is_ours || is_marked;
        Ok(Found { id: known.id, state, is_of_swap, is_shared: !known.others.is_empty() })
    }
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
