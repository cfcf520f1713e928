//! Faults at an exact write of an agent, and its clock: a library that whatever comes over ssh loads before all others, made from
//! `faults.c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::programs;

/// The C of the library. In C because a library that stands before libc needs what is unsafe in Rust.
const SOURCE: &str = include_str!("faults.c");

/// The library's name in its folder.
const LIBRARY: &str = "faults.so";

/// Where an agent is struck. Records and writes are counted from 1, within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Killed when this record of its journal is on the disk, and nothing after it is done.
    After(usize),
    /// Killed when half of this record is written: what it tells of is done.
    Within(usize),
    /// Stopped, as by SIGSTOP, when this record of its journal is on the disk.
    Freeze(usize),
    /// Stopped so when half of this record is written: what it tells of is done.
    FreezeWithin(usize),
    /// Stopped so at each record.
    FreezeAtEach,
    /// Stopped so when an event is in the swap's log, each time; samples apart.
    FreezeAtEachEvent,
    /// Stopped so before it has done anything.
    FreezeStart,
    /// From this write to a file of the state folder on, event logs apart, or to nginx's, the disk is full.
    Full(usize),
    /// From now on the kernel has no watches (inotify) left for this user.
    Unwatched,
}

/// Makes the library in a folder.
pub(crate) fn make(folder: &Path) -> anyhow::Result<()> {
    let source = folder.join("faults.c");
    fs::write(&source, SOURCE)?;
    let mut compiler = Command::new(programs::find("cc")?);
    compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(folder.join(LIBRARY));
    programs::check(compiler.arg(&source)).map(drop)
}

/// The variables of whoever loads the library, from the folder that it was made in, and keeps state in another.
pub(crate) fn environment(folder: &Path, state: &Path) -> [String; 3] {
    let (library, folder) = (folder.join(LIBRARY), folder.display());
    [
        format!("LD_PRELOAD={}", library.display()),
        format!("FAULTS={folder}"),
        format!("FAULTS_STATE={}", state.display()),
    ]
}

pub(crate) fn order(scratch: &Path, aim: Option<Aim>) -> anyhow::Result<()> {
    let text = match aim {
        None => return Ok(fs::remove_file(file(scratch))?),
        Some(Aim::After(record)) => format!("after {record}"),
        Some(Aim::Within(record)) => format!("within {record}"),
        Some(Aim::Freeze(record)) => format!("freeze {record}"),
        Some(Aim::FreezeWithin(record)) => format!("freeze-within {record}"),
        Some(Aim::FreezeAtEach) => "freeze-each 1".to_owned(),
        Some(Aim::FreezeAtEachEvent) => "freeze-event 1".to_owned(),
        Some(Aim::FreezeStart) => "freeze-start 1".to_owned(),
        Some(Aim::Full(write)) => format!("full {write}"),
        Some(Aim::Unwatched) => "unwatched 1".to_owned(),
    };
    replace(&file(scratch), &text)
}

/// Whoever reads it meanwhile finds the old text or the new one.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, text)?;
    Ok(fs::rename(next, file)?)
}

/// From now on every agent notes what it makes, what it writes, and what it brings to the disk.
pub(super) fn note_disk(scratch: &Path) -> anyhow::Result<()> {
    Ok(fs::write(scratch.join("disk"), "")?)
}

/// One of the deeds that an agent has noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Whose.
    pub pid: u32,
    /// `made` a file or a folder, `wrote` a file, or `synced` either.
    pub what: String,
    /// The file or folder.
    pub path: PathBuf,
}

pub(super) fn deeds(scratch: &Path) -> anyhow::Result<Vec<Deed>> {
    let text = fs::read_to_string(scratch.join("disk"))?;
    let deed = |line: &str| {
        let mut words = line.splitn(3, ' ').map(str::to_owned);
        let (pid, what, path) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
        Some(Deed { pid, what, path: path.into() })
    };
    text.lines().map(|line| deed(line).with_context(|| format!("no deed: {line}"))).collect()
}

/// Every process reads it whenever it asks for the time: it is never there by half.
pub(super) fn set_clock(scratch: &Path, seconds: i64) -> anyhow::Result<()> {
    replace(&scratch.join("clock"), &seconds.to_string())
}

fn file(scratch: &Path) -> PathBuf {
    scratch.join("aim")
}
