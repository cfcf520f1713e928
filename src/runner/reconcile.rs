//! `status` with `reconcile`: what GitHub calls active is made to be what serves.

use super::api;
use super::{Setting, Stopped, Voice};
use crate::github::api::ApiError;
use crate::github::deployment::{DeploymentId, Deployments, Found, Known};
use crate::github::status::{State, Status};
use crate::model::failure::Hint;
use crate::model::ids::SwapId;
use crate::model::outcome::Exit;
use crate::model::state::{Past, StatusReport};
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
    if let Some(failure) = &report.astray {
        return Err(Stopped { failures: vec![failure.clone()], exit: Exit::Environment });
    }
    let told =
        |error: ApiError| Stopped { failures: vec![error.to_failure()], exit: Exit::Environment };
    let spec = api::spec(setting, "deployments: write")
        .map_err(|missing| Stopped::input(vec![missing.failure()]))?;
    let deployments = Deployments::new(spec).map_err(told)?;
    let environment = setting.inputs.environment_for(&report.service);
    let listed = deployments.list_all(&environment).await.map_err(told)?;
    let past = |swap: &SwapId| report.history.iter().find(|past| past.swap == *swap);
    // Other services and other servers may share the environment: theirs are not in this history.
    let ours: Vec<(&Past, &Known)> =
        listed.iter().filter_map(|known| Some((past(&known.swap)?, known))).collect();
    let active = active(report, &ours);
    let mut agree = true;
    for (past, known) in ours.into_iter().take(LOOKED_AT) {
        let found = deployments.found(known).await.map_err(told)?;
        let is_active = active == Some(known.id);
        let truth = if is_active { Status::serving(report) } else { Status::over(past, report) };
        let status = match judge(past, truth, (&found, known, report)) {
            Word::Right => continue,
            Word::Wrong(status) => status,
            Word::Left(why) => {
                agree = false;
                voice.say([Line::Warning(why)]);
                continue;
            }
        };
        agree = false;
        let (id, state) = (found.id, &found.state);
        let text = format!("deployment {id} of {} was {state}: {}", past.swap, status.description);
        voice.say([render::told(&text)]);
        let log_url = setting.run.requester.url.clone();
        let status = Status { log_url, ..status }.marked(&past.swap);
        deployments.add_status(id, &status).await.map_err(told)?;
    }
    if let Some(serves) = report.brought_by().filter(|_| active.is_none()) {
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

/// What becomes of a deployment.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    /// It says what is so.
    Right,
    /// It has to be given this status.
    Wrong(Status),
    /// It does not say what is so, and stays as it is; why, one line.
    Left(String),
}

/// Holds a deployment to the status that its swap deserves.
fn judge(
    past: &Past,
    truth: Status,
    (found, known, report): (&Found, &Known, &StatusReport),
) -> Word {
    let (id, state, swap) = (found.id, &found.state, &past.swap);
    let serves = truth.state == State::Success;
    if serves && state == "failure" && found.is_of_swap {
        return Word::Left(format!(
            "deployment {id} stays a failure: {swap} is said to have failed, and what it brought serves"
        ));
    }
    if !truth.corrects(found) {
        return Word::Right;
    }
    let is_ours = |other: &&SwapId| report.history.iter().any(|past| past.swap == **other);
    match known.others.iter().find(|other| !is_ours(other)) {
        Some(other) if !serves => Word::Left(format!(
            "deployment {id} stays {state}: it tells of {other} as well, which is not of this service; `deployment: false` \
             in the jobs gives each swap one of its own"
        )),
        _ => Word::Wrong(truth),
    }
}

