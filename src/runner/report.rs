//! Tells GitHub how a swap goes, beside it: what GitHub answers, or does not, never changes the swap.

use std::time::Duration;

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

/// How long GitHub is left alone before a deployment is asked for again that it did not make: a model loads for minutes, and
/// what GitHub has lasts for minutes as well.
const AGAIN: Duration = Duration::from_secs(60);

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
    /// How long GitHub is left alone before a deployment is asked for again that it did not make.
    again: Duration,
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
            again: AGAIN,
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

/// Tells of every event until there are no more.
async fn tell(spec: ApiSpec, frame: Frame, mut heard: UnboundedReceiver<Event>) -> Told {
    let api = match Deployments::new(spec) {
        Ok(api) => api,
        Err(error) => return Told { deployment: None, failures: vec![error.to_failure()] },
    };
    let mut telling = Telling { api, frame, begun: None, failures: Vec::new() };
    while let Some(event) = telling.next(&mut heard).await {
        telling.take(event).await;
    }
    telling.end().await
}

/// What GitHub is told, as far as it has come.
struct Telling {
    api: Deployments,
    frame: Frame,
    /// The swap that goes on, or that has ended last.
    begun: Option<Begun>,
    failures: Vec<Failure>,
}

/// A swap from its plan on.
struct Begun {
    new: NewDeployment,
    started: Status,
    /// The swap whose result serves until then.
    replaces: Option<SwapId>,
    deployment: Result<Opened, ApiError>,
    concluded: bool,
}

impl Begun {
    /// Whether there is no deployment, and GitHub may have one by now.
    fn lacks_deployment(&self) -> bool {
        self.deployment.as_ref().is_err_and(ApiError::may_pass)
    }
}

impl Telling {
    /// The next event. While it is awaited, a deployment that GitHub did not make is asked for again.
    async fn next(&mut self, heard: &mut UnboundedReceiver<Event>) -> Option<Event> {
        loop {
            let begun = self.begun.as_ref().filter(|begun| !begun.concluded);
            let Some(begun) = begun.filter(|begun| begun.lacks_deployment()) else {
                return heard.recv().await;
            };
            let started = begun.started.clone();
            tokio::select! {
                event = heard.recv() => return event,
                () = tokio::time::sleep(self.frame.again) => {}
            }
            self.open_again().await;
            self.say(started).await;
        }
    }

    async fn take(&mut self, event: Event) {
        match event.kind {
            EventKind::Planned { plan, replaces } => {
                self.leave();
                let (reference, environment) =
                    (self.frame.reference.clone(), self.frame.environment.clone());
                let new = NewDeployment::of_plan(&plan, event.swap, reference, environment);
                let deployment = self.api.find_or_create(&new, self.frame.run.as_deref()).await;
                let started = Status::started(&plan, self.frame.log_url.clone());
                let first = started.clone();
                self.begun = Some(Begun { new, started, replaces, deployment, concluded: false });
                self.say(first).await;
            }
            EventKind::Concluded(end) => self.conclude(&end).await,
            _ => {}
        }
    }

    async fn open_again(&mut self) {
        if let Some(begun) = self.begun.as_mut().filter(|begun| begun.lacks_deployment()) {
            let run = self.frame.run.as_deref();
            begun.deployment = self.api.find_or_create(&begun.new, run).await;
        }
    }

    /// Gives the deployment a status, if there is one that lacks it.
    async fn say(&mut self, status: Status) {
        let Some(Begun { new, deployment: Ok(opened), .. }) = &self.begun else { return };
        if opened.lacks(status.state) {
            let status = opened.worded(status, &new.swap);
            let told = self.api.add_status(opened.id(), &status).await;
            self.note(told.err());
        }
    }

    async fn conclude(&mut self, end: &Conclusion) {
        self.open_again().await;
        let status = Status::concluded(self.frame.purpose, end, self.frame.log_url.clone());
        let state = status.state;
        self.say(status).await;
        if let Some(begun) = &mut self.begun {
            begun.concluded = true;
        }
        let told = self.close_others(state, end).await;
        self.note(told.err());
    }

    /// Takes out of GitHub's list what a swap that has ended stands in the place of. Also where its own end was told before: whoever
    /// told it may have come no further; and where it has no deployment itself.
    async fn close_others(&self, state: State, end: &Conclusion) -> Result<(), ApiError> {
        let Some(Begun { new, replaces, deployment, .. }) = &self.begun else { return Ok(()) };
        if let (Ok(Opened::Automatic(id)), true) = (deployment, self.frame.is_rerun) {
            self.api.close_earlier(&new.environment, (&new.swap, *id)).await?;
        }
        // What still serves is never called inactive: only the end of a swap that has moved traffic for good says more.
        let Some(before) = replaces.as_ref().filter(|_| state == State::Success) else {
            return Ok(());
        };
        let status = Status::superseded(self.frame.purpose, &new.swap, &end.traffic);
        let log_url = self.frame.log_url.clone();
        let status = Status { log_url, ..status }.marked(before);
        let by = deployment.as_ref().ok().map(Opened::id);
        self.api.supersede(&new.environment, (before, by), &status).await
    }

    async fn end(mut self) -> Told {
        if self.begun.as_ref().is_some_and(|begun| !begun.concluded) {
            self.open_again().await;
            let deployment = self.begun.as_ref().map(|begun| &begun.deployment);
            if !deployment.is_some_and(|it| it.as_ref().is_ok_and(Opened::is_told)) {
                self.say(Status::lost(self.frame.log_url.clone())).await;
            }
        }
        let deployment = self.leave();
        Told { deployment, failures: self.failures }
    }

    /// Has done with a swap: its deployment, or word of why there is none.
    fn leave(&mut self) -> Option<DeploymentId> {
        match self.begun.take()?.deployment {
            Ok(opened) => Some(opened.id()),
            Err(error) => {
                self.note(Some(error));
                None
            }
        }
    }

    fn note(&mut self, error: Option<ApiError>) {
        self.failures.extend(error.map(|error| error.to_failure()));
    }
}
