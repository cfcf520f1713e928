//! One command, and the fault that strikes it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::fault::{End, Fault, Moment, Struck};
use super::runner::{Place, Runner, Waits};
use super::story::Story;
use super::strike::Traces;
use super::{LOOK_AGAIN, OLD, Scene, edit, story, verdict};
use crate::PATIENCE;
use crate::server::{Aim, free_port};
use crate::service::{self, Settings};

/// Of a binary under way, what one event counts for; it is much longer than all events together.
const PIECE: u64 = 2_000_000;

/// One disturbed command.
pub(super) struct Act {
    number: usize,
    command: &'static str,
    pub(super) model: String,
    pub(super) fault: Fault,
    pub(super) moment: Moment,
    /// Decides between the variants of a fault.
    pub(super) twist: usize,
    pub(super) settings: Settings,
    /// Whether it is typed at a terminal and followed by a program; else it is a workflow's step.
    is_typed: bool,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, model, fault, moment, is_typed, .. } = self;
        match *command {
            "swap" => write!(f, "swap to {model}, {fault:?} {moment}")?,
            command => write!(f, "{command}, {fault:?} {moment}")?,
        }
        f.write_str(if *is_typed { ", at a terminal" } else { "" })
    }
}

impl Act {
    pub(super) fn roll(dice: &mut Rng, number: usize, nginx: SocketAddr) -> Result<Self> {
        // At first there is nothing that a rollback could undo.
        let command = if number > 1 && dice.usize(..3) == 0 { "rollback" } else { "swap" };
        let fault = Fault::roll(dice, number, command);
        let flags = fault.flags(dice);
        let retain = if dice.bool() { "0s" } else { "10m" };
        let is_verified = dice.usize(..4) == 0;
        let url = format!("http://{nginx}/v1/models");
        let verify = match fault {
            Fault::Unconfirmed => {
                format!("{{ url: \"http://127.0.0.1:{}/v1/models\", within: 1s }}", free_port()?)
            }
            Fault::WordLost => format!("{{ url: {url:?}, within: 3s }}"),
            _ if is_verified => format!("{{ url: {url:?}, within: 20s }}"),
            _ => "{}".to_owned(),
        };
        let ready = if fault == Fault::NeverHealthy { "1s" } else { "2m" };
        let settings = Settings {
            flags,
            retain: retain.to_owned(),
            ready: ready.to_owned(),
            verify,
            ..Settings::default()
        };
        let model = format!("Qwen/R{number}");
        let (moment, twist) = (Moment::roll(dice, command), dice.usize(..300));
        let is_typed = dice.bool();
        Ok(Self { number, command, model, fault, moment, twist, settings, is_typed })
    }

    /// What it is about, for counts.
    pub(super) fn kind(&self) -> String {
        format!("{:?}", self.fault)
    }

    /// Plays it to the end of all that it set in motion, and looks at what is there then. Says how it ended.
    pub(super) async fn play(&self, scene: &mut Scene<'_>) -> Result<String> {
        let before = scene.stories()?.len();
        let aim = self.fault.aim(self.moment);
        if aim.is_some() {
            scene.server.strike(aim)?;
        }
        if self.fault == Fault::Neighboured {
            scene.neighbour.works(&scene.server).await?;
        }
        let serves_at = edit::port(&scene.server.nginx_config())?;
        let mut runner = Runner::start(self.place(scene)?, serves_at)?;
        let mut traces = if self.reached(scene, &mut runner, before).await? {
            tokio::time::sleep(self.moment.later).await;
            Some(self.strike(scene, &mut runner).await?)
        } else {
            None
        };
        let code = runner.ended().await?;
        if aim.is_some() {
            scene.server.strike(None)?;
        }
        let waits =
            if self.fault == Fault::Cancelled { Waits::NotLong } else { Waits::ForTheOutcome };
        runner.hold_what_was_heard(&scene.swaps(), code, waits)?;
        scene.neighbour.rests().await?;
        let stories = scene.settle(&self.settings).await?;
        // What is aimed at a write strikes by itself, if the agent comes so far.
        let came = traces.as_ref().is_some_and(|traces| traces.came(self.fault));
        let is_struck = match aim {
            Some(Aim::Unwatched) => true,
            Some(_) => code != Some(0),
            None => came || self.fault.is_there_from_the_beginning(),
        };
        let struck = if is_struck { Struck::InTime } else { Struck::TooLate };
        let told = self.judge(&stories[before..], code, struck)?;
        if let Some(traces) = &mut traces {
            self.clear_up(scene, traces).await.with_context(|| told.clone())?;
        }
        scene.holds().await.with_context(|| told.clone())?;
        Ok(told)
    }

