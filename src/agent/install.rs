//! The binary that was brought checks itself and takes its place.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

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

/// Checks this executable against the digest that was sent, has it be `model-swap` in its folder, and clears there what pushes
/// have left that were killed.
///
/// # Errors
/// If it is damaged or the disk refuses; then nothing was installed.
pub fn install(sent: &str) -> Result<(), InstallError> {
    let own = std::env::current_exe().map_err(|source| InstallError::Io {
        act: "find",
        path: "/proc/self/exe".into(),
        source,
    })?;
    put(&own, sent)
}

fn put(own: &Path, sent: &str) -> Result<(), InstallError> {
    let failed = |act| {
        let path = own.to_owned();
        move |source| InstallError::Io { act, path, source }
    };
    let found = digest(own).map_err(failed("read"))?;
    if found != sent {
        fs::remove_file(own).map_err(failed("remove"))?;
        return Err(InstallError::Damaged { found, sent: sent.to_owned() });
    }
    let place = own.with_file_name("model-swap");
    if is_same(own, &place, sent) {
        // Two brought it at once: the agent of the first may run already, and nobody could start a file again that was replaced.
        fs::remove_file(own).map_err(failed("remove"))?;
    } else {
        File::open(own).and_then(|file| file.sync_all()).map_err(failed("sync"))?;
        fs::rename(own, &place).map_err(failed("rename"))?;
    }
    own.parent().map(prune::clear_remains);
    Ok(())
}

fn is_same(own: &Path, place: &Path, sent: &str) -> bool {
    let mode = |path| fs::metadata(path).ok().map(|found| found.permissions());
    digest(place).is_ok_and(|there| there == sent) && mode(place) == mode(own)
}

fn digest(file: &Path) -> io::Result<String> {
    Ok(hex(&Sha256::digest(fs::read(file)?)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_there_already_stays_the_file_that_its_agents_run_from() {
        let folder = tempfile::tempdir().unwrap();
        let [part, place] = [".model-swap.1", "model-swap"].map(|name| folder.path().join(name));
        let brought = || {
            fs::write(&part, "a program").unwrap();
            put(&part, &digest(&part).unwrap()).unwrap();
            assert!(!part.exists(), "what was brought is left");
            assert_eq!(fs::read(&place).unwrap(), b"a program");
            fs::metadata(&place).unwrap().ino()
        };
        let first = brought();
        assert_eq!(brought(), first, "a running agent's file was replaced");
        fs::write(&place, "a progr").unwrap();
        brought();
    }
}
