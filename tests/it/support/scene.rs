//! One view of every world, whatever supervises its replicas: what a test of the spine asks and does.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use testbed::action::{Action, Run};
use testbed::guest::{GuestSpec, INCUMBENT, Runtime, SLOTS};
use testbed::load::{Load, LoadSpec};
use testbed::server::{ServerSpec, listeners};
use testbed::service::{self, NAME, Settings};

use super::docked::{COMPOSED, Docked};
use super::guest::{GuestWorld, on_guest_of};
use super::{OLD, World};
use crate::commands::Terminal;
use crate::step::send;

/// What has become of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing is left of it.
    Gone,
    /// What keeps it is there; it does not run, and no boot starts it.
    Stopped,
    /// It runs, and no boot starts it.
    Runs,
    /// It runs, and a boot starts it.
    Boots,
}

/// A server on which [`OLD`] serves from slot a, kept by what keeps the next models as well.
pub(crate) trait Scene: Sized {
    /// What a replica is that nginx points at, or has pointed at.
    const SERVING: Kept;
    /// What the old model is after it was retired.
    const PUT_AWAY: Kept;
    /// Whether a killed agent comes back.
    const RESUMES: bool;
    /// Names of the files that a replica in slot b needs.
    const NEEDED: &[&str];

    /// Runs a test there, with more flags for the old model.
    fn play(flags: &str, test: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()>;

    /// Where clients reach its nginx.
    fn nginx(&self) -> SocketAddr;

    /// What is configured.
    fn settings(&mut self) -> &mut Settings;

    /// The action, ready to be run.
    fn step(&self, command: &str, model: &str, inputs: &[(&str, &str)]) -> Result<Action>;

    /// What has become of the old model.
    async fn old(&self) -> Result<Kept>;

    /// The replicas that were started here, by their slots.
    async fn ours(&self) -> Result<Vec<(char, Kept)>>;

    /// The workers of nginx.
    async fn workers(&self) -> Result<BTreeSet<u32>>;

    /// Ends the agent that works on the only swap.
    async fn kill_agent(&self) -> Result<()>;

    /// The ports of slots a and b.
    fn ports(&self) -> (u16, u16);

    /// The folder with the state of all services, seen from here.
    fn state(&self) -> Result<PathBuf>;

    /// A person's terminal, with what opens this server.
    fn terminal(&self) -> Result<Terminal>;

    /// Everything on the server that only this project makes, but for the state folder: seen from here.
    fn outside(&self) -> Result<Vec<PathBuf>>;

    /// The slots whose ports are claimed.
    fn claimed(&self) -> Result<Vec<char>> {
        let claims = fs::read_dir(self.state()?.join("claims")).into_iter().flatten().flatten();
        let claims: Vec<_> = claims.map(|claim| claim.file_name()).collect();
        let (a, b) = self.ports();
        let is_claimed = |port: u16| claims.iter().any(|claim| *claim == *format!("port-{port}"));
        Ok([('a', a), ('b', b)].into_iter().filter(|(_, p)| is_claimed(*p)).map(|s| s.0).collect())
    }

    /// Runs a command as GitHub runs a container action.
    async fn does(&self, command: &str, model: &str, inputs: &[(&str, &str)]) -> Result<Run> {
        self.step(command, model, inputs)?.spawn()?.finish().await
    }

    /// Load of every kind on the service, with the oracle.
    async fn traffic(&self) -> Result<Load> {
        let load = Load::start(LoadSpec::mixed(self.nginx(), NAME));
        load.wait_until(|tally| tally.total() > 20).await?;
        Ok(load)
    }

    /// Waits until fresh requests meet a model.
    async fn until_meets(&self, model: &str) -> Result<()> {
        service::until_serves(self.nginx(), model).await
    }
}

fn on_runtime(test: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test)
}

/// Plain processes.
impl Scene for World {
    const SERVING: Kept = Kept::Runs;
    const PUT_AWAY: Kept = Kept::Gone;
    const RESUMES: bool = false;
    const NEEDED: &[&str] = &["replica.log"];

