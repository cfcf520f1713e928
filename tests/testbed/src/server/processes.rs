//! What runs on this machine, read from /proc, and the end of what belongs to one server.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::MARK;
use crate::PATIENCE;

/// Interval between two looks at the process table, which announces nothing to strangers.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// `st` of a listening socket in /proc/net/tcp (`TCP_LISTEN` in include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Tells the processes of one server from all others.
pub(super) struct Owner {
    scratch: PathBuf,
    mark: Vec<u8>,
}

impl Owner {
    /// The server with this scratch folder.
    pub(super) fn of(scratch: &Path) -> Self {
        Self {
            scratch: scratch.to_path_buf(),
            mark: format!("{MARK}={}", scratch.display()).into_bytes(),
        }
    }

    /// Whether the process was started on this server: it carries the mark.
    pub(super) fn marked(&self, pid: u32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|entry| entry == self.mark)
    }

    /// Whether it is one of this server's nginx or sshd. Both write their titles over their environment, and both keep
    /// a log in scratch open.
    fn serves(&self, pid: u32) -> bool {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let named = program.file_name().is_some_and(|name| name == "nginx" || name == "sshd");
        named && links(pid).any(|target| target.starts_with(&self.scratch))
    }

    fn owns(&self, pid: u32) -> bool {
        self.marked(pid) || self.serves(pid)
    }

    fn kill(&self, pid: u32) -> anyhow::Result<()> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let handle = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("process {pid} cannot be opened"));
            }
        };
        // Asked again while the handle pins the process: the number alone may meanwhile be a stranger's.
        if self.owns(pid) {
            match pidfd_send_signal(&handle, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("process {pid} cannot be killed"));
                }
            }
        }
        Ok(())
    }
}

/// Kills all that belongs to `owner` and returns when it is gone, what forks meanwhile included.
pub(super) fn end_all(owner: &Owner) -> anyhow::Result<()> {
    until("its processes end", || {
        let left: Vec<u32> = all().filter(|&pid| owner.owns(pid)).collect();
        for &pid in &left {
            owner.kill(pid)?;
        }
        Ok(left.is_empty())
    })
    .with_context(|| {
        let left =
            all().filter(|&pid| owner.owns(pid)).map(|pid| format!("{pid}: {}", command_line(pid)));
        format!("left: {}", left.collect::<Vec<_>>().join(", "))
    })
}

/// Looks until `met` says so; fails when it fails or [`PATIENCE`] has passed.
pub(crate) fn until(
    what: &str,
    mut met: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !met()? {
        if Instant::now() > deadline {
            bail!("not within {} s: {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Every other process on the machine.
pub(super) fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| pid != std::process::id())
}

/// The living children of a process, in ascending order.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let mut found: Vec<u32> = all().filter(|&pid| parent_of(pid) == Some(parent)).collect();
    found.sort_unstable();
    found
}

/// Parent of a process; `None` for one that has ended, reaped or not.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (comm) state ppid …" (proc_pid_stat(5)); the name may hold anything, parentheses included.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? != "Z").then_some(())?;
    fields.next()?.parse().ok()
}

/// Arguments of a process, separated by spaces.
pub(crate) fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned()
}

/// Who listens on `port`.
pub(super) fn listeners(port: u16) -> anyhow::Result<Vec<u32>> {
    let mut sockets = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has no second table.
        match fs::read_to_string(table) {
            Ok(text) => {
                sockets.extend(text.lines().skip(1).filter_map(|line| listening_socket(line, port)))
            }
            Err(error) => ensure!(
                error.kind() == std::io::ErrorKind::NotFound,
                "{table} cannot be read: {error}"
            ),
        }
    }
    let own = std::process::id();
    let mut found: Vec<u32> = all()
        .chain([own])
        .filter(|&pid| links(pid).any(|target| sockets.contains(&target)))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The link name of the socket in one line of /proc/net/tcp (`sl local_address rem_address st … inode`, inode the tenth
/// field; proc_net_tcp in the kernel's documentation), if it listens on `port`.
fn listening_socket(line: &str, port: u16) -> Option<PathBuf> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
    listens.then(|| PathBuf::from(format!("socket:[{}]", fields[9])))
}

/// Where the open descriptors of a process lead.
fn links(pid: u32) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok())
}
