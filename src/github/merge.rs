//! The pull request that a commit came from.
//!
//! GitHub's REST documentation, "List pull requests associated with a commit".

use serde::Deserialize;

use super::api::{Api, ApiError, ApiSpec};

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
    /// commit of a rebase. `None` if there is none: other pull requests may hold the commit, and were not merged by it.
    ///
    /// # Errors
    /// If GitHub refuses, or does not answer within the operation's bound.
    pub async fn made(&self, commit: &str) -> Result<Option<u64>, ApiError> {
        let tried = format!("find the pull request of {commit} in {}", self.api.repository);
        let route = format!("/commits/{commit}/pulls");
        let find = async {
            let there: Vec<Listed> = self.api.get(&tried, &route, &[("per_page", PAGE)]).await?;
            let made = |pull: &&Listed| {
                pull.merged_at.is_some() && pull.merge_commit_sha.as_deref() == Some(commit)
            };
            Ok(there.iter().find(made).map(|pull| pull.number))
        };
        self.api.operation(&tried, find).await
    }
}
