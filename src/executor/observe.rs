//! Looks at the server before anything is planned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;

use super::route::confirm_route;
use super::underway::Underway;
use crate::host::Host;
use crate::host::engine::Answer;
use crate::host::gpu::Gpus;
use crate::host::nginx::UpstreamView;
use crate::host::process::Inherited;
use crate::journal::Journal;
use crate::lease::{Lease, waiting};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{Port, SlotName, SwapId};
use crate::model::record::RecordKind;
use crate::model::replica::{Found, Keeper, Replica};
use crate::model::spec::{Slot, SwapSpec};
use crate::model::state::{ServiceState, SlotReport, StatusReport};
use crate::model::wire::{Asked, Secrets};
use crate::service_dir::ServiceDir;
use crate::swap::planner::{self, Observed, Occupant};
use crate::swap::recovery::{self, Recovery};
use crate::swap::revision;
use crate::swap::transition::StepStatus;

/// In the place of nginx's port where nginx cannot be asked: no slot has it.
const NOWHERE: Port = Port(0);

/// What was found.
#[derive(Debug)]
pub struct World {
    /// What the planner needs.
    pub seen: Observed,
    /// nginx's upstream.
    pub upstream: UpstreamView,
    /// The replica in each slot that has one.
    pub replicas: BTreeMap<SlotName, Replica>,
}

/// Looks at nginx, the slots and the service's state. Changes nothing.
///
/// # Errors
/// If nginx, a port or the state cannot be read.
pub async fn observe<H: Host>(
    host: &H,
    dir: &ServiceDir,
    asked: &Asked,
    git_sha: Option<String>,
) -> Result<World, Failure> {
    let hash = secrets_hash(dir, asked)?;
    look(host, dir, asked, (&hash, git_sha)).await
}

/// As [`observe`], with the hash of the secrets as it is known: looks, and keeps nothing.
///
/// # Errors
/// If nginx, a port or the state cannot be read.
pub async fn look<H: Host>(
    host: &H,
    dir: &ServiceDir,
    asked: &Asked,
    revision: (&str, Option<String>),
) -> Result<World, Failure> {
    let upstream = host.upstream().await?;
    let (seen, replicas) = look_at_slots((host, dir), asked, revision, Some(&upstream)).await?;
    Ok(World { seen, upstream, replicas })
}

/// What there is beside nginx, and the replica in each slot that has one.
async fn look_at_slots<H: Host>(
    (host, dir): (&H, &ServiceDir),
    asked: &Asked,
    (hash, git_sha): (&str, Option<String>),
    upstream: Option<&UpstreamView>,
) -> Result<(Observed, BTreeMap<SlotName, Replica>), Failure> {
    let spec = &asked.spec;
    let nginx_port = upstream.map_or(NOWHERE, |upstream| upstream.port);
    let mut slots = BTreeMap::new();
    for (name, slot) in &spec.slots {
        let (found, answer) = met(host, slot.port).await?;
        let forwarded = found.is_none() && answer.is_a_replicas();
        let beside = beside_loopback(host, slot.port, (found.as_ref(), &answer));
        let mut occupant = Occupant { found, forwarded, beside, ..Occupant::default() };
        if let Some(found) = &occupant.found {
            occupant.company = host.stops_alone(found).await.err();
        }
        if occupant.found.is_some()
            && let Answer::Ready(models) = answer
        {
            occupant.ready = true;
            occupant.names = models.names();
            occupant.model = models.root().map(str::to_owned);
            occupant.uncounted = host.in_flight(slot.port).await.err();
        }
        slots.insert(name.clone(), occupant);
    }
    let serving = spec.slots.iter().find(|(_, slot)| slot.port == nginx_port);
    let incumbent =
        serving.and_then(|(name, _)| slots[name].found.as_ref()).map(|found| found.main);
    let (image, unseen) = match host.image().await {
        Ok(image) => (image, None),
        Err(failure) => (None, Some(failure)),
    };
    let seen = Observed {
        claimed: claimed((host, dir), spec).await,
        state: dir.load()?,
        nginx_port,
        beside_loopback: upstream.and_then(|upstream| upstream.beside_loopback),
        worker_shutdown_timeout: upstream.and_then(|upstream| upstream.worker_shutdown_timeout),
        wanted_by_reference: revision::specified(spec, hash, None, None).digest,
        secrets: hash.to_owned(),
        wanted: revision::specified(spec, hash, image.as_ref().map(|here| &here.image), git_sha),
        must_pull: spec.replica.image.is_some() && image.is_none(),
        image,
        systemd: host.systemd(),
        program: unseen.map_or_else(|| host.runnable(incumbent), Err),
        wanted_names: host.names(),
        slots,
    };
    let replica = |name: &SlotName| Some((name.clone(), planner::replica_in(name, spec, &seen)?));
    let replicas = spec.slots.keys().filter_map(replica).collect();
    Ok((seen, replicas))
}

