//! One step of a workflow, with its log as it comes.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use testbed::action::Action;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::page;

/// How long a step may take to say farewell to its server when it is told to end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Between two looks whether it has ended: a destructor cannot await.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a step left.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) summary: String,
}

impl Ended {
    /// Itself, if it ended as a success with this outcome.
    pub(crate) fn came_to(self, outcome: &str) -> Result<Self> {
        let said = self.output("outcome")?;
        ensure!(
            (self.code, said) == (0, outcome),
            "{said}, exit code {}: not {outcome}",
            self.code
        );
        Ok(self)
    }

    pub(crate) fn output(&self, name: &str) -> Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| format!("no output {name}"))
    }
}

/// Runs a step to its end and shows its log meanwhile.
pub(crate) async fn run(action: &Action) -> Result<Ended> {
    let began = Instant::now();
    let mut command = Command::from(action.command());
    // In a group of its own, so that Ctrl-C in a terminal is the demo's to answer.
    command.process_group(0).stdout(Stdio::piped());
    let mut step = Step(command.spawn().context("model-swap cannot be run")?);
    let stdout = step.0.stdout.take().context("a pipe is missing")?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        page::shown(&line).map_or(Ok(()), |line| page::indented(&line))?;
    }
    let code = step.0.wait().await?.code().context("a signal ended model-swap")?;
    let took = began.elapsed().as_secs_f64();
    page::say(format!("\nThe step took {took:.1} s and ended with exit code {code}."))?;
    Ok(Ended { code, outputs: action.outputs()?, summary: action.summary()? })
}

/// A running step, which ends with this value.
struct Step(Child);

impl Drop for Step {
    fn drop(&mut self) {
        let running = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Some(pid) = running else { return };
        // Asked first: only the step itself can close its connection and remove its key.
        let _gone = kill_process(pid, Signal::TERM);
        let began = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && began.elapsed() < FAREWELL {
            std::thread::sleep(LOOK_AGAIN);
        }
        let _gone = self.0.start_kill();
    }
}
