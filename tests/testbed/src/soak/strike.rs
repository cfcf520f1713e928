//! How each fault strikes, and how whoever is responsible clears up after it.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, geteuid};
use tokio::task::JoinHandle;

use super::act::Act;
use super::edit::{self, Edit};
use super::fault::Fault;
use super::outage::Outage;
use super::runner::{Runner, signal};
use super::upgrade::{Goes, upgrade};
use super::{LOOK_AGAIN, OLD, Scene, versions};
use crate::PATIENCE;
use crate::server::listeners;
use crate::service::{self, NAME, Settings};

/// Between two reloads of a tool that never has enough.
const RELOADS_EVERY: Duration = Duration::from_millis(150);
/// Where a clock may be set to, in seconds from the true time. Ahead by less than what is left behind is kept for.
const CLOCKS: [i64; 6] = [-3 * 86400, -3000, -90, 0, 90, 3000];

/// A user who is not this one, as whom nobody runs.
const SOMEBODY: u32 = 65534;

/// What a strike has left in the world.
#[derive(Default)]
pub(super) struct Traces {
    thief: Option<TcpListener>,
    edit: Option<Edit>,
    tool: Option<JoinHandle<()>>,
    outage: Option<Outage>,
    /// A folder that was given away.
    taken: Option<PathBuf>,
    /// Whether there was something that another version could have left.
    is_read: bool,
    /// Models that were killed while they listened: argv of each.
    pub(super) dead: Vec<Vec<String>>,
}

impl Traces {
    /// Whether anything was struck.
    pub(super) fn came(&self, fault: Fault) -> bool {
        match fault {
            Fault::PortStolen => self.thief.is_some(),
            Fault::StateTaken => self.taken.is_some(),
            Fault::ReadByOlder | Fault::LeftByOlder => self.is_read,
            Fault::IncumbentKilled | Fault::CandidateKilled => !self.dead.is_empty(),
            _ => true,
        }
    }

    /// Whether it has ended this model.
    pub(super) fn has_ended(&self, model: &str) -> bool {
        self.dead.iter().any(|argv| argv.iter().any(|word| word == model))
    }

    /// Gives back what was taken, and mends what was written.
    pub(super) fn clear(&mut self, scene: &Scene<'_>) -> Result<()> {
        drop(self.thief.take());
        if let Some(tool) = self.tool.take() {
            tool.abort();
        }
        if let Some(folder) = self.taken.take() {
            chown(folder, Some(geteuid().as_raw()), None)?;
        }
        match self.edit.take() {
            Some(edit) => edit.take_back(&scene.server.nginx_config()),
            None => Ok(()),
        }
    }

