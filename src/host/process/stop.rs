//! Ends process trees, and proves that they ended.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout};

use super::ProcessError;
use super::find::spare;
use super::program::Program;
use super::table::{Table, alive, find_marked};
use crate::model::failure::Failure;
use crate::model::ids::ProcessId;
use crate::model::replica::Keeper;
use crate::swap::redact::redact;

/// How often a tree that ends is looked at again: a process may start another one at any time, and that is no event.
const RESCAN: Duration = Duration::from_millis(100);

/// A killed process is gone at once, unless a driver holds it: unmapping 100 GB of GPU and pinned memory takes seconds.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// How long a wrapper gets to start a program again. supervisord, runit and s6 take a second, scripts sleep a few.
const RESTART_WATCH: Duration = Duration::from_secs(5);

/// What is to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOrder {
    /// The root of the tree: the only one that is asked to end.
    pub main: ProcessId,
    /// What was known of the tree before; its members count even if `main` is gone and they have other parents now.
    pub tree: Vec<ProcessId>,
    /// Value of `MODEL_SWAP_REPLICA`, if the replica was started here: also names what `main` left behind if it is gone.
    pub marker: Option<String>,
    /// From SIGTERM to SIGKILL: what the engine needs to end by itself.
    pub grace: Duration,
    /// What supervises it.
    pub keeper: Keeper,
}

impl StopOrder {
    /// The order to stop the processes that carry the marker; `None` if there are none.
    ///
    /// # Errors
    /// If the processes can't be listed.
    pub fn marked(marker: &str, grace: Duration) -> Result<Option<Self>, ProcessError> {
        let tree = find_marked(marker)?;
        let table = Table::read()?;
        // The oldest, but a replica's main process leads a session.
        let main = tree.iter().copied().min_by_key(|id| (!table.leads(*id), id.start, id.pid));
        Ok(main.map(|main| Self {
            main,
            tree,
            marker: Some(marker.to_owned()),
            grace,
            keeper: Keeper::Nobody,
        }))
    }
}

/// What it took to stop a tree. Every process of it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stopped {
    /// Everything that ended, oldest first.
    pub ended: Vec<ProcessId>,
    /// Those that had to be killed.
    pub forced: Vec<ProcessId>,
    /// Why what it wrote could not be kept, if so.
    pub unkept: Option<Failure>,
}

/// Waits until the process is gone; returns at once if it is. A zombie is gone.
///
/// # Errors
/// If it can't be watched.
pub async fn exited(process: ProcessId) -> Result<(), ProcessError> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    let watch = |source| ProcessError::Signal { what: "watch", process, source };
    #[expect(
        deprecated,
        reason = "sound for a descriptor that it owns; the successor is an unsafe function"
    )]
    let ended = AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(watch)?;
    ended.readable().await.map(drop).map_err(watch)
}

/// Asks the main process to end, waits for the whole tree, and kills what is left of it after the grace.
///
/// If the main process is gone already, the first of those that it left behind are asked instead.
///
/// # Errors
/// If a process can't be signalled, if some outlive SIGKILL (they are named), if the tree holds this agent, or if others live on
/// its main process.
pub async fn stop(order: &StopOrder) -> Result<Stopped, ProcessError> {
    let mut known = members(order)?;
    let asked = if alive(order.main) { vec![order.main] } else { roots(&known)? };
    for process in asked {
        signal(process, Signal::TERM, "end")?;
    }
    await_end(&mut known, order.grace).await?;
    kill(known).await
}

/// Kills the whole tree at once, with its requests in flight.
///
/// No SIGTERM first: vLLM would end its streams as if they were complete, and their readers could not tell.
///
/// # Errors
/// As [`stop`].
pub async fn cut(order: &StopOrder) -> Result<Stopped, ProcessError> {
    kill(members(order)?).await
}