/// The deployment that GitHub should call active: of what brought what serves. Where that has none, as a swap from a terminal
/// has none, the newest one that brought the same: what it brought serves.
fn active(report: &StatusReport, ours: &[(&Past, &Known)]) -> Option<DeploymentId> {
    let brought_it = |past: &Past| Some(&past.swap) == report.brought_by();
    let brought_the_same =
        |past: &Past| past.brought() && Some(past.revision.digest.as_str()) == report.serves();
    let of = |is: &dyn Fn(&Past) -> bool| {
        ours.iter().find(|(past, _)| is(past)).map(|(_, known)| known.id)
    };
    of(&brought_it).or_else(|| of(&brought_the_same))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::status::State;
    use crate::model::ids::Port;
    use crate::model::outcome::Outcome;
    use crate::model::plan::Strategy;
    use crate::model::replica::Revision;
    use crate::model::state::SlotReport;

    fn revision(digest: &str) -> Revision {
        Revision {
            digest: digest.to_owned(),
            model: "Qwen/New".to_owned(),
            git_sha: None,
            image: None,
        }
    }

    fn past(swap: &str, to: &str, (strategy, outcome): (Strategy, Outcome)) -> Past {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let (swap, revision) = (swap.parse().unwrap(), revision(to));
        Past { swap, at, outcome, revision, strategy: Some(strategy) }
    }

    fn promoted(swap: &str, to: &str) -> Past {
        past(swap, to, (Strategy::BlueGreen, Outcome::Promoted))
    }

    fn back(swap: &str, to: &str) -> Past {
        past(swap, to, (Strategy::WarmRollback, Outcome::RolledBack))
    }

    fn report(serves: &str, serving_swap: Option<&str>, history: &[Past]) -> StatusReport {
        let slot = SlotReport {
            slot: "a".parse().unwrap(),
            port: Port(8001),
            role: "serving".to_owned(),
            revision: Some(revision(serves)),
            ready: true,
            in_flight: None,
        };
        StatusReport {
            service: "chat".parse().unwrap(),
            nginx_port: Some(Port(8001)),
            astray: None,
            slots: vec![slot],
            holder: None,
            agent: None,
            waiting: Vec::new(),
            step: None,
            unfinished: None,
            serving_swap: serving_swap.map(|swap| swap.parse().unwrap()),
            rollback_until: None,
            overdue: None,
            history: history.to_vec(),
        }
    }

    #[test]
    fn what_became_of_a_result_is_what_took_it_out_of_service() {
        let undone = past("s-4", "r-d", (Strategy::BlueGreen, Outcome::RolledBack));
        let history = [
            promoted("s-1", "r-b"),
            promoted("s-2", "r-c"),
            back("s-3", "r-b"),
            undone,
            promoted("s-5", "r-e"),
        ];
        let report = report("r-e", Some("s-5"), &history);
        let expected = [
            (State::Inactive, "superseded by s-2; Qwen/New serves from slot a"),
            (State::Failure, "rolled back by s-3; Qwen/New serves from slot a"),
            (State::Inactive, "superseded by s-5; Qwen/New serves from slot a"),
            (State::Failure, "rolled-back, and does not serve"),
            // Somebody has pointed nginx elsewhere by hand.
            (State::Inactive, "promoted, and does not serve"),
        ];
        for (past, (state, said)) in history.iter().zip(expected) {
            let status = Status::over(past, &report);
            assert_eq!((status.state, &*status.description), (state, said), "{}", past.swap);
            assert!(!status.corrects(&found("failure")), "somebody has said so");
        }
        // Nobody can have said so of what never served: a step that was cancelled took it for given up.
        let stuck = past("s-6", "r-f", (Strategy::BlueGreen, Outcome::Stuck));
        let stuck = Status::over(&stuck, &report);
        assert!(stuck.corrects(&found("failure")), "{stuck:?}");
        assert!(!stuck.corrects(&found("error")), "{stuck:?}");
    }

    fn found(state: &str) -> Found {
        let (id, state) = (DeploymentId(1), state.to_owned());
        Found { id, state, is_of_swap: true, is_shared: false }
    }

    fn known(swap: &str, id: u64) -> Known {
        let (id, swap) = (DeploymentId(id), swap.parse().unwrap());
        Known { id, swap, others: Vec::new(), is_ours: true }
    }

    #[test]
    fn githubs_own_word_on_a_job_is_corrected_and_somebodys_on_the_swap_is_told() {
        let history = [promoted("s-1", "r-b")];
        let report = report("r-b", Some("s-1"), &history);
        let judged = |found: &Found| {
            judge(&history[0], Status::serving(&report), (found, &known("s-1", 1), &report))
        };
        assert_eq!(judged(&found("success")), Word::Right);
        let of_the_job = Found { is_of_swap: false, ..found("failure") };
        assert_eq!(judged(&of_the_job), Word::Wrong(Status::serving(&report)));
        let Word::Left(why) = judged(&found("failure")) else { panic!("it is somebody's word") };
        assert!(
            why.starts_with("deployment 1 stays a failure: s-1 is said to have failed"),
            "{why}"
        );
    }

    #[test]
    fn a_deployment_that_tells_of_another_services_swap_too_is_not_called_inactive() {
        let history = [promoted("s-1", "r-b"), promoted("s-2", "r-c")];
        let report = report("r-c", Some("s-2"), &history);
        let judged = |other: &str, truth: Status| {
            let shared = Known { others: vec![other.parse().unwrap()], ..known("s-1", 1) };
            judge(&history[0], truth, (&found("success"), &shared, &report))
        };
        let over = || Status::over(&history[0], &report);
        assert_eq!(judged("s-2", over()), Word::Wrong(over()), "of one job, one after the other");
        let Word::Left(why) = judged("s-other", over()) else { panic!("its result may serve") };
        assert!(why.contains("stays success: it tells of s-other as well"), "{why}");
        let undecided = Found { state: "error".to_owned(), ..found("") };
        let shared = Known { others: vec!["s-other".parse().unwrap()], ..known("s-1", 1) };
        let serving = judge(&history[0], Status::serving(&report), (&undecided, &shared, &report));
        assert_eq!(serving, Word::Wrong(Status::serving(&report)));
    }

    #[test]
    fn where_what_brought_it_has_no_deployment_the_newest_that_brought_the_same_is_active() {
        let history = [
            promoted("s-1", "r-b"),
            promoted("s-2", "r-c"),
            past("s-3", "r-b", (Strategy::BlueGreen, Outcome::Failed)),
            back("s-4", "r-b"),
        ];
        let report = report("r-b", None, &history);
        let active_of = |known_to_github: &[usize]| {
            let all = known_to_github
                .iter()
                .map(|index| known(history[*index].swap.as_str(), *index as u64 + 1));
            let all: Vec<Known> = all.collect();
            let past = known_to_github.iter().map(|index| &history[*index]);
            active(&report, &past.zip(&all).collect::<Vec<_>>())
        };
        assert_eq!(active_of(&[3, 2, 1, 0]), Some(DeploymentId(4)));
        assert_eq!(active_of(&[2, 1, 0]), Some(DeploymentId(1)));
        assert_eq!(active_of(&[2, 1]), None);
    }
}
