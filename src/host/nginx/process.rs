//! The running nginx: its master, its workers, and the log that its master writes to.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use procfs::process::Process;
use procfs::{Current, ProcError};
use rustix::process::{Pid, Signal, kill_process};

use super::error::NginxError;
use crate::model::ids::ProcessId;

/// How often the list of children is read until two readings agree: the kernel may omit living children while another
/// one ends (proc(5), `/proc/PID/task/TID/children`).
const CHILDREN_READINGS: usize = 10;

/// How nginx names its processes (`ngx_setproctitle` in `ngx_process_cycle.c`).
pub(super) const MASTER_TITLE: &str = "nginx: master process";
const WORKER_TITLE: &str = "nginx: worker process";
const SHUTTING_DOWN_TITLE: &str = "nginx: worker process is shutting down";
const CACHE_TITLE: &str = "nginx: cache ";

/// Start times are in ticks of 10 ms, and so is the uptime that they are compared with.
const CLOCK_SLACK: Duration = Duration::from_millis(30);

/// Most bytes of news read from the error log at once.
const LOG_CHUNK: u64 = 256 * 1024;

/// The master process of a running nginx.
#[derive(Debug, Clone)]
pub(super) struct Master {
    /// The process.
    pub(super) process: ProcessId,
    /// Where its file system starts: `/`, or `/proc/PID/root` if it runs in a container.
    root: PathBuf,
}

impl Master {
    #[cfg(test)]
    pub(super) fn for_test(process: ProcessId) -> Self {
        Self { process, root: "/".into() }
    }

    /// The process of this pid, if it is an nginx master.
    pub(super) fn of_pid(pid: i32) -> Result<Option<Self>, NginxError> {
        let Ok(process) = identity(pid) else { return Ok(None) };
        if !title(pid).starts_with(MASTER_TITLE) {
            return Ok(None);
        }
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
        let foreign = |source| NginxError::Foreign { pid, source };
        let shared =
            namespace(&pid.to_string()).map_err(foreign)? == namespace("self").map_err(foreign)?;
        let root =
            if shared { PathBuf::from("/") } else { PathBuf::from(format!("/proc/{pid}/root")) };
        Ok(Some(Self { process, root }))
    }

    /// Every nginx master of this machine that may be looked at.
    pub(super) fn all() -> Vec<Self> {
        let processes = procfs::process::all_processes().into_iter().flatten().flatten();
        processes.filter_map(|process| Self::of_pid(process.pid()).ok().flatten()).collect()
    }

    /// The master whose pid file this is and that `serves`; the path is the one that nginx itself uses.
    pub(super) fn find(
        pid_file: &Path,
        serves: impl Fn(&Self) -> bool,
    ) -> Result<Option<Self>, NginxError> {
        let named = read_pid(pid_file);
        if let Some(master) = named.map(Self::of_pid).transpose()?.flatten()
            && master.root == Path::new("/")
            && serves(&master)
        {
            return Ok(Some(master));
        }
        // In a container, pid file and pid are the container's own.
        let inside = |master: &Self| {
            let written = read_pid(&master.sees(pid_file));
            master.root != Path::new("/")
                && written.is_some()
                && written == master.pid_inside()
                && serves(master)
        };
        Ok(Self::all().into_iter().find(inside))
    }

    /// Another master that takes requests from the same sockets: nginx's binary is being upgraded (`kill -USR2`). The new
    /// master is a child of the old one, and a reload of one of them changes nothing for the other.
    pub(super) fn rival(&self) -> Option<Self> {
        let parent = Process::new(self.process.pid).and_then(|process| process.stat());
        let children = self.children(|title| title.starts_with(MASTER_TITLE)).unwrap_or_default();
        let related = parent.ok().map(|stat| stat.ppid).into_iter();
        related
            .chain(children.iter().map(|child| child.pid))
            .filter_map(|pid| Self::of_pid(pid).ok().flatten())
            // A worker has its master's title for a moment, and no workers of its own.
            .find(|other| other.live_workers().is_ok_and(|workers| !workers.is_empty()))
    }

