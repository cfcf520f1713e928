//! What comes before the cutover is done twice: the step fails or its agent dies, all is unwound, and the same command is
//! given again. Nothing that the first one left stands in the way of the second.

use std::collections::BTreeSet;

use model_swap::model::ids::Port;
use model_swap::model::outcome::Outcome;
use model_swap::model::plan::Strategy;
use model_swap::model::record::RecordKind;
use model_swap::model::replica::Unit;
use model_swap::model::step::Step;

use super::host::{Fault, SURE, Stage};
use super::scene::{Attempt, Kind, Scene};
use super::verbs::clean;
use super::wrong::Wrong;

/// What two runs of a command have in common that differ in processes, times and the swap's id.
#[derive(Debug, PartialEq, Eq)]
struct Reached {
    loaded: Port,
    lines: Vec<String>,
    /// Port, model and keeper of every replica.
    replicas: BTreeSet<(Port, String, String)>,
    claims: Vec<String>,
    booted: BTreeSet<Unit>,
    serving: String,
    retained: Option<String>,
}

fn reached(scene: &Scene) -> Reached {
    let facts = scene.facts();
    let world = scene.host.world.borrow();
    let replica = |replica: &model_swap::model::replica::Replica| {
        format!("{} on {}, {}", replica.revision.digest, replica.port, replica.keeper)
    };
    Reached {
        loaded: facts.loaded,
        lines: facts.lines,
        replicas: world
            .replicas
            .iter()
            .map(|known| (known.port, known.root.clone(), known.keeper.to_string()))
            .collect(),
        claims: facts.claims.keys().map(|claim| claim.display().to_string()).collect(),
        booted: facts.booted,
        serving: replica(&facts.state.serving.expect("something serves")),
        retained: facts.state.retained.map(|retained| replica(&retained.replica)),
    }
}

fn is_early(step: &Step) -> bool {
    matches!(
        step,
        Step::Fetch
            | Step::ReserveSlot { .. }
            | Step::StartReplica { .. }
            | Step::AwaitReady { .. }
    )
}

/// The early steps that were begun, by their names.
fn begun(scene: &Scene, attempt: &Attempt) -> BTreeSet<String> {
    let step = |record| match record {
        RecordKind::Started { step, .. } => Some(&attempt.plan.steps[step].step),
        _ => None,
    };
    let steps = scene.records(attempt).into_iter().filter_map(step);
    steps.filter(|step| is_early(step)).map(ToString::to_string).collect()
}

async fn may_be_done_twice(kind: Kind) {
    let (calls, _) = clean(kind).await;
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let (after, all) = (reached(&scene), begun(&scene, &attempt));
    let is_early = |index: usize| is_early(&attempt.plan.steps[index].step);
    let early = calls.iter().enumerate().filter(|(_, call)| match call.stage {
        Stage::Act(index) => is_early(index),
        _ => false,
    });
    let mut interrupted = BTreeSet::new();
    for (number, call) in early {
        for wrong in [Wrong::Dies, Wrong::DoesAndDies, Wrong::Fails, Wrong::DoesAndFails] {
            if SURE.contains(&call.verb) && wrong != Wrong::Dies {
                continue;
            }
            let what = format!("{kind:?}: {call:?} number {number} {wrong:?}");
            let (scene, attempt) = Scene::of(kind).await;
            let fault = Fault { call: number, wrong };
            let ended = scene.execute(&attempt, &[fault]).await;
            if ended.is_none() {
                scene.recover(&attempt, &[]).await.unwrap();
            }
            assert_eq!(scene.host.struck().len(), usize::from(ended.is_some()), "{what}");
            let unwound = scene.records(&attempt).last().cloned();
            if unwound != Some(RecordKind::Concluded { outcome: Outcome::Failed }) {
                assert!(ended.is_some(), "{what}: {unwound:?}");
                continue;
            }
            interrupted.extend(begun(&scene, &attempt));
            let again = scene.planned(kind, "s-10").await;
            let conclusion = scene.execute(&again, &[]).await.unwrap().unwrap();
            let good = match again.plan.strategy {
                Strategy::BlueGreen => Outcome::Promoted,
                Strategy::WarmRollback | Strategy::ColdRollback => Outcome::RolledBack,
            };
            assert_eq!(conclusion.outcome, good, "{what}: {conclusion:#?}");
            assert_eq!(begun(&scene, &again), all, "{what}: not all was done again");
            assert_eq!(reached(&scene), after, "{what}");
        }
    }
    assert_eq!(interrupted, all, "{kind:?}");
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_came_to_nothing_before_its_cutover_is_done_again() {
    for kind in [Kind::First, Kind::Verified, Kind::Plain, Kind::FromUnit] {
        may_be_done_twice(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_swap_over_a_retained_replica_that_came_to_nothing_is_done_again() {
    may_be_done_twice(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_came_to_nothing_before_its_cutover_is_done_again() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        may_be_done_twice(kind).await;
    }
}
