//! What served before does not come back. A swap whose traffic was moved is then finished by the next agent, which may die
//! at every call as well, or fail; and whatever is undone, nothing points at nobody while the new model answers.

use std::time::Duration;

use model_swap::abort::{self, AbortOrder};
use model_swap::executor::{Direction, Wanted};
use model_swap::journal::Journal;
use model_swap::model::event::{Conclusion, EventKind};
use model_swap::model::ids::ProcessId;
use model_swap::model::outcome::Outcome;
use model_swap::model::plan::Strategy;
use model_swap::model::record::RecordKind;
use model_swap::model::step::Step;
use model_swap::swap::recovery;
use tokio::time::Instant;

use super::host::{Call, Fault, SURE};
use super::scene::{Attempt, Facts, Kind, Scene};
use super::world::SimReplica;
use super::wrong::Wrong;

/// A swap whose agent died when traffic was moved, and whose incumbent is gone since.
struct Bereaved {
    scene: Scene,
    attempt: Attempt,
    before: Facts,
    incumbent: SimReplica,
}

/// The same for a death at this call; `None` if traffic was not moved, or the swap had its outcome.
async fn bereaved(kind: Kind, death: usize) -> Option<Bereaved> {
    let (scene, attempt) = Scene::of(kind).await;
    let before = scene.facts();
    let fault = Fault { call: death, wrong: Wrong::Dies };
    assert!(scene.execute(&attempt, &[fault]).await.is_none(), "{kind:?}: {death}: it lived on");
    let status = Journal::look(&scene.dir.swap(&attempt.swap)).unwrap();
    let moved = scene.host.world.borrow().loaded == attempt.plan.candidate.port;
    if !moved || !recovery::is_past_cutover(&status, &attempt.plan) {
        return None;
    }
    let port = attempt.plan.incumbent.as_ref().unwrap().port;
    let incumbent = scene.host.world.borrow().on(port).unwrap().clone();
    scene.host.world.borrow_mut().kill(incumbent.id);
    Some(Bereaved { scene, attempt, before, incumbent })
}

/// The calls of a swap that goes well, of which each may be an agent's last.
async fn deaths(kind: Kind) -> Vec<Call> {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    scene.host.calls()
}

impl Bereaved {
    /// Asserts that the swap has the outcome that it was to have, that the world is that one, and that nobody who comes
    /// after changes anything.
    async fn assert_finished(&self, after: Option<&Facts>, what: &str) -> Facts {
        let Self { scene, attempt, .. } = self;
        let good = match attempt.plan.strategy {
            Strategy::BlueGreen => Outcome::Promoted,
            Strategy::WarmRollback | Strategy::ColdRollback => Outcome::RolledBack,
        };
        let (facts, records) = (scene.facts(), scene.records(attempt));
        assert_eq!(records.last(), Some(&RecordKind::Concluded { outcome: good }), "{what}");
        assert_eq!(facts.loaded, attempt.plan.candidate.port, "{what}");
        assert_eq!(scene.recover(attempt, &[]).await.unwrap(), None, "{what}");
        assert_eq!((scene.facts(), scene.records(attempt)), (facts.clone(), records), "{what}");
        let mut facts = facts.across_runs();
        // How often nginx was reloaded before it got there makes no difference.
        if let Some(retained) = &mut facts.state.retained {
            retained.old_workers.clear();
        }
        assert!(after.is_none_or(|after| *after == facts), "{what}: {after:#?}, not {facts:#?}");
        facts
    }

