//! The workflows that are given away, carried out as GitHub would on each event that they hear of: every job with the
//! permissions and secrets that it has there, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use serde_yaml::Value;
use testbed::action::parse_outputs;
use testbed::expression::{Scope, Status};
use testbed::github::FakeGitHub;

use crate::step::Step;
use crate::support::{Action, NEW, OLD, Run, World, binary};
use crate::workflows::{ACTION, example};

const NEWER: &str = "Qwen/Newer";

/// The commit of every run on the fake.
const COMMIT: &str = "0123456789012345678901234567890123456789";

/// How many rounds of events a story may start: more go round for ever.
const ROUNDS: usize = 5;

/// What a repository has, and what is on its default branch.
struct Repository {
    world: World,
    github: FakeGitHub,
    model: &'static str,
    /// How often the run was begun.
    attempt: u32,
    /// Whether whatever a workflow tries of the new model succeeds.
    is_good: bool,
    /// Whether artifacts are kept: GitHub refuses them where the storage is used up.
    keeps_artifacts: bool,
    /// The statuses of deployments that GitHub has made events of.
    heard: BTreeSet<u64>,
}

/// By their names.
type Outputs = BTreeMap<String, String>;

/// How a job ended.
struct Job {
    result: &'static str,
    outputs: Outputs,
    /// What the last step of ours left.
    run: Option<Run>,
}

impl Job {
    fn outcome(&self) -> &str {
        self.run.as_ref().map_or("", |run| run.output("outcome"))
    }
}

impl Repository {
    async fn start() -> Result<Self> {
        let (world, github) = (World::start().await?, FakeGitHub::start()?);
        let (is_good, keeps_artifacts) = (true, true);
        let heard = BTreeSet::new();
        let attempt = 1;
        Ok(Self { world, github, model: NEW, attempt, is_good, keeps_artifacts, heard })
    }

    /// Carries a workflow out: jobs in their order, each if its condition holds.
    async fn run(&self, file: &str, event: serde_json::Value) -> Result<BTreeMap<String, Job>> {
        self.rerun_failed(file, event, BTreeMap::new()).await
    }

    /// The same once more, but for jobs that had not failed and that need none that is carried out again.
    async fn rerun_failed(
        &self,
        file: &str,
        event: serde_json::Value,
        mut before: BTreeMap<String, Job>,
    ) -> Result<BTreeMap<String, Job>> {
        let workflow = example(file)?;
        let (mut ended, mut again) = (BTreeMap::<String, Job>::new(), BTreeSet::new());
        for (name, job) in workflow["jobs"].as_mapping().context("jobs")? {
            let name = name.as_str().context("a name")?;
            let needs = match &job["needs"] {
                Value::Null => Vec::new(),
                Value::Sequence(all) => all.iter().filter_map(Value::as_str).collect(),
                one => vec![one.as_str().context("needs")?],
            };
            let is_kept =
                |job: &Job| job.result != "failure" && !needs.iter().any(|it| again.contains(*it));
            if let Some(kept) = before.remove(name).filter(is_kept) {
                ended.insert(name.to_owned(), kept);
                continue;
            }
            again.insert(name.to_owned());
            let mut contexts = event.clone();
            contexts["github"]["run_attempt"] = json!(self.attempt.to_string());
            let mut status = Status::Success;
            for needed in needs {
                let Job { result, outputs, .. } = ended.get(needed).context("a job from before")?;
                contexts["needs"][needed] = json!({ "result": result, "outputs": outputs });
                // One that was left out has not succeeded.
                status = if *result == "success" { status } else { Status::Failure };
            }
            contexts["vars"] = json!({
                "GPU_KNOWN_HOSTS": self.world.server.known_hosts(),
                "SERVICE_URL": format!("http://{}", self.world.server.nginx_addr()),
            });
            // The key is a secret of the environments.
            if !job["environment"].is_null() {
                let key = self.world.server.private_key();
                contexts["secrets"] = json!({ "GPU_SSH_KEY": key });
            }
            let begins = Scope { contexts: &contexts, status }.begins(job["if"].as_str());
            let job = if begins.with_context(|| format!("{file}: {name}"))? {
                self.job(job, contexts).await.with_context(|| format!("{file}: {name}"))?
            } else {
                Job { result: "skipped", outputs: BTreeMap::new(), run: None }
            };
            ended.insert(name.to_owned(), job);
        }
        assert!(self.github.violations().is_empty(), "{:?}", self.github.violations());
        let requests = self.github.requests();
        let refused = requests.iter().find(|request| request.answer == Some(403));
        assert!(refused.is_none(), "{file}: a job may not do what it does: {refused:?}");
        Ok(ended)
    }

