//! A person points nginx elsewhere in the middle of a swap: what serves is not stopped, and what is said of it is so. Nor is
//! anything undone because somebody restarts it.

use std::time::Duration;

use model_swap::executor::{Direction, Wanted};
use model_swap::model::event::{Conclusion, EventKind};
use model_swap::model::ids::Port;
use model_swap::model::outcome::Outcome;
use model_swap::model::step::Step;

use super::host::{Call, Fault, Stage};
use super::scene::{A, Attempt, Facts, Kind, Scene};
use super::wrong::Wrong;

/// Where nobody of the service is.
const STRANGER: Port = Port(8009);

/// Why a candidate is not stopped that nginx's file names.
const SERVES: &str = "nginx points at port 8002 of slot b: what serves is not stopped";

/// A swap whose agent dies at the first call of a verb.
async fn left_at(verb: &str) -> (Scene, Attempt, Facts) {
    let (scene, attempt) = Scene::of(Kind::Plain).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let at = scene.host.calls().iter().position(|call| call.verb == verb).unwrap();
    let (scene, attempt) = Scene::of(Kind::Plain).await;
    let before = scene.facts();
    let death = Fault { call: at, wrong: Wrong::Dies };
    assert!(scene.execute(&attempt, &[death]).await.is_none(), "it lived on");
    (scene, attempt, before)
}

/// A swap whose agent dies when its candidate is ready.
async fn left_ready() -> (Scene, Attempt, Facts) {
    left_at("upstream_image").await
}

fn is_told_back(scene: &Scene, attempt: &Attempt) -> bool {
    let told = |event: &EventKind| matches!(event, EventKind::TrafficIsBack { .. });
    scene.events(attempt).iter().any(told)
}

