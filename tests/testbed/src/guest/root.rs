//! The root file system that all guests share, each with a layer of its own on top.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// What makes it. A copy lies beside what it made.
const MADE_BY: &str = include_str!("../../../../scripts/guest-root");

/// The root file system that `scripts/setup --guest` made in the build folder.
///
/// # Errors
/// If it did not yet, or when it was another one.
pub(super) fn find() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let made = program.ancestors().map(|folder| folder.join("guest")).find(|folder| {
        std::fs::read_to_string(folder.join("made-by")).is_ok_and(|text| text == MADE_BY)
    });
    match made {
        Some(folder) => Ok(folder.join("root")),
        None => bail!(
            "there is no root file system for guests of today's scripts/guest-root above {}: run scripts/setup --guest",
            program.display()
        ),
    }
}
