//! A life of a server with faults at random moments: swaps and rollbacks that are killed, cut off, cancelled, aborted, rivalled
//! and sabotaged, one after the other and under load, and then a swap that nobody disturbs.
//!
//! A seed decides everything but the machine's timing. Whatever happened, these hold after each command: new requests go where the
//! newest outcome says, nginx's file and `status` say the same, no model runs that is not on record, nobody holds the lease, and
//! what was stuck is repaired as soon as whoever broke it has mended that. No request is lost but those that were under way while
//! the fault itself had nginx or a model gone. In the end the undisturbed swap is promoted, and nothing is left to repair.

mod act;
mod edit;
mod fault;
mod heard;
mod lockdown;
mod machine;
mod neighbour;
mod outage;
mod runner;
mod story;
mod strike;
mod upgrade;
mod versions;

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::Value;

use crate::PATIENCE;
use crate::action::Action;
use crate::load::{Excuse, Load, LoadSpec, Tally};
use crate::relay::Relay;
use crate::server::{GpuServer, MARK, ServerSpec};
use crate::service::{self, NAME, Settings, engine};

use act::Act;
use lockdown::lock_down;
pub use machine::live_on_machine;
use neighbour::Neighbour;
use story::{Stories, Story};

/// The model that somebody once started by hand.
const OLD: &str = "Qwen/Old";
/// The model of the swap that nobody disturbs.
const LAST: &str = "Qwen/Last";
/// Of so many servers one has a key with a forced command.
const LOCKED_DOWN: usize = 4;
/// At most so many disturbed commands before that.
const ACTS: usize = 3;
/// Between two looks at what nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// No life is longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// What a life came to.
#[derive(Debug)]
pub struct Life {
    /// What it was made from.
    pub seed: u64,
    /// Whether the key has a forced command.
    pub locked_down: bool,
    /// Each command, its fault, and how it ended; one line each.
    pub acts: Vec<String>,
    /// The kind of each command's fault, where it struck in time.
    pub struck: Vec<String>,
    /// How often all that must hold was looked at, and held: after each command, and in the end.
    pub held: usize,
    /// Requests that were answered or lost.
    pub requests: u64,
    /// Requests that were lost because what they needed was gone.
    pub excused: u64,
    /// Every invariant that did not hold; none if all is well.
    pub problems: Vec<String>,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, acts, held, requests, excused, problems, .. } = self;
        let verdict = if problems.is_empty() { "well" } else { "WRONG" };
        let key = if self.locked_down { ", by a locked-down key" } else { "" };
        write!(f, "seed {seed}: {verdict}{key}; {}", acts.join("; "))?;
        write!(f, "; all invariants held {held} times; oracle: {requests} requests, ")?;
        match excused {
            0 => write!(f, "none excused")?,
            excused => write!(f, "{excused} excused, lost while what they needed was gone")?,
        }
        problems.iter().try_for_each(|problem| write!(f, "\n    {problem}"))
    }
}

impl Life {
    fn begin(seed: u64) -> Self {
        let (acts, struck, problems) = (Vec::new(), Vec::new(), Vec::new());
        let locked_down = false;
        let (held, requests, excused) = (0, 0, 0);
        Self { seed, locked_down, acts, struck, held, requests, excused, problems }
    }

    /// Takes down how a command ended whose fault is of this kind.
    fn told(&mut self, act: &impl fmt::Display, kind: &str, done: &Result<String>) {
        let said = done.as_ref().map_or("?", String::as_str);
        self.acts.push(format!("{act}: {said}"));
        self.held += usize::from(done.is_ok());
        if !said.contains("too late") {
            self.struck.push(kind.to_owned());
        }
    }

    /// Counts what became of the requests; `whole` tells what the server has told, where something went wrong.
    fn end(&mut self, tally: Tally, excuses: &[Excuse], whole: impl FnOnce() -> String) {
        self.requests = tally.total();
        let lost: Vec<_> = tally.inexcusable(excuses).map(ToString::to_string).collect();
        self.excused = tally.faults() - lost.len() as u64;
        if !lost.is_empty() {
            let (count, lines) = (lost.len(), lost.join("\n"));
            self.problems
                .push(format!("{count} requests were lost\n{lines}\n{excuses:?}\n{tally}"));
        }
        if !self.problems.is_empty() {
            self.problems.push(format!("told on the server:\n{}", whole()));
        }
    }
}