    /// Asserts that an undo stopped where it would have pointed nginx at nobody, and stays there until the incumbent is back.
    async fn assert_stays(self, conclusion: &Conclusion, what: &str) {
        let Self { scene, attempt, before, incumbent } = self;
        assert_eq!(conclusion.outcome, Outcome::Stuck, "{what}: {conclusion:#?}");
        let side = &attempt.plan.candidate;
        let served = |scene: &Scene| {
            let world = scene.host.world.borrow();
            world.loaded == side.port && world.on(side.port).is_some()
        };
        assert!(served(&scene), "{what}");
        let again = scene.repair(&attempt).await.expect("it is taken up");
        assert_eq!(again.outcome, Outcome::Stuck, "{what}: {again:#?}");
        let failure = again.failure.unwrap();
        assert!(failure.message.contains("nobody listens on port"), "{what}: {failure:#?}");
        assert!(served(&scene), "{what}");
        assert_eq!(scene.direction(&attempt, Wanted::End).await, Direction::Back, "{what}");
        scene.host.world.borrow_mut().replicas.push(incumbent);
        assert_eq!(scene.direction(&attempt, Wanted::Repair).await, Direction::Back, "{what}");
        let repaired = scene.repair(&attempt).await.expect("it is taken up");
        assert_ne!(repaired.outcome, Outcome::Stuck, "{what}: {repaired:#?}");
        assert_eq!((scene.facts().loaded, scene.facts().lines), (before.loaded, before.lines));
    }
}

async fn is_finished_whatever_dies(kind: Kind) {
    let (mut finished, mut after) = (0, None);
    let mut done_again = std::collections::BTreeSet::new();
    let mut records = 0;
    for (death, last) in deaths(kind).await.iter().enumerate() {
        let what = format!("{kind:?}: {last:?} number {death}");
        let Some(lone) = bereaved(kind, death).await else { continue };
        let begun = lone.scene.records(&lone.attempt);
        let conclusion = lone.scene.finish(&lone.attempt, &[]).await.unwrap();
        assert_eq!(conclusion.failure, None, "{what}: {conclusion:#?}");
        let why = |event: &EventKind| matches!(event, EventKind::Warning { text } if text.contains("does not come back"));
        assert!(lone.scene.events(&lone.attempt).iter().any(why), "{what}: nobody is told why");
        let calls = lone.scene.host.calls();
        after = Some(lone.assert_finished(after.as_ref(), &what).await);
        finished += 1;
        if let Some(RecordKind::Started { step, .. }) = begun.last() {
            done_again.insert(*step);
        }
        // What is the same on the disk is finished the same way.
        if begun.len() == records {
            continue;
        }
        records = begun.len();
        for (number, call) in calls.iter().enumerate() {
            for wrong in [Wrong::Dies, Wrong::DoesAndDies] {
                if SURE.contains(&call.verb) && wrong == Wrong::DoesAndDies {
                    continue;
                }
                let what = format!("{what}, then {call:?} number {number} {wrong:?}");
                let lone = bereaved(kind, death).await.unwrap();
                let Bereaved { scene, attempt, .. } = &lone;
                let fault = Fault { call: number, wrong };
                assert!(scene.finish(attempt, &[fault]).await.is_none(), "{what}: it lived on");
                assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
                if !matches!(scene.records(attempt).last(), Some(RecordKind::Concluded { .. })) {
                    scene.finish(attempt, &[]).await.unwrap();
                }
                lone.assert_finished(after.as_ref(), &what).await;
            }
        }
    }
    assert!(finished >= 10, "{kind:?}: only {finished} deaths left a swap to finish");
    let (_, attempt) = Scene::of(kind).await;
    let is_late = |(_, planned): &(usize, &model_swap::model::plan::PlannedStep)| {
        matches!(planned.step, Step::CutOver { .. } | Step::Verify { .. } | Step::Promote { .. })
    };
    let late = attempt.plan.steps.iter().enumerate().filter(is_late).map(|(index, _)| index);
    assert_eq!(done_again, late.collect(), "{kind:?}");
}