    /// Starts again by hand what was killed, and waits until it answers.
    pub(super) async fn start_again(&mut self, scene: &Scene<'_>) -> Result<()> {
        for argv in self.dead.drain(..) {
            scene.server.start_by_hand(&argv, &[])?;
            let port = argv.iter().skip_while(|word| *word != "--port").nth(1);
            let port: u16 = port.context("a model without a port")?.parse()?;
            let deadline = Instant::now() + PATIENCE;
            while service::serves((Ipv4Addr::LOCALHOST, port).into()).await.is_err() {
                ensure!(Instant::now() < deadline, "{argv:?} does not answer");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Waits for the end of what clients had to notice.
    pub(super) async fn excuse(&mut self, scene: &mut Scene<'_>) -> Result<()> {
        if let Some(outage) = self.outage.take() {
            scene.excuses.push(outage.over().await?);
        }
        Ok(())
    }

    /// Kills models, and returns when they are gone. Clients may notice those that listened.
    fn kill(&mut self, scene: &Scene<'_>, models: &[u32]) -> Result<()> {
        let from = scene.load.began().elapsed();
        self.dead.extend(models.iter().map(|pid| argv(*pid)));
        // None begins to listen after we have looked.
        models.iter().for_each(|pid| signal(*pid, Signal::STOP));
        let (a, b) = scene.server.slot_ports();
        let listen = [listeners(a)?, listeners(b)?].concat();
        end(scene, models)?;
        if models.iter().any(|pid| listen.contains(pid)) {
            self.outage = Some(Outage::since(from, &scene.load, scene.server.nginx_addr()));
        }
        Ok(())
    }
}

fn end(scene: &Scene<'_>, models: &[u32]) -> Result<()> {
    models.iter().for_each(|pid| signal(*pid, Signal::KILL));
    let deadline = Instant::now() + PATIENCE;
    while scene.replicas().iter().any(|(pid, _)| models.contains(pid)) {
        ensure!(Instant::now() < deadline, "{models:?} outlive SIGKILL");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Act {
    /// Strikes at once, whatever there is to be struck.
    pub(super) async fn strike(
        &self,
        scene: &mut Scene<'_>,
        runner: &mut Runner,
    ) -> Result<Traces> {
        let mut traces = Traces::default();
        let config = scene.server.nginx_config();
        match self.fault {
            Fault::AgentKilled => {
                scene.agents().into_iter().for_each(|pid| signal(pid, Signal::KILL));
            }
            Fault::RunnerKilled => runner.kill(),
            Fault::LinkCut | Fault::PushCut => scene.relay.cut(),
            Fault::LinkSilent => scene.relay.swallow(),
            Fault::WordLost => match self.twist % 3 {
                0 => runner.kill(),
                1 => scene.relay.cut(),
                _ => scene.relay.swallow(),
            },
            Fault::Cancelled => runner.cancel().await?,
            Fault::Aborted => {
                scene.action("abort", OLD, &self.settings)?.spawn()?.finish().await?;
            }
            Fault::Rivalled => {
                let settings = Settings { flags: String::new(), ..self.settings.clone() };
                scene.action("swap", "Qwen/Rival", &settings)?.spawn()?.finish().await?;
            }
            Fault::Neighboured => {
                let run = scene.beside()?.spawn()?.finish().await?;
                scene.neighbour.has_swapped(&run)?;
            }
            Fault::ReadByOlder | Fault::LeftByOlder => {
                // It would ask for another agent.
                runner.kill();
                traces.is_read = match self.fault {
                    Fault::ReadByOlder => versions::read_by_older(scene).await?,
                    _ => versions::left_by_older(scene).await?,
                };
            }
            Fault::StateTaken => traces.taken = Some(self.take_state(scene).await?),
            Fault::NginxUpgraded => {
                let lasts = Duration::from_millis(10 * self.twist as u64);
                let goes = if self.twist.is_multiple_of(3) { Goes::New } else { Goes::Old };
                upgrade(&scene.server, lasts, goes).await?;
            }
            Fault::NginxReloaded => signal(scene.server.nginx_master()?, Signal::HUP),
            Fault::NginxReloadedOften => {
                traces.tool = Some(tokio::spawn(reload(scene.server.nginx_master()?)));
            }
            Fault::NginxStopped => {
                let from = scene.load.began().elapsed();
                scene.server.stop_nginx()?;
                let nginx = scene.server.nginx_addr();
                traces.outage = Some(Outage::since(from, &scene.load, nginx));
                tokio::time::sleep(Duration::from_millis(self.twist as u64)).await;
                scene.server.start_nginx()?;
            }
            Fault::FileCommented => traces.edit = Some(Edit::Comment),
            Fault::LineEdited => traces.edit = Some(Edit::Line),
            Fault::FileSpoiled => traces.edit = Some(Edit::Nonsense),
            Fault::PortStolen => {
                let (a, b) = scene.server.slot_ports();
                let free = if edit::port(&config)? == a { b } else { a };
                // Somebody may listen there already: the candidate, or what is kept warm.
                traces.thief = TcpListener::bind((Ipv4Addr::LOCALHOST, free)).ok();
            }
            Fault::ClockSet => scene.server.set_clock(CLOCKS[self.twist % CLOCKS.len()])?,
            Fault::IncumbentKilled => {
                traces.kill(scene, &listeners(runner.serves_at)?)?;
            }
            Fault::CandidateKilled => {
                let ours =
                    scene.replicas().into_iter().filter(|(_, line)| line.contains(&self.model));
                traces.kill(scene, &ours.map(|(pid, _)| pid).collect::<Vec<_>>())?;
            }
            Fault::Nothing
            | Fault::RecordTorn
            | Fault::DiskFull
            | Fault::Unwatched
            | Fault::Unconfirmed
            | Fault::CandidateDies
            | Fault::WrongModel
            | Fault::NeverHealthy => {}
        }
        if let Some(edit) = traces.edit {
            edit.write(&config)?;
            if edit == Edit::Line && self.twist.is_multiple_of(2) {
                signal(scene.server.nginx_master()?, Signal::HUP);
            }
        }
        Ok(traces)
    }
}

impl Act {
    /// Gives a folder of state to somebody else. Whoever comes then is refused.
    async fn take_state(&self, scene: &Scene<'_>) -> Result<PathBuf> {
        let all = scene.server.state_dir();
        let folder =
            Some(all.join(NAME)).filter(|own| self.twist.is_multiple_of(2) && own.exists());
        let folder = folder.unwrap_or(all);
        chown(&folder, Some(SOMEBODY), None)?;
        let run = scene.action("swap", "Qwen/Third", &self.settings)?.spawn()?.finish().await?;
        let said = format!("the state folder {} belongs to user {SOMEBODY}", folder.display());
        ensure!(run.code == 3 && run.stdout.contains(&said), "{said}, and yet: {run}");
        Ok(folder)
    }
}

async fn reload(master: u32) {
    loop {
        signal(master, Signal::HUP);
        tokio::time::sleep(RELOADS_EVERY).await;
    }
}

fn argv(pid: u32) -> Vec<String> {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