/// How swaps ended.
fn verdict(swaps: &[Story]) -> String {
    let outcomes: Vec<_> =
        swaps.iter().map(|story| story.outcome.clone().unwrap_or_default()).collect();
    if outcomes.is_empty() { "nothing begun".to_owned() } else { outcomes.join(" and ") }
}

/// What `status` says that is not, or not yet, as it should be where this model serves at this port, and so many run in all.
fn doubt(status: &str, (expected, port): (&str, u16), running: usize) -> Option<String> {
    let rows = || status.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_role = |role: &str| rows().filter(|row| row.get(2) == Some(&role)).count();
    let port = port.to_string();
    let serving = rows().any(|row| {
        matches!(row[..], [_, at, "serving", "yes", _, model, _] if at == port && model == expected)
    });
    let on_record = of_role("serving") + of_role("retained");
    // What keeps a model warm needs no turn, and waits for nothing but its time.
    let rests = ["nobody is at work", "no command is at work"];
    if !rests.iter().any(|rest| status.contains(rest)) {
        Some("a command is at work".to_owned())
    } else if status.contains(" is not at its end: ") {
        Some("a swap is not at its end".to_owned())
    } else if !serving {
        Some(format!("`status` does not say that {expected} serves at port {port}"))
    } else if running != on_record {
        Some(format!("{on_record} models are on record, and {running} run"))
    } else {
        None
    }
}

/// A server that lives, and the runner's way to it.
struct Scene<'a> {
    program: &'a Path,
    server: GpuServer,
    relay: Relay,
    neighbour: Neighbour,
    load: Load,
    stories: Stories,
    excuses: Vec<Excuse>,
}

