//! A step of a workflow that is listened to while it runs, signalled, and held to leaving nothing behind.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::PATIENCE;
use testbed::action::{Action, Run, Running};
use testbed::end::Heard;

/// Between two looks at what announces nothing.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A step that runs.
pub(crate) struct Step {
    running: Running,
    heard: Heard,
    /// Its folder for temporary files.
    temporary: TempDir,
}

impl Step {
    /// Starts a step and listens to it.
    pub(crate) fn start(action: Action) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut running =
            action.with(&[("TMPDIR", &temporary.path().display().to_string())]).spawn()?;
        let heard = Heard::of(running.child.stdout.take().context("no standard output")?);
        Ok(Self { running, heard, temporary })
    }

    /// Starts a step, waits for its end, and asserts that it left nothing behind.
    pub(crate) async fn run(action: Action) -> Result<Run> {
        Self::start(action)?.finish().await
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        self.heard.said()
    }

    /// Tells whether it has said a text so far, and may outlive the step.
    pub(crate) fn has_said(&self, text: &'static str) -> impl Fn() -> bool + use<> {
        let heard = self.heard.clone();
        move || heard.said().contains(text)
    }

    /// Waits until it has said `text`.
    pub(crate) async fn says(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(text) {
            // A step that has ended says nothing more once its pipe is read to the end.
            let is_over = self.heard.is_over() && !self.said().contains(text);
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
        let Self { running, heard, temporary } = self;
        let run = running.finish().await;
        let mut run = run.with_context(|| format!("it said:\n{}", heard.said()))?;
        until("all that it said", || Ok(heard.is_over().then_some(()))).await?;
        run.stdout = heard.said();
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
