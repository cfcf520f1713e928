//! An nginx that is slow: it has read its file when it is told to, and starts workers long after. What it was told meanwhile it
//! does then, once.

use std::time::Duration;

use model_swap::host::Unloaded;
use model_swap::host::nginx::Reloaded;
use model_swap::model::failure::Failure;
use model_swap::model::ids::Port;
use model_swap::model::outcome::Outcome;
use model_swap::model::record::UpstreamImage;
use tokio::time::Instant;

use super::host::{Fault, SimHost};
use super::scene::{Kind, Scene};
use super::world::SimWorld;
use super::wrong::Wrong;

/// How long new workers are waited for, as the real host does.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks for them, in the world's time.
const LOOK: Duration = Duration::from_millis(50);

/// nginx's reloads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reloads {
    /// How long one takes.
    time: Duration,
    /// When the one that is under way ends, and the port that it has read.
    now: Option<(Instant, Port)>,
    /// Whether nginx was told of another one since that began.
    again: bool,
    /// Whether it refuses in the end what it was told to load.
    refuses: bool,
    /// How often it has.
    refused: usize,
}

impl Reloads {
    /// Whether nginx has something to do.
    pub(super) fn are_under_way(&self) -> bool {
        self.now.is_some()
    }
}

impl SimWorld {
    /// Tells nginx to load its file; what it has loaded, if that takes no time.
    fn reload(&mut self) -> Option<Reloaded> {
        let named = self.named();
        if self.reloads.time.is_zero() {
            return Some(self.take(named));
        }
        match self.reloads.now {
            Some(_) => self.reloads.again = true,
            None => self.reloads.now = Some((Instant::now() + self.reloads.time, named)),
        }
        None
    }

    /// Does what nginx has done by now.
    pub(super) fn catch_up(&mut self) {
        while let Some((end, port)) = self.reloads.now.filter(|(end, _)| *end <= Instant::now()) {
            match self.reloads.refuses {
                true => self.reloads.refused += 1,
                false => drop(self.take(port)),
            }
            let again = std::mem::take(&mut self.reloads.again);
            self.reloads.now = again.then(|| (end + self.reloads.time, self.named()));
        }
    }
}

impl SimHost {
    /// Changes the lines and waits for new workers; without any the old lines are back, and nginx is told of them.
    pub(super) async fn change(
        &self,
        verb: &'static str,
        image: &UpstreamImage,
    ) -> Result<Reloaded, Unloaded> {
        let (before, old, refused) = {
            let world = self.world.borrow();
            let now = world.generations(world.master).map_err(Unloaded::Surely)?;
            let old = [now.old_workers, now.new_workers].concat();
            (world.lines.clone(), old, world.reloads.refused)
        };
        let dies = self.dies_halfway();
        let told = self.call(verb, |world| {
            world.write(&image.before, &image.after)?;
            if dies { self.die() } else { Ok(world.reload()) }
        });
        let loaded = self.world.borrow().loads(&image.after);
        match told {
            Ok(Some(reloaded)) => return Ok(reloaded),
            Ok(None) => {}
            Err(failure) if loaded => return Err(Unloaded::Perhaps(failure)),
            Err(failure) => return Err(Unloaded::Surely(failure)),
        }
        let limit = Instant::now() + LIMIT;
        while Instant::now() < limit {
            tokio::time::sleep(LOOK).await;
            let mut world = self.world.borrow_mut();
            world.catch_up();
            let mut now = world.generations(world.master).map_err(Unloaded::Surely)?;
            now.new_workers.retain(|worker| !old.contains(worker));
            if !now.new_workers.is_empty() {
                return Ok(Reloaded { old_workers: old, ..now });
            }
            if world.reloads.refused > refused {
                world.lines = before;
                return Err(Unloaded::Surely(Failure::new("nginx did not load it")));
            }
        }
        let mut world = self.world.borrow_mut();
        world.lines = before;
        world.reload();
        Err(Unloaded::Perhaps(Failure::new("nginx started no new worker")))
    }
}

/// A world in which a reload takes longer than anybody waits for one.
async fn slow(kind: Kind) -> (Scene, super::scene::Attempt) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.host.world.borrow_mut().reloads.time = LIMIT + Duration::from_secs(10);
    (scene, attempt)
}

/// Lets nginx do all that it was told, with somebody there for every request.
async fn ends_well(scene: &Scene) {
    for _ in 0..10 {
        tokio::time::sleep(LIMIT).await;
        let mut world = scene.host.world.borrow_mut();
        world.catch_up();
        assert!(world.on(world.loaded).is_some(), "nobody serves: {world:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_is_only_slow_is_waited_for_before_its_candidate_is_stopped() {
    for kind in [Kind::First, Kind::Plain, Kind::Rollback, Kind::ColdAdopted] {
        let (scene, attempt) = slow(kind).await;
        let before = scene.facts();
        let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
        let returned = matches!(kind, Kind::First | Kind::Plain);
        let outcome = if returned { Outcome::RolledBack } else { Outcome::Failed };
        assert_eq!(conclusion.outcome, outcome, "{kind:?}: {conclusion:#?}");
        assert_eq!(scene.facts(), before, "{kind:?}");
        ends_well(&scene).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reload_that_nginx_refuses_in_the_end_gets_nobody_stuck() {
    let (scene, attempt) = slow(Kind::First).await;
    scene.host.world.borrow_mut().reloads.refuses = true;
    let before = scene.facts();
    let conclusion = scene.execute(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::Failed, "{conclusion:#?}");
    assert_eq!(scene.facts(), before);
    ends_well(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reload_of_an_agent_that_died_is_waited_for_as_well() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let load = scene.host.calls().iter().position(|call| call.verb == "load").unwrap();
    let (scene, attempt) = slow(Kind::First).await;
    let before = scene.facts();
    let dies = Fault { call: load, wrong: Wrong::DoesAndDies };
    assert!(scene.execute(&attempt, &[dies]).await.is_none(), "it lived on");
    let conclusion = scene.recover(&attempt, &[]).await.unwrap().unwrap();
    assert_eq!(conclusion.outcome, Outcome::RolledBack, "{conclusion:#?}");
    assert_eq!(scene.facts(), before);
    ends_well(&scene).await;
}
