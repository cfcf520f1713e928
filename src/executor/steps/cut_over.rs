//! `cut_over`: points the upstream at a slot and proves it; undo: the `server` lines as they were, the same proof.

use std::time::Duration;

use super::drain::{self, Idle, Uncounted, Watched};
use super::give_back::{Returned, give_back};
use super::{Acted, Undone};
use crate::executor::context::{Context, Cutover};
use crate::executor::route::{Presence, confirm_way, identity, is_astray, presence};
use crate::executor::running::Running;
use crate::host::engine::Answer;
use crate::host::nginx::{Expectation, Proof, Reloaded};
use crate::host::process::{redact, user_name};
use crate::host::runtime::Boot;
use crate::host::{Host, Unloaded};
use crate::model::event::EventKind;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{Port, ProcessId, SlotName};
use crate::model::plan::Side;
use crate::model::record::{Done, Record, Undo, UpstreamImage};
use crate::model::replica::{Found, Keeper};
use crate::swap::nginx_conf::port_of;

/// nginx lets both generations accept for 100 ms; a worker that takes longer is the drain's business.
const OVERLAP_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at the workers' titles, which no event announces.
const OVERLAP_LOOK: Duration = Duration::from_millis(5);
/// Between two looks whether what served before is there again; loading takes it far longer.
const INCUMBENT_LOOK: Duration = Duration::from_millis(250);

pub(super) async fn prepare<H: Host>(
    cx: &Context<'_, H>,
    from: &SlotName,
    to: &SlotName,
) -> Result<Undo, Failure> {
    // A restart or an upgrade of nginx is waited for there.
    let (image, master) = cx.unless_aborted(cx.host.upstream_image(cx.slot(to).port)).await?;
    let planned = cx.slot(from).port;
    for server in &image.before {
        let named = port_of(server).map_err(|error| error.to_failure())?;
        if named != planned {
            return Err(Failure::new(format!(
                "somebody else changed upstream {} since the plan was made: it names port {named}, not port {planned} of slot {from}",
                cx.spec().nginx.upstream
            ))
            .hint("nothing was overwritten; run the swap again from what is there"));
        }
    }
    for server in &image.after {
        cx.unless_aborted(confirm_way(cx, to, (master, server))).await?;
    }
    let keeper = &cx.plan.candidate.keeper;
    let unbooted = (!cx.host.booted(keeper).await?).then(|| keeper.clone());
    let now = cx.unless_aborted(Running::seen(master).workers(cx.host)).await?;
    Ok(Undo::Upstream { image, unbooted, workers: [now.old_workers, now.new_workers].concat() })
}

/// Another agent may have begun it: nginx's file names the candidate then, and whether that is loaded nobody knows.
pub(super) async fn act<H: Host>(
    cx: &Context<'_, H>,
    (from, to): (&SlotName, &SlotName),
    undo: &Undo,
    records: &[Record],
) -> Result<Acted, Failure> {
    let Undo::Upstream { image, unbooted, .. } = undo else {
        return Err(Failure::new("cut_over has no image of the upstream"));
    };
    let (old, new) = (cx.slot(from).port, cx.slot(to).port);
    // Before the reload, while each port still answers for itself.
    let identity = cx.unless_aborted(async { Ok(identity(cx.host, new, old).await) }).await?;
    // Another service's reload in between would make its new workers look like ours.
    let _lock = cx.unless_aborted(cx.lock_host()).await?;
    // Only now: a reload of another service's may have taken its time.
    cx.unless_aborted(confirm_ready(cx, to, records)).await?;
    // Before nginx's file names the candidate: whenever the power fails, a boot starts what it points at.
    if let Some(keeper) = unbooted {
        cx.host.on_boot(keeper, Boot::Starts).await?;
    }
    let reloaded = cx.host.load(image).await.map_err(|unloaded| {
        if matches!(unloaded, Unloaded::Perhaps(_)) {
            cx.note(Cutover::Unknown);
        }
        Failure::from(unloaded)
    })?;
    let mut old_workers = reloaded.old_workers.clone();
    // Workers from before another agent's may have come with the cutover.
    if cx.never_loaded() {
        cx.note(Cutover::Loaded(old_workers.clone()));
    }
    let expectation = Expectation { candidate: new, incumbent: old, identity };
    let (proof, retiring) = arrive(cx, &expectation, &reloaded).await?;
    cx.passed("route", proof.to_string());
    old_workers
        .extend(retiring.into_iter().filter(|worker| !reloaded.old_workers.contains(worker)));
    Ok(Acted { done: Done::CutOver { old_workers }, detail: proof.to_string() })
}

