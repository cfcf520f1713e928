//! Which way back a rollback takes, and what it takes to start a revision of the past again.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::bringing::{self, Bringing};
use super::run::Decided;
use super::{Access, barred, listed};
use crate::executor::{World, confirm_route, observe};
use crate::host::process::Snapshot;
use crate::host::{SystemHost, docker, engine};
use crate::journal::Journal;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::refusal::Refusal;
use crate::model::replica::{Image, Keeper, Revision};
use crate::model::spec::{ReadySpec, SwapSpec};
use crate::model::state::{HistoryReport, Past, WayBack};
use crate::model::wire::{Asked, RollbackRequest};
use crate::service_dir::{INCUMBENT, SPEC, ServiceDir};
use crate::swap::history::{Course, History, Told, Wanted};
use crate::swap::planner::{self, Again, Decision};

/// What the history tells, newest last.
pub(super) fn report(dir: &ServiceDir, spec: &SwapSpec, world: &World) -> HistoryReport {
    HistoryReport { service: spec.service.clone(), chapters: history(dir, spec, world).chapters() }
}

/// Decides what a rollback does.
pub(super) async fn decide(
    dir: &ServiceDir,
    wanted: &RollbackRequest,
    access: &Access,
) -> Result<Decided, Refusal> {
    let asked = wanted.asked.clone();
    let host = SystemHost::new(&asked);
    let world = observe(&host, dir, &asked, None).await.map_err(Refusal::environment)?;
    let history = history(dir, &asked.spec, &world);
    let back = Wanted { of: wanted.of.as_ref(), to: wanted.to.as_deref() };
    let course = history.course(back, world.seen.state.serving_swap.as_ref());
    let refused = |failure: Failure| match wanted.to {
        Some(_) => Refusal::input(failure),
        None => Refusal::environment(failure),
    };
    let decision = match course.map_err(refused)? {
        Course::Unchanged(reason) => Decision::Unchanged(reason),
        Course::Serves(reason) => {
            confirm_route(&host, &asked.spec, &world).await.map_err(Refusal::environment)?;
            Decision::Unchanged(reason)
        }
        Course::Back(revision, WayBack::Cold(kept_in)) => {
            return cold((dir, access), asked, (&revision, &kept_in)).await;
        }
        Course::Back(revision, _) => {
            let Some(warm) = planner::warm_replica(&asked.spec, &world.seen) else {
                let gone = Failure::new(format!("the warm replica of {revision} is gone"));
                return Err(Refusal::environment(gone));
            };
            planner::plan_warm_rollback(&asked.spec, &world.seen, warm).map_err(barred)?
        }
    };
    Ok(Decided { asked, world, decision, again: None })
}

/// Looks again with what the revision was once started from, and plans.
async fn cold(
    (dir, access): (&ServiceDir, &Access),
    mut asked: Asked,
    (revision, kept_in): (&Revision, &SwapId),
) -> Result<Decided, Refusal> {
    let folder = dir.swap(kept_in);
    let mut again = Again { revision: revision.clone(), argv: None, keeper: None };
    if revision.is_adopted() {
        let snapshot = read(&folder.join(INCUMBENT)).map_err(Refusal::environment)?;
        let host = SystemHost::new(&asked);
        let mut world = observe(&host, dir, &asked, None).await.map_err(Refusal::environment)?;
        again.keeper =
            own_means(&host, &folder, (&asked.spec, &world)).await.map_err(Refusal::environment)?;
        let snapshot =
            for_free_slot(snapshot, &folder, &asked.spec, &world).map_err(Refusal::environment)?;
        let engine = asked.spec.replica.engine;
        world.seen.program = match (in_docker(&folder), &again.keeper) {
            // Docker starts it, with what it was made with.
            (Some(_), Some(_)) => Ok(()),
            (Some(container), None) => Err(no_container(&container)),
            (None, _) => snapshot.runnable().map_err(|error| error.to_failure()),
        };
        world.seen.wanted_names = engine::expected(engine, &snapshot.argv, &revision.model).names;
        again.argv = Some(snapshot.argv.clone());
        let decision =
            planner::plan_cold_rollback(&asked.spec, &world.seen, &again).map_err(barred)?;
        return Ok(Decided { asked, world, decision, again: Some(snapshot) });
    }
    let now = asked.spec;
    let then: SwapSpec = read(&folder.join(SPEC)).map_err(Refusal::environment)?;
    asked.spec = as_then(then, now.clone());
    if let Some(image) = &revision.image {
        let same = the_same(image, revision).await.map_err(Refusal::environment)?;
        asked.spec.replica.pinned = Some(same);
    }
    secrets_are_there(&asked, revision).map_err(barred)?;
    let host = SystemHost::new(&asked);
    let world = observe(&host, dir, &asked, None).await.map_err(Refusal::environment)?;
    let spec = &asked.spec;
    let user = world.inherited(&host, spec);
    let Bringing { fetch, note } = bringing::choose((spec, &now), |fetch| {
        listed::check_fetch(access, &spec.service, fetch)?;
        let user = user.as_ref().map_err(|failure| Refusal::environment(failure.clone()))?;
        let found = user.program(&fetch.command, &spec.replica.env);
        found.map(drop).map_err(|error| Refusal::environment(error.to_failure()))
    })?;
    asked.spec.fetch = fetch;
    let mut decision =
        planner::plan_cold_rollback(&asked.spec, &world.seen, &again).map_err(barred)?;
    if let Decision::Act(plan) = &mut decision {
        plan.notes.extend(note);
    }
    Ok(Decided { asked, world, decision, again: None })
}

