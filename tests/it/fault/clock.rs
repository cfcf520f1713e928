//! Somebody sets the server's clock, by hours and by more than a year, at any call of an agent that lives.

use std::time::Duration;

use jiff::SignedDuration;
use model_swap::model::event::Closing;
use tokio::time::Instant;

use super::aftermath::{self, assert_retired, done};
use super::death::settle;
use super::host::Fault;
use super::scene::{Kind, Scene};
use super::verbs::clean;
use super::wrong::Wrong;

/// How far the clock is set at a call, back and forward, in hours: a time zone, and a clock without a battery.
fn hours(number: usize) -> [i64; 2] {
    if number.is_multiple_of(2) { [-5, 400 * 24] } else { [-400 * 24, 5] }
}

async fn may_be_set_in(kind: Kind) {
    let (calls, after) = clean(kind).await;
    for (number, call) in calls.iter().enumerate() {
        for hours in hours(number) {
            let what = format!("{kind:?}: {call:?} number {number}, {hours} hours");
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            let fault = Fault { call: number, wrong: Wrong::SetsClock(hours) };
            let conclusion = scene.execute(&attempt, &[fault]).await.unwrap().unwrap();
            assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
            // Whose time is over may give up; who was given more has no reason to.
            let failure = conclusion.failure.filter(|_| hours < 0);
            assert_eq!(failure, None, "{what}");
            settle(&scene, &attempt, &before, &after, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_while_a_swap_is_made_leaves_the_world_before_or_after() {
    for kind in [Kind::First, Kind::Verified, Kind::IntoRetained] {
        may_be_set_in(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_in_a_rollback_leaves_the_world_before_or_after() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::BackToUnit] {
        may_be_set_in(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_after_promote_leaves_what_is_drained_to_be_retired() {
    for kind in [Kind::First, Kind::IntoRetained, Kind::Rollback, Kind::BackToUnit] {
        let (calls, after, _) = aftermath::clean(kind).await;
        for (number, call) in calls.iter().enumerate() {
            for hours in hours(number) {
                let what = format!("{kind:?}: {call:?} number {number}, {hours} hours");
                let (scene, attempt) = done(kind).await;
                let fault = Fault { call: number, wrong: Wrong::SetsClock(hours) };
                let closing = scene.aftermath(&attempt, &[fault]).await;
                assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
                assert!(matches!(closing, Some(Closing::Retired { .. })), "{what}: {closing:?}");
                assert_retired(&scene, &attempt, &after, &what).await;
            }
        }
    }
}

/// How long an old model is kept warm, in the world's time, whose clock was set when it was promoted.
async fn warm(hours: i64) -> (Duration, Duration) {
    let (scene, attempt) = done(Kind::First).await;
    scene.host.set_clock(SignedDuration::from_hours(hours));
    let begin = Instant::now();
    let closing = scene.aftermath(&attempt, &[]).await;
    assert!(matches!(closing, Some(Closing::Retired { .. })), "{hours}: {closing:?}");
    (begin.elapsed(), scene.spec.retain)
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_keeps_an_old_model_warm_no_longer_than_was_asked_for() {
    let drained = Duration::from_secs(5);
    for hours in [0, -5, -400 * 24] {
        let (took, retain) = warm(hours).await;
        assert!(took + drained >= retain, "{hours} hours: retired after {took:?} of {retain:?}");
        assert!(took <= retain + drained, "{hours} hours: kept warm for {took:?} of {retain:?}");
    }
    // One that is far ahead says that its time is over, and it is drained all the same.
    let (took, retain) = warm(400 * 24).await;
    assert!(took < retain, "{took:?}");
}
