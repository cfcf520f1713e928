//! Who else a unit's main process keeps: to stop the unit would stop them too.

use std::collections::BTreeSet;

use super::ProcessError;
use super::find::describe;
use super::keeper::cgroups;
use super::program::Program;
use super::table::Table;
use crate::model::ids::ProcessId;

/// A process that a unit ends with a replica and that is no part of it: pid and redacted command. Of several the oldest.
///
/// Only a main process that is no part of the replica itself keeps others: a supervisor, a script, or what runs one. What a script
/// runs for its model alone is no other. A program of any other kind between the two is one: what it does beside nobody knows.
///
/// # Errors
/// If the processes can't be listed.
pub(in crate::host) fn beside(
    unit_main: ProcessId,
    tree: &[ProcessId],
) -> Result<Option<String>, ProcessError> {
    if tree.contains(&unit_main) {
        return Ok(None);
    }
    let Some(keeper) = Program::of(unit_main) else { return Ok(None) };
    let table = Table::read()?;
    let mut part: BTreeSet<_> = tree.iter().copied().collect();
    table.grow(&mut part);
    let above = |child: &ProcessId| table.parent(*child).filter(|_| *child != unit_main);
    let line: Vec<_> = std::iter::successors(tree.first().copied(), above).collect();
    let is_unknown = |process: &&ProcessId| {
        !tree.contains(process)
            && Program::of(**process).is_some_and(|program| !program.wraps() && !program.runs_one())
    };
    // It may have been replaced since it was looked at; above init there is nobody.
    let unknown = line.iter().find(is_unknown).filter(|_| line.contains(&unit_main));
    if let Some(unknown) = unknown {
        return Ok(Some(describe(*unknown)));
    }
    part.extend(line);
    part.insert(unit_main);
    let below: BTreeSet<_> = table.tree(unit_main).into_iter().collect();
    let group = cgroups(unit_main.pid).into_iter().find(|path| path.ends_with(".service"));
    let in_group = |process: ProcessId| {
        group.as_ref().is_some_and(|group| {
            cgroups(process.pid).iter().any(|path| {
                path.strip_prefix(group)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        })
    };
    let is_missed = |process: &ProcessId| {
        Program::of(*process)
            .is_some_and(|program| keeper.is_supervisor() || !program.accompanies())
    };
    let others = table.rows().map(|row| row.id).filter(|process| {
        !part.contains(process)
            && (below.contains(process) || in_group(*process))
            && is_missed(process)
    });
    Ok(others.min_by_key(|process| (process.start, process.pid)).map(describe))
}

#[cfg(test)]
mod tests;