/// Who listens on a port, and how it answers: that it may where nobody listens, if a packet filter forwards it.
///
/// # Errors
/// If that cannot be seen.
pub async fn met<H: Host>(host: &H, port: Port) -> Result<(Option<Found>, Answer), Failure> {
    let (found, answer) = (host.find(port).await?, host.ask(port).await);
    match found {
        // It may have come up between the two looks.
        None if answer.is_a_replicas() => Ok((host.find(port).await?, answer)),
        found => Ok((found, answer)),
    }
}

/// The addresses at which what was met on a port listens, if 127.0.0.1, where it was asked, is surely none of them.
pub fn beside_loopback<H: Host>(
    host: &H,
    port: Port,
    (found, answer): (Option<&Found>, &Answer),
) -> BTreeSet<IpAddr> {
    const ASKED: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    if found.is_none() || *answer != Answer::Refused {
        return BTreeSet::new();
    }
    let at = host.addresses(port);
    if ASKED.iter().any(|asked| at.contains(asked)) { BTreeSet::new() } else { at }
}

/// Why a slot cannot be claimed: of each whose port or GPU another service has.
async fn claimed<H: Host>(
    (host, dir): (&H, &ServiceDir),
    spec: &SwapSpec,
) -> BTreeMap<SlotName, Failure> {
    let mut claimed = BTreeMap::new();
    for (name, slot) in &spec.slots {
        let gpus = names_of_gpus((host, dir), slot).await;
        if let Err(error) = dir.check_claim(slot, &gpus) {
            claimed.insert(name.clone(), error.into());
        }
    }
    claimed
}

/// The GPUs by all their names, where other services' claims need them; none elsewhere.
pub(super) async fn names_of_gpus<H: Host>((host, dir): (&H, &ServiceDir), slot: &Slot) -> Gpus {
    if dir.needs_names(slot) { host.gpus().await } else { Gpus::default() }
}

/// A keyed hash of the values that the replica gets.
pub(super) fn secrets_hash(dir: &ServiceDir, asked: &Asked) -> Result<String, Failure> {
    let names = &asked.spec.replica.secret_env;
    let secrets = asked.secrets.0.iter().filter(|(name, _)| names.contains(name));
    let secrets = secrets.map(|(name, value)| (name.clone(), value.clone()));
    Ok(dir.keyed_hash(&Secrets(secrets.collect()))?)
}

impl World {
    /// What a new replica takes over from what serves. A container's user, home and folder are not this machine's.
    ///
    /// # Errors
    /// If it is another user's, or nobody knows the specification's user.
    pub fn inherited<H: Host>(&self, host: &H, spec: &SwapSpec) -> Result<Inherited, Failure> {
        let serves = planner::serving_slot(spec, self.seen.nginx_port).ok();
        let found = serves.and_then(|slot| self.seen.slots.get(slot)?.found.as_ref());
        let process = found.filter(|found| !matches!(found.keeper, Keeper::Docker(_)));
        host.inherited(process.map(|found| found.main))
    }

    /// The world as `status` tells it.
    pub async fn report<H: Host>(&self, host: &H, dir: &ServiceDir, asked: &Asked) -> StatusReport {
        let astray = confirm_route(host, &asked.spec, self).await.err();
        let traffic = (Some(self.seen.nginx_port), astray);
        report((host, dir), asked, (&self.seen, &self.replicas), traffic).await
    }
}

/// What `status` can tell where nginx cannot be asked.
///
/// # Errors
/// If a port or the state cannot be read.
pub async fn report_unseen<H: Host>(
    host: &H,
    dir: &ServiceDir,
    asked: &Asked,
) -> Result<StatusReport, Failure> {
    let hash = secrets_hash(dir, asked)?;
    let (seen, replicas) = look_at_slots((host, dir), asked, (&hash, None), None).await?;
    Ok(report((host, dir), asked, (&seen, &replicas), (None, None)).await)
}

