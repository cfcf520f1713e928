//! `drain`: waits until a replica that gets no new requests has nothing in flight: measured, bounded.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Acted;
use crate::executor::context::Context;
use crate::host::Host;
use crate::host::nginx::WorkerLeft;
use crate::model::event::EventKind;
use crate::model::failure::Failure;
use crate::model::ids::{Port, ProcessId, SlotName};
use crate::model::record::Retained;
use crate::model::spec::{OnTimeout, PinnedWorkers};

/// Between two looks at the engine's count; nothing announces that it changed.
const LOOK: Duration = Duration::from_millis(250);

/// Between two looks at where nginx points: a person's edit announces nothing, and a look runs nginx.
const LOOK_AT_NGINX: Duration = Duration::from_secs(5);

/// Whether a replica has nothing in flight.
#[derive(Debug)]
pub(super) enum Idle {
    /// Nothing, as measured.
    Yes,
    /// This was left at the deadline.
    No(Left),
}

/// What is in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    workers: Vec<WorkerLeft>,
    /// Requests by the engine's own count, or why it could not be read.
    requests: Result<u64, Failure>,
}

impl Left {
    fn nothing(&self) -> bool {
        self.workers.is_empty() && self.requests == Ok(0)
    }

    /// Whether it is nginx workers alone, none of which has a connection to the replica.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.requests == Ok(0) && self.workers.iter().all(|worker| worker.connections == Some(0))
    }

    /// Names everything that is left.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        match &self.requests {
            Ok(0) => {}
            Ok(1) => parts.push("1 request in the engine".to_owned()),
            Ok(count) => parts.push(format!("{count} requests in the engine")),
            Err(failure) => {
                parts.push(format!("an unknown number of requests in the engine ({failure})"))
            }
        }
        parts.extend(self.workers.iter().map(|worker| match worker.connections {
            None => format!("nginx worker {}", worker.process),
            Some(0) => format!("nginx worker {}, with no connection to the port", worker.process),
            Some(1) => format!("nginx worker {} with 1 connection to the port", worker.process),
            Some(count) => {
                format!("nginx worker {} with {count} connections to the port", worker.process)
            }
        }));
        parts.join(", ")
    }

    /// The old nginx workers among it.
    pub(super) fn workers(&self) -> Vec<ProcessId> {
        self.workers.iter().map(|worker| worker.process).collect()
    }

    pub(super) fn failure(&self, slot: &SlotName) -> Failure {
        Failure::new(format!("the replica in slot {slot} is not drained: {}", self.describe()))
            .hint("it is kept running; raise drain.timeout, or choose another drain.on_timeout")
            .hint("an old nginx worker without a connection to the port may be pinned by a websocket or an unfinished upload: see nginx.pinned_workers")
    }
}

pub(super) async fn act<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Acted, Failure> {
    let Some(retained) = cx.unless_aborted(cx.retained(slot)).await? else {
        return Ok(Acted::plainly("nothing is there any more"));
    };
    let port = retained.replica.port;
    let watched = Watched::of(&retained);
    let drain = &cx.spec().drain;
    // A swap that needs the slot gives it the whole time again; after promote the clock began at cutover.
    // Never in the future: the clock may have been set since.
    let now = cx.host.now();
    let begin = if cx.after_promote() { retained.since.min(now) } else { now };
    match while_unused(cx, slot, &watched, begin + drain.timeout).await? {
        Idle::Yes => Ok(Acted::plainly(format!(
            "nothing is in flight on port {port}, and no old nginx worker is left"
        ))),
        Idle::No(left) => match drain.on_timeout {
            OnTimeout::Cut => {
                cx.tell(EventKind::Warning {
                    text: format!("cutting what is left: {}", left.describe()),
                });
                Ok(Acted::plainly(format!("not drained: {} will be cut", left.describe())))
            }
            OnTimeout::Keep if cx.after_promote() => {
                cx.tell(EventKind::Overdue { failure: left.failure(slot) });
                while_unused(cx, slot, &watched, Timestamp::MAX).await?;
                Ok(Acted::plainly(format!(
                    "drained after its deadline: port {port} has nothing in flight"
                )))
            }
            OnTimeout::Keep | OnTimeout::Fail => Err(left.failure(slot)),
        },
    }
}

/// Returns once a retained replica has nothing in flight, however long that takes.
pub(in crate::executor) async fn await_idle<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
) -> Result<(), Failure> {
    if let Some(retained) = cx.retained(slot).await? {
        while_unused(cx, slot, &Watched::of(&retained), Timestamp::MAX).await?;
    }
    Ok(())
}

