//! Tells GitHub how a swap goes, beside it: what GitHub answers, or does not, never changes the swap.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::api::{self, Missing};
use super::{Setting, Voice};
use crate::github::api::{ApiError, ApiSpec};
use crate::github::deployment::{DeploymentId, Deployments, NewDeployment, Opened};
use crate::github::inputs::CommandName;
use crate::github::run::Reference;
use crate::github::status::{Purpose, State, Status};
use crate::model::event::{Conclusion, Event, EventKind};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ServiceName, SwapId};
use crate::render::Line;

#[cfg(test)]
mod tests;

/// The swap's voice on GitHub. Does nothing where there is no token or no repository.
pub(super) struct Reporter {
    news: Option<UnboundedSender<Event>>,
    told: Option<JoinHandle<Told>>,
    missing: Option<&'static str>,
}

/// What became of the reports.
#[derive(Default)]
struct Told {
    deployment: Option<DeploymentId>,
    failures: Vec<Failure>,
}

/// What does not change while a swap goes on.
struct Frame {
    reference: Reference,
    environment: String,
    purpose: Purpose,
    log_url: Option<String>,
    /// GitHub's number of the run.
    run: Option<String>,
    /// Whether the job was run before, and may have told of the same swap.
    is_rerun: bool,
}

impl Reporter {
    /// A reporter for a command; only swaps and rollbacks have something to report.
    pub(super) fn new(setting: &Setting, service: &ServiceName) -> Self {
        let quiet = |missing| Self { news: None, told: None, missing };
        let purpose = match setting.inputs.command {
            CommandName::Swap => Purpose::Swap,
            CommandName::Rollback | CommandName::Fail => Purpose::Rollback,
            // The one that asked for the swap reports an abort.
            _ => return quiet(None),
        };
        let run = &setting.run;
        let spec = match api::spec(setting, "deployments: write") {
            Ok(spec) => spec,
            Err(Missing::Repository) => return quiet(None),
            Err(Missing::Token) => {
                return quiet(Some("no deployment is reported: the input github-token is empty"));
            }
        };
        let Some(reference) = run.deployment_ref.clone() else {
            return quiet(Some(
                "no deployment is reported: neither GITHUB_REF_NAME nor GITHUB_SHA is set",
            ));
        };
        let frame = Frame {
            reference,
            environment: setting.inputs.environment_for(service),
            purpose,
            log_url: run.requester.url.clone(),
            run: run.requester.run_id.clone(),
            is_rerun: run.requester.is_rerun(),
        };
        let (news, heard) = unbounded_channel();
        Self {
            news: Some(news),
            told: Some(tokio::task::spawn_local(tell(spec, frame, heard))),
            missing: None,
        }
    }

    /// Passes an event on, without waiting for GitHub.
    pub(super) fn hear(&mut self, event: &Event) {
        if let Some(news) = &self.news
            && matches!(event.kind, EventKind::Planned { .. } | EventKind::Concluded(_))
        {
            // The task ends early only if it cannot reach GitHub; it says so in the end.
            let _ = news.send(event.clone());
        }
    }

    /// Waits until everything is told, bounded by the API's own limits, and says what failed as warnings.
    pub(super) async fn finish(self, voice: &mut Voice) -> Option<DeploymentId> {
        drop(self.news);
        voice.say(self.missing.map(|missing| Line::Warning(missing.to_owned())));
        let told = self.told?.await.unwrap_or_default();
        for failure in told.failures {
            voice.say([super::warning(&failure)]);
        }
        told.deployment
    }
}

async fn tell(spec: ApiSpec, frame: Frame, mut heard: UnboundedReceiver<Event>) -> Told {
    let mut told = Told::default();
    let mut note = |error: ApiError| told.failures.push(error.to_failure());
    let api = match Deployments::new(spec) {
        Ok(api) => api,
        Err(error) => {
            note(error);
            return told;
        }
    };
    let mut deployment = None;
    let mut concluded = false;
    let mut replaces = None;
    while let Some(event) = heard.recv().await {
        let status = match &event.kind {
            EventKind::Planned { plan, replaces: before } => {
                replaces.clone_from(before);
                let (reference, environment) = (frame.reference.clone(), frame.environment.clone());
                let new = NewDeployment::of_plan(plan, event.swap.clone(), reference, environment);
                match api.find_or_create(&new, frame.run.as_deref()).await {
                    Ok(opened) => deployment = Some(opened),
                    Err(error) => note(error),
                }
                Status::started(plan, frame.log_url.clone())
            }
            EventKind::Concluded(conclusion) => {
                concluded = true;
                Status::concluded(frame.purpose, conclusion, frame.log_url.clone())
            }
            _ => continue,
        };
        let Some(opened) = &deployment else { continue };
        let state = status.state;
        if opened.lacks(state)
            && let Err(error) =
                api.add_status(opened.id(), &opened.worded(status, &event.swap)).await
        {
            note(error);
        }
        if let EventKind::Concluded(end) = &event.kind {
            let replaces = replaces.as_ref().filter(|_| state == State::Success);
            let told = close_others(&api, &frame, (opened, replaces), (&event.swap, end)).await;
            told.unwrap_or_else(&mut note);
        }
    }
    if let Some(opened) = deployment.as_ref().filter(|opened| !concluded && !opened.is_told())
        && let Err(error) = api.add_status(opened.id(), &Status::lost(frame.log_url)).await
    {
        note(error);
    }
    told.deployment = deployment.as_ref().map(Opened::id);
    told
}

/// Takes out of GitHub's list what a swap that has ended stands in the place of. Also where its own end was told before: whoever
/// told it may have come no further.
async fn close_others(
    api: &Deployments,
    frame: &Frame,
    (opened, replaces): (&Opened, Option<&SwapId>),
    (swap, end): (&SwapId, &Conclusion),
) -> Result<(), ApiError> {
    if let (Opened::Automatic(id), true) = (opened, frame.is_rerun) {
        api.close_earlier(&frame.environment, (swap, *id)).await?;
    }
    // What still serves is never called inactive: only the end of a swap that has moved traffic for good says more.
    let Some(before) = replaces else { return Ok(()) };
    let status = Status::superseded(frame.purpose, swap, &end.traffic);
    api.supersede(&frame.environment, (before, opened.id()), &status).await
}
