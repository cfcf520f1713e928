//! What can go wrong with one request, as its client sees it.

use std::fmt;

/// The ways in which a request can be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// No connection could be made.
    Refused,
    /// The answer's status was 5xx.
    ServerError,
    /// The answer's status was neither 200 nor 5xx.
    OtherStatus,
    /// A fresh connection ended before the first byte of an answer.
    ResetFresh,
    /// A reused connection ended before the first byte of an answer: the server closed it while the request was on its
    /// way, which HTTP/1.1 cannot exclude. Counted apart, no fault of a swap.
    ReuseRace,
    /// The connection ended in the middle of an answer, or the answer has fewer tokens than it says.
    Truncated,
    /// A stream ended as HTTP wants it, but without `data: [DONE]`.
    NoDone,
    /// The answer's `finish_reason` is `abort`: truncated, and dressed up as success.
    Aborted,
    /// The answer makes no sense, or is of another model.
    Malformed,
    /// Nothing happened for longer than [`super::http::STALL_LIMIT`].
    Stalled,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Refused,
        Self::ServerError,
        Self::OtherStatus,
        Self::ResetFresh,
        Self::ReuseRace,
        Self::Truncated,
        Self::NoDone,
        Self::Aborted,
        Self::Malformed,
        Self::Stalled,
    ];

    /// How requests are lost whose server is gone at once.
    pub const OF_THE_GONE: [Self; 4] =
        [Self::Refused, Self::ServerError, Self::ResetFresh, Self::Truncated];

    /// How requests are lost whose server is told to end, as vLLM does, and is gone then.
    pub const OF_THE_ENDED: [Self; 5] =
        [Self::Refused, Self::ServerError, Self::ResetFresh, Self::Truncated, Self::Aborted];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Refused => "refused",
            Self::ServerError => "5xx",
            Self::OtherStatus => "status",
            Self::ResetFresh => "reset",
            Self::ReuseRace => "(reuse)",
            Self::Truncated => "truncated",
            Self::NoDone => "no-done",
            Self::Aborted => "aborted",
            Self::Malformed => "malformed",
            Self::Stalled => "stalled",
        })
    }
}

/// A fault and what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mishap {
    /// The kind.
    pub fault: Fault,
    /// For people.
    pub detail: String,
}

impl Mishap {
    /// `fault`, with what was seen of it.
    pub fn new(fault: Fault, detail: impl fmt::Display) -> Self {
        Self { fault, detail: detail.to_string() }
    }
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.detail)
    }
}

impl std::error::Error for Mishap {}
