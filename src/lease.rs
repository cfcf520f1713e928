//! F2: the lease of a service: flock plus a holder. Nobody deletes the file; a dead holder's lock is simply free.
//!
//! The last line of the file that can be read is the holder. Whoever takes the lease adds a line, which names the holder that
//! died, if one did; so no write that is cut short loses anybody. An emptied file says that the lease was given back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::host::process;
use crate::model::failure::Hint;
use crate::model::moment::moment;
use crate::model::state::Holder;

pub mod waiting;

/// The lease's file in the service's folder.
const FILE: &str = "lease.json";

/// [`Holder::command`] of what `abort` gives up; a repair that has begun goes on, and what retires has its outcome.
const GIVEN_UP: [&str; 2] = ["swap", "rollback"];

/// [`Holder::command`] while a replica whose time has come is stopped: its swap has its outcome.
pub const RETIRE: &str = "retire";

/// A line of the file, and all of a file of who waits.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    holder: Holder,
    /// Of which boot its process is.
    #[serde(default)]
    boot: Option<String>,
}

impl Line {
    fn is_alive(&self) -> bool {
        let is_of_this_boot = self.boot.as_ref().is_none_or(|boot| *boot == process::boot());
        is_of_this_boot && process::alive(self.holder.process)
    }
}

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
                let waits = url.map_or_else(
                    || "wait until it ends; `model-swap status` shows it".to_owned(),
                    |url| format!("wait until it ends, or look at {url}"),
                );
                let ends = holder.as_ref().filter(|it| GIVEN_UP.contains(&it.command.as_str()));
                let ends =
                    ends.map(|it| format!("`model-swap abort --swap-id {}` gives it up", it.swap));
                std::iter::once(waits).chain(ends).collect()
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
    let first = holder.recovers.as_ref().map(|died| {
        format!("; it first brings {} {} to its end, whose agent is gone", died.command, died.swap)
    });
    format!(
        "{who}{from} works on this service: {} {} since {}{}",
        holder.command,
        holder.swap,
        moment(holder.since),
        first.unwrap_or_default()
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
    /// How many bytes of the file stay when it is given back.
    stays: u64,
}

impl Lease {
    /// Takes the lease, or says who has it.
    ///
    /// # Errors
    /// If it is held or the disk refuses.
    pub fn take(folder: &Path, holder: &Holder) -> Result<Self, LeaseError> {
        let mut lease = Self::lock(folder)?;
        lease.write(holder)?;
        Ok(lease)
    }

    /// Takes the lease of a holder that died, as `own` of it; `None` if nobody did.
    ///
    /// # Errors
    /// If it is held or the disk refuses.
    pub fn take_from_the_dead(
        folder: &Path,
        own: impl FnOnce(&Holder) -> Holder,
    ) -> Result<Option<Self>, LeaseError> {
        let mut lease = Self::lock(folder)?;
        let Some(holder) = lease.died.as_ref().map(own) else { return Ok(None) };
        lease.write(&holder)?;
        Ok(Some(lease))
    }

    fn lock(folder: &Path) -> Result<Self, LeaseError> {
        let path = folder.join(FILE);
        let io = |source| LeaseError::Io { path: path.clone(), source };
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LeaseError::Held { holder: Self::holder(folder).map(Box::new) });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        if is_new {
            // A power loss must not take away who was at work with the file's own entry.
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        }
        let died = read(&path).map(|last| first_to_recover(last.holder));
        let length = file.metadata().map_err(io)?.len();
        let stays = if died.is_some() { length } else { 0 };
        Ok(Self { path, file, died, stays })
    }

    /// Puts the new holder in the place of one that died and whose swap is brought to its end.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn recovered(&mut self, holder: &Holder) -> Result<(), LeaseError> {
        let died = self.died.take();
        if let Err(error) = self.write(holder) {
            self.died = died;
            return Err(error);
        }
        self.stays = 0;
        Ok(())
    }

    fn write(&mut self, holder: &Holder) -> Result<(), LeaseError> {
        let io = |source| LeaseError::Io { path: self.path.clone(), source };
        let holder = Holder { recovers: self.died.clone().map(Box::new), ..holder.clone() };
        let line = Line { holder, boot: Some(process::boot()) };
        let line = serde_json::to_string(&line).map_err(|error| io(error.into()))?;
        // Half a line of one who died over it ends here.
        self.file
            .write_all(format!("\n{line}").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(io)
    }

    /// Lets go of it as a death does: whoever comes next is told, and brings what this holder began to its end.
    pub fn leave_to_the_next(mut self) {
        // Who died is told by the lines before this holder's: whoever tries time and again must not fill the disk.
        if self.died.is_none() {
            self.stays = self.file.metadata().map_or(u64::MAX, |file| file.len());
        }
    }

    /// Who held the lease when they died, if nobody has recovered what they left. Looks without locking.
    pub fn left_by_the_dead(folder: &Path) -> Option<Holder> {
        let last = read(&folder.join(FILE)).filter(|last| !last.is_alive());
        last.map(|last| first_to_recover(last.holder))
    }

    /// The same, or what this process itself has left to the next. For who does not hold the lease: that is told in no other way.
    pub fn left_to_the_next(folder: &Path) -> Option<Holder> {
        let is_left = |last: &Line| !last.is_alive() || last.holder.process == process::own();
        let last = read(&folder.join(FILE)).filter(is_left);
        last.map(|last| first_to_recover(last.holder))
    }

    /// Who holds the lease now. Looks without locking, so that looking never refuses anybody.
    pub fn holder(folder: &Path) -> Option<Holder> {
        read(&folder.join(FILE)).filter(Line::is_alive).map(|last| last.holder)
    }
}

