//! The slots and who is in them, the way there through nginx, and what the next replica needs: program, GPUs, runtime.

use std::collections::BTreeMap;

use super::{containers, size};
use crate::agent::{brought_back, shared_memory};
use crate::config::draft::ELSEWHERE;
use crate::executor::{Underway, beside_loopback, met, prove_route};
use crate::host::engine::Answer;
use crate::host::gpu::{self, GpuError, Gpus, Tenant};
use crate::host::nginx::UpstreamView;
use crate::host::process::{Inherited, reaches};
use crate::host::{Host, SystemHost};
use crate::model::checkup::Finding;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SlotName;
use crate::model::replica::{Found, Keeper, Systemd};
use crate::model::spec::{Gpu, Runtime, Slot, SwapSpec};
use crate::model::wire::Asked;
use crate::service_dir::ServiceDir;
use crate::swap::planner;

const ROUTE: &str = "probe through nginx";
const PROGRAM: &str = "engine program";
const COMPANY: &str = "end of what serves";
const UNIT: &str = "unit that serves";
const RUNTIME: &str = "runtime";
const GPUS: &str = "GPUs";

const MIB: u64 = 1 << 20;

/// Why nothing is said of what depends on the model that serves: its process, or its user and variables.
pub(super) const UNKNOWN: &str = "not looked at: it is not known what serves";

/// Who listens on a slot's port, and how they answer.
struct Occupant {
    found: Found,
    answer: Answer,
}

pub(super) async fn look(
    (host, dir): (&SystemHost, &ServiceDir),
    asked: &Asked,
    upstream: Option<&UpstreamView>,
    underway: Option<&Underway>,
) -> Vec<Finding> {
    let spec = &asked.spec;
    let gpus = match spec.slots.values().all(|slot| slot.gpus.is_empty()) {
        true => None,
        false => Some(gpu::look().await),
    };
    let told = gpus.as_ref().and_then(|gpus| gpus.as_ref().ok());
    let serving = upstream
        .and_then(|view| spec.slots.iter().find(|(_, slot)| slot.port == view.port))
        .map(|(name, _)| name);
    let (mut findings, occupants) =
        slots((host, dir), spec, (serving, underway), told.unwrap_or(&Gpus::default())).await;
    findings.push(match (route(host, spec, upstream, &occupants).await, underway) {
        // What was looked at may be moved this moment.
        (found, Some(_)) if found.is_failure() => {
            Finding::unseen(ROUTE, format!("a swap has no outcome yet: {}", found.seen))
        }
        (found, _) => found,
    });
    let occupant = serving.and_then(|name| occupants.get(name));
    match (&spec.replica.image, serving) {
        // Its program only the image knows.
        (Some(_), _) => findings.extend(containers::look(host, spec).await),
        (None, Some(_)) => {
            let inherited = host.inherited(occupant.map(|occupant| occupant.found.main));
            findings.push(program(PROGRAM, &spec.replica.command, spec, &inherited));
            if host.systemd() != Systemd::Absent
                && let Ok(inherited) = &inherited
            {
                findings.extend(shared_memory::finding(spec, inherited).await);
            }
        }
        // It is looked for with the PATH of what serves.
        (None, None) => findings.push(Finding::unseen(PROGRAM, UNKNOWN)),
    }
    if let Some(occupant) = occupant {
        findings.extend(containers::incumbent(&occupant.found.keeper).await);
        let unit = brought_back::look(&occupant.found.keeper).await;
        let company = host.stops_alone(&occupant.found).await.err();
        findings.extend(company.map(|failure| Finding::fail(COMPANY, failure)));
        findings.extend(unit.map(|unit| Finding::warn(UNIT, unit.seen(), unit.mend())));
    }
    findings.push(runtime(host, spec));
    let candidate = underway.and_then(|it| it.candidate.as_ref());
    let loads = candidate.and_then(|replica| host.tree(replica.main).ok()).unwrap_or_default();
    let found = occupants.values().flat_map(|occupant| &occupant.found.tree);
    let own: Vec<i32> = found.chain(&loads).map(|process| process.pid).collect();
    findings.extend(gpu_findings(spec, gpus, &own));
    findings
}

