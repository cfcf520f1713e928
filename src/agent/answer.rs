//! Writes frames to whoever listens on stdout. A runner that is gone changes nothing.

use std::io::{self, Write};

use crate::model::line::line;
use crate::model::wire::{Frame, SENTINEL};

/// The way back to the runner.
pub(super) struct Answers {
    out: Option<io::Stdout>,
}

impl Answers {
    /// Answers on this process's stdout.
    pub(super) fn on_stdout() -> Self {
        Self { out: Some(io::stdout()) }
    }

    /// For a test that nobody listens to.
    #[cfg(test)]
    pub(super) fn to_nobody() -> Self {
        Self { out: None }
    }

    /// The line before the first frame.
    pub(super) fn greet(&mut self) {
        self.line(SENTINEL.as_bytes());
    }

    /// Sends a frame; the first write that fails is the last that is tried.
    pub(super) fn send(&mut self, frame: &Frame) {
        if let Ok(text) = line(frame) {
            self.line(&text);
        }
    }

    /// Whether anybody reads them, as far as is known.
    pub(super) fn are_heard(&self) -> bool {
        self.out.is_some()
    }

    /// Sends nothing more, and lets the reader see the end.
    pub(super) fn close(&mut self) {
        self.out = None;
        // Replaced rather than closed: number 1 must not be taken by the next file that is opened.
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(null);
        }
    }

    fn line(&mut self, text: &[u8]) {
        let Some(out) = &mut self.out else { return };
        let mut lock = out.lock();
        let written =
            lock.write_all(text).and_then(|()| lock.write_all(b"\n")).and_then(|()| lock.flush());
        drop(lock);
        if written.is_err() {
            self.out = None;
        }
    }
}
