//! Atomic durable replacement of a file: a reader, and a machine that lost power, sees the old bytes or the new ones.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Gid, Uid, fallocate};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// Start of the name of the file that is renamed: hidden, so that no `include conf.d/*` ever reads it.
const PREFIX: &str = ".model-swap-";

/// A file could not be replaced; it is as it was.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {}", file.display())]
pub struct DurableError {
    /// What was tried: `write`, `keep the owner of`, `rename over`.
    pub act: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Replaces the content of an existing file; owner and mode stay. A symlink itself would be replaced: resolve it before.
///
/// # Errors
/// If the file does not exist, its folder is not writable, or its owner cannot be kept.
pub fn replace(file: &Path, content: &[u8]) -> Result<(), DurableError> {
    into_place(replacement(file, content)?, file)
}

/// As [`replace`], where the file still has the bytes `before`; false if somebody has written others. Between that look and the
/// new bytes is a rename and nothing else.
///
/// # Errors
/// As [`replace`].
pub fn replace_if(file: &Path, before: &[u8], content: &[u8]) -> Result<bool, DurableError> {
    let fresh = replacement(file, content)?;
    if std::fs::read(file).map_err(failed("read", file))? != before {
        return Ok(false);
    }
    into_place(fresh, file)?;
    Ok(true)
}

/// Creates a file, or replaces one, with this mode and the caller as owner.
///
/// # Errors
/// If its folder does not exist or is not writable.
pub fn write(file: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    into_place(beside(file, content, mode, None)?, file)
}

/// Makes a file that has nothing to say but that it is there, with this mode: a full disk takes a name where it takes no byte.
/// One that is there stays as it is.
///
/// # Errors
/// If its folder does not exist or is not writable.
pub fn mark(file: &Path, mode: u32) -> Result<(), DurableError> {
    let marked = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(file);
    marked.and_then(|marked| marked.sync_all()).map_err(failed("make", file))?;
    sync_folder(file)
}

/// Keeps room on the disk for so many more bytes at the end of a file, so that a disk that gets full takes them yet. Nothing
/// where the file system does not know how.
///
/// # Errors
/// If there is no such room.
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    match fallocate(file, FallocateFlags::KEEP_SIZE, length, bytes) {
        Err(full @ (Errno::NOSPC | Errno::DQUOT)) => Err(full.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Files in a folder that somebody was about to put in another's place, and perhaps died over.
pub fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_ours =
        |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(PREFIX));
    entries.filter(|entry| is_ours(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// What is to take the place of an existing file.
fn replacement(file: &Path, content: &[u8]) -> Result<NamedTempFile, DurableError> {
    let before = std::fs::symlink_metadata(file).map_err(failed("read", file))?;
    beside(file, content, before.mode() & 0o7777, Some(&before))
}

/// A file that is whole on the disk, in the folder of the one whose place it is to take.
fn beside(
    file: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<&Metadata>,
) -> Result<NamedTempFile, DurableError> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let mut fresh =
        NamedTempFile::with_prefix_in(PREFIX, folder).map_err(failed("write beside", file))?;
    fresh.write_all(content).map_err(failed("write", file))?;
    if let Some(owner) = owner {
        keep_owner(fresh.as_file(), owner).map_err(failed("keep the owner of", file))?;
    }
    fresh
        .as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed("set the mode of", file))?;
    fresh.as_file().sync_all().map_err(failed("write", file))?;
    Ok(fresh)
}

fn into_place(fresh: NamedTempFile, file: &Path) -> Result<(), DurableError> {
    fresh.persist(file).map_err(|error| failed("rename over", file)(error.error))?;
    sync_folder(file)
}

/// A rename, or a file that is new, is durable only once its folder is.
fn sync_folder(file: &Path) -> Result<(), DurableError> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("make durable", file))
}

fn keep_owner(fresh: &File, owner: &Metadata) -> io::Result<()> {
    let now = fresh.metadata()?;
    if (now.uid(), now.gid()) != (owner.uid(), owner.gid()) {
        rustix::fs::fchown(
            fresh,
            Some(Uid::from_raw(owner.uid())),
            Some(Gid::from_raw(owner.gid())),
        )?;
    }
    Ok(())
}

fn failed(act: &'static str, file: &Path) -> impl FnOnce(io::Error) -> DurableError {
    let file = file.to_owned();
    move |source| DurableError { act, file, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn what_marks_something_is_private_and_leaves_alone_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("order");
        mark(&file, 0o600).unwrap();
        let made = std::fs::metadata(&file).unwrap();
        assert_eq!((made.len(), made.mode() & 0o7777), (0, 0o600));
        std::fs::write(&file, "said").unwrap();
        mark(&file, 0o600).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"said");
        let nowhere = mark(&folder.path().join("no/order"), 0o600).unwrap_err().to_string();
        assert!(nowhere.starts_with("cannot make "), "{nowhere}");
    }

    #[test]
    fn room_is_kept_behind_what_is_in_a_file_and_makes_it_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "said").unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        reserve(&file, 65536).unwrap();
        let kept = file.metadata().unwrap();
        assert!(kept.len() == 4 && kept.blocks() * 512 >= 65536, "{} blocks", kept.blocks());
        file.write_all(b" more").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"said more");
    }

    #[test]
    fn replace_keeps_owner_and_mode_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.conf");
        std::fs::write(&file, "old").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        if rustix::process::geteuid().is_root() {
            rustix::fs::chown(&file, Some(Uid::from_raw(65534)), Some(Gid::from_raw(12))).unwrap();
        }
        let before = std::fs::metadata(&file).unwrap();
        replace(&file, b"new \xff").unwrap();
        let after = std::fs::metadata(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new \xff");
        assert_eq!(
            (after.uid(), after.gid(), after.mode()),
            (before.uid(), before.gid(), before.mode())
        );
        assert_ne!(after.ino(), before.ino(), "written in place: a reader could see half of it");
        assert_eq!(names(folder.path()), ["a.conf"]);
    }

    #[test]
    fn what_somebody_else_has_written_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("llm.conf");
        std::fs::write(&file, "theirs").unwrap();
        assert!(!replace_if(&file, b"before", b"ours").unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), b"theirs");
        assert!(replace_if(&file, b"theirs", b"ours").unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), b"ours");
        assert_eq!(names(folder.path()), ["llm.conf"], "something was left behind");
    }

    #[test]
    fn replace_needs_a_file_and_write_makes_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        assert_eq!(
            replace(&file, b"x").unwrap_err().to_string(),
            format!("cannot read {}", file.display())
        );
        write(&file, b"one", 0o600).unwrap();
        write(&file, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    fn a_failure_leaves_the_file_and_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::create_dir(&target).unwrap();
        assert!(write(&target, b"x", 0o600).is_err());
        assert_eq!(names(folder.path()), ["target"]);
    }
}
