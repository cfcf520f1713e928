//! Housekeeping: what no command can need any more goes when a swap is over. The limits are stated here and in the README.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::follow::AGENT;
use crate::host::{durable, process, runtime};
use crate::journal::Journal;
use crate::lease::{Lease, waiting};
use crate::model::ids::{ProcessId, SwapId};
use crate::service_dir::ServiceDir;

/// Binaries that stay beside the ones in use, the last ones that worked here: workflows of several releases may share a
/// server.
const BINARIES: usize = 3;

/// Logs that stay of replicas that are gone: `logs` shows the newest one.
const LOGS: usize = 10;

/// The agents' own words beyond which a new file is begun, in bytes. The one before is kept.
const AGENT_LOG: u64 = 1 << 20;

/// An order to abort may come before its swap begins, and is looked at when it does. A runner's word lies beside its swap.
const ORDER_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A binary that is being brought is there for minutes at most.
const BRINGING: Duration = Duration::from_secs(60 * 60);

/// A file is put in its place within moments of being begun, and a unit within moments of its environment.
const MAKING: Duration = Duration::from_secs(60 * 60);

/// How the name of a file begins that a binary is brought in.
const PART: &str = ".model-swap.";

/// Where a host's own units are (systemd.unit(5)).
pub(super) const UNITS: &str = "/etc/systemd/system";

/// Hex digits of a SHA-256.
const DIGEST: usize = 64;

/// Removes what is past its limit, half-made files beside nginx's file included. What the disk refuses is left for the next
/// time.
pub(super) fn prune(dir: &ServiceDir, nginx: &Path) {
    // In this order, so that no swap falls between: one that begins is at work before it has a folder, and one that ends
    // is in the history before its lease is free.
    let swaps = dir.swaps();
    let at_work: Vec<_> = [Lease::holder(&dir.root()), Lease::left_by_the_dead(&dir.root())]
        .into_iter()
        .flatten()
        .flat_map(|holder| [holder.works_on().clone(), holder.swap])
        .collect();
    let Ok(state) = dir.load() else { return };
    let warm = state.retained.as_ref().map(|retained| &retained.replica);
    let living: BTreeSet<SwapId> = state
        .serving
        .iter()
        .chain(warm)
        .filter_map(|replica| replica.swap.clone())
        .chain(at_work)
        .collect();
    let told: BTreeSet<SwapId> = state
        .history
        .into_iter()
        .map(|past| past.swap)
        .chain(state.serving_swap)
        .chain(state.retained.map(|retained| retained.swap))
        .chain(living.iter().cloned())
        .collect();
    let is_needed = |swap: &SwapId| told.contains(swap) || is_unfinished(&dir.swap(swap));
    let (kept, gone): (Vec<_>, Vec<_>) = swaps.into_iter().partition(is_needed);
    for swap in &gone {
        let _ = fs::remove_dir_all(dir.swap(swap));
    }
    let logs = kept
        .iter()
        .filter(|swap| !living.contains(swap) && !is_unfinished(&dir.swap(swap)))
        .map(|swap| dir.replica_log(swap))
        .filter(|log| log.exists());
    for (rank, log) in logs.enumerate() {
        let _ = if rank < LOGS { cut(&log) } else { fs::remove_file(log) };
    }
    for swap in kept.iter().filter(|swap| !is_unfinished(&dir.swap(swap))) {
        let _ = cut(&dir.fetch_log(swap));
    }
    prune_orders(&dir.aborts(), &kept);
    prune_orders(&dir.confirmations(), &kept);
    waiting::forget_the_dead(dir);
    prune_strays(written_to(dir, &kept, nginx).flat_map(|folder| durable::unfinished(&folder)));
    prune_strays(runtime::stray_environments());
    begin_anew(&dir.root().join("agent.log"));
    if let Some((folder, own)) = binaries() {
        prune_binaries(&folder, &own, &named_by_units(Path::new(UNITS)));
    }
}

/// Every folder in which files are put in the place of others.
fn written_to(dir: &ServiceDir, swaps: &[SwapId], nginx: &Path) -> impl Iterator<Item = PathBuf> {
    let shared = [dir.state_dir().to_owned(), dir.claims(), UNITS.into()];
    let own = [dir.root(), dir.aborts(), dir.waiting(), dir.confirmations()];
    let real = nginx.canonicalize().ok().and_then(|file| Some(file.parent()?.to_owned()));
    shared.into_iter().chain(own).chain(swaps.iter().map(|swap| dir.swap(swap))).chain(real)
}

