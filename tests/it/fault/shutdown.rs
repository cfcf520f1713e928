//! The server is shut down while an agent works that nothing ends before the rest: nginx and the replicas go one by one, at any call.
//! The agent says nothing of what it sees then; whoever comes after the boot brings the swap to its end.

use std::time::Duration;

use model_swap::executor::{Direction, Wanted};
use model_swap::model::ids::{Port, ProcessId};
use model_swap::model::outcome::Outcome;
use model_swap::model::record::RecordKind;
use tokio::time::{Instant, timeout};

use super::host::{Call, Fault, Stage};
use super::scene::{A, Attempt, Facts, Kind, Scene};
use super::verbs::{clean, had_back};
use super::world::{SimReplica, SimWorld};
use super::wrong::Wrong;

/// Longer than any step may take.
const LONG: Duration = Duration::from_secs(300);

/// How long what a boot starts takes to listen.
const BOOT: Duration = Duration::from_secs(5);

/// What a shutdown ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Nginx,
    Slot(Port),
}

/// nginx, and the slots.
const PARTS: [Part; 3] = [Part::Nginx, Part::Slot(A), Part::Slot(Port(8002))];

/// A server that is being shut down.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    /// What is still up; the last ends first.
    up: Vec<Part>,
    /// The replicas that have ended.
    ended: Vec<SimReplica>,
}

impl SimWorld {
    /// systemd is told to shut the server down.
    pub(super) fn shut_down(&mut self, first: Part) {
        let mut up = PARTS.to_vec();
        up.sort_by_key(|part| *part == first);
        self.outage = Some(Outage { up, ended: Vec::new() });
        self.goes_down();
    }

    /// One more part ends, if the server is being shut down.
    pub(super) fn goes_down(&mut self) {
        let Some(outage) = &mut self.outage else { return };
        match outage.up.pop() {
            Some(Part::Nginx) => {
                (self.master, self.unseen_until) = (ProcessId::GONE, Instant::now() + LONG * 2);
                self.workers.clear();
            }
            Some(Part::Slot(port)) => {
                outage.ended.extend(self.replicas.extract_if(.., |replica| replica.port == port));
            }
            None => {}
        }
    }

    /// The server is up again, with what a boot starts of what was there.
    fn boot(&mut self) {
        let Some(outage) = self.outage.take() else { return };
        let mut there = self.replicas.drain(..).chain(outage.ended).collect::<Vec<_>>();
        there.retain(|replica| self.is_booted(&replica.keeper));
        for replica in &mut there {
            replica.id = self.new_process();
            replica.ready = Some(Instant::now() + BOOT);
            replica.busy_until = Instant::now();
        }
        self.replicas = there;
        self.unseen_until = Instant::now();
        self.restart_nginx();
    }
}

/// The same, whatever a boot gave a replica for a process.
fn of_any_process(mut facts: Facts) -> Facts {
    for replica in &mut facts.replicas {
        replica.1 = ProcessId::GONE;
    }
    facts.replicas.sort();
    facts
}

/// Whether the swap was promoted, by its journal.
fn is_promoted(scene: &Scene, attempt: &Attempt) -> bool {
    let last = attempt.plan.steps.len() - 1;
    let is_last =
        |record: &RecordKind| matches!(record, RecordKind::Succeeded { step, .. } if *step == last);
    scene.records(attempt).iter().any(is_last)
}

/// Boots, brings the swap to its end as the agent does that comes then, and asserts that the world is the one before or the one after.
async fn settles(scene: &Scene, attempt: &Attempt, [before, after]: [&Facts; 2], what: &str) {
    for record in scene.records(attempt) {
        let verdict = matches!(record, RecordKind::Failed { .. } | RecordKind::UndoFailed { .. });
        assert!(!verdict, "{what}: {record:?}");
    }
    scene.host.world.borrow_mut().boot();
    tokio::time::sleep(BOOT).await;
    assert_eq!(scene.direction(attempt, Wanted::End).await, Direction::Back, "{what}");
    scene.recover(attempt, &[]).await.unwrap();
    let Some(RecordKind::Concluded { outcome }) = scene.records(attempt).pop() else {
        panic!("{what}: no conclusion")
    };
    assert_ne!(outcome, Outcome::Stuck, "{what}");
    let (now, wanted) = match is_promoted(scene, attempt) {
        true => (scene.facts().across_runs(), after.clone()),
        false => had_back(scene, attempt, before),
    };
    assert_eq!(of_any_process(now), of_any_process(wanted), "{what}");
}

async fn survives_a_shutdown_anywhere(kind: Kind) {
    let (calls, after) = clean(kind).await;
    let mut waited = 0;
    for (number, call) in calls.iter().enumerate() {
        for first in PARTS {
            let fault = Fault { call: number, wrong: Wrong::ShutsDown(first) };
            let what = format!("{kind:?}: {call:?} number {number}, {first:?} first");
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            match timeout(LONG, scene.execute(&attempt, &[fault])).await {
                Ok(ended) => assert_eq!(ended.unwrap().unwrap().failure, None, "{what}"),
                Err(_) => waited += 1,
            }
            settles(&scene, &attempt, [&before, &after], &what).await;
        }
    }
    assert!(waited > calls.len(), "{kind:?}: only {waited} shutdowns were met");
}

#[tokio::test(start_paused = true)]
async fn a_server_may_be_shut_down_anywhere_in_a_swap_away_from_somebodys_unit() {
    survives_a_shutdown_anywhere(Kind::FromUnit).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_may_be_shut_down_anywhere_in_a_swap_over_a_retained_replica() {
    survives_a_shutdown_anywhere(Kind::IntoRetained).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_may_be_shut_down_anywhere_in_a_cold_rollback() {
    survives_a_shutdown_anywhere(Kind::ColdRollback).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_may_be_shut_down_anywhere_in_a_rollback_to_somebodys_unit() {
    survives_a_shutdown_anywhere(Kind::BackToUnit).await;
}

/// Also while a dead agent's swap is unwound.
#[tokio::test(start_paused = true)]
async fn a_server_may_be_shut_down_anywhere_in_a_recovery() {
    let kind = Kind::FromUnit;
    let (calls, after) = clean(kind).await;
    // Where most is done and nothing is promoted: at the clock before the success of the last step is recorded.
    let is_late = |call: &Call| call.verb == "now" && matches!(call.stage, Stage::Act(_));
    let late = calls.iter().rposition(is_late).unwrap() - 1;
    let death = Fault { call: late, wrong: Wrong::Dies };
    let dead = async || {
        let (scene, attempt) = Scene::of(kind).await;
        let before = scene.facts();
        assert!(scene.execute(&attempt, &[death]).await.is_none(), "it lived on");
        (scene, attempt, before)
    };
    let (scene, attempt, _) = dead().await;
    scene.recover(&attempt, &[]).await.unwrap();
    for (number, call) in scene.host.calls().iter().enumerate() {
        for first in PARTS {
            let fault = Fault { call: number, wrong: Wrong::ShutsDown(first) };
            let what = format!("{call:?} number {number}, {first:?} first");
            let (scene, attempt, before) = dead().await;
            let _waits = timeout(LONG, scene.recover(&attempt, &[fault])).await;
            settles(&scene, &attempt, [&before, &after], &what).await;
        }
    }
}