/// Watches whether a wrapper starts its program again after a stop: a new process below it with the same redacted argv.
///
/// Ends early if the wrapper does. `None` means: not within five seconds.
///
/// # Errors
/// If the processes can't be listed.
pub async fn restarted_by(
    wrapper: ProcessId,
    argv: &[String],
) -> Result<Option<ProcessId>, ProcessError> {
    let deadline = Instant::now() + RESTART_WATCH;
    while Instant::now() < deadline && alive(wrapper) {
        let table = Table::read()?;
        let again = |process: &ProcessId| {
            Program::of(*process).is_some_and(|program| redact(&program.argv) == argv)
        };
        if let Some(process) = table.tree(wrapper).into_iter().skip(1).find(again) {
            return Ok(Some(process));
        }
        sleep(RESCAN).await;
    }
    Ok(None)
}

/// Everything that an order concerns, living or not.
fn members(order: &StopOrder) -> Result<BTreeSet<ProcessId>, ProcessError> {
    spare(order.main)?;
    let table = Table::read()?;
    let named = order.tree.iter().copied().chain([order.main]);
    let mut known: BTreeSet<_> = named.filter(|process| *process != ProcessId::GONE).collect();
    if let Some(marker) = &order.marker {
        known.extend(find_marked(marker)?);
        known.extend(table.orphans(order.main, marker));
    }
    table.grow(&mut known);
    match table.own_line().intersection(&known).next() {
        Some(own) => Err(ProcessError::Own(*own)),
        None => Ok(known),
    }
}

/// Those whose parent is not among them.
fn roots(known: &BTreeSet<ProcessId>) -> Result<Vec<ProcessId>, ProcessError> {
    let table = Table::read()?;
    let is_root = |id: &ProcessId| table.parent(*id).is_none_or(|parent| !known.contains(&parent));
    Ok(known.iter().copied().filter(is_root).collect())
}

/// Waits until all of them are gone, at most `limit`, and learns of descendants that come up meanwhile.
async fn await_end(known: &mut BTreeSet<ProcessId>, limit: Duration) -> Result<(), ProcessError> {
    let deadline = Instant::now() + limit;
    loop {
        let table = Table::read()?;
        table.grow(known);
        let Some(left) = known.iter().copied().find(|id| table.holds(*id)) else { return Ok(()) };
        let now = Instant::now();
        if now >= deadline {
            return Ok(());
        }
        if let Ok(ended) = timeout(RESCAN.min(deadline - now), exited(left)).await {
            ended?;
        }
    }
}

/// Kills what is left, again and again while it starts others, and proves that nothing is.
async fn kill(mut known: BTreeSet<ProcessId>) -> Result<Stopped, ProcessError> {
    let mut forced = BTreeSet::new();
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let table = Table::read()?;
        table.grow(&mut known);
        let left: Vec<_> = known.iter().copied().filter(|id| table.holds(*id)).collect();
        let Some(first) = left.first() else { break };
        if Instant::now() >= deadline {
            return Err(ProcessError::Survivors { processes: left, limit: KILL_LIMIT });
        }
        for process in &left {
            signal(*process, Signal::KILL, "kill")?;
            forced.insert(*process);
        }
        if let Ok(ended) = timeout(RESCAN, exited(*first)).await {
            ended?;
        }
    }
    let oldest_first = |set: BTreeSet<ProcessId>| {
        let mut list: Vec<_> = set.into_iter().collect();
        list.sort_unstable_by_key(|id| (id.start, id.pid));
        list
    };
    Ok(Stopped { ended: oldest_first(known), forced: oldest_first(forced), unkept: None })
}

/// Signals exactly this process; nothing if it is gone.
pub(super) fn signal(
    process: ProcessId,
    signal: Signal,
    what: &'static str,
) -> Result<(), ProcessError> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(ProcessError::Signal { what, process, source: errno.into() }),
    }
}

/// A handle on exactly this process; `None` if it is gone.
fn open(process: ProcessId) -> Result<Option<OwnedFd>, ProcessError> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // It lived before and still does, so nothing else had its pid when the handle was made.
        Ok(pidfd) => Ok(alive(process).then_some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(ProcessError::Signal { what: "watch", process, source: errno.into() }),
    }
}

#[cfg(test)]
mod tests;
