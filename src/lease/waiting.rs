//! Who waits for a turn at a service: a file each, by which others see them, and end their wait.
//!
//! Whoever removes the file decides, and the disk lets one do it: the one who waits has his turn then, or begins nothing any
//! more. What is there of a process that is gone says nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::Line;
use crate::host::process;
use crate::model::ids::{ProcessId, SwapId};
use crate::model::state::Holder;
use crate::service_dir::{ServiceDir, StateError, write_json};

/// One who waits; no more when it is dropped.
#[derive(Debug)]
pub struct Waiting {
    path: PathBuf,
}

impl Waiting {
    /// Begins to wait, as others will see it: by [`Holder::swap`], which is a repair's own id here.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn enter(dir: &ServiceDir, asked: &Holder) -> Result<Self, StateError> {
        let path = file(dir, asked);
        write_json(&path, &Line { holder: asked.clone(), boot: Some(process::boot()) })?;
        Ok(Self { path })
    }

    /// Ends the wait for one's turn. `false`: it was ended before, by [`strike`].
    pub fn leave(self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Once it has left, or was struck, it is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Ends the wait of all who wait under this id, and says whose that was: a step that is asked again waits beside its first
/// attempt. `None`: nobody waits under it any more, or yet.
pub fn strike(dir: &ServiceDir, id: &SwapId) -> Option<Holder> {
    let named = lines(dir).filter_map(|(path, line)| Some((path, line?)));
    let mut struck: Vec<_> = named
        .filter(|(_, line)| line.holder.swap == *id)
        .filter(|(path, line)| fs::remove_file(path).is_ok() && line.is_alive())
        .map(|(_, line)| line.holder)
        .collect();
    struck.pop()
}

/// Everybody who waits, as long as they do first.
pub fn all(dir: &ServiceDir) -> Vec<Holder> {
    let mut all: Vec<_> = lines(dir)
        .filter_map(|(_, line)| line.filter(Line::is_alive))
        .map(|line| line.holder)
        .collect();
    all.sort_unstable_by_key(|holder| holder.since);
    all
}

/// Removes what processes have left that are gone.
pub fn forget_the_dead(dir: &ServiceDir) {
    for (path, _) in lines(dir).filter(|(_, line)| line.as_ref().is_some_and(|it| !it.is_alive())) {
        let _ = fs::remove_file(path);
    }
}

fn lines(dir: &ServiceDir) -> impl Iterator<Item = (PathBuf, Option<Line>)> {
    let entries = fs::read_dir(dir.waiting()).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), read(&entry.path())))
}

fn read(path: &Path) -> Option<Line> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Each process has its own: two may wait under one id, and the first to leave must not take the other's away.
fn file(dir: &ServiceDir, asked: &Holder) -> PathBuf {
    let ProcessId { pid, start } = asked.process;
    dir.waiting().join(format!("{}.{pid}-{start}.json", asked.swap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{dead, holder, parent};

    #[test]
    fn who_waits_is_seen_until_he_has_his_turn_or_somebody_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let first = Waiting::enter(&dir, &holder("s-1")).unwrap();
        let second = Waiting::enter(&dir, &holder("s-2")).unwrap();
        assert_eq!(all(&dir).len(), 2);
        assert!(first.leave());
        assert_eq!(all(&dir), [holder("s-2")]);
        assert_eq!(strike(&dir, &"s-1".parse().unwrap()), None, "it has had its turn");
        assert_eq!(strike(&dir, &"s-2".parse().unwrap()), Some(holder("s-2")));
        assert!(!second.leave(), "two have decided");
        drop(Waiting::enter(&dir, &holder("s-3")).unwrap());
        assert_eq!(all(&dir), []);
    }

    /// A holder whose process lives, and is not this one.
    fn again(swap: &str) -> Holder {
        Holder { process: parent(), ..holder(swap) }
    }

    #[test]
    fn two_who_wait_under_one_id_leave_each_for_himself_and_are_ended_together() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let first = Waiting::enter(&dir, &holder("s-1")).unwrap();
        let second = Waiting::enter(&dir, &again("s-1")).unwrap();
        assert_eq!(all(&dir).len(), 2);
        drop(first);
        assert_eq!(all(&dir), [again("s-1")], "who gave up took the other's file away");
        let first = Waiting::enter(&dir, &holder("s-1")).unwrap();
        assert!(strike(&dir, &"s-1".parse().unwrap()).is_some());
        assert!(!first.leave() && !second.leave(), "one of them has its turn all the same");
        // What one left that died says nothing of whether the other has begun.
        let _dead = Waiting::enter(&dir, &dead("s-1")).unwrap();
        assert_eq!(strike(&dir, &"s-1".parse().unwrap()), None);
    }

    #[test]
    fn the_dead_do_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let gone = Waiting::enter(&dir, &dead("s-1")).unwrap();
        let _lives = Waiting::enter(&dir, &holder("s-2")).unwrap();
        assert_eq!(all(&dir), [holder("s-2")]);
        forget_the_dead(&dir);
        assert!(!gone.leave(), "what the dead one left is still there");
        assert_eq!(all(&dir), [holder("s-2")]);
    }
}
