//! One file a step, do and undo side by side. `prepare` looks, `act` does, `undo` reverses; each can be repeated.

mod await_ready;
mod cut_over;
pub(super) mod drain;
mod fetch;
mod give_back;
mod promote;
mod reserve_slot;
mod retire;
mod start_replica;
mod verify;

use super::context::Context;
use crate::host::Host;
use crate::host::process::Stopped;
use crate::model::failure::Failure;
use crate::model::record::{Done, Record, Traffic, Undo};
use crate::model::step::Step;

/// What a step did.
#[derive(Debug)]
pub(super) struct Acted {
    /// What later steps need to know.
    pub(super) done: Done,
    /// What was found or done, one line for people.
    pub(super) detail: String,
}

impl Acted {
    fn plainly(detail: impl Into<String>) -> Self {
        Self { done: Done::Nothing, detail: detail.into() }
    }
}

/// What it took to stop a tree, one fragment.
fn ended(stopped: &Stopped) -> String {
    let gone = match (stopped.ended.len(), stopped.forced.len()) {
        (0, _) => "it was gone already".to_owned(),
        (count, 0) => format!("it ended by itself when asked: {count} of its processes are gone"),
        (count, forced) => {
            format!("{count} of its processes are gone, {forced} of them had to be killed")
        }
    };
    match &stopped.unkept {
        None => gone,
        Some(failure) => format!("{gone}; what it wrote is lost: {failure}"),
    }
}

/// What an undo did.
#[derive(Debug)]
pub(super) enum Undone {
    /// Requests went where they went before, all the time.
    Quietly(String),
    /// nginx had loaded the change: traffic was brought back.
    TrafficReturned(String),
}

impl Undone {
    /// What requests noticed of it.
    pub(super) fn traffic(&self) -> Traffic {
        match self {
            Self::Quietly(_) => Traffic::Untouched,
            Self::TrafficReturned(_) => Traffic::Returned,
        }
    }

    /// What was undone, one line for people.
    pub(super) fn detail(self) -> String {
        match self {
            Self::Quietly(detail) | Self::TrafficReturned(detail) => detail,
        }
    }
}

/// Finds out what the step's undo will need. Changes nothing.
pub(super) async fn prepare<H: Host>(cx: &Context<'_, H>, step: &Step) -> Result<Undo, Failure> {
    match step {
        Step::Fetch => Ok(fetch::prepare(cx)),
        Step::ReserveSlot { slot } => Ok(Undo::Release { slot: slot.clone() }),
        Step::StartReplica { slot } => Ok(start_replica::prepare(cx, slot)),
        Step::CutOver { from, to } => cut_over::prepare(cx, from, to).await,
        Step::Promote { .. } => promote::prepare(cx),
        Step::AwaitReady { .. }
        | Step::Verify { .. }
        | Step::Drain { .. }
        | Step::Retire { .. } => Ok(Undo::Nothing),
    }
}

/// Does the step. `undo` and `records` are on the disk by now.
pub(super) async fn act<H: Host>(
    cx: &Context<'_, H>,
    step: &Step,
    undo: &Undo,
    records: &[Record],
) -> Result<Acted, Failure> {
    match step {
        Step::Fetch => fetch::act(cx).await,
        Step::ReserveSlot { slot } => reserve_slot::act(cx, slot).await,
        Step::StartReplica { slot } => start_replica::act(cx, slot).await,
        Step::AwaitReady { slot } => await_ready::act(cx, slot, records).await,
        Step::CutOver { from, to } => cut_over::act(cx, (from, to), undo, records).await,
        Step::Verify { slot } => verify::act(cx, slot, records).await,
        Step::Promote { .. } => promote::act(cx, records).await,
        Step::Drain { slot } => drain::act(cx, slot).await,
        Step::Retire { slot } => retire::act(cx, slot).await,
    }
}

/// Does the rest of a step that another agent began, where traffic is at the candidate already.
pub(super) async fn again<H: Host>(
    cx: &Context<'_, H>,
    step: &Step,
    undo: &Undo,
    records: &[Record],
) -> Result<Acted, Failure> {
    match (step, undo) {
        (Step::CutOver { from, to }, undo) => cut_over::act(cx, (from, to), undo, records).await,
        // Whoever gave his word gave it to the agent that is gone.
        (Step::Verify { slot }, _) => verify::act(cx, slot, records).await,
        (Step::Promote { .. }, Undo::State(before)) => {
            // It may have been saved already; once is enough.
            promote::undo(cx, before)?;
            promote::act(cx, records).await
        }
        _ => Err(Failure::new(format!("{step} was interrupted"))),
    }
}

/// Undoes the step, however far it came.
pub(super) async fn undo<H: Host>(
    cx: &Context<'_, H>,
    step: &Step,
    undo: &Undo,
) -> Result<Undone, Failure> {
    match (step, undo) {
        (Step::Fetch, Undo::Stop { marker, .. }) => fetch::undo(cx, marker).await,
        (Step::ReserveSlot { .. }, Undo::Release { slot }) => reserve_slot::undo(cx, slot),
        (Step::StartReplica { slot }, Undo::Stop { marker, keeper }) => {
            start_replica::undo(cx, slot, (keeper, marker)).await
        }
        (Step::CutOver { from, to }, Undo::Upstream { image, unbooted, .. }) => {
            cut_over::undo(cx, (from, to), image, unbooted.as_ref()).await
        }
        (Step::Promote { .. }, Undo::State(state)) => promote::undo(cx, state),
        _ => Ok(Undone::Quietly("nothing to undo".to_owned())),
    }
}
