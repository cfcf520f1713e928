//! F4: the runner's side of the connection. Sees the model only.
//!
//! [`session`] reaches the server, [`agent`] speaks with the agent there and brings it where it is missing. What
//! cannot be known from here is never guessed: a connection that ends without an answer is [`RemoteError::Lost`].

pub mod agent;
pub mod build;
pub mod error;
pub mod frames;
pub mod key;
pub mod known_hosts;
pub mod public_key;
pub mod session;
pub mod way;

mod bring;
mod exec;
mod line;
mod program;
mod refusal;

pub use error::RemoteError;

#[cfg(test)]
mod tests;
