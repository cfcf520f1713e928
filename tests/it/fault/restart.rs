//! Somebody restarts nginx between any two looks at it in a swap or its undo, once or call after call: what comes up has read the same file, and
//! nothing is stuck of it.

use model_swap::model::outcome::Outcome;

use super::host::{Call, Fault, Stage};
use super::scene::{Kind, Scene};
use super::stuck::{deciding, each_once};
use super::verbs::{clean, had_back, run};
use super::wrong::Wrong;

/// At one call, and at this and those that follow. An nginx that is restarted for ever nobody waits for.
const RESTARTS: [usize; 2] = [1, 3];

/// Restarts of nginx, one a call.
fn restarts(from: usize, count: usize) -> impl Iterator<Item = Fault> {
    (from..from + count).map(|call| Fault { call, wrong: Wrong::RestartsNginx })
}

/// What looks at nginx. A restart at any other call is one before the next of these.
const LOOKS: [&str; 6] = ["upstream", "loaded", "prove", "restore", "load", "workers_left"];

/// A swap drains and retires what it replaces by looks at nginx, too.
#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_in_a_swap_undoes_nothing() {
    for kind in Kind::ALL {
        let (calls, after) = clean(kind).await;
        for (at, met) in calls.iter().enumerate().filter(|(_, call)| LOOKS.contains(&call.verb)) {
            for count in RESTARTS {
                let faults: Vec<_> = restarts(at, count).collect();
                let (scene, _, _, conclusion) = run(kind, &faults).await;
                let what = format!("{kind:?}: {count} restarts at {met:?} number {at}");
                assert_eq!(scene.host.struck().first(), Some(met), "{what}");
                assert_eq!(conclusion.failure, None, "{what}");
                assert_eq!(scene.facts().across_runs().loaded, after.loaded, "{what}");
            }
        }
    }
}

/// The undos after a call, and those of their calls that look at nginx, by their numbers.
fn undoing(calls: &[Call], since: usize) -> (Vec<Call>, Vec<usize>) {
    let is_undo = |call: &Call| matches!(call.stage, Stage::Undo(_));
    let undos = calls[since..].iter().filter(|call| is_undo(call)).cloned().collect();
    let looks = |call: &Call| is_undo(call) && LOOKS.contains(&call.verb);
    (undos, (since..calls.len()).filter(|number| looks(&calls[*number])).collect())
}

async fn a_restart_gets_no_undo_stuck(kind: Kind) {
    let (calls, _) = clean(kind).await;
    let (mut tried, mut known) = (0, Vec::new());
    for (number, call) in deciding(&calls) {
        let failure = Fault { call: number, wrong: Wrong::DoesAndFails };
        let (scene, ..) = run(kind, &[failure]).await;
        let unwinding = scene.host.calls();
        let (undos, looks) = undoing(&unwinding, number + 1);
        if known.contains(&undos) {
            continue;
        }
        known.push(undos);
        for at in looks {
            let met = &unwinding[at];
            for count in RESTARTS {
                let what =
                    format!("{kind:?}: {call:?} fails, {count} restarts at {met:?} number {at}");
                let faults: Vec<_> = std::iter::once(failure).chain(restarts(at, count)).collect();
                let (scene, attempt, before, conclusion) = run(kind, &faults).await;
                assert_eq!(scene.host.struck()[..2], [call.clone(), met.clone()], "{what}");
                assert_ne!(conclusion.outcome, Outcome::Stuck, "{what}: {conclusion:#?}");
                let (now, before) = had_back(&scene, &attempt, &before);
                assert_eq!(now, before, "{what}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 30, "{kind:?}: only {tried} restarts");
}

#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_in_an_undo_gets_no_swap_stuck() {
    for kind in [Kind::First, Kind::Verified, Kind::Plain, Kind::FromUnit] {
        a_restart_gets_no_undo_stuck(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_in_an_undo_gets_no_swap_over_a_retained_replica_stuck() {
    a_restart_gets_no_undo_stuck(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_in_an_undo_gets_no_rollback_stuck() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        a_restart_gets_no_undo_stuck(kind).await;
    }
}

async fn a_restart_gets_no_recovery_stuck(kind: Kind) {
    let (calls, _) = clean(kind).await;
    let (mut tried, mut known) = (0, Vec::new());
    for (number, call) in each_once(&calls, 0, |_| true) {
        let death = Fault { call: number, wrong: Wrong::DoesAndDies };
        let (scene, attempt) = Scene::of(kind).await;
        if scene.execute(&attempt, &[death]).await.is_some() {
            continue;
        }
        scene.recover(&attempt, &[]).await.unwrap();
        let unwinding = scene.host.calls();
        let (undos, looks) = undoing(&unwinding, 0);
        if known.contains(&undos) {
            continue;
        }
        known.push(undos);
        for at in looks {
            let met = &unwinding[at];
            for count in RESTARTS {
                let what =
                    format!("{kind:?}: death at {call:?}, {count} restarts at {met:?} number {at}");
                let (scene, attempt) = Scene::of(kind).await;
                let before = scene.facts();
                assert!(scene.execute(&attempt, &[death]).await.is_none(), "{what}: it lived on");
                let faults: Vec<_> = restarts(at, count).collect();
                let conclusion = scene.recover(&attempt, &faults).await.unwrap().unwrap();
                assert_eq!(scene.host.struck().first(), Some(met), "{what}");
                assert_ne!(conclusion.outcome, Outcome::Stuck, "{what}: {conclusion:#?}");
                let (now, before) = had_back(&scene, &attempt, &before);
                assert_eq!(now, before, "{what}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 30, "{kind:?}: only {tried} restarts");
}

#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_while_a_dead_agents_swap_is_unwound_gets_it_not_stuck() {
    for kind in [Kind::First, Kind::Plain, Kind::FromUnit, Kind::IntoRetained] {
        a_restart_gets_no_recovery_stuck(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_nginx_that_is_restarted_while_a_dead_agents_rollback_is_unwound_gets_it_not_stuck() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        a_restart_gets_no_recovery_stuck(kind).await;
    }
}
