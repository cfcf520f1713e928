//! A swap where nobody serves: a first deployment, or one over a model that has crashed. There is nobody to go back to, so that
//! the new model keeps the traffic that it was proven to have, unless it dies or a person gives it up.

use std::time::Duration;

use model_swap::abort::{self, AbortOrder};
use model_swap::executor::{self, Direction, Wanted};
use model_swap::model::event::{Conclusion, EventKind};
use model_swap::model::outcome::Outcome;
use model_swap::model::record::RecordKind;
use model_swap::model::step::Step;

use super::host::{Call, Fault, SURE};
use super::scene::{Attempt, Facts, Kind, Scene};
use super::wrong::Wrong;

const KINDS: [Kind; 3] = [Kind::Lone, Kind::LoneVerified, Kind::LoneRollback];

/// The calls of a swap that goes well, and the world after it.
async fn clean(kind: Kind) -> (Vec<Call>, Facts) {
    let (scene, attempt) = Scene::of(kind).await;
    assert_eq!(attempt.plan.incumbent, None);
    let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!((conclusion.outcome, conclusion.failure), (good(kind), None));
    (scene.host.calls(), ended(scene.facts()))
}

/// How often nginx was reloaded before it got there makes no difference.
fn ended(facts: Facts) -> Facts {
    let mut facts = facts.across_runs();
    if let Some(retained) = &mut facts.state.retained {
        retained.old_workers.clear();
    }
    facts
}

/// How it ends where all goes well.
fn good(kind: Kind) -> Outcome {
    if kind == Kind::LoneRollback { Outcome::RolledBack } else { Outcome::Promoted }
}

/// Whether nginx's file names the candidate, and that answers.
fn serves(scene: &Scene, attempt: &Attempt) -> bool {
    let world = scene.host.world.borrow();
    let port = attempt.plan.candidate.port;
    world.named() == port && world.on(port).is_some()
}

/// Whether the cutover was done, by the journal.
fn has_arrived(scene: &Scene, attempt: &Attempt) -> bool {
    let is_cutover = |step: usize| matches!(attempt.plan.steps[step].step, Step::CutOver { .. });
    scene
        .records(attempt)
        .iter()
        .any(|record| matches!(record, RecordKind::Succeeded { step, .. } if is_cutover(*step)))
}

/// Asserts that nothing that was said tells of anybody who served before.
fn assert_honest(scene: &Scene, attempt: &Attempt, what: &str) {
    let story = serde_json::to_string(&scene.events(attempt)).unwrap();
    let back = ["rolled-back", "roll back"].iter().filter(|_| !attempt.plan.strategy.is_rollback());
    for untrue in ["what served before", "which served before"].iter().chain(back) {
        assert!(!story.contains(untrue), "{what}: says {untrue:?}: {story}");
    }
}

impl Scene {
    /// Brings a swap to its end whose agent died, as the next one does; how, or `None` if that died of a fault.
    async fn brought_to_end(
        &self,
        attempt: &Attempt,
        faults: &[Fault],
    ) -> Option<Option<Conclusion>> {
        match self.direction(attempt, Wanted::End).await {
            Direction::Forward => Some(Some(self.finish(attempt, faults).await?)),
            Direction::Back => self.recover(attempt, faults).await,
        }
    }
}

/// Asserts that it is promoted where the new model had been reached, and as if it had not been otherwise.
fn assert_ended(
    (scene, attempt): (&Scene, &Attempt),
    (had, before, after): (bool, &Facts, &Facts),
    what: &str,
) {
    let good = match attempt.plan.strategy.is_rollback() {
        true => Outcome::RolledBack,
        false => Outcome::Promoted,
    };
    let outcome = if had { good } else { Outcome::Failed };
    assert_eq!(scene.records(attempt).last(), Some(&RecordKind::Concluded { outcome }), "{what}");
    let facts = scene.facts();
    if had {
        assert_eq!(ended(facts), *after, "{what}");
    } else {
        assert_eq!(facts, *before, "{what}");
    }
    assert_honest(scene, attempt, what);
}

/// A swap whose agent died at a call, and the world before it; whether the new model serves.
async fn dead(kind: Kind, fault: Fault) -> (Scene, Attempt, Facts, bool) {
    let (scene, attempt) = Scene::of(kind).await;
    let before = scene.facts();
    assert!(scene.execute(&attempt, &[fault]).await.is_none(), "{kind:?}: {fault:?}: it lived on");
    let had = serves(&scene, &attempt);
    (scene, attempt, before, had)
}

fn deaths(calls: &[Call]) -> impl Iterator<Item = (usize, &Call, Wrong)> {
    let ways = |call: &Call| match call.verb {
        "load" => vec![Wrong::Dies, Wrong::DiesHalfway, Wrong::DoesAndDies],
        verb if SURE.contains(&verb) => vec![Wrong::Dies],
        _ => vec![Wrong::Dies, Wrong::DoesAndDies],
    };
    let all = calls.iter().enumerate();
    all.flat_map(move |(number, call)| {
        ways(call).into_iter().map(move |wrong| (number, call, wrong))
    })
}

