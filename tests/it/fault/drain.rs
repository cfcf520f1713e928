//! Draining is measured: by the engine's count, by nginx's old workers, and bounded by what the specification says.

use std::time::Duration;

use model_swap::executor;
use model_swap::model::event::EventKind;
use model_swap::model::failure::Failure;
use model_swap::model::spec::{OnTimeout, PinnedWorkers};
use tokio::time::Instant;

use super::scene::{A, Attempt, Scene};

/// What is set apart from the defaults.
struct Setting {
    on_timeout: OnTimeout,
    pinned_workers: PinnedWorkers,
    /// Connections of the workers that a reload leaves behind for good.
    pinned: Option<Option<usize>>,
}

const KEEP: Setting =
    Setting { on_timeout: OnTimeout::Keep, pinned_workers: PinnedWorkers::Wait, pinned: None };

/// After a first swap: the old model in slot a has lost its traffic.
async fn swapped(setting: Setting) -> (Scene, Attempt) {
    let mut scene = Scene::new();
    scene.spec.drain.on_timeout = setting.on_timeout;
    scene.spec.nginx.pinned_workers = setting.pinned_workers;
    scene.host.world.borrow_mut().pinned = setting.pinned;
    if setting.on_timeout == OnTimeout::Cut {
        scene.host.allow_cuts();
    }
    let attempt = scene.promoted("s-1", "Qwen/New").await;
    (scene, attempt)
}

/// Performs a step after `promote`: 0 is `drain`, 1 is `retire`.
async fn later(scene: &Scene, attempt: &Attempt, step: usize) -> Result<(), Failure> {
    let (mut cx, mut journal) = scene.reopen(attempt);
    cx.replicas = attempt.replicas.clone();
    scene.host.arm(&[]);
    let index = attempt.plan.steps.len() + step;
    executor::perform(&cx, &mut journal, index).await.expect("a journal")
}

/// Lets the old replica finish a request after a while.
async fn finish_after(scene: &Scene, time: Duration) {
    tokio::time::sleep(time).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 0;
}

