//! Folders as they are: whose they are, whether they can be written to, how much room they have.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};

/// A folder, or where it would be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The folder itself, or the nearest one above it that exists.
    pub there: PathBuf,
    /// User id of its owner.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether this process may make files in it.
    pub writable: bool,
    /// Bytes that this user may still fill.
    pub free: u64,
}

/// Looks at a folder, or at the nearest one above it that exists.
///
/// # Errors
/// If that cannot be looked at.
pub fn folder(path: &Path) -> io::Result<Folder> {
    let (there, metadata) = nearest(path)?;
    let room = statvfs(&there)?;
    // Blocks that only root may fill are not ours to count on.
    let blocks = if rustix::process::geteuid().is_root() { room.f_bfree } else { room.f_bavail };
    Ok(Folder {
        uid: metadata.uid(),
        mode: metadata.mode() & 0o7777,
        writable: metadata.is_dir() && access(&there, Access::WRITE_OK | Access::EXEC_OK).is_ok(),
        free: blocks.saturating_mul(room.f_frsize),
        there,
    })
}

fn nearest(path: &Path) -> io::Result<(PathBuf, Metadata)> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for place in path.ancestors() {
        match std::fs::metadata(place) {
            Ok(metadata) => return Ok((place.to_owned(), metadata)),
            Err(found) if found.kind() == io::ErrorKind::NotFound => error = found,
            Err(found) => return Err(found),
        }
    }
    Err(error)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The folder of a Docker Engine with so many bytes free.
    pub(crate) fn engines(free: u64) -> Folder {
        let there = "/var/lib/docker".into();
        Folder { there, uid: 0, mode: 0o710, writable: true, free }
    }

    #[test]
    fn what_is_not_there_is_looked_for_above() {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let scratch = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let found = folder(&scratch.path().join("a/b")).unwrap();
        assert_eq!(found.there, scratch.path());
        assert_eq!((found.uid, found.mode), (rustix::process::geteuid().as_raw(), 0o700));
        assert!(found.writable && found.free > 0, "{found:?}");
    }

    #[test]
    fn a_file_is_no_folder_to_write_in() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!folder(file.path()).unwrap().writable);
        assert!(folder(&file.path().join("x")).is_err());
    }
}
