//! Somebody orders a swap to be aborted at any call that its agent makes, alone and together with a death.

use std::time::Duration;

use model_swap::abort::{self, AbortOrder};
use model_swap::model::event::EventKind;
use model_swap::model::outcome::Outcome;
use model_swap::model::record::RecordKind;
use tokio::time::Instant;

use super::death::settle;
use super::host::{Call, Fault, Stage};
use super::scene::{A, Attempt, Facts, Kind, Scene};
use super::wrong::Wrong;

/// Between two deaths that are tried after an order; the next order begins one further on, so that each has its turn.
const STRIDE: usize = 3;

/// The calls of a run that goes well, and the world after it.
async fn clean(kind: Kind) -> (Vec<Call>, Facts) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    (scene.host.calls(), scene.facts().across_runs())
}

/// Whether an order at this call may be too late: the steps before the last one are done.
fn may_be_late(call: &Call, attempt: &Attempt) -> bool {
    let last = attempt.plan.steps.len() - 1;
    call.stage == Stage::Outside || call.stage == Stage::Act(last)
}

/// Asserts that traffic was said to be back once, before what is stopped is stopped.
fn assert_traffic_told(scene: &Scene, attempt: &Attempt, what: &str) {
    let events = scene.events(attempt);
    let told = |event: &EventKind| matches!(event, EventKind::TrafficIsBack { .. });
    assert_eq!(events.iter().filter(|event| told(event)).count(), 1, "{what}: {events:#?}");
    let begun = |event: &EventKind| {
        let EventKind::UndoStarted { index } = event else { return false };
        attempt.plan.steps[*index].step.to_string().starts_with("start_replica")
    };
    let (back, stopping) = (events.iter().position(told), events.iter().position(begun));
    assert!(stopping.is_none() || back < stopping, "{what}: {events:#?}");
}

