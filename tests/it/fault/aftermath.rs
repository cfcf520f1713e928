//! After `promote`, after a swap and after a rollback: every verb fails, the agent dies at every call, others take over.
//! What serves is never touched, and what served before is drained and retired once and for good, as soon as it can be.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use model_swap::agent::aftermath;
use model_swap::executor;
use model_swap::host::process;
use model_swap::lease::Lease;
use model_swap::model::event::{Closing, EventKind};
use model_swap::model::failure::Failure;
use model_swap::model::ids::ProcessId;
use model_swap::model::outcome::Outcome;
use model_swap::model::record::RecordKind;
use model_swap::model::state::{Holder, Requester};

use tokio::time::Instant;

use super::host::{Call, Fault, SURE, Stage};
use super::scene::{A, Attempt, Facts, Kind, Scene, until_death};
use super::wrong::Wrong;

impl Scene {
    /// Does what comes after `promote`, as the swap's own agent goes on to or the one that takes over from it; how it closes
    /// the story, or `None` if it died of a fault.
    pub(crate) async fn aftermath(&self, attempt: &Attempt, faults: &[Fault]) -> Option<Closing> {
        let (mut cx, mut journal) = self.reopen(attempt);
        cx.replicas = attempt.replicas.clone();
        self.host.arm(faults);
        // On the heap: a test's thread has a small stack.
        let work = Box::pin(aftermath::aftermath(&cx, &mut journal, holder(attempt)));
        if until_death(work).await.is_none() {
            self.host.bury();
            return None;
        }
        self.events(attempt).into_iter().rev().find_map(|event| match event {
            EventKind::Closed(closing) => Some(closing),
            _ => None,
        })
    }

    /// Whether an agent died that held the lease.
    pub(crate) fn is_left_by_the_dead(&self) -> bool {
        let own = Holder::clone;
        Lease::take_from_the_dead(&self.dir.root(), own).expect("nobody lives").is_some()
    }

    /// Does what the agent does that comes after one that died after `promote`: its lease first, then what it has left.
    pub(crate) async fn go_on(&self, attempt: &Attempt) {
        let own = |_: &Holder| holder(attempt);
        let died = Lease::take_from_the_dead(&self.dir.root(), own).expect("nobody lives");
        if let Some(mut lease) = died {
            assert_eq!(Box::pin(self.recover(attempt, &[])).await.expect("it lives"), None);
            lease.recovered(&holder(attempt)).expect("a disk");
        }
        let state = self.dir.load().expect("a state");
        if state.retained.is_some_and(|retained| retained.swap == attempt.swap) {
            Box::pin(self.aftermath(attempt, &[])).await;
        }
    }
}

fn holder(attempt: &Attempt) -> Holder {
    Holder {
        swap: attempt.swap.clone(),
        since: Timestamp::UNIX_EPOCH,
        process: process::own(),
        command: "swap".to_owned(),
        requester: Requester::default(),
        recovers: None,
    }
}

/// A command that has its outcome, and what it left is still there.
pub(super) async fn done(kind: Kind) -> (Scene, Attempt) {
    let (scene, attempt) = Box::pin(Scene::of(kind)).await;
    let conclusion = Box::pin(scene.execute(&attempt, &[])).await.unwrap().unwrap();
    assert_eq!(conclusion.failure, None, "{kind:?}");
    (scene, attempt)
}

/// The calls of an aftermath that goes well, the world after it, and how many records its journal has then.
pub(super) async fn clean(kind: Kind) -> (Vec<Call>, Facts, usize) {
    let (scene, attempt) = done(kind).await;
    let port = attempt.plan.incumbent.as_ref().unwrap().port;
    let closing = scene.aftermath(&attempt, &[]).await;
    assert!(matches!(closing, Some(Closing::Retired { .. })), "{kind:?}: {closing:?}");
    let facts = scene.facts().across_runs();
    assert_eq!(facts, facts.clone().without(port), "{kind:?}: something is left");
    (scene.host.calls(), facts, scene.records(&attempt).len())
}

