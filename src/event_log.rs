//! F2: the event log of a swap: the story for people, written by one agent and followed by any number of readers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::model::event::{Event, EventKind};
use crate::model::ids::SwapId;
use crate::model::wire::WIRE_VERSION;

/// The log's file in the swap's folder.
pub const FILE: &str = "events.ndjson";

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
    /// Whether it tells how the swap ended.
    pub concluded: bool,
}

impl EventLog {
    /// Opens or creates the log in the swap's folder; numbering goes on where it stopped.
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
                seq = event.seq;
                concluded = concludes(&event.kind).unwrap_or(concluded);
            }
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(wrong("open"))?;
        if reader.torn() {
            // A line that a dead writer left half-written is ended, so that the next one stands alone.
            file.write_all(b"\n").map_err(wrong("append to"))?;
        }
        Ok(Self { file, swap: swap.clone(), seq, concluded })
    }

    /// Appends an event. The swap does not notice a log that cannot be written: the story is not the deed.
    pub fn tell(&mut self, kind: EventKind, at: Timestamp) {
        self.seq += 1;
        self.concluded = concludes(&kind).unwrap_or(self.concluded);
        let event = Event { v: WIRE_VERSION, swap: self.swap.clone(), seq: self.seq, at, kind };
        if let Ok(mut line) = serde_json::to_vec(&event) {
            line.push(b'\n');
            // One write a line: a follower never sees half of it.
            let _ = self.file.write_all(&line);
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
        assert_eq!(next.iter().map(|event| event.seq).collect::<Vec<_>>(), [2]);
        assert_eq!(next[0].kind, warning("two"));
    }
}