/// Whether somebody works on a swap, or would have to.
fn is_unfinished(folder: &Path) -> bool {
    let agent = fs::read(folder.join(AGENT))
        .ok()
        .and_then(|text| serde_json::from_slice::<ProcessId>(&text).ok());
    agent.is_some_and(process::alive)
        || (Journal::has_begun(folder) && !Journal::is_at_its_end(folder))
}

fn prune_orders(folder: &Path, kept: &[SwapId]) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of_kept = kept.iter().any(|swap| name.to_str() == Some(&format!("{swap}.json")));
        if !of_kept && is_older(&entry.path(), ORDER_AGE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes what a crash left between two writes.
fn prune_strays(files: impl IntoIterator<Item = PathBuf>) {
    for file in files.into_iter().filter(|file| is_older(file, MAKING)) {
        let _ = fs::remove_file(file);
    }
}

/// Leaves the end of a log that nobody writes any more.
fn cut(log: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(log)?;
    process::keep_end(&file, process::KEPT).map(drop)
}

/// Agents that still write to the old file go on doing so.
fn begin_anew(log: &Path) {
    if fs::metadata(log).is_ok_and(|found| found.len() > AGENT_LOG) {
        let _ = fs::rename(log, log.with_extension("log.old"));
    }
}

/// The folder of all binaries, and the name of this one's folder in it; `None` for a binary that was put in its place by
/// somebody else.
pub(super) fn binaries() -> Option<(PathBuf, String)> {
    let own = std::env::current_exe().ok()?;
    let folder = own.parent()?;
    let digest = folder.file_name()?.to_str().filter(|name| is_digest(name))?;
    Some((folder.parent()?.to_owned(), digest.to_owned()))
}

/// Whether a folder is named after the binary in it.
pub(super) fn is_digest(name: &str) -> bool {
    name.len() == DIGEST && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Removes binaries that are neither in use nor among the last ones that were.
fn prune_binaries(folder: &Path, own: &str, units: &str) {
    // The time of a folder says when its binary worked last.
    let _ = fs::File::open(folder.join(own)).and_then(|own| own.set_modified(SystemTime::now()));
    let mut found: Vec<(SystemTime, String)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            is_digest(&name).then_some((entry.metadata().ok()?.modified().ok()?, name))
        })
        .collect();
    found.sort_unstable();
    let running = process::programs_in(folder);
    for (rank, (_, name)) in found.into_iter().rev().enumerate() {
        let place = folder.join(&name);
        let pushes = clear_remains(&place);
        let is_used = pushes == Pushes::OneLives
            || running.iter().any(|program| program.starts_with(&place))
            || units.contains(&name);
        if !is_used && rank >= BINARIES {
            let _ = fs::remove_dir_all(place);
        }
    }
}

/// What is there of pushes of a binary after the remains of dead ones are gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushes {
    /// One is under way.
    OneLives,
    /// None is.
    None,
}

/// Removes what pushes of a binary have left that were killed before they could: each writes to a file that is named after
/// its shell on this server (`remote::line`).
pub(super) fn clear_remains(place: &Path) -> Pushes {
    let worked = fs::metadata(place).and_then(|place| place.modified());
    let mut found = Pushes::None;
    for part in children(place) {
        let name = part.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let shell = name.strip_prefix(PART).and_then(|pid| pid.parse().ok());
        let Some(shell) = shell.map(process::with_pid) else { continue };
        // Another process may have its pid by now; a push that stands still for so long comes to nothing any more.
        if process::alive(shell) && !is_older(&part, BRINGING) {
            found = Pushes::OneLives;
        } else {
            let _ = fs::remove_file(part);
        }
    }
    // That was no work of the binary, whose age its folder's time says.
    let _ = worked.and_then(|at| fs::File::open(place)?.set_modified(at));
    found
}

/// The text of every unit of this project: a unit that is enabled starts its binary at the next boot.
pub(super) fn named_by_units(folder: &Path) -> String {
    let mut files: Vec<PathBuf> = children(folder)
        .into_iter()
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("model-swap"))
        })
        .collect();
    let inner: Vec<PathBuf> = files.iter().flat_map(|path| children(path)).collect();
    files.extend(inner);
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = || -> io::Result<SystemTime> { fs::symlink_metadata(path)?.modified() };
    modified().is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age))
}

#[cfg(test)]
mod tests;
