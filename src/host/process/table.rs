//! One look at `/proc`: who lives, who descends from whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use procfs::process::Stat;

use super::ProcessError;
use crate::model::ids::ProcessId;
use crate::model::wire::MARKER;

/// Whether this very process lives: not a zombie, and not a later one of the same pid.
pub fn alive(process: ProcessId) -> bool {
    row(process.pid).is_some_and(|row| row.id == process)
}

/// The calling process.
pub fn own() -> ProcessId {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    // Without /proc nothing here works at all; a start time of 0 belongs to no process.
    with_pid(pid)
}

/// What tells this boot of the machine from every other one (random(4)).
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

/// The process that has this pid now; one that is gone, if none has.
pub fn with_pid(pid: i32) -> ProcessId {
    row(pid).map_or(ProcessId { pid, start: 0 }, |row| row.id)
}

/// The files that a process writes its output to, as far as they may be looked at.
pub fn outputs(process: ProcessId) -> BTreeSet<PathBuf> {
    let stream = |number: u8| std::fs::read_link(format!("/proc/{process}/fd/{number}")).ok();
    [1, 2].into_iter().filter_map(stream).filter(|file| file.is_file()).collect()
}

/// The executables under a folder that are running, as far as they may be looked at; one whose file was removed or replaced has
/// ` (deleted)` behind its name (proc_pid_exe(5)).
pub fn programs_in(folder: &Path) -> BTreeSet<PathBuf> {
    let processes = procfs::process::all_processes().into_iter().flatten().flatten();
    processes
        .filter_map(|process| process.exe().ok())
        .filter(|program| program.starts_with(folder))
        .collect()
}

/// The process and all its living descendants, the process itself first; empty if it is gone.
///
/// # Errors
/// If the processes can't be listed.
pub fn tree(main: ProcessId) -> Result<Vec<ProcessId>, ProcessError> {
    Ok(Table::read()?.tree(main))
}

/// Living processes that carry `MODEL_SWAP_REPLICA=<marker>` in their environment, oldest first.
///
/// Descendants that wrote a title over their environment (vLLM's engine core and workers do) are not among them:
/// they are found by their descent.
///
/// # Errors
/// If the processes can't be listed.
pub fn find_marked(marker: &str) -> Result<Vec<ProcessId>, ProcessError> {
    carrying(MARKER, marker)
}

/// Living processes that have a variable with this value in their environment, oldest first.
///
/// # Errors
/// If the processes can't be listed.
pub fn carrying(name: &str, value: &str) -> Result<Vec<ProcessId>, ProcessError> {
    let entry = format!("{name}={value}");
    let table = Table::read()?;
    let own = table.own_line();
    let mut marked: Vec<_> = table
        .rows()
        .map(|row| row.id)
        .filter(|id| !own.contains(id) && mark(*id, &entry) == Mark::Present)
        .collect();
    marked.sort_unstable_by_key(|id| (id.start, id.pid));
    Ok(marked)
}

/// A living process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) id: ProcessId,
    pub(super) parent: i32,
    /// Pid of the session's leader, alive or not.
    session: i32,
}

/// Whether a process carries a variable.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    Present,
    Absent,
    /// Its environment is blank: overwritten by a title, or never there.
    Unknown,
}

/// Every living process at one moment, by pid.
#[derive(Debug)]
pub(super) struct Table(BTreeMap<i32, Row>);

impl Table {
    pub(super) fn read() -> Result<Self, ProcessError> {
        let processes = procfs::process::all_processes().map_err(ProcessError::Table)?;
        let stats = processes.filter_map(|process| process.ok()?.stat().ok());
        Ok(Self(stats.filter_map(|stat| living(&stat)).map(|row| (row.id.pid, row)).collect()))
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.0.values()
    }

    pub(super) fn holds(&self, process: ProcessId) -> bool {
        self.0.get(&process.pid).is_some_and(|row| row.id == process)
    }

    pub(super) fn parent(&self, process: ProcessId) -> Option<ProcessId> {
        let row = self.0.get(&process.pid).filter(|row| row.id == process)?;
        self.0.get(&row.parent).map(|parent| parent.id)
    }

    /// This process and everything that it descends from: never part of a replica.
    pub(super) fn own_line(&self) -> BTreeSet<ProcessId> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let first = self.0.get(&own).map(|row| row.id);
        std::iter::successors(first, |process| self.parent(*process)).collect()
    }

    pub(super) fn tree(&self, main: ProcessId) -> Vec<ProcessId> {
        if !self.holds(main) {
            return Vec::new();
        }
        let mut known = BTreeSet::from([main]);
        self.grow(&mut known);
        known.remove(&main);
        std::iter::once(main).chain(known).collect()
    }

    /// Adds every living process that descends from a known living one.
    pub(super) fn grow(&self, known: &mut BTreeSet<ProcessId>) {
        let mut next: Vec<_> = known.iter().copied().filter(|id| self.holds(*id)).collect();
        while let Some(process) = next.pop() {
            for row in self.rows().filter(|row| row.id != process && row.descends_from(process)) {
                if known.insert(row.id) {
                    next.push(row.id);
                }
            }
        }
    }

    /// What an ended main process left behind in the session that it led, if it carried the marker.
    ///
    /// The pid of a session's leader is not given away while the session has members. It may be afterwards, so a
    /// process with another marker or none, and a legible environment, is a stranger.
    pub(super) fn orphans(&self, main: ProcessId, marker: &str) -> Vec<ProcessId> {
        // Session 0 has no leader: the kernel's own threads are in it.
        if main == ProcessId::GONE || self.0.contains_key(&main.pid) {
            return Vec::new();
        }
        let members =
            self.rows().filter(|row| row.session == main.pid && row.id.start >= main.start);
        let entry = format!("{MARKER}={marker}");
        members.map(|row| row.id).filter(|id| mark(*id, &entry) != Mark::Absent).collect()
    }

    /// Whether the process leads a session.
    pub(super) fn leads(&self, process: ProcessId) -> bool {
        self.0.get(&process.pid).is_some_and(|row| row.id == process && row.session == process.pid)
    }
}

impl Row {
    /// Child of a living process, or member of the session that it leads.
    fn descends_from(&self, process: ProcessId) -> bool {
        self.parent == process.pid
            || (self.session == process.pid && self.id.start >= process.start)
    }
}

/// The process that has this pid now, unless it is a zombie.
pub(super) fn row(pid: i32) -> Option<Row> {
    living(&procfs::process::Process::new(pid).ok()?.stat().ok()?)
}

fn living(stat: &Stat) -> Option<Row> {
    // A leader that ended before its other threads is shown as a zombie, but the process lives.
    let ended = matches!(stat.state, 'Z' | 'X' | 'x') && stat.num_threads <= 1;
    let id = ProcessId { pid: stat.pid, start: stat.starttime };
    (!ended).then_some(Row { id, parent: stat.ppid, session: stat.session })
}

fn mark(process: ProcessId, entry: &str) -> Mark {
    let Ok(environ) = std::fs::read(format!("/proc/{process}/environ")) else {
        return Mark::Absent;
    };
    if environ.split(|byte| *byte == 0).any(|there| there == entry.as_bytes()) {
        Mark::Present
    } else if is_blank(&environ) {
        Mark::Unknown
    } else {
        Mark::Absent
    }
}

/// Whether nothing is left of an environment: titles are padded with NULs or blanks.
pub(super) fn is_blank(environ: &[u8]) -> bool {
    environ.iter().all(|byte| matches!(byte, 0 | b' '))
}

#[cfg(test)]
mod tests;
