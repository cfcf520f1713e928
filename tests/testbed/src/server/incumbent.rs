//! Replicas that a person started, before anything else knew of them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::processes::{children, until};
use super::{GpuServer, MARK, programs};

/// Two jobs of one shell share its process group, because only interactive shells give each job its own.
const BY_HAND: &str = r#"log=$1; shift
sleep infinity </dev/null >/dev/null 2>&1 &
echo $!
"$@" </dev/null >>"$log" 2>&1 &
echo $!"#;

/// What people write to bring a server back after a crash.
const WRAPPER: &str = r#"#!/bin/bash
restarts=$1; shift
for ((n = 0; n <= restarts; n++)); do
    "$@"
done
"#;

/// Starts [`WRAPPER`] in the background of a shell that then ends.
const WRAPPED: &str = r#"log=$1; shift
"$@" </dev/null >>"$log" 2>&1 &
echo $!"#;

/// A program that was started by hand, now an orphan.
#[derive(Debug, Clone)]
pub struct ByHand {
    /// Its process id.
    pub pid: u32,
    /// Process id of a stranger in the same process group, which must outlive whatever is done to the program.
    pub innocent: u32,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A program that a shell script, itself an orphan, starts again whenever it ends.
#[derive(Debug, Clone)]
pub struct Wrapped {
    /// Process id of the script's shell.
    pub wrapper: u32,
    /// Process id of the program's first run.
    pub pid: u32,
    /// Where its output goes.
    pub log: PathBuf,
}

impl GpuServer {
    /// Starts `argv` the way a person does: in the background of a shell that then ends, in one process group with a
    /// stranger. `env` is added to `PATH`, `HOME` and the mark.
    ///
    /// # Errors
    /// If the shell fails. That `argv` cannot be run shows in the log, as it would to a person.
    pub fn start_by_hand(&self, argv: &[String], env: &[(&str, &str)]) -> anyhow::Result<ByHand> {
        let (log, said) = self.in_background(BY_HAND, argv, env)?;
        let mut lines = said.lines();
        let (innocent, pid) =
            lines.next().zip(lines.next()).context("the shell named no processes")?;
        Ok(ByHand { pid: pid.parse()?, innocent: innocent.parse()?, log })
    }

    /// Starts `argv` under a script that starts it again each time it ends, `restarts` times at most.
    ///
    /// # Errors
    /// If the shell or the script fails, or the program is not there in time.
    pub fn start_in_wrapper(
        &self,
        argv: &[String],
        env: &[(&str, &str)],
        restarts: u32,
    ) -> anyhow::Result<Wrapped> {
        let script = self.scratch().join("serve.sh");
        fs::write(&script, WRAPPER)?;
        let head =
            [self.bash.display().to_string(), script.display().to_string(), restarts.to_string()];
        let words: Vec<String> = head.into_iter().chain(argv.iter().cloned()).collect();
        let (log, said) = self.in_background(WRAPPED, &words, env)?;
        let wrapper = said.trim().parse()?;
        until("the wrapper starts the program", || Ok(!children(wrapper).is_empty()))?;
        let pid = *children(wrapper).first().context("the program ended at once")?;
        Ok(Wrapped { wrapper, pid, log })
    }

    /// The living children of a process, in ascending order; of a wrapper's shell, the program's present run.
    pub fn children(&self, pid: u32) -> Vec<u32> {
        children(pid)
    }

    /// Runs a shell script with a fresh log file and `argv` as its arguments, to the end of the shell.
    fn in_background(
        &self,
        script: &str,
        argv: &[String],
        env: &[(&str, &str)],
    ) -> anyhow::Result<(PathBuf, String)> {
        let logs = self.scratch().join("logs");
        let (_, log) = tempfile::Builder::new()
            .prefix("incumbent-")
            .suffix(".log")
            .tempfile_in(logs)?
            .keep()?;
        let mut shell = Command::new(&self.bash);
        shell
            .args(["-c", script, "bash"])
            .arg(&log)
            .args(argv)
            .current_dir(self.scratch())
            .process_group(0);
        let inherited =
            ["PATH", "HOME"].map(|name| (name, std::env::var_os(name).unwrap_or_default()));
        shell.env_clear().envs(inherited).envs(env.iter().copied()).env(MARK, self.scratch());
        Ok((log, programs::check(&mut shell)?))
    }
}