    /// A path that the master uses, as this process can open it.
    pub(super) fn sees(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether its paths are this process's paths.
    pub(super) fn is_contained(&self) -> bool {
        self.root != Path::new("/")
    }

    /// Its title: what it is, and how it was called.
    pub(super) fn title(&self) -> String {
        title(self.process.pid)
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        is_alive(self.process)
    }

    /// Tells it to load its configuration, as `nginx -s reload` would.
    pub(super) fn reload(&self) -> Result<(), NginxError> {
        let master = self.process.pid;
        if !self.is_alive() {
            return Err(NginxError::MasterGone { master });
        }
        let pid = Pid::from_raw(master).ok_or(NginxError::MasterGone { master })?;
        kill_process(pid, Signal::HUP)
            .map_err(|error| NginxError::Signal { master, source: error.into() })
    }

    /// Every child that serves requests or is about to, those that are shutting down included.
    pub(super) fn workers(&self) -> Result<Vec<ProcessId>, NginxError> {
        // A child between its fork and its first title still has the master's.
        self.children(|title| !title.is_empty() && !title.starts_with(CACHE_TITLE))
    }

    /// The workers that may take new requests, as far as their titles tell.
    pub(super) fn live_workers(&self) -> Result<Vec<ProcessId>, NginxError> {
        self.children(|title| {
            title.starts_with(WORKER_TITLE) && !title.starts_with(SHUTTING_DOWN_TITLE)
        })
    }

    /// The workers that are shutting down.
    pub(super) fn retiring_workers(&self) -> Result<Vec<ProcessId>, NginxError> {
        self.children(|title| title.starts_with(SHUTTING_DOWN_TITLE))
    }

    /// Whether its configuration was read after a moment: all workers that take requests were started since.
    ///
    /// `false` where that is not certain.
    pub(super) fn has_loaded_since(&self, moment: SystemTime) -> bool {
        let Ok(workers) = self.live_workers() else { return false };
        let since = |worker: &ProcessId| {
            started_at(*worker).is_some_and(|started| started + CLOCK_SLACK >= moment)
        };
        !workers.is_empty() && workers.iter().all(since)
    }

    fn children(&self, counts: impl Fn(&str) -> bool) -> Result<Vec<ProcessId>, NginxError> {
        let pid = self.process.pid;
        let read = || -> Result<BTreeSet<u32>, ProcError> {
            let mut children = BTreeSet::new();
            for task in Process::new(pid)?.tasks()? {
                children.extend(task?.children()?);
            }
            Ok(children)
        };
        let read = || read().map_err(|source| NginxError::Process { pid, source });
        let mut children = read()?;
        for _ in 0..CHILDREN_READINGS {
            let again = read()?;
            if again.is_subset(&children) {
                break;
            }
            children.extend(again);
        }
        let child = |pid: u32| {
            identity(i32::try_from(pid).ok()?).ok().filter(|child| counts(&title(child.pid)))
        };
        Ok(children.into_iter().filter_map(child).collect())
    }

    /// Its pid in its own namespace.
    fn pid_inside(&self) -> Option<i32> {
        let status = Process::new(self.process.pid).and_then(|process| process.status()).ok()?;
        status.nspid?.last().copied()
    }
}

/// The process that has this pid now; an ended one that nobody waited for is none.
fn identity(pid: i32) -> Result<ProcessId, ProcError> {
    let stat = Process::new(pid)?.stat()?;
    if matches!(stat.state, 'Z' | 'X') {
        return Err(ProcError::NotFound(None));
    }
    Ok(ProcessId { pid, start: stat.starttime })
}

/// When a process was started, by the clock of today; earlier than it was, if this one is kept waiting.
fn started_at(process: ProcessId) -> Option<SystemTime> {
    // Before the uptime is read: what is loaded must never look newer than it is.
    let now = SystemTime::now();
    let uptime = Duration::from_secs_f64(procfs::Uptime::current().ok()?.uptime);
    let start = Duration::from_secs_f64(process.start as f64 / procfs::ticks_per_second() as f64);
    now.checked_sub(uptime.checked_sub(start)?)
}

/// Whether a process still runs, and is not a later one with the same pid.
pub(super) fn is_alive(process: ProcessId) -> bool {
    identity(process.pid).is_ok_and(|now| now == process)
}

/// Whether this is a master with workers of its own: it takes over from the one whose child it is, and ends when it is told to.
pub(super) fn is_master(process: ProcessId) -> bool {
    let master = Master::of_pid(process.pid).ok().flatten();
    master.is_some_and(|master| master.live_workers().is_ok_and(|workers| !workers.is_empty()))
}

/// Whether a worker takes no new connections any more.
pub(super) fn is_shutting_down(process: ProcessId) -> bool {
    title(process.pid).starts_with(SHUTTING_DOWN_TITLE)
}

fn title(pid: i32) -> String {
    let argv = Process::new(pid).and_then(|process| process.cmdline()).unwrap_or_default();
    argv.into_iter().next().unwrap_or_default()
}

/// The pid in a pid file; `None` if there is no such file or no pid in it.
pub(super) fn read_pid(file: &Path) -> Option<i32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The file that a master logs to, from where it ended when this was made.
#[derive(Debug)]
pub(super) struct ErrorLog {
    file: File,
    offset: u64,
    /// What marks the master's own lines.
    mark: String,
}

impl ErrorLog {
    /// The log of a running master; `None` if it logs to no file.
    ///
    /// nginx points its standard error at the main log that it has loaded (`ngx_log_redirect_stderr`), whatever the
    /// configuration on disk says by now. `written` is the main `error_log` on disk, where standard error is no file.
    pub(super) fn of(master: &Master, written: Option<&Path>) -> Option<Self> {
        let stderr = PathBuf::from(format!("/proc/{}/fd/2", master.process.pid));
        let candidates = [Some(stderr), written.map(|path| master.sees(path))];
        let file = candidates.into_iter().flatten().find_map(|path| {
            // Opening a FIFO would wait for its writer.
            let regular = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
            if regular { File::open(path).ok() } else { None }
        })?;
        let offset = file.metadata().ok()?.size();
        let pid = master.pid_inside().unwrap_or(master.process.pid);
        Some(Self { file, offset, mark: format!(" [emerg] {pid}#") })
    }

    /// The master's `[emerg]` lines since the last call.
    pub(super) fn news(&mut self) -> Vec<String> {
        self.read().unwrap_or_default()
    }

    fn read(&mut self) -> io::Result<Vec<String>> {
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        (&self.file).take(LOG_CHUNK).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        bytes.truncate(whole);
        self.offset += whole as u64;
        // `2026/11/23 10:00:00 [emerg] 123#123: …`; a mark further on could be part of a request that is quoted.
        let is_own = |line: &&str| {
            line.get("2026/11/23 10:00:00".len()..).is_some_and(|rest| rest.starts_with(&self.mark))
        };
        Ok(String::from_utf8_lossy(&bytes).lines().filter(is_own).map(str::to_owned).collect())
    }
}
