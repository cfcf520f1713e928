//! A replica that wants a key which nobody has is healthy all the same: one that an older swap has checked, and one that alone
//! is left.

use model_swap::executor::{Direction, Wanted};
use model_swap::model::outcome::Outcome;

use super::host::Fault;
use super::scene::{A, Kind, Scene};
use super::wrong::Wrong;

/// The configuration of today has the key of the model that serves.
#[tokio::test(start_paused = true)]
async fn a_warm_rollback_leads_to_a_replica_with_another_key() {
    let (scene, _) = Scene::of(Kind::Rollback).await;
    scene.host.world.borrow_mut().locked = Some(A);
    let attempt = scene.planned(Kind::Rollback, "s-10").await;
    let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!((conclusion.outcome, conclusion.failure), (Outcome::RolledBack, None));
    assert_eq!(scene.facts().loaded, A);
}

/// Whoever takes a swap up after a boot has none of its secrets.
#[tokio::test(start_paused = true)]
async fn a_swap_whose_old_model_is_gone_is_finished_without_the_new_ones_key() {
    for verb in ["load", "prove", "promoted"] {
        for kind in [Kind::First, Kind::Verified, Kind::Lone] {
            let what = format!("{kind:?}: {verb}");
            let (scene, attempt) = Scene::of(kind).await;
            scene.execute(&attempt, &[]).await.unwrap().unwrap();
            let call = scene.host.calls().iter().position(|call| call.verb == verb).unwrap();
            let (scene, attempt) = Scene::of(kind).await;
            let dies = Fault { call, wrong: Wrong::DoesAndDies };
            assert!(scene.execute(&attempt, &[dies]).await.is_none(), "{what}: it lived on");
            if let Some(incumbent) = &attempt.plan.incumbent {
                let gone = scene.host.world.borrow().on(incumbent.port).unwrap().id;
                scene.host.world.borrow_mut().kill(gone);
            }
            scene.host.world.borrow_mut().locked = Some(attempt.plan.candidate.port);
            assert_eq!(scene.direction(&attempt, Wanted::End).await, Direction::Forward, "{what}");
            let conclusion = scene.finish(&attempt, &[]).await.unwrap();
            assert_eq!(conclusion.outcome, Outcome::Promoted, "{what}: {conclusion:#?}");
        }
    }
}

/// Of a new one nobody could tell whether it is what was asked for.
#[tokio::test(start_paused = true)]
async fn a_new_replica_whose_key_is_not_known_gets_no_traffic() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.host.world.borrow_mut().locked = Some(attempt.plan.candidate.port);
    let before = scene.facts();
    let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::Failed);
    assert_eq!((scene.facts(), scene.host.count("load")), (before, 0));
}
