//! The agent dies at every call that it makes, before and after its effect, and another one brings the swap to its end.
//!
//! Each append to the journal is announced by a look at the clock, so these moments contain every boundary between two
//! records, with the act between them done and not done.

use std::fs::OpenOptions;
use std::io::Write;

use jiff::SignedDuration;
use model_swap::abort;
use model_swap::model::outcome::Outcome;
use model_swap::model::plan::Strategy;
use model_swap::model::record::RecordKind;
use model_swap::model::step::Step;

use super::host::{Fault, SURE, Stage};
use super::scene::{Attempt, Facts, Kind, Scene};
use super::wrong::Wrong;

/// How far a swap came by its journal.
fn promoted(scene: &Scene, attempt: &Attempt) -> bool {
    let last = attempt.plan.steps.len() - 1;
    scene
        .records(attempt)
        .iter()
        .any(|record| matches!(record, RecordKind::Succeeded { step, .. } if *step == last))
}

fn retiring(scene: &Scene, attempt: &Attempt) -> bool {
    let is_retire = |index: usize| matches!(attempt.plan.steps.get(index), Some(planned) if matches!(planned.step, Step::Retire { .. }));
    scene
        .records(attempt)
        .iter()
        .any(|record| matches!(record, RecordKind::Started { step, .. } if is_retire(*step)))
}

/// Asserts that the world is the one before or the one after, and which, by the journal alone.
fn assert_settled(scene: &Scene, attempt: &Attempt, before: &Facts, after: &Facts, what: &str) {
    let outcome = match scene.records(attempt).last() {
        Some(RecordKind::Concluded { outcome }) => *outcome,
        last => panic!("{what}: no conclusion, but {last:?}"),
    };
    if promoted(scene, attempt) {
        let good = match attempt.plan.strategy {
            Strategy::BlueGreen => Outcome::Promoted,
            Strategy::WarmRollback | Strategy::ColdRollback => Outcome::RolledBack,
        };
        assert_eq!(outcome, good, "{what}");
        assert_eq!(scene.facts().across_runs(), *after, "{what}");
        return;
    }
    let port = attempt.plan.candidate.port;
    let (now, before) = match retiring(scene, attempt) {
        true => (scene.facts().without(port), before.clone().without(port)),
        false => (scene.facts(), before.clone()),
    };
    assert_eq!(now, before, "{what}");
    assert_eq!(outcome, unwound(scene, attempt), "{what}");
}

/// How an unwound swap has to end: traffic that was moved and came back is rolled back, not "never touched".
fn unwound(scene: &Scene, attempt: &Attempt) -> Outcome {
    if abort::ordered(&scene.dir, &attempt.swap).is_some() {
        return Outcome::Aborted;
    }
    let is_cutover = |index: usize| matches!(attempt.plan.steps.get(index), Some(planned) if matches!(planned.step, Step::CutOver { .. }));
    let moved =
        scene.records(attempt).iter().any(
            |record| matches!(record, RecordKind::Succeeded { step, .. } if is_cutover(*step)),
        ) || scene.host.moved();
    if moved && attempt.plan.strategy == Strategy::BlueGreen {
        Outcome::RolledBack
    } else {
        Outcome::Failed
    }
}

/// Leaves half of a record at the end of the journal.
fn tear(scene: &Scene, attempt: &Attempt) {
    let path = scene.dir.swap(&attempt.swap).join("journal.ndjson");
    let mut journal = OpenOptions::new().append(true).open(path).unwrap();
    journal
        .write_all(b"{\"v\":1,\"at\":\"1970-01-01T00:00:00Z\",\"kind\":{\"record\":\"succ")
        .unwrap();
}

/// Recovers twice: to the end, and to no change.
pub(super) async fn settle(
    scene: &Scene,
    attempt: &Attempt,
    before: &Facts,
    after: &Facts,
    what: &str,
) {
    let concluded = matches!(scene.records(attempt).last(), Some(RecordKind::Concluded { .. }));
    let recovered = scene.recover(attempt, &[]).await.unwrap();
    assert_eq!(recovered.is_none(), concluded, "{what}: {recovered:#?}");
    assert_settled(scene, attempt, before, after, what);
    let (facts, records) = (scene.facts(), scene.records(attempt));
    assert_eq!(scene.recover(attempt, &[]).await.unwrap(), None, "{what}");
    assert_eq!((scene.facts(), scene.records(attempt)), (facts, records), "{what}");
}

