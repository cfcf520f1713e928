//! A life on a machine of its own, with systemd, which also reboots and loses its power at random moments.
//!
//! There nobody brings a swap to its end but systemd's agent. The machine's kernel is this one's, so that its clock is never set:
//! that is left to the lives without one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio::time::timeout;

use super::fault::Moment;
use super::runner::{Place, Runner, Waits};
use super::story::{self, Stories, Story};
use super::{ACTS, LAST, LONGEST, LOOK_AGAIN, Life, OLD, doubt, edit, outage, verdict};
use crate::PATIENCE;
use crate::action::Action;
use crate::guest::{ENGINE, Guest, GuestSpec, Lab, UPSTREAM_FILE};
use crate::load::{Excuse, Fault, Load, LoadSpec};
use crate::service::{self, NAME, Settings};

/// What strikes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// Nothing.
    Nothing,
    /// SIGKILL of its PID 1, and on again.
    PowerLost,
    /// `systemctl reboot`.
    Rebooted,
    /// SIGKILL of every agent, of which systemd starts another.
    AgentKilled,
    /// SIGKILL of the runner, and of its ssh with it.
    RunnerKilled,
    /// SIGINT, then SIGTERM, then SIGKILL.
    Cancelled,
    /// `abort`, by another job.
    Aborted,
    /// SIGKILL of what serves, which systemd starts again.
    IncumbentKilled,
    /// SIGKILL of the candidate, which systemd starts again once it is promoted.
    CandidateKilled,
    /// `systemctl restart nginx`.
    NginxRestarted,
}

impl Blow {
    /// What a machine is for comes more often.
    const ALL: [Self; 14] = [
        Self::PowerLost,
        Self::PowerLost,
        Self::PowerLost,
        Self::PowerLost,
        Self::Rebooted,
        Self::Rebooted,
        Self::Nothing,
        Self::AgentKilled,
        Self::RunnerKilled,
        Self::Cancelled,
        Self::Aborted,
        Self::IncumbentKilled,
        Self::CandidateKilled,
        Self::NginxRestarted,
    ];
}

/// One disturbed command.
struct Act {
    command: &'static str,
    model: String,
    blow: Blow,
    moment: Moment,
    /// Whether the runner's machine is lost as well, where the server is.
    runner_is_lost: bool,
    settings: Settings,
    /// Whether it is typed at a terminal and followed by a program; else it is a workflow's step.
    is_typed: bool,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, model, blow, moment, is_typed, .. } = self;
        match *command {
            "swap" => write!(f, "swap to {model}, {blow:?} {moment}")?,
            command => write!(f, "{command}, {blow:?} {moment}")?,
        }
        f.write_str(if *is_typed { ", at a terminal" } else { "" })
    }
}

impl Act {
    fn roll(dice: &mut Rng, number: usize) -> Self {
        let command = if number > 1 && dice.usize(..3) == 0 { "rollback" } else { "swap" };
        let settings = Settings {
            flags: format!("--stub-load-time {}ms", dice.u64(..400)),
            retain: if dice.bool() { "0s" } else { "10m" }.to_owned(),
            ..Settings::default()
        };
        Self {
            command,
            model: format!("Qwen/R{number}"),
            blow: Blow::ALL[dice.usize(..Blow::ALL.len())],
            moment: Moment::roll(dice, command),
            runner_is_lost: dice.bool(),
            settings,
            is_typed: dice.bool(),
        }
    }

    /// Plays it to the end of all that it set in motion. Says how it ended.
    async fn play(&self, machine: &mut Machine<'_>) -> Result<String> {
        let before = machine.stories()?.len();
        let port = machine.port()?;
        let mut runner = Runner::start(self.place(machine)?, port)?;
        let struck = self.reached(machine, &mut runner, before).await?;
        if struck {
            tokio::time::sleep(self.moment.later).await;
            self.strike(machine, &mut runner).await?;
        }
        let code = runner.ended().await?;
        let waits =
            if self.blow == Blow::Cancelled { Waits::NotLong } else { Waits::ForTheOutcome };
        runner.hold_what_was_heard(&machine.swaps()?, code, waits)?;
        let stories = machine.settle().await?;
        let new = &stories[before..];
        let ended = code.map_or("killed".to_owned(), |code| format!("exit {code}"));
        let late = if struck { "" } else { ", too late to strike" };
        let told = format!("{} ({ended}{late})", verdict(new));
        ensure!(!new.iter().any(Story::is_stuck), "{told}");
        ensure!(matches!(code, None | Some(0 | 3..=6)), "{told}: the exit of a bug");
        let is_idle = self.command == "rollback" && new.is_empty();
        ensure!(
            self.blow != Blow::Nothing || code == Some(0) || is_idle,
            "{told}: without a fault"
        );
        machine.holds().await.with_context(|| told.clone())?;
        Ok(told)
    }

