//! F2: the journal of a swap: intent for machines. Appended and fsynced before the act it announces.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::host::durable;
use crate::model::failure::Hint;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::Plan;
use crate::model::record::{JOURNAL_VERSION, Record, RecordKind};
use crate::model::state::Requester;
use crate::swap::transition::{self, Illegal, Status};

/// The journal's file in the swap's folder.
const FILE: &str = "journal.ndjson";

/// Room in bytes that a swap has before it begins: a disk that gets full meanwhile takes what it takes to give the swap up. A
/// record has some hundred bytes, with the last words of an engine some thousand.
const ROOM: u64 = 128 * 1024;

/// A journal that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The record breaks the transition table: a bug.
    #[error("journal {} refuses a record", path.display())]
    Illegal {
        /// The journal.
        path: PathBuf,
        /// The rule.
        source: Illegal,
    },
    /// The disk refused.
    #[error("cannot {act} journal {}", path.display())]
    Io {
        /// `create`, `read` or `append to`.
        act: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An earlier record did not reach the disk, and may be there in part: another one would follow half a line.
    #[error("journal {} could not be written before, and is not written on", path.display())]
    Broken {
        /// The journal.
        path: PathBuf,
    },
    /// A line that is not the torn last one makes no sense.
    #[error("line {line} of journal {} is no record", path.display())]
    Line {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by a newer version.
    #[error("journal {} has version {found}; this binary knows {JOURNAL_VERSION}", path.display())]
    Newer {
        /// The journal.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Hint for JournalError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Io { path, .. } | Self::Broken { path } => {
                vec![format!(
                    "check free space and rights of {}",
                    path.parent().unwrap_or(path).display()
                )]
            }
            Self::Newer { .. } => {
                vec!["use the version of model-swap that wrote it, or a newer one".to_owned()]
            }
            // Nothing that it says can be trusted: a person has to look instead.
            Self::Illegal { path, .. } | Self::Line { path, .. } => {
                let folder = path.parent().unwrap_or(path).display();
                vec![format!(
                    "see on the server that nginx sends requests where it shall, and end what shall not run; then move \
                     {folder} away"
                )]
            }
        }
    }
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
    status: Status,
    /// Whether a record could not be written. Only opening it anew tells what of that is on the disk.
    is_broken: bool,
}

impl Journal {
    fn new(path: PathBuf, file: File, records: Vec<Record>, status: Status) -> Self {
        Self { path, file, records, status, is_broken: false }
    }

    /// Creates the journal of a new swap in its folder; its first record is the plan, and who asked for it.
    ///
    /// # Errors
    /// If there is one already or the disk refuses.
    pub fn create(
        folder: &Path,
        swap: &SwapId,
        (plan, requester): (&Plan, &Requester),
        at: Timestamp,
    ) -> Result<Self, JournalError> {
        let path = folder.join(FILE);
        let io = |source| JournalError::Io { act: "create", path: path.clone(), source };
        let file =
            OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
        durable::reserve(&file, ROOM).map_err(io)?;
        let status = Status::of_plan(plan);
        let mut journal = Self::new(path.clone(), file, Vec::new(), status);
        let (swap, plan) = (swap.clone(), Box::new(plan.clone()));
        let kind = RecordKind::Planned { swap, plan, requester: Box::new(requester.clone()) };
        journal.write(Record { v: JOURNAL_VERSION, at, kind })?;
        // The folder's entry must outlive a power loss as well as the content.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(journal)
    }

    /// The plan of the swap of this folder, while its journal is there and is understood.
    pub fn plan(folder: &Path) -> Option<Plan> {
        match Self::first(folder)? {
            RecordKind::Planned { plan, .. } => Some(*plan),
            _ => None,
        }
    }

    /// Who asked for the swap of this folder, while its journal is there and is understood.
    pub fn requester(folder: &Path) -> Option<Requester> {
        match Self::first(folder)? {
            RecordKind::Planned { requester, .. } => Some(*requester),
            _ => None,
        }
    }

    fn first(folder: &Path) -> Option<RecordKind> {
        let mut line = String::new();
        BufReader::new(File::open(folder.join(FILE)).ok()?).read_line(&mut line).ok()?;
        let record: Record = serde_json::from_str(&line).ok()?;
        (record.v <= JOURNAL_VERSION).then_some(record.kind)
    }

    /// What the journal of this folder says so far; nothing of it is changed.
    ///
    /// # Errors
    /// If it cannot be read or was written by a newer version.
    pub fn read(folder: &Path) -> Result<Vec<Record>, JournalError> {
        let path = folder.join(FILE);
        let io = |source| JournalError::Io { act: "read", path: path.clone(), source };
        let text = fs::read(&path).map_err(io)?;
        parse(&path, &text[..whole(&text)])
    }

