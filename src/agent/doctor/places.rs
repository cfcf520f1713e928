//! Who we are here, and the folders: state, what an earlier swap left in it, the models' cache.

use std::path::{Path, PathBuf};

use super::size;
use crate::executor::{Unfinished, unfinished_swaps};
use crate::host::disk::{self, Folder};
use crate::host::nginx::UpstreamView;
use crate::host::process::user_name;
use crate::host::{Host, SystemHost};
use crate::lease::Lease;
use crate::model::checkup::Finding;
use crate::model::failure::Failure;
use crate::model::spec::SwapSpec;
use crate::service_dir::ServiceDir;

/// Less room than this for journals, logs and binaries, and a swap is about to fail in the middle.
const LEAST_STATE: u64 = 64 << 20;
/// Below this, logs of a few replicas fill what is left.
const LITTLE_STATE: u64 = 1 << 30;
/// Weights that are not in the cache yet need far more than this: 8 billion parameters in 16 bits have 16 GB.
const LITTLE_CACHE: u64 = 16 << 30;

const STATE: &str = "state folder";
const ROOM: &str = "room for state";
const LEFT: &str = "unfinished swap";
const MODEL: &str = "model on disk";

pub(super) fn look(dir: &ServiceDir) -> Vec<Finding> {
    let state_dir = dir.state_dir();
    let mut findings = vec![privileges()];
    match disk::folder(state_dir) {
        Ok(folder) => findings.extend([state_folder(state_dir, &folder), room(&folder)]),
        Err(error) => {
            let failure = Failure {
                causes: vec![error.to_string()],
                ..Failure::new(format!("cannot look at {}", state_dir.display()))
            };
            findings.push(Finding::fail(STATE, failure));
        }
    }
    if let Err(error) = dir.load() {
        findings.push(Finding::fail("state of the service", error));
    }
    findings.push(unfinished(dir));
    findings
}

fn privileges() -> Finding {
    let uid = rustix::process::geteuid();
    let name = user_name(uid.as_raw());
    let seen = match std::env::var("SUDO_USER") {
        Ok(caller) if uid.is_root() => format!("root through sudo -n, for {caller}"),
        _ if uid.is_root() => "root".to_owned(),
        _ => format!("{name}, without root: nginx, its files and the replicas must be this user's"),
    };
    Finding::ok("privileges", seen)
}

fn state_folder(wanted: &Path, folder: &Folder) -> Finding {
    let own = rustix::process::geteuid().as_raw();
    let there = folder.there.display();
    let owner = user_name(folder.uid);
    if !folder.writable {
        let seen = format!("{there} (owner {owner}, mode {:o}) cannot be written to", folder.mode);
        let mend =
            format!("chown -R {} {there}, or set state_dir to another folder", user_name(own));
        return Finding::fail(STATE, Failure::new(seen).hint(mend));
    }
    if folder.there != wanted {
        return Finding::ok(
            STATE,
            format!("{} is made by the first swap, in {there}", wanted.display()),
        );
    }
    if folder.uid != own {
        let seen = format!("{there} belongs to {owner}, and the agent runs as {}", user_name(own));
        let mend =
            format!("chown -R {} {there}, or set state_dir to another folder", user_name(own));
        return Finding::fail(STATE, Failure::new(seen).hint(mend));
    }
    Finding::ok(STATE, format!("{there}, owner {owner}, mode {:o}", folder.mode))
}

fn room(folder: &Folder) -> Finding {
    let seen = format!("{} free in {}", size(folder.free), folder.there.display());
    let mend = "make room, or set state_dir to a folder on another disk";
    match folder.free {
        ..LEAST_STATE => Finding::fail(ROOM, Failure::new(seen).hint(mend)),
        LEAST_STATE..LITTLE_STATE => Finding::warn(ROOM, seen, mend),
        _ => Finding::ok(ROOM, seen),
    }
}

fn unfinished(dir: &ServiceDir) -> Finding {
    if let Some(holder) = Lease::holder(&dir.root()) {
        let seen = format!("{} {} is at work since {}", holder.command, holder.swap, holder.since);
        return Finding::warn(LEFT, seen, "wait until it ends: model-swap status shows it");
    }
    match Lease::left_by_the_dead(&dir.root()) {
        Some(holder) => Finding::warn(
            LEFT,
            format!("{} {} was left by an agent that is gone", holder.command, holder.swap),
            "the next swap, rollback or abort brings it to its end first",
        ),
        // What a person has to mend is a finding of its own.
        None => {
            match unfinished_swaps(dir).into_iter().find(|unfinished| !unfinished.needs_a_person())
            {
                Some(Unfinished { swap, found, .. }) => Finding::warn(
                    LEFT,
                    format!("swap {swap} is not at its end: {found}"),
                    "the next swap, rollback, abort or repair brings it there first",
                ),
                None => Finding::ok(LEFT, "none"),
            }
        }
    }
}

/// Where the weights are, or would be fetched to by the engine: the new model runs as the user of the one that serves.
pub(super) async fn model(
    host: &SystemHost,
    spec: &SwapSpec,
    upstream: Option<&UpstreamView>,
) -> Finding {
    if spec.model.starts_with('/') {
        let found = Path::new(&spec.model).exists();
        return match found {
            true => Finding::ok(MODEL, format!("{} is there", spec.model)),
            false => Finding::fail(
                MODEL,
                Failure::new(format!("there is no {}", spec.model))
                    .hint("bring the weights there, or correct `model`"),
            ),
        };
    }
    let serves = match upstream {
        Some(view) => host.find(view.port).await.ok().flatten(),
        None => None,
    };
    let user = host.inherited(serves.map(|found| found.main));
    let Some(hub) = hub(spec, user.ok().map(|user| user.home)) else {
        return Finding::unseen(MODEL, "the home of the replica's user is not known");
    };
    // Folders of the hub's cache (huggingface_hub, `constants.py` and `file_download.py`).
    let cached = hub.join(format!("models--{}", spec.model.replace('/', "--")));
    if cached.is_dir() {
        return Finding::ok(MODEL, format!("{} is there", cached.display()));
    }
    match disk::folder(&hub) {
        Ok(folder) => {
            let seen =
                format!("not in {} yet, where {} are free", hub.display(), size(folder.free));
            match folder.free {
                ..LITTLE_CACHE => Finding::warn(
                    MODEL,
                    seen,
                    "make room for the weights, or set HF_HOME in replica.env to a larger disk",
                ),
                _ => Finding::ok(MODEL, seen),
            }
        }
        Err(error) => Finding::unseen(MODEL, format!("{}: {error}", hub.display())),
    }
}

/// The hub's cache, as the replica's environment and its user's home choose it.
fn hub(spec: &SwapSpec, home: Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| spec.replica.env.get(name).map(PathBuf::from);
    let home = || Some(home?.join(".cache/huggingface"));
    set("HF_HUB_CACHE").or_else(|| Some(set("HF_HOME").or_else(home)?.join("hub")))
}
