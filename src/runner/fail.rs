//! `fail`: what was promoted has failed since, by whatever found that out. Its deployment says so, and by choice the swap is
//! rolled back: here, or by another workflow.
//!
//! Only a swap whose result serves can fail, and only once: a candidate that was never promoted, a swap that is superseded
//! or rolled back, and an event that comes again move nothing.

use super::api::{self, Missing};
use super::stop::Stop;
use super::{Setting, Stopped, Told, Voice, ask, put_out, summarise, trust, warning};
use crate::config::Config;
use crate::github::api::ApiError;
use crate::github::deployment::{DeploymentId, Deployments};
use crate::github::inputs::CommandName;
use crate::github::output::Outputs;
use crate::github::status::{ACTIVE, Status};
use crate::github::workflow::Workflows;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::outcome::{Exit, Outcome};
use crate::model::plan::Strategy;
use crate::render::{Line, summary};

/// What became of the swap's deployment.
struct Verdict {
    deployment: Option<DeploymentId>,
    /// What is said of it, one line.
    said: String,
}

/// Marks the deployment of the swap that the inputs name; rolls it back if that is asked for.
pub(super) async fn fail(
    setting: &Setting,
    config: &Config,
    voice: &mut Voice,
) -> Result<Told, Stopped> {
    let Some(swap) = &setting.inputs.swap_id else {
        let missing = Failure::new("the command fail needs the swap that has failed");
        return Err(Stopped::input(vec![missing]));
    };
    let reaches = !trust::is_keyless(setting, &config.target);
    if setting.inputs.rollback && !reaches {
        let failure = Failure::new("rollback is true, and the input ssh-key is empty")
            .hint("give the step ssh-key and known-hosts, as the one that swaps has them");
        return Err(Stopped::input(vec![failure]));
    }
    // From the first question on a signal is heard, also between two of them.
    let mut stop = Stop::new()?;
    if reaches && let Some(over) = over(setting, config, swap, voice).await? {
        let is_rerun = setting.inputs.rollback && setting.run.requester.is_rerun();
        if over.is_undone && is_rerun {
            // By an earlier attempt of this step, it may be: then the server answers with that rollback.
            return ask(&setting.asking(CommandName::Rollback), config, voice).await;
        }
        let verdict = Verdict { deployment: None, said: over.why };
        return Ok(settled(setting, (swap, verdict), voice));
    }
    let verdict = tokio::select! {
        verdict = judge(setting, config, swap) => verdict,
        () = stop.asked() => return Err(stopped()),
    };
    if !setting.inputs.rollback {
        return verdict.map(|verdict| settled(setting, (swap, verdict), voice));
    }
    // Whether GitHub can be told or not: what has failed shall not serve.
    match verdict {
        Ok(verdict) => voice.say([Line::Text(verdict.said)]),
        Err(Stopped { failures, .. }) => voice.say(failures.iter().map(warning)),
    }
    ask(&setting.asking(CommandName::Rollback), config, voice).await
}

/// A signal came while GitHub was asked.
fn stopped() -> Stopped {
    let failure = Failure::new("stopped by a signal before anything was rolled back")
        .hint("run the step again: what is done of it already is not done twice");
    Stopped { failures: vec![failure], exit: Exit::Environment }
}

/// A swap that cannot fail any more.
struct Over {
    /// By what the server says, one line.
    why: String,
    /// Whether a rollback took its result out of service.
    is_undone: bool,
}

/// Whether the server says that the swap cannot fail any more.
async fn over(
    setting: &Setting,
    config: &Config,
    swap: &SwapId,
    voice: &mut Voice,
) -> Result<Option<Over>, Stopped> {
    let told = ask(&setting.asking(CommandName::Status), config, voice).await?;
    let Some(report) = told.status else { return Ok(None) };
    let brought = report.brought_by();
    // A rollback has nothing behind it to go back to: it cannot fail in this sense.
    if brought == Some(swap) && report.serving_swap.as_ref() == Some(swap) {
        return Ok(None);
    }
    let instead = brought.filter(|other| *other != swap);
    let instead =
        instead.map_or("no swap's result".to_owned(), |other| format!("the result of {other}"));
    let why = format!("swap {swap} is not what serves now: {instead} does");
    let past = report.history.iter().rfind(|past| past.swap == *swap && past.brought());
    let ended_by = past.and_then(|past| report.ended_by(past)?.strategy);
    Ok(Some(Over { why, is_undone: ended_by.is_some_and(Strategy::is_rollback) }))
}

/// Has another workflow roll the swap back, if one is named, and marks the deployment: in this order, so that a step that
/// is run again after a failure does both.
async fn judge(setting: &Setting, config: &Config, swap: &SwapId) -> Result<Verdict, Stopped> {
    let environment = setting.inputs.environment_for(&config.spec.service);
    let missing = |missing: Missing| Stopped::input(vec![missing.failure()]);
    let told =
        |error: ApiError| Stopped { failures: vec![error.to_failure()], exit: Exit::Environment };
    let spec = api::spec(setting, "deployments: write").map_err(missing)?;
    let deployments = Deployments::new(spec).map_err(told)?;
    let Some((id, state)) = deployments.find(&environment, swap).await.map_err(told)? else {
        let failure =
            Failure::new(format!("there is no deployment of swap {swap} to {environment}"))
                .hint("give the input environment as the step that swapped had it");
        return Err(Stopped::input(vec![failure]));
    };
    if state != ACTIVE {
        let said = format!("deployment {id} of swap {swap} is {state} already, and stays so");
        return Ok(Verdict { deployment: Some(id), said });
    }
    let mut said = format!("deployment {id} of swap {swap} is a failure now");
    if let Some(workflow) = &setting.inputs.rollback_workflow {
        let reference = setting.run.deployment_ref.as_ref();
        let reference = reference.map(|reference| reference.name.clone()).unwrap_or_default();
        let spec = api::spec(setting, "actions: write").map_err(missing)?;
        let workflows = Workflows::new(spec).map_err(told)?;
        workflows.dispatch(workflow, &reference, (swap, &environment)).await.map_err(told)?;
        said += &format!("; workflow {workflow} is started on {reference}");
    }
    let status = Status::failed(swap, setting.run.requester.url.clone());
    deployments.add_status(id, &status).await.map_err(told)?;
    Ok(Verdict { deployment: Some(id), said })
}

/// Says what became of it, where no traffic moves.
fn settled(setting: &Setting, (swap, verdict): (&SwapId, Verdict), voice: &mut Voice) -> Told {
    voice.say([Line::Text(verdict.said.clone())]);
    let markdown = summary::of_unchanged(&verdict.said);
    summarise(&setting.run, &markdown, voice);
    let outputs = Outputs {
        outcome: Some(Outcome::Unchanged),
        swap_id: Some(swap.clone()),
        deployment_id: verdict.deployment,
        ..Outputs::default()
    };
    put_out(setting, &outputs, voice);
    Told { markdown, ..Told::of(Exit::Done) }
}