/// What a revision was once brought and started from, with today's slots, nginx and manners. Of the bounds on both the longer one
/// counts: who raises one today may do it for this rollback.
fn as_then(then: SwapSpec, now: SwapSpec) -> SwapSpec {
    let mut fetch = then.fetch;
    if let (Some(fetch), Some(today)) = (&mut fetch, &now.fetch) {
        fetch.timeout = fetch.timeout.max(today.timeout);
    }
    SwapSpec {
        model: then.model,
        model_revision: then.model_revision,
        replica: then.replica,
        fetch,
        ready: ReadySpec { timeout: then.ready.timeout.max(now.ready.timeout) },
        ..now
    }
}

/// What names the very image that a revision was started from: its tag may name another by now.
async fn the_same(image: &Image, revision: &Revision) -> Result<String, Failure> {
    if docker::image(&image.id).await?.is_some() {
        return Ok(image.id.clone());
    }
    image.pinned.clone().ok_or_else(|| {
        let id = &image.id;
        Failure::new(format!(
            "the image {id} is gone, from which {revision} was started, and no registry had it"
        ))
        .hint("build or load it again, and swap to the model with it")
    })
}

/// What once kept the adopted incumbent of a swap, if it can start it again: in its own slot, and by its own means.
async fn own_means(
    host: &SystemHost,
    folder: &Path,
    (spec, world): (&SwapSpec, &World),
) -> Result<Option<Keeper>, Failure> {
    let free = planner::free_slot(spec, &world.seen)?;
    let then = Journal::plan(folder).and_then(|plan| plan.incumbent);
    let Some(side) = then.filter(|side| side.port == spec.slots[free].port) else {
        return Ok(None);
    };
    Ok(host.can_start(&side.keeper).await?.then_some(side.keeper))
}

/// The adopted incumbent of a swap, for the slot that is free now.
fn for_free_slot(
    snapshot: Snapshot,
    folder: &Path,
    spec: &SwapSpec,
    world: &World,
) -> Result<Snapshot, Failure> {
    let name = planner::free_slot(spec, &world.seen)?;
    let slot = &spec.slots[name];
    let then = Journal::plan(folder).and_then(|plan| plan.incumbent).map(|side| side.port);
    let port = then.unwrap_or(slot.port);
    if in_docker(folder).is_some() {
        // Its argv is for inside.
        return Ok(snapshot);
    }
    snapshot.for_slot(spec.replica.engine, port, slot).ok_or_else(|| {
        Failure::new(format!(
            "the revision was started by hand on port {port} without --port, and the free slot {name} has port {}",
            slot.port
        ))
        .hint("roll back to another revision first, so that its own slot is free; or swap to its model")
    })
}

