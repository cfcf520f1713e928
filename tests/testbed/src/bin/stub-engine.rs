//! A stand-in for vLLM: `stub-engine serve MODEL …`.

use std::process::ExitCode;

use clap::Parser;
use testbed::stub_engine::{self, Options, core_process};

fn main() -> anyhow::Result<ExitCode> {
    if core_process::is_this_process() {
        core_process::run();
    }
    // One thread starts fastest, and a stub needs no second.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(stub_engine::run(Options::parse()))
}
