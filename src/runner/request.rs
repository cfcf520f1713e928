//! Makes the request of a command.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Setting, Stopped};
use crate::config::{self, Config};
use crate::github::inputs::{CommandName, Held, Untold};
use crate::model::digest::{Parts, PlanDigest};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::wire::{
    AbortRequest, Asked, Command, RepairRequest, Request, RollbackRequest, Secrets, SurveyRequest,
    SwapRequest, UninstallRequest, Unknown, WIRE_VERSION, Wish,
};

/// The request that the inputs and the configuration come to.
pub(super) fn of(setting: &Setting, config: &Config) -> Result<Request, Stopped> {
    let inputs = &setting.inputs;
    let secrets = secrets(setting, config)?;
    let asked = Asked { spec: config.spec.clone(), secrets };
    let requester = setting.run.requester.clone();
    let (plan_digest, plan_parts) = held_to(inputs.plan_digest.as_ref());
    let swap_request = |asked| -> Result<SwapRequest, Stopped> {
        Ok(SwapRequest {
            asked,
            swap: new_id()?,
            when: inputs.when,
            plan_digest,
            plan_parts,
            lock_wait: inputs.lock_wait,
            wait: inputs.wait,
            requester: requester.clone(),
        })
    };
    let command = match inputs.command {
        CommandName::Init => return Ok(survey(setting)),
        CommandName::Plan => Command::Plan(swap_request(asked)?),
        CommandName::Swap => Command::Swap(swap_request(asked)?),
        CommandName::Rollback => Command::Rollback(RollbackRequest {
            asked,
            swap: new_id()?,
            of: inputs.swap_id.clone(),
            to: inputs.to.clone(),
            lock_wait: inputs.lock_wait,
            wait: inputs.wait,
            requester,
        }),
        CommandName::Abort => Command::Abort(AbortRequest {
            asked,
            of: inputs.swap_id.clone(),
            unknown: Unknown::Refused,
            wish: Wish::GivenUp,
            since: 0,
            requester,
        }),
        // Before anything else it asks what serves.
        CommandName::Fail | CommandName::Status => Command::Status(asked),
        CommandName::Repair => {
            let id = Some(new_id()?);
            Command::Repair(RepairRequest { asked, id, lock_wait: inputs.lock_wait, requester })
        }
        CommandName::Logs => Command::Logs(asked),
        CommandName::History => Command::History(asked),
        CommandName::Doctor => Command::Doctor(asked),
        CommandName::Uninstall => Command::Uninstall(UninstallRequest {
            asked,
            swap: new_id()?,
            kept: inputs.kept,
            requester,
        }),
    };
    Ok(Request { v: WIRE_VERSION, command })
}

/// The plan that a swap is held to as an agent of any release understands it, and what explains a refusal.
fn held_to(held: Option<&Held>) -> (Option<PlanDigest>, Option<Parts>) {
    match held {
        Some(Held::To(digest)) => (Some(PlanDigest::new(digest.whole(), None)), digest.parts()),
        Some(Held::ToPullRequest) | None => (None, None),
    }
}

/// The request to look at a server that has no configuration.
pub(super) fn survey(setting: &Setting) -> Request {
    let Untold { nginx, state_dir, .. } = setting.inputs.untold.clone();
    Request { v: WIRE_VERSION, command: Command::Survey(SurveyRequest { nginx, state_dir }) }
}

/// The request to be told how a swap goes, or went.
pub(super) fn follow(setting: &Setting, config: &Config, swap: SwapId) -> Request {
    // Whoever brings it to its end may need those that are there.
    let mut names = config.secret_names();
    names.retain(|name| setting.env.get(name).is_some_and(|v| !v.is_empty()));
    let secrets = config::secrets(&names, &setting.env).unwrap_or_default();
    let asked = Asked { spec: config.spec.clone(), secrets };
    let command = Command::Follow { asked, swap, since: 0, wait: setting.inputs.wait };
    Request { v: WIRE_VERSION, command }
}

/// A command that may start a replica needs every secret. The others may have to ask a running one, with a key that is
/// among them, and go without those that the step does not have.
fn secrets(setting: &Setting, config: &Config) -> Result<Secrets, Stopped> {
    let mut names = config.secret_names();
    if !matches!(setting.inputs.command, CommandName::Plan | CommandName::Swap) {
        let probe = config.spec.nginx.probe.api_key_env.as_ref();
        names.retain(|name| {
            Some(name) == probe || setting.env.get(name).is_some_and(|v| !v.is_empty())
        });
    }
    config::secrets(&names, &setting.env).map_err(|problems| Stopped::input(problems.to_failures()))
}

/// `s-20261123-091500-4f1c02`: its time for people, three random bytes against two at once.
fn new_id() -> Result<SwapId, Stopped> {
    let mut random = [0; 3];
    getrandom::fill(&mut random).map_err(|error| Stopped {
        failures: vec![Failure::from_error(&error)],
        exit: crate::model::outcome::Exit::Environment,
    })?;
    let [a, b, c] = random;
    let now = Timestamp::now().to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
    let id = format!("s-{now}-{a:02x}{b:02x}{c:02x}");
    id.parse().map_err(|error| Stopped {
        failures: vec![Failure::from_error(&error)],
        exit: crate::model::outcome::Exit::Bug,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_agent_is_asked_for_the_twelve_digits_that_it_knows() {
        let whole: PlanDigest = "o-4f1c02a9b3d7".parse().unwrap();
        let digest: PlanDigest = format!("{whole}-0123456789").parse().unwrap();
        let parts = digest.parts();
        assert!(parts.is_some());
        assert_eq!(held_to(Some(&Held::To(digest))), (Some(whole.clone()), parts));
        assert_eq!(held_to(Some(&Held::To(whole.clone()))), (Some(whole), None));
    }
}