impl Drop for Lease {
    /// An emptied file says that it was given back; a death that nobody has recovered stays readable.
    fn drop(&mut self) {
        // If the disk refuses, the next holder looks at our journal and finds it concluded, or not begun.
        let _ = self.file.set_len(self.stays);
        // Closing the file would not do: a process that is just being spawned has it open until its exec.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Whose swap is to be brought to its end when this holder is dead: one that was recovering has begun nothing.
fn first_to_recover(dead: Holder) -> Holder {
    dead.recovers.map_or(Holder { recovers: None, ..dead }, |died| *died)
}

fn read(path: &Path) -> Option<Line> {
    let text = fs::read(path).ok()?;
    text.rsplit(|byte| *byte == b'\n').find_map(|line| serde_json::from_slice(line).ok())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::ids::ProcessId;
    use crate::model::state::Requester;
    use jiff::Timestamp;

    /// A holder of this process's.
    pub(crate) fn holder(swap: &str) -> Holder {
        Holder {
            swap: swap.parse().unwrap(),
            since: Timestamp::UNIX_EPOCH,
            process: process::own(),
            command: "swap".to_owned(),
            requester: Requester { actor: Some("ann".to_owned()), ..Default::default() },
            recovers: None,
        }
    }

    #[test]
    fn one_at_a_time_and_the_second_is_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lease::take(folder.path(), &holder("s-1")).unwrap();
        assert_eq!(Lease::holder(folder.path()), Some(holder("s-1")));
        let refused = Lease::take(folder.path(), &holder("s-2")).unwrap_err();
        let shown = "wait until it ends; `model-swap status` shows it";
        let ends = "`model-swap abort --swap-id s-1` gives it up";
        assert_eq!(refused.hints(), [shown, ends]);
        let repair = Holder { command: "repair".to_owned(), ..holder("s-1") };
        let held_by_it = LeaseError::Held { holder: Some(Box::new(repair)) };
        assert_eq!(held_by_it.hints(), [shown], "it goes on");
        let expected = "ann works on this service: swap s-1 since 1970-01-01 00:00:00 UTC";
        assert_eq!(refused.to_string(), expected);
        let held = held(Some(&recovering("s-1", dead("s-0"))));
        let dead_first = "; it first brings swap s-0 to its end, whose agent is gone";
        assert_eq!(held, format!("{expected}{dead_first}"));
        drop(first);
        assert_eq!(Lease::holder(folder.path()), None);
        assert!(Lease::take(folder.path(), &holder("s-2")).unwrap().died.is_none());
    }

    #[test]
    fn a_holder_that_can_do_no_more_is_told_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        Lease::take(folder.path(), &holder("s-1")).unwrap().leave_to_the_next();
        // Its process may live on; it is not at work any more.
        assert_eq!(Lease::left_to_the_next(folder.path()), Some(holder("s-1")));
        let lease = Lease::take(folder.path(), &holder("s-2")).unwrap();
        assert_eq!(lease.died, Some(holder("s-1")));
    }