#[tokio::test(start_paused = true)]
async fn what_serves_where_nobody_did_is_kept_wherever_agents_die() {
    for kind in KINDS {
        let (calls, after) = clean(kind).await;
        let (mut kept, mut records) = (0, 0);
        for (call, last, wrong) in deaths(&calls) {
            let (fault, what) =
                (Fault { call, wrong }, format!("{kind:?}: {last:?} number {call} {wrong:?}"));
            let (scene, attempt, before, had) = dead(kind, fault).await;
            let begun = scene.records(&attempt).len();
            scene.brought_to_end(&attempt, &[]).await.unwrap();
            assert_ended((&scene, &attempt), (had, &before, &after), &what);
            let again = scene.host.calls();
            assert_eq!(scene.brought_to_end(&attempt, &[]).await, Some(None), "{what}: twice");
            kept += usize::from(had);
            // What is the same on the disk is finished the same way.
            if !had || std::mem::replace(&mut records, begun) == begun {
                continue;
            }
            for (second, next, wrong) in
                deaths(&again).filter(|death| death.2 != Wrong::DiesHalfway)
            {
                let what = format!("{what}, then {next:?} number {second} {wrong:?}");
                let (scene, attempt, before, _) = dead(kind, fault).await;
                let later = Fault { call: second, wrong };
                assert_eq!(
                    scene.brought_to_end(&attempt, &[later]).await,
                    None,
                    "{what}: it lived on"
                );
                scene.brought_to_end(&attempt, &[]).await.unwrap();
                assert_ended((&scene, &attempt), (true, &before, &after), &what);
            }
        }
        assert!(kept >= 10, "{kind:?}: only {kept} deaths left a new model that serves");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_where_nobody_served_what_serves_now_keeps_its_traffic() {
    for kind in KINDS {
        let (calls, after) = clean(kind).await;
        let (mut kept, mut undone) = (0, 0);
        for (number, call) in
            calls.iter().enumerate().filter(|(_, call)| !SURE.contains(&call.verb))
        {
            for wrong in [Wrong::Fails, Wrong::DoesAndFails] {
                let what = format!("{kind:?}: {call:?} number {number} {wrong:?}");
                let (scene, attempt) = Scene::of(kind).await;
                let before = scene.facts();
                let fault = Fault { call: number, wrong };
                let conclusion = scene.execute(&attempt, &[fault]).await.unwrap().unwrap();
                assert_honest(&scene, &attempt, &what);
                let Some(failure) = &conclusion.failure else {
                    assert_eq!(ended(scene.facts()), after, "{what}");
                    continue;
                };
                if has_arrived(&scene, &attempt) {
                    kept += 1;
                    assert_eq!(conclusion.outcome, Outcome::Stuck, "{what}: {conclusion:#?}");
                    let message = &failure.message;
                    assert!(message.contains("answers: traffic stays there"), "{what}: {message}");
                    assert_eq!(
                        conclusion.revision.as_ref(),
                        Some(&attempt.plan.candidate.revision)
                    );
                    assert!(serves(&scene, &attempt), "{what}");
                    let direction = scene.direction(&attempt, Wanted::Repair).await;
                    assert_eq!(direction, Direction::Forward, "{what}");
                    let repaired = scene.finish(&attempt, &[]).await.unwrap();
                    assert_eq!(repaired.outcome, good(kind), "{what}: {repaired:#?}");
                    assert_eq!(ended(scene.facts()), after, "{what}");
                } else {
                    undone += 1;
                    assert_eq!(conclusion.outcome, Outcome::Failed, "{what}: {conclusion:#?}");
                    assert_eq!(conclusion.traffic, "nothing serves, as before", "{what}");
                    assert_eq!(scene.facts(), before, "{what}");
                }
            }
        }
        assert!(kept >= 1 && undone >= 10, "{kind:?}: {kept} kept, {undone} undone");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_person_gives_up_where_nobody_served_is_undone() {
    for kind in KINDS {
        let (calls, after) = clean(kind).await;
        for (number, call) in calls.iter().enumerate() {
            let what = format!("{kind:?}: {call:?} number {number}");
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            let order = Fault { call: number, wrong: Wrong::Aborts };
            let conclusion = scene.execute(&attempt, &[order]).await.unwrap().unwrap();
            assert_honest(&scene, &attempt, &what);
            if conclusion.failure.is_none() {
                assert_eq!(ended(scene.facts()), after, "{what}");
                continue;
            }
            assert_eq!(conclusion.outcome, Outcome::Aborted, "{what}");
            assert_eq!(conclusion.traffic, "nothing serves, as before", "{what}");
            assert_eq!(scene.facts(), before, "{what}");
        }
    }
}

/// The order meets the next agent before, or while it finishes.
#[tokio::test(start_paused = true)]
async fn what_a_person_gives_up_whose_agent_died_where_nobody_served_is_undone() {
    for kind in KINDS {
        let (calls, _) = clean(kind).await;
        let mut given_up = 0;
        for (call, last) in calls.iter().enumerate() {
            let fault = Fault { call, wrong: Wrong::Dies };
            let (scene, attempt, before, had) = dead(kind, fault).await;
            if !had || scene.records(&attempt).len() > 2 * attempt.plan.steps.len() - 1 {
                continue;
            }
            given_up += 1;
            let what = format!("{kind:?}: {last:?} number {call}");
            abort::order(&scene.dir, &attempt.swap, &AbortOrder::default()).unwrap();
            let conclusion = scene.brought_to_end(&attempt, &[]).await.unwrap().unwrap();
            assert_eq!(conclusion.outcome, Outcome::Aborted, "{what}: {conclusion:#?}");
            assert_eq!(scene.facts(), before, "{what}");
            let (scene, attempt, before, _) = dead(kind, fault).await;
            let order = Fault { call: 0, wrong: Wrong::Aborts };
            let conclusion = scene.finish(&attempt, &[order]).await.unwrap();
            assert_eq!(conclusion.outcome, Outcome::Aborted, "{what}: {conclusion:#?}");
            assert_eq!(scene.facts(), before, "{what}");
        }
        assert!(given_up >= 5, "{kind:?}: only {given_up} deaths left a swap to give up");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_model_that_nobody_confirms_is_kept_where_nobody_served() {
    let (_, after) = clean(Kind::LoneVerified).await;
    let (scene, attempt) = Scene::of(Kind::LoneVerified).await;
    let (cx, mut journal) = scene.begin(&attempt);
    scene.host.arm(&[]);
    let conclusion = Box::pin(executor::execute(&cx, &mut journal)).await.unwrap();
    assert_eq!((conclusion.outcome, conclusion.failure), (Outcome::Promoted, None));
    assert_eq!(ended(scene.facts()), after);
    let said = |event: &EventKind| matches!(event, EventKind::Warning { text } if text.contains("nobody confirmed within 30s") && text.contains("nobody served before: Qwen/New is kept unconfirmed"));
    assert!(scene.events(&attempt).iter().any(said), "nobody is told");
    assert_honest(&scene, &attempt, "unconfirmed");
}

/// It is waited for as a unit is that a boot starts, and not for ever.
#[tokio::test(start_paused = true)]
async fn a_new_model_that_comes_back_where_nobody_served_is_waited_for() {
    for (after, expected) in [(30, Outcome::Promoted), (90, Outcome::Failed)] {
        let (calls, _) = clean(Kind::Lone).await;
        let call = calls.iter().rposition(|call| call.verb == "prove").unwrap();
        let fault = Fault { call, wrong: Wrong::DoesAndDies };
        let (scene, attempt, before, had) = dead(Kind::Lone, fault).await;
        assert!(had);
        let candidate = scene.host.world.borrow().on(attempt.plan.candidate.port).unwrap().clone();
        scene.host.world.borrow_mut().kill(candidate.id);
        let comes = async {
            tokio::time::sleep(Duration::from_secs(after)).await;
            scene.host.world.borrow_mut().replicas.push(candidate);
        };
        let (conclusion, ()) = tokio::join!(scene.brought_to_end(&attempt, &[]), comes);
        let conclusion = conclusion.unwrap().unwrap();
        assert_eq!(conclusion.outcome, expected, "{conclusion:#?}");
        if expected == Outcome::Failed {
            assert_eq!(conclusion.traffic, "nothing serves, as before");
            assert_eq!(scene.facts().lines, before.lines);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_model_that_dies_where_nobody_served_leaves_the_service_down_and_says_so() {
    let (scene, attempt) = Scene::of(Kind::LoneVerified).await;
    let before = scene.facts();
    let (cx, mut journal) = scene.begin(&attempt);
    scene.host.arm(&[]);
    let dies = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(serves(&scene, &attempt));
        let candidate = scene.host.world.borrow().on(attempt.plan.candidate.port).unwrap().id;
        scene.host.world.borrow_mut().kill(candidate);
    };
    let executed = Box::pin(executor::execute(&cx, &mut journal));
    let (conclusion, ()) = tokio::join!(executed, dies);
    let conclusion = conclusion.unwrap();
    assert_eq!((conclusion.outcome, conclusion.slot), (Outcome::Failed, None));
    assert_eq!(conclusion.traffic, "nothing serves, as before");
    assert_eq!(scene.facts(), before);
    assert_honest(&scene, &attempt, "died");
}