    fn play(flags: &str, test: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        on_runtime(async {
            let flags: Vec<_> = flags.split_whitespace().collect();
            test(&mut Self::on(ServerSpec::default(), &flags).await?).await
        })
    }

    fn nginx(&self) -> SocketAddr {
        self.server.nginx_addr()
    }

    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn step(&self, command: &str, model: &str, inputs: &[(&str, &str)]) -> Result<Action> {
        self.action(command, model, inputs)
    }

    async fn old(&self) -> Result<Kept> {
        let serves = |pid: u32| {
            let argv = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            argv.contains(OLD)
        };
        let (a, _) = self.server.slot_ports();
        Ok(if listeners(a)?.into_iter().any(serves) { Kept::Runs } else { Kept::Gone })
    }

    async fn ours(&self) -> Result<Vec<(char, Kept)>> {
        let slot = |line: String| {
            let (pid, argv) = line.split_once(':')?;
            let environ = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
            let marker =
                environ.split('\0').find_map(|it| it.strip_prefix("MODEL_SWAP_REPLICA="))?;
            // What was the old model's comes back with a marker.
            marker.chars().last().filter(|_| !argv.contains(OLD))
        };
        let slots: BTreeSet<_> = self.server.leftovers().into_iter().filter_map(slot).collect();
        Ok(slots.into_iter().map(|slot| (slot, Kept::Runs)).collect())
    }

    async fn workers(&self) -> Result<BTreeSet<u32>> {
        Ok(self.server.nginx_workers()?.into_iter().collect())
    }

    async fn kill_agent(&self) -> Result<()> {
        send("-KILL", crate::runner::agent(self)?.context("no agent")?)
    }

    fn ports(&self) -> (u16, u16) {
        self.server.slot_ports()
    }

    fn state(&self) -> Result<PathBuf> {
        Ok(self.server.state_dir())
    }

    fn terminal(&self) -> Result<Terminal> {
        Terminal::at(self)
    }

    fn outside(&self) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

/// Units of systemd; where the guest has an Engine, the replicas that are asked about are containers.
impl Scene for GuestWorld {
    const SERVING: Kept = Kept::Boots;
    const PUT_AWAY: Kept = Kept::Stopped;
    const RESUMES: bool = true;
    const NEEDED: &[&str] = &["model-swap-chat.b.service"];

    fn play(flags: &str, test: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let incumbent = Some((OLD.to_owned(), flags.to_owned()));
        on_guest_of(GuestSpec { incumbent, ..GuestSpec::bare() }, async |world| {
            world.until_serves(OLD).await?;
            test(world).await
        })
    }

    fn nginx(&self) -> SocketAddr {
        self.guest.nginx_addr()
    }

    fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn step(&self, command: &str, model: &str, inputs: &[(&str, &str)]) -> Result<Action> {
        self.action(command, model, inputs)
    }

    async fn old(&self) -> Result<Kept> {
        kept(&match self.guest.runtime() {
            Runtime::Systemd => self.unit(INCUMBENT).await?,
            Runtime::Docker => self.guest.docker(&["inspect", "--format", STATE, COMPOSED]).await?,
        })
    }

    async fn ours(&self) -> Result<Vec<(char, Kept)>> {
        if self.guest.runtime() == Runtime::Docker {
            let list = "docker ps --all --quiet --filter name=model-swap | xargs --no-run-if-empty";
            let line = format!("{list} docker inspect --format '{{{{.Name}}}} {STATE}'");
            let said = self.guest.run(&["sh", "-c", &line]).await?;
            let named = said.lines().filter_map(|line| line.split_once(' '));
            let slot = |name: &str| name.chars().last().unwrap_or_default();
            return named.map(|(name, state)| Ok((slot(name), kept(state)?))).collect();
        }
        let files = self.left().await?;
        let slot = |file: &String| file.trim_end_matches(".service").chars().last();
        let slots: BTreeSet<_> = files.iter().filter_map(slot).collect();
        let mut ours = Vec::new();
        for slot in slots {
            let unit = format!("model-swap-chat.{slot}.service");
            ours.push((slot, kept(&self.unit(&unit).await?)?));
        }
        Ok(ours)
    }

