//! F2: the event log of a swap: the story for people, written by one agent and followed by any number of readers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::host::durable;
use crate::model::event::{Event, EventKind};
use crate::model::ids::SwapId;
use crate::model::line::line;
use crate::model::wire::WIRE_VERSION;

/// More events than a power loss ever takes from the disk. Whoever goes on counts on from beyond them: a follower that has
/// heard them would take the same numbers for old.
const LOST: u64 = 1_000_000;

/// The log's file in the swap's folder.
pub const FILE: &str = "events.ndjson";

/// Room in bytes for what is told of a swap while the disk is full.
const ROOM: u64 = 128 * 1024;

/// An event log that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} event log {}", path.display())]
pub struct EventLogError {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The writer. Events of an interrupted swap are continued by its recovery.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    swap: SwapId,
    seq: u64,
    /// What the disk has not taken yet: the end of a line that was cut short, and what was told since.
    untold: Vec<u8>,
    /// Whether it tells how the swap ended.
    pub concluded: bool,
}

impl EventLog {
    /// Opens or creates the log in the swap's folder; numbering goes on beyond what was ever told.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(folder: &Path, swap: &SwapId) -> Result<Self, EventLogError> {
        let path = folder.join(FILE);
        let wrong = |act| {
            let path = path.clone();
            move |source| EventLogError { act, path, source }
        };
        let mut reader = EventReader::new(folder);
        let (mut seq, mut concluded) = (0, false);
        if path.exists() {
            for event in reader.read()? {
                seq = event.seq + LOST;
                concluded = concludes(&event.kind).unwrap_or(concluded);
            }
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(wrong("open"))?;
        // A story that a full disk does not take is told later.
        let _ = durable::reserve(&file, ROOM);
        if reader.torn() {
            // A line that a dead writer left half-written is ended, so that the next one stands alone.
            file.write_all(b"\n").map_err(wrong("append to"))?;
        }
        Ok(Self { file, swap: swap.clone(), seq, untold: Vec::new(), concluded })
    }

    /// Appends an event. The swap does not notice a log that cannot be written: the story is not the deed. What a full disk
    /// did not take is written with the next event.
    pub fn tell(&mut self, kind: EventKind, at: Timestamp) {
        self.seq += 1;
        self.concluded = concludes(&kind).unwrap_or(self.concluded);
        let event = Event { v: WIRE_VERSION, swap: self.swap.clone(), seq: self.seq, at, kind };
        if let Ok(line) = line(&event) {
            self.untold.extend(line);
            self.untold.push(b'\n');
            write_what_fits(&mut self.file, &mut self.untold);
        }
    }
}

/// Writes as much as is taken, and keeps the rest. One write a line, where all of it is: a follower never sees half of it.
fn write_what_fits(file: &mut impl Write, untold: &mut Vec<u8>) {
    while !untold.is_empty() {
        match file.write(untold) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(written) => drop(untold.drain(..written)),
        }
    }
}

/// Whether the outcome is known after an event; `None` where it says nothing of that.
fn concludes(kind: &EventKind) -> Option<bool> {
    match kind {
        EventKind::Concluded(_) => Some(true),
        EventKind::TakenUp { .. } => Some(false),
        _ => None,
    }
}

/// Whether the log of this folder tells how its swap ended.
pub fn is_concluded(folder: &Path) -> bool {
    let told = EventReader::new(folder).read().unwrap_or_default();
    told.iter().rev().find_map(|event| concludes(&event.kind)).unwrap_or(false)
}

/// Reads an event log as it grows.
#[derive(Debug)]
pub struct EventReader {
    path: PathBuf,
    offset: u64,
    rest: Vec<u8>,
}

impl EventReader {
    /// A reader at the beginning of the log in the swap's folder.
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join(FILE), offset: 0, rest: Vec::new() }
    }

    /// Every whole event since the last call; none if there is no log yet.
    ///
    /// Lines that are no event, such as the torn last words of a killed agent, are passed over.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn read(&mut self) -> Result<Vec<Event>, EventLogError> {
        let wrong = |source| EventLogError { act: "read", path: self.path.clone(), source };
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(wrong(source)),
        };
        file.seek(SeekFrom::Start(self.offset)).map_err(wrong)?;
        let read = file.read_to_end(&mut self.rest).map_err(wrong)?;
        self.offset += read as u64;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        Ok(lines
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }

    /// Whether the log ends within a line.
    fn torn(&self) -> bool {
        !self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(text: &str) -> EventKind {
        EventKind::Warning { text: text.to_owned() }
    }

    #[test]
    fn numbering_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let swap = "s-1".parse().unwrap();
        let mut log = EventLog::open(folder.path(), &swap).unwrap();
        log.tell(warning("one"), Timestamp::UNIX_EPOCH);
        log.file.write_all(b"{\"v\":1,\"sw").unwrap();
        let mut reader = EventReader::new(folder.path());
        assert_eq!(reader.read().unwrap().len(), 1);

        let mut log = EventLog::open(folder.path(), &swap).unwrap();
        log.tell(warning("two"), Timestamp::UNIX_EPOCH);
        let next = reader.read().unwrap();
        assert_eq!(next.iter().map(|event| event.seq).collect::<Vec<_>>(), [2 + LOST]);
        assert_eq!(next[0].kind, warning("two"));
    }

    #[test]
    fn no_number_is_told_again_after_a_power_loss() {
        let folder = tempfile::tempdir().unwrap();
        let swap = "s-1".parse().unwrap();
        let mut log = EventLog::open(folder.path(), &swap).unwrap();
        log.tell(warning("kept"), Timestamp::UNIX_EPOCH);
        let kept = log.file.metadata().unwrap().len();
        for _ in 0..100 {
            log.tell(warning("heard, and lost"), Timestamp::UNIX_EPOCH);
        }
        let heard = EventReader::new(folder.path()).read().unwrap().pop().unwrap().seq;
        log.file.set_len(kept).unwrap();
        let mut log = EventLog::open(folder.path(), &swap).unwrap();
        log.tell(warning("the end"), Timestamp::UNIX_EPOCH);
        let last = EventReader::new(folder.path()).read().unwrap().pop().unwrap();
        assert!(last.seq > heard, "whoever heard {heard} takes {} for old", last.seq);
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_told_with_the_next_event() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), &"s-1".parse().unwrap()).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut log.file, full);
        log.tell(warning("one"), Timestamp::UNIX_EPOCH);
        log.file = file;
        let mut reader = EventReader::new(folder.path());
        assert_eq!(reader.read().unwrap(), []);
        log.tell(warning("two"), Timestamp::UNIX_EPOCH);
        let told: Vec<_> = reader.read().unwrap().into_iter().map(|event| event.kind).collect();
        assert_eq!(told, [warning("one"), warning("two")]);
    }

    #[test]
    fn a_line_that_was_cut_short_is_gone_on_with_where_it_stopped() {
        let mut room = [0_u8; 5];
        let mut untold = b"a line\n".to_vec();
        write_what_fits(&mut room.as_mut_slice(), &mut untold);
        assert_eq!((room.as_slice(), untold.as_slice()), (b"a lin".as_slice(), b"e\n".as_slice()));
    }
}
