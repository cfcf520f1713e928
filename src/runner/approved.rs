//! `plan-digest`: the plan that may be carried out is the one on the pull request that this commit came from, or may be looked up there.
//!
//! A merge queue may bring several pull requests in one push. Then the newest counts whose plan changes anything: a digest is of all
//! that is to be, so that it holds whatever else has come with it.

use super::api;
use super::{Setting, Stopped, Told, Voice, ask, plan_alone, summarise};
use crate::config::Config;
use crate::github::api::ApiError;
use crate::github::comment::{Approved, Comments, Mark};
use crate::github::inputs::{CommandName, Held};
use crate::github::merge::Merges;
use crate::github::push;
use crate::model::digest::PlanDigest;
use crate::model::failure::{Failure, Hint};
use crate::model::outcome::Exit;
use crate::render::{Line, difference};

/// A plan that was looked at.
struct Looked {
    pull_request: u64,
    approved: Approved,
}

/// Swaps if the plan is still the approved one; shows what is different if not.
pub(super) async fn swap(
    setting: &Setting,
    config: &Config,
    voice: &mut Voice,
) -> Result<Told, Stopped> {
    let Looked { pull_request, approved } = look(setting, config).await?;
    let Some(digest) = approved.digest.clone() else {
        return Err(no_plan(pull_request));
    };
    if digest.is_of_outline() {
        return Err(unseen(pull_request, &digest));
    }
    let found = match digest.is_unchanged() {
        true => format!("on pull request {pull_request} the plan was to leave all unchanged"),
        false => format!("pull request {pull_request} has plan {digest}"),
    };
    voice.say([Line::Text(found)]);
    let mut held = setting.clone();
    held.inputs.plan_digest = Some(Held::To(digest.clone()));
    match ask(&held, config, voice).await {
        Err(stopped) if stopped.exit == Exit::Input => {
            show_difference(setting, config, (pull_request, &approved, &digest), voice).await;
            Err(stopped)
        }
        told => told,
    }
}

/// Swaps if the plan is still the one with this digest. Shows what is different if not, where the pull request of this commit has that
/// plan: whatever GitHub says, or does not, changes nothing else.
pub(super) async fn swap_to(
    digest: &PlanDigest,
    setting: &Setting,
    config: &Config,
    voice: &mut Voice,
) -> Result<Told, Stopped> {
    let told = ask(setting, config, voice).await;
    let is_refused = told.as_ref().is_err_and(|stopped| stopped.exit == Exit::Input);
    if is_refused
        && let Ok(Looked { pull_request, approved }) = look(setting, config).await
        && approved.digest.as_ref().is_some_and(|looked_at| looked_at.whole() == digest.whole())
    {
        show_difference(setting, config, (pull_request, &approved, digest), voice).await;
    }
    told
}

/// Shows what is different from a plan on a pull request.
async fn show_difference(
    setting: &Setting,
    config: &Config,
    (pull_request, approved, digest): (u64, &Approved, &PlanDigest),
    voice: &mut Voice,
) {
    // Refused, for this or for another reason: the plan of now tells which.
    let asking = setting.asking(CommandName::Plan);
    let now = if digest.is_of_outline() {
        Ok(plan_alone(&asking, config, "so was the plan that was looked at", voice))
    } else {
        ask(&asking, config, voice).await
    };
    let is_same =
        |now: &str| now.parse().is_ok_and(|now: PlanDigest| now.whole() == digest.whole());
    if let Ok(Told { plan_digest: Some(now_digest), markdown: now, .. }) = now
        && !is_same(&now_digest)
    {
        let title = format!("What is different from the plan on pull request {pull_request}");
        let different = match approved.is_cut {
            true => difference::up_to_the_end_of(&approved.markdown, &now),
            false => difference::of(&approved.markdown, &now),
        };
        voice.say(difference::lines(&title, &different));
        summarise(&setting.run, &difference::markdown(&title, &different), voice);
    }
}