    /// Where the swap of this folder stands, without touching it: somebody may be writing.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn look(folder: &Path) -> Result<Status, JournalError> {
        read(&folder.join(FILE)).map(|(_, status, _)| status)
    }

    /// Whether the swap of this folder has a whole record: without one it has done nothing.
    pub fn has_begun(folder: &Path) -> bool {
        fs::read(folder.join(FILE)).is_ok_and(|text| text.contains(&b'\n'))
    }

    /// Whether the swap of this folder is at its end, as far as its journal can be read: it has an outcome, and is not
    /// stuck. Changes nothing.
    pub fn is_at_its_end(folder: &Path) -> bool {
        let text = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        let mut outcomes = records.filter_map(|record| match record.kind {
            RecordKind::Concluded { outcome } => Some(outcome),
            _ => None,
        });
        outcomes.next_back().is_some_and(|outcome| outcome != Outcome::Stuck)
    }

    /// Opens the journal of an interrupted swap to go on with it. A torn last line is cut off.
    ///
    /// # Errors
    /// If it cannot be read, was written by a newer version or breaks the transition table.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(FILE);
        let io = |source| JournalError::Io { act: "read", path: path.clone(), source };
        let (records, status, whole) = read(&path)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io)?;
        // Cutting it to the length that it has would give back the room behind it.
        if file.metadata().map_err(io)?.len() != whole as u64 {
            file.set_len(whole as u64).map_err(io)?;
        }
        // Whoever goes on makes do with what there is.
        let _ = durable::reserve(&file, ROOM);
        Ok(Self::new(path.clone(), file, records, status))
    }

    /// Appends a record and waits until it is on the disk. Only then may the act follow.
    ///
    /// # Errors
    /// If the record may not follow or the disk refuses, now or before; then nothing may be done.
    pub fn append(&mut self, kind: RecordKind, at: Timestamp) -> Result<(), JournalError> {
        let next = transition::apply(&self.status, &kind)
            .map_err(|source| JournalError::Illegal { path: self.path.clone(), source })?;
        self.write(Record { v: JOURNAL_VERSION, at, kind })?;
        self.status = next;
        Ok(())
    }

    /// Where the swap stands.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Every record so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    fn write(&mut self, record: Record) -> Result<(), JournalError> {
        if self.is_broken {
            return Err(JournalError::Broken { path: self.path.clone() });
        }
        let io = |source| JournalError::Io { act: "append to", path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&record).map_err(|error| io(error.into()))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        self.is_broken = written.is_err();
        written.map_err(io)?;
        self.records.push(record);
        Ok(())
    }
}

/// Bytes up to the end of the last whole line.
fn whole(text: &[u8]) -> usize {
    text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

/// Every whole record, where the swap stands, and how many bytes are whole.
fn read(path: &Path) -> Result<(Vec<Record>, Status, usize), JournalError> {
    let io = |source| JournalError::Io { act: "read", path: path.to_owned(), source };
    let text = fs::read(path).map_err(io)?;
    let whole = whole(&text);
    let records = parse(path, &text[..whole])?;
    let status = transition::replay(&records)
        .map_err(|source| JournalError::Illegal { path: path.to_owned(), source })?;
    Ok((records, status, whole))
}

fn parse(path: &Path, text: &[u8]) -> Result<Vec<Record>, JournalError> {
    /// Only the version: the rest of a newer record may mean anything.
    #[derive(serde::Deserialize)]
    struct Versioned {
        v: u32,
    }
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let record = |(index, line): (usize, &[u8])| {
        let wrong = |source| JournalError::Line { path: path.to_owned(), line: index + 1, source };
        let Versioned { v } = serde_json::from_slice(line).map_err(wrong)?;
        if v > JOURNAL_VERSION {
            return Err(JournalError::Newer { path: path.to_owned(), found: v });
        }
        serde_json::from_slice(line).map_err(wrong)
    };
    lines.enumerate().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::{Done, Undo};
    use crate::swap::planner::tests::two_slot_plan;
    use crate::swap::transition::StepStatus;

    fn at() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn ann() -> Requester {
        Requester { actor: Some("ann".to_owned()), ..Requester::default() }
    }

    fn begun(folder: &Path) -> Journal {
        let swap = "s-1".parse().unwrap();
        let mut journal = Journal::create(folder, &swap, (&two_slot_plan(), &ann()), at()).unwrap();
        journal.append(RecordKind::Started { step: 0, undo: Undo::Nothing }, at()).unwrap();
        journal
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begun(folder.path());
        journal.append(RecordKind::Succeeded { step: 0, done: Done::Nothing }, at()).unwrap();
        let again = Journal::open(folder.path()).unwrap();
        assert_eq!(again.records(), journal.records());
        assert_eq!(again.status().steps[0], StepStatus::Succeeded);
        assert_eq!(Journal::plan(folder.path()), Some(two_slot_plan()));
        assert_eq!(Journal::requester(folder.path()), Some(ann()));
    }

    #[test]
    fn of_a_swap_that_was_begun_before_that_was_written_nobody_knows_who_asked() {
        let folder = tempfile::tempdir().unwrap();
        drop(begun(folder.path()));
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let mut first: serde_json::Value = serde_json::from_str(first).unwrap();
        first["kind"].as_object_mut().unwrap().remove("requester").unwrap();
        fs::write(&path, format!("{first}\n{rest}")).unwrap();
        assert_eq!(Journal::requester(folder.path()), Some(Requester::default()));
        assert_eq!(Journal::open(folder.path()).unwrap().records().len(), 2);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        drop(begun(folder.path()));
        let path = folder.path().join(FILE);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"v\":1,\"at\"").unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        journal.append(RecordKind::Succeeded { step: 0, done: Done::Nothing }, at()).unwrap();
        assert_eq!(Journal::open(folder.path()).unwrap().records().len(), 3);
    }

    #[test]
    fn nothing_follows_a_record_that_could_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begun(folder.path());
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut journal.file, full);
        let done = || RecordKind::Succeeded { step: 0, done: Done::Nothing };
        assert!(matches!(journal.append(done(), at()), Err(JournalError::Io { .. })));
        journal.file = file;
        assert!(matches!(journal.append(done(), at()), Err(JournalError::Broken { .. })));
        assert_eq!(Journal::open(folder.path()).unwrap().records().len(), 2);
    }

    #[test]
    fn an_illegal_record_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begun(folder.path());
        assert!(journal.append(RecordKind::Closed, at()).is_err());
        assert_eq!(Journal::open(folder.path()).unwrap().records().len(), 2);
    }

    #[test]
    fn a_newer_journal_is_refused_as_such() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{\"v\":3,\"what\":\"ever\"}\n").unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Newer { found: 3, .. })));
    }
}
