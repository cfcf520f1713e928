//! Whom a run is for, and what may be done for them.
//!
//! A configuration names programs that are run on the server: nginx's command, even to plan. So what comes from a pull
//! request that its author could not have pushed here never reaches a server.

use super::{Setting, Stopped, Surface};
use crate::github::inputs::CommandName;
use crate::github::pull_request::PullRequest;
use crate::model::failure::{Failure, Hint};
use crate::model::outcome::Exit;
use crate::model::target::{HostAddr, Target};

/// The pull request that the run is for, if any.
///
/// # Errors
/// If it may not have what it asks for, or cannot be known.
pub(super) fn pull_request(setting: &Setting) -> Result<Option<PullRequest>, Stopped> {
    let pull_request = PullRequest::of_run(&setting.env)
        .map_err(|error| Stopped { failures: vec![error.to_failure()], exit: Exit::Environment })?;
    let command = setting.inputs.command;
    let distrust = pull_request.as_ref().and_then(PullRequest::distrust);
    match distrust.filter(|_| command != CommandName::Plan) {
        None => Ok(pull_request),
        Some(why) => Err(Stopped::input(vec![Failure::new(format!("{command} is refused: {why}"))
            .hint("plan on `pull_request`, and swap on `push` after the merge, as in examples/upgrade.yml")])),
    }
}

/// Why a plan has to do without the server, if so.
pub(super) fn alone(
    setting: &Setting,
    target: &Target,
    pull_request: Option<&PullRequest>,
) -> Option<String> {
    if setting.inputs.command != CommandName::Plan {
        return None;
    }
    let keyless = || is_keyless(setting, target).then(|| "the input ssh-key is empty".to_owned());
    pull_request.and_then(PullRequest::distrust).or_else(keyless)
}

/// Whether a step has no key to a server that needs one.
pub(super) fn is_keyless(setting: &Setting, target: &Target) -> bool {
    setting.surface == Surface::Workflow
        && setting.inputs.ssh_key.is_none()
        && target.host != HostAddr::Local
}

/// What to do about it.
pub(super) fn no_key() -> Failure {
    Failure::new("the input ssh-key is empty")
        .hint("set it to a secret with the private key: `ssh-key: ${{ secrets.GPU_SSH_KEY }}`")
}