/// The container that the adopted incumbent of a swap was.
fn in_docker(folder: &Path) -> Option<Keeper> {
    let keeper = Journal::plan(folder)?.incumbent?.keeper;
    matches!(keeper, Keeper::Docker(_)).then_some(keeper)
}

fn no_container(container: &Keeper) -> Failure {
    Failure::new(format!("{container} is gone, or was made for the port of the slot that serves"))
        .hint("roll back to another revision first, so that its own slot is free; or swap to its model")
}

/// Values of secrets are never kept: they come from the step's environment again.
fn secrets_are_there(asked: &Asked, revision: &Revision) -> Result<(), Vec<Failure>> {
    let missing = asked
        .spec
        .replica
        .secret_env
        .iter()
        .filter(|name| asked.secrets.0.get(*name).is_none_or(String::is_empty));
    let failures: Vec<_> = missing
        .map(|name| {
            Failure::new(format!("{revision} needs the secret {name}, and the step has no value for it"))
                .hint(format!(
                    "set {name} in the step's env, and name it in replica.secret_env of the configuration"
                ))
        })
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// The past, as seen from now.
pub(super) fn history(dir: &ServiceDir, spec: &SwapSpec, world: &World) -> History {
    let seen = &world.seen;
    let serving = planner::serving_slot(spec, seen.nginx_port)
        .ok()
        .filter(|slot| seen.slots.get(*slot).is_some_and(|occupant| occupant.ready))
        .and_then(|slot| world.replicas.get(slot));
    let warm = planner::warm_replica(spec, seen);
    let told = seen.state.history.iter().map(|past| told(dir, past)).collect();
    History::new(
        told,
        serving.map(|replica| replica.revision.digest.clone()),
        warm.map(|retained| retained.replica.revision.digest.clone()),
    )
}

/// What the folder of a swap still tells.
fn told(dir: &ServiceDir, past: &Past) -> Told {
    let folder = dir.swap(&past.swap);
    let plan = Journal::plan(&folder);
    let mut keeps = Vec::new();
    if let Some(plan) = &plan {
        use crate::model::plan::Strategy::{BlueGreen, ColdRollback};
        // The plan may not have known it yet: an image had to be pulled first.
        let candidate = &past.revision;
        // A warm rollback's specification is not the one of the revision that it brings back.
        if matches!(plan.strategy, BlueGreen | ColdRollback)
            && !candidate.is_adopted()
            && folder.join(SPEC).exists()
        {
            keeps.push(candidate.digest.clone());
        }
        let adopted = plan.incumbent.as_ref().filter(|side| side.revision.is_adopted());
        if let Some(side) = adopted.filter(|_| folder.join(INCUMBENT).exists()) {
            keeps.push(side.revision.digest.clone());
        }
    }
    Told { past: past.clone(), plan, keeps }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let failed = |cause: String| Failure {
        causes: vec![cause],
        ..Failure::new(format!("cannot read {}", path.display()))
    };
    let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::spec::FetchSpec;
    use crate::swap::planner::tests::spec;

    const MINUTE: Duration = Duration::from_secs(60);

    fn fetched(command: &str, minutes: u32, size: u64) -> SwapSpec {
        let fetch = FetchSpec {
            command: vec![command.to_owned()],
            timeout: MINUTE * minutes,
            folder: Some(format!("/models/{command}").into()),
            size: Some(size),
        };
        SwapSpec { fetch: Some(fetch), ..spec() }
    }

    #[test]
    fn what_comes_back_is_brought_as_it_was_and_may_take_as_long_as_either_allows() {
        let (mut then, mut now) = (fetched("old", 10, 15), fetched("new", 60, 140));
        (then.ready.timeout, now.ready.timeout) = (40 * MINUTE, 20 * MINUTE);
        (then.retain, now.retain) = (MINUTE, 2 * MINUTE);
        let back = as_then(then.clone(), now.clone());
        assert_eq!(back.fetch, fetched("old", 60, 15).fetch);
        assert_eq!((back.ready.timeout, back.retain), (40 * MINUTE, 2 * MINUTE));
        then.fetch = None;
        assert_eq!(as_then(then, now).fetch, None, "its engine has brought them");
    }
}