    fn place(&self, machine: &Machine<'_>) -> Result<Place> {
        if !self.is_typed {
            return Ok(Place::Step(machine.action(self.command, &self.model, &self.settings)?));
        }
        let config = self.settings.config_on(&machine.guest.site(), &self.model)?;
        let access = (machine.guest.private_key(), machine.guest.known_hosts());
        Place::terminal((machine.program, self.command), &config, access)
    }

    async fn reached(
        &self,
        machine: &mut Machine<'_>,
        runner: &mut Runner,
        before: usize,
    ) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let events = match self.blow {
            Blow::CandidateKilled => self.moment.events.max(6),
            _ => self.moment.events,
        };
        loop {
            let stories = machine.stories()?;
            let told = stories.get(before..).unwrap_or_default().iter().map(|new| new.events).max();
            if told.unwrap_or(0) >= events {
                return Ok(true);
            }
            if runner.is_over()? {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "neither an end nor {}: {stories:?}", self.moment);
            tokio::time::sleep(LOOK_AGAIN / 10).await;
        }
    }

    async fn strike(&self, machine: &mut Machine<'_>, runner: &mut Runner) -> Result<()> {
        let began = machine.load.began();
        let from = began.elapsed();
        let runs_on = match self.blow {
            Blow::PowerLost => {
                machine.guest.power_loss().await?;
                machine.guest.power_on().await?;
                false
            }
            Blow::Rebooted => {
                machine.guest.reboot().await?;
                false
            }
            Blow::NginxRestarted => {
                machine.guest.run(&["systemctl", "restart", "nginx"]).await?;
                false
            }
            Blow::IncumbentKilled => {
                let pids = machine.guest.listeners(runner.serves_at).await?;
                machine.kill(&pids).await;
                pids.is_empty()
            }
            Blow::CandidateKilled => {
                let pids = machine.pids(&format!("{ENGINE} serve {} ", self.model)).await;
                machine.kill(&pids).await;
                pids.is_empty()
            }
            Blow::AgentKilled => {
                let pids = machine.pids("model-swap agent (run|resume)").await;
                machine.kill(&pids).await;
                true
            }
            Blow::RunnerKilled => {
                runner.kill();
                true
            }
            Blow::Cancelled => {
                runner.cancel().await?;
                true
            }
            Blow::Aborted => {
                machine.action("abort", OLD, &self.settings)?.spawn()?.finish().await?;
                true
            }
            Blow::Nothing => true,
        };
        if matches!(self.blow, Blow::PowerLost | Blow::Rebooted) && self.runner_is_lost {
            runner.kill();
        }
        if !runs_on {
            let back = timeout(PATIENCE, outage::back(machine.guest.nginx_addr(), began)).await;
            let until = back.context("the service does not come back")?;
            machine.excuses.push(Excuse { from, until, losses: &Fault::OF_THE_ENDED });
        }
        Ok(())
    }
}

/// A machine that lives.
struct Machine<'a> {
    program: &'a Path,
    guest: Guest,
    load: Load,
    stories: Stories,
    excuses: Vec<Excuse>,
}