    async fn job(&self, job: &Value, mut contexts: serde_json::Value) -> Result<Job> {
        self.github.grant(serde_yaml::from_value(job["permissions"].clone())?);
        let (mut status, mut last) = (Status::Success, None);
        for step in job["steps"].as_sequence().context("steps")? {
            let scope = Scope { contexts: &contexts, status };
            if !scope.begins(step["if"].as_str())? {
                continue;
            }
            let uses = step["uses"].as_str().unwrap_or_default();
            let succeeded = if uses.starts_with(ACTION) {
                let run = self.action(step, &scope).await?;
                if let Some(id) = step["id"].as_str() {
                    contexts["steps"][id] = json!({ "outputs": run.outputs });
                }
                last.insert(run).code == 0
            } else if let Some(script) = step["run"].as_str() {
                // What asks the new model stands for whatever must be true of it.
                if script.contains("$SERVICE_URL") {
                    self.is_good
                } else {
                    let (succeeded, outputs) = self.script(step, &scope)?;
                    if let Some(id) = step["id"].as_str() {
                        contexts["steps"][id] = json!({ "outputs": outputs });
                    }
                    succeeded
                }
            } else {
                let is_upload = uses.starts_with("actions/upload-artifact@");
                ensure!(is_upload || uses.starts_with("actions/checkout@"), "{uses}?");
                !is_upload || self.keeps_artifacts
            };
            let succeeded = succeeded || step["continue-on-error"] == true;
            status = if succeeded { status } else { Status::Failure };
        }
        let scope = Scope { contexts: &contexts, status };
        let declared = job["outputs"].as_mapping().into_iter().flatten();
        let outputs = declared.map(|(name, value)| {
            let name = name.as_str().context("a name")?.to_owned();
            Ok((name, scope.text(value.as_str().context("an output")?)?))
        });
        let result = if status == Status::Success { "success" } else { "failure" };
        Ok(Job { result, outputs: outputs.collect::<Result<_>>()?, run: last })
    }

    /// Whether the script of a step succeeds, and its outputs.
    fn script(&self, step: &Value, scope: &Scope<'_>) -> Result<(bool, Outputs)> {
        let output = tempfile::NamedTempFile::new()?;
        let mut script = Command::new("bash");
        script.args(["-e", "-c", step["run"].as_str().context("a script")?]);
        for (name, value) in step["env"].as_mapping().into_iter().flatten() {
            let (name, value) = (name.as_str().context("name")?, value.as_str().context("text")?);
            script.env(name, scope.text(value)?);
        }
        script
            .env("GITHUB_RUN_ATTEMPT", self.attempt.to_string())
            .env("GITHUB_OUTPUT", output.path());
        let succeeded = script.output()?.status.success();
        Ok((succeeded, parse_outputs(&std::fs::read_to_string(output.path())?)))
    }

    async fn action(&self, step: &Value, scope: &Scope<'_>) -> Result<Run> {
        let mut inputs = Vec::new();
        for (name, value) in step["with"].as_mapping().context("with")? {
            let text = match value {
                Value::String(text) => scope.text(text)?,
                Value::Bool(yes) => yes.to_string(),
                other => bail!("{other:?} in a step's inputs"),
            };
            inputs.push((name.as_str().context("a name")?.to_owned(), text));
        }
        let inputs: Vec<_> = inputs.iter().map(|(name, text)| (&**name, &**text)).collect();
        let action = Action::new(&binary(), &self.world.config(self.model))?;
        let action = action.on_github(&self.github).with_inputs(&inputs);
        let action = action.with(&[("GITHUB_RUN_ATTEMPT", &self.attempt.to_string())]);
        let event = scope.contexts["github"]["event_name"].as_str().context("an event")?;
        let action = match event {
            "pull_request" => action.for_pull_request(event, "acme/llm")?,
            other => action.with(&[("GITHUB_EVENT_NAME", other)]),
        };
        Step::run(action).await
    }

