//! The executor in a small world where everything may fail, at any moment.

#![expect(clippy::unwrap_used, reason = "what a test does not meet ends it")]

mod abort;
mod aftermath;
mod by_hand;
mod candidate;
mod clock;
mod death;
mod disk;
mod drain;
mod forward;
mod history;
mod host;
mod judge;
mod locked;
mod lone;
mod restart;
mod scene;
mod shutdown;
mod slow;
mod stuck;
mod twice;
mod upload;
mod verbs;
mod world;
mod wrong;