fn overdue(scene: &Scene, attempt: &Attempt) -> Option<Failure> {
    scene.events(attempt).into_iter().find_map(|event| match event {
        EventKind::Overdue { failure } => Some(failure),
        _ => None,
    })
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_drained_when_its_last_request_ends_and_then_retired() {
    let (scene, attempt) = swapped(KEEP).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 1;
    let begin = Instant::now();
    let (drained, ()) =
        tokio::join!(later(&scene, &attempt, 0), finish_after(&scene, Duration::from_secs(20)));
    drained.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(20));
    assert_eq!(overdue(&scene, &attempt), None);
    later(&scene, &attempt, 1).await.unwrap();
    assert_eq!(scene.host.world.borrow().on(A).map(|replica| replica.id), None);
    assert_eq!(scene.dir.load().unwrap().retained, None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_nginx_points_at_again_and_that_is_never_idle_is_not_waited_for() {
    let (scene, attempt) = swapped(KEEP).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 1;
    let point_back = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        scene.host.world.borrow_mut().point(A);
    };
    let drain = tokio::time::timeout(Duration::from_secs(60), later(&scene, &attempt, 0));
    let (drained, ()) = tokio::join!(drain, point_back);
    let failure = drained.expect("the drain waits for ever").unwrap_err();
    assert!(failure.message.contains("nginx points at port"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn draining_and_retiring_twice_is_the_same_as_once() {
    let (scene, attempt) = swapped(KEEP).await;
    for step in [0, 1] {
        later(&scene, &attempt, step).await.unwrap();
    }
    let facts = scene.facts();
    // The agent died when a step was done, and its record was not written.
    let path = scene.dir.swap(&attempt.swap).join("journal.ndjson");
    let text = std::fs::read_to_string(&path).unwrap();
    let whole = text.trim_end().rfind('\n').unwrap() + 1;
    std::fs::write(&path, &text[..whole]).unwrap();
    later(&scene, &attempt, 1).await.unwrap();
    assert_eq!(scene.facts(), facts);
}

#[tokio::test(start_paused = true)]
async fn a_kept_replica_is_told_of_at_its_deadline_and_drained_in_the_end() {
    let (scene, attempt) = swapped(KEEP).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 1;
    let long = Duration::from_secs(3600);
    let (drained, ()) = tokio::join!(later(&scene, &attempt, 0), finish_after(&scene, long));
    drained.unwrap();
    let overdue = overdue(&scene, &attempt).unwrap();
    assert!(overdue.message.contains("1 request in the engine"), "{overdue}");
    later(&scene, &attempt, 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fail_gives_up_at_the_deadline_and_leaves_the_replica_running() {
    let (scene, attempt) = swapped(Setting { on_timeout: OnTimeout::Fail, ..KEEP }).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 3;
    let facts = scene.facts();
    let failure = later(&scene, &attempt, 0).await.unwrap_err();
    assert!(failure.message.contains("3 requests in the engine"), "{failure}");
    assert_eq!(scene.facts(), facts);
    // Tried again, it is tried again: a failed drain is no dead end.
    scene.host.world.borrow_mut().on_mut(A).stubborn = 0;
    later(&scene, &attempt, 0).await.unwrap();
    later(&scene, &attempt, 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_cut_stops_a_replica_with_requests() {
    let (scene, attempt) = swapped(Setting { on_timeout: OnTimeout::Cut, ..KEEP }).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 3;
    later(&scene, &attempt, 0).await.unwrap();
    later(&scene, &attempt, 1).await.unwrap();
    assert!(scene.host.world.borrow().on(A).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_past_nginx_after_the_drain_is_not_cut() {
    let (scene, attempt) = swapped(KEEP).await;
    later(&scene, &attempt, 0).await.unwrap();
    scene.host.world.borrow_mut().on_mut(A).stubborn = 1;
    let failure = later(&scene, &attempt, 1).await.unwrap_err();
    assert!(failure.message.contains("1 request in the engine"), "{failure}");
    assert_eq!(scene.host.count("stop"), 0);
    scene.host.world.borrow_mut().on_mut(A).stubborn = 0;
    later(&scene, &attempt, 1).await.unwrap();
    assert_eq!(scene.host.count("stop"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_old_worker_counts_as_long_as_it_is_there() {
    let pinned = Some(Some(1));
    let (scene, attempt) = swapped(Setting { on_timeout: OnTimeout::Fail, pinned, ..KEEP }).await;
    let failure = later(&scene, &attempt, 0).await.unwrap_err();
    assert!(failure.message.contains("with 1 connection to the port"), "{failure}");

    let (scene, attempt) = swapped(Setting { pinned, ..KEEP }).await;
    let worker = scene.host.world.borrow().workers[0].id;
    let ends = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.host.world.borrow_mut().kill(worker);
    };
    let (drained, ()) = tokio::join!(later(&scene, &attempt, 0), ends);
    drained.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pinned_worker_without_connections_is_ignored_after_its_time_and_not_before() {
    let pinned_workers = PinnedWorkers::IgnoreAfter(Duration::from_secs(10));
    for (connections, ignored) in [(Some(0), true), (Some(1), false), (None, false)] {
        let pinned = Some(connections);
        let setting = Setting { on_timeout: OnTimeout::Fail, pinned_workers, pinned };
        let (scene, attempt) = swapped(setting).await;
        let begin = Instant::now();
        let drained = later(&scene, &attempt, 0).await;
        assert_eq!(drained.is_ok(), ignored, "{connections:?}: {drained:?}");
        assert!(begin.elapsed() >= Duration::from_secs(10), "{connections:?}: too early");
        assert_eq!(begin.elapsed() < Duration::from_secs(12), ignored, "{connections:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_count_is_not_taken_for_idle() {
    let (scene, attempt) = swapped(Setting { on_timeout: OnTimeout::Fail, ..KEEP }).await;
    scene.host.world.borrow_mut().on_mut(A).ready = None;
    let failure = later(&scene, &attempt, 0).await.unwrap_err();
    assert!(failure.message.contains("an unknown number of requests"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn the_only_model_that_is_left_is_not_retired() {
    for dies_while_drained in [true, false] {
        let (scene, attempt) = swapped(KEEP).await;
        let dies = || {
            let mut world = scene.host.world.borrow_mut();
            let new = world.on(attempt.plan.candidate.port).unwrap().id;
            world.kill(new);
            // What nginx points at is gone, and a person decides what serves.
            scene.host.allow_nobody();
        };
        scene.host.world.borrow_mut().on_mut(A).stubborn = 1;
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if dies_while_drained {
                dies();
            }
            finish_after(&scene, Duration::from_secs(3)).await;
        };
        let (_drained, ()) = tokio::join!(later(&scene, &attempt, 0), meanwhile);
        assert_eq!(scene.host.count("stop"), 0);
        if !dies_while_drained {
            dies();
        }
        let failure = later(&scene, &attempt, 1).await.unwrap_err();
        assert!(failure.message.contains("are not seen to go there"), "{failure}");
        assert_eq!(scene.host.count("stop"), 0);
        assert!(scene.host.world.borrow().on(A).is_some(), "the last model was stopped");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_dies_meanwhile_is_drained_and_retired() {
    let (scene, attempt) = swapped(KEEP).await;
    scene.host.world.borrow_mut().on_mut(A).stubborn = 1;
    let old = scene.host.world.borrow().on(A).unwrap().id;
    let dies = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.host.world.borrow_mut().kill(old);
    };
    let (drained, ()) = tokio::join!(later(&scene, &attempt, 0), dies);
    drained.unwrap();
    later(&scene, &attempt, 1).await.unwrap();
    assert_eq!(scene.dir.load().unwrap().retained, None);
}