async fn survives_death_anywhere(kind: Kind) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let (calls, after) = (scene.host.calls(), scene.facts().across_runs());
    let mut boundaries = std::collections::BTreeSet::new();
    for (number, call) in calls.iter().enumerate() {
        for wrong in [Wrong::Dies, Wrong::DoesAndDies] {
            if SURE.contains(&call.verb) && wrong == Wrong::DoesAndDies {
                continue;
            }
            let fault = Fault { call: number, wrong };
            for torn in [false, true] {
                let what = format!("{kind:?}: {call:?} {fault:?} torn {torn}");
                let (scene, attempt) = Scene::of(kind).await;
                let before = scene.facts();
                assert!(scene.execute(&attempt, &[fault]).await.is_none(), "{what}: it lived on");
                assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
                boundaries.insert(scene.records(&attempt).len());
                if torn {
                    tear(&scene, &attempt);
                }
                settle(&scene, &attempt, &before, &after, &what).await;
            }
        }
    }
    // One prefix for each record of the journal, the plan alone and the whole included.
    let all: std::collections::BTreeSet<_> = (0..=scene.records(&attempt).len()).collect();
    assert_eq!(boundaries, all);
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_first_swap() {
    survives_death_anywhere(Kind::First).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_swap_that_is_verified() {
    survives_death_anywhere(Kind::Verified).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_swap_over_a_retained_replica() {
    survives_death_anywhere(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_rollback() {
    survives_death_anywhere(Kind::Rollback).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_cold_rollback() {
    survives_death_anywhere(Kind::ColdRollback).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_cold_rollback_to_an_adopted_revision() {
    survives_death_anywhere(Kind::ColdAdopted).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_swap_of_plain_processes() {
    survives_death_anywhere(Kind::Plain).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_swap_away_from_somebodys_unit() {
    survives_death_anywhere(Kind::FromUnit).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_in_a_rollback_to_somebodys_unit() {
    survives_death_anywhere(Kind::BackToUnit).await;
}

/// Every undo is done twice: the recovery dies as well, at every call, and is recovered.
async fn survives_death_in_recovery(kind: Kind) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let (calls, after) = (scene.host.calls(), scene.facts().across_runs());
    // Where most is done and nothing is promoted: at the clock before the last step's success is recorded.
    let last = attempt.plan.steps.len() - 1;
    let number = calls
        .iter()
        .rposition(|call| call.verb == "now" && call.stage == Stage::Act(last))
        .unwrap()
        - 1;
    let first = Fault { call: number, wrong: Wrong::Dies };
    let (scene, attempt) = Scene::of(kind).await;
    assert!(scene.execute(&attempt, &[first]).await.is_none());
    scene.recover(&attempt, &[]).await.unwrap();
    let undoing = scene.host.calls();
    let mut undone_twice = std::collections::BTreeSet::new();
    for (number, call) in undoing.iter().enumerate() {
        for wrong in [Wrong::Dies, Wrong::DoesAndDies] {
            if SURE.contains(&call.verb) && wrong == Wrong::DoesAndDies {
                continue;
            }
            let second = Fault { call: number, wrong };
            let what = format!("{kind:?}: {call:?} {second:?} in recovery");
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            assert!(scene.execute(&attempt, &[first]).await.is_none(), "{what}");
            assert!(scene.recover(&attempt, &[second]).await.is_none(), "{what}: it lived on");
            assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
            settle(&scene, &attempt, &before, &after, &what).await;
            let records = scene.records(&attempt);
            for record in &records {
                let begun = records.iter().filter(|other| *other == record).count();
                if let (RecordKind::UndoStarted { step }, 2..) = (record, begun) {
                    undone_twice.insert(*step);
                }
            }
        }
    }
    let floor = attempt.plan.steps.iter().position(|p| matches!(p.step, Step::Retire { .. }));
    let undoable: std::collections::BTreeSet<_> = (floor.map_or(0, |at| at + 1)..=last).collect();
    assert_eq!(undone_twice, undoable);
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_first_swap_can_be_done_twice() {
    survives_death_in_recovery(Kind::First).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_swap_that_is_verified_can_be_done_twice() {
    survives_death_in_recovery(Kind::Verified).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_swap_of_plain_processes_can_be_done_twice() {
    survives_death_in_recovery(Kind::Plain).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_swap_away_from_somebodys_unit_can_be_done_twice() {
    survives_death_in_recovery(Kind::FromUnit).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_cold_rollback_to_an_adopted_revision_can_be_done_twice() {
    survives_death_in_recovery(Kind::ColdAdopted).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_over_a_retained_replica_can_be_done_twice() {
    survives_death_in_recovery(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_rollback_can_be_done_twice() {
    survives_death_in_recovery(Kind::Rollback).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_cold_rollback_can_be_done_twice() {
    survives_death_in_recovery(Kind::ColdRollback).await;
}

#[tokio::test(start_paused = true)]
async fn every_undo_of_a_rollback_to_somebodys_unit_can_be_done_twice() {
    survives_death_in_recovery(Kind::BackToUnit).await;
}

/// Somebody sets the server's clock while nobody works on an interrupted swap.
async fn survives_another_time(kind: Kind) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let (calls, after) = (scene.host.calls(), scene.facts().across_runs());
    // Each record is announced by a look at the clock.
    for (number, call) in calls.iter().enumerate().filter(|(_, call)| call.verb == "now") {
        for days in [-400, 400] {
            let what = format!("{kind:?}: {call:?} number {number}, {days} days");
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            let death = Fault { call: number, wrong: Wrong::Dies };
            assert!(scene.execute(&attempt, &[death]).await.is_none(), "{what}: it lived on");
            scene.host.set_clock(SignedDuration::from_hours(24 * days));
            settle(&scene, &attempt, &before, &after, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_between_death_and_recovery_changes_nothing() {
    for kind in Kind::ALL {
        survives_another_time(kind).await;
    }
}
