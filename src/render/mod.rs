//! F4: what people read, as pure folds over events: a live log, a job summary, reports.
//!
//! Text that came from the server is made inert here: control characters are escaped and lines are cut. What a line
//! becomes on a terminal or in a workflow's log is the caller's to say.

pub mod checkup;
mod counts;
pub mod difference;
pub mod failure;
mod gates;
pub mod history;
pub mod log;
mod markdown;
pub mod outline;
pub mod plan;
pub mod report;
#[cfg(test)]
mod sample;
pub mod status;
pub mod summary;
pub mod survey;
mod text;
pub mod uninstalled;

use crate::model::failure::Location;
use crate::model::ids::SwapId;

/// One line, or one act, of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line of our own, in which some words may be the server's.
    Text(String),
    /// A part with this title begins; a reader may fold it. Parts are never nested.
    GroupStart(String),
    /// The part ends.
    GroupEnd,
    /// Worth an annotation, and no failure.
    Warning(String),
    /// Worth an annotation: a failure, and where in a file of the repository it is.
    Error(String, Option<Location>),
    /// Lines of a log on the server, word for word but for control characters.
    Remote(Vec<String>),
}

/// A part of a log on the server, as the answer to `logs` brings it.
pub fn remote<S: AsRef<str>>(lines: &[S]) -> Line {
    Line::Remote(lines.iter().map(|line| text::inert(line.as_ref())).collect())
}

/// A line that repeats what the server says.
pub fn told(text: &str) -> Line {
    Line::Text(text::inert(text))
}

/// That a step tells of the swap that it has begun in an earlier attempt of its job.
pub fn earlier(swap: &SwapId) -> Line {
    Line::Text(format!("an earlier attempt of this step has begun swap {swap}: this is its story"))
}

/// What was seen of the service from outside while a swap waits for that.
pub fn seen(text: &str) -> Line {
    Line::Text(format!("{:>8}    {}", "", text::inert(text)))
}
