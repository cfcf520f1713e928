//! The model's weights: where its replica looks for them, and what `fetch` needs to bring them there.

use std::path::Path;

use super::{replicas, size};
use crate::host::disk;
use crate::host::fetch::{bytes, room_for};
use crate::host::nginx::UpstreamView;
use crate::host::process::Inherited;
use crate::host::{Host, SystemHost};
use crate::model::checkup::Finding;
use crate::model::failure::Failure;
use crate::model::replica::Keeper;
use crate::model::spec::{FetchSpec, SwapSpec};
use crate::swap::weights::{self, Place};

/// Weights that are not here yet need far more than this: 8 billion parameters in 16 bits have 16 GB.
const LITTLE_ROOM: u64 = 16 << 30;

const MODEL: &str = "model on disk";
const PROGRAM: &str = "fetch program";
const ROOM: &str = "room for weights";

/// Where the weights are, or will be: the new model runs as the user of the one that serves.
pub(super) async fn look(
    host: &SystemHost,
    spec: &SwapSpec,
    upstream: Option<&UpstreamView>,
) -> Vec<Finding> {
    let serves = match upstream {
        Some(view) => host.find(view.port).await.ok().flatten(),
        None => None,
    };
    // A container's user, home and folder are not this machine's.
    let process = serves.filter(|found| !matches!(found.keeper, Keeper::Docker(_)));
    let inherited = host.inherited(process.map(|found| found.main));
    let Ok(user) = &inherited else {
        return vec![Finding::unseen(MODEL, "the home of the replica's user is not known")];
    };
    let mut findings = vec![model(spec, weights::looked_for(spec, &user.home))];
    if let Some(fetch) = &spec.fetch {
        findings.push(replicas::program(PROGRAM, &fetch.command, spec, &inherited));
        findings.extend(room(spec, fetch, user));
    }
    findings
}

fn model(spec: &SwapSpec, place: Place) -> Finding {
    let folder = match place {
        Place::Server(folder) => folder,
        Place::Volume => return Finding::ok(MODEL, "in a volume that its container has"),
        Place::Image(path) => {
            return Finding::warn(
                MODEL,
                format!("nothing is mounted where its container looks for {}", path.display()),
                "if the image does not hold it, mount its folder: with --volume in replica.docker_options",
            );
        }
    };
    let there = folder.display();
    match folder.try_exists() {
        Ok(true) => return Finding::ok(MODEL, format!("{there} is there")),
        Ok(false) => {}
        Err(error) => return Finding::unseen(MODEL, format!("{there}: {error}")),
    }
    match &spec.fetch {
        // How much they need the user has said.
        Some(FetchSpec { size: Some(_), .. }) => {
            Finding::ok(MODEL, format!("{there} is not there yet: `fetch` brings it"))
        }
        Some(_) => coming(&folder, "make room for the weights, or name their size in fetch.size"),
        None if spec.model.starts_with('/') => Finding::fail(
            MODEL,
            Failure::new(format!("there is no {there}"))
                .hint("bring the weights there, or correct `model`"),
        ),
        None => coming(
            &folder,
            "make room for the weights, or set HF_HOME in replica.env to a larger disk",
        ),
    }
}

/// What the engine or `fetch` will bring, nobody knows how much.
fn coming(folder: &Path, mend: &str) -> Finding {
    let there = folder.display();
    match disk::folder(folder) {
        Ok(found) => {
            let seen = format!("{there} is not there yet, and {} are free", size(found.free));
            match found.free {
                ..LITTLE_ROOM => Finding::warn(MODEL, seen, mend),
                _ => Finding::ok(MODEL, seen),
            }
        }
        Err(error) => Finding::unseen(MODEL, format!("{there}: {error}")),
    }
}

/// What `fetch` would refuse to begin.
fn room(spec: &SwapSpec, fetch: &FetchSpec, user: &Inherited) -> Option<Finding> {
    let size = fetch.size?;
    let folder = weights::brought_to(spec, &spec.replica.env, &user.home);
    Some(match room_for(&folder, size) {
        Ok(()) => Finding::ok(
            ROOM,
            format!("{} has room for what is missing of {}", folder.display(), bytes(size)),
        ),
        Err(failure) => Finding::fail(ROOM, failure),
    })
}