#[tokio::test(start_paused = true)]
async fn a_swap_is_finished_without_its_old_model_wherever_agents_die() {
    for kind in [Kind::First, Kind::Plain, Kind::FromUnit, Kind::IntoRetained] {
        is_finished_whatever_dies(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_is_verified_is_finished_without_its_old_model_wherever_agents_die() {
    is_finished_whatever_dies(Kind::Verified).await;
}

/// Deaths of which nobody has had the word of anybody.
async fn unconfirmed() -> Vec<Bereaved> {
    let mut lone = Vec::new();
    for death in 0..deaths(Kind::Verified).await.len() {
        lone.extend(bereaved(Kind::Verified, death).await.filter(|lone| {
            let steps = lone.attempt.plan.steps.iter();
            let verify = steps.clone().position(|it| matches!(it.step, Step::Verify { .. }));
            let is_done = |record: &RecordKind| matches!(record, RecordKind::Succeeded { step, .. } if Some(*step) == verify);
            !lone.scene.records(&lone.attempt).iter().any(is_done)
        }));
    }
    assert!(lone.len() >= 5, "only {} deaths left a swap that waits for a word", lone.len());
    lone
}

#[tokio::test(start_paused = true)]
async fn a_new_model_that_nobody_confirms_is_kept_where_the_old_one_is_gone() {
    let mut after = None;
    for (number, lone) in unconfirmed().await.into_iter().enumerate() {
        let Bereaved { scene, attempt, .. } = &lone;
        let passed = |event: &EventKind| matches!(event, EventKind::GatePassed { gate, .. } if gate == "customers");
        let met = || scene.events(attempt).iter().filter(|event| passed(event)).count();
        // By the agent that died, perhaps.
        let before = met();
        let conclusion = scene.finish_unconfirmed(attempt).await;
        assert_eq!(conclusion.outcome, Outcome::Promoted, "{number}: {conclusion:#?}");
        let said = |event: &EventKind| matches!(event, EventKind::Warning { text } if text.contains("nobody confirmed within 30s") && text.contains("is kept unconfirmed"));
        assert!(scene.events(attempt).iter().any(said), "{number}: nobody is told");
        assert_eq!(met(), before, "{number}: customers met it");
        after = Some(lone.assert_finished(after.as_ref(), &format!("{number}")).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_model_that_nobody_confirms_gives_traffic_back_to_an_old_one_that_is_there_again() {
    for (number, lone) in unconfirmed().await.into_iter().enumerate() {
        let Bereaved { scene, attempt, before, incumbent } = &lone;
        let comes = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            scene.host.world.borrow_mut().replicas.insert(0, incumbent.clone());
        };
        let (conclusion, ()) = tokio::join!(scene.finish_unconfirmed(attempt), comes);
        assert_eq!(conclusion.outcome, Outcome::RolledBack, "{number}: {conclusion:#?}");
        assert_eq!(scene.facts(), *before, "{number}");
    }
}

/// It was gone, and only listens.
#[tokio::test(start_paused = true)]
async fn a_new_model_that_nobody_confirms_is_kept_while_the_old_one_loads_again() {
    for (number, lone) in unconfirmed().await.into_iter().enumerate() {
        let Bereaved { scene, attempt, incumbent, .. } = &lone;
        let comes = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let loading = SimReplica { loads: true, ..incumbent.clone() };
            scene.host.world.borrow_mut().replicas.insert(0, loading);
        };
        let (conclusion, ()) = tokio::join!(scene.finish_unconfirmed(attempt), comes);
        assert_eq!(conclusion.outcome, Outcome::Promoted, "{number}: {conclusion:#?}");
        assert_eq!(scene.host.world.borrow().loaded, attempt.plan.candidate.port, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_is_finished_without_what_served_wherever_agents_die() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        is_finished_whatever_dies(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_swap_whose_old_model_does_not_come_back_goes_forward() {
    for kind in Kind::ALL {
        let mut moved = 0;
        for (death, last) in deaths(kind).await.iter().enumerate() {
            let what = format!("{kind:?}: {last:?} number {death}");
            let Some(lone) = bereaved(kind, death).await else { continue };
            moved += 1;
            let Bereaved { scene, attempt, incumbent, .. } = &lone;
            assert_eq!(scene.direction(attempt, Wanted::End).await, Direction::Forward, "{what}");
            // Nobody is there to go forward to.
            let candidate = scene.host.world.borrow().on(attempt.plan.candidate.port).cloned();
            let candidate = candidate.expect("a candidate");
            scene.host.allow_nobody();
            scene.host.world.borrow_mut().kill(candidate.id);
            assert_eq!(scene.direction(attempt, Wanted::End).await, Direction::Back, "{what}");
            // What served is there again, as a unit has it by itself.
            scene.host.world.borrow_mut().replicas.extend([candidate, incumbent.clone()]);
            assert_eq!(scene.direction(attempt, Wanted::End).await, Direction::Back, "{what}");
        }
        assert!(moved >= 5, "{kind:?}: only {moved} deaths left a swap to go on with");
    }
}

/// Every call of the finishing fails.
async fn fails_without_an_outage(kind: Kind) {
    let (mut stuck, mut records) = (0, 0);
    for death in 0..deaths(kind).await.len() {
        let Some(lone) = bereaved(kind, death).await else { continue };
        let begun = lone.scene.records(&lone.attempt).len();
        if begun == records {
            continue;
        }
        records = begun;
        lone.scene.finish(&lone.attempt, &[]).await.unwrap();
        for (number, call) in lone.scene.host.calls().iter().enumerate() {
            for wrong in [Wrong::Fails, Wrong::DoesAndFails] {
                let what = format!("{kind:?}: {death}, then {call:?} number {number} {wrong:?}");
                let lone = bereaved(kind, death).await.unwrap();
                let fault = Fault { call: number, wrong };
                let conclusion = lone.scene.finish(&lone.attempt, &[fault]).await.unwrap();
                assert_eq!(lone.scene.host.struck(), std::slice::from_ref(call), "{what}");
                if conclusion.failure.is_none() {
                    lone.assert_finished(None, &what).await;
                    continue;
                }
                stuck += 1;
                lone.assert_stays(&conclusion, &what).await;
            }
        }
    }
    assert!(stuck >= 5, "{kind:?}: only {stuck} faults decided anything");
}

#[tokio::test(start_paused = true)]
async fn what_fails_without_the_old_model_leaves_traffic_with_the_new_one() {
    for kind in [Kind::First, Kind::FromUnit, Kind::Rollback] {
        fails_without_an_outage(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_undo_points_nginx_at_nobody_while_the_new_model_answers() {
    for kind in Kind::ALL {
        let mut undone = 0;
        for (death, last) in deaths(kind).await.iter().enumerate() {
            let what = format!("{kind:?}: {last:?} number {death}");
            let Some(lone) = bereaved(kind, death).await else { continue };
            let Some(conclusion) = lone.scene.recover(&lone.attempt, &[]).await.unwrap() else {
                panic!("{what}: it had its outcome")
            };
            // Promoted, and only not said so.
            if conclusion.failure.is_none() {
                continue;
            }
            undone += 1;
            lone.assert_stays(&conclusion, &what).await;
        }
        assert!(undone >= 5, "{kind:?}: only {undone} deaths left anything to undo");
    }
}

/// A bereaved swap that somebody gave up, and whose undo is stuck.
async fn stuck_without_the_old_model(kind: Kind, death: usize) -> Option<Bereaved> {
    let lone = bereaved(kind, death).await?;
    abort::order(&lone.scene.dir, &lone.attempt.swap, &AbortOrder::default()).unwrap();
    let conclusion = lone.scene.recover(&lone.attempt, &[]).await.unwrap()?;
    // Else promoted, and only not said so.
    (conclusion.outcome == Outcome::Stuck).then_some(lone)
}

/// A person has nothing to start again what served before from, and wants an end.
async fn is_ended_by_a_repair(kind: Kind) {
    let (mut ended, mut after, mut records) = (0, None, 0);
    for death in 0..deaths(kind).await.len() {
        let Some(lone) = stuck_without_the_old_model(kind, death).await else { continue };
        let Bereaved { scene, attempt, .. } = &lone;
        // What is the same on the disk is ended the same way.
        let begun = scene.records(attempt).len();
        if std::mem::replace(&mut records, begun) == begun {
            continue;
        }
        let what = format!("{kind:?}: {death}");
        assert_eq!(scene.direction(attempt, Wanted::Repair).await, Direction::Forward, "{what}");
        let conclusion = scene.finish(attempt, &[]).await.unwrap();
        assert_eq!(conclusion.failure, None, "{what}: {conclusion:#?}");
        let calls = scene.host.calls();
        after = Some(lone.assert_finished(after.as_ref(), &what).await);
        ended += 1;
        for (number, call) in calls.iter().enumerate() {
            let what = format!("{what}, then {call:?} number {number}");
            let lone = stuck_without_the_old_model(kind, death).await.unwrap();
            let Bereaved { scene, attempt, .. } = &lone;
            let last = Fault { call: number, wrong: Wrong::Dies };
            assert!(scene.finish(attempt, &[last]).await.is_none(), "{what}: it lived on");
            let is_at_its_end = |record: &RecordKind| matches!(record, RecordKind::Concluded { outcome } if *outcome != Outcome::Stuck);
            if !scene.records(attempt).last().is_some_and(is_at_its_end) {
                // When every step is done, only its end is left to be said.
                let ended = match scene.direction(attempt, Wanted::Repair).await {
                    Direction::Forward => scene.finish(attempt, &[]).await,
                    Direction::Back => scene.recover(attempt, &[]).await.unwrap(),
                };
                assert_eq!(ended.unwrap().failure, None, "{what}");
            }
            lone.assert_finished(after.as_ref(), &what).await;
        }
    }
    assert!(ended >= 2, "{kind:?}: only {ended} deaths left a swap to undo");
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_is_stuck_without_its_old_model_is_ended_by_a_repair_with_the_new_one() {
    for kind in [Kind::First, Kind::Verified, Kind::FromUnit, Kind::Rollback] {
        is_ended_by_a_repair(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_neither_model_answers_the_lines_are_as_before() {
    let mut undone = 0;
    for death in 0..deaths(Kind::First).await.len() {
        let Some(lone) = bereaved(Kind::First, death).await else { continue };
        let Bereaved { scene, attempt, before, .. } = lone;
        let candidate = scene.host.world.borrow().on(attempt.plan.candidate.port).unwrap().id;
        scene.host.world.borrow_mut().kill(candidate);
        scene.host.allow_nobody();
        let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
        if conclusion.failure.is_none() {
            continue;
        }
        undone += 1;
        // Until a person has started the old one again.
        assert_eq!(conclusion.outcome, Outcome::Stuck, "{death}: {conclusion:#?}");
        let message = conclusion.failure.unwrap().message;
        assert!(message.contains("again, and nobody listens there"), "{death}: {message}");
        assert_eq!((scene.facts().loaded, scene.facts().lines), (before.loaded, before.lines));
    }
    assert!(undone >= 5, "only {undone} deaths left anything to undo");
}

/// What a reboot has forgotten stays forgotten: whoever has those pids now is somebody else.
#[tokio::test(start_paused = true)]
async fn what_an_undone_promotion_brings_back_knows_no_process_of_another_boot() {
    let mut undone = 0;
    for (death, last) in deaths(Kind::Rollback).await.iter().enumerate() {
        let what = format!("{last:?} number {death}");
        let (scene, attempt) = Scene::of(Kind::Rollback).await;
        scene.dir.forget_last_boot("the last one").unwrap();
        let fault = Fault { call: death, wrong: Wrong::Dies };
        assert!(scene.execute(&attempt, &[fault]).await.is_none(), "{what}: it lived on");
        scene.dir.forget_last_boot("this one").unwrap();
        let conclusion = scene.recover(&attempt, &[]).await.unwrap();
        if conclusion.is_none_or(|conclusion| conclusion.failure.is_none()) {
            continue;
        }
        undone += 1;
        let state = scene.facts().state;
        let replicas = [state.serving.unwrap(), state.retained.unwrap().replica];
        assert_eq!(replicas.map(|replica| replica.main), [ProcessId::GONE; 2], "{what}");
    }
    assert!(undone >= 10, "only {undone} deaths left anything to undo");
}

/// The last agent that could die and leave a swap to go on with.
async fn last_bereaved(kind: Kind) -> Bereaved {
    for death in (0..deaths(kind).await.len()).rev() {
        if let Some(lone) = bereaved(kind, death).await {
            return lone;
        }
    }
    panic!("{kind:?}: no death left a swap to go on with")
}

#[tokio::test(start_paused = true)]
async fn an_order_ends_the_wait_for_what_served_and_the_swap_goes_back_when_that_is_there() {
    let lone = last_bereaved(Kind::FromUnit).await;
    let Bereaved { scene, attempt, before, incumbent } = &lone;
    let begin = Instant::now();
    let ordered = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
    };
    let (direction, ()) = tokio::join!(scene.direction(attempt, Wanted::End), ordered);
    assert_eq!(direction, Direction::Back);
    assert!(begin.elapsed() < Duration::from_secs(7), "waited {:?}", begin.elapsed());
    let comes = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(scene.facts().loaded, attempt.plan.candidate.port, "given back to nobody");
        scene.host.world.borrow_mut().replicas.insert(0, incumbent.clone());
    };
    let (recovered, ()) = tokio::join!(scene.recover(attempt, &[]), comes);
    assert_eq!(recovered.unwrap().unwrap().outcome, Outcome::Aborted);
    assert_eq!(scene.facts(), *before);
}

#[tokio::test(start_paused = true)]
async fn an_order_for_a_swap_whose_old_model_does_not_come_back_is_said_to_come_too_late() {
    for kind in [Kind::First, Kind::Verified, Kind::Plain] {
        let mut finished = 0;
        for (death, last) in deaths(kind).await.iter().enumerate() {
            let what = format!("{kind:?}: {last:?} number {death}");
            let Some(lone) = bereaved(kind, death).await else { continue };
            let Bereaved { scene, attempt, .. } = &lone;
            abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
            assert_eq!(scene.direction(attempt, Wanted::End).await, Direction::Forward, "{what}");
            let conclusion = scene.finish(attempt, &[]).await.unwrap();
            assert_eq!(conclusion.outcome, Outcome::Promoted, "{what}: {conclusion:#?}");
            lone.assert_finished(None, &what).await;
            finished += 1;
            let said = |event: &EventKind| matches!(event, EventKind::Warning { text } if text.starts_with("somebody asked to abort, but what served before is gone"));
            assert!(scene.events(attempt).iter().any(said), "{what}");
        }
        assert!(finished >= 5, "{kind:?}: only {finished} deaths left a swap to finish");
    }
}

/// nginx still has the old model loaded, which nobody is any more: the outage ends with the reload that was due.
#[tokio::test(start_paused = true)]
async fn a_cutover_that_was_written_and_not_loaded_is_loaded_when_its_old_model_is_gone() {
    for kind in [Kind::First, Kind::Verified, Kind::Plain, Kind::FromUnit, Kind::Rollback] {
        let load = deaths(kind).await.iter().position(|call| call.verb == "load").unwrap();
        let (scene, attempt) = Scene::of(kind).await;
        let halfway = Fault { call: load, wrong: Wrong::DiesHalfway };
        assert!(scene.execute(&attempt, &[halfway]).await.is_none(), "{kind:?}: it lived on");
        let before = scene.facts();
        let port = attempt.plan.incumbent.as_ref().unwrap().port;
        assert_eq!(before.loaded, port, "{kind:?}: it was loaded");
        scene.host.allow_nobody();
        let incumbent = scene.host.world.borrow().on(port).unwrap().clone();
        scene.host.world.borrow_mut().kill(incumbent.id);
        assert_eq!(scene.direction(&attempt, Wanted::End).await, Direction::Forward, "{kind:?}");
        let conclusion = scene.finish(&attempt, &[]).await.unwrap();
        assert_eq!(conclusion.failure, None, "{kind:?}: {conclusion:#?}");
        let lone = Bereaved { scene, attempt, before, incumbent };
        lone.assert_finished(None, &format!("{kind:?}")).await;
    }
}
