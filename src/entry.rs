//! What the program begins, each to its end on one thread.
//!
//! Here and not in `main`: a crate compiles anew whatever its own code awaits, and the program would have much of the library
//! twice, a fiftieth of its size.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::agent::{self, Access};
use crate::model::ids::ServiceName;
use crate::model::outcome::Exit;
use crate::pid1;
use crate::runner::{self, Setting, Voice};

/// How long a blocked name look-up may hold up the end of the process.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(200);

/// The kernel gives no descriptor to wait with.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the runtime")]
pub struct NoRuntime(#[source] io::Error);

/// [`pid1::attend`].
///
/// # Errors
/// If no thread can begin to wait; the inner one is `attend`'s own.
pub fn attend() -> Result<io::Result<ExitCode>, NoRuntime> {
    on_one_thread(pid1::attend())
}

/// [`runner::run`].
///
/// # Errors
/// If no thread can begin to wait.
pub fn run(setting: Setting, voice: &mut Voice) -> Result<Exit, NoRuntime> {
    on_one_thread(runner::run(setting, voice))
}

/// [`runner::afterwards`].
///
/// # Errors
/// If no thread can begin to wait.
pub fn afterwards(setting: Setting, voice: &mut Voice) -> Result<Exit, NoRuntime> {
    on_one_thread(runner::afterwards(setting, voice))
}

/// [`agent::session`].
///
/// # Errors
/// If no thread can begin to wait.
pub fn agent_session(access: Access) -> Result<(), NoRuntime> {
    on_one_thread(agent::session(access))
}

/// [`agent::run`].
///
/// # Errors
/// If no thread can begin to wait.
pub fn agent_run(access: Access) -> Result<(), NoRuntime> {
    on_one_thread(agent::run(access))
}

/// [`agent::resume`].
///
/// # Errors
/// If no thread can begin to wait.
pub fn agent_resume(state_dir: &Path, service: &ServiceName) -> Result<(), NoRuntime> {
    on_one_thread(agent::resume(state_dir, service))
}

fn on_one_thread<T>(work: impl Future<Output = T>) -> Result<T, NoRuntime> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NoRuntime)?;
    // GitHub is told beside the work, on the same thread.
    let result = tokio::task::LocalSet::new().block_on(&runtime, work);
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    Ok(result)
}
