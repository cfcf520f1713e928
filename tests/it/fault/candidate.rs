//! A candidate that comes to nothing leaves nothing, and does not keep anybody waiting.

use std::time::Duration;

use model_swap::confirmation;
use model_swap::host::gpu::Gpus;
use model_swap::model::event::EventKind;
use model_swap::model::ids::Port;
use model_swap::model::outcome::Outcome;
use model_swap::model::spec::{Gpu, Slot};
use model_swap::model::step::Step;
use model_swap::service_dir::ServiceDir;
use tokio::time::Instant;

use super::host::{Call, Fault, Stage};
use super::scene::{A, Attempt, Kind, Scene};
use super::world::Struck;
use super::wrong::Wrong;

/// Asserts that the swap failed for this reason, and left the world as it was.
async fn assert_failed(scene: &Scene, attempt: &Attempt, reason: &str) {
    let before = scene.facts();
    let conclusion = scene.execute(attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::Failed, "{conclusion:#?}");
    let failure = conclusion.failure.unwrap();
    assert!(failure.message.contains(reason), "{failure:#?}");
    assert_eq!(scene.facts(), before);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_never_listens_is_stopped_at_once_when_its_time_is_over() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.host.world.borrow_mut().load_time = None;
    let begin = Instant::now();
    assert_failed(&scene, &attempt, "not ready within 1m").await;
    // In the world's own time, which nothing else moves.
    assert!(begin.elapsed() < Duration::from_secs(62), "waited {:?}", begin.elapsed());
    assert_eq!(scene.host.count("stop"), 1);
}

/// As an engine does that is started with `--disable-log-stats`, that hangs, or that is another server.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_counts_no_requests_and_never_got_one_is_stopped_at_once() {
    for kind in [Kind::First, Kind::Plain, Kind::ColdAdopted] {
        let (scene, attempt) = Scene::of(kind).await;
        scene.host.world.borrow_mut().uncounted = Some(attempt.plan.candidate.port);
        let begin = Instant::now();
        assert_failed(&scene, &attempt, "/metrics").await;
        assert!(begin.elapsed() < scene.spec.drain.timeout, "waited {:?}", begin.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_counts_no_requests_is_stopped_by_an_abort_and_by_whoever_recovers() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let calls = scene.host.calls();
    let at = |verb| calls.iter().position(|call| call.verb == verb).unwrap();
    let hangs = async |wrong| {
        let (scene, attempt) = Scene::of(Kind::First).await;
        scene.host.world.borrow_mut().uncounted = Some(attempt.plan.candidate.port);
        let before = scene.facts();
        let fault = Fault { call: at("in_flight"), wrong };
        let executed = scene.execute(&attempt, &[fault]).await;
        (scene, attempt, before, executed)
    };
    let (scene, _, before, aborted) = hangs(Wrong::Aborts).await;
    assert_eq!(aborted.unwrap().unwrap().outcome, Outcome::Aborted);
    assert_eq!(scene.facts(), before);
    let (scene, attempt, before, died) = hangs(Wrong::Dies).await;
    assert!(died.is_none(), "it lived on");
    let recovered = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(recovered.outcome, Outcome::Failed, "{recovered:#?}");
    assert_eq!(scene.facts(), before);
}

/// Requests that it got there nobody has counted.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_counts_no_requests_is_not_stopped_once_its_cutover_was_begun() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let loads = scene.host.calls().iter().position(|call| call.verb == "load").unwrap();
    let (scene, attempt) = Scene::of(Kind::First).await;
    let dies = Fault { call: loads, wrong: Wrong::DoesAndDies };
    assert!(scene.execute(&attempt, &[dies]).await.is_none(), "it lived on");
    scene.host.world.borrow_mut().uncounted = Some(attempt.plan.candidate.port);
    for recovered in [scene.recover(&attempt, &[]).await.unwrap(), scene.repair(&attempt).await] {
        let recovered = recovered.unwrap();
        assert_eq!(recovered.outcome, Outcome::Stuck, "{recovered:#?}");
        assert!(recovered.failure.unwrap().message.contains("is not drained"));
        assert_eq!(scene.host.count("stop"), 0);
    }
    scene.host.world.borrow_mut().uncounted = None;
    assert_eq!(scene.repair(&attempt).await.unwrap().outcome, Outcome::RolledBack);
}

