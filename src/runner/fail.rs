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
use crate::github::deployment::{DeploymentId, Deployments, Found};
use crate::github::inputs::CommandName;
use crate::github::output::Outputs;
use crate::github::status::Status;
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
    let standing = match reaches {
        true => standing(setting, config, swap, voice).await?,
        false => Standing::Unknown,
    };
    if let Standing::Over(over) = standing {
        let is_rerun = setting.inputs.rollback && setting.run.requester.is_rerun();
        if over.is_undone && is_rerun {
            // By an earlier attempt of this step, it may be: then the server answers with that rollback.
            return ask(&setting.asking(CommandName::Rollback), config, voice).await;
        }
        let verdict = Verdict { deployment: None, said: over.why };
        return Ok(settled(setting, (swap, verdict), voice));
    }
    let verdict = tokio::select! {
        verdict = judge(setting, config, (swap, &standing)) => verdict,
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

/// What the server says of the swap.
enum Standing {
    /// What it brought serves.
    Serves,
    /// It cannot fail any more.
    Over(Over),
    /// It was not asked, or did not say.
    Unknown,
}

impl Standing {
    /// Whether the deployment of the swap says all that there is to say. A swap that serves may have one in any other state: GitHub
    /// did not hear of its end, or somebody else's deployment to the environment has closed it. And a job may have failed after
    /// its swap had succeeded: GitHub says so of a deployment that it has made, and that takes nothing out of service.
    fn agrees(&self, found: &Found) -> bool {
        match &*found.state {
            "failure" => found.is_of_swap,
            state => state == "inactive" && !matches!(self, Self::Serves),
        }
    }

    /// Whether what has failed is known to have been promoted; a swap that failed by itself was not.
    fn was_promoted(&self, found: &Found) -> bool {
        matches!(self, Self::Serves) || found.state == "success"
    }

    /// Whether it may be what needs a person that the deployment tells of, and not a swap that serves.
    fn doubts(&self, found: &Found) -> bool {
        found.state == "error" && !matches!(self, Self::Serves)
    }
}

/// A swap that cannot fail any more.
struct Over {
    /// By what the server says, one line.
    why: String,
    /// Whether a rollback took its result out of service.
    is_undone: bool,
}

/// Asks the server about the swap.
async fn standing(
    setting: &Setting,
    config: &Config,
    swap: &SwapId,
    voice: &mut Voice,
) -> Result<Standing, Stopped> {
    let told = ask(&setting.asking(CommandName::Status), config, voice).await?;
    let Some(report) = told.status else { return Ok(Standing::Unknown) };
    let brought = report.brought_by();
    // A rollback has nothing behind it to go back to: it cannot fail in this sense.
    if brought == Some(swap) && report.serving_swap.as_ref() == Some(swap) {
        return Ok(Standing::Serves);
    }
    let instead = brought.filter(|other| *other != swap);
    let instead =
        instead.map_or("no swap's result".to_owned(), |other| format!("the result of {other}"));
    let why = format!("swap {swap} is not what serves now: {instead} does");
    let past = report.history.iter().rfind(|past| past.swap == *swap && past.brought());
    let ended_by = past.and_then(|past| report.ended_by(past)?.strategy);
    Ok(Standing::Over(Over { why, is_undone: ended_by.is_some_and(Strategy::is_rollback) }))
}

/// Has another workflow roll the swap back, if one is named, and marks the deployment: in this order, so that a step that
/// is run again after a failure does both. The workflow is started also where nothing can be marked: the server moves nothing
/// that does not serve by this swap.
async fn judge(
    setting: &Setting,
    config: &Config,
    (swap, standing): (&SwapId, &Standing),
) -> Result<Verdict, Stopped> {
    let environment = setting.inputs.environment_for(&config.spec.service);
    let spec = api::spec(setting, "deployments: write").map_err(missing)?;
    let deployments = Deployments::new(spec).map_err(told)?;
    let found = deployments.find(&environment, swap).await.map_err(told)?;
    if let Some(Found { id, state, .. }) = found.as_ref().filter(|found| standing.agrees(found)) {
        let said = format!("deployment {id} of swap {swap} is {state} already, and stays so");
        return Ok(Verdict { deployment: Some(*id), said });
    }
    let started = start_workflow(setting, (swap, &environment)).await?;
    let started = started.map(|started| format!("; {started}"));
    let and = started.as_deref().unwrap_or_default();
    let Some(found) = found else {
        let text = format!("there is no deployment of swap {swap} to {environment}{and}");
        let hint = "give the input environment as the step that swapped had it; where GitHub was not told of the swap, \
                    `rollback: true` with ssh-key rolls back what has no deployment";
        return Err(Stopped::input(vec![Failure::new(text).hint(hint)]));
    };
    let id = found.id;
    if standing.doubts(&found) {
        let said = format!("deployment {id} of swap {swap} is error, and stays so{and}");
        if started.is_some() {
            return Ok(Verdict { deployment: Some(id), said });
        }
        let failure =
            Failure::new(format!("{said}: what is stuck says this, and what GitHub lost"))
                .hint("give the step ssh-key and known-hosts: the server knows whether it serves");
        return Err(Stopped { failures: vec![failure], exit: Exit::Environment });
    }
    let status = match standing.was_promoted(&found) {
        true => Status::failed,
        false => Status::said_to_have_failed,
    };
    let status = status(swap, setting.run.requester.url.clone());
    deployments.add_status(id, &status).await.map_err(told)?;
    let said = format!("deployment {id} of swap {swap} is a failure now{and}");
    Ok(Verdict { deployment: Some(id), said })
}

/// Starts the workflow that is to roll the swap back, and says so; `None` where none is named.
async fn start_workflow(
    setting: &Setting,
    (swap, environment): (&SwapId, &str),
) -> Result<Option<String>, Stopped> {
    let Some(workflow) = &setting.inputs.rollback_workflow else { return Ok(None) };
    let Some(reference) = &setting.run.workflow_ref else {
        let text = format!("the run has no branch to start the workflow {workflow} on");
        return Err(Stopped::input(vec![
            Failure::new(text).hint("set GITHUB_REF, as a workflow has it"),
        ]));
    };
    let spec = api::spec(setting, "actions: write").map_err(missing)?;
    let workflows = Workflows::new(spec).map_err(told)?;
    workflows.dispatch(workflow, reference, (swap, environment)).await.map_err(told)?;
    Ok(Some(format!("workflow {workflow} is started on {reference}")))
}

fn missing(missing: Missing) -> Stopped {
    Stopped::input(vec![missing.failure()])
}

fn told(error: ApiError) -> Stopped {
    Stopped { failures: vec![error.to_failure()], exit: Exit::Environment }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_the_last_word_only_where_it_is_of_the_swap() {
        let found = |state: &str, is_of_swap| {
            let (id, state) = (DeploymentId(1), state.to_owned());
            Found { id, state, is_of_swap, is_shared: false }
        };
        for standing in [Standing::Unknown, Standing::Serves] {
            assert!(standing.agrees(&found("failure", true)));
            assert!(!standing.agrees(&found("failure", false)), "the job's");
            assert!(!standing.agrees(&found("success", true)));
        }
        assert!(Standing::Unknown.agrees(&found("inactive", false)));
        assert!(!Standing::Serves.agrees(&found("inactive", true)));
    }
}
