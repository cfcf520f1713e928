//! `make demo`: a throwaway GPU server with an old model under load, a swap, a rollback, and what GitHub shows of both.

mod page;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use testbed::action::Action;
use testbed::github::FakeGitHub;
use testbed::load::{Load, LoadSpec};
use testbed::server::{self, GpuServer, ServerSpec};
use testbed::service::{self, NAME, Settings, engine};
use testbed::{built, interrupt};

use page::{heading, say};
use step::Ended;

/// The model that somebody once started by hand.
const OLD: &str = "Qwen/Qwen2.5-7B-Instruct";
/// The model that the repository asks for now.
const NEW: &str = "Qwen/Qwen2.5-32B-Instruct";
/// Flags of both: streams of 100 tokens take two seconds.
const OLD_FLAGS: [&str; 2] = ["--stub-token-delay", "20ms"];
/// And the new one takes a while to load.
const NEW_FLAGS: &str = "--stub-token-delay 20ms --stub-load-time 3s";

/// How long the server may take to drain and stop the model that was rolled back: its streams last two seconds.
const RETIRED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at a port; the server tells nobody here.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

const INTRODUCTION: &str = "\
Real: the model-swap binary, run as GitHub runs a container action; ssh, sshd, nginx; every process, request and answer.
Doubles: the engine (a stub that behaves as vLLM was measured to), GitHub (a fake API held to GitHub's own description).
All of it is on 127.0.0.1 and in folders of its own under /tmp, and gone at the end. Ctrl-C ends it at any time.";

/// Whether the steps run the binary itself, or from the action's image by the Engine that `DOCKER_HOST` names.
#[derive(clap::Parser)]
struct Options {
    /// Name of the image.
    #[arg(long)]
    image: Option<String>,
}

/// Everything that the demo runs on. Dropping it ends it.
struct Scene {
    program: PathBuf,
    image: Option<String>,
    server: GpuServer,
    github: FakeGitHub,
}

fn main() -> ExitCode {
    interrupt::run(demo())
}

async fn demo() -> Result<()> {
    say(INTRODUCTION)?;
    let began = Instant::now();
    heading("A GPU server with an old model, under load")?;
    let scene = Scene::set().await?;
    let load = scene.load().await?;

    heading("1. plan: what a swap would do")?;
    let planned = step::run(&scene.action("plan", "1001")?).await?;
    ensure!(planned.code == 0, "plan ended with exit code {}", planned.code);

    heading("2. swap")?;
    let swap = scene.action("swap", "1002")?;
    let swapped = step::run(&swap).await?.came_to("promoted")?;
    // For a moment after a reload, nginx's old workers may still accept and ask the model from before.
    service::until_serves(scene.server.nginx_addr(), NEW).await?;

    heading("3. What GitHub shows of the swap")?;
    scene.show(&swapped)?;

    heading("4. rollback of that swap")?;
    let rollback = scene.action("rollback", "1003")?;
    let rollback = rollback.with_inputs(&[("swap-id", swapped.output("swap-id")?)]);
    let rolled_back = step::run(&rollback).await?.came_to("rolled-back")?;
    service::until_serves(scene.server.nginx_addr(), OLD).await?;

    heading("5. What GitHub shows now")?;
    scene.show(&rolled_back)?;

    heading("6. What the clients saw")?;
    scene.retired().await?;
    let tally = load.stop().await;
    say(&tally)?;
    ensure!(tally.faults() == 0, "{} requests were lost", tally.faults());
    say("No request was refused, cut or truncated.")?;
    let violations = scene.github.violations();
    ensure!(violations.is_empty(), "GitHub would have refused: {}", violations.join("; "));
    say("Every call to GitHub was as GitHub's description has it.")?;
    scene.strike()?;
    say(format!(
        "Everything is ended and removed, {:.0} s after the start.",
        began.elapsed().as_secs_f64()
    ))
}

impl Scene {
    async fn set() -> Result<Self> {
        let program = built::program("model-swap")?;
        let github = FakeGitHub::start()?;
        let server = GpuServer::start(ServerSpec::default())?;
        let image = Options::parse().image;
        let scene = Self { program, image, server, github };
        let server = &scene.server;
        let (a, b) = server.slot_ports();
        let mut argv = engine(OLD, a)?;
        argv.extend(OLD_FLAGS.map(str::to_owned));
        let old = server.start_by_hand(&argv, &[])?;
        service::until_serves(server.nginx_addr(), OLD).await?;
        say(format!(
            "sshd listens on port {}, nginx on {} with its upstream on slot a (port {a}); slot b is port {b}.",
            server.ssh_port(),
            server.nginx_addr().port()
        ))?;
        say(format!(
            "{OLD} serves from slot a; somebody started it by hand as process {}.",
            old.pid
        ))?;
        Ok(scene)
    }

    /// Load of every kind that a swap can hurt, from now on.
    async fn load(&self) -> Result<Load> {
        let spec = LoadSpec::mixed(self.server.nginx_addr(), NAME);
        let LoadSpec { keepalive, fresh, streams, uploads, idle, .. } = spec;
        let load = Load::start(spec);
        load.wait_until(|tally| tally.total() > 20).await?;
        say(format!(
            "Clients that never retry: {keepalive} with keepalive, {fresh} without, {streams} that read streams, {uploads} \
             that upload slowly, {idle} that rest with half a head sent."
        ))?;
        Ok(load)
    }

    fn action(&self, command: &str, run: &str) -> Result<Action> {
        let settings = Settings { flags: NEW_FLAGS.to_owned(), ..Settings::default() };
        let action = Action::new(&self.program, &settings.config(&self.server, NEW)?)?;
        let action = action
            .with_access_to(&self.server)
            .on_github(&self.github)
            .with(&[("GITHUB_RUN_ID", run)])
            .with_inputs(&[("command", command)]);
        Ok(match &self.image {
            Some(image) => action.from_image(image, None),
            None => action,
        })
    }

    /// What people find on GitHub's pages after a step.
    fn show(&self, ended: &Ended) -> Result<()> {
        say("Deployments, newest first:")?;
        page::indented(&self.github.to_string())?;
        say("\nThe summary of the job:")?;
        page::indented(&ended.summary)?;
        say("\nThe outputs of the step:")?;
        let outputs = ended.outputs.iter().map(|(name, value)| format!("{name}: {value}\n"));
        page::indented(&outputs.collect::<String>())?;
        let newest = self.github.deployments().pop().context("GitHub has no deployment")?;
        ensure!(newest.state() == "success", "the deployment's state is {}", newest.state());
        Ok(())
    }

    /// Waits until the server, on its own by now, has drained and stopped the model that was rolled back.
    async fn retired(&self) -> Result<()> {
        let began = Instant::now();
        let (_, b) = self.server.slot_ports();
        while !server::listeners(b)?.is_empty() {
            ensure!(began.elapsed() < RETIRED_WITHIN, "{NEW} still runs");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        say(format!(
            "With no runner there any more, the server has drained {NEW} and stopped it, {:.1} s later.\n",
            began.elapsed().as_secs_f64()
        ))
    }

    /// Ends everything and looks whether something is left.
    fn strike(self) -> Result<()> {
        let folder = self.server.scratch().to_owned();
        self.server.stop()?;
        let left = server::leftovers(&folder);
        ensure!(left.is_empty(), "still running: {}", left.join(", "));
        ensure!(!folder.exists(), "{} is still there", folder.display());
        Ok(())
    }
}
