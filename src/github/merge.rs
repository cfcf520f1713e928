//! The pull requests that commits came from.
//!
//! GitHub's REST documentation, "List pull requests associated with a commit".

use std::collections::BTreeMap;

use serde::Deserialize;

use super::api::{Api, ApiError, ApiSpec};

/// How often a pull request is looked for: GitHub's list may not have it yet in the first seconds after the merge.
const LOOKS: u32 = 4;

/// How many commits of a push are asked for their pull requests, each by a request of its own.
const WALKED: usize = 30;

/// How many pull requests of one commit are looked through (the most a page holds).
const PAGE: &str = "100";

/// The merged pull requests of one repository.
pub struct Merges {
    api: Api,
}

#[derive(Deserialize)]
struct Listed {
    number: u64,
    merged_at: Option<String>,
    merge_commit_sha: Option<String>,
}

impl Merges {
    /// A client; makes no request. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the token cannot stand in a header, the address is none, or the machine has no CA certificates.
    pub fn new(spec: ApiSpec) -> Result<Self, ApiError> {
        Api::new(spec).map(|api| Self { api })
    }

    /// The number of the pull request whose merge made this commit: the merge itself, what it was squashed to, or the last
    /// commit of a rebase. `None` if there is none after several looks, each after twice the pause of the one before: other
    /// pull requests may hold the commit, and were not merged by it.
    ///
    /// # Errors
    /// If GitHub refuses, or does not answer within the operation's bound.
    pub async fn made(&self, commit: &str) -> Result<Option<u64>, ApiError> {
        let tried = format!("find the pull request of {commit} in {}", self.api.repository);
        let route = format!("/commits/{commit}/pulls");
        let made = |pull: &&Listed| {
            pull.merged_at.is_some() && pull.merge_commit_sha.as_deref() == Some(commit)
        };
        let find = async {
            for look in 0..LOOKS {
                if look > 0 {
                    tokio::time::sleep(self.api.bounds.pause * 2_u32.pow(look - 1)).await;
                }
                let there: Vec<Listed> =
                    self.api.get(&tried, &route, &[("per_page", PAGE)]).await?;
                if let Some(pull) = there.iter().find(made) {
                    return Ok(Some(pull.number));
                }
            }
            Ok(None)
        };
        self.api.operation(&tried, find).await
    }

    /// The numbers of all pull requests whose merges made one of these commits, in the commits' order; of many commits the
    /// first 30 are asked, each once.
    ///
    /// # Errors
    /// If GitHub refuses, or does not answer within the operation's bound.
    pub async fn among(&self, commits: &[String]) -> Result<Vec<u64>, ApiError> {
        let tried = format!("find the pull requests of a push to {}", self.api.repository);
        let find = async {
            // By the place of the commit: one that a pull request has brought lists it before the merge itself is asked.
            let mut found = BTreeMap::new();
            for commit in commits.iter().take(WALKED) {
                let route = format!("/commits/{commit}/pulls");
                let there: Vec<Listed> =
                    self.api.get(&tried, &route, &[("per_page", PAGE)]).await?;
                for pull in there.into_iter().filter(|pull| pull.merged_at.is_some()) {
                    let merge = pull.merge_commit_sha;
                    let place = commits.iter().position(|commit| merge.as_ref() == Some(commit));
                    found.extend(place.map(|place| (place, pull.number)));
                }
            }
            Ok(found.into_values().collect())
        };
        self.api.operation(&tried, find).await
    }
}
