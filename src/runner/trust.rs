//! Whom a run is for, and what may be done for them.
//!
//! A configuration names programs that are run on the server: nginx's command, even to plan. So what comes from a pull
//! request that its author could not have pushed here never reaches a server.

use std::path::Path;

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

/// Whether a step has no key to a server that needs one. Nobody's own ssh configuration is in the action's container; an agent may
/// be, where its socket was brought there.
pub(super) fn is_keyless(setting: &Setting, target: &Target) -> bool {
    let agent = setting.env.get("SSH_AUTH_SOCK");
    setting.surface == Surface::Workflow
        && setting.inputs.ssh_key.is_none()
        && target.host != HostAddr::Local
        && agent.is_none_or(|socket| !Path::new(socket).exists())
}

/// The input that a step lacks to be let in to a server, or to know it; what to do about it.
///
/// As with the key, the action's container has no known hosts but those that are given.
pub(super) fn missing(setting: &Setting, target: &Target) -> Option<Failure> {
    let inputs = &setting.inputs;
    let is_unpinned = setting.surface == Surface::Workflow
        && inputs.ssh_key.is_some()
        && inputs.known_hosts.is_none()
        && target.host != HostAddr::Local;
    match is_keyless(setting, target) {
        true => Some(no_key()),
        false => is_unpinned.then(no_known_hosts),
    }
}

/// What to do about it. Who gets which secrets: GitHub's documentation, "Using secrets in GitHub Actions".
fn no_key() -> Failure {
    Failure::new("the input ssh-key is empty")
        .hint("set it to a secret with the private key: `ssh-key: ${{ secrets.GPU_SSH_KEY }}`")
        .hint(
            "if it is set so, the run did not get the secret: its name is another one, or the job has not the `environment:` \
             that holds it, or the run is for a pull request from a fork or of Dependabot",
        )
}

fn no_known_hosts() -> Failure {
    Failure::new("the input known-hosts is empty")
        .hint("set it to a variable with the server's host key: `known-hosts: ${{ vars.GPU_KNOWN_HOSTS }}`")
        .hint(
            "if it is set so, the variable is missing: its name is another one, or the job has not the `environment:` \
             that holds it",
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::github::inputs::Inputs;
    use crate::github::run::WorkflowRun;

    fn asked(surface: Surface, pairs: &[(&str, &str)], host: &str) -> (Setting, Target) {
        let env: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (inputs, run) = (Inputs::from_env(&env).unwrap(), WorkflowRun::from_env(&env));
        let target = Target { host: host.parse().unwrap(), port: 22, jump: None };
        (Setting { surface, inputs, run, env }, target)
    }

    fn keyless(surface: Surface, pairs: &[(&str, &str)], host: &str) -> bool {
        let (setting, target) = asked(surface, pairs, host);
        is_keyless(&setting, &target)
    }

    #[test]
    fn a_step_with_a_key_needs_the_hosts_that_are_known() {
        let missing = |surface, pairs: &[(&str, &str)], host: &str| {
            let (setting, target) = asked(surface, pairs, host);
            missing(&setting, &target).map(|failure| failure.message)
        };
        let (host, key) = ("deploy@gpu-1", ("INPUT_SSH-KEY", "-----BEGIN"));
        let none = ("INPUT_KNOWN-HOSTS", "");
        let told = |input: &str| Some(format!("the input {input} is empty"));
        assert_eq!(missing(Surface::Workflow, &[key, none], host), told("known-hosts"));
        assert_eq!(missing(Surface::Workflow, &[none], host), told("ssh-key"));
        let pinned = ("INPUT_KNOWN-HOSTS", "gpu-1 ssh-ed25519 AAAA");
        assert_eq!(missing(Surface::Workflow, &[key, pinned], host), None);
        assert_eq!(missing(Surface::Workflow, &[key, none], "local"), None);
        // At a terminal one's own known hosts apply.
        assert_eq!(missing(Surface::Terminal, &[key], host), None);
    }

    #[test]
    fn a_step_needs_a_key_or_an_agent_that_is_there() {
        let host = "deploy@gpu-1";
        let agent = |path| keyless(Surface::Workflow, &[("SSH_AUTH_SOCK", path)], host);
        assert!(keyless(Surface::Workflow, &[], host));
        assert!(!keyless(Surface::Workflow, &[("INPUT_SSH-KEY", "-----BEGIN")], host));
        assert!(!keyless(Surface::Workflow, &[], "local"));
        // Whoever has a terminal has an ssh configuration.
        assert!(!keyless(Surface::Terminal, &[], host));
        assert!(!agent("/dev/null"));
        // The variable of a job reaches the container, its socket does not.
        assert!(agent("/not/in/the/container"));
    }
}