    /// Makes an event of every status that was set meanwhile, oldest first, as GitHub does of those that are not set with a
    /// workflow's own token, and of those that are set by what these start. What each came to that started anything.
    async fn hear(&mut self) -> Result<Vec<(String, String)>> {
        let mut came_to = Vec::new();
        for _ in 0..ROUNDS {
            let events = self.events();
            if events.is_empty() {
                return Ok(came_to);
            }
            for (status, event) in events {
                self.heard.insert(status);
                came_to.extend(self.rolled_back(event).await?);
            }
        }
        bail!("each rollback starts another: {came_to:?}")
    }

    /// What nobody has heard of so far.
    fn events(&self) -> Vec<(u64, serde_json::Value)> {
        let deployments = self.github.deployments();
        let statuses = deployments.iter().flat_map(|deployment| {
            deployment.statuses.iter().map(move |status| (deployment, status))
        });
        let news = statuses.filter(|(_, status)| !self.heard.contains(&status.id));
        let mut events: Vec<_> = news
            .map(|(deployment, status)| {
                let event = json!({
                    "deployment": {
                        "id": deployment.id,
                        "task": deployment.task,
                        "environment": deployment.environment,
                        "payload": deployment.payload,
                    },
                    "deployment_status": { "state": status.state, "log_url": status.log_url },
                    "repository": { "default_branch": "main" },
                });
                (status.id, event)
            })
            .collect();
        events.sort_by_key(|(id, _)| *id);
        events
    }

    /// What `on-failure.yml` makes of a status: the state, and what the rollback came to; nothing if it starts none.
    async fn rolled_back(&self, event: serde_json::Value) -> Result<Option<(String, String)>> {
        let state = event["deployment_status"]["state"].as_str().unwrap_or_default().to_owned();
        let event = json!({ "github": { "event_name": "deployment_status", "event": event } });
        let mut jobs = self.run("on-failure.yml", event).await?;
        let job = jobs.remove("rollback").context("no job")?;
        ensure!(job.result != "failure", "{:?}", job.run);
        Ok((job.result == "success").then(|| (state, job.outcome().to_owned())))
    }

    /// A swap as the workflows make it.
    async fn swap(&self, model: &str) -> Result<Run> {
        let action = self.world.action("swap", model, &[("environment", "production")])?;
        Step::run(action.on_github(&self.github)).await
    }

    /// Somebody says that a swap has failed.
    async fn fail(&self, swap: &str) -> Result<()> {
        let inputs = [("command", "fail"), ("environment", "production"), ("swap-id", swap)];
        let action = Action::new(&binary(), &self.world.config(self.model))?;
        let run = Step::run(action.on_github(&self.github).with_inputs(&inputs)).await?;
        run.answered(&["is a failure now"]);
        Ok(())
    }