/// What is seen, beside who is at work and what is on record. Of nginx: the port that it names, and why requests are not seen to go
/// there.
async fn report<H: Host>(
    (host, dir): (&H, &ServiceDir),
    asked: &Asked,
    (seen, replicas): (&Observed, &BTreeMap<SlotName, Replica>),
    (nginx_port, astray): (Option<Port>, Option<Failure>),
) -> StatusReport {
    let state = &seen.state;
    let underway = Underway::of(dir);
    let mut slots = Vec::new();
    for (name, slot) in &asked.spec.slots {
        let occupant = seen.slots.get(name);
        let found = occupant.and_then(|occupant| occupant.found.as_ref());
        let candidate = underway.as_ref().and_then(|it| it.candidate_in(host, name, found));
        let serves = Some(slot.port) == nginx_port;
        let is_empty = occupant.is_none_or(|it| it.found.is_none() && !it.forwarded);
        let kept = planner::kept_warm(name, state).filter(|_| is_empty && !serves);
        let replica = candidate.or_else(|| replicas.get(name)).or(kept);
        let role = match replica {
            None if occupant.is_some_and(|occupant| occupant.forwarded) => "unknown",
            None if serves => "down",
            None => "free",
            Some(_) if serves && found.is_some() && astray.is_none() => "serving",
            Some(_) if candidate.is_some() => "candidate",
            Some(_) if serves => "unknown",
            Some(_) if kept.is_some() || planner::is_retained(name, seen) => "retained",
            Some(_) if underway.as_ref().is_some_and(|it| it.is_incumbents(name)) => "incumbent",
            Some(_) => "unknown",
        };
        slots.push(SlotReport {
            slot: name.clone(),
            port: slot.port,
            role: role.to_owned(),
            revision: replica.map(|replica| replica.revision.clone()),
            ready: occupant.is_some_and(|occupant| occupant.ready),
            in_flight: if found.is_some() { host.in_flight(slot.port).await.ok() } else { None },
        });
    }
    let holder = Lease::holder(&dir.root());
    StatusReport {
        service: asked.spec.service.clone(),
        nginx_port,
        astray,
        slots,
        step: holder.as_ref().and_then(|holder| step_of(dir, holder.works_on())),
        unfinished: if holder.is_none() {
            let newest = unfinished_swaps(dir).into_iter().next();
            newest.map(|unfinished| (unfinished.swap, unfinished.found))
        } else {
            None
        },
        holder,
        agent: None,
        waiting: waiting::all(dir),
        serving_swap: state.serving_swap.clone(),
        rollback_until: state
            .retained
            .as_ref()
            .filter(|retained| Some(&retained.swap) == state.serving_swap.as_ref())
            .map(|retained| retained.until)
            .filter(|until| *until > host.now()),
        overdue: overdue(dir, state, host.now()),
        history: state.history.clone(),
    }
}

/// Why what a swap has left is still there although its time is over, by its journal.
fn overdue(dir: &ServiceDir, state: &ServiceState, now: Timestamp) -> Option<Failure> {
    let retained = state.retained.as_ref().filter(|retained| retained.until <= now)?;
    let records = Journal::read(&dir.swap(&retained.swap)).ok()?;
    records.into_iter().rev().find_map(|record| match record.kind {
        RecordKind::Failed { failure, .. } => Some(failure),
        _ => None,
    })
}

/// The step that a swap is in, by its journal.
fn step_of(dir: &ServiceDir, swap: &SwapId) -> Option<String> {
    let folder = dir.swap(swap);
    let (status, plan) = (Journal::look(&folder).ok()?, Journal::plan(&folder)?);
    let step = status.steps.iter().position(|step| *step == StepStatus::Started)?;
    let planned = plan.all_steps().nth(step)?;
    Some(format!("{}: {}", planned.step, planned.does))
}

/// A swap that is not at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The swap.
    pub swap: SwapId,
    /// What its journal calls for, or why nobody can tell here.
    pub recovery: Result<Recovery, Failure>,
    /// What is found of it, one line for people.
    pub found: String,
}

impl Unfinished {
    /// Whether a person has to do something first: it is stuck, or its journal is not understood.
    pub fn needs_a_person(&self) -> bool {
        matches!(self.recovery, Ok(Recovery::Stuck) | Err(_))
    }
}

/// The swaps that are not at their end, newest first. Where nobody holds the lease, nobody works on them. The newest that has
/// begun is one of them too where its journal is not understood and tells of no end; over an older one others have ended since.
pub fn unfinished_swaps(dir: &ServiceDir) -> Vec<Unfinished> {
    let begun = dir.swaps().into_iter().filter(|swap| Journal::has_begun(&dir.swap(swap)));
    let unfinished = |(age, swap): (usize, SwapId)| {
        let folder = dir.swap(&swap);
        let (recovery, found) = match (Journal::look(&folder), Journal::plan(&folder)) {
            (Ok(status), Some(plan)) => {
                (Ok(recovery::decide(&status)), recovery::found(&status, &plan))
            }
            (Err(error), _) if age == 0 && !Journal::is_at_its_end(&folder) => {
                let failure = error.to_failure();
                let found = format!("what is left of it is not known: {failure}");
                (Err(failure), found)
            }
            _ => return None,
        };
        (recovery != Ok(Recovery::Finished)).then_some(Unfinished { swap, recovery, found })
    };
    begun.enumerate().filter_map(unfinished).collect()
}
