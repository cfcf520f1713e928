//! A step fails, and perhaps its undo as well, and the agent dies at any call after that. The next one unwinds what is left;
//! what is stuck it calls so, and never tries the undo again that failed.

use std::collections::BTreeSet;

use model_swap::model::event::{Conclusion, EventKind};
use model_swap::model::outcome::Outcome;
use model_swap::model::record::RecordKind;

use super::death::settle;
use super::host::{Call, Fault, SURE, Stage};
use super::scene::{Attempt, Facts, Kind, Scene};
use super::verbs::{DECISIVE, assert_honest, clean, had_back, is_mutating, run};
use super::wrong::Wrong;

/// The first call of each verb in each step, behind its number: those after `since` that are `wanted`.
pub(super) fn each_once(
    calls: &[Call],
    since: usize,
    wanted: impl Fn(&Call) -> bool,
) -> impl Iterator<Item = (usize, &Call)> {
    let is_first = move |number: usize, call: &Call| !calls[since..number].contains(call);
    let all = calls.iter().enumerate().skip(since);
    all.filter(move |(number, call)| wanted(call) && is_first(*number, call))
}

/// The calls that fail a step.
pub(super) fn deciding(calls: &[Call]) -> impl Iterator<Item = (usize, &Call)> {
    each_once(calls, 0, |call| DECISIVE.contains(&call.verb))
}

fn last_record(scene: &Scene, attempt: &Attempt) -> &'static str {
    match scene.records(attempt).last() {
        Some(RecordKind::Failed { .. }) => "failed",
        Some(RecordKind::UndoStarted { .. }) => "undo_started",
        Some(RecordKind::UndoFinished { .. }) => "undo_finished",
        Some(RecordKind::UndoFailed { .. }) => "undo_failed",
        Some(RecordKind::Concluded { .. }) => "concluded",
        _ => "another",
    }
}

