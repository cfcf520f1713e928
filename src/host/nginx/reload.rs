//! Changing the `server` lines so that nginx really loads them, or is left exactly as it was.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::error::NginxError;
use super::process::{ErrorLog, Master};
use super::{Nginx, UpstreamView, call, metadata, read};
use crate::host::durable;
use crate::model::ids::ProcessId;
use crate::model::record::UpstreamImage;
use crate::swap::nginx_conf::{Dump, active_servers, replace_servers};

/// Bound on the first new worker after a reload: nginx tries to bind a busy port 5 times, 500 ms apart
/// (`ngx_open_listening_sockets`), and resolves names and reads certificates once more, on a slow day for long.
pub(super) const RELOAD_LIMIT: Duration = Duration::from_secs(60);

/// How often new workers are looked for; the first was seen 0 to 25 ms after a reload.
const RELOAD_POLL: Duration = Duration::from_millis(2);

/// Bound on a restart of nginx or an upgrade of its binary that is under way: what packages run ends the old master after some
/// seconds.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Bound on the time without a pid in the pid file, where an nginx that starts or is upgraded will write one: longer than that,
/// it was stopped.
const START_LIMIT: Duration = Duration::from_secs(2);

/// Between two looks whether it is over, which nothing announces.
const CHANGE_POLL: Duration = Duration::from_millis(200);

/// How often the lines are written anew because somebody else wrote at that very moment.
const WRITES: usize = 5;

/// What was written, and what it replaced.
struct Written {
    current: Vec<u8>,
    /// When that was written.
    moment: SystemTime,
    wanted: Vec<u8>,
}

/// nginx has loaded what is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// The master.
    pub master: ProcessId,
    /// Every worker that existed before, those that were already shutting down included.
    pub old_workers: Vec<ProcessId>,
    /// Those new workers that were there when the first was seen.
    pub new_workers: Vec<ProcessId>,
}

impl Nginx {
    /// The workers of a master as they are now: those that are shutting down as old, those that take requests as new. One that
    /// has only just been forked has its master's title yet, and so has another master that takes over: neither is old.
    ///
    /// # Errors
    /// If that master is gone.
    pub fn loaded(&self, master: ProcessId) -> Result<Reloaded, NginxError> {
        let found = Master::of_pid(master.pid)?.filter(|found| found.process == master);
        let master = found.ok_or(NginxError::MasterGone { master: master.pid })?;
        // In this order: one that begins to shut down in between is in both, and old.
        let mut new_workers = master.live_workers()?;
        let old_workers = master.retiring_workers()?;
        new_workers.retain(|worker| !old_workers.contains(worker));
        Ok(Reloaded { master: master.process, old_workers, new_workers })
    }

    /// Makes nginx load the `after` of an image. Safe to repeat. On failure, file and traffic are as they were.
    ///
    /// # Errors
    /// If the lines are neither `before` nor `after`, nginx rejects them by its test or silently, or shows no new worker.
    /// [`NginxError::NotPutBack`] if the file could not be put back.
    pub async fn load(&self, image: &UpstreamImage) -> Result<Reloaded, NginxError> {
        self.change(&image.file, &image.before, &image.after).await
    }

    /// Makes nginx load the `before` of an image. Safe to repeat; `None` if `before` is in force already.
    ///
    /// # Errors
    /// As [`Nginx::load`].
    pub async fn restore(&self, image: &UpstreamImage) -> Result<Option<Reloaded>, NginxError> {
        let is_back = active_servers(&read(&image.file)?, &self.spec.upstream)? == image.before;
        // A load that nginx refused has put the file back, and nginx would refuse a reload again.
        if is_back && self.in_force(&image.file).await? {
            return Ok(None);
        }
        self.change(&image.file, &image.after, &image.before).await.map(Some)
    }

    /// Whether what is in the file is what the workers have loaded for certain.
    async fn in_force(&self, file: &Path) -> Result<bool, NginxError> {
        let dump = match call::test_and_dump(&self.spec.command).await {
            Ok(dump) => dump,
            // What breaks the configuration need not be in the main file, which names the pid file.
            Err(why) => call::main_file(&self.spec.command).await.ok_or(why)?,
        };
        let pid_file = call::pid_file(&self.spec.command, &dump).await?;
        let written = modified(file)?;
        let master = Master::find(&pid_file, |master| master.has_loaded_since(written))?;
        Ok(master.is_some())
    }

    async fn change(
        &self,
        file: &Path,
        from: &[String],
        to: &[String],
    ) -> Result<Reloaded, NginxError> {
        let current = read(file)?;
        if replace_servers(&current, &self.spec.upstream, from, to)? == current {
            return self.reload().await;
        }
        // A second master would load the lines on its own, and nobody would wait for its workers.
        if let Ok(dump) = call::test_and_dump(&self.spec.command).await {
            self.alone(&dump).await?;
        }
        let Written { current, moment, wanted } = self.write_lines(file, from, to)?;
        let why = match self.reload().await {
            Ok(reloaded) => return Ok(reloaded),
            Err(why) => why,
        };
        let put_back = put_back(file, &wanted, &current).and_then(|()| match &why {
            // The master may still load what was there a moment ago: let it come to what is there now.
            NginxError::NoNewWorkers { master, .. } => {
                Master::of_pid(*master)?.map_or(Ok(()), |master| master.reload())
            }
            why if why.leaves_doubt() => Ok(()),
            // Surely never loaded: with its old time the file says that it is older than the workers.
            _ => set_modified(file, moment),
        });
        match put_back {
            Ok(()) => Err(why),
            Err(source) => {
                Err(NginxError::NotPutBack { why: Box::new(why), source: Box::new(source) })
            }
        }
    }

