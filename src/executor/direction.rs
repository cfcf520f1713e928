//! In which direction a swap goes on whose agent is gone: back to what served before, unless nobody did, or that does not come
//! back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::context::Context;
use super::route::{Presence, presence};
use super::undo_of;
use crate::abort;
use crate::host::Host;
use crate::journal::Journal;
use crate::model::failure::Failure;
use crate::model::ids::{ProcessId, SlotName};
use crate::model::record::Undo;
use crate::model::replica::Replica;
use crate::model::step::Step;
use crate::swap::recovery;

/// Between two looks at replicas that their keepers may be starting.
const LOOK: Duration = Duration::from_secs(1);

/// What is wanted of a swap that nobody works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Its end, unless it is stuck: then nothing is tried again by itself.
    End,
    /// Its end, and that of the undo that it is stuck at: once more, or with the model that serves where what served before
    /// cannot be had back.
    Repair,
}

/// How a swap is brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As its journal says: it is unwound, unless it was promoted.
    Back,
    /// Traffic was moved, and nobody served before, or what did does not come back. One whose cutover is being undone only a person
    /// ends so.
    Forward,
}

/// Waits until it can be told, at most `ready.timeout`. After a boot the replicas come up in any order.
pub async fn direction<H: Host>(
    cx: &Context<'_, H>,
    journal: &Journal,
    wanted: Wanted,
) -> Direction {
    let is_past = recovery::is_past_cutover(journal.status(), &cx.plan);
    let turns = wanted == Wanted::Repair && recovery::undoes_cutover(journal.status(), &cx.plan);
    if !is_past && !turns {
        return Direction::Back;
    }
    let candidate = &cx.plan.candidate;
    let deadline = cx.host.now() + cx.spec().ready.timeout;
    loop {
        let is_late = cx.host.now() >= deadline;
        let before = before(cx).await;
        let comes_back = match before {
            Before::There => return Direction::Back,
            Before::Comes => !is_late,
            Before::Gone | Before::Nobody => false,
        };
        // Who gives the swap up waits for nothing: until what comes back is there, the undo leaves traffic where it is. Who repairs
        // has seen it stuck there.
        let gives_up = wanted == Wanted::End && abort::ordered(cx.dir, &cx.swap).is_some();
        if gives_up && (comes_back || before == Before::Nobody) {
            return Direction::Back;
        }
        let named = cx.host.upstream().await.ok().map(|view| view.port);
        let seen = presence(cx.host, candidate.port).await;
        if !comes_back && named == Some(candidate.port) && seen == Presence::Ready {
            return Direction::Forward;
        }
        let is_elsewhere = named.is_some_and(|port| port != candidate.port);
        // A plain process that is gone stays gone.
        let is_gone = seen == Presence::Gone && candidate.keeper.is_process();
        if !comes_back && (is_late || is_elsewhere || is_gone) {
            return Direction::Back;
        }
        cx.host.pause(LOOK).await;
    }
}

/// What has become of what served before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// It is there.
    There,
    /// Its keeper may have it there yet.
    Comes,
    /// It is gone for good.
    Gone,
    /// Nobody served.
    Nobody,
}

async fn before<H: Host>(cx: &Context<'_, H>) -> Before {
    let Some(incumbent) = &cx.plan.incumbent else { return Before::Nobody };
    match presence(cx.host, incumbent.port).await {
        Presence::Ready => Before::There,
        // It has too much to do, and is there.
        Presence::Unready if incumbent.keeper.is_process() => Before::There,
        Presence::Unready => Before::Comes,
        Presence::Gone if incumbent.keeper.restarts() => Before::Comes,
        // A plain process that is gone stays gone.
        Presence::Gone => Before::Gone,
    }
}

/// What runs in the slots of a swap that is finished: what served before, where a unit or a container may start it yet, and
/// the candidate of a rollback that was kept warm. A process that is gone leaves its slot free.
///
/// # Errors
/// If the disk refuses, or the service's state cannot be read.
pub fn replicas_left<H: Host>(
    cx: &Context<'_, H>,
    journal: &Journal,
) -> Result<BTreeMap<SlotName, Replica>, Failure> {
    let promote = cx.plan.steps.iter().position(|p| matches!(p.step, Step::Promote { .. }));
    // A promotion that was saved before its agent died has put the candidate where the incumbent was.
    let before = match promote.map(|index| undo_of(journal, index)) {
        Some(Undo::State(before)) => before,
        _ => cx.dir.load()?,
    };
    let warm = before.retained.map(|retained| retained.replica);
    let mut left: BTreeMap<_, _> = warm
        .filter(|warm| warm.slot == cx.plan.candidate.slot)
        .map(|warm| (warm.slot.clone(), warm))
        .into_iter()
        .collect();
    let Some(side) = &cx.plan.incumbent else { return Ok(left) };
    if side.keeper.is_process() {
        cx.dir.release(&side.slot)?;
        return Ok(left);
    }
    let recorded = before.serving.filter(|known| known.slot == side.slot);
    let replica = recorded.unwrap_or_else(|| Replica {
        slot: side.slot.clone(),
        port: side.port,
        main: ProcessId::GONE,
        revision: side.revision.clone(),
        swap: None,
        log: None,
        keeper: side.keeper.clone(),
        invocation: None,
    });
    left.insert(side.slot.clone(), replica);
    Ok(left)
}
