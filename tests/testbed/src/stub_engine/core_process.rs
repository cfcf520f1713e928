//! The `VLLM::EngineCore` child: it holds the GPU memory in a real vLLM, and a SIGKILL of its parent leaves it behind.

use std::io;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// The process title that vLLM gives its engine process.
pub const TITLE: &str = "VLLM::EngineCore";

/// Whether this process was started as the child.
pub fn is_this_process() -> bool {
    std::env::args_os().next().is_some_and(|name| name == TITLE)
}

/// Lives until a signal ends it.
pub fn run() -> ! {
    // A name that cannot be set is no reason to die: argv[0] carries it as well.
    let _ = std::fs::write("/proc/self/comm", TITLE);
    loop {
        std::thread::park();
    }
}

/// Starts the child in the caller's process group, as vLLM does; dropping it kills it.
pub(super) fn spawn() -> io::Result<Child> {
    Command::new("/proc/self/exe").arg0(TITLE).stdin(Stdio::null()).kill_on_drop(true).spawn()
}
