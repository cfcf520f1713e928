//! Integration tests with the real sshd, the real nginx and real processes.

mod abort;
mod adoption;
mod candidate;
mod cold_rollback;
mod commands;
mod config;
mod drain;
mod drift;
mod fault;
mod forced;
mod github;
mod nginx;
mod plan;
mod rollback;
mod runner;
mod secrets;
mod ssh;
mod step;
mod support;
mod swap;
mod systemd_host;
mod tidy;
mod unchanged;
mod verdict;
mod wire;
mod workflows;
