//! Where requests go, proven on the running nginx: the file on disk may say otherwise.

use std::time::Duration;

use super::context::{Context, serves_from};
use super::observe::World;
use super::running::Running;
use crate::config::draft::ELSEWHERE;
use crate::host::Host;
use crate::host::engine::Answer;
use crate::host::nginx::{Expectation, Identity, UpstreamView};
use crate::model::failure::Failure;
use crate::model::ids::{Port, ProcessId, SlotName};
use crate::model::plan::{Plan, Side};
use crate::model::spec::{Slot, SwapSpec};
use crate::model::step::Step;
use crate::swap::planner::LOOPBACK_WAY;

/// Bound on the replicas' answers where traffic waits to come back: of GitHub's ten seconds for a job that is cancelled
/// the proof needs some as well.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Whether the replica on a port is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is ready, or wants a key that nobody has.
    Ready,
    /// Somebody listens, and does not answer as a ready replica does: it loads, or has too much to do.
    Unready,
    /// Nobody listens, on any address.
    Gone,
}

/// Looks whether the replica on a port is there.
pub async fn presence<H: Host>(host: &H, port: Port) -> Presence {
    match host.ask(port).await {
        // Where the kernel forwards to a container nobody listens: silence alone tells nothing.
        Answer::Ready(_) | Answer::Locked => Presence::Ready,
        // 127.0.0.1 is asked, and it may be there on another address.
        Answer::Refused | Answer::Unwell(_) if host.is_silent(port) => Presence::Gone,
        Answer::Refused | Answer::Unwell(_) => Presence::Unready,
    }
}

/// What tells the replica on `expected` from the one on `other` in an answer through nginx, if anything does.
pub(super) async fn identity<H: Host>(host: &H, expected: Port, other: Port) -> Option<Identity> {
    let Answer::Ready(mine) = host.ask(expected).await else { return None };
    let root = mine.root()?.to_owned();
    let theirs = match host.ask(other).await {
        Answer::Ready(theirs) => theirs,
        Answer::Refused => return Some(Identity::Root(root)),
        // It answers, and may well be of the same root.
        Answer::Locked | Answer::Unwell(_) => return None,
    };
    if theirs.root() != Some(root.as_str()) {
        return Some(Identity::Root(root));
    }
    let name = mine.name()?.to_owned();
    let fingerprint = host.fingerprint(expected, &name).await?;
    let differs = host.fingerprint(other, theirs.name()?).await.as_ref() != Some(&fingerprint);
    differs.then_some(Identity::Fingerprint { fingerprint, served_model: name })
}

/// The same, where traffic may wait to come back: whoever does not answer soon is told by nginx's sockets instead.
pub(super) async fn identity_at_once<H: Host>(
    host: &H,
    expected: Port,
    other: Port,
) -> Option<Identity> {
    tokio::select! {
        biased;
        identity = identity(host, expected, other) => identity,
        () = host.pause(AT_ONCE) => None,
    }
}

/// Proves that new requests go where the upstream's file says and not to `other`, as nginx has it loaded now.
///
/// A swap begins so: it drains and retires by what nginx's file says, and the proof of its cutover will need the same
/// probe. A probe that tells nothing is found out before a model is loaded for twenty minutes.
///
/// # Errors
/// If they go elsewhere, or nothing tells.
pub async fn prove_route<H: Host>(
    host: &H,
    spec: &SwapSpec,
    upstream: &UpstreamView,
    other: Port,
) -> Result<(), Failure> {
    let serving = upstream.port;
    let identity = identity_at_once(host, serving, other).await;
    let now = Running::seen(upstream.master).workers(host).await?;
    let expectation = Expectation { candidate: serving, incumbent: other, identity };
    match host.prove(&expectation, &now).await {
        Ok(_) => Ok(()),
        Err(failure) => Err(Failure {
            message: format!(
                "{} names port {serving}, and new requests are not seen to go there",
                spec.nginx.config.display()
            ),
            causes: [vec![failure.message], failure.causes].concat(),
            ..failure
        }
        .hint("if the file was changed without a reload, reload nginx (nginx -s reload) and look again")
        .hint(ELSEWHERE)),
    }
}