/// Asserts that all is drained and retired, and that nobody who comes after changes anything.
pub(super) async fn assert_retired(scene: &Scene, attempt: &Attempt, after: &Facts, what: &str) {
    let (facts, records) = (scene.facts(), scene.records(attempt));
    assert_eq!(facts.clone().across_runs(), *after, "{what}");
    Box::pin(scene.go_on(attempt)).await;
    assert_eq!((scene.facts(), scene.records(attempt)), (facts, records), "{what}");
}

/// Asserts that another swap begins, and that it ends with nothing left of this one.
async fn assert_another_begins(scene: &Scene, what: &str) {
    let next = scene.swap("s-20", "Qwen/Next").await;
    let conclusion = Box::pin(scene.execute(&next, &[])).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::Promoted, "{what}: {conclusion:#?}");
    let closing = scene.aftermath(&next, &[]).await;
    assert!(matches!(closing, Some(Closing::Retired { .. })), "{what}: {closing:?}");
    let facts = scene.facts();
    let serving = facts.state.serving.expect("something serves");
    assert_eq!(
        (facts.loaded, serving.revision.model.as_str()),
        (next.plan.candidate.port, "Qwen/Next")
    );
    assert_eq!(facts.replicas.len(), 1, "{what}: {:#?}", facts.replicas);
}

async fn whatever_fails(kind: Kind) {
    let (calls, after, _) = clean(kind).await;
    let mut late = BTreeSet::new();
    for (number, call) in calls.iter().enumerate().filter(|(_, call)| !SURE.contains(&call.verb)) {
        for wrong in [Wrong::Fails, Wrong::DoesAndFails] {
            let what = format!("{kind:?}: {call:?} number {number} {wrong:?}");
            let (scene, attempt) = done(kind).await;
            let before = scene.facts();
            let closing = scene.aftermath(&attempt, &[Fault { call: number, wrong }]).await;
            assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
            let now = scene.facts();
            assert_eq!((now.loaded, &now.lines), (before.loaded, &before.lines), "{what}");
            assert_eq!(now.state.serving, before.state.serving, "{what}");
            assert!(matches!(closing, Some(Closing::Retired { .. })), "{what}: {closing:?}");
            match &overdue(&scene, &attempt)[..] {
                [] => {}
                [failure] => {
                    let why = format!("{failure:?}");
                    assert!(why.contains("as ordered"), "{what}: {why}");
                    late.insert(call.verb);
                }
                several => panic!("{what}: {several:#?}"),
            }
            assert_retired(&scene, &attempt, &after, &what).await;
            assert_another_begins(&scene, &what).await;
        }
    }
    for verb in ["find", "stop", "upstream"] {
        assert!(late.contains(verb), "{kind:?}: a failure of {verb} was overlooked: {late:?}");
    }
}

