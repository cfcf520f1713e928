//! Which way a swap goes on whose agent is gone: back to what served before, unless that does not come back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::executor::{self, Context, Presence};
use crate::host::{Host, SystemHost};
use crate::journal::Journal;
use crate::model::failure::Failure;
use crate::model::ids::{ProcessId, SlotName};
use crate::model::replica::Replica;
use crate::swap::recovery;

/// Between two looks at replicas that their keepers may be starting.
const LOOK: Duration = Duration::from_secs(1);

/// Which way a swap is brought to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As its journal says: it is unwound, unless it was promoted.
    Back,
    /// Traffic was moved, and what served before does not come back.
    Forward,
}

/// Waits until it can be told. After a boot the replicas come up in any order.
pub(super) async fn of(cx: &Context<'_, SystemHost>, journal: &Journal) -> Way {
    let is_past = recovery::is_past_cutover(journal.status(), &cx.plan);
    let Some(incumbent) = cx.plan.incumbent.as_ref().filter(|_| is_past) else { return Way::Back };
    let candidate = &cx.plan.candidate;
    let deadline = Instant::now() + cx.spec().ready.timeout;
    loop {
        let is_late = Instant::now() >= deadline;
        let comes_back = match executor::presence(cx.host, incumbent.port).await {
            Presence::Ready => return Way::Back,
            // It has too much to do, and is there.
            Presence::Unready if incumbent.keeper.is_process() => return Way::Back,
            Presence::Unready => !is_late,
            // A plain process that is gone stays gone.
            Presence::Gone => !is_late && incumbent.keeper.restarts(),
        };
        let points = cx.host.upstream().await.is_ok_and(|view| view.port == candidate.port);
        let serves = || executor::presence(cx.host, candidate.port);
        if !comes_back && points && serves().await == Presence::Ready {
            return Way::Forward;
        }
        if !comes_back && (is_late || candidate.keeper.is_process()) {
            return Way::Back;
        }
        sleep(LOOK).await;
    }
}

/// What runs in the slots then: what served before, where a unit or a container may start it yet, and the candidate of a
/// rollback that was kept warm. A process that is gone leaves its slot free.
pub(super) fn replicas_left(
    cx: &Context<'_, SystemHost>,
) -> Result<BTreeMap<SlotName, Replica>, Failure> {
    let state = cx.dir.load()?;
    let warm = state.retained.map(|retained| retained.replica);
    let mut left: BTreeMap<_, _> = warm
        .filter(|warm| warm.slot == cx.plan.candidate.slot)
        .map(|warm| (warm.slot.clone(), warm))
        .into_iter()
        .collect();
    let Some(side) = &cx.plan.incumbent else { return Ok(left) };
    if side.keeper.is_process() {
        cx.dir.release(cx.slot(&side.slot))?;
        return Ok(left);
    }
    let recorded = state.serving.filter(|known| known.slot == side.slot);
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