/// Each slot, and who is in it.
async fn slots<'a>(
    (host, dir): (&SystemHost, &ServiceDir),
    spec: &'a SwapSpec,
    (serving, underway): (Option<&SlotName>, Option<&Underway>),
    gpus: &Gpus,
) -> (Vec<Finding>, BTreeMap<&'a SlotName, Occupant>) {
    let (mut findings, mut occupants) = (Vec::new(), BTreeMap::new());
    for (name, slot) in &spec.slots {
        let seen = match met(host, slot.port).await {
            Ok((None, answer)) if answer.is_a_replicas() => {
                Err(planner::forwarded(name, slot.port))
            }
            seen => seen,
        };
        let (found, answer) = match seen {
            Ok(seen) => seen,
            Err(failure) => {
                findings.push(Finding::fail(place(name, slot), failure));
                continue;
            }
        };
        let candidate = underway.and_then(|it| it.candidate_in(host, name, found.as_ref()));
        occupants.extend(found.map(|found| (name, Occupant { found, answer })));
        let occupant = occupants.get(name);
        let role = match (serving, underway) {
            (Some(serving), _) if serving == name => Role::Serving,
            _ if candidate.is_some() => Role::Candidate,
            (Some(_), Some(it)) if it.is_incumbents(name) => Role::Incumbent,
            _ => Role::of((name, serving), dir, occupant),
        };
        let beside = occupant
            .map(|it| (&it.found, beside_loopback(host, slot.port, (Some(&it.found), &it.answer))))
            .filter(|(_, beside)| matches!(role, Role::Serving) && !beside.is_empty());
        findings.push(match (dir.check_claim(slot, gpus), beside) {
            (Ok(()), Some((found, beside))) => Finding::fail(
                place(name, slot),
                planner::unasked((name, slot.port), found, &beside),
            ),
            (Ok(()), None) => slot_finding((name, slot), &role, occupant),
            (Err(claimed), _) => Finding::fail(place(name, slot), claimed),
        });
    }
    (findings, occupants)
}

/// What a slot is for now.
enum Role {
    /// nginx sends requests there, as far as its file says.
    Serving,
    /// This service's own, from an earlier swap; and by what it is kept.
    Kept(Keeper),
    /// The next replica starts here.
    Free,
    /// The new model of a swap that has no outcome yet; it may listen nowhere.
    Candidate,
    /// What served until such a swap moved traffic.
    Incumbent,
    /// No slot is known to serve, so it may be this one.
    Unknown,
}

impl Role {
    /// The role of a slot that does not serve, and has no part in a swap without an outcome.
    fn of(
        (name, serving): (&SlotName, Option<&SlotName>),
        dir: &ServiceDir,
        occupant: Option<&Occupant>,
    ) -> Self {
        let state = dir.load().unwrap_or_default();
        let kept = match occupant {
            Some(occupant) => planner::recorded(name, &occupant.found, &state),
            None => planner::kept_warm(name, &state).cloned(),
        };
        match (kept, serving) {
            (Some(replica), _) => Self::Kept(replica.keeper),
            (None, Some(_)) => Self::Free,
            (None, None) => Self::Unknown,
        }
    }
}

fn place(name: &SlotName, slot: &Slot) -> String {
    format!("slot {name}, port {}", slot.port)
}