/// Why what was to be retired was kept, as it was told.
fn overdue(scene: &Scene, attempt: &Attempt) -> Vec<Failure> {
    let told = |event| match event {
        EventKind::Overdue { failure } => Some(failure),
        _ => None,
    };
    scene.events(attempt).into_iter().filter_map(told).collect()
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_retired_while_nginx_is_away_is_retired_when_it_is_back() {
    let (_, after, _) = clean(Kind::First).await;
    for minutes in [1, 60, 600] {
        let (scene, attempt) = done(Kind::First).await;
        let before = scene.facts();
        let over = Instant::now() + scene.spec.retain;
        scene.host.world.borrow_mut().unseen_until = over + Duration::from_secs(60 * minutes);
        let meanwhile = async {
            tokio::time::sleep_until(over + Duration::from_secs(50)).await;
            let now = scene.facts();
            assert_eq!((&now.state, &now.claims), (&before.state, &before.claims));
            // Another command may begin.
            assert!(Lease::holder(&scene.dir.root()).is_none(), "it holds the lease");
            assert_eq!(overdue(&scene, &attempt).len(), 1);
            let report =
                executor::report_unseen(&scene.host, &scene.dir, &attempt.asked).await.unwrap();
            assert_eq!(report.rollback_until, None, "that time is over");
            let why = report.overdue.expect("a reason").message;
            assert!(why.contains("nginx cannot be seen"), "{why}");
        };
        let (closing, ()) = tokio::join!(scene.aftermath(&attempt, &[]), meanwhile);
        assert!(matches!(closing, Some(Closing::Retired { .. })), "{minutes}: {closing:?}");
        assert!(Instant::now() < over + Duration::from_secs(60 * (minutes + 11)), "{minutes}");
        assert_eq!(overdue(&scene, &attempt).len(), 1, "{minutes}");
        assert_retired(&scene, &attempt, &after, &format!("{minutes} minutes")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_person_points_nginx_at_while_it_cannot_be_retired_is_kept() {
    let (scene, attempt) = done(Kind::First).await;
    let over = Instant::now() + scene.spec.retain;
    scene.host.world.borrow_mut().unseen_until = over + Duration::from_secs(600);
    let points = async {
        tokio::time::sleep_until(over + Duration::from_secs(300)).await;
        scene.host.world.borrow_mut().point(A);
    };
    let (closing, ()) = tokio::join!(scene.aftermath(&attempt, &[]), points);
    let Some(Closing::Kept { failure, .. }) = closing else { panic!("{closing:?}") };
    assert!(failure.message.contains("again: what serves is not retired"), "{failure:?}");
    assert_eq!(overdue(&scene, &attempt).len(), 1);
}

/// A warm rollback that comes to nothing after its cutover: while the old model is drained, and when its time is over.
#[tokio::test(start_paused = true)]
async fn what_another_command_has_nginx_point_at_for_a_while_is_retired_after_that() {
    const WHILE: Duration = Duration::from_secs(120);
    let (_, after, _) = clean(Kind::First).await;
    let retain = Scene::new().spec.retain;
    for begins in [Duration::ZERO, retain - WHILE / 2] {
        let (scene, attempt) = done(Kind::First).await;
        let other = async {
            tokio::time::sleep(begins).await;
            let held = Holder { swap: "s-20".parse().unwrap(), ..holder(&attempt) };
            let lease = Lease::take(&scene.dir.root(), &held).unwrap();
            scene.host.world.borrow_mut().point(A);
            tokio::time::sleep(WHILE).await;
            scene.host.world.borrow_mut().point(attempt.plan.candidate.port);
            drop(lease);
        };
        let (closing, ()) = tokio::join!(scene.aftermath(&attempt, &[]), other);
        let what = format!("after {begins:?}");
        assert!(matches!(closing, Some(Closing::Retired { .. })), "{what}: {closing:?}");
        assert_retired(&scene, &attempt, &after, &what).await;
    }
}

/// Whoever brings that one's swap to its end decides where nginx points.
#[tokio::test(start_paused = true)]
async fn what_a_dead_command_has_left_nginx_pointing_at_is_not_kept_for_good() {
    let (scene, attempt) = done(Kind::First).await;
    let gone = ProcessId { start: 0, ..process::own() };
    let held = Holder { swap: "s-20".parse().unwrap(), process: gone, ..holder(&attempt) };
    Lease::take(&scene.dir.root(), &held).unwrap().leave_to_the_next();
    scene.host.world.borrow_mut().point(A);
    assert_eq!(scene.aftermath(&attempt, &[]).await, None);
    let closed = |record: &RecordKind| matches!(record, RecordKind::Closed);
    assert!(!scene.records(&attempt).iter().any(closed), "nobody retires it any more");
}

#[tokio::test(start_paused = true)]
async fn another_command_takes_over_what_cannot_be_retired() {
    let (scene, attempt) = done(Kind::First).await;
    let over = Instant::now() + scene.spec.retain;
    scene.host.world.borrow_mut().unseen_until = over + Duration::from_secs(6000);
    let takes = async {
        tokio::time::sleep_until(over + Duration::from_secs(300)).await;
        let mut state = scene.dir.load().unwrap();
        state.retained = None;
        scene.dir.save(&state).unwrap();
    };
    let (closing, ()) = tokio::join!(scene.aftermath(&attempt, &[]), takes);
    assert_eq!(closing, Some(Closing::Superseded { by: None }));
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_after_a_swap_what_serves_stays_and_the_next_swap_begins() {
    for kind in [Kind::First, Kind::Verified, Kind::IntoRetained, Kind::Plain, Kind::FromUnit] {
        whatever_fails(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_after_a_rollback_what_serves_stays_and_the_next_swap_begins() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        whatever_fails(kind).await;
    }
}

async fn dies_anywhere(kind: Kind) {
    let (calls, after, all) = clean(kind).await;
    let mut boundaries = BTreeSet::new();
    let mut under_lease = 0;
    for (number, call) in calls.iter().enumerate() {
        for wrong in [Wrong::Dies, Wrong::DoesAndDies] {
            if SURE.contains(&call.verb) && wrong == Wrong::DoesAndDies {
                continue;
            }
            let what = format!("{kind:?}: {call:?} number {number} {wrong:?}");
            let (scene, attempt) = done(kind).await;
            let before = scene.records(&attempt).len();
            let closing = scene.aftermath(&attempt, &[Fault { call: number, wrong }]).await;
            assert_eq!(closing, None, "{what}: it lived on");
            assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
            under_lease += usize::from(scene.is_left_by_the_dead());
            boundaries.insert(scene.records(&attempt).len() - before);
            Box::pin(scene.go_on(&attempt)).await;
            assert_retired(&scene, &attempt, &after, &what).await;
            let records = scene.records(&attempt);
            let concluded = |record: &&RecordKind| matches!(record, RecordKind::Concluded { .. });
            assert_eq!(records.iter().filter(concluded).count(), 1, "{what}: {records:#?}");
        }
    }
    let (_scene, attempt) = done(kind).await;
    let until_promote = _scene.records(&attempt).len();
    assert_eq!(boundaries, (0..=all - until_promote).collect(), "{kind:?}");
    assert!(under_lease >= 5, "{kind:?}: only {under_lease} died with the lease");
    let retiring = |call: &Call| call.stage == Stage::Act(attempt.plan.all_steps().count() - 1);
    assert!(calls.iter().any(|call| call.verb == "stop" && retiring(call)), "{kind:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_after_a_swap() {
    for kind in [Kind::First, Kind::Verified, Kind::IntoRetained, Kind::Plain, Kind::FromUnit] {
        dies_anywhere(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_may_die_anywhere_after_a_rollback() {
    for kind in [Kind::Rollback, Kind::ColdRollback, Kind::ColdAdopted, Kind::BackToUnit] {
        dies_anywhere(kind).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_its_unit_brings_back_after_a_swap_was_planned_without_it_is_retired() {
    let scene = Scene::new();
    let port = scene.promoted("s-1", "Qwen/New").await.plan.candidate.port;
    scene.host.allow_nobody();
    let gone = {
        let mut world = scene.host.world.borrow_mut();
        let at = world.replicas.iter().position(|replica| replica.port == port).unwrap();
        world.replicas.remove(at)
    };
    let attempt = scene.swap("s-2", "Qwen/Newer").await;
    assert_eq!(attempt.plan.incumbent, None);
    let conclusion = Box::pin(scene.execute(&attempt, &[])).await.unwrap().unwrap();
    assert_eq!((conclusion.outcome, conclusion.failure), (Outcome::Promoted, None));
    scene.host.world.borrow_mut().replicas.push(gone);
    let closing = scene.aftermath(&attempt, &[]).await;
    assert_eq!(closing, Some(Closing::Retired { slot: "b".parse().unwrap() }));
    let world = scene.host.world.borrow();
    assert!(world.replicas.iter().all(|replica| replica.port != port), "it runs on");
    assert!(world.booted.iter().all(|unit| !unit.name.ends_with(".b.service")), "a boot starts it");
    assert_eq!(scene.dir.load().unwrap().retained, None);
}
