//! Carries out a job of a workflow on this machine, as far as GitHub's runner does no more than start programs: `run` with
//! bash, and `uses: ./` with a program or image that is the action. Expressions see the steps before.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_yaml::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::action::{Action, parse_outputs};
use crate::built;
use crate::end;
use crate::expression::{Scope, Status};

/// What the log of a swap says while its new model loads. GitHub cancels after a time; here a step with a bound is
/// cancelled at this line.
const LOADS: &str = "→ await_ready";

/// A job, and what its steps have left.
pub struct Job {
    steps: Vec<Step>,
    workspace: TempDir,
    left: BTreeMap<String, Left>,
    /// Groups of processes that steps began, and may have left behind.
    groups: Vec<Pid>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Step {
    id: Option<String>,
    uses: Option<String>,
    run: Option<String>,
    timeout_minutes: Option<u64>,
    #[serde(default)]
    continue_on_error: bool,
    #[serde(default)]
    env: BTreeMap<String, Value>,
    #[serde(default)]
    with: BTreeMap<String, Value>,
}

/// What a step leaves to the next.
#[derive(Debug, Serialize)]
struct Left {
    outcome: &'static str,
    outputs: BTreeMap<String, String>,
}

impl Job {
    /// The rest of a job, behind the step `until`, which stands for all that prepares a machine: it has left `outputs`.
    /// `programs` are what was built before, where a job finds them.
    ///
    /// # Errors
    /// If there is no such job or step, or a program cannot be built.
    pub fn rest_of(
        workflow: &str,
        (job, until): (&str, &str),
        outputs: &[(&str, &str)],
        programs: &[&str],
    ) -> Result<Self> {
        let workflow: Value = serde_yaml::from_str(workflow)?;
        let steps = workflow["jobs"][job]["steps"].clone();
        let mut steps: Vec<Step> = serde_yaml::from_value(steps).context(job.to_owned())?;
        let at = steps.iter().position(|step| step.id.as_deref() == Some(until));
        let rest = steps.split_off(at.with_context(|| format!("no step {until}"))? + 1);
        let workspace = tempfile::Builder::new().prefix("job-").tempdir()?;
        let folder = workspace.path().join("target/debug");
        fs::create_dir_all(&folder)?;
        for name in programs {
            std::os::unix::fs::symlink(built::program(name)?, folder.join(name))?;
        }
        let outputs = outputs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let left = Left { outcome: "success", outputs: outputs.collect() };
        let left = BTreeMap::from([(until.to_owned(), left)]);
        Ok(Self { steps: rest, workspace, left, groups: Vec::new() })
    }

    /// Carries it out. `action` makes of a configuration the step that is meant by `uses: ./`.
    ///
    /// # Errors
    /// At the first step that fails and may not: with its log.
    pub async fn carry_out(mut self, action: impl Fn(&str) -> Result<Action>) -> Result<()> {
        for step in std::mem::take(&mut self.steps) {
            let what = format!("{:?}", step.id.as_deref().or(step.run.as_deref()));
            let (succeeded, log, outputs) = match (&step.run, step.uses.as_deref()) {
                (Some(script), None) => self.script(&step, script).context(what.clone())?,
                (None, Some("./")) => self.action(&step, &action).await.context(what.clone())?,
                _ => bail!("{what}: this is neither a script nor the action"),
            };
            ensure!(succeeded || step.continue_on_error, "{what} failed:\n{log}");
            if let Some(id) = step.id {
                let outcome = if succeeded { "success" } else { "failure" };
                self.left.insert(id, Left { outcome, outputs });
            }
        }
        Ok(())
    }

    /// As the runner calls bash where no shell is named.
    fn script(&mut self, step: &Step, script: &str) -> Result<Ended> {
        let output = self.workspace.path().join("output");
        let log = self.workspace.path().join("log");
        fs::write(&output, "")?;
        let said = fs::File::create(&log)?;
        let mut bash = Command::new("bash");
        bash.args(["-e", "-c", script]).current_dir(self.workspace.path());
        bash.envs(self.evaluated(&step.env)?).env("GITHUB_OUTPUT", &output);
        bash.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).process_group(0);
        let mut bash = bash.spawn().context("bash is missing")?;
        self.groups.push(Pid::from_child(&bash));
        let succeeded = end::of(&mut bash)?.success();
        Ok((succeeded, fs::read_to_string(log)?, parse_outputs(&fs::read_to_string(output)?)))
    }

    async fn action(&self, step: &Step, action: impl Fn(&str) -> Result<Action>) -> Result<Ended> {
        let mut with = self.evaluated(&step.with)?;
        let config = with.remove("config").context("the step names no configuration")?;
        let config = fs::read_to_string(self.workspace.path().join(config))?;
        let with: Vec<_> = with.iter().map(|(name, value)| (&**name, &**value)).collect();
        let action = action(&config)?.with_inputs(&with);
        let mut command = tokio::process::Command::from(action.command());
        let mut step_of = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let pid = step_of.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let stdout = step_of.stdout.take().context("a pipe is missing")?;
        let (mut lines, mut log) = (BufReader::new(stdout).lines(), String::new());
        let to_its_end = async {
            while let Some(line) = lines.next_line().await? {
                if step.timeout_minutes.is_some() && line.contains(LOADS) {
                    kill_process(pid.context("it has ended")?, Signal::INT)?;
                }
                log.push_str(&line);
                log.push('\n');
            }
            anyhow::Ok(step_of.wait().await?.success())
        };
        match timeout(end::LIMIT, to_its_end).await {
            Ok(succeeded) => Ok((succeeded?, log, action.outputs()?)),
            Err(_) => bail!("it does not end:\n{log}"),
        }
    }

    /// Values with their expressions replaced.
    fn evaluated(&self, values: &BTreeMap<String, Value>) -> Result<BTreeMap<String, String>> {
        let contexts = json!({ "steps": self.left });
        let scope = Scope { contexts: &contexts, status: Status::Success };
        let text = |value: &Value| scope.text(value.as_str().context("this is no text")?);
        values.iter().map(|(name, value)| Ok((name.clone(), text(value)?))).collect()
    }
}

/// Whether a step succeeded, its log, its outputs.
type Ended = (bool, String, BTreeMap<String, String>);

impl Drop for Job {
    /// As the runner ends what a job has left behind.
    fn drop(&mut self) {
        for group in &self.groups {
            let _gone = kill_process_group(*group, Signal::TERM);
        }
    }
}