fn slot_finding(
    (name, slot): (&SlotName, &Slot),
    role: &Role,
    occupant: Option<&Occupant>,
) -> Finding {
    let what = place(name, slot);
    let Some(Occupant { found, answer }) = occupant else {
        return match role {
            Role::Serving => Finding::warn(
                what,
                "nginx sends requests there, and nobody listens: the service is down",
                "a swap brings a model into service in the other slot",
            ),
            Role::Candidate => Finding::ok(what, "the new model of the unfinished swap loads"),
            Role::Kept(keeper) => Finding::warn(
                what,
                format!(
                    "kept for a rollback by {keeper}, and nobody listens: it loads, or has ended"
                ),
                "wait until it is ready: before that a rollback starts it anew; a swap stops it first, whatever it does",
            ),
            Role::Incumbent | Role::Free | Role::Unknown => Finding::ok(what, "free"),
        };
    };
    let who = format!("process {} ({})", found.main, found.argv.join(" "));
    match (role, answer) {
        (Role::Serving, Answer::Ready(models)) => {
            Finding::ok(what, format!("serves {models}: {who}"))
        }
        (Role::Kept(_), Answer::Ready(models)) => {
            Finding::ok(what, format!("kept for a rollback, {models}: {who}"))
        }
        (Role::Candidate, _) => {
            Finding::ok(what, format!("the new model of the unfinished swap: {who}"))
        }
        (Role::Incumbent, Answer::Ready(models)) => {
            Finding::ok(what, format!("served until the unfinished swap, {models}: {who}"))
        }
        (Role::Serving | Role::Incumbent | Role::Kept(_), answer) => Finding::warn(
            what,
            format!("{who} {}", unready(answer)),
            "look at its log; a swap brings another replica into service",
        ),
        (Role::Free, _) => Finding::fail(
            what,
            Failure::new(format!("taken by {who}, which is no replica of this service"))
                .hint(format!("stop it, or give slot {name} another port")),
        ),
        (Role::Unknown, _) => Finding::unseen(what, format!("taken by {who}; {UNKNOWN}")),
    }
}

fn unready(answer: &Answer) -> String {
    match answer {
        Answer::Ready(_) => "is ready".to_owned(),
        Answer::Refused => "does not answer".to_owned(),
        Answer::Locked => {
            "wants another API key: set nginx.probe.api_key_env, and its value in the step's env"
                .to_owned()
        }
        Answer::Unwell(why) => format!("does not answer as a ready replica does: {why}"),
    }
}

/// The proof that a swap begins with.
async fn route(
    host: &SystemHost,
    spec: &SwapSpec,
    upstream: Option<&UpstreamView>,
    occupants: &BTreeMap<&SlotName, Occupant>,
) -> Finding {
    let Some(view) = upstream else {
        return Finding::unseen(ROUTE, "the upstream is not known");
    };
    let serving = spec.slots.iter().find(|(_, slot)| slot.port == view.port);
    let other = spec.slots.values().find(|slot| slot.port != view.port);
    let (Some((name, _)), Some(other)) = (serving, other) else {
        return Finding::unseen(ROUTE, "the upstream points at no slot");
    };
    let Some(Occupant { answer: Answer::Ready(models), .. }) = occupants.get(name) else {
        return Finding::unseen(ROUTE, "nothing behind nginx answers as ready");
    };
    let (url, port) = (&spec.nginx.probe.url, view.port);
    if let Err(failure) = prove_route(host, spec, view, other.port).await {
        return Finding::fail(ROUTE, failure);
    }
    let missed = match models.root() {
        Some(root) => host.nginx().missed(root).await,
        None => Ok(None),
    };
    match missed {
        Ok(None) => Finding::ok(ROUTE, format!("{url} is seen to reach port {port}")),
        Ok(Some(answer)) => Finding::warn(
            ROUTE,
            format!(
                "nginx's connections lead to port {port}, and {url} does not show its model: {answer}"
            ),
            format!(
                "correct nginx.probe: where it does not reach the model, only requests of others prove a swap; {ELSEWHERE}"
            ),
        ),
        Err(error) => Finding::fail(ROUTE, error.to_failure()),
    }
}