    /// Writes the lines into the file as it is by now: somebody else may have written into it since anybody looked.
    fn write_lines(
        &self,
        file: &Path,
        from: &[String],
        to: &[String],
    ) -> Result<Written, NginxError> {
        for _ in 0..WRITES {
            let (current, moment) = (read(file)?, modified(file)?);
            let wanted = replace_servers(&current, &self.spec.upstream, from, to)?;
            if durable::replace_if(file, &current, &wanted).map_err(NginxError::Write)? {
                return Ok(Written { current, moment, wanted });
            }
        }
        let source = std::io::Error::other("somebody else changes it again and again");
        Err(NginxError::Unreadable { file: file.to_owned(), source })
    }

    /// Tests what is on disk and makes the master load it; where that one is restarted meanwhile, the one that comes after it.
    async fn reload(&self) -> Result<Reloaded, NginxError> {
        let mut old_workers = Vec::new();
        match self.reload_once(&mut old_workers).await {
            Err(gone @ NginxError::MasterGone { .. }) => {
                self.reload_once(&mut old_workers).await.map_err(|why| match why {
                    // Whoever is started later may still load it: that is what there is to say.
                    NginxError::PidFile { .. } | NginxError::MasterGone { .. } => gone,
                    why => NginxError::Restarted(Box::new(why)),
                })
            }
            reloaded => reloaded,
        }
    }

    /// Adds the workers that were there before to `old_workers`.
    async fn reload_once(&self, old_workers: &mut Vec<ProcessId>) -> Result<Reloaded, NginxError> {
        let dump = call::test_and_dump(&self.spec.command).await?;
        let master = self.alone(&dump).await?;
        let mut log = ErrorLog::of(&master, call::error_log(&dump).as_deref());
        old_workers.extend(master.workers()?);
        master.reload()?;
        let new_workers = self.await_workers(&master, old_workers, &mut log).await?;
        Ok(Reloaded { master: master.process, old_workers: old_workers.clone(), new_workers })
    }

    /// The master, once it has workers and no other one takes requests from its sockets any more.
    async fn alone(&self, dump: &Dump) -> Result<Master, NginxError> {
        let started = Instant::now();
        loop {
            let may_wait = started.elapsed() < CHANGE_LIMIT;
            match self.running(dump).await {
                Err(NginxError::TwoMasters { .. } | NginxError::PidFile { .. }) if may_wait => {}
                // It has only just started: its first workers would be taken for those of a reload.
                Ok(running) if may_wait && running.master.workers()?.is_empty() => {}
                running => return Ok(running?.master),
            }
            tokio::time::sleep(CHANGE_POLL).await;
        }
    }

    /// As [`Nginx::view`], once an upgrade of nginx's binary is over that is under way, or a restart.
    ///
    /// # Errors
    /// As [`Nginx::view`]; if the upgrade takes longer than packages do, or nginx is not back at once.
    pub async fn view_at_rest(&self) -> Result<UpstreamView, NginxError> {
        let started = Instant::now();
        loop {
            let limit = match self.view().await {
                Err(NginxError::TwoMasters { .. }) => CHANGE_LIMIT,
                Err(NginxError::PidFile { .. }) => START_LIMIT,
                view => return view,
            };
            if started.elapsed() > limit {
                return self.view().await;
            }
            tokio::time::sleep(CHANGE_POLL).await;
        }
    }

    async fn await_workers(
        &self,
        master: &Master,
        old: &[ProcessId],
        log: &mut Option<ErrorLog>,
    ) -> Result<Vec<ProcessId>, NginxError> {
        let started = Instant::now();
        let pid = master.process.pid;
        let mut lines: Vec<String> = Vec::new();
        loop {
            lines.extend(log.as_mut().map(ErrorLog::news).unwrap_or_default());
            if lines.iter().any(|line| is_final(line)) {
                return Err(NginxError::NotLoaded { lines });
            }
            let workers = master.live_workers();
            if !master.is_alive() {
                return Err(NginxError::MasterGone { master: pid });
            }
            let mut workers = workers?;
            workers.retain(|worker| !old.contains(worker));
            if !workers.is_empty() {
                return Ok(workers);
            }
            if started.elapsed() > self.reload_limit {
                return Err(NginxError::NoNewWorkers { master: pid, limit: self.reload_limit });
            }
            tokio::time::sleep(RELOAD_POLL).await;
        }
    }
}

/// Whether the master has given up. A busy port (98 is EADDRINUSE) is tried again, and may get free: only nginx's
/// `still could not bind()` ends that.
fn is_final(line: &str) -> bool {
    !(line.contains("bind() to ") && line.contains("failed (98:"))
}

/// Puts the old bytes back, unless somebody wrote others meanwhile.
fn put_back(file: &Path, written: &[u8], before: &[u8]) -> Result<(), NginxError> {
    if durable::replace_if(file, written, before).map_err(NginxError::Write)? {
        return Ok(());
    }
    let source = std::io::Error::other("somebody else changed it meanwhile");
    Err(NginxError::Unreadable { file: file.to_owned(), source })
}

fn modified(file: &Path) -> Result<SystemTime, NginxError> {
    metadata(file)?
        .modified()
        .map_err(|source| NginxError::Unreadable { file: file.to_owned(), source })
}

fn set_modified(file: &Path, moment: SystemTime) -> Result<(), NginxError> {
    let set = File::open(file).and_then(|file| file.set_modified(moment));
    set.map_err(|source| NginxError::NotWritable { file: file.to_owned(), source })
}