    /// A monitoring system sets the last state of a swap's deployment, whatever it was.
    fn set_failed(&self, swap: &str) -> Result<serde_json::Value> {
        let mut all = self.github.deployments().into_iter();
        let found = all.find(|deployment| deployment.payload["swap_id"] == swap);
        let found = found.context("no deployment")?;
        Ok(json!({
            "deployment": {
                "task": found.task, "environment": found.environment, "payload": found.payload,
            },
            "deployment_status": { "state": "failure" },
        }))
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
}

#[tokio::test]
async fn a_failure_rolls_back_what_serves_by_it_and_no_other_event_moves_anything() -> Result<()> {
    let mut repository = Repository::start().await?;
    let promoted = repository.swap(NEW).await?.ended(0, "promoted");
    assert_eq!(repository.hear().await?, [], "in_progress and success start nothing");

    // A candidate that failed before it served.
    repository.world.settings.flags = "--stub-load-time 30s --stub-die-after 50ms".to_owned();
    repository.swap(NEWER).await?.ended(4, "failed");
    repository.world.settings.flags.clear();
    assert_eq!(repository.hear().await?, pairs(&[("failure", "unchanged")]));
    repository.world.until_serves(NEW).await?;

    // What serves has failed. The statuses of the rollback itself start nothing more.
    let swap = promoted.output("swap-id");
    repository.fail(swap).await?;
    assert_eq!(repository.hear().await?, pairs(&[("failure", "rolled-back")]));
    repository.world.until_serves(OLD).await?;
    // The same event again.
    let again = repository.rolled_back(repository.set_failed(swap)?).await?;
    assert_eq!(again, pairs(&[("failure", "unchanged")]).pop());

    // A swap that serves no more, and one that somebody has rolled back by hand.
    let second = repository.swap(NEW).await?.ended(0, "promoted");
    let third = repository.swap(NEWER).await?.ended(0, "promoted");
    let late = repository.set_failed(second.output("swap-id"))?;
    assert_eq!(repository.rolled_back(late).await?, pairs(&[("failure", "unchanged")]).pop());
    assert_eq!(repository.hear().await?, []);
    repository.world.until_serves(NEWER).await?;
    let by_hand = json!({
        "github": { "event_name": "workflow_dispatch" },
        "inputs": { "command": "rollback", "swap-id": third.output("swap-id"), "to": "" },
    });
    let jobs = repository.run("manual.yml", by_hand).await?;
    assert_eq!(jobs["run"].outcome(), "rolled-back");
    assert_eq!(repository.hear().await?, pairs(&[("failure", "unchanged")]));
    repository.world.until_serves(NEW).await
}

/// Where a job names an environment without `deployment: false`, GitHub makes a deployment that names no swap.
#[tokio::test]
async fn a_failure_in_a_deployment_that_github_made_rolls_its_swap_back() -> Result<()> {
    let mut repository = Repository::start().await?;
    repository.github.begin_job("production", 77);
    let promoted = repository.swap(NEW).await?.ended(0, "promoted");
    let [own] = &*repository.github.deployments() else { bail!("{}", repository.github) };
    assert_eq!((&*own.task, promoted.output("deployment-id")), ("deploy", &*own.id.to_string()));
    assert_eq!(repository.hear().await?, [], "what has begun, and what serves");
    // GitHub's own word on a job, as of one that could not keep its report, names no swap, and is not ours on its result.
    repository.github.set_state(own.id, "failure");
    assert_eq!(repository.hear().await?, []);
    repository.fail(promoted.output("swap-id")).await?;
    assert_eq!(repository.hear().await?, pairs(&[("failure", "rolled-back")]));
    repository.world.until_serves(OLD).await
}

#[tokio::test]
async fn what_names_no_swap_of_ours_starts_no_rollback() -> Result<()> {
    let repository = Repository::start().await?;
    repository.swap(NEW).await?.ended(0, "promoted");
    let ours = json!({
        "task": "deploy:model", "environment": "production", "payload": { "swap_id": "s-1" },
    });
    let with = |name: &str, value: serde_json::Value| {
        let mut deployment = ours.clone();
        deployment[name] = value;
        deployment
    };
    for deployment in [
        with("task", json!("deploy")),
        with("environment", json!("staging")),
        with("payload", json!({})),
        with("payload", json!({ "swap_id": "" })),
        with("payload", json!("")),
        with("payload", json!("{\"swap_id\":\"s-1\"}")),
    ] {
        let shown = deployment.to_string();
        let status = json!({ "state": "failure", "log_url": "https://github.example.com/#step" });
        let event = json!({ "deployment": deployment, "deployment_status": status });
        assert_eq!(repository.rolled_back(event).await?, None, "{shown}");
    }
    for inputs in [
        json!({ "swap-id": "", "environment": "production" }),
        json!({ "swap-id": "s-1", "environment": "staging" }),
    ] {
        let event = json!({ "github": { "event_name": "workflow_dispatch" }, "inputs": inputs });
        let jobs = repository.run("on-failure.yml", event).await?;
        assert_eq!(jobs["rollback"].result, "skipped");
    }
    repository.world.until_serves(NEW).await
}

/// The results of the jobs of `upgrade.yml`, in their order.
fn results(jobs: &BTreeMap<String, Job>) -> [&'static str; 4] {
    ["plan", "swap", "evaluate", "rollback"].map(|name| jobs[name].result)
}

#[tokio::test]
async fn an_upgrade_by_pull_request_swaps_what_was_looked_at_and_goes_back_if_it_is_no_good()
-> Result<()> {
    let mut repository = Repository::start().await?;
    let opened = json!({ "github": { "event_name": "pull_request" } });
    let pushed = || json!({ "github": { "event_name": "push" } });
    let jobs = repository.run("upgrade.yml", opened.clone()).await?;
    assert_eq!(results(&jobs), ["success", "skipped", "skipped", "skipped"]);
    assert_eq!(repository.github.comments().len(), 1);
    repository.github.merge(7, COMMIT);

    repository.is_good = false;
    let jobs = repository.run("upgrade.yml", pushed()).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "failure", "success"]);
    assert_eq!(jobs["rollback"].outcome(), "rolled-back");
    repository.world.until_serves(OLD).await?;
    let states = |repository: &Repository| -> Vec<Vec<String>> {
        let deployments = repository.github.deployments().into_iter();
        let states = deployments.map(|deployment| deployment.statuses.into_iter());
        states.map(|statuses| statuses.map(|status| status.state).collect()).collect()
    };
    let [swap, rollback] = &*states(&repository) else { bail!("{}", repository.github) };
    assert_eq!(swap, &["in_progress", "success", "failure"]);
    assert_eq!(rollback, &["in_progress", "success"]);

    // What is good stays, whatever becomes of its report; the same again is no swap, and whatever is thought of it now moves
    // nothing.
    repository.is_good = true;
    repository.keeps_artifacts = false;
    let jobs = repository.run("upgrade.yml", pushed()).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "success", "skipped"]);
    repository.keeps_artifacts = true;
    repository.is_good = false;
    let jobs = repository.run("upgrade.yml", pushed()).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "skipped", "skipped"]);
    assert_eq!(jobs["swap"].outcome(), "unchanged");
    repository.world.until_serves(NEW).await?;
    let reconciled = json!({ "github": { "event_name": "schedule" } });
    let jobs = repository.run("reconcile.yml", reconciled).await?;
    let said = &jobs["reconcile"].run.as_ref().context("no run")?.stdout;
    assert!(said.contains("agree with what serves"), "{said}");

    // A candidate that fails before it serves: there is nothing to go back from.
    repository.model = NEWER;
    repository.world.settings.flags = "--stub-load-time 30s --stub-die-after 50ms".to_owned();
    repository.run("upgrade.yml", opened).await?;
    let jobs = repository.run("upgrade.yml", pushed()).await?;
    assert_eq!(results(&jobs), ["skipped", "failure", "skipped", "skipped"]);
    assert_eq!(jobs["swap"].outcome(), "failed");
    repository.world.until_serves(NEW).await
}

