//! The control groups of a guest: systemd in it wants a tree of its own, and whatever runs in the tree is the guest's.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::end;
use crate::server::processes::until;

const MOUNT: &str = "/sys/fs/cgroup";

/// Waits for the end of its input, which is the end of the test's process, and clears up what that left.
///
/// The guest's PID 1 outlives systemd-nspawn, and nobody else would end it after a test that was killed.
const HEIR: &str = r#"cat >/dev/null
scratch=$1; shift
while pids=$(find "$@" -name cgroup.procs -exec cat {} + 2>/dev/null) && [ -n "$pids" ]; do
    kill -KILL $pids
    sleep 0.1
done
for group; do [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} +; done
rm -rf "$scratch""#;

/// One group in every hierarchy that systemd uses. They go with this value, and whatever runs in them.
pub(super) struct Groups {
    paths: Vec<PathBuf>,
    heir: Child,
}

impl Groups {
    /// Makes them; should this process be killed, they and the scratch folder go as well.
    pub(super) fn make(scratch: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}{}", prefix(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let paths: Vec<_> = hierarchies().into_iter().map(|at| at.join(&name)).collect();
        let mut heir = Command::new("sh");
        heir.args(["-c", HEIR, "heir"]).arg(scratch).args(&paths);
        // A group of its own: Ctrl-C on a terminal is for the test.
        let heir = heir.stdin(Stdio::piped()).process_group(0).spawn()?;
        let groups = Self { paths, heir };
        for group in &groups.paths {
            fs::create_dir(group).with_context(|| format!("{} cannot be made", group.display()))?;
        }
        Ok(groups)
    }

    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Kills what runs in them and returns when it is gone.
    pub(super) fn end_all(&self) -> Result<()> {
        until("the guest's processes end", || {
            let members: Vec<_> = self.paths.iter().flat_map(|group| members(group)).collect();
            for pid in &members {
                self.kill(*pid)?;
            }
            Ok(members.is_empty())
        })
    }

    fn kill(&self, pid: Pid) -> Result<()> {
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // Asked again while the handle pins the process: the number alone may meanwhile be a stranger's.
        if self.paths.iter().any(|group| members(group).contains(&pid)) {
            match pidfd_send_signal(&handle, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("a process of the guest cannot be killed"),
            }
        }
        Ok(())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let gone = self.end_all().and_then(|()| {
            until("the guest's control groups can go", || {
                Ok(self.paths.iter().all(|group| remove(group).is_ok()))
            })
        });
        drop(self.heir.stdin.take());
        let gone = gone.and_then(|()| end::of(&mut self.heir).map(drop));
        if let Err(error) = gone {
            // A test that fails already must not abort on top, yet what is left behind has to be seen.
            let _ = writeln!(std::io::stderr(), "guest: {error:#}");
        }
    }
}

/// Groups of guests of this process that are still there.
pub(super) fn left() -> Vec<PathBuf> {
    let entries = hierarchies().into_iter().flat_map(fs::read_dir).flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix())))
        .collect()
}

fn prefix() -> String {
    format!("testbed-{}-", std::process::id())
}

/// Version 2 alone, or beside version 1 in one of its two layouts (systemd's `CGROUP_DELEGATION`), of which Docker insists on
/// the devices as well.
fn hierarchies() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount.to_owned()];
    }
    let all = ["systemd", "unified", "devices"].map(|name| mount.join(name));
    all.into_iter().filter(|path| path.is_dir()).collect()
}

/// Processes of a group and of all below it.
fn members(group: &Path) -> Vec<Pid> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids = own.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
    pids.chain(below(group).iter().flat_map(|group| members(group))).collect()
}

fn remove(group: &Path) -> std::io::Result<()> {
    below(group).iter().try_for_each(|group| remove(group))?;
    match fs::remove_dir(group) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}