impl Machine<'_> {
    fn action(&self, command: &str, model: &str, settings: &Settings) -> Result<Action> {
        let config = settings.config_on(&self.guest.site(), model)?;
        Ok(Action::new(self.program, &config)?.with_inputs(&[
            ("command", command),
            ("ssh-key", self.guest.private_key()),
            ("known-hosts", self.guest.known_hosts()),
        ]))
    }

    /// A command that has to succeed; what it said.
    async fn undisturbed(&self, command: &str, model: &str) -> Result<String> {
        let settings = Settings { retain: "0s".to_owned(), ..Settings::default() };
        let run = self.action(command, model, &settings)?.spawn()?.finish().await?;
        ensure!(run.code == 0, "{command}, which nobody disturbs: {run}");
        Ok(run.stdout)
    }

    fn swaps(&self) -> Result<PathBuf> {
        self.guest.file(&format!("/var/lib/model-swap/{NAME}/swaps"))
    }

    fn stories(&mut self) -> Result<Vec<Story>> {
        let swaps = self.swaps()?;
        self.stories.read(&swaps)
    }

    /// The port that nginx's file names.
    fn port(&self) -> Result<u16> {
        edit::port(&self.guest.file(UPSTREAM_FILE)?)
    }

    /// Process ids, there, of what runs with such a command line; none where nothing does.
    async fn pids(&self, pattern: &str) -> Vec<u32> {
        let found = self.guest.run(&["pgrep", "-f", pattern]).await.unwrap_or_default();
        found.lines().filter_map(|line| line.parse().ok()).collect()
    }

    async fn kill(&self, pids: &[u32]) {
        for pid in pids {
            // It may have ended by itself meanwhile.
            let _gone = self.guest.run(&["kill", "-KILL", &pid.to_string()]).await;
        }
    }

    /// Models that run or load.
    async fn replicas(&self) -> usize {
        self.pids(&format!("^{ENGINE} serve ")).await.len()
    }

    /// Waits until no swap is under way any more; nobody asks for anything.
    async fn settle(&mut self) -> Result<Vec<Story>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stories = self.stories()?;
            if stories.iter().all(Story::is_over) {
                return Ok(stories);
            }
            ensure!(Instant::now() < deadline, "a swap has no outcome: {stories:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until all that is said and done agrees: the newest outcome, nginx and its file, `status`, and what runs.
    async fn holds(&mut self) -> Result<()> {
        let stories = self.stories()?;
        let expected = story::serves(&stories, OLD);
        let served = service::until_serves(self.guest.nginx_addr(), expected).await;
        served.with_context(|| format!("{expected} should serve"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.undisturbed("status", expected).await?;
            let problem = doubt(&said, (expected, self.port()?), self.replicas().await);
            let Some(problem) = problem else { return Ok(()) };
            ensure!(Instant::now() < deadline, "{problem}:\n{said}");
            tokio::time::sleep(LOOK_AGAIN * 10).await;
        }
    }

    /// Waits until nothing runs but what serves.
    async fn alone(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let agents = self.pids("model-swap agent (run|resume)").await;
            let replicas = self.replicas().await;
            if (agents.len(), replicas) == (0, 1) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{replicas} models run, and agents {agents:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn play(&mut self, life: &mut Life) -> Result<()> {
        let mut dice = Rng::with_seed(life.seed);
        for number in 1..=dice.usize(1..=ACTS) {
            let act = Act::roll(&mut dice, number);
            let done = act.play(self).await.with_context(|| format!("in {act}"));
            life.told(&act, &format!("{:?} of a machine", act.blow), &done);
            done?;
        }
        self.undisturbed("swap", LAST).await?;
        service::until_serves(self.guest.nginx_addr(), LAST).await?;
        self.alone().await?;
        let said = self.undisturbed("repair", LAST).await?;
        ensure!(said.contains("no swap of service chat needs repair"), "repair, at last: {said}");
        self.holds().await?;
        life.held += 1;
        Ok(())
    }
}

/// Lives one life, on a thread that moves into the machine's network meanwhile. Only root can.
///
/// # Errors
/// If the stage cannot be set. What goes wrong on it is in [`Life::problems`].
pub fn live_on_machine(program: &Path, seed: u64) -> Result<Life> {
    let lab = Lab::enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let guest = Guest::boot(&lab, GuestSpec::serving(OLD)).await?;
        service::until_serves(guest.nginx_addr(), OLD).await?;
        let spec = LoadSpec::mixed(guest.nginx_addr(), NAME);
        let load = Load::start(LoadSpec { stream_tokens: 40, lasts_at_most: LONGEST, ..spec });
        load.wait_until(|tally| tally.total() > 20).await?;
        let (stories, excuses) = (Stories::default(), Vec::new());
        let mut machine = Machine { program, guest, load, stories, excuses };
        let mut life = Life::begin(seed);
        if let Err(problem) = machine.play(&mut life).await {
            life.problems.push(format!("{problem:#}"));
        }
        let told = machine.swaps().map(|swaps| story::whole(&swaps));
        let Machine { guest, load, excuses, .. } = machine;
        life.end(load.stop().await, &excuses, || told.unwrap_or_default());
        drop(guest);
        Ok(life)
    })
}
