//! Builds of this program: the one that runs, and those for other kinds of processor that were put beside it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::RemoteError;

/// This program's own image, even when the file was replaced or deleted meanwhile (proc(5)).
const OWN_IMAGE: &str = "/proc/self/exe";

/// What `uname -m` says on the machines that this program is built for.
pub const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// An executable of this program, for one kind of processor.
#[derive(Debug, Clone)]
pub struct Build {
    /// SHA-256 in hex; the agent's folder is named by it.
    pub digest: String,
    /// The file.
    pub path: PathBuf,
}

impl Build {
    /// The one that runs.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn own() -> Result<Self, RemoteError> {
        Self::read(PathBuf::from(OWN_IMAGE))
    }

    /// The one in `folder` for an architecture as `uname -m` names it, from a file like `model-swap-aarch64`; `None` if
    /// there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn of(folder: &Path, architecture: &str) -> Result<Option<Self>, RemoteError> {
        // The name comes from the server, and must not choose the file.
        let Some(known) = ARCHITECTURES.into_iter().find(|known| *known == architecture) else {
            return Ok(None);
        };
        match Self::read(folder.join(format!("model-swap-{known}"))) {
            Ok(build) => Ok(Some(build)),
            Err(RemoteError::Own { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn read(path: PathBuf) -> Result<Self, RemoteError> {
        match digest(&path) {
            Ok(digest) => Ok(Self { digest, path }),
            Err(source) => Err(RemoteError::Own { path, source }),
        }
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut reader = BufReader::new(File::open(path)?);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let count = bytes.len();
        reader.consume(count);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
