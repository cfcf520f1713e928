//! Says on the pull request what its plan is. What GitHub answers, or does not, changes nothing but a warning.

use super::api::{self, Missing};
use super::{Setting, Voice, warning};
use crate::github::comment::{Comments, Mark};
use crate::model::failure::Hint;
use crate::model::ids::ServiceName;
use crate::render::Line;

/// Keeps the comment on the pull request: the text of the job summary.
pub(super) async fn keep(
    setting: &Setting,
    number: u64,
    (service, digest): (&ServiceName, Option<String>),
    markdown: &str,
    voice: &mut Voice,
) {
    let spec = match api::spec(setting, "pull-requests: write") {
        Ok(spec) => spec,
        Err(Missing::Repository) => return,
        Err(Missing::Token) => {
            let missing = "no comment is written: the input github-token is empty";
            return voice.say([Line::Warning(missing.to_owned())]);
        }
    };
    let environment = setting.inputs.environment_for(service);
    let mark = Mark { service: service.clone(), environment, digest };
    let kept = match Comments::new(spec) {
        Ok(comments) => comments.keep(number, &mark, &voice.typed.spell(markdown)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        voice.say([warning(&error.to_failure())]);
    }
}