/// Proves that whoever asks from now on meets the candidate. Gives the workers that are shutting down then: a reload of
/// somebody else's just before ours may have left some of the old lines that were not there yet.
async fn arrive<H: Host>(
    cx: &Context<'_, H>,
    expectation: &Expectation,
    reloaded: &Reloaded,
) -> Result<(Proof, Vec<ProcessId>), Failure> {
    let mut reloaded = reloaded.clone();
    let mut running = Running::seen(reloaded.master);
    loop {
        let proof = cx.unless_aborted(cx.host.prove(expectation, &reloaded)).await?;
        one_generation(cx, &reloaded.old_workers, expectation.incumbent).await;
        let now = cx.unless_aborted(running.workers(cx.host)).await?;
        if now.master == reloaded.master {
            return Ok((proof, now.old_workers));
        }
        reloaded.master = now.master;
    }
}

/// Whether the candidate is ready still. An older one may want a key that nobody has; and where it alone is left, nothing is
/// better than it.
async fn confirm_ready<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    records: &[Record],
) -> Result<(), Failure> {
    let is_new = || {
        let candidate = cx.candidate(records);
        candidate.is_some_and(|candidate| candidate.swap.as_ref() == Some(&cx.swap))
    };
    match cx.host.ask(cx.slot(slot).port).await {
        Answer::Ready(_) => Ok(()),
        Answer::Locked if cx.goes_forward() || !is_new() => Ok(()),
        Answer::Locked | Answer::Refused | Answer::Unwell(_) => {
            let text = format!("the replica in slot {slot} does not answer as ready any more");
            Err(Failure::new(text))
        }
    }
}

/// Waits until no worker from before takes new connections, so that whoever asks from now on meets the candidate.
pub(super) async fn one_generation<H: Host>(cx: &Context<'_, H>, old: &[ProcessId], port: Port) {
    let limit = cx.host.now() + OVERLAP_LIMIT;
    let accepts = || cx.host.workers_left(old, port).iter().any(|worker| !worker.shutting_down);
    while accepts() && cx.host.now() < limit {
        cx.host.pause(OVERLAP_LOOK).await;
    }
}

pub(super) async fn undo<H: Host>(
    cx: &Context<'_, H>,
    (from, to): (&SlotName, &SlotName),
    image: &UpstreamImage,
    unbooted: Option<&Keeper>,
) -> Result<Undone, Failure> {
    await_incumbent(cx, (from, to)).await?;
    let returned = give_back(cx, (from, to), image).await?;
    // Only now: until nginx's file names the incumbent again, a boot needs the candidate.
    if let Some(keeper) = unbooted
        && let Err(failure) = cx.host.on_boot(keeper, Boot::Leaves).await
    {
        // Whoever stops the candidate tries again, and must not fail.
        cx.tell(EventKind::Warning { text: failure.to_string() });
    }
    let (undone, old_workers) = match returned {
        Some(Returned { proof, old_workers }) => {
            (Undone::TrafficReturned(proof), cx.since_cutover(&old_workers))
        }
        None => {
            let seen = "the upstream is as it was, and nginx has nothing else loaded".to_owned();
            (Undone::Quietly(seen), cx.retiring_since_cutover().await)
        }
    };
    if !cx.never_loaded() {
        drained(cx, to, &old_workers).await;
    }
    Ok(undone)
}

/// Requests that the candidate got in the meantime end here before anybody stops it: another agent may have brought traffic back,
/// and have died while it waited for them.
async fn drained<H: Host>(cx: &Context<'_, H>, to: &SlotName, old_workers: &[ProcessId]) {
    cx.note_drains();
    let (port, since) = (cx.slot(to).port, cx.drains_since());
    let (text, workers) = match cx.host.find(port).await {
        Ok(None) => return,
        Ok(Some(Found { main, .. })) => {
            let watched = Watched { port, main, old_workers, since, uncounted: Uncounted::Some };
            let limit = since + cx.spec().drain.timeout;
            match drain::until_idle(cx, &watched, limit).await {
                Idle::Yes => return,
                Idle::No(left) => (left.failure(to).message, left.workers()),
            }
        }
        Err(failure) => (failure.to_string(), old_workers.to_vec()),
    };
    // Traffic is back, and that is what counts: whoever stops the candidate looks again, and decides what to do about the rest.
    cx.tell(EventKind::Warning { text });
    if let Err(failure) = keep_known(cx, to, workers) {
        cx.tell(EventKind::Warning { text: failure.to_string() });
    }
}