    async fn workers(&self) -> Result<BTreeSet<u32>> {
        let said = self.guest.run(&["pgrep", "-f", "nginx: worker process"]).await?;
        Ok(said.lines().map(str::parse).collect::<Result<_, _>>()?)
    }

    async fn kill_agent(&self) -> Result<()> {
        self.guest.run(&["kill", "-KILL", &self.agent().await?]).await.map(drop)
    }

    fn ports(&self) -> (u16, u16) {
        SLOTS
    }

    fn state(&self) -> Result<PathBuf> {
        self.guest.file("/var/lib/model-swap")
    }

    fn terminal(&self) -> Result<Terminal> {
        let access = (self.guest.private_key(), self.guest.known_hosts());
        Terminal::with(&self.config(crate::support::NEW)?, access)
    }

    fn outside(&self) -> Result<Vec<PathBuf>> {
        let units = self.guest.file("/etc/systemd/system")?;
        let is_ours = |path: &PathBuf| path.to_string_lossy().contains("/model-swap");
        let mut found: Vec<_> = below(&units)?.into_iter().filter(is_ours).collect();
        let program = self.guest.file("/usr/local/libexec/model-swap")?;
        found.extend(program.exists().then_some(program));
        Ok(found)
    }
}

/// What docker says of a container.
const STATE: &str = "{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}";

/// Containers, beside one that Compose has made.
impl Scene for Docked {
    const SERVING: Kept = Kept::Boots;
    const PUT_AWAY: Kept = Kept::Stopped;
    const RESUMES: bool = false;
    const NEEDED: &[&str] = &[];

    fn play(flags: &str, test: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        on_runtime(async {
            let flags: Vec<_> = flags.split_whitespace().collect();
            test(&mut Self::composed(&flags).await?).await
        })
    }

    fn nginx(&self) -> SocketAddr {
        Scene::nginx(&self.world)
    }

    fn settings(&mut self) -> &mut Settings {
        &mut self.world.settings
    }

    fn step(&self, command: &str, model: &str, inputs: &[(&str, &str)]) -> Result<Action> {
        self.world.action(command, model, inputs)
    }

    async fn old(&self) -> Result<Kept> {
        kept(&self.inspect(COMPOSED, STATE)?)
    }

    async fn ours(&self) -> Result<Vec<(char, Kept)>> {
        let mut ours = Vec::new();
        for name in self.names()?.into_iter().filter(|name| name != COMPOSED) {
            // One that is just being removed may be gone by now.
            if let Ok(said) = self.inspect(&name, STATE) {
                ours.push((name.chars().last().unwrap_or_default(), kept(&said)?));
            }
        }
        Ok(ours)
    }

    async fn workers(&self) -> Result<BTreeSet<u32>> {
        Scene::workers(&self.world).await
    }

    async fn kill_agent(&self) -> Result<()> {
        Scene::kill_agent(&self.world).await
    }

    fn ports(&self) -> (u16, u16) {
        Scene::ports(&self.world)
    }

    fn state(&self) -> Result<PathBuf> {
        Scene::state(&self.world)
    }

    fn terminal(&self) -> Result<Terminal> {
        Terminal::at(&self.world)
    }

    fn outside(&self) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

/// Every file below a folder, if there is one.
pub(crate) fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What systemd and docker say of a replica, in their own words.
fn kept(said: &str) -> Result<Kept> {
    Ok(match said {
        "active enabled always" | "running always" | "running unless-stopped" => Kept::Boots,
        "active disabled no" | "running no" => Kept::Runs,
        // An Engine starts what was running when it ended, and somebody has stopped this one.
        "inactive disabled always" | "exited unless-stopped" | "exited no" | "removing no" => {
            Kept::Stopped
        }
        _ => bail!("a replica is {said}"),
    })
}
