//! nginx's configuration as text: what it means for one upstream, and the one edit that is ever made.
//!
//! Text in, text out. Only the port in the address of an active `server` line changes; every other byte stays.

mod dump;
mod edit;
mod error;
mod syntax;
mod units;
mod upstreams;

#[cfg(test)]
mod tests;

pub use dump::{AccessLog, DirectPass, Dump, Located, Logs};
pub use edit::{active_servers, host_of, port_of, replace_servers, with_port};
pub use error::ConfError;
pub use syntax::{Directive, SyntaxError, Word, parse};
pub use units::{glob_matches, parse_time};
