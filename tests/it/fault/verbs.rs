//! Every verb that a step calls fails once, before and after its effect.

use model_swap::model::event::{Conclusion, EventKind};
use model_swap::model::outcome::Outcome;
use model_swap::model::plan::Strategy;
use model_swap::model::record::RecordKind;
use model_swap::model::step::Step;

use super::host::{Call, Fault, SURE, Stage};
use super::scene::{Attempt, Facts, Kind, Scene};
use super::wrong::Wrong;

/// Verbs whose failure fails the step. `in_flight` is asked again, `ask` may be.
pub(super) const DECISIVE: [&str; 15] = [
    "booted",
    "promoted",
    "find",
    "listeners",
    "tree",
    "inherited",
    "start",
    "until_runs",
    "check",
    "upstream_image",
    "ask_as_nginx",
    "load",
    "prove",
    "stop",
    "restore",
];

/// The calls of a run that goes well, and the world after it.
pub(super) async fn clean(kind: Kind) -> (Vec<Call>, Facts) {
    let (scene, attempt) = Scene::of(kind).await;
    let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.failure, None);
    (scene.host.calls(), scene.facts().across_runs())
}

/// Runs with faults; what it came to, with the world before.
pub(super) async fn run(kind: Kind, faults: &[Fault]) -> (Scene, Attempt, Facts, Conclusion) {
    let (scene, attempt) = Scene::of(kind).await;
    let before = scene.facts();
    let conclusion = scene.execute(&attempt, faults).await.unwrap().unwrap();
    (scene, attempt, before, conclusion)
}

/// The step of the only failure that was told.
fn failed_step(scene: &Scene, attempt: &Attempt) -> Option<usize> {
    let failed = scene.events(attempt).into_iter().find_map(|event| match event {
        EventKind::StepFailed { index, .. } => Some(index),
        _ => None,
    });
    let recorded = scene.records(attempt).into_iter().find_map(|record| match record {
        RecordKind::Failed { step, .. } => Some(step),
        _ => None,
    });
    assert!(recorded.is_none() || recorded == failed, "{recorded:?} {failed:?}");
    failed
}

fn is_retire(attempt: &Attempt, step: usize) -> bool {
    matches!(attempt.plan.steps[step].step, Step::Retire { .. })
}

/// The world before, as far as it can be had back once the journal says that a retire was begun.
pub(super) fn had_back(scene: &Scene, attempt: &Attempt, before: &Facts) -> (Facts, Facts) {
    let retired = scene.records(attempt).iter().any(
        |record| matches!(record, RecordKind::Started { step, .. } if *step < attempt.plan.steps.len() && is_retire(attempt, *step)),
    );
    let (now, before) = (scene.facts(), before.clone());
    if retired {
        let port = attempt.plan.candidate.port;
        return (now.without(port), before.without(port));
    }
    (now, before)
}

