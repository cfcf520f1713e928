//! The engine: who generates, how far they are, and the books that `/metrics` shows.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::metrics::Books;
use super::options::{Serve, fnv1a};

/// The words that answers are made of.
const WORDS: [&str; 8] = [" the", " quick", " brown", " fox", " jumps", " over", " a", " dog"];
/// Tokens of an answer whose request sets no limit; vLLM's default for completions.
const NATURAL_LENGTH: u32 = 16;

/// How far the shutdown is. It only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// All is well.
    Serving,
    /// Requests in flight finish, new ones are refused.
    Draining,
    /// Requests in flight end here and now.
    Aborting,
}

/// Why a generation ended, in vLLM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Finish {
    /// The model had no more to say.
    Stop,
    /// The request's limit was reached.
    Length,
    /// The server was told to stop.
    Abort,
}

impl Finish {
    /// As in `finish_reason` and `finished_reason`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// One token, and the end where it is the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Empty only if the generation was aborted.
    pub(super) text: &'static str,
    /// Set on the last piece.
    pub(super) finish: Option<Finish>,
}

/// What a request asks to be generated.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The same prompt always gets the same text.
    pub(super) prompt: String,
    /// `max_tokens`, if it was given.
    pub(super) limit: Option<u32>,
}

/// The server's state.
#[derive(Debug)]
pub(super) struct Engine {
    /// How it was started.
    pub(super) options: Serve,
    /// What `/metrics` shows.
    pub(super) books: watch::Sender<Books>,
    phase: watch::Sender<Phase>,
    seats: Arc<Semaphore>,
}

impl Engine {
    /// Loaded and serving.
    pub(super) fn new(options: Serve) -> Self {
        let seats = Arc::new(Semaphore::new(options.engine.max_num_seqs));
        Self {
            options,
            books: watch::Sender::default(),
            phase: watch::Sender::new(Phase::Serving),
            seats,
        }
    }

    /// Goes on to `phase`.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until `phase` is reached or passed.
    pub(super) async fn reached(&self, phase: Phase) {
        // An error would mean that the sender is gone, but it is `self`.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Waits until nothing runs and nothing waits.
    pub(super) async fn idle(&self) {
        let _ = self.books.subscribe().wait_for(|books| books.running + books.waiting == 0).await;
    }

    /// Takes a request in; `None` once the shutdown has begun.
    pub(super) fn admit(self: &Arc<Self>, asked: Asked) -> Option<Generation> {
        if *self.phase.borrow() != Phase::Serving {
            return None;
        }
        self.books.send_modify(|books| {
            books.waiting += 1;
            books.prompt_tokens += asked.prompt.split_whitespace().count() as u64;
        });
        let engine = self.clone();
        Some(Generation {
            engine,
            asked,
            seat: None,
            produced: 0,
            ended: false,
            admitted: Instant::now(),
        })
    }
}

/// One request in the engine. Dropping it, as when its client leaves, ends it.
#[derive(Debug)]
pub(super) struct Generation {
    engine: Arc<Engine>,
    asked: Asked,
    /// `None` while it waits for its turn.
    seat: Option<OwnedSemaphorePermit>,
    produced: u32,
    ended: bool,
    admitted: Instant,
}

impl Generation {
    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.asked.prompt.split_whitespace().count()
    }

    /// The next token; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        let engine = self.engine.clone();
        let piece = tokio::select! {
            biased;
            () = engine.reached(Phase::Aborting) => Piece { text: "", finish: Some(Finish::Abort) },
            piece = self.produce() => piece,
        };
        if let Some(finish) = piece.finish {
            self.ended = true;
            engine.books.send_modify(|books| books.finished(finish, self.admitted.elapsed()));
        }
        Some(piece)
    }

    async fn produce(&mut self) -> Piece {
        self.take_seat().await;
        let delay = self.engine.options.stub.stub_token_delay;
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
        let word =
            (fnv1a(self.asked.prompt.as_bytes()) as usize).wrapping_add(self.produced as usize);
        self.produced += 1;
        let first = self.produced == 1;
        self.engine.books.send_modify(|books| {
            books.generation_tokens += 1;
            if first {
                books.time_to_first_token.observe(self.admitted.elapsed());
            }
        });
        let (length, end) = match self.asked.limit {
            Some(limit) => (limit, Finish::Length),
            None => (NATURAL_LENGTH, Finish::Stop),
        };
        Piece { text: WORDS[word % WORDS.len()], finish: (self.produced >= length).then_some(end) }
    }

    async fn take_seat(&mut self) {
        if self.seat.is_some() {
            return;
        }
        // The semaphore is never closed, so this waits and then succeeds.
        self.seat = self.engine.seats.clone().acquire_owned().await.ok();
        self.engine.books.send_modify(|books| {
            books.waiting -= 1;
            books.running += 1;
        });
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let ran = self.seat.is_some();
        self.engine.books.send_modify(|books| {
            if ran {
                books.running -= 1;
            } else {
                books.waiting -= 1;
            }
        });
    }
}
