//! Tests that need root, for those who are not.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::built;

/// Runs the test that this thread is in once more, through `sudo -n`, where this is not root.
///
/// Returns whether it was run so, and passed: then there is nothing left to do.
///
/// # Errors
/// If it failed, or sudo refuses.
pub fn ran_as_root() -> Result<bool> {
    if rustix::process::geteuid().is_root() {
        return Ok(false);
    }
    let thread = std::thread::current();
    let name = thread.name().filter(|name| *name != "main");
    let name =
        name.context("the thread of a test has its name: run tests on two threads or more")?;
    let stub = format!("{}={}", built::GIVEN, built::program("stub-engine")?.display());
    let status = Command::new("sudo")
        .args(["-n", "env", &stub])
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .stdin(Stdio::null())
        .status()
        .context("this test needs root, and sudo is not here")?;
    ensure!(status.success(), "as root, {name} failed");
    Ok(true)
}
