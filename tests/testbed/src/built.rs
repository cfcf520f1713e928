//! The programs of this source tree, as files that can be run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};

/// Variable with the path of the stub engine, for a test that is run again by who cannot build.
pub(crate) const GIVEN: &str = "TESTBED_STUB_ENGINE";

/// Path of a program of the workspace, built as this very program was: the file beside this program if there is one
/// (`cargo build --workspace` puts all of them into one folder), else what Cargo builds, once per process. A test is
/// never beside it, because Cargo builds the programs of a package only for that package's own tests.
///
/// # Errors
/// If it does not compile.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<String, Result<PathBuf, String>>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .entry(name.to_owned())
        .or_insert_with(|| find(name).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn find(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os(GIVEN).filter(|_| name == "stub-engine") {
        return Ok(given.into());
    }
    let beside = std::env::current_exe()?.with_file_name(name);
    if beside.is_file() { Ok(beside) } else { build(name) }
}

fn build(name: &str) -> anyhow::Result<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace, because then features and dependencies are those that the tests were built with.
    cargo.args(["build", "--quiet", "--workspace", "--bin", name, "--manifest-path", manifest]);
    cargo.arg("--message-format=json-render-diagnostics");
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo build failed: {}", output.status);
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no program")
}