async fn dies_after_a_failure(kind: Kind) {
    let (calls, after) = clean(kind).await;
    let mut last = BTreeSet::new();
    for (number, call) in deciding(&calls) {
        let failure = Fault { call: number, wrong: Wrong::DoesAndFails };
        let (scene, ..) = run(kind, &[failure]).await;
        for (later, dying) in scene.host.calls().iter().enumerate().skip(number + 1) {
            let what = format!("{kind:?}: {call:?} fails, then death at {dying:?} number {later}");
            let death = Fault { call: later, wrong: Wrong::Dies };
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            let ended = scene.execute(&attempt, &[failure, death]).await;
            assert!(ended.is_none(), "{what}: it lived on");
            assert_eq!(scene.host.struck(), [call.clone(), dying.clone()], "{what}");
            last.insert(last_record(&scene, &attempt));
            settle(&scene, &attempt, &before, &after, &what).await;
        }
    }
    for record in ["failed", "undo_started", "undo_finished", "concluded"] {
        assert!(last.contains(record), "{kind:?}: nobody died right after {record}: {last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_step_failed_may_die_anywhere_after_that_in_a_swap() {
    for kind in [Kind::First, Kind::Verified, Kind::Plain, Kind::FromUnit] {
        dies_after_a_failure(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_step_failed_may_die_anywhere_after_that_over_a_retained_replica() {
    dies_after_a_failure(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_step_failed_may_die_anywhere_after_that_in_a_rollback() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        dies_after_a_failure(kind).await;
    }
}

/// A swap of which an undo failed, and whose agent died of something else after that.
struct HalfUndone<'a> {
    scene: &'a Scene,
    attempt: &'a Attempt,
    what: String,
}

impl HalfUndone<'_> {
    /// Asserts that whoever recovers it changes nothing, says that it is stuck, and says it once.
    async fn assert_stuck(&self) {
        let Self { scene, attempt, what } = self;
        let (facts, concluded) = (scene.facts(), last_record(scene, attempt) == "concluded");
        let recovered = scene.recover(attempt, &[]).await.unwrap();
        let acted: Vec<_> =
            scene.host.calls().into_iter().filter(|call| is_mutating(call.verb)).collect();
        assert_eq!(acted, [], "{what}: the undo was tried again");
        assert_eq!(recovered.is_none(), concluded, "{what}: {recovered:#?}");
        assert_eq!(scene.facts(), facts, "{what}");
        let records = scene.records(attempt);
        let stuck = RecordKind::Concluded { outcome: Outcome::Stuck };
        assert_eq!(records.last(), Some(&stuck), "{what}");
        let [told] = &self.told()[..] else { panic!("{what}: {:#?}", self.told()) };
        assert_honest(scene, attempt, told, what);
        assert_eq!(scene.recover(attempt, &[]).await.unwrap(), None, "{what}");
        assert_eq!((scene.facts(), scene.records(attempt)), (facts, records), "{what}");
        assert_eq!(self.told().len(), 1, "{what}");
    }

    /// Asserts that the world is as before once a person has mended what the undo failed of.
    async fn assert_repaired(&self, before: &Facts) {
        let Self { scene, attempt, what } = self;
        let repaired = scene.repair(attempt).await.expect("it is taken up again");
        assert_ne!(repaired.outcome, Outcome::Stuck, "{what}: {repaired:#?}");
        let (now, before) = had_back(scene, attempt, before);
        assert_eq!(now, before, "{what}");
        assert_eq!(scene.repair(attempt).await, None, "{what}");
    }

    fn told(&self) -> Vec<Conclusion> {
        let conclusion = |event| match event {
            EventKind::Concluded(conclusion) => Some(conclusion),
            _ => None,
        };
        self.scene.events(self.attempt).into_iter().filter_map(conclusion).collect()
    }
}

async fn dies_after_a_failed_undo(kind: Kind) {
    let (calls, after) = clean(kind).await;
    // Why it is undone makes no difference to an undo.
    let (mut last, mut tried) = (BTreeSet::new(), Vec::new());
    for (number, call) in deciding(&calls) {
        let failure = Fault { call: number, wrong: Wrong::DoesAndFails };
        let (scene, ..) = run(kind, &[failure]).await;
        let unwinding = scene.host.calls();
        let undoes =
            |call: &Call| matches!(call.stage, Stage::Undo(_)) && !SURE.contains(&call.verb);
        for (undo, undoing) in each_once(&unwinding, number + 1, undoes) {
            let refusal = Fault { call: undo, wrong: Wrong::Fails };
            let (scene, _, _, conclusion) = run(kind, &[failure, refusal]).await;
            if conclusion.outcome != Outcome::Stuck || tried.contains(undoing) {
                continue;
            }
            tried.push(undoing.clone());
            for (later, dying) in scene.host.calls().iter().enumerate().skip(undo + 1) {
                let what = format!(
                    "{kind:?}: {call:?} fails, then {undoing:?}, then death at {dying:?} number {later}"
                );
                let death = Fault { call: later, wrong: Wrong::Dies };
                let (scene, attempt) = Scene::of(kind).await;
                let before = scene.facts();
                let ended = scene.execute(&attempt, &[failure, refusal, death]).await;
                assert!(ended.is_none(), "{what}: it lived on");
                let record = last_record(&scene, &attempt);
                last.insert(record);
                // That the undo failed is on no disk yet: for whoever comes next it was interrupted.
                if record == "undo_started" {
                    settle(&scene, &attempt, &before, &after, &what).await;
                    continue;
                }
                let half = HalfUndone { scene: &scene, attempt: &attempt, what };
                half.assert_stuck().await;
                half.assert_repaired(&before).await;
            }
        }
    }
    let all = ["concluded", "undo_failed", "undo_started"];
    assert_eq!(last, BTreeSet::from(all), "{kind:?}");
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_failed_is_not_tried_again_wherever_its_agent_dies_in_a_swap() {
    for kind in [Kind::First, Kind::Verified, Kind::Plain, Kind::FromUnit] {
        dies_after_a_failed_undo(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_failed_is_not_tried_again_wherever_its_agent_dies_over_a_retained_replica() {
    dies_after_a_failed_undo(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_failed_is_not_tried_again_wherever_its_agent_dies_in_a_rollback() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        dies_after_a_failed_undo(kind).await;
    }
}
