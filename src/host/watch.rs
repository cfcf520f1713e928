//! Waits until something in a folder changes: an event, and a poll only where the kernel has no watch left.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// Room for one batch of inotify events; more wait in the kernel.
const BUFFER: usize = 4096;

/// Between two looks where there is no watch: users have few (`fs.inotify.max_user_instances`, 128), and share them.
const LOOK: Duration = Duration::from_millis(200);

/// A folder that is being watched.
pub struct Watch {
    /// `None` where the kernel has no watch left, or the folder is not there.
    events: Option<EventStream<[u8; BUFFER]>>,
}

impl Watch {
    /// Begins to watch. Changes from now on are seen by [`Watch::changed`].
    pub fn folder(path: &Path) -> Self {
        Self { events: events(path).ok() }
    }

    /// Returns at the first change since the last call; where nobody tells of changes, when it is time to look.
    pub async fn changed(&mut self) {
        match &mut self.events {
            // An error (a queue overflow, say) means that something changed as well.
            Some(events) => drop(events.next().await),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

fn events(path: &Path) -> io::Result<EventStream<[u8; BUFFER]>> {
    let inotify = Inotify::init()?;
    let what = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE;
    inotify.watches().add(path, what)?;
    inotify.into_event_stream([0; BUFFER])
}

impl Drop for Watch {
    fn drop(&mut self) {
        let inotify = self.events.take().map(EventStream::into_inotify);
        // Closing waits for the kernel to reap what was watched (Linux `fsnotify_destroy_group`), tens of milliseconds:
        // not on the thread that does all else. Where there is no other one, on this.
        drop(std::thread::Builder::new().spawn(move || drop(inotify)));
    }
}
