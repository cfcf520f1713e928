//! A life of a server with faults at random moments: swaps and rollbacks that are killed, cut off, cancelled, aborted, rivalled
//! and sabotaged, one after the other and under load, and then a swap that nobody disturbs.
//!
//! A seed decides everything but the machine's timing. Whatever happened, these hold in the end: new requests go where the
//! newest outcome says, no request was lost, nothing is stuck or left over, and the undisturbed swap is promoted.

mod act;
mod fault;
mod story;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::PATIENCE;
use crate::action::Action;
use crate::load::{Load, LoadSpec};
use crate::relay::Relay;
use crate::server::{GpuServer, ServerSpec};
use crate::service::{self, NAME, Settings, engine};

use act::Act;
use story::Story;

/// The model that somebody once started by hand.
const OLD: &str = "Qwen/Old";
/// The model of the swap that nobody disturbs.
const LAST: &str = "Qwen/Last";
/// At most so many disturbed commands before that.
const ACTS: usize = 3;
/// Between two looks at what nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a life came to.
#[derive(Debug)]
pub struct Life {
    /// What it was made from.
    pub seed: u64,
    /// Each command, its fault, and how it ended; one line each.
    pub acts: Vec<String>,
    /// Requests that were answered or lost.
    pub requests: u64,
    /// Every invariant that did not hold; none if all is well.
    pub problems: Vec<String>,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, acts, requests, problems } = self;
        let verdict = if problems.is_empty() { "well" } else { "WRONG" };
        write!(f, "seed {seed}: {verdict}, {requests} requests; {}", acts.join("; "))?;
        problems.iter().try_for_each(|problem| write!(f, "\n    {problem}"))
    }
}

/// A server that lives, and the runner's way to it.
struct Scene<'a> {
    program: &'a Path,
    server: GpuServer,
    relay: Relay,
}

impl Scene<'_> {
    fn action(&self, command: &str, model: &str, settings: &Settings) -> Result<Action> {
        let (sshd, port) = (self.server.ssh_port(), self.relay.address().port());
        let settings = Settings { ssh_port: Some(port), ..settings.clone() };
        let hosts = self.server.known_hosts().replace(&sshd.to_string(), &port.to_string());
        Ok(Action::new(self.program, &settings.config(&self.server, model)?)?
            .with_access_to(&self.server)
            .with_inputs(&[("command", command), ("known-hosts", &hosts)]))
    }

    /// Detached agents, by pid.
    fn agents(&self) -> Vec<u32> {
        let all = self.server.leftovers().into_iter();
        all.filter(|line| line.contains("model-swap agent run"))
            .filter_map(|line| line.split_once(':')?.0.parse().ok())
            .collect()
    }

    /// Waits until no swap is under way any more. One whose agent was killed is brought to its end by the next command.
    async fn settle(&self, settings: &Settings) -> Result<Vec<Story>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stories = story::read(&self.server)?;
            if stories.iter().all(|story| story.outcome.is_some()) {
                return Ok(stories);
            }
            ensure!(Instant::now() < deadline, "a swap has no outcome: {stories:?}");
            if self.agents().is_empty() && !story::read(&self.server)?.iter().all(Story::is_over) {
                let run = self.action("abort", OLD, settings)?.spawn()?.finish().await?;
                ensure!(run.code == 0, "abort, after the agent's death: {run}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until nothing runs but what serves.
    async fn alone(&self, model: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.server.leftovers();
            let others: Vec<_> = left
                .into_iter()
                .filter(|line| line.contains("stub-engine") || line.contains("model-swap agent"))
                .filter(|line| !line.contains(model))
                .collect();
            if others.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still there beside {model}: {others:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Lives one life.
///
/// # Errors
/// If the stage cannot be set. What goes wrong on it is in [`Life::problems`].
pub async fn live(program: &Path, seed: u64) -> Result<Life> {
    let server = GpuServer::start(ServerSpec { faults: true, ..ServerSpec::default() })?;
    let sshd = SocketAddr::from(([127, 0, 0, 1], server.ssh_port()));
    let relay = Relay::start(sshd, Duration::ZERO).await?;
    server.start_by_hand(&engine(OLD, server.slot_ports().0)?, &[])?;
    service::until_serves(server.nginx_addr(), OLD).await?;
    let load =
        Load::start(LoadSpec { stream_tokens: 40, ..LoadSpec::mixed(server.nginx_addr(), NAME) });
    load.wait_until(|tally| tally.total() > 20).await?;

    let scene = Scene { program, server, relay };
    let mut life = Life { seed, acts: Vec::new(), requests: 0, problems: Vec::new() };
    if let Err(problem) = scene.play(&mut life).await {
        life.problems.push(format!("{problem:#}"));
    }
    let tally = load.stop().await;
    life.requests = tally.total();
    if tally.faults() > 0 {
        life.problems.push(format!("{} requests were lost\n{tally}", tally.faults()));
    }
    if !life.problems.is_empty() {
        life.problems.push(format!("told on the server:\n{}", story::whole(&scene.server)));
    }
    scene.server.stop()?;
    Ok(life)
}

impl Scene<'_> {
    async fn play(&self, life: &mut Life) -> Result<()> {
        let mut dice = Rng::with_seed(life.seed);
        for number in 1..=dice.usize(1..=ACTS) {
            let act = Act::roll(&mut dice, number);
            let done = act.play(self).await.with_context(|| format!("in {act}"));
            life.acts.push(match &done {
                Ok(said) => format!("{act}: {said}"),
                Err(_) => format!("{act}: ?"),
            });
            done?;
        }
        let settings = Settings { retain: "0s".to_owned(), ..Settings::default() };
        let run = self.action("swap", LAST, &settings)?.spawn()?.finish().await?;
        ensure!(run.code == 0, "the undisturbed swap: {run}");
        service::until_serves(self.server.nginx_addr(), LAST).await?;
        self.alone(LAST).await
    }
}
