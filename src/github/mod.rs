//! F4: what GitHub gives a step and takes from it. Nothing here can change a swap: every failure is a warning.

pub mod api;
pub mod command;
pub mod comment;
pub mod deployment;
mod error;
pub mod inputs;
pub mod merge;
pub mod output;
pub mod outside;
pub mod pull_request;
pub mod push;
pub mod run;
pub mod status;
pub mod workflow;