/// A candidate that was kept warm stays so: whoever retires it has to know the workers that came with this cutover.
fn keep_known<H: Host>(
    cx: &Context<'_, H>,
    to: &SlotName,
    mut workers: Vec<ProcessId>,
) -> Result<(), Failure> {
    let mut state = cx.dir.load()?;
    let Some(retained) = state.retained.as_mut().filter(|it| &it.replica.slot == to) else {
        return Ok(());
    };
    workers.retain(|worker| !retained.old_workers.contains(worker));
    retained.old_workers.extend(workers);
    Ok(cx.dir.save(&state)?)
}

/// How a person has what served before again.
pub(super) fn start_again<H: Host>(cx: &Context<'_, H>, side: &Side) -> String {
    match cx.dir.incumbent(&cx.swap) {
        Some(was) => format!(
            "start it again as it was started, by user {}, with the environment that {} holds, and each *** as it was: \
             cd {} && {}",
            user_name(was.identity.uid),
            cx.dir.incumbent_file(&cx.swap).display(),
            shell_words::quote(&was.cwd.display().to_string()),
            shell_words::join(redact(&was.argv))
        ),
        None => format!("start {} again, on port {}", side.revision.model, side.port),
    }
}

/// While the candidate has the traffic and answers, nothing is given back to a port that nobody listens on. What served
/// before may be there again in a moment, where something starts it.
async fn await_incumbent<H: Host>(
    cx: &Context<'_, H>,
    (from, to): (&SlotName, &SlotName),
) -> Result<(), Failure> {
    let Some(side) = &cx.plan.incumbent else { return refuse_nobody(cx, (from, to)).await };
    let (old, new) = (cx.slot(from).port, cx.slot(to).port);
    let mut limit = None;
    loop {
        let seen = presence(cx.host, old).await;
        // A candidate that hangs is asked only if its answer counts: it would be waited for.
        let is_better = match seen {
            Presence::Ready => false,
            // Nothing has started a plain process again: it has too much to do, and is there.
            Presence::Unready if side.keeper.is_process() => false,
            Presence::Unready => presence(cx.host, new).await == Presence::Ready,
            Presence::Gone => presence(cx.host, new).await != Presence::Gone,
        };
        if !is_better || !is_moved(cx, (old, new)).await {
            return Ok(());
        }
        let limit = *limit.get_or_insert_with(|| cx.host.now() + cx.spec().ready.timeout);
        if side.keeper.is_process() || cx.host.now() >= limit {
            let seen = match seen {
                Presence::Gone => format!("nobody listens on port {old} of slot {from} any more"),
                _ => format!("what listens on port {old} of slot {from} has not become ready"),
            };
            return Err(Failure::new(format!(
                "{seen}, where {} served, and {} in slot {to} answers: traffic stays there",
                side.revision.model, cx.plan.candidate.revision.model
            ))
            .hint(start_again(cx, side))
            .hint(format!(
                "if it cannot be had back, `model-swap repair` as it is ends the swap with {}",
                cx.plan.candidate.revision.model
            )));
        }
        cx.host.pause(INCUMBENT_LOOK).await;
    }
}

/// Where nobody served before, nothing is given back to him while the candidate has the traffic and answers, unless a person
/// wants that.
async fn refuse_nobody<H: Host>(
    cx: &Context<'_, H>,
    (from, to): (&SlotName, &SlotName),
) -> Result<(), Failure> {
    let (old, new) = (cx.slot(from).port, cx.slot(to).port);
    // What was never proven to have the traffic is no better than nobody.
    if !cx.has_arrived() || cx.order().is_some() {
        return Ok(());
    }
    if presence(cx.host, new).await != Presence::Ready || !is_moved(cx, (old, new)).await {
        return Ok(());
    }
    let model = &cx.plan.candidate.revision.model;
    Err(Failure::new(format!(
        "nobody served before, and {model} in slot {to} answers: traffic stays there"
    ))
    .hint(format!(
        "`model-swap repair` as it is ends the swap with {model}; if that shall not serve, stop what listens on port {new} first"
    )))
}

/// Whether traffic may be at the candidate.
async fn is_moved<H: Host>(cx: &Context<'_, H>, (old, new): (Port, Port)) -> bool {
    let named = cx.host.upstream().await.map_or(new, |view| view.port);
    // What nginx is known never to have loaded nobody has to look for.
    named == new || (!cx.never_loaded() && is_astray(cx.host, new, old).await)
}
