//! The way to the run's repository on GitHub.

use super::Setting;
use crate::github::api::{ApiSpec, Bounds};
use crate::github::outside::Proxies;
use crate::model::failure::Failure;

/// What there is no way without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Not in a workflow, most likely.
    Repository,
    /// The input is empty.
    Token,
}

impl Missing {
    /// The failure of a command that cannot do without.
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::Repository => {
                Failure::new("there is no repository to tell: GITHUB_REPOSITORY is not set")
                    .hint("run it in a workflow, or set GITHUB_REPOSITORY to owner/name")
            }
            Self::Token => Failure::new("there is no token to tell GitHub with").hint(
                "leave the input github-token out, or give one; at a terminal set GITHUB_TOKEN",
            ),
        }
    }
}

/// An API for what needs one permission.
pub(super) fn spec(setting: &Setting, permission: &'static str) -> Result<ApiSpec, Missing> {
    let repository = setting.run.repository.clone().ok_or(Missing::Repository)?;
    let token = setting.inputs.github_token.clone().ok_or(Missing::Token)?;
    let base = setting.run.api_url.clone();
    let graphql = setting.run.graphql_url.clone();
    let (bounds, proxies) = (Bounds::default(), Proxies::from_env(&setting.env));
    Ok(ApiSpec { base, graphql, token, permission, repository, bounds, proxies })
}
