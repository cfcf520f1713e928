//! F0: values. No I/O, no clock, no async; everything here can be written to the wire or to disk.

pub mod checkup;
pub mod digest;
pub mod event;
pub mod failure;
pub mod ids;
pub mod line;
pub mod moment;
pub mod outcome;
pub mod plan;
pub mod record;
pub mod refusal;
pub mod replica;
pub mod sample;
pub mod secret;
pub mod spec;
pub mod state;
pub mod step;
pub mod survey;
pub mod target;
pub mod wire;
