//! F2: the lease of a service: flock plus a holder. Nobody deletes the file; a dead holder's lock is simply free.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::host::process;
use crate::model::failure::Hint;
use crate::model::state::Holder;

/// The lease's file in the service's folder.
const FILE: &str = "lease.json";

/// [`Holder::command`] while a replica whose time has come is stopped: its swap has its outcome.
pub const RETIRE: &str = "retire";

/// A lease that was not had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else holds it.
    #[error("{}", held(.holder.as_deref()))]
    Held {
        /// Who, if the file could be read.
        holder: Option<Box<Holder>>,
    },
    /// The disk refused.
    #[error("cannot take the lease {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Hint for LeaseError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Held { holder } => {
                let url = holder.as_ref().and_then(|holder| holder.requester.url.clone());
                vec![url.map_or_else(
                    || "wait until it ends; `model-swap status` shows it".to_owned(),
                    |url| format!("wait until it ends, or look at {url}"),
                )]
            }
            Self::Io { .. } => Vec::new(),
        }
    }
}

fn held(holder: Option<&Holder>) -> String {
    let Some(holder) = holder else {
        return "another command works on this service".to_owned();
    };
    let requester = &holder.requester;
    let who = requester.actor.as_deref().unwrap_or("somebody");
    let from =
        requester.repository.as_deref().map(|name| format!(" from {name}")).unwrap_or_default();
    format!(
        "{who}{from} works on this service: {} {} since {}",
        holder.command, holder.swap, holder.since
    )
}

/// The right to act on a service, held until dropped or until the process ends.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    file: File,
    /// Who held it before and never gave it back: it died. Stays in the file until [`Lease::recovered`], so that whoever
    /// comes next learns of it too, should this holder not come so far.
    pub died: Option<Holder>,
}

impl Lease {
    /// Takes the lease, or says who has it.
    ///
    /// # Errors
    /// If it is held or the disk refuses.
    pub fn take(folder: &Path, holder: &Holder) -> Result<Self, LeaseError> {
        let mut lease = Self::lock(folder)?;
        if lease.died.is_none() {
            lease.write(holder)?;
        }
        Ok(lease)
    }

    /// Takes the lease of a holder that died; `None` if nobody did.
    ///
    /// # Errors
    /// If it is held or the disk refuses.
    pub fn take_from_the_dead(folder: &Path) -> Result<Option<Self>, LeaseError> {
        Ok(Some(Self::lock(folder)?).filter(|lease| lease.died.is_some()))
    }

    fn lock(folder: &Path) -> Result<Self, LeaseError> {
        let path = folder.join(FILE);
        let io = |source| LeaseError::Io { path: path.clone(), source };
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LeaseError::Held { holder: read(&path).map(Box::new) });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        if is_new {
            // A power loss must not take away who was at work with the file's own entry.
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        }
        let died = read(&path);
        Ok(Self { path, file, died })
    }

    /// Puts the new holder in the place of one that died and whose swap is brought to its end.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn recovered(&mut self, holder: &Holder) -> Result<(), LeaseError> {
        self.write(holder)?;
        self.died = None;
        Ok(())
    }

    fn write(&mut self, holder: &Holder) -> Result<(), LeaseError> {
        let io = |source| LeaseError::Io { path: self.path.clone(), source };
        let text = serde_json::to_vec(holder).map_err(|error| io(error.into()))?;
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(&text))
            .and_then(|()| self.file.sync_data())
            .map_err(io)
    }

    /// Lets go of it as a death does: whoever comes next is told, and brings what this holder began to its end.
    pub fn leave_to_the_next(mut self) {
        self.died = read(&self.path);
    }

    /// Who held the lease when they died, if nobody has recovered what they left. Looks without locking.
    pub fn left_by_the_dead(folder: &Path) -> Option<Holder> {
        read(&folder.join(FILE)).filter(|holder| !process::alive(holder.process))
    }

    /// Who holds the lease now. Looks without locking, so that looking never refuses anybody.
    pub fn holder(folder: &Path) -> Option<Holder> {
        read(&folder.join(FILE)).filter(|holder| process::alive(holder.process))
    }
}

impl Drop for Lease {
    /// An emptied file says that it was given back; after a death the holder stays readable.
    fn drop(&mut self) {
        if self.died.is_none() {
            // If the disk refuses, the next holder looks at our journal and finds it concluded.
            let _ = self.file.set_len(0);
        }
        // Closing the file would not do: a process that is just being spawned has it open until its exec.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

fn read(path: &Path) -> Option<Holder> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state::Requester;
    use jiff::Timestamp;

    fn holder(swap: &str) -> Holder {
        Holder {
            swap: swap.parse().unwrap(),
            since: Timestamp::UNIX_EPOCH,
            process: process::own(),
            command: "swap".to_owned(),
            requester: Requester { actor: Some("ann".to_owned()), ..Default::default() },
        }
    }

    #[test]
    fn one_at_a_time_and_the_second_is_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lease::take(folder.path(), &holder("s-1")).unwrap();
        assert_eq!(Lease::holder(folder.path()), Some(holder("s-1")));
        let refused = Lease::take(folder.path(), &holder("s-2")).unwrap_err().to_string();
        assert_eq!(refused, "ann works on this service: swap s-1 since 1970-01-01T00:00:00Z");
        drop(first);
        assert_eq!(Lease::holder(folder.path()), None);
        assert!(Lease::take(folder.path(), &holder("s-2")).unwrap().died.is_none());
    }

    #[test]
    fn a_holder_that_can_do_no_more_is_told_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        Lease::take(folder.path(), &holder("s-1")).unwrap().leave_to_the_next();
        let lease = Lease::take(folder.path(), &holder("s-2")).unwrap();
        assert_eq!(lease.died, Some(holder("s-1")));
    }

    #[test]
    fn a_holder_that_died_is_told_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), serde_json::to_vec(&holder("s-1")).unwrap()).unwrap();
        let lease = Lease::take(folder.path(), &holder("s-2")).unwrap();
        assert_eq!(lease.died, Some(holder("s-1")));
        drop(lease);
        let lease = Lease::take_from_the_dead(folder.path()).unwrap().unwrap();
        assert_eq!(lease.died, Some(holder("s-1")));
        drop(lease);
        // The second did not come so far as to recover it.
        let mut lease = Lease::take(folder.path(), &holder("s-3")).unwrap();
        assert_eq!(lease.died, Some(holder("s-1")));
        lease.recovered(&holder("s-3")).unwrap();
        assert_eq!(Lease::holder(folder.path()), Some(holder("s-3")));
        drop(lease);
        assert_eq!(Lease::take(folder.path(), &holder("s-4")).unwrap().died, None);
        assert!(Lease::take_from_the_dead(folder.path()).unwrap().is_none());
    }
}
