//! The end of a replica's log, fit for showing.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log's end is read. A line of vLLM's is about 150 bytes, a progress bar redraws itself within one.
const TAIL_BYTES: u64 = 64 * 1024;

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

    #[test]
    fn only_the_end_is_read_and_no_line_is_cut() {
        let line = "x".repeat(99);
        let content = format!("first\n{}", format!("{line}\n").repeat(2000));
        let tail = tail_of(content.as_bytes(), usize::MAX);
        assert!(tail.len() < 700 && tail.iter().all(|kept| *kept == line), "{}", tail.len());
    }
}