async fn look(setting: &Setting, config: &Config) -> Result<Looked, Stopped> {
    let missing = |missing: api::Missing| Stopped::input(vec![missing.failure()]);
    let told =
        |error: ApiError| Stopped { failures: vec![error.to_failure()], exit: Exit::Environment };
    let refused = |text: String, hint: &str| Stopped::input(vec![Failure::new(text).hint(hint)]);
    let spec = api::spec(setting, "pull-requests: read").map_err(missing)?;
    let Some(commit) = &setting.run.requester.sha else {
        let text = "plan-digest is from-pr, and GITHUB_SHA is not set".to_owned();
        return Err(refused(text, "use it in a workflow, or give the plan's digest itself"));
    };
    let merges = Merges::new(spec.clone()).map_err(told)?;
    let Some(pull_request) = merges.made(commit).await.map_err(told)? else {
        let text = format!("no pull request was merged as commit {commit}");
        return Err(refused(text, "swap on `push` to the branch that pull requests are merged to"));
    };
    let service = config.spec.service.clone();
    let environment = setting.inputs.environment_for(&service);
    let mark = Mark { service, environment, digest: None };
    let comments = Comments::new(spec).map_err(told)?;
    let newest = comments.read(pull_request, &mark).await.map_err(told)?;
    let login = match newest {
        Ok(approved) if approved.changes() => return Ok(Looked { pull_request, approved }),
        ref other => other.as_ref().err().cloned(),
    };
    let mut unchanged = newest.ok().map(|approved| Looked { pull_request, approved });
    let mut looked_at = vec![pull_request];
    // What the newest one says is known, and stands where no more can be found out.
    for pull_request in merges.among(&push::commits(&setting.env)).await.unwrap_or_default() {
        if looked_at.contains(&pull_request) {
            continue;
        }
        looked_at.push(pull_request);
        if let Ok(approved) = comments.read(pull_request, &mark).await.map_err(told)? {
            let looked = Looked { pull_request, approved };
            if looked.approved.changes() {
                return Ok(looked);
            }
            unchanged.get_or_insert(looked);
        }
    }
    unchanged.ok_or_else(|| uncommented(&looked_at, &login.unwrap_or_default(), &mark))
}

/// None of the pull requests that came with this commit has a plan.
fn uncommented(pull_requests: &[u64], login: &str, mark: &Mark) -> Stopped {
    let numbers: Vec<String> = pull_requests.iter().map(u64::to_string).collect();
    let whose = match &*numbers {
        [one] => format!("pull request {one} has"),
        all => format!("the pull requests of this push, {}, have", all.join(", ")),
    };
    let Mark { service, environment, .. } = mark;
    let text = format!("{whose} no comment by {login} with a plan of {service} for {environment}");
    let hint = "plan on `pull_request` with the same `environment` and a token of the same owner, as in \
                examples/upgrade.yml";
    let of_stranger = "for a pull request from a fork no token may comment: run `plan` after the merge, \
                       look at it, and swap by hand (examples/manual.yml), or with the plan's digest as `plan-digest`";
    Stopped::input(vec![Failure::new(text).hint(hint).hint(of_stranger)])
}

/// Nobody has seen what its merge does: whatever serves would be replaced.
fn unseen(pull_request: u64, digest: &PlanDigest) -> Stopped {
    let text = format!(
        "plan {digest} on pull request {pull_request} is of the configuration alone: no server was asked for it"
    );
    let hint = "give the step that plans on `pull_request` the secret `ssh-key` of its environment; GitHub gives none to a pull request \
                from a fork or of Dependabot";
    let by_hand = format!(
        "or run `plan` after the merge, look at it, and swap by hand (examples/manual.yml) or with that plan's digest; \
         `plan-digest: {digest}` itself holds a swap to the configuration, whatever serves"
    );
    Stopped::input(vec![Failure::new(text).hint(hint).hint(by_hand)])
}

fn no_plan(pull_request: u64) -> Stopped {
    let text = format!("the comment on pull request {pull_request} says that there was no plan");
    let hint = "it says why: mend that, plan again and look at the plan";
    Stopped::input(vec![Failure::new(text).hint(hint)])
}