async fn may_be_ordered_anywhere(kind: Kind) {
    let (calls, after) = clean(kind).await;
    let mut aborted = 0;
    for (number, call) in calls.iter().enumerate() {
        let what = format!("{kind:?}: {call:?} number {number}");
        let order = Fault { call: number, wrong: Wrong::Aborts };
        let (scene, attempt) = Scene::of(kind).await;
        let before = scene.facts();
        let conclusion = scene.execute(&attempt, &[order]).await.unwrap().unwrap();
        assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
        settle(&scene, &attempt, &before, &after, &what).await;
        if conclusion.failure.is_none() {
            assert!(may_be_late(call, &attempt), "{what}: was overlooked");
            continue;
        }
        aborted += 1;
        assert_eq!(conclusion.outcome, Outcome::Aborted, "{what}");
        assert_traffic_told(&scene, &attempt, &what);
        // What was begun is recorded as failed, with the reason.
        let records = scene.records(&attempt);
        let unfinished = records.iter().find_map(|record| match record {
            RecordKind::Failed { failure, .. } => Some(failure.message.as_str()),
            _ => None,
        });
        assert!(unfinished.is_none_or(|why| why == "somebody asked to abort"), "{what}");

        // The agent dies of it as well, somewhere after that.
        let unwinding = scene.host.calls();
        let later = unwinding.iter().enumerate().skip(number + 1 + number % STRIDE);
        for (later, call) in later.step_by(STRIDE) {
            let what = format!("{what}, then {call:?} number {later}");
            let death = Fault { call: later, wrong: Wrong::Dies };
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            assert!(scene.execute(&attempt, &[order, death]).await.is_none(), "{what}: lived on");
            settle(&scene, &attempt, &before, &after, &what).await;
        }
    }
    assert!(aborted >= 20, "{kind:?}: only {aborted} orders came in time of {}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn a_first_swap_may_be_aborted_anywhere() {
    may_be_ordered_anywhere(Kind::First).await;
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_is_verified_may_be_aborted_anywhere() {
    may_be_ordered_anywhere(Kind::Verified).await;
}

#[tokio::test(start_paused = true)]
async fn a_swap_over_a_retained_replica_may_be_aborted_anywhere() {
    may_be_ordered_anywhere(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_may_be_aborted_anywhere() {
    may_be_ordered_anywhere(Kind::Rollback).await;
}

/// An agent dies, and the order comes while nobody is there to hear it.
async fn is_heard_by_the_recovery(kind: Kind) {
    let (calls, after) = clean(kind).await;
    for (number, call) in calls.iter().enumerate() {
        let what = format!("{kind:?}: dies at {call:?} number {number}, then the order");
        let (scene, attempt) = Scene::of(kind).await;
        let before = scene.facts();
        let death = Fault { call: number, wrong: Wrong::Dies };
        assert!(scene.execute(&attempt, &[death]).await.is_none(), "{what}: it lived on");
        abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
        settle(&scene, &attempt, &before, &after, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_for_a_dead_agent_is_heard_by_whoever_recovers_its_swap() {
    for kind in Kind::ALL {
        is_heard_by_the_recovery(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_loads_is_not_waited_for() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.host.world.borrow_mut().load_time = None;
    let before = scene.facts();
    let begin = Instant::now();
    let ordered = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
    };
    let (conclusion, ()) = tokio::join!(scene.execute(&attempt, &[]), ordered);
    assert_eq!(conclusion.unwrap().unwrap().outcome, Outcome::Aborted);
    assert_eq!(scene.facts(), before);
    assert!(begin.elapsed() < Duration::from_secs(7), "waited {:?}", begin.elapsed());
}

/// Asserts that an order ends a wait for nginx's restart at once, in the step that looks there first.
async fn assert_unrest_is_not_waited_for((scene, attempt): (Scene, Attempt), step: &str) {
    scene.host.world.borrow_mut().unrest = Duration::from_secs(1000);
    let before = scene.facts();
    let begin = Instant::now();
    let ordered = async {
        tokio::time::sleep(Duration::from_secs(300)).await;
        abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
    };
    let (conclusion, ()) = tokio::join!(scene.execute(&attempt, &[]), ordered);
    assert_eq!(conclusion.unwrap().unwrap().outcome, Outcome::Aborted, "{step}");
    assert_eq!(scene.facts(), before, "{step}");
    assert!(begin.elapsed() < Duration::from_secs(310), "{step}: waited {:?}", begin.elapsed());
    let failed = scene.events(&attempt).into_iter().find_map(|event| match event {
        EventKind::StepFailed { index, .. } => Some(attempt.plan.steps[index].step.to_string()),
        _ => None,
    });
    assert_eq!(failed.as_deref(), Some(step));
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_nginx_is_not_waited_for() {
    assert_unrest_is_not_waited_for(Scene::of(Kind::First).await, "cut_over a -> b").await;
    assert_unrest_is_not_waited_for(Scene::of(Kind::IntoRetained).await, "retire b").await;
    // What is there lost its traffic behind our back: nobody has written down which workers know it.
    let scene = Scene::new();
    scene.promoted("s-1", "Qwen/New").await;
    scene.host.world.borrow_mut().point(A);
    let attempt = scene.swap("s-9", "Qwen/Newest").await;
    assert_unrest_is_not_waited_for((scene, attempt), "drain b").await;
}

#[tokio::test(start_paused = true)]
async fn an_order_after_promote_changes_nothing() {
    let scene = Scene::new();
    let attempt = scene.promoted("s-1", "Qwen/New").await;
    let facts = scene.facts();
    abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
    assert_eq!(scene.recover(&attempt, &[]).await.unwrap(), None);
    let (cx, mut journal) = scene.reopen(&attempt);
    for index in attempt.plan.steps.len()..attempt.plan.all_steps().count() {
        model_swap::executor::perform(&cx, &mut journal, index).await.unwrap().unwrap();
    }
    assert_eq!(scene.facts().state.serving, facts.state.serving);
    assert_eq!(scene.facts().loaded, facts.loaded);
}
