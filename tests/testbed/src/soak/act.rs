//! One command, and the fault that strikes it.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::fault::{Fault, Moment};
use super::{LOOK_AGAIN, OLD, Scene, story};
use crate::PATIENCE;
use crate::service::{self, Settings};

/// One disturbed command.
pub(super) struct Act {
    command: &'static str,
    model: String,
    fault: Fault,
    moment: Moment,
    settings: Settings,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, model, fault, moment, .. } = self;
        match *command {
            "swap" => write!(f, "swap to {model}, {fault:?} {moment}"),
            command => write!(f, "{command}, {fault:?} {moment}"),
        }
    }
}

impl Act {
    pub(super) fn roll(dice: &mut Rng, number: usize) -> Self {
        // At first there is nothing that a rollback could undo.
        let command = if number > 1 && dice.usize(..3) == 0 { "rollback" } else { "swap" };
        let fault = loop {
            let fault = Fault::roll(dice);
            if command == "swap" || !fault.needs_candidate() {
                break fault;
            }
        };
        let loading = format!("--stub-load-time {}ms", dice.u64(..400));
        let flags = if fault.needs_candidate() { fault.flags().to_owned() } else { loading };
        let retain = if dice.bool() { "0s" } else { "10m" };
        let settings = Settings {
            flags,
            retain: retain.to_owned(),
            ready: if fault == Fault::NeverHealthy { "1s" } else { "2m" }.to_owned(),
            ..Settings::default()
        };
        Self {
            command,
            model: format!("Qwen/R{number}"),
            fault,
            moment: Moment::roll(dice),
            settings,
        }
    }

    /// Plays it to the end of all that it set in motion, and looks at what is there then. Says how it ended.
    pub(super) async fn play(&self, scene: &Scene<'_>) -> Result<String> {
        let before = story::read(&scene.server)?.len();
        let aim = self.fault.aim(self.moment);
        if aim.is_some() {
            scene.server.strike(aim)?;
        }
        let mut runner = Runner::start(scene, self)?;
        let struck = self.strike(scene, &mut runner, before).await?;
        let code = runner.ended().await?;
        if aim.is_some() {
            scene.server.strike(None)?;
        }
        // What is aimed at a write strikes by itself, if the agent comes so far.
        let struck = struck && (aim.is_none() || code != Some(0));
        let stories = scene.settle(&self.settings).await?;

        let outcome = match stories.get(before..) {
            Some([]) | None => "nothing begun".to_owned(),
            Some(new) => new
                .iter()
                .map(|story| story.outcome.clone().unwrap_or_default())
                .collect::<Vec<_>>()
                .join(" and "),
        };
        let ended = code.map_or("killed".to_owned(), |code| format!("exit {code}"));
        ensure!(!outcome.contains("stuck"), "stuck ({ended})");
        ensure!(
            matches!(code, None | Some(0 | 3..=6)),
            "{ended} is the exit of a bug, of bad input or of a swap that is stuck: {outcome}"
        );
        ensure!(
            self.fault != Fault::Nothing || code == Some(0),
            "{ended} without a fault: {outcome}"
        );
        let expected = story::serves(&stories, OLD);
        service::until_serves(scene.server.nginx_addr(), expected)
            .await
            .with_context(|| format!("{ended}, {outcome}: {expected} should serve"))?;
        Ok(format!("{outcome} ({ended}{})", if struck { "" } else { ", too late to strike" }))
    }

    /// Waits for the moment and strikes; false if everything was over before it came.
    async fn strike(&self, scene: &Scene<'_>, runner: &mut Runner, before: usize) -> Result<bool> {
        if !self.reached(scene, runner, before).await? {
            return Ok(false);
        }
        tokio::time::sleep(self.moment.later).await;
        match self.fault {
            Fault::AgentKilled => {
                for pid in scene.agents() {
                    signal(pid, Signal::KILL);
                }
            }
            Fault::RunnerKilled => runner.kill(),
            Fault::LinkCut => scene.relay.cut(),
            Fault::LinkSilent => scene.relay.swallow(),
            Fault::Cancelled => signal(runner.child.id(), Signal::INT),
            Fault::Aborted => {
                scene.action("abort", OLD, &self.settings)?.spawn()?.finish().await?;
            }
            Fault::Rivalled => {
                let settings = Settings { flags: String::new(), ..self.settings.clone() };
                scene.action("swap", "Qwen/Rival", &settings)?.spawn()?.finish().await?;
            }
            Fault::NginxReloaded => signal(scene.server.nginx_master()?, Signal::HUP),
            Fault::CandidateKilled => {
                let line = format!("stub-engine serve {}", self.model);
                let all = scene.server.leftovers().into_iter().filter(|left| left.contains(&line));
                for pid in all.filter_map(|left| left.split_once(':')?.0.parse().ok()) {
                    signal(pid, Signal::KILL);
                }
            }
            Fault::Nothing
            | Fault::RecordTorn
            | Fault::DiskFull
            | Fault::CandidateDies
            | Fault::WrongModel
            | Fault::NeverHealthy => {}
        }
        Ok(true)
    }

    async fn reached(&self, scene: &Scene<'_>, runner: &mut Runner, before: usize) -> Result<bool> {
        // It never comes further than loading.
        let events = match self.fault {
            Fault::CandidateKilled => 6,
            _ => self.moment.events,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stories = story::read(&scene.server)?;
            let told = stories.get(before..).unwrap_or_default().iter().map(|new| new.events).max();
            if told.unwrap_or(0) >= events {
                return Ok(true);
            }
            if runner.child.try_wait()?.is_some() {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "neither an end nor event {events}: {stories:?}");
            tokio::time::sleep(LOOK_AGAIN / 10).await;
        }
    }
}

/// The runner's side of a command: a process group that dies as one.
struct Runner {
    child: Child,
    /// Its folder, which holds the configuration.
    _action: crate::action::Action,
}

impl Runner {
    fn start(scene: &Scene<'_>, act: &Act) -> Result<Self> {
        let action = scene.action(act.command, &act.model, &act.settings)?;
        let mut command = action.command();
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: command.spawn()?, _action: action })
    }

    fn kill(&self) {
        if let Some(group) = pid(self.child.id()) {
            // It may have ended by itself meanwhile.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }

    /// Its exit code, once it has ended; `None` if a signal ended it.
    async fn ended(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(Instant::now() < deadline, "the runner does not end");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            let _gone = self.child.wait();
        }
    }
}

fn signal(process: u32, signal: Signal) {
    if let Some(process) = pid(process) {
        // It may have ended by itself meanwhile.
        let _gone = kill_process(process, signal);
    }
}

fn pid(process: u32) -> Option<Pid> {
    i32::try_from(process).ok().and_then(Pid::from_raw)
}
