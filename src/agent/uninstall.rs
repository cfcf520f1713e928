//! Gives the server back: what serves runs on, and everything of this service that is ours goes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::answer::Answers;
use super::{confirm_route, follow, observe_at_rest, place, prune, put_away, stuck, turn};
use crate::event_log::EventLog;
use crate::executor::{self, Context, Unfinished, World, unfinished_swaps};
use crate::host::agent_unit::AgentUnit;
use crate::host::exec;
use crate::host::runtime::ENVIRONMENTS;
use crate::host::{Host, SystemHost, process};
use crate::journal::Journal;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::ProcessId;
use crate::model::refusal::Refusal;
use crate::model::replica::{Keeper, Replica};
use crate::model::state::Holder;
use crate::model::wire::{Frame, KeptWarm, UninstallRequest, Uninstalled};
use crate::service_dir::{self, ServiceDir};
use crate::swap::planner;

/// How long agents are waited for that only kept something warm: they see within moments that it is gone.
const AGENTS_LIMIT: Duration = Duration::from_secs(60);

/// Removes everything of a service but what serves.
pub(super) async fn uninstall(
    wanted: &UninstallRequest,
    answers: &mut Answers,
) -> Result<(), Refusal> {
    let spec = &wanted.asked.spec;
    let dir = place::service_dir(&wanted.asked).map_err(Refusal::environment)?;
    let lease = turn::take_soon(&dir, holder(wanted), |_| None)
        .await
        .map_err(|error| Refusal::environment(error.to_failure()))?;
    if let Some(died) = &lease.died {
        let failure = Failure::new(format!(
            "{} {} was left unfinished by an agent that is gone",
            died.command, died.swap
        ));
        return Err(Refusal::environment(
            failure.hint("bring it to its end first: `model-swap abort`"),
        ));
    }
    stuck::refuse_while_stuck(&dir, &wanted.asked).await?;
    if let Some(Unfinished { swap, found, .. }) = unfinished_swaps(&dir).into_iter().next() {
        let failure = Failure::new(format!("swap {swap} is not at its end: {found}"));
        return Err(Refusal::environment(
            failure.hint("bring it to its end first: `model-swap repair`"),
        ));
    }
    let host = SystemHost::new(&wanted.asked);
    let world = observe_at_rest(&host, &dir, &wanted.asked).await.map_err(Refusal::environment)?;
    retire_what_is_warm((&host, &dir), wanted, &world).await?;
    let serving = spec
        .slots
        .iter()
        .find(|(_, slot)| slot.port == world.upstream.port)
        .and_then(|(name, _)| world.replicas.get(name));
    // Nothing is left that it could bring back; what runs of it ends by that.
    AgentUnit::of(&spec.service).disarm().await.map_err(Refusal::environment)?;
    await_agents(&dir).await.map_err(Refusal::environment)?;
    let put_away = put_away::lines(&dir, serving.map(|replica| &replica.keeper)).await;
    let mut report = remove(&dir, wanted, serving).map_err(Refusal::environment)?;
    report.left.extend(put_away);
    drop(lease);
    answers.send(&Frame::Uninstalled(report));
    Ok(())
}

fn holder(wanted: &UninstallRequest) -> Holder {
    Holder {
        swap: wanted.swap.clone(),
        since: Timestamp::now(),
        process: process::own(),
        command: "uninstall".to_owned(),
        requester: wanted.requester.clone(),
        recovers: None,
    }
}

/// Drains and stops what an earlier swap has left warm, where that was asked for.
async fn retire_what_is_warm(
    (host, dir): (&SystemHost, &ServiceDir),
    wanted: &UninstallRequest,
    world: &World,
) -> Result<(), Refusal> {
    let spec = &wanted.asked.spec;
    let Some(retained) = &world.seen.state.retained else { return Ok(()) };
    if wanted.kept == KeptWarm::Refuse {
        let failure = Failure::new(format!(
            "{} is kept warm in slot {} until {}",
            retained.replica.revision, retained.replica.slot, retained.until
        ))
        .hint("with --retire-now it is drained and stopped first; or wait until its time is over");
        return Err(Refusal::input(failure));
    }
    confirm_route(host, spec, world).await.map_err(Refusal::environment)?;
    let plan = planner::plan_clearing(spec, &world.seen, retained).map_err(Refusal::environment)?;
    let made = || -> Result<_, Failure> {
        let folder = dir.make_swap(&wanted.swap)?;
        service_dir::write_json(&folder.join(service_dir::SPEC), spec)?;
        let asked = (&plan, &wanted.requester);
        let journal = Journal::create(&folder, &wanted.swap, asked, host.now())?;
        let events =
            EventLog::open(&folder, &wanted.swap).map_err(|error| Failure::from_error(&error))?;
        Ok((journal, events))
    };
    let (mut journal, events) = made().map_err(Refusal::environment)?;
    let mut cx =
        Context::new((host, &wanted.asked, dir), wanted.swap.clone(), plan.clone(), events);
    cx.replicas = world.replicas.clone();
    let conclusion = executor::execute(&cx, &mut journal)
        .await
        .map_err(|error| Refusal::environment(Failure::from(error)))?;
    conclusion.failure.map_or(Ok(()), |failure| Err(Refusal::environment(failure)))
}