async fn every_fault_is_unwound(kind: Kind) {
    let (calls, after) = clean(kind).await;
    let mut struck = 0;
    for (number, call) in calls.iter().enumerate().filter(|(_, call)| !SURE.contains(&call.verb)) {
        for wrong in [Wrong::Fails, Wrong::DoesAndFails] {
            let fault = Fault { call: number, wrong };
            let what = format!("{kind:?}: {call:?} {fault:?}");
            let (scene, attempt, before, conclusion) = run(kind, &[fault]).await;
            assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
            if conclusion.failure.is_none() {
                assert!(!DECISIVE.contains(&call.verb), "{what}: was overlooked");
                assert_eq!(scene.facts().across_runs(), after, "{what}");
                continue;
            }
            struck += 1;
            let Stage::Act(step) = call.stage else { panic!("{what}: failed outside of a step") };
            assert_eq!(failed_step(&scene, &attempt), Some(step), "{what}");
            let (now, before) = had_back(&scene, &attempt, &before);
            assert_eq!(now, before, "{what}");
            // Only what nginx had loaded had to be rolled back; a failed rollback leaves traffic where it was.
            let rolled_back = scene.host.moved() && attempt.plan.strategy == Strategy::BlueGreen;
            let outcome = if rolled_back { Outcome::RolledBack } else { Outcome::Failed };
            assert_eq!(conclusion.outcome, outcome, "{what}");
            assert_eq!(
                scene.records(&attempt).last(),
                Some(&RecordKind::Concluded { outcome }),
                "{what}"
            );
        }
    }
    assert!(struck >= 10, "{kind:?}: only {struck} faults decided anything in {calls:#?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_first_swap_the_world_is_as_before() {
    every_fault_is_unwound(Kind::First).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_swap_that_is_verified_the_world_is_as_before() {
    every_fault_is_unwound(Kind::Verified).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_swap_over_a_retained_replica_the_world_is_as_before() {
    every_fault_is_unwound(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_rollback_the_world_is_as_before() {
    every_fault_is_unwound(Kind::Rollback).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_cold_rollback_the_world_is_as_before() {
    every_fault_is_unwound(Kind::ColdRollback).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_cold_rollback_to_an_adopted_revision_the_world_is_as_before() {
    every_fault_is_unwound(Kind::ColdAdopted).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_swap_of_plain_processes_the_world_is_as_before() {
    every_fault_is_unwound(Kind::Plain).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_swap_away_from_somebodys_unit_the_world_is_as_before() {
    every_fault_is_unwound(Kind::FromUnit).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_in_a_rollback_to_somebodys_unit_the_world_is_as_before() {
    every_fault_is_unwound(Kind::BackToUnit).await;
}

/// A person is told which undo failed and why, where traffic is and what to do.
pub(super) fn assert_honest(scene: &Scene, attempt: &Attempt, conclusion: &Conclusion, what: &str) {
    let failure = conclusion.failure.as_ref().unwrap();
    assert!(failure.message.starts_with("cannot undo "), "{what}: {failure:#?}");
    let mut why = std::iter::once(&failure.message).chain(&failure.causes);
    assert!(why.any(|why| why.contains("as ordered")), "{what}: {failure:#?}");
    assert!(failure.hints.iter().any(|h| h.contains("model-swap repair")), "{what}: {failure:#?}");
    let loaded = scene.host.world.borrow().loaded;
    let incumbent = attempt.plan.incumbent.as_ref().unwrap();
    let side = if loaded == incumbent.port { incumbent } else { &attempt.plan.candidate };
    assert_eq!(conclusion.revision.as_ref(), Some(&side.revision), "{what}: {conclusion:#?}");
    assert!(conclusion.traffic.contains(&side.revision.model), "{what}: {conclusion:#?}");
}

/// Whether an undo goes on although this fails in it.
fn goes_on(
    attempt: &Attempt,
    (failed, step): (&Call, usize),
    undoing: &Call,
    wrong: Wrong,
) -> bool {
    match attempt.plan.steps.get(step).map(|planned| &planned.step) {
        // What supervises it may only have been away, and is asked once more.
        Some(Step::StartReplica { .. }) => {
            let is_asked = ["marked", "tree", "listeners", "stop"].contains(&undoing.verb);
            is_asked && !attempt.plan.candidate.keeper.is_process()
        }
        Some(Step::CutOver { .. }) => match undoing.verb {
            // What nginx may have loaded for all anybody knows, it is told once more.
            "restore" => wrong == Wrong::DoesAndFails,
            "prove" => failed.verb == "load",
            // Traffic is back by then, and whoever stops the candidate looks for it again.
            "find" => true,
            _ => false,
        },
        _ => false,
    }
}

/// For every step that fails decisively: every verb of the unwinding fails as well.
async fn every_failed_undo_is_stuck(kind: Kind) {
    let (calls, _) = clean(kind).await;
    let mut stuck = 0;
    for (number, call) in calls.iter().enumerate() {
        if !DECISIVE.contains(&call.verb) {
            continue;
        }
        let first = Fault { call: number, wrong: Wrong::DoesAndFails };
        let (scene, ..) = run(kind, &[first]).await;
        for (later, undoing) in scene.host.calls().iter().enumerate().skip(number + 1) {
            let Stage::Undo(step) = undoing.stage else { continue };
            if SURE.contains(&undoing.verb) {
                continue;
            }
            for wrong in [Wrong::Fails, Wrong::DoesAndFails] {
                let second = Fault { call: later, wrong };
                let what = format!("{kind:?}: {call:?}, then {undoing:?} {second:?}");
                let (scene, attempt, before, conclusion) = run(kind, &[first, second]).await;
                assert_eq!(scene.host.struck(), [call.clone(), undoing.clone()], "{what}");
                let again = goes_on(&attempt, (call, step), undoing, wrong);
                assert!(conclusion.outcome != Outcome::Stuck || !again, "{what}: {conclusion:#?}");
                if conclusion.outcome != Outcome::Stuck {
                    let decides = DECISIVE.contains(&undoing.verb) && !again;
                    assert!(!decides, "{what}: was overlooked");
                    continue;
                }
                stuck += 1;
                assert_honest(&scene, &attempt, &conclusion, &what);
                let records = scene.records(&attempt);
                let [
                    ..,
                    RecordKind::UndoFailed { step: last, .. },
                    RecordKind::Concluded { outcome: Outcome::Stuck },
                ] = &records[..]
                else {
                    panic!("{what}: {records:#?}")
                };
                assert_eq!(*last, step, "{what}");
                let acted = scene.host.calls().into_iter().skip(later + 1);
                let acted: Vec<_> = acted.filter(|call| is_mutating(call.verb)).collect();
                assert_eq!(acted, [], "{what}: went on after the failed undo");
                // A person is needed: nothing is tried again by itself.
                let facts = scene.facts();
                assert_eq!(scene.recover(&attempt, &[]).await.unwrap(), None, "{what}");
                assert_eq!(scene.facts(), facts, "{what}");
                // Until that person has mended it, and says so.
                let repaired = scene.repair(&attempt).await.expect("it is taken up again");
                assert_ne!(repaired.outcome, Outcome::Stuck, "{what}: {repaired:#?}");
                let (now, before) = had_back(&scene, &attempt, &before);
                assert_eq!(now, before, "{what}");
                assert_eq!(scene.repair(&attempt).await, None, "{what}");
            }
        }
    }
    assert!(stuck >= 5, "{kind:?}: only {stuck} undos failed");
}

pub(super) fn is_mutating(verb: &str) -> bool {
    ["start", "stop", "load", "restore", "on_boot", "promoted"].contains(&verb)
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_ends_stuck_and_nothing_more_is_touched() {
    every_failed_undo_is_stuck(Kind::First).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_swap_that_is_verified_ends_stuck() {
    every_failed_undo_is_stuck(Kind::Verified).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_swap_of_plain_processes_ends_stuck() {
    every_failed_undo_is_stuck(Kind::Plain).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_swap_away_from_somebodys_unit_ends_stuck() {
    every_failed_undo_is_stuck(Kind::FromUnit).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_rollback_to_somebodys_unit_ends_stuck() {
    every_failed_undo_is_stuck(Kind::BackToUnit).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_cold_rollback_to_an_adopted_revision_ends_stuck() {
    every_failed_undo_is_stuck(Kind::ColdAdopted).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_over_a_retained_replica_ends_stuck() {
    every_failed_undo_is_stuck(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_rollback_ends_stuck() {
    every_failed_undo_is_stuck(Kind::Rollback).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_undo_of_a_cold_rollback_ends_stuck() {
    every_failed_undo_is_stuck(Kind::ColdRollback).await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_cutover_never_stops_the_candidate_that_may_have_traffic() {
    let (calls, _) = clean(Kind::First).await;
    let prove = calls.iter().position(|call| call.verb == "prove").unwrap();
    let unproven = Fault { call: prove, wrong: Wrong::Fails };
    let (scene, ..) = run(Kind::First, &[unproven]).await;
    let restore = scene.host.calls().iter().position(|call| call.verb == "restore").unwrap();
    let faults = [unproven, Fault { call: restore, wrong: Wrong::Fails }];
    let (scene, attempt, before, conclusion) = run(Kind::First, &faults).await;
    assert_eq!(conclusion.outcome, Outcome::Stuck);
    let now = scene.facts();
    assert_eq!(now.loaded, attempt.plan.candidate.port, "the fault was to leave traffic there");
    assert_eq!(now.replicas.len(), before.replicas.len() + 1, "both run on");
    assert_eq!(scene.host.count("stop"), 0);
}