/// A monitor that has it write something time and again, or a second proxy.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_somebody_asks_past_nginx_is_not_waited_for_for_ever_where_no_cutover_was_begun()
 {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.host.world.borrow_mut().walled = Some(attempt.plan.candidate.port);
    let asked = async {
        while scene.host.world.borrow().replicas.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        scene.host.world.borrow_mut().replicas[1].stubborn = 1;
    };
    let begin = Instant::now();
    tokio::join!(assert_failed(&scene, &attempt, "nginx would not reach the replica"), asked);
    // Whatever may end by itself is given its time.
    assert!(begin.elapsed() >= scene.spec.drain.timeout, "{:?}", begin.elapsed());
    let told = |event: &EventKind| matches!(event, EventKind::Warning { text } if text.contains("asks of it past nginx") && text.contains("1 request in the engine"));
    assert!(scene.events(&attempt).iter().any(told), "nobody is told");
}

/// Nobody can tell then whose requests it counts.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_counts_requests_is_not_stopped_once_its_cutover_was_begun() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let loads = scene.host.calls().iter().position(|call| call.verb == "load").unwrap();
    let (scene, attempt) = Scene::of(Kind::First).await;
    let dies = Fault { call: loads, wrong: Wrong::Dies };
    assert!(scene.execute(&attempt, &[dies]).await.is_none(), "it lived on");
    scene.host.world.borrow_mut().on_mut(attempt.plan.candidate.port).stubborn = 1;
    let recovered = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(recovered.outcome, Outcome::Stuck, "{recovered:#?}");
    assert_eq!(scene.host.count("stop"), 0);
    scene.host.world.borrow_mut().on_mut(attempt.plan.candidate.port).stubborn = 0;
    assert_eq!(scene.repair(&attempt).await.unwrap().outcome, Outcome::Failed);
}

/// systemd or Docker may not answer for a moment, and who stops the candidate waits for them.
#[tokio::test(start_paused = true)]
async fn traffic_that_is_back_gets_nobody_stuck_where_the_candidate_cannot_be_seen_for_a_moment() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let promoted = scene.host.calls().iter().position(|call| call.verb == "promoted").unwrap();
    let fails = Fault { call: promoted, wrong: Wrong::Fails };
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[fails]).await.unwrap().unwrap();
    let looks = |call: &Call| call.verb == "find" && matches!(call.stage, Stage::Undo(_));
    let unseen = Fault { call: scene.host.calls().iter().position(looks).unwrap(), ..fails };
    let (scene, attempt) = Scene::of(Kind::First).await;
    let before = scene.facts();
    let conclusion = scene.execute(&attempt, &[fails, unseen]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    assert_eq!(scene.facts(), before);
}