    fn place(&self, scene: &Scene<'_>) -> Result<Place> {
        if !self.is_typed {
            return Ok(Place::Step(scene.action(self.command, &self.model, &self.settings)?));
        }
        let (config, hosts) = scene.way_in(&self.model, &self.settings)?;
        let access = (scene.server.private_key(), hosts.as_str());
        Place::terminal((scene.program, self.command), &config, access)
    }

    /// How it ended, if it ended as its fault lets it.
    fn judge(&self, new: &[Story], code: Option<i32>, struck: Struck) -> Result<String> {
        let outcomes: Vec<_> =
            new.iter().map(|story| story.outcome.clone().unwrap_or_default()).collect();
        let aim = if self.command == "swap" { "promoted" } else { "rolled-back" };
        let ended = code.map_or("killed".to_owned(), |code| format!("exit {code}"));
        let late = match struck {
            Struck::InTime => "",
            Struck::TooLate => ", too late to strike",
        };
        let told = format!("{} ({ended}{late})", verdict(new));
        let verified = self.command == "swap" && self.settings.verify != "{}";
        let blame = self.fault.blame(&End { code, outcomes, aim, struck, verified });
        ensure!(blame.is_none(), "{told}: {}", blame.unwrap_or_default());
        Ok(told)
    }

    /// Whoever is responsible for the fault mends what is left of it; what is stuck is repaired then, and a service without a model
    /// gets one.
    async fn clear_up(&self, scene: &mut Scene<'_>, traces: &mut Traces) -> Result<()> {
        traces.clear(scene)?;
        let stories = scene.stories()?;
        if stories.iter().any(Story::is_stuck) {
            traces.start_again(scene).await?;
            scene.undisturbed("repair", OLD).await?;
        }
        let stories = scene.stories()?;
        let expected = story::serves(&stories, OLD);
        if traces.has_ended(expected) {
            // Whoever can go back does; of a first model there is no way back.
            if self.twist.is_multiple_of(2) && expected == self.model {
                scene.undisturbed("rollback", OLD).await?;
            } else {
                scene.undisturbed("swap", &format!("Qwen/Again{}", self.number)).await?;
            }
        }
        traces.excuse(scene).await
    }

    async fn reached(
        &self,
        scene: &mut Scene<'_>,
        runner: &mut Runner,
        before: usize,
    ) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stories = scene.stories()?;
            if self.is_due(scene, stories.get(before..).unwrap_or_default()) {
                return Ok(true);
            }
            if runner.is_over()? {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "neither an end nor {}: {stories:?}", self.moment);
            tokio::time::sleep(LOOK_AGAIN / 10).await;
        }
    }

    /// Whether its moment has come.
    fn is_due(&self, scene: &Scene<'_>, new: &[Story]) -> bool {
        let events = new.iter().map(|story| story.events).max().unwrap_or(0);
        match self.fault {
            Fault::WordLost => new.iter().any(|story| story.awaits_word),
            Fault::PushCut => scene.brought() > PIECE * self.moment.events as u64,
            // Before that there is none.
            Fault::CandidateKilled => events >= self.moment.events.max(6),
            // Later it is the candidate's.
            Fault::PortStolen => events >= self.moment.events % 6,
            _ => events >= self.moment.events,
        }
    }
}

/// Waits until a model answers, from nginx and from its own port, and nowhere else than where nginx's file has it.
pub(super) async fn answers(scene: &Scene<'_>, model: &str) -> Result<()> {
    let nginx = scene.server.nginx_addr();
    service::until_serves(nginx, model).await?;
    let port = edit::port(&scene.server.nginx_config())?;
    let there = service::serves(([127, 0, 0, 1], port).into()).await;
    let there = there.with_context(|| format!("port {port}, which nginx's file names"))?;
    ensure!(there == model, "{there} is at port {port}, which nginx's file names, not {model}");
    Ok(())
}
