//! `status` with `reconcile`: what GitHub calls active is made to be what serves.

use super::api;
use super::{Setting, Stopped, Voice};
use crate::github::api::ApiError;
use crate::github::deployment::Deployments;
use crate::github::status::Status;
use crate::model::failure::Hint;
use crate::model::ids::SwapId;
use crate::model::outcome::Exit;
use crate::model::state::StatusReport;
use crate::render::{self, Line};

/// How many deployments are looked at, newest first: each costs a request. What is older was looked at before.
const LOOKED_AT: usize = 30;

/// Gives each deployment of the service the state that the server's history says it has.
pub(super) async fn reconcile(
    setting: &Setting,
    report: &StatusReport,
    voice: &mut Voice,
) -> Result<(), Stopped> {
    if report.holder.is_some() {
        let text = "a command is at work on the service: its deployments are its own to tell";
        voice.say([Line::Text(text.to_owned())]);
        return Ok(());
    }
    let told =
        |error: ApiError| Stopped { failures: vec![error.to_failure()], exit: Exit::Environment };
    let spec = api::spec(setting, "deployments: write")
        .map_err(|missing| Stopped::input(vec![missing.failure()]))?;
    let deployments = Deployments::new(spec).map_err(told)?;
    let environment = setting.inputs.environment_for(&report.service);
    let listed = deployments.list(&environment).await.map_err(told)?;
    let serves = report.brought_by();
    let past = |swap: &SwapId| report.history.iter().find(|past| past.swap == *swap);
    // Other services and other servers may share the environment: theirs are not in this history.
    let ours = listed.iter().filter_map(|(swap, id)| Some((past(swap)?, *id)));
    let mut agree = true;
    for (past, id) in ours.take(LOOKED_AT) {
        let state = deployments.state(id).await.map_err(told)?;
        let is_serving = serves == Some(&past.swap);
        let truth = if is_serving { Status::serving(report) } else { Status::over(past, &state) };
        if !truth.corrects(&state) {
            continue;
        }
        agree = false;
        let text = format!("deployment {id} of {} was {state}: {}", past.swap, truth.description);
        voice.say([render::told(&text)]);
        let log_url = setting.run.requester.url.clone();
        deployments.add_status(id, &Status { log_url, ..truth }).await.map_err(told)?;
    }
    if let Some(serves) = serves.filter(|swap| !listed.iter().any(|(of, _)| of == *swap))
        && deployments.find(&environment, serves).await.map_err(told)?.is_none()
    {
        agree = false;
        let text =
            format!("there is no deployment to {environment} of {serves}, whose result serves");
        voice.say([Line::Warning(text)]);
    }
    if agree {
        let text = format!("the deployments to {environment} agree with what serves");
        voice.say([Line::Text(text)]);
    }
    Ok(())
}
