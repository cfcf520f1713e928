//! The binary that was brought checks itself and takes its place.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::prune;
use crate::swap::revision::hex;

/// Why the binary did not take its place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It is not what was sent.
    #[error("the binary arrived damaged: SHA-256 {found}, sent was {sent}")]
    Damaged {
        /// Of the file on this server.
        found: String,
        /// Of the file that was sent.
        sent: String,
    },
    /// The disk refused.
    #[error("cannot {act} {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Checks this executable against the digest that was sent, renames it to `model-swap` in its folder, and clears there what
/// pushes have left that were killed.
///
/// # Errors
/// If it is damaged or the disk refuses; then nothing was installed.
pub fn install(sent: &str) -> Result<(), InstallError> {
    let own = std::env::current_exe().map_err(|source| InstallError::Io {
        act: "find",
        path: "/proc/self/exe".into(),
        source,
    })?;
    let failed = |act| {
        let path = own.clone();
        move |source| InstallError::Io { act, path, source }
    };
    let found = hex(&Sha256::digest(fs::read(&own).map_err(failed("read"))?));
    if found != sent {
        fs::remove_file(&own).map_err(failed("remove"))?;
        return Err(InstallError::Damaged { found, sent: sent.to_owned() });
    }
    File::open(&own).and_then(|file| file.sync_all()).map_err(failed("sync"))?;
    fs::rename(&own, own.with_file_name("model-swap")).map_err(failed("rename"))?;
    own.parent().map(prune::clear_remains);
    Ok(())
}
