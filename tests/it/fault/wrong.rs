//! What can go wrong at a call, and how it is made to.

use std::path::Path;

use jiff::SignedDuration;
use model_swap::abort::{self, AbortOrder};
use model_swap::service_dir::ServiceDir;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::host::SimHost;
use super::shutdown::Part;

/// What a dying agent unwinds with.
pub(crate) struct Death;

/// A fault at the call of this number, counted from the arming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) call: usize,
    pub(crate) wrong: Wrong,
}

/// What goes wrong at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The verb fails and did nothing.
    Fails,
    /// The verb did all, and fails.
    DoesAndFails,
    /// The agent dies before the verb does anything.
    Dies,
    /// The agent dies when the verb did all.
    DoesAndDies,
    /// The agent dies when nginx's lines are written and not loaded. Only at `load`.
    DiesHalfway,
    /// Somebody orders the swap to be aborted, and the verb does what it does.
    Aborts,
    /// Somebody restarts nginx, and the verb does what it does.
    RestartsNginx,
    /// From here on the server is being shut down: at each call one thing more ends, and this one first.
    ShutsDown(Part),
    /// From here on the disk takes a few more bytes of the journal, and no more. Only where SIGXFSZ is ignored.
    DiskFills,
    /// Somebody sets the clock forward or back by so many hours, and the verb does what it does.
    ///
    /// The living agent meets that here, which the real host keeps from it ([`Host::now`](model_swap::host::Host::now)):
    /// forward, it is what a server meets that was suspended.
    SetsClock(i64),
}

impl SimHost {
    /// What goes wrong around a call, which does what it does.
    pub(super) fn bring_about(&self, wrong: Wrong) {
        let watched = self.watched.borrow();
        let journal = || &watched.as_ref().expect("a swap").journal;
        match wrong {
            Wrong::Aborts => order_abort(journal()),
            Wrong::DiskFills => fill_disk(journal()),
            Wrong::SetsClock(hours) => {
                self.set_clock(self.set_by.get() + SignedDuration::from_hours(hours));
            }
            Wrong::RestartsNginx => self.world.borrow_mut().restart_nginx(),
            Wrong::ShutsDown(first) => self.world.borrow_mut().shut_down(first),
            Wrong::Fails
            | Wrong::DoesAndFails
            | Wrong::Dies
            | Wrong::DoesAndDies
            | Wrong::DiesHalfway => {}
        }
    }

    /// Returns once nginx is neither restarted nor upgraded.
    pub(super) async fn at_rest(&self) {
        let unrest = self.world.borrow().unrest;
        if !unrest.is_zero() {
            tokio::time::sleep(unrest).await;
        }
    }

    /// Whether the agent dies in the midst of the call that comes next.
    pub(super) fn dies_halfway(&self) -> bool {
        let halfway = Fault { call: self.calls().len(), wrong: Wrong::DiesHalfway };
        self.faults.borrow().contains(&halfway)
    }

    /// The agent dies, and gives nothing back: what unwinds here would let go of the lease.
    pub(super) fn die(&self) -> ! {
        let watched = self.watched.borrow();
        let service = watched.as_ref().and_then(|watched| watched.journal.ancestors().nth(3));
        let lease = service.map(|service| service.join("lease.json"));
        let held = lease.and_then(|path| Some((std::fs::read(&path).ok()?, path)));
        *self.held.borrow_mut() = held;
        drop(watched);
        std::panic::resume_unwind(Box::new(Death))
    }

    /// Leaves the lease as the agent that died had it.
    pub(super) fn bury(&self) {
        if let Some((text, path)) = self.held.take() {
            std::fs::write(path, text).expect("a disk");
        }
    }
}

/// Orders the swap with this journal to be aborted.
pub(super) fn order_abort(journal: &Path) {
    let swap = journal.parent().expect("a swap");
    let service = swap.parent().and_then(Path::parent).expect("a service");
    let dir = ServiceDir::open(
        service.parent().expect("a state folder"),
        &name(service).parse().expect("a service's name"),
    );
    let swap = name(swap).parse().expect("a swap's id");
    abort::order(&dir.expect("folders"), &swap, &AbortOrder::default()).expect("a disk");
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(std::ffi::OsStr::to_str).expect("a name")
}

/// How much of a record still goes on a disk that is full: less than any record has.
const LAST_BYTES: u64 = 10;

/// Lets no file of this process grow beyond what the journal has.
pub(super) fn fill_disk(journal: &Path) {
    let length = std::fs::metadata(journal).expect("a journal").len();
    limit_files(Some(length + LAST_BYTES));
}

/// Whether the disk is full for this process.
pub(super) fn is_full() -> bool {
    getrlimit(Resource::Fsize).current.is_some()
}

/// Bounds the length of files that this process writes.
pub(crate) fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).expect("a lower limit");
}