/// "Re-run failed jobs" keeps what the job of the swap has put out, and not what serves.
#[tokio::test]
async fn an_evaluation_without_its_swap_is_none_and_all_jobs_again_are_another_try() -> Result<()> {
    let mut repository = Repository::start().await?;
    let pushed = || json!({ "github": { "event_name": "push" } });
    let opened = json!({ "github": { "event_name": "pull_request" } });
    repository.run("upgrade.yml", opened).await?;
    repository.github.merge(7, COMMIT);
    repository.is_good = false;
    let jobs = repository.run("upgrade.yml", pushed()).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "failure", "success"]);
    repository.world.until_serves(OLD).await?;

    // The old model answers as it should.
    (repository.is_good, repository.attempt) = (true, 2);
    let jobs = repository.rerun_failed("upgrade.yml", pushed(), jobs).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "failure", "skipped"]);
    assert_eq!(repository.world.serves().await?, OLD);

    repository.attempt = 3;
    let jobs = repository.run("upgrade.yml", pushed()).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "success", "skipped"]);
    repository.world.until_serves(NEW).await?;
    let states = || -> Vec<_> {
        repository.github.deployments().iter().map(|it| it.state().to_owned()).collect()
    };
    let before = states();

    // "Re-run job" of an evaluation that was good.
    repository.attempt = 4;
    let without = jobs.into_iter().filter(|(name, _)| name != "evaluate").collect();
    let jobs = repository.rerun_failed("upgrade.yml", pushed(), without).await?;
    assert_eq!(results(&jobs), ["skipped", "success", "failure", "skipped"]);
    assert_eq!(jobs["say-so"].result, "skipped");
    assert_eq!((repository.world.serves().await?, states()), (NEW.to_owned(), before));
    Ok(())
}
