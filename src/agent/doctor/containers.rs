//! Docker, where replicas are containers: client and Engine, the image, GPUs, and what somebody else has made.

use super::size;
use crate::host::disk::Folder;
use crate::host::docker::{self, Container, DockerError};
use crate::host::{Host, SystemHost};
use crate::model::checkup::Finding;
use crate::model::failure::Hint;
use crate::model::replica::Keeper;
use crate::model::spec::SwapSpec;

const DOCKER: &str = "Docker";
const IMAGE: &str = "image";
const GPUS: &str = "GPUs in containers";
const INCUMBENT: &str = "container that serves";

/// What a swap to a container needs of Docker.
pub(super) async fn look(host: &SystemHost, spec: &SwapSpec) -> Vec<Finding> {
    let Some(name) = &spec.replica.image else { return Vec::new() };
    let mut findings = match docker::versions().await {
        Ok(versions) => vec![Finding::ok(DOCKER, versions)],
        Err(error) => return without(error),
    };
    findings.push(image(host, name).await);
    if spec.slots.values().any(|slot| !slot.gpus.is_empty()) {
        findings.push(gpus().await);
    }
    findings
}

fn without(error: DockerError) -> Vec<Finding> {
    let unseen = Finding::unseen(IMAGE, "Docker's Engine is not reached");
    vec![Finding::fail(DOCKER, error.to_failure()), unseen]
}

async fn image(host: &SystemHost, name: &str) -> Finding {
    match host.image().await {
        Ok(Some(here)) => return Finding::ok(IMAGE, format!("{name} is here, {}", here.image.id)),
        Ok(None) => {}
        Err(failure) => return Finding::fail(IMAGE, failure),
    }
    match docker::offered(name).await {
        Ok(()) => coming(name, docker::room().await),
        // "no such manifest" is what the client says of a registry, too, that shuts it out or that it does not reach.
        Err(error) => Finding::warn(
            IMAGE,
            format!("{name} is not here, and {}", error.to_failure()),
            format!("see on the server whether `docker pull {name}` brings it"),
        ),
    }
}

/// What the next swap pulls, and the room for it.
fn coming(name: &str, room: Option<Folder>) -> Finding {
    let seen = format!("{name} is in its registry, and the next swap pulls it");
    // An Engine elsewhere has its folder there.
    let Some(folder) = room else { return Finding::ok(IMAGE, seen) };
    let seen = format!("{seen}; {} are free in {}", size(folder.free), folder.there.display());
    match folder.free {
        ..docker::LITTLE_ROOM => Finding::warn(
            IMAGE,
            seen,
            "make room there: `docker image prune` removes images without a name, `docker system df` shows what there is",
        ),
        _ => Finding::ok(IMAGE, seen),
    }
}

async fn gpus() -> Finding {
    match docker::hands_out_gpus().await {
        Ok(true) => Finding::ok(GPUS, "the NVIDIA Container Toolkit is there"),
        Ok(false) => Finding::warn(
            GPUS,
            "the Engine names no runtime of NVIDIA's, and there is no nvidia-container-runtime-hook",
            "install the NVIDIA Container Toolkit, and restart the Docker Engine",
        ),
        Err(error) => Finding::fail(GPUS, error.to_failure()),
    }
}

/// What becomes of the container that serves now, if somebody else has made it.
pub(super) async fn incumbent(keeper: &Keeper) -> Option<Finding> {
    let Keeper::Docker(id) = keeper else { return None };
    let container = docker::inspect(id).await.ok().flatten()?;
    // What an orchestrator runs no swap begins with, and that is said elsewhere.
    if container.is_own() || container.orchestrator().is_some() {
        return None;
    }
    let name = container.name.trim_start_matches('/');
    let whose = composed(&container);
    if container.is_removed_by_docker() {
        return Some(Finding::warn(
            INCUMBENT,
            format!(
                "{name}{whose} was made with --rm: once it is drained docker stops and removes it, and no rollback goes back to it then"
            ),
            "a swap to its model brings it into a container of its own; raise retain to have a way back for longer",
        ));
    }
    let seen = format!("{name}{whose}: once it is drained docker stops it, and nothing removes it");
    let mend = container.project().map_or_else(
        || format!("docker start {name} would bring it back beside the new one"),
        |_| "take the service out of the Compose file after the swap: `docker compose up` would bring it back beside the new one".to_owned(),
    );
    Some(Finding::warn(INCUMBENT, seen, mend))
}

fn composed(container: &Container) -> String {
    container
        .project()
        .map(|project| format!(", of Compose's project {project}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::tests::engines;
    use crate::model::checkup::Mark;

    #[test]
    fn an_image_that_comes_needs_room() {
        for (room, mark, said) in [
            (None, Mark::Ok, "the next swap pulls it"),
            (Some(engines(docker::LITTLE_ROOM)), Mark::Ok, "are free in /var/lib/docker"),
            (Some(engines(docker::LITTLE_ROOM - 1)), Mark::Warn, "are free in /var/lib/docker"),
        ] {
            let found = coming("acme/llm:1", room);
            assert_eq!(found.mark, mark, "{found:?}");
            assert!(found.seen.contains(said), "{found:?}");
        }
    }
}
