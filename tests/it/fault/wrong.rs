//! What can go wrong at a call, and how it is made to.

use std::path::Path;

use model_swap::abort::{self, AbortOrder};
use model_swap::service_dir::ServiceDir;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
    /// Somebody orders the swap to be aborted, and the verb does what it does.
    Aborts,
    /// From here on the disk takes a few more bytes of the journal, and no more. Only where SIGXFSZ is ignored.
    DiskFills,
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

/// Bounds the length of files that this process writes.
pub(crate) fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).expect("a lower limit");
}
