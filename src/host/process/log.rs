//! The end of a replica's log: fit for showing, and what is kept of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much of a log's end is read. A line of vLLM's is about 150 bytes, a progress bar redraws itself within one.
const TAIL_BYTES: u64 = 64 * 1024;

/// What is kept of a log that nobody writes any more, in bytes: some 100,000 lines of vLLM's, or the last hours of its requests. Ten
/// of them do no harm to a small root disk.
pub const KEPT: u64 = 16 << 20;

/// How much of a log is moved at once, in bytes.
const BLOCK: usize = 64 * 1024;

/// A file that takes in a stream of any length, and of which the end is kept.
pub struct LogEnd {
    file: File,
    kept: u64,
    length: u64,
}

impl LogEnd {
    /// Of so many bytes, in an empty file that can be read as well.
    pub fn of(kept: u64, file: File) -> Self {
        Self { file, kept, length: 0 }
    }

    /// Takes in more.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        // Not at each write: what is kept is moved then.
        if self.length > 2 * self.kept {
            self.cut()?;
        }
        Ok(())
    }

    /// Leaves the end, and no more.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn cut(&mut self) -> io::Result<()> {
        self.length = keep_end(&self.file, self.kept)?;
        Ok(())
    }
}

/// Cuts a file to its last lines, of so many bytes at most. It needs no room beside the file: the disk may be full. Gives its length.
///
/// # Errors
/// If the disk refuses.
pub fn keep_end(file: &File, bytes: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let Some(mut from) = length.checked_sub(bytes).filter(|from| *from > 0) else {
        return Ok(length);
    };
    let mut block = vec![0; BLOCK];
    let mut read = file.read_at(&mut block, from)?;
    // The first line is cut; one that is longer than a block stays as it is.
    if let Some(end) = block[..read].iter().position(|byte| *byte == b'\n') {
        from += end as u64 + 1;
        read = file.read_at(&mut block, from)?;
    }
    let mut moved = 0;
    while read > 0 {
        file.write_all_at(&block[..read], moved)?;
        moved += read as u64;
        read = file.read_at(&mut block, from + moved)?;
    }
    file.set_len(moved)?;
    Ok(moved)
}

/// The last lines of a log, oldest first, at most `lines` and at most what 64 KiB hold; none if it can't be read.
///
/// Lossy UTF-8, without control characters and terminal colours; of a progress bar, its last state.
pub fn log_tail(path: &Path, lines: usize) -> Vec<String> {
    let tail = read_tail(path).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&tail), lines)
}

/// The last lines of a text, without control characters and terminal colours; of a progress bar, its last state.
pub fn last_lines(text: &str, lines: usize) -> Vec<String> {
    let shown: Vec<_> =
        text.split('\n').map(last_state).filter(|line| !line.trim().is_empty()).collect();
    shown[shown.len().saturating_sub(lines)..].to_vec()
}

fn read_tail(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    if start > 0 {
        // The first line is cut.
        let whole = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        tail.drain(..whole);
    }
    Ok(tail)
}

/// What a terminal would still show of a line: the text after the last carriage return that text follows.
fn last_state(line: &str) -> String {
    let states = line.split('\r').map(printable);
    states.rev().find(|state| !state.trim().is_empty()).unwrap_or_default()
}

/// Without control characters and escape sequences (ECMA-48: ESC [ parameters final byte).
fn printable(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            characters.by_ref().find(|end| ('@'..='~').contains(end));
        } else if character == '\t' {
            kept.push(' ');
        } else if !character.is_control() {
            kept.push(character);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(content: &[u8], lines: usize) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        log_tail(file.path(), lines)
    }

    #[test]
    fn the_last_lines_come_oldest_first() {
        assert_eq!(tail_of(b"one\ntwo\n\nthree\n", 2), ["two", "three"]);
        assert_eq!(tail_of(b"one\ntwo", 9), ["one", "two"]);
        assert!(tail_of(b"", 9).is_empty());
        assert!(log_tail(Path::new("/nonexistent"), 9).is_empty());
    }

    #[test]
    fn a_progress_bar_shows_its_last_state() {
        assert_eq!(tail_of(b"\rload 10%\rload 50%\rload 90%\r\nnext\r\n", 9), ["load 90%", "next"]);
    }

    #[test]
    fn colours_control_characters_and_broken_text_do_no_harm() {
        assert_eq!(tail_of(b"\x1b[1;31mERROR\x1b[0m a\tb\x07\xff\n", 9), ["ERROR a b\u{fffd}"]);
    }

    /// What a file holds after a stream of lines was put into it in pieces of an odd size.
    fn end_of(lines: usize, kept: u64) -> (u64, Vec<String>) {
        let file = tempfile::tempfile().unwrap();
        let mut end = LogEnd::of(kept, file.try_clone().unwrap());
        let stream: String = (0..lines).map(|number| format!("line {number}\n")).collect();
        let mut most = 0;
        for piece in stream.as_bytes().chunks(777) {
            end.push(piece).unwrap();
            most = most.max(file.metadata().unwrap().len());
        }
        end.cut().unwrap();
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let mut text = vec![0; length];
        file.read_exact_at(&mut text, 0).unwrap();
        (most, String::from_utf8(text).unwrap().lines().map(str::to_owned).collect())
    }

    #[test]
    fn of_a_log_of_any_length_the_end_is_kept_in_whole_lines() {
        assert_eq!(end_of(3, 1000).1, ["line 0", "line 1", "line 2"]);
        for kept in [1000, 200_000] {
            let (most, lines) = end_of(50_000, kept);
            assert!(most <= 2 * kept + 777, "{most} on the disk");
            let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
            assert!((kept - 20..=kept).contains(&(bytes as u64)), "{bytes} of {kept}");
            let first: usize = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
            let expected: Vec<_> = (first..50_000).map(|number| format!("line {number}")).collect();
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn only_the_end_is_read_and_no_line_is_cut() {
        let line = "x".repeat(99);
        let content = format!("first\n{}", format!("{line}\n").repeat(2000));
        let tail = tail_of(content.as_bytes(), usize::MAX);
        assert!(tail.len() < 700 && tail.iter().all(|kept| *kept == line), "{}", tail.len());
    }
}
