//! The agent's answer, line by line.

use std::convert::Infallible;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::agent::last_words;
use super::error::RemoteError;
use super::exec::{Ended, Process, Tail};
use crate::model::line::LONGEST_LINE;
use crate::model::wire::Frame;

/// How many of the program's last lines on standard error explain a lost answer.
const LAST_LINES: usize = 5;

/// The frames of one answer. Dropping it ends the agent's standard input: nobody follows any more.
pub struct Frames {
    pub(super) name: String,
    pub(super) lines: Lines,
    pub(super) tail: Tail,
    /// `None` once its end was seen.
    pub(super) process: Option<Process>,
    pub(super) brought: bool,
    pub(super) ended: bool,
    /// Held open, never written to again.
    #[expect(dead_code, reason = "its end is what tells the agent that nobody follows")]
    pub(super) stdin: Sender,
}

impl Frames {
    /// Whether the agent had to be brought for this answer.
    pub fn brought(&self) -> bool {
        self.brought
    }

    /// The next frame; `None` after [`Frame::End`]. Lines that are no frames, and frames of a newer agent, are
    /// skipped. Nothing is lost when this is cancelled.
    ///
    /// # Errors
    /// [`RemoteError::Lost`] when the answer ends without [`Frame::End`]: what goes on at the server is unknown then.
    pub async fn next(&mut self) -> Result<Option<Frame>, RemoteError> {
        while !self.ended {
            let Some(line) = self.lines.next_beside(&mut self.tail, &self.name).await? else {
                return Err(self.lost().await);
            };
            let frame = read_frame(&line).map_err(|(frame, source)| RemoteError::Garbled {
                name: self.name.clone(),
                frame,
                source,
            })?;
            self.ended = frame == Some(Frame::End);
            if let Some(frame) = frame.filter(|_| !self.ended) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    async fn lost(&mut self) -> RemoteError {
        let detail = match self.process.take() {
            None => "it had ended before".to_owned(),
            Some(process) => {
                let (ended, said) = last_words(&mut self.tail, process).await;
                let how = match ended {
                    Ended::Code(code) => format!("the agent ended with exit code {code}"),
                    Ended::Unknown(how) => how,
                };
                let last = said.get(said.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
                if last.is_empty() { how } else { format!("{how}: {}", last.join("; ")) }
            }
        };
        RemoteError::Lost { name: self.name.clone(), doing: "following its answer", detail }
    }
}

/// The frame; `None` for what is none, or of a kind that this program does not know.
pub fn read_frame(line: &str) -> Result<Option<Frame>, (String, serde_json::Error)> {
    /// What every frame has.
    #[derive(serde::Deserialize, serde::Serialize)]
    struct Tag {
        frame: String,
    }
    match serde_json::from_str::<Frame>(line) {
        Ok(frame) => Ok(Some(frame)),
        Err(error) => {
            let Ok(tag) = serde_json::from_str::<Tag>(line) else { return Ok(None) };
            // A known kind lacks its fields here, or lacks none; only an unknown one is an unknown variant.
            let bare =
                serde_json::to_string(&tag).and_then(|bare| serde_json::from_str::<Frame>(&bare));
            match bare {
                Err(bare) if bare.to_string().starts_with("unknown variant") => Ok(None),
                _ => Err((tag.frame, error)),
            }
        }
    }
}

/// Lines of bounded length.
pub(super) struct Lines {
    reader: BufReader<Receiver>,
    partial: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: Receiver) -> Self {
        Self { reader: BufReader::new(stream), partial: Vec::new() }
    }

    /// The next whole line, lossy UTF-8, without its newline, while `beside` is read as well so that it can't block the
    /// program. `None` at the end, whatever the kind of end: a half line is no line.
    pub(super) async fn next_beside(
        &mut self,
        beside: &mut Tail,
        name: &str,
    ) -> Result<Option<String>, RemoteError> {
        let drained = async {
            beside.drain().await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            line = self.next() => line.map_err(|TooLong| RemoteError::TooLong {
                name: name.to_owned(),
                limit: LONGEST_LINE,
            }),
            never = drained => match never {},
        }
    }

    /// The half line at the end.
    pub(super) fn rest(self) -> Option<String> {
        (!self.partial.is_empty()).then(|| String::from_utf8_lossy(&self.partial).into_owned())
    }

    async fn next(&mut self) -> Result<Option<String>, TooLong> {
        loop {
            let chunk = match self.reader.fill_buf().await {
                Ok(chunk) if !chunk.is_empty() => chunk,
                _ => return Ok(None),
            };
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let (line, consumed) = match newline {
                Some(at) => (chunk.get(..at).unwrap_or_default(), at + 1),
                None => (chunk, chunk.len()),
            };
            if self.partial.len() + line.len() > LONGEST_LINE {
                return Err(TooLong);
            }
            self.partial.extend_from_slice(line);
            self.reader.consume(consumed);
            if newline.is_some() {
                let line = std::mem::take(&mut self.partial);
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
        }
    }
}

struct TooLong;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::unix::pipe::pipe;

    use super::*;

    #[test]
    fn frames_of_a_newer_agent_are_skipped_and_broken_ones_are_not() {
        assert_eq!(read_frame(r#"{"frame":"end"}"#).unwrap(), Some(Frame::End));
        assert_eq!(read_frame(r#"{"frame":"end","later":1}"#).unwrap(), Some(Frame::End));
        assert_eq!(read_frame(r#"{"frame":"thermal_report","kelvin":[300]}"#).unwrap(), None);
        assert_eq!(read_frame("job 1 done").unwrap(), None);
        assert_eq!(read_frame(r#"{"frame":"line","text":7}"#).unwrap_err().0, "line");
        assert_eq!(
            read_frame(r#"{"frame":"refused","failures":[],"fault":"nobody"}"#).unwrap_err().0,
            "refused"
        );
    }

    #[tokio::test]
    async fn lines_are_bounded_and_a_half_line_is_none() {
        let (mut sender, receiver) = pipe().unwrap();
        let (_quiet, stderr) = pipe().unwrap();
        let mut beside = Tail::new(stderr);
        let mut lines = Lines::new(receiver);
        sender.write_all(b"one\n\ntwo\nhal").await.unwrap();
        drop(sender);
        for expected in [Some("one"), Some(""), Some("two"), None] {
            let line = lines.next_beside(&mut beside, "local").await.unwrap();
            assert_eq!(line.as_deref(), expected);
        }
        assert_eq!(lines.rest().as_deref(), Some("hal"));
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let (mut sender, receiver) = pipe().unwrap();
        let (_quiet, stderr) = pipe().unwrap();
        let mut beside = Tail::new(stderr);
        let mut lines = Lines::new(receiver);
        let writing = async { while sender.write_all(&[b'x'; 8192]).await.is_ok() {} };
        let reading = async move {
            let error = lines.next_beside(&mut beside, "local").await.unwrap_err();
            assert!(error.to_string().contains("4194304"), "{error}");
        };
        tokio::join!(writing, reading);
    }
}
