//! Says on the pull request what its plan is. What GitHub answers, or does not, changes nothing but a warning.

use super::{Setting, Voice, warning};
use crate::github::api::{ApiSpec, Bounds};
use crate::github::comment::{Comments, Mark};
use crate::github::pull_request::PullRequest;
use crate::model::failure::Hint;
use crate::model::ids::ServiceName;
use crate::render::Line;

/// Keeps the comment on the pull request: the text of the job summary.
pub(super) async fn keep(
    setting: &Setting,
    pull_request: &PullRequest,
    (service, digest): (&ServiceName, Option<String>),
    markdown: &str,
    voice: &mut Voice,
) {
    let Some(repository) = setting.run.repository.clone() else { return };
    let Some(token) = setting.inputs.github_token.clone() else {
        let missing = "no comment is written: the input github-token is empty";
        return voice.say([Line::Warning(missing.to_owned())]);
    };
    let spec = ApiSpec {
        base: setting.run.api_url.clone(),
        token,
        permission: "pull-requests",
        repository,
        bounds: Bounds::default(),
    };
    let environment = setting.inputs.environment_for(service);
    let mark = Mark { service: service.clone(), environment, digest };
    let kept = match Comments::new(spec) {
        Ok(comments) => comments.keep(pull_request.number, &mark, markdown).await,
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        voice.say([warning(&error.to_failure())]);
    }
}
