//! What the agent costs the server: memory while it works, and the size of its binary.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;
use testbed::server::GpuServer;
use testbed::service::NAME;

use super::table::megabytes;

/// What the agent may hold at most, in bytes: a GPU server's memory is for weights.
const MEMORY_AIM: u64 = 12_000_000;

/// What the binary may have at most, in bytes: it travels to every server once a version.
const SIZE_AIM: u64 = 6_000_000;

/// Peaks of all agents that were looked at, and the binary's size; in bytes.
#[derive(Debug)]
pub(crate) struct Cost {
    size: u64,
    peaks: Vec<u64>,
}

impl Cost {
    /// Of a binary of this size, before any agent was looked at.
    pub(crate) fn of_size(size: u64) -> Self {
        Self { size, peaks: Vec::new() }
    }

    /// Looks at the detached agent of the only swap of a server, which keeps the old model warm by now.
    pub(crate) fn look(&mut self, server: &GpuServer) -> Result<()> {
        #[derive(Deserialize)]
        struct Agent {
            pid: i32,
        }
        let swaps = server.state_dir().join(NAME).join("swaps");
        let swap = fs::read_dir(swaps)?.next().context("no swap")??.path();
        let Agent { pid } = serde_json::from_slice(&fs::read(swap.join("agent.json"))?)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 =
            line.and_then(|line| line.split_whitespace().next()).context("no VmHWM")?.parse()?;
        self.peaks.push(kib * 1024);
        Ok(())
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |value: u64, aim: u64| if value <= aim { "met" } else { "missed" };
        let most = self.peaks.iter().copied().max().unwrap_or(0);
        let least = self.peaks.iter().copied().min().unwrap_or(0);
        writeln!(
            f,
            "Peak memory of the detached agent (VmHWM): {:.1} to {:.1} MB   aim <= {:.0} MB: {}",
            megabytes(least),
            megabytes(most),
            megabytes(MEMORY_AIM),
            verdict(most, MEMORY_AIM)
        )?;
        write!(
            f,
            "Size of the binary: {:.1} MB   aim <= {:.0} MB: {}",
            megabytes(self.size),
            megabytes(SIZE_AIM),
            verdict(self.size, SIZE_AIM)
        )
    }
}
