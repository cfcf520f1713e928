//! Waits until something in a folder changes: an event, not a poll.

use std::io;
use std::path::Path;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// Room for one batch of inotify events; more wait in the kernel.
const BUFFER: usize = 4096;

/// A folder that is being watched.
pub struct Watch {
    /// Always there until it is dropped.
    events: Option<EventStream<[u8; BUFFER]>>,
}

impl Watch {
    /// Begins to watch. Changes from now on are seen by [`Watch::changed`].
    ///
    /// # Errors
    /// If the folder is missing or the kernel has no watches left.
    pub fn folder(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let what = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE;
        inotify.watches().add(path, what)?;
        Ok(Self { events: Some(inotify.into_event_stream([0; BUFFER])?) })
    }

    /// Returns at the first change since the last call.
    pub async fn changed(&mut self) {
        // An error (a queue overflow, say) means that something changed as well.
        if let Some(events) = &mut self.events {
            drop(events.next().await);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let inotify = self.events.take().map(EventStream::into_inotify);
        // Closing waits for the kernel to reap what was watched (Linux `fsnotify_destroy_group`), tens of milliseconds:
        // not on the thread that does all else. Where there is no other one, on this.
        drop(std::thread::Builder::new().spawn(move || drop(inotify)));
    }
}