/// Before nginx is told: at the address that its new line names, from where nginx is, the candidate must answer as it does
/// here. A proof that fails later costs requests, and one by sockets does not need an answer.
///
/// # Errors
/// If somebody else answers there, or nobody.
pub(super) async fn confirm_way<H: Host>(
    cx: &Context<'_, H>,
    to: &SlotName,
    (master, server): (ProcessId, &str),
) -> Result<(), Failure> {
    // Where the candidate alone is left, nothing is better than what it may answer.
    if cx.goes_forward() {
        return Ok(());
    }
    let port = cx.slot(to).port;
    let seen = match cx.host.ask_as_nginx(master, server).await? {
        None | Some(Answer::Locked) => return Ok(()),
        Some(Answer::Ready(theirs)) => match cx.host.ask(port).await {
            Answer::Ready(own) if own.root() != theirs.root() => format!("{theirs} answers there"),
            _ => return Ok(()),
        },
        Some(Answer::Refused) => "nobody listens there".to_owned(),
        Some(Answer::Unwell(why)) => why,
    };
    Err(Failure::new(format!(
        "nginx would not reach the replica in slot {to}, which answers on 127.0.0.1:{port}, by `{server}`: {seen}"
    ))
    .hint(format!(
        "have it listen at that address (--host in replica.command), and let a firewall pass port {port} as it does the other slot's"
    ))
    .hint(LOOPBACK_WAY))
}

/// Whether new requests are seen to go to `port` although nginx's file names `named`: whoever put an old file back did not reload
/// it. What is not seen may be so all the same.
pub(super) async fn is_astray<H: Host>(host: &H, port: Port, named: Port) -> bool {
    // On the heap: it is seldom needed, and large beside what it would make larger.
    let seen = Box::pin(async {
        if presence(host, port).await == Presence::Gone {
            return false;
        }
        let Ok(view) = host.upstream().await else { return false };
        let Ok(now) = Running::seen(view.master).workers(host).await else { return false };
        let identity = identity_at_once(host, port, named).await;
        let expectation = Expectation { candidate: port, incumbent: named, identity };
        view.port == named && host.prove(&expectation, &now).await.is_ok()
    });
    seen.await
}

/// Whether nginx's file names the port that it named when the plan was made: a person may have pointed it elsewhere since.
/// What cannot be seen may be anywhere, or nowhere.
pub(super) async fn is_where_it_was<H: Host>(cx: &Context<'_, H>) -> bool {
    let before = cx.plan.steps.iter().find_map(|planned| match &planned.step {
        Step::CutOver { from, .. } => Some(cx.slot(from).port),
        _ => None,
    });
    cx.host.upstream().await.is_ok_and(|view| before.is_none_or(|port| port == view.port))
}

/// A swap drains and retires by what nginx's file says, and has nothing to do where the file names what is wanted: that
/// must be what nginx does. A flip back may be what mends it.
///
/// # Errors
/// If requests are not seen to go where nginx's file says.
pub async fn confirm_route<H: Host>(
    host: &H,
    spec: &SwapSpec,
    world: &World,
) -> Result<(), Failure> {
    let is_named = |slot: &Slot| slot.port == world.upstream.port;
    let answers = spec.slots.iter().any(|(name, slot)| {
        is_named(slot) && world.seen.slots.get(name).is_some_and(|occupant| occupant.ready)
    });
    match spec.slots.values().find(|slot| !is_named(slot)) {
        Some(other) if answers => prove_route(host, spec, &world.upstream, other.port).await,
        // What does not answer proves nothing, and is why somebody swaps.
        _ => Ok(()),
    }
}

/// Where new requests go now, one fragment, and the side that serves them if that is proven: after an undo that failed
/// neither plan nor journal can say.
pub async fn traffic_now<H: Host>(
    host: &H,
    spec: &SwapSpec,
    plan: &Plan,
) -> (String, Option<Side>) {
    let upstream = &spec.nginx.upstream;
    let view = match host.upstream().await {
        Ok(view) => view,
        Err(why) => {
            return (format!("nobody can tell where upstream {upstream} points: {why}"), None);
        }
    };
    let named = format!("upstream {upstream} names port {}", view.port);
    let sides = [plan.incumbent.as_ref(), Some(&plan.candidate)].into_iter().flatten();
    let serves = sides.into_iter().find(|side| side.port == view.port);
    let other = spec.slots.values().find(|slot| slot.port != view.port);
    let (Some(side), Some(other)) = (serves, other) else {
        return (format!("{named}, where neither the old nor the new model is"), None);
    };
    match prove_route(host, spec, &view, other.port).await {
        Ok(()) => (serves_from(side), Some(side.clone())),
        Err(_) => (
            format!("{named} ({}), and requests are not seen to go there", side.revision.model),
            None,
        ),
    }
}