/// An upgrade starts it anew, and all that it keeps ends.
#[tokio::test(start_paused = true)]
async fn what_supervises_a_candidate_is_waited_for_before_that_is_stopped_and_not_for_ever() {
    for (minutes, expected) in [(2, Outcome::Failed), (6, Outcome::Stuck)] {
        let (scene, attempt) = Scene::of(Kind::First).await;
        let before = scene.facts();
        scene.host.world.borrow_mut().load_time = None;
        let (cx, mut journal) = scene.begin(&attempt);
        let away = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let mut world = scene.host.world.borrow_mut();
            world.away_until = Instant::now() + Duration::from_secs(60 * minutes);
            let candidate = world.replicas[1].id;
            world.kill(candidate);
        };
        let (conclusion, ()) = tokio::join!(model_swap::executor::execute(&cx, &mut journal), away);
        let conclusion = conclusion.unwrap();
        assert_eq!(conclusion.outcome, expected, "{conclusion:#?}");
        let told = |event: &EventKind| matches!(event, EventKind::Progress { text, .. } if text.contains("it does not answer"));
        assert!(scene.events(&attempt).iter().any(told), "nobody is told why it waits");
        if expected == Outcome::Stuck {
            let repaired = scene.repair(&attempt).await.unwrap();
            assert_eq!(repaired.outcome, Outcome::Failed, "{repaired:#?}");
        }
        assert_eq!(scene.facts(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_dies_while_it_loads_is_noticed_at_once() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.host.world.borrow_mut().load_time = None;
    let begin = Instant::now();
    let dies = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let candidate = scene.host.world.borrow().replicas[1].id;
        scene.host.world.borrow_mut().kill(candidate);
    };
    tokio::join!(assert_failed(&scene, &attempt, "ended before it was ready"), dies);
    assert!(begin.elapsed() < Duration::from_secs(6), "waited {:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_candidate_of_the_wrong_model_never_gets_traffic() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    let wrong = async {
        while scene.host.world.borrow().replicas.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        scene.host.world.borrow_mut().replicas[1].root = "Qwen/Wrong".to_owned();
    };
    tokio::join!(assert_failed(&scene, &attempt, "it serves chat (Qwen/Wrong)"), wrong);
    assert_eq!(scene.host.count("load"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_nginx_does_not_reach_never_gets_traffic() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.host.world.borrow_mut().walled = Some(attempt.plan.candidate.port);
    assert_failed(&scene, &attempt, "nginx would not reach the replica in slot b").await;
    assert_eq!(scene.host.count("load"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_nobody_confirms_is_rolled_back_when_the_time_is_over() {
    let (scene, attempt) = Scene::of(Kind::Verified).await;
    let before = scene.facts();
    let (cx, mut journal) = scene.begin(&attempt);
    // Of an attempt before, which an agent that died has told.
    confirmation::give(&scene.dir, &attempt.swap, "0123").unwrap();
    let begin = Instant::now();
    let conclusion = model_swap::executor::execute(&cx, &mut journal).await.unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    let failure = conclusion.failure.unwrap();
    assert!(failure.message.contains("nobody confirmed within 30s"), "{failure:#?}");
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(30) && took < Duration::from_secs(33), "{took:?}");
    assert_eq!(scene.facts(), before);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_dies_while_it_is_verified_is_rolled_back_at_once() {
    let (scene, attempt) = Scene::of(Kind::Verified).await;
    let before = scene.facts();
    let (cx, mut journal) = scene.begin(&attempt);
    let dies = async {
        while scene.host.world.borrow().loaded == A {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let candidate = scene.host.world.borrow().replicas[1].id;
        scene.host.world.borrow_mut().kill(candidate);
        // The upstream points at nobody until it is undone.
        scene.host.allow_nobody();
    };
    let begin = Instant::now();
    let (conclusion, ()) = tokio::join!(model_swap::executor::execute(&cx, &mut journal), dies);
    let conclusion = conclusion.unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    assert!(conclusion.failure.unwrap().message.contains("ended before it was promoted"));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(scene.facts().loaded, before.loaded);
}

/// As Docker does from the cutover on.
#[tokio::test(start_paused = true)]
async fn a_candidate_that_its_keeper_started_again_is_promoted_only_if_it_is_ready() {
    for kind in [Kind::First, Kind::Verified] {
        for (struck, reason) in [
            (Struck::Answers, None),
            (Struck::Loads, Some("ended before it was promoted")),
            (Struck::IsAnother, Some("it serves chat (Qwen/Wrong)")),
        ] {
            let (scene, attempt) = Scene::of(kind).await;
            let before = scene.facts();
            scene.host.world.borrow_mut().struck = Some(struck);
            let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
            let Some(reason) = reason else {
                assert_eq!(conclusion.outcome, Outcome::Promoted, "{conclusion:#?}");
                let runs = scene.host.world.borrow().on(attempt.plan.candidate.port).unwrap().id;
                assert_eq!(scene.facts().state.serving.unwrap().main, runs);
                continue;
            };
            assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
            let failure = conclusion.failure.unwrap();
            assert!(failure.message.contains(reason), "{kind:?}, {struck:?}: {failure:#?}");
            assert_eq!(scene.facts(), before, "{kind:?}, {struck:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_dies_while_another_service_reloads_nginx_never_gets_traffic() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    let other = ServiceDir::open(scene.folder.path(), &"code".parse().unwrap()).unwrap();
    let at = |is_it: fn(&Step) -> bool| attempt.plan.steps.iter().position(|p| is_it(&p.step));
    let loads = at(|step| matches!(step, Step::AwaitReady { .. }));
    let cuts_over = at(|step| matches!(step, Step::CutOver { .. }));
    let begun = async |step: Option<usize>| {
        let is_it =
            |event| matches!(event, EventKind::StepStarted { index } if Some(index) == step);
        while !scene.events(&attempt).into_iter().any(is_it) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let dies = async {
        begun(loads).await;
        let lock = other.try_lock_host().unwrap().unwrap();
        begun(cuts_over).await;
        let candidate = scene.host.world.borrow().replicas[1].id;
        scene.host.world.borrow_mut().kill(candidate);
        drop(lock);
    };
    tokio::join!(assert_failed(&scene, &attempt, "does not answer as ready any more"), dies);
    assert_eq!(scene.host.count("load"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_another_service_has_claimed_by_its_other_name_is_not_free() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    let other = ServiceDir::open(scene.folder.path(), &"code".parse().unwrap()).unwrap();
    let place = Slot { port: Port(9001), gpus: vec![Gpu::named("GPU-1")] };
    let lock = other.try_lock_host().unwrap().unwrap();
    other.claim(&lock, (&"a".parse().unwrap(), &place), &Gpus::default()).unwrap();
    drop(lock);
    assert_failed(&scene, &attempt, "GPU 1 (GPU-1) is reserved by service code, slot a").await;
    assert_eq!(scene.host.count("start"), 0);
}

/// The GPU of a model that somebody had started by hand is claimed under the lock that every other service's claims take.
#[tokio::test(start_paused = true)]
async fn what_a_promotion_claims_it_claims_under_the_lock_of_the_host() {
    let (scene, attempt) = Scene::of(Kind::Verified).await;
    let claim = scene.folder.path().join("claims/gpu-0");
    let (cx, mut journal) = scene.begin(&attempt);
    let other = ServiceDir::open(scene.folder.path(), &"code".parse().unwrap()).unwrap();
    let claims = async {
        let nonce = loop {
            let nonce = scene.events(&attempt).into_iter().find_map(|event| match event {
                EventKind::AwaitsWord { nonce } => Some(nonce),
                _ => None,
            });
            match nonce {
                Some(nonce) => break nonce,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let lock = other.try_lock_host().unwrap().unwrap();
        confirmation::give(&scene.dir, &attempt.swap, &nonce).unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!claim.exists(), "claimed while another service held the lock");
        drop(lock);
    };
    let (conclusion, ()) = tokio::join!(model_swap::executor::execute(&cx, &mut journal), claims);
    assert_eq!(conclusion.unwrap().outcome, Outcome::Promoted);
    assert!(claim.exists());
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_dies_before_its_keeper_is_to_start_it_again_is_not_promoted() {
    for kind in [Kind::First, Kind::Verified, Kind::Rollback, Kind::Lone] {
        let (scene, attempt) = Scene::of(kind).await;
        let before = scene.facts();
        scene.host.allow_nobody();
        scene.host.world.borrow_mut().frail = true;
        let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
        let returned = matches!(kind, Kind::First | Kind::Verified);
        let outcome = if returned { Outcome::RolledBack } else { Outcome::Failed };
        assert_eq!(conclusion.outcome, outcome, "{kind:?}: {conclusion:#?}");
        let message = conclusion.failure.unwrap().message;
        assert!(message.contains("ended before it was promoted"), "{kind:?}: {message}");
        let (now, port) = (scene.facts(), attempt.plan.candidate.port);
        assert_eq!((now.loaded, &now.lines), (before.loaded, &before.lines), "{kind:?}");
        assert_eq!(now.without(port), before.without(port), "{kind:?}");
    }
}
