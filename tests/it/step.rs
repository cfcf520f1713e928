//! A step of a workflow that is listened to while it runs, signalled, and held to leaving nothing behind.

use std::io::Read;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::PATIENCE;
use testbed::action::{Action, Run, Running};

/// Between two looks at what announces nothing.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A step that runs.
pub(crate) struct Step {
    running: Running,
    said: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
    /// Its folder for temporary files.
    temporary: TempDir,
}

impl Step {
    /// Starts a step and listens to it.
    pub(crate) fn start(action: Action) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut running =
            action.with(&[("TMPDIR", &temporary.path().display().to_string())]).spawn()?;
        let mut stdout = running.child.stdout.take().context("no standard output")?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let listening = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&piece[..count]);
            }
        });
        Ok(Self { running, said, listening, temporary })
    }

    /// Starts a step, waits for its end, and asserts that it left nothing behind.
    pub(crate) async fn run(action: Action) -> Result<Run> {
        Self::start(action)?.finish().await
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Tells whether it has said a text so far, and may outlive the step.
    pub(crate) fn has_said(&self, text: &'static str) -> impl Fn() -> bool + use<> {
        let said = Arc::clone(&self.said);
        move || {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&said).contains(text)
        }
    }

    /// Waits until it has said `text`.
    pub(crate) async fn says(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(text) {
            // A step that has ended says nothing more once its pipe is read to the end.
            let is_over = self.listening.is_finished() && !self.said().contains(text);
            ensure!(
                !is_over && Instant::now() < deadline,
                "it does not say {text:?}:\n{}",
                self.said()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Sends a signal to its process.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        send(signal, self.running.child.id())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// The ssh that holds its connection to the server, once there is one.
    pub(crate) fn ssh(&self) -> Option<u32> {
        let all = processes_with(&self.temporary.path().display().to_string());
        let master = all.into_iter().rfind(|line| line.contains("/c -M -f -N "))?;
        master.split_once(' ')?.0.parse().ok()
    }

    /// How many pipes it holds: what it asks the server for goes through some of its own.
    pub(crate) fn pipes(&self) -> Result<usize> {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.flatten();
        let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        Ok(links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count())
    }

    /// Ends it as a lost runner ends, without a chance to clear up.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.running.child.kill()?;
        self.running.child.wait()?;
        Ok(())
    }

    /// Waits for its end, and asserts that no process and no temporary file of it is left on the runner's side.
    pub(crate) async fn finish(self) -> Result<Run> {
        let Self { running, said, listening, temporary } = self;
        let mut run = running.finish().await?;
        tokio::task::spawn_blocking(move || listening.join()).await?.ok().context("listening")?;
        run.stdout =
            String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner)).into();
        let left = left_behind(&temporary).await?;
        assert!(left.is_empty(), "left behind: {left:?}\n{run}");
        Ok(run)
    }
}

/// Sends a signal to a process.
pub(crate) fn send(signal: &str, pid: u32) -> Result<()> {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status()?;
    ensure!(status.success(), "kill {signal} {pid}: {status}");
    Ok(())
}

/// Files in the folder for temporary files, and processes that name it. An ssh that was told to end may take a moment.
async fn left_behind(temporary: &TempDir) -> Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let files = std::fs::read_dir(temporary)?.flatten();
        let mut left: Vec<String> = files.map(|file| file.path().display().to_string()).collect();
        left.extend(processes_with(&temporary.path().display().to_string()));
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Command lines, behind their process ids, of all processes whose command line has this text in it.
pub(crate) fn processes_with(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            line.contains(text).then(|| format!("{pid} {}", line.trim_end()))
        })
        .collect()
}

/// Waits until `fact` gives something that no event announces.
pub(crate) async fn until<T>(what: &str, mut fact: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = fact()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