/// Waits until no agent of an earlier swap is left: what it writes would come back.
async fn await_agents(dir: &ServiceDir) -> Result<(), Failure> {
    let agents: BTreeSet<ProcessId> = dir
        .swaps()
        .iter()
        .filter_map(|swap| follow::at_work(&dir.swap(swap)))
        .filter(|agent| *agent != process::own())
        .collect();
    let ended = async {
        for agent in agents {
            // One that cannot be watched is gone, or is somebody else by now.
            let _ = process::exited(agent).await;
        }
    };
    tokio::time::timeout(AGENTS_LIMIT, ended).await.map_err(|_| {
        let limit = humantime::format_duration(AGENTS_LIMIT);
        Failure::new(format!("an agent of an earlier swap did not end within {limit}"))
            .hint("model-swap status says what it does; then uninstall again")
    })
}

/// What is removed and what is left, in words.
struct Tally {
    kept: BTreeSet<PathBuf>,
    units: String,
    report: Uninstalled,
}

fn remove(
    dir: &ServiceDir,
    wanted: &UninstallRequest,
    serving: Option<&Replica>,
) -> Result<Uninstalled, Failure> {
    let mut tally = Tally {
        kept: BTreeSet::new(),
        units: prune::named_by_units(Path::new(prune::UNITS)),
        report: Uninstalled::default(),
    };
    tally.report.left.extend(serving.map(|replica| serves_on(replica, wanted)));
    tally.report.left.extend(serving.and_then(environment));
    let logs = serving.map(|replica| process::outputs(replica.main)).unwrap_or_default();
    for log in logs.into_iter().filter(|log| log.starts_with(dir.root())) {
        tally.report.left.push(format!("{}: what serves writes to it", log.display()));
        tally.kept.insert(log);
    }
    dir.release_all()?;
    tally.remove(&dir.root())?;
    let others = dir.others();
    if others.is_empty() {
        tally.remove_shared(dir)?;
        if wanted.asked.spec.state_dir.is_none() {
            // Made for us, if it is empty now; a folder that somebody has named is theirs.
            let _ = fs::remove_dir(dir.state_dir());
        }
    } else {
        let names: Vec<_> = others.iter().map(ToString::to_string).collect();
        tally.report.left.push(format!(
            "the agent's binaries and what all services share: used by {}",
            names.join(", ")
        ));
    }
    // Wherever the state is, units have theirs there; folders that still hold something stay.
    for folder in Path::new(ENVIRONMENTS).ancestors().take(2) {
        let _ = fs::remove_dir(folder);
    }
    Ok(tally.report)
}

/// The file with the variables of a unit of ours that serves on.
fn environment(replica: &Replica) -> Option<String> {
    let Keeper::Unit(unit) = &replica.keeper else { return None };
    let file = Path::new(ENVIRONMENTS).join(&unit.name);
    (unit.is_own() && file.exists())
        .then(|| format!("{}: the variables of that unit, secrets among them", file.display()))
}

fn serves_on(replica: &Replica, wanted: &UninstallRequest) -> String {
    let Replica { revision, port, main, keeper, .. } = replica;
    let who = format!("{revision} serves on, port {port}, process {main}");
    match keeper {
        Keeper::Unit(unit) if unit.is_own() => format!(
            "{who}, in the systemd unit {}: it is yours from now on; `systemctl cat {0}` shows it",
            unit.name
        ),
        keeper if keeper.restarts() => format!("{who}, in {keeper}"),
        _ => format!(
            "{who}: a plain process, which nothing starts again after a reboot; upstream {} points at it",
            wanted.asked.spec.nginx.upstream
        ),
    }
}

impl Tally {
    /// Removes a file, or a folder with everything in it, but for what has to stay.
    fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        if self.clear(path)? {
            self.report.removed.push(path.display().to_string());
        }
        Ok(())
    }

    /// Whether the place itself is gone.
    fn clear(&mut self, path: &Path) -> Result<bool, Failure> {
        let failed = |error: std::io::Error| Failure {
            causes: vec![error.to_string()],
            ..Failure::new(format!("cannot remove {}", path.display()))
        };
        let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
        if found.is_dir() {
            for entry in fs::read_dir(path).map_err(failed)? {
                self.clear(&entry.map_err(failed)?.path())?;
            }
            // One that still holds something stays.
            return Ok(fs::remove_dir(path).is_ok());
        }
        if self.kept.contains(path) {
            return Ok(false);
        }
        if path.to_str().is_some_and(|name| self.units.contains(name)) {
            self.report.left.push(format!("{}: a systemd unit names it", path.display()));
            return Ok(false);
        }
        fs::remove_file(path).map_err(failed)?;
        Ok(true)
    }

    /// What all services of this server share, when this one was the last.
    fn remove_shared(&mut self, dir: &ServiceDir) -> Result<(), Failure> {
        for name in service_dir::SHARED {
            self.remove(&dir.state_dir().join(name))?;
        }
        match prune::binaries() {
            Some((folder, _)) => {
                self.remove_binaries(&folder)?;
                // Empty ones were made for us; one that holds more, or that somebody else made, stays.
                let _ = fs::remove_dir(&folder);
            }
            None => {
                // One whose file is gone leaves nothing.
                let own = exec::own_file().ok().filter(|own| own.is_file());
                self.report.left.extend(own.map(|own| {
                    format!("{}: put there by root, as docs/forced-command.md says", own.display())
                }));
            }
        }
        Ok(())
    }

    fn remove_binaries(&mut self, folder: &Path) -> Result<(), Failure> {
        let own = std::env::current_exe().unwrap_or_default();
        let running = process::programs_in(folder);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let place = entry.path();
            let is_digest = entry.file_name().to_str().is_some_and(prune::is_digest);
            let is_used = |program: &&PathBuf| program.starts_with(&place) && **program != own;
            if is_digest && running.iter().any(|program| is_used(&program)) {
                self.report.left.push(format!("{}: the binary in it runs", place.display()));
            } else if is_digest {
                self.remove(&place)?;
            }
        }
        Ok(())
    }
}