    #[test]
    fn whoever_leaves_it_time_and_again_lets_the_file_not_grow() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(file(&folder), serde_json::to_vec(&dead("s-1")).unwrap()).unwrap();
        let own = |_: &Holder| holder("s-1");
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let lease = Lease::take_from_the_dead(folder.path(), own).unwrap().unwrap();
            assert_eq!(lease.died, Some(dead("s-1")));
            lease.leave_to_the_next();
            lengths.push(fs::metadata(file(&folder)).unwrap().len());
        }
        assert_eq!(lengths, [lengths[0]; 3]);
        assert_eq!(Lease::left_by_the_dead(folder.path()), Some(dead("s-1")));
        // Nobody died, and this one can do no more.
        fs::write(file(&folder), "").unwrap();
        for _ in 0..3 {
            Lease::take(folder.path(), &holder("s-2")).unwrap().leave_to_the_next();
            lengths.push(fs::metadata(file(&folder)).unwrap().len());
        }
        assert_eq!(lengths[3..], [lengths[3]; 3]);
        assert_eq!(written(&folder), holder("s-2"));
    }

    fn file(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join(FILE)
    }

    fn written(folder: &tempfile::TempDir) -> Holder {
        read(&file(folder)).unwrap().holder
    }

    /// A holder whose process is gone.
    pub(crate) fn dead(swap: &str) -> Holder {
        // No process starts before its boot.
        Holder { process: ProcessId { start: 0, ..process::own() }, ..holder(swap) }
    }

    /// A process that lives, and is not this one.
    pub(crate) fn parent() -> ProcessId {
        process::with_pid(rustix::process::getppid().unwrap().as_raw_nonzero().get())
    }

    fn recovering(swap: &str, died: Holder) -> Holder {
        Holder { recovers: Some(Box::new(died)), ..holder(swap) }
    }

    #[test]
    fn a_holder_that_died_is_told_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(file(&folder), serde_json::to_vec(&dead("s-1")).unwrap()).unwrap();
        assert_eq!(Lease::left_by_the_dead(folder.path()), Some(dead("s-1")));
        let lease = Lease::take(folder.path(), &holder("s-2")).unwrap();
        assert_eq!(lease.died, Some(dead("s-1")));
        drop(lease);
        let own =
            |died: &Holder| Holder { command: "resume".to_owned(), ..holder(died.swap.as_str()) };
        let lease = Lease::take_from_the_dead(folder.path(), own).unwrap().unwrap();
        assert_eq!(lease.died, Some(dead("s-1")));
        assert_eq!(written(&folder).command, "resume");
        drop(lease);
        // The second did not come so far as to recover it.
        let mut lease = Lease::take(folder.path(), &holder("s-3")).unwrap();
        assert_eq!(lease.died, Some(dead("s-1")));
        lease.recovered(&holder("s-3")).unwrap();
        assert_eq!(Lease::holder(folder.path()), Some(holder("s-3")));
        drop(lease);
        assert_eq!(Lease::take(folder.path(), &holder("s-4")).unwrap().died, None);
        assert!(Lease::take_from_the_dead(folder.path(), own).unwrap().is_none());
    }

    #[test]
    fn who_recovers_a_dead_one_is_the_holder_from_the_beginning() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(file(&folder), serde_json::to_vec(&dead("s-1")).unwrap()).unwrap();
        let other = Holder { process: parent(), ..holder("s-2") };
        let lease = Lease::take(folder.path(), &other).unwrap();
        let now = Holder { process: parent(), ..recovering("s-2", dead("s-1")) };
        assert_eq!(Lease::holder(folder.path()), Some(now.clone()));
        assert_eq!(Lease::left_by_the_dead(folder.path()), None);
        let Err(LeaseError::Held { holder: told }) = Lease::take(folder.path(), &holder("s-3"))
        else {
            panic!("two have it")
        };
        assert_eq!(told, Some(Box::new(now)));
        drop(lease);
        assert_eq!(written(&folder), dead("s-1"), "it was not recovered");
    }

    #[test]
    fn who_died_while_he_recovered_had_begun_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let second = Holder { process: dead("s-2").process, ..recovering("s-2", dead("s-1")) };
        fs::write(file(&folder), serde_json::to_vec(&second).unwrap()).unwrap();
        assert_eq!(Lease::left_by_the_dead(folder.path()), Some(dead("s-1")));
        let lease = Lease::take(folder.path(), &holder("s-3")).unwrap();
        assert_eq!(lease.died, Some(dead("s-1")));
        assert_eq!(written(&folder), recovering("s-3", dead("s-1")));
    }

    #[test]
    fn a_line_that_was_cut_short_loses_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let line = |holder: &Holder| serde_json::to_string(holder).unwrap();
        let (first, second) = (line(&dead("s-1")), line(&recovering("s-2", dead("s-1"))));
        fs::write(file(&folder), format!("{first}\n{}", &second[..second.len() / 2])).unwrap();
        let mut lease = Lease::take(folder.path(), &holder("s-3")).unwrap();
        assert_eq!(lease.died, Some(dead("s-1")));
        lease.recovered(&holder("s-3")).unwrap();
        assert_eq!(written(&folder), holder("s-3"));
    }

    #[test]
    fn a_holder_of_another_boot_is_dead_whoever_has_its_pid_now() {
        let folder = tempfile::tempdir().unwrap();
        drop(Lease::take(folder.path(), &holder("s-0")).unwrap());
        let mut line = serde_json::to_value(holder("s-1")).unwrap();
        line["boot"] = "another one".into();
        fs::write(file(&folder), line.to_string()).unwrap();
        assert_eq!(Lease::holder(folder.path()), None);
        assert_eq!(Lease::left_by_the_dead(folder.path()), Some(holder("s-1")));
        line["boot"] = process::boot().into();
        fs::write(file(&folder), line.to_string()).unwrap();
        assert_eq!(Lease::holder(folder.path()), Some(holder("s-1")));
    }
}
