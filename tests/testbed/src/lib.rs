//! Doubles for what a test cannot have, and throwaway instances of what it can.

pub mod action;
pub mod built;
pub mod github;
pub mod interrupt;
pub mod load;
pub mod relay;
pub mod server;
pub mod service;
pub mod stub_engine;
