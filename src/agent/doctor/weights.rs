//! The model's weights: where its replica looks for them, and what `fetch` needs to bring them there.

use std::path::Path;

use super::{replicas, size};
use crate::agent::outlook;
use crate::host::disk;
use crate::host::fetch::{bytes, let_write, room_for};
use crate::host::nginx::UpstreamView;
use crate::host::process::{Inherited, may_write};
use crate::host::{Host, SystemHost};
use crate::model::checkup::Finding;
use crate::model::failure::Failure;
use crate::model::replica::{ImageHere, Keeper};
use crate::model::spec::{FetchSpec, SwapSpec};
use crate::swap::weights::{self, Place};

/// Weights that are not here yet need far more than this: 8 billion parameters in 16 bits have 16 GB.
const LITTLE_ROOM: u64 = 16 << 30;

const MODEL: &str = "model on disk";
const PROGRAM: &str = "fetch program";
const ROOM: &str = "room for weights";
const RIGHT: &str = "right to bring weights";

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
    // Where docker does not say, what looks at images says why.
    let here = host.image().await.unwrap_or_default();
    let here = here.as_ref();
    let inherited = host.inherited(process.map(|found| found.main));
    let Ok(user) = &inherited else {
        return vec![Finding::unseen(MODEL, "the home of the replica's user is not known")];
    };
    let mut findings = vec![model(spec, weights::looked_for(spec, &user.home, here))];
    // It runs as the user of what serves, with that one's PATH.
    let known = upstream.is_some() || spec.replica.image.is_some();
    if let Some(fetch) = &spec.fetch {
        if !known {
            findings.push(Finding::unseen(PROGRAM, replicas::UNKNOWN));
            return findings;
        }
        findings.push(replicas::program(PROGRAM, &fetch.command, spec, &inherited));
        findings.extend(room(spec, fetch, (user, here)));
        findings.push(right(spec, (user, here)));
    }
    findings
}

fn model(spec: &SwapSpec, place: Place) -> Finding {
    let (folder, read_only) = match place {
        Place::Server { path, read_only } => (path, read_only),
        Place::HomeOf(user) => {
            let seen = format!(
                "where its container looks for it is not known: {}",
                weights::only_the_image_knows(&user)
            );
            return Finding::warn(MODEL, seen, weights::SET_HF_HOME);
        }
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
    let missing = match outlook::missing(spec, &folder) {
        Ok(None) => return Finding::ok(MODEL, format!("{there} is there")),
        Ok(Some(missing)) => missing,
        Err(error) => return Finding::unseen(MODEL, format!("{there}: {error}")),
    };
    match &spec.fetch {
        // How much they need the user has said.
        Some(FetchSpec { size: Some(_), .. }) => {
            Finding::ok(MODEL, format!("{missing}: `fetch` brings it"))
        }
        Some(_) => coming((&folder, &missing), "make room for the weights, or name their size in fetch.size"),
        None if spec.model.starts_with('/') => Finding::fail(
            MODEL,
            Failure::new(format!("there is no {there}"))
                .hint("bring the weights there, or correct `model`"),
        ),
        None if read_only => Finding::fail(
            MODEL,
            Failure::new(format!(
                "{missing}, and its container may not bring it: it is mounted read-only"
            ))
            .hint("bring the weights there before a swap, as with `fetch`, or mount their folder without `ro`"),
        ),
        None => coming(
            (&folder, &missing),
            "make room for the weights, or set HF_HOME in replica.env to a larger disk",
        ),
    }
}

/// What the engine or `fetch` will bring, nobody knows how much.
fn coming((folder, missing): (&Path, &str), mend: &str) -> Finding {
    match disk::folder(folder) {
        Ok(found) => {
            let seen = format!("{missing}, and {} are free", size(found.free));
            match found.free {
                ..LITTLE_ROOM => Finding::warn(MODEL, seen, mend),
                _ => Finding::ok(MODEL, seen),
            }
        }
        Err(error) => Finding::unseen(MODEL, format!("{}: {error}", folder.display())),
    }
}

/// Whether `fetch` may write where it brings the weights to.
fn right(spec: &SwapSpec, (user, here): (&Inherited, Option<&ImageHere>)) -> Finding {
    let folder = weights::brought_to(spec, (&spec.replica.env, &user.home), here);
    let place = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    let name = user.user.clone().unwrap_or_else(|| user.identity.uid.to_string());
    let there = place.display();
    let Err(why) = may_write(&user.identity, place) else {
        return Finding::ok(RIGHT, format!("{name}, as whom `fetch` runs, may write to {there}"));
    };
    let seen = format!("{name}, as whom `fetch` runs, may not write to {there}: {why}");
    let mend = let_write(&name);
    match place == folder {
        // It may all be there, and nothing to be written.
        true => Finding::warn(RIGHT, seen, mend),
        false => Finding::fail(RIGHT, Failure::new(seen).hint(mend)),
    }
}

/// What `fetch` would refuse to begin.
fn room(
    spec: &SwapSpec,
    fetch: &FetchSpec,
    (user, here): (&Inherited, Option<&ImageHere>),
) -> Option<Finding> {
    let size = fetch.size?;
    let folder = weights::brought_to(spec, (&spec.replica.env, &user.home), here);
    Some(match room_for(&folder, size) {
        Ok(()) => Finding::ok(
            ROOM,
            format!("{} has room for what is missing of {}", folder.display(), bytes(size)),
        ),
        Err(failure) => Finding::fail(ROOM, failure),
    })
}
