//! From a TCP port to the process tree that listens on it.

use std::collections::{BTreeMap, BTreeSet};

use procfs::process::{FDTarget, Process};

use super::ProcessError;
use super::keeper::{keeper, published_by};
use super::listen::listening;
use super::program::Program;
use super::table::{Row, Table, row};
use crate::model::ids::{Port, ProcessId};
use crate::model::replica::{Found, Keeper};
use crate::swap::redact::redact;

/// The process tree that listens on a TCP port of this host, on any address; `None` if nobody does.
///
/// A port that is published by packet filter alone (Docker without its proxy) has no listener here.
///
/// # Errors
/// If the owner of the socket can't be seen, if unrelated processes share the port, or if it is one that others live on.
pub async fn find(port: Port) -> Result<Option<Found>, ProcessError> {
    let table = Table::read()?;
    let listeners: Vec<_> = listeners(port)?.into_iter().filter(|id| table.holds(*id)).collect();
    let roots: BTreeSet<_> = listeners.iter().map(|listener| root(*listener, &table)).collect();
    // A child that inherited the socket and runs another program belongs to its ancestor all the same.
    let below: BTreeSet<_> =
        roots.iter().flat_map(|root| table.tree(*root).into_iter().skip(1)).collect();
    // Docker holds a published port with one proxy for IPv4 and another for IPv6.
    let mut seen = BTreeSet::new();
    let is_new =
        |root: &&ProcessId| published_by(**root).is_none_or(|address| seen.insert(address));
    let mains: Vec<_> = roots.difference(&below).filter(is_new).copied().collect();
    let main = match mains[..] {
        [] => return Ok(None),
        [main] => main,
        _ => {
            return Err(ProcessError::SharedPort {
                port,
                processes: mains.into_iter().map(describe).collect(),
            });
        }
    };
    let tree = table.tree(main);
    let Some(program) = Program::of(main) else { return Ok(None) };
    let keeper = keeper(main, &tree, &table).await?;
    if !matches!(keeper, Keeper::Container(_)) {
        no_foundation(port, main)?;
    }
    Ok(Some(Found {
        main,
        tree,
        listeners,
        argv: redact(&program.argv),
        cwd: Process::new(main.pid).and_then(|process| process.cwd()).ok(),
        uid: program.uid,
        keeper,
    }))
}

/// Every process that holds a LISTEN socket on a TCP port of this host, on any address.
///
/// # Errors
/// If a socket's owner can't be seen: it belongs to another user, and the agent is not root.
pub fn listeners(port: Port) -> Result<Vec<ProcessId>, ProcessError> {
    let mut unowned: BTreeMap<u64, u32> =
        listening(port)?.into_iter().map(|socket| (socket.inode, socket.uid)).collect();
    if unowned.is_empty() {
        return Ok(Vec::new());
    }
    let wanted: BTreeSet<u64> = unowned.keys().copied().collect();
    let mut owners = Vec::new();
    for process in procfs::process::all_processes().map_err(ProcessError::Table)?.flatten() {
        let held = held_sockets(&process, &wanted);
        if let Some(Row { id, .. }) = row(process.pid).filter(|_| !held.is_empty()) {
            owners.push(id);
            unowned.retain(|inode, _| !held.contains(inode));
        }
    }
    // A socket that was closed while the owners were looked for is nobody's.
    let left = if unowned.is_empty() { Vec::new() } else { listening(port)? };
    match left.iter().find(|socket| unowned.contains_key(&socket.inode)) {
        Some(socket) => Err(ProcessError::UnseenOwner { port, uid: socket.uid }),
        None => Ok(owners),
    }
}

/// Which of the sockets a process holds; none if its files can't be listed.
fn held_sockets(process: &Process, wanted: &BTreeSet<u64>) -> BTreeSet<u64> {
    let Ok(files) = process.fd() else { return BTreeSet::new() };
    files
        .flatten()
        .filter_map(|file| match file.target {
            FDTarget::Socket(inode) if wanted.contains(&inode) => Some(inode),
            _ => None,
        })
        .collect()
}

/// Climbs from a listener to the first process of the same program.
fn root(listener: ProcessId, table: &Table) -> ProcessId {
    let own = table.own_line();
    let mut root = listener;
    while let Some(parent) =
        table.parent(root).filter(|parent| parent.pid > 1 && !own.contains(parent))
    {
        match (Program::of(parent), Program::of(root)) {
            (Some(above), Some(below)) if above.includes(&below) => root = parent,
            _ => break,
        }
    }
    root
}

/// Whether others live on a process: it is never a model.
fn is_foundation(process: ProcessId) -> bool {
    process.pid == 1 || Program::of(process).is_some_and(|program| program.is_foundation())
}

/// Whether what is found on a port may be a model.
///
/// # Errors
/// If others live on it.
pub(in crate::host) fn no_foundation(port: Port, main: ProcessId) -> Result<(), ProcessError> {
    match is_foundation(main) {
        true => Err(ProcessError::Foundation { port, process: describe(main) }),
        false => Ok(()),
    }
}

/// The last look before the main process of a tree is stopped.
///
/// # Errors
/// If others live on it, whatever made it pass for a replica's.
pub(in crate::host) fn spare(main: ProcessId) -> Result<(), ProcessError> {
    if is_foundation(main) { Err(ProcessError::Spared(describe(main))) } else { Ok(()) }
}

/// Pid and redacted command.
pub(super) fn describe(process: ProcessId) -> String {
    let argv = Program::of(process).map(|program| redact(&program.argv)).unwrap_or_default();
    format!("{process} ({})", argv.join(" "))
}

#[cfg(test)]
mod tests;