impl Scene<'_> {
    /// Through the relay: the configuration, and the host keys.
    fn way_in(&self, model: &str, settings: &Settings) -> Result<(String, String)> {
        let (sshd, port) = (self.server.ssh_port(), self.relay.address().port());
        let settings = Settings { ssh_port: Some(port), ..settings.clone() };
        let hosts = self.server.known_hosts().replace(&sshd.to_string(), &port.to_string());
        Ok((settings.config(&self.server, model)?, hosts))
    }

    fn action(&self, command: &str, model: &str, settings: &Settings) -> Result<Action> {
        let (config, hosts) = self.way_in(model, settings)?;
        Ok(Action::new(self.program, &config)?
            .with_access_to(&self.server)
            .with_inputs(&[("command", command), ("known-hosts", &hosts)]))
    }

    /// The other service's swap, to the end of all that it does.
    fn beside(&self) -> Result<Action> {
        let settings = Settings { retain: "0s".to_owned(), ..Settings::default() };
        let (config, _) = self.way_in(&self.neighbour.next(), &settings)?;
        let config = self.neighbour.at.config(&config, self.server.ports());
        let action = self.action("swap", OLD, &settings)?.with_config(&config)?;
        Ok(action.with_inputs(&[("wait", "retired")]))
    }

    /// A command that has to succeed; what it said.
    async fn undisturbed(&self, command: &str, model: &str) -> Result<String> {
        let settings = Settings { retain: "0s".to_owned(), ..Settings::default() };
        let run = self.action(command, model, &settings)?.spawn()?.finish().await?;
        ensure!(run.code == 0, "{command}, which nobody disturbs: {run}");
        Ok(run.stdout)
    }

    /// The folder with all swaps.
    fn swaps(&self) -> PathBuf {
        self.server.state_dir().join(NAME).join("swaps")
    }

    fn stories(&mut self) -> Result<Vec<Story>> {
        let swaps = self.swaps();
        self.stories.read(&swaps)
    }

    /// Detached agents, by pid.
    fn agents(&self) -> Vec<u32> {
        self.processes("model-swap agent run").into_iter().map(|(pid, _)| pid).collect()
    }

    /// Whether the agent lives that took up a swap last. Another may keep an old model warm meanwhile.
    fn is_at_work_on(&self, swap: &str) -> bool {
        let file = self.server.state_dir().join(format!("{NAME}/swaps/{swap}/agent.json"));
        let agent =
            fs::read(file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        agent.is_some_and(|agent| {
            self.agents().iter().any(|pid| agent["pid"].as_u64() == Some(u64::from(*pid)))
        })
    }

    /// Models that run or load, by pid, with their command lines; none of the other service's.
    fn replicas(&self) -> Vec<(u32, String)> {
        let mut all = self.processes("stub-engine serve");
        all.retain(|(_, line)| !line.contains(neighbour::MODELS));
        all
    }

    fn processes(&self, words: &str) -> Vec<(u32, String)> {
        let all = self.server.leftovers().into_iter().filter(|line| line.contains(words));
        all.filter_map(|line| {
            let (pid, line) = line.split_once(':')?;
            Some((pid.parse().ok()?, line.to_owned()))
        })
        .collect()
    }

    /// How much of an agent's binary is on the server, whole or not.
    fn brought(&self) -> u64 {
        let below = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = below(&self.server.state_dir().join("bin"));
        let files = folders.flat_map(|folder| below(&folder.path()).collect::<Vec<_>>());
        files.filter_map(|file| Some(file.metadata().ok()?.len())).max().unwrap_or(0)
    }

    /// Waits until no swap is under way any more. One whose agent was killed is brought to its end by the next command.
    async fn settle(&mut self, settings: &Settings) -> Result<Vec<Story>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stories = self.stories()?;
            if stories.iter().all(Story::is_over) {
                return Ok(stories);
            }
            ensure!(Instant::now() < deadline, "a swap has no outcome: {stories:?}");
            let left = |story: &Story| !story.is_over() && !self.is_at_work_on(&story.swap);
            if stories.iter().any(left) {
                let run = self.action("abort", OLD, settings)?.spawn()?.finish().await?;
                ensure!(matches!(run.code, 0 | 7), "abort, after the agent's death: {run}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until all that is said and done agrees: the newest outcome, nginx and its file, `status`, and what runs.
    async fn holds(&mut self) -> Result<()> {
        let stories = self.stories()?;
        let expected = story::serves(&stories, OLD);
        act::answers(self, expected).await.with_context(|| format!("{expected} should serve"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.undisturbed("status", expected).await?;
            let (port, models) = (edit::port(&self.server.nginx_config())?, self.replicas());
            let problem = doubt(&said, (expected, port), models.len());
            let Some(problem) = problem else { return Ok(()) };
            ensure!(Instant::now() < deadline, "{problem}:\n{said}\n{models:?}");
            tokio::time::sleep(LOOK_AGAIN * 10).await;
        }
    }

    async fn play(&mut self, life: &mut Life, dice: &mut Rng) -> Result<()> {
        for number in 1..=dice.usize(1..=ACTS) {
            let act = Act::roll(dice, number, self.server.nginx_addr())?;
            let done = act.play(self).await.with_context(|| format!("in {act}"));
            life.told(&act, &act.kind(), &done);
            done?;
        }
        self.undisturbed("swap", LAST).await?;
        act::answers(self, LAST).await?;
        self.alone(LAST).await?;
        let said = self.undisturbed("repair", LAST).await?;
        ensure!(said.contains("no swap of service chat needs repair"), "repair, at last: {said}");
        self.holds().await?;
        life.held += 1;
        Ok(())
    }

    /// Waits until nothing runs but what serves.
    async fn alone(&self, model: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut others = self.replicas();
            others.retain(|(_, line)| !line.contains(model));
            others.extend(self.processes("model-swap agent"));
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
    let mut dice = Rng::with_seed(seed);
    let neighbour = Neighbour::new()?;
    let spec = ServerSpec {
        faults: true,
        upstream_file: Box::new(neighbour.at.upstreams()),
        // Else a master that takes over from another would not know whose it is.
        main_lines: format!("env {MARK};"),
        ..ServerSpec::default()
    };
    let server = GpuServer::start(spec)?;
    let mut life = Life::begin(seed);
    life.locked_down = dice.usize(..LOCKED_DOWN) == 0;
    if life.locked_down {
        lock_down(program, &server, &neighbour)?;
    }
    let sshd = SocketAddr::from(([127, 0, 0, 1], server.ssh_port()));
    let relay = Relay::start(sshd, Duration::ZERO).await?;
    server.start_by_hand(&engine(OLD, server.slot_ports().0)?, &[])?;
    service::until_serves(server.nginx_addr(), OLD).await?;
    let spec = LoadSpec::mixed(server.nginx_addr(), NAME);
    let load = Load::start(LoadSpec { stream_tokens: 40, lasts_at_most: LONGEST, ..spec });
    load.wait_until(|tally| tally.total() > 20).await?;

    let (stories, excuses) = (Stories::default(), Vec::new());
    let mut scene = Scene { program, server, relay, neighbour, load, stories, excuses };
    if let Err(problem) = scene.play(&mut life, &mut dice).await {
        life.problems.push(format!("{problem:#}"));
    }
    let Scene { server, load, excuses, .. } = scene;
    let swaps = server.state_dir().join(NAME).join("swaps");
    life.end(load.stop().await, &excuses, || story::whole(&swaps));
    server.stop()?;
    Ok(life)
}