/// Whether a retained replica has nothing in flight now.
pub(in crate::executor) async fn is_idle<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
) -> Result<bool, Failure> {
    let Some(retained) = cx.retained(slot).await? else { return Ok(true) };
    let idle = until_idle(cx, &Watched::of(&retained), cx.host.now()).await;
    Ok(matches!(idle, Idle::Yes))
}

/// As [`until_idle`], for as long as nginx does not point at the replica again: then it may never be idle.
async fn while_unused<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    watched: &Watched<'_>,
    deadline: Timestamp,
) -> Result<Idle, Failure> {
    let used = async {
        loop {
            // What cannot be seen now is looked at again, and by `retire` before it stops anything.
            if let Ok(upstream) = cx.host.upstream().await
                && upstream.port == watched.port
            {
                return used_again(slot, watched.port);
            }
            cx.host.pause(LOOK_AT_NGINX).await;
        }
    };
    let idle = async {
        tokio::select! {
            biased;
            idle = until_idle(cx, watched, deadline) => Ok(idle),
            failure = used => Err(failure),
        }
    };
    cx.unless_aborted(idle).await
}

/// Why a replica is neither drained nor retired after all.
pub(super) fn used_again(slot: &SlotName, port: Port) -> Failure {
    Failure::new(format!(
        "nginx points at port {port} of slot {slot} again: what serves is not retired"
    ))
    .hint("somebody changed the upstream by hand; the next swap starts from what is there")
}

/// What an engine has in flight that does not say how many requests it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uncounted {
    /// Perhaps some: it had traffic.
    Some,
    /// None: nginx was never told of it.
    None,
}

/// A replica that gets no new requests.
#[derive(Debug)]
pub(super) struct Watched<'a> {
    /// Where it listens.
    pub(super) port: Port,
    /// The root of its process tree.
    pub(super) main: ProcessId,
    /// nginx workers that may still send it requests.
    pub(super) old_workers: &'a [ProcessId],
    /// When its traffic was taken away.
    pub(super) since: Timestamp,
    /// What it has in flight while its engine does not say.
    pub(super) uncounted: Uncounted,
}

impl<'a> Watched<'a> {
    /// A retained one.
    pub(super) fn of(retained: &'a Retained) -> Self {
        let Retained { replica, since, old_workers, .. } = retained;
        Self {
            port: replica.port,
            main: replica.main,
            old_workers,
            since: *since,
            uncounted: Uncounted::Some,
        }
    }
}

/// Waits until every old nginx worker is gone and the engine counts nothing, or until `deadline`.
pub(super) async fn until_idle<H: Host>(
    cx: &Context<'_, H>,
    watched: &Watched<'_>,
    deadline: Timestamp,
) -> Idle {
    let mut told = String::new();
    loop {
        // A dead launcher may have left the one that listens.
        if !cx.host.alive(watched.main) && !listens(cx, watched.port).await {
            return Idle::Yes;
        }
        let left = left(cx, watched).await;
        if left.nothing() {
            return Idle::Yes;
        }
        if let (Err(failure), Uncounted::None) = (&left.requests, watched.uncounted)
            && left.workers.is_empty()
        {
            cx.progress(format!("nginx never sent it a request, and it counts none: {failure}"));
            return Idle::Yes;
        }
        if cx.host.now() >= deadline {
            return Idle::No(left);
        }
        let news = left.describe();
        if news != told {
            cx.progress(format!("still in flight: {news}"));
            told = news;
        }
        // The last old worker's end is an event; the engine's count has to be looked at.
        match left.workers.first() {
            Some(worker) if left.workers.len() == 1 => {
                tokio::select! {
                    biased;
                    () = cx.host.exited(worker.process) => {}
                    () = cx.host.pause(LOOK) => {}
                }
            }
            _ => cx.host.pause(LOOK).await,
        }
    }
}

async fn listens<H: Host>(cx: &Context<'_, H>, port: Port) -> bool {
    // What cannot be seen may well be there.
    cx.host.listeners(port).await.map_or(true, |listeners| !listeners.is_empty())
}

async fn left<H: Host>(cx: &Context<'_, H>, watched: &Watched<'_>) -> Left {
    let mut workers = cx.host.workers_left(watched.old_workers, watched.port);
    if let PinnedWorkers::IgnoreAfter(limit) = cx.spec().nginx.pinned_workers
        && cx.host.now().duration_since(watched.since)
            >= SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX)
    {
        // A worker whose connections cannot be seen may hold one.
        workers.retain(|worker| worker.connections != Some(0));
    }
    Left { workers, requests: cx.host.in_flight(watched.port).await }
}