/// The file that a command runs, as the user and with the variables of the replica.
pub(super) fn program(
    what: &str,
    command: &[String],
    spec: &SwapSpec,
    inherited: &Result<Inherited, Failure>,
) -> Finding {
    let inherited = match inherited {
        Ok(inherited) => inherited,
        Err(failure) => return Finding::fail(what, failure.clone()),
    };
    let file = match inherited.program(command, &spec.replica.env) {
        Ok(file) => file,
        Err(error) => return Finding::fail(what, error.to_failure()),
    };
    let user = inherited.user.clone().unwrap_or_else(|| inherited.identity.uid.to_string());
    let seen = format!("{}, to run as {user}", file.display());
    match reaches(&inherited.identity, &file) {
        Ok(()) => Finding::ok(what, seen),
        Err(barrier) => Finding::warn(
            what,
            format!("{seen}, who may not pass {}", barrier.display()),
            format!("let {user} in (chmod o+x {0}), or set replica.user", barrier.display()),
        ),
    }
}

fn runtime(host: &SystemHost, spec: &SwapSpec) -> Finding {
    let systemd = match host.systemd() {
        Systemd::Absent => "systemd is not PID 1",
        Systemd::Denied => "systemd is PID 1, and the agent, which is not root, may not use it",
        Systemd::Usable => "systemd is PID 1",
    };
    match (spec.replica.runtime, host.systemd()) {
        (Runtime::Systemd, Systemd::Absent | Systemd::Denied) => Finding::fail(
            RUNTIME,
            Failure::new(format!("replica.runtime is systemd, and {systemd}"))
                .hint("write `runtime: process`, or leave it out"),
        ),
        (Runtime::Process, _) => Finding::ok(RUNTIME, "replicas are plain processes, as asked"),
        (Runtime::Docker, _) => Finding::ok(RUNTIME, "replicas are containers, as asked"),
        (Runtime::Auto | Runtime::Systemd, _) => Finding::ok(RUNTIME, systemd),
    }
}

fn gpu_findings(
    spec: &SwapSpec,
    gpus: Option<Result<Gpus, GpuError>>,
    own: &[i32],
) -> Vec<Finding> {
    let gpus = match gpus {
        None => return vec![Finding::ok(GPUS, "none is asked for")],
        Some(Ok(gpus)) => gpus,
        Some(Err(error)) => {
            let Failure { hints, .. } = error.to_failure();
            let mend = hints.into_iter().next().unwrap_or_default();
            return vec![Finding::warn(GPUS, Failure::from_error(&error).to_string(), mend)];
        }
    };
    let wanted =
        spec.slots.iter().flat_map(|(name, slot)| slot.gpus.iter().map(move |gpu| (name, gpu)));
    wanted.map(|(name, gpu)| gpu_finding(&gpus, own, (name, gpu))).collect()
}

fn gpu_finding(gpus: &Gpus, own: &[i32], (slot, gpu): (&SlotName, &Gpu)) -> Finding {
    let what = format!("GPU {gpu} of slot {slot}");
    if let Some(instead) = gpus.absence(gpu) {
        let failure = Failure::new(format!("there is no such GPU; {instead}"));
        return Finding::fail(what, failure.hint(format!("correct slots.{slot}.gpus")));
    }
    let Some(device) = gpus.device(gpu) else {
        return Finding::ok(what, "an instance of a divided GPU");
    };
    let room = match (device.free_mib, device.total_mib) {
        (Some(free), Some(total)) => {
            format!("{} of {} free", size(free * MIB), size(total * MIB))
        }
        _ => "its driver does not say how much memory is free".to_owned(),
    };
    let strangers: Vec<_> =
        gpus.tenants_of(device).filter(|tenant| !own.contains(&tenant.pid)).map(stranger).collect();
    if strangers.is_empty() {
        return Finding::ok(what, format!("{}, {room}", device.name));
    }
    Finding::warn(
        what,
        format!("{}, {room}; also used by {}", device.name, strangers.join(", ")),
        "stop what is not a replica of this service, if the next model needs its memory",
    )
}

fn stranger(tenant: &Tenant) -> String {
    match tenant.used_mib {
        Some(used) => format!("process {} ({})", tenant.pid, size(used * MIB)),
        None => format!("process {}", tenant.pid),
    }
}
