//! Who we are here, and the folders: state, what an earlier swap left in it.

use std::path::Path;

use super::size;
use crate::executor::{Unfinished, unfinished_swaps};
use crate::host::disk::{self, Folder};
use crate::host::process::user_name;
use crate::lease::{Lease, LeaseError};
use crate::model::checkup::{Finding, Mark};
use crate::model::failure::{Failure, Hint};
use crate::service_dir::ServiceDir;

/// Less room than this for journals, logs and binaries, and a swap is about to fail in the middle.
const LEAST_STATE: u64 = 64 << 20;
/// Below this, logs of a few replicas fill what is left.
const LITTLE_STATE: u64 = 1 << 30;

const STATE: &str = "state folder";
const ROOM: &str = "room for state";
const UNDERWAY: &str = "swap under way";
const LEFT: &str = "unfinished swap";

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
        let held = LeaseError::Held { holder: Some(Box::new(holder)) };
        return Finding { mark: Mark::Warn, ..Finding::fail(UNDERWAY, held.to_failure()) };
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
