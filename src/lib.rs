//! model-swap: swaps the LLM behind a production API without dropping a request.
//!
//! Modules in floor order; imports go down only (`ARCHITECTURE.md`).

pub mod model;

pub mod config;
pub mod swap;

pub mod abort;
pub mod confirmation;
pub mod event_log;
pub mod host;
pub mod journal;
pub mod lease;
pub mod service_dir;

pub mod executor;

pub mod agent;
pub mod github;
pub mod remote;
pub mod render;

pub mod cli;
pub mod entry;
pub mod pid1;
pub mod runner;
