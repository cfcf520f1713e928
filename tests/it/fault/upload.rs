//! A client that sends the body of its request slowly: nginx's worker has it, and connects to the replica only then. The engine
//! counts nothing meanwhile.

use std::time::Duration;

use model_swap::model::event::EventKind;
use model_swap::model::ids::ProcessId;
use model_swap::model::outcome::Outcome;
use model_swap::model::step::Step;

use tokio::time::Instant;

use super::host::{Fault, Stage};
use super::scene::{Attempt, Kind, Scene};
use super::wrong::Wrong;

/// What becomes of the agent of a swap that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Lives,
    Dies,
}

/// A swap that fails at its promotion, while workers of its own cutover have an upload each; its agent dies, if so, at the first look at
/// the workers that its cutover has left.
async fn fails(kind: Kind, agent: Agent) -> (Scene, Attempt, Vec<ProcessId>) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let calls = scene.host.calls();
    let fails = calls.iter().position(|call| call.verb == "promoted").unwrap();
    let mut faults = vec![Fault { call: fails, wrong: Wrong::Fails }];
    if agent == Agent::Dies {
        let (scene, attempt) = Scene::of(kind).await;
        scene.execute(&attempt, &faults).await.unwrap().unwrap();
        let is_cutover =
            |index: usize| matches!(attempt.plan.steps[index].step, Step::CutOver { .. });
        let waits = scene.host.calls().iter().position(|call| {
            call.verb == "in_flight"
                && matches!(call.stage, Stage::Undo(index) if is_cutover(index))
        });
        faults.push(Fault { call: waits.unwrap(), wrong: Wrong::Dies });
    }
    let (scene, attempt) = Scene::of(kind).await;
    // Those of an earlier swap are done. The workers of before have nothing to do with it, and a stream each.
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.host.world.borrow_mut().pinned = Some(Some(0));
    scene.host.may_cut.set(agent == Agent::Lives);
    let ended = scene.execute(&attempt, &faults).await;
    assert_eq!(ended.is_none(), agent == Agent::Dies, "{ended:#?}");
    let workers = scene.host.world.borrow().workers_of(attempt.plan.candidate.port);
    assert_eq!(workers.len(), 1, "{:#?}", scene.host.world.borrow());
    (scene, attempt, workers)
}

fn end(scene: &Scene, workers: &[ProcessId]) {
    workers.iter().for_each(|worker| scene.host.world.borrow_mut().kill(*worker));
}

/// It may as well be a websocket of another service: nobody gets stuck with it, and the lock is held no longer than a drain takes.
#[tokio::test(start_paused = true)]
async fn a_candidate_is_stopped_beside_a_worker_of_its_cutover_when_the_time_of_a_drain_is_over() {
    for agent in [Agent::Lives, Agent::Dies] {
        let began = Instant::now();
        let (scene, attempt, workers) = fails(Kind::Plain, agent).await;
        if agent == Agent::Dies {
            scene.host.may_cut.set(true);
            let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
            assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
        }
        let last = scene.records(&attempt).pop().map(|last| format!("{last:?}")).unwrap();
        assert!(last.contains("RolledBack"), "{agent:?}: {last}");
        let timeout = scene.spec.drain.timeout;
        assert!(
            (timeout..timeout * 2).contains(&began.elapsed()),
            "{agent:?}: {:?}",
            began.elapsed()
        );
        let warned = scene.events(&attempt).into_iter().any(|event| {
            matches!(event, EventKind::Warning { text } if text.contains("may be asked yet by nginx worker"))
        });
        assert!(warned, "{agent:?}: {:#?}", scene.events(&attempt));
        end(&scene, &workers);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_ends_in_time_gets_nobody_stuck() {
    let (scene, attempt, workers) = fails(Kind::Plain, Agent::Dies).await;
    let ends = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        end(&scene, &workers);
    };
    let (recovered, ()) = tokio::join!(scene.recover(&attempt, &[]), ends);
    let conclusion = recovered.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_stays_warm_after_a_rollback_that_failed_is_not_retired_before_the_uploads_of_its_cutover()
 {
    for agent in [Agent::Lives, Agent::Dies] {
        let (scene, attempt, workers) = fails(Kind::Rollback, agent).await;
        if agent == Agent::Dies {
            let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
            assert_eq!(conclusion.outcome, Outcome::Failed, "{conclusion:#?}");
        }
        let retained = scene.dir.load().unwrap().retained.unwrap();
        assert!(retained.old_workers.contains(&workers[0]), "{agent:?}: {retained:#?}");
        // A second time it would be known twice.
        let known = retained.old_workers.iter().filter(|worker| workers.contains(worker));
        assert_eq!(known.count(), 1);
    }
}
