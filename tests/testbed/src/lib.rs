//! Doubles for what a test cannot have, and throwaway instances of what it can.

pub mod action;
pub mod built;
pub mod docker;
pub mod end;
pub mod expression;
pub mod github;
pub mod guest;
pub mod interrupt;
pub mod load;
pub mod proxy;
pub mod relay;
pub mod second;
pub mod server;
pub mod service;
pub mod soak;
pub mod stub_engine;
pub mod workflow;

/// How long a test waits for what must come. Only what hangs ever meets it: a busy machine shall fail no test.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