/// Asserts that a swap is stuck for this reason with its candidate where it was, and is unwound once nginx is as before.
async fn assert_kept(
    (scene, attempt, before): (Scene, Attempt, Facts),
    conclusion: &Conclusion,
    why: &str,
) {
    assert_eq!(conclusion.outcome, Outcome::Stuck, "{conclusion:#?}");
    let failure = conclusion.failure.as_ref().unwrap();
    assert!(failure.message.contains(why), "{failure:#?}");
    assert_eq!(scene.host.count("stop"), 0, "what serves was stopped");
    scene.host.world.borrow_mut().point(A);
    // Until the requests that it got by hand are answered.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let repaired = scene.repair(&attempt).await.unwrap();
    assert_eq!(repaired.outcome, Outcome::Failed, "{repaired:#?}");
    assert!(repaired.traffic.contains("Qwen/Old serves"), "{repaired:#?}");
    assert!(is_told_back(&scene, &attempt));
    assert_eq!(scene.facts(), before);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_somebody_pointed_nginx_at_is_not_stopped_by_a_recovery() {
    let (scene, attempt, before) = left_ready().await;
    scene.host.world.borrow_mut().point(attempt.plan.candidate.port);
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert!(conclusion.traffic.contains("Qwen/New serves"), "{conclusion:#?}");
    assert!(!is_told_back(&scene, &attempt), "{:#?}", scene.events(&attempt));
    assert_kept((scene, attempt, before), &conclusion, SERVES).await;
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_only_the_running_nginx_points_at_is_not_stopped() {
    let (scene, attempt, before) = left_ready().await;
    scene.host.world.borrow_mut().loaded = attempt.plan.candidate.port;
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    let unseen = "names port 8001, and new requests are not seen to go there";
    assert_kept((scene, attempt, before), &conclusion, unseen).await;
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_somebody_points_nginx_at_while_it_loads_is_not_stopped() {
    let (scene, attempt) = Scene::of(Kind::Plain).await;
    scene.host.world.borrow_mut().load_time = Some(Duration::from_secs(5));
    scene.host.allow_nobody();
    let before = scene.facts();
    let points = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.host.world.borrow_mut().point(attempt.plan.candidate.port);
    };
    let (conclusion, ()) = tokio::join!(scene.execute(&attempt, &[]), points);
    let conclusion = conclusion.unwrap().unwrap();
    let failure = conclusion.failure.as_ref().unwrap();
    let why = "somebody else changed upstream llm since the plan was made";
    assert!(failure.causes.iter().any(|cause| cause.contains(why)), "{failure:#?}");
    assert_kept((scene, attempt, before), &conclusion, SERVES).await;
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_is_unwound_does_not_say_that_the_old_model_serves_where_nginx_points_elsewhere()
 {
    let (scene, attempt, _) = left_ready().await;
    scene.host.world.borrow_mut().point(STRANGER);
    scene.host.allow_nobody();
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::Failed, "{conclusion:#?}");
    let where_it_is = "upstream llm names port 8009, where neither the old nor the new model is";
    assert_eq!((conclusion.traffic.as_str(), conclusion.slot), (where_it_is, None));
    assert!(!is_told_back(&scene, &attempt), "{:#?}", scene.events(&attempt));
}

#[tokio::test(start_paused = true)]
async fn lines_that_somebody_put_back_with_their_old_time_are_not_taken_for_loaded() {
    let (scene, attempt, before) = left_at("promoted").await;
    scene.host.world.borrow_mut().lines.clone_from(&before.lines);
    scene.host.world.borrow_mut().looks_old = true;
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    assert_eq!(scene.facts(), before);
}

/// Puts the lines back with their old time, so that nginx's file only looks as if it were loaded.
fn put_back(scene: &Scene, before: &Facts) {
    let mut world = scene.host.world.borrow_mut();
    world.lines.clone_from(&before.lines);
    world.looks_old = true;
}

#[tokio::test(start_paused = true)]
async fn an_old_file_that_names_a_model_that_is_gone_is_not_believed() {
    let (scene, attempt, before) = left_at("promoted").await;
    let incumbent = scene.host.world.borrow().on(A).unwrap().clone();
    scene.host.world.borrow_mut().kill(incumbent.id);
    put_back(&scene, &before);
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::Stuck, "{conclusion:#?}");
    assert!(conclusion.traffic.contains("are not seen to go there"), "{conclusion:#?}");
    assert!(!is_told_back(&scene, &attempt), "{:#?}", scene.events(&attempt));
    scene.host.world.borrow_mut().replicas.push(incumbent);
    let repaired = scene.repair(&attempt).await.unwrap();
    assert_eq!(repaired.outcome, Outcome::RolledBack, "{repaired:#?}");
    assert_eq!(scene.facts(), before);
}

#[tokio::test(start_paused = true)]
async fn an_old_file_that_names_a_model_that_hangs_is_not_believed() {
    let (scene, attempt, before) = left_at("promoted").await;
    put_back(&scene, &before);
    scene.host.world.borrow_mut().hangs = true;
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    scene.host.world.borrow_mut().hangs = false;
    assert_eq!(scene.facts(), before);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_only_the_running_nginx_points_at_is_not_stopped_although_the_old_one_is_gone()
 {
    let (scene, attempt, before) = left_ready().await;
    let incumbent = scene.host.world.borrow().on(A).unwrap().clone();
    scene.host.world.borrow_mut().loaded = attempt.plan.candidate.port;
    scene.host.world.borrow_mut().kill(incumbent.id);
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    scene.host.world.borrow_mut().replicas.push(incumbent);
    let why = "requests go to port 8002 of slot b: what serves is not stopped";
    assert_kept((scene, attempt, before), &conclusion, why).await;
}

#[tokio::test(start_paused = true)]
async fn traffic_that_somebody_else_brought_back_was_away_all_the_same() {
    let (scene, attempt, before) = left_at("promoted").await;
    scene.host.world.borrow_mut().point(A);
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    assert_eq!(scene.facts(), before);
}

/// The calls of a swap with these faults, with the numbers of those that `cut_over` makes.
async fn cutting_over(faults: &[Fault]) -> (Vec<Call>, Vec<usize>) {
    let (scene, attempt) = Scene::of(Kind::First).await;
    let mut steps = attempt.plan.steps.iter();
    let step = steps.position(|it| matches!(it.step, Step::CutOver { .. })).unwrap();
    scene.execute(&attempt, faults).await.unwrap().unwrap();
    let calls = scene.host.calls();
    let of_step = calls.iter().enumerate().filter(|(_, call)| call.stage == Stage::Act(step));
    let numbers = of_step.map(|(number, _)| number).collect();
    (calls, numbers)
}

/// What comes after it has read the same file, and what was proven of its predecessor is proven once more.
#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_while_it_is_pointed_elsewhere_undoes_nothing() {
    let (calls, during) = cutting_over(&[]).await;
    for call in during {
        let (scene, attempt) = Scene::of(Kind::First).await;
        let fault = Fault { call, wrong: Wrong::RestartsNginx };
        let conclusion = scene.execute(&attempt, &[fault]).await.unwrap().unwrap();
        assert_eq!(conclusion.outcome, Outcome::Promoted, "{:?}: {conclusion:#?}", calls[call]);
        assert_eq!(scene.facts().loaded, attempt.plan.candidate.port);
    }
}

/// As one that is started anew because it keeps failing: nobody waits for ever for the one that stays.
#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_again_and_again_is_pointed_back() {
    let (calls, during) = cutting_over(&[]).await;
    let from = during.into_iter().rfind(|call| calls[*call].verb == "loaded").unwrap();
    let restart = |call| Fault { call, wrong: Wrong::RestartsNginx };
    let mut restarts: Vec<_> = (from..from + 100).map(restart).collect();
    // Until the step gives up: then one stays.
    let (_, during) = cutting_over(&restarts).await;
    restarts.retain(|fault| during.contains(&fault.call));
    let (scene, attempt) = Scene::of(Kind::First).await;
    let before = scene.facts();
    let conclusion = scene.execute(&attempt, &restarts).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    let failure = conclusion.failure.unwrap();
    assert!(failure.message.contains("is gone"), "{failure:#?}");
    assert_eq!(scene.facts().loaded, before.loaded);
}

/// Where it is asked nobody listens, and it is there all the same: traffic goes back to it.
#[tokio::test(start_paused = true)]
async fn an_old_model_that_listens_on_another_address_is_not_gone() {
    let (scene, attempt, before) = left_at("prove").await;
    scene.host.world.borrow_mut().elsewhere = Some(A);
    assert_eq!(scene.direction(&attempt, Wanted::End).await, Direction::Back);
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    assert_eq!(scene.facts(), before);
}
