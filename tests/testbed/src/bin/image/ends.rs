//! Steps in containers that do not come to their end, and the stage after them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testbed::PATIENCE;
use testbed::action::Action;
use testbed::built;
use testbed::docker::{Engine, privileged, said};
use testbed::load::{Load, LoadSpec};
use testbed::server::{self, GpuServer, ServerSpec};
use testbed::service::{self, NAME, Settings, engine as stub};

use crate::say;

const OLD: &str = "Qwen/Old";
const NEW: &str = "Qwen/New";
/// `post-entrypoint` of action.yml.
const AFTERWARDS: &str = "/usr/local/bin/model-swap-afterwards";
/// Between two looks at what announces nothing here.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A server with an old model, and a step in a container.
struct Scene<'a> {
    engine: &'a Engine,
    server: GpuServer,
}

/// A step that runs, with its log in a file.
struct Step {
    client: Child,
    action: Action,
    log: TempDir,
}

/// GitHub's SIGINT: the swap is given up, and nobody whom the step left behind stays unreaped until then.
pub(crate) async fn cancelled(engine: &Engine) -> Result<()> {
    let scene = Scene::set(engine).await?;
    let load = Load::start(LoadSpec::mixed(scene.server.nginx_addr(), NAME));
    let mut step = scene.step("2m")?;
    step.until_it_says("→ await_ready b").await?;
    scene.cut_the_connection().await?;
    kill_process(Pid::from_child(&step.client), Signal::INT)?;
    let (code, log) = step.ended().await?;
    let outputs = step.action.outputs()?;
    ensure!(code == 6 && outputs["outcome"] == "aborted", "exit code {code}, {outputs:?}\n{log}");
    ensure!(service::serves(scene.server.nginx_addr()).await? == OLD, "{OLD} does not serve");
    let (_, b) = scene.server.slot_ports();
    until("the candidate is gone", || Ok(server::listeners(b)?.is_empty())).await?;
    let (code, log) = scene.afterwards(&step.action)?;
    ensure!(code == 0 && log.is_empty(), "after a step that said all: exit code {code}\n{log}");
    let tally = load.stop().await;
    ensure!(tally.faults() == 0, "{tally}");
    say("a cancelled step gave its swap up")
}

/// A container that is killed: the stage after it says how the swap ended.
pub(crate) async fn killed(engine: &Engine) -> Result<()> {
    let scene = Scene::set(engine).await?;
    let mut step = scene.step("3s")?;
    step.until_it_says("→ await_ready b").await?;
    said(&mut engine.docker(["kill", &scene.container()?]))?;
    step.ended().await?;
    let (code, log) = scene.afterwards(&step.action)?;
    ensure!(code == 0 && log.contains("promoted"), "exit code {code}\n{log}");
    service::until_serves(scene.server.nginx_addr(), NEW).await?;
    say("after a killed step its swap's outcome is said")
}

impl<'a> Scene<'a> {
    async fn set(engine: &'a Engine) -> Result<Self> {
        let server = GpuServer::start(ServerSpec::default())?;
        server.start_by_hand(&stub(OLD, server.slot_ports().0)?, &[])?;
        service::until_serves(server.nginx_addr(), OLD).await?;
        Ok(Self { engine, server })
    }

    /// Begins a swap to a model that takes some time to load.
    fn step(&self, load_time: &str) -> Result<Step> {
        let flags = format!("--stub-load-time {load_time}");
        let config = Settings { flags, ..Settings::default() }.config(&self.server, NEW)?;
        let action = Action::new(&built::program("model-swap")?, &config)?
            .with_access_to(&self.server)
            .from_image(crate::NAME, None);
        let log = tempfile::tempdir()?;
        let mut command = action.command();
        command.env("DOCKER_HOST", self.engine.host());
        let client = command.stdout(File::create(log.path().join("log"))?).spawn()?;
        Ok(Step { client, action, log })
    }

    /// The stage after a step, with what the step left in its state: its exit code and log.
    fn afterwards(&self, step: &Action) -> Result<(i32, String)> {
        let state: BTreeMap<String, String> = step.state()?;
        let state: Vec<_> = state.iter().map(|(k, v)| (format!("STATE_{k}"), v.as_str())).collect();
        let state: Vec<_> = state.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let config = Settings::default().config(&self.server, NEW)?;
        let action = Action::new(&built::program("model-swap")?, &config)?
            .with_access_to(&self.server)
            .with(&state)
            .from_image(crate::NAME, Some(AFTERWARDS));
        let output = action.command().env("DOCKER_HOST", self.engine.host()).output()?;
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output.status.code().context("a signal ended the client")?, log))
    }

    /// The container of the step.
    fn container(&self) -> Result<String> {
        let shown = said(&mut self.engine.docker(["ps", "--quiet", "--no-trunc"]))?;
        let mut lines = shown.lines();
        match (lines.next(), lines.next()) {
            (Some(id), None) => Ok(id.to_owned()),
            _ => bail!("not one container: {shown:?}"),
        }
    }

    /// Kills the step's ssh, whose parent went long ago, and waits until another has taken its place and it is reaped.
    async fn cut_the_connection(&self) -> Result<()> {
        let container = self.container()?;
        let masters = || -> Result<Vec<(String, String)>> {
            let mut top = self.engine.docker(["top", &container, "-o", "pid,stat,comm"]);
            let shown = said(&mut top)?;
            let rows = shown.lines().skip(1).filter_map(|line| {
                let mut words = line.split_whitespace();
                let (pid, state) = (words.next()?, words.next()?);
                (words.next() == Some("ssh")).then(|| (pid.to_owned(), state.to_owned()))
            });
            Ok(rows.collect())
        };
        let [(first, _)] = &masters()?[..] else { bail!("not one ssh: {:?}", masters()?) };
        said(privileged("kill").args(["-KILL", first]))?;
        until("another connection, and nothing left of the first", || {
            let now = masters()?;
            let fresh = now.iter().any(|(pid, state)| pid != first && !state.starts_with('Z'));
            Ok(fresh && now.iter().all(|(_, state)| !state.starts_with('Z')))
        })
        .await
    }
}

impl Step {
    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log.path().join("log"))?)
    }

    async fn until_it_says(&mut self, text: &str) -> Result<()> {
        until(text, || {
            let said = self.said()?;
            let ended = self.client.try_wait()?;
            ensure!(ended.is_none(), "the step ended: {ended:?}\n{said}");
            Ok(said.contains(text))
        })
        .await
    }

    async fn ended(&mut self) -> Result<(i32, String)> {
        until("the step ends", || Ok(self.client.try_wait()?.is_some())).await?;
        let code = self.client.wait()?.code().context("a signal ended the client")?;
        Ok((code, self.said()?))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let _gone = self.client.kill();
        let _gone = self.client.wait();
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
