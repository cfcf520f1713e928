//! `reserve_slot`: claims port and GPUs of a slot host-wide; undo: releases them.

use super::{Acted, Undone};
use crate::executor::context::Context;
use crate::host::Host;
use crate::model::failure::Failure;
use crate::model::ids::SlotName;

pub(super) async fn act<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Acted, Failure> {
    let place = cx.slot(slot);
    if let Some(found) = cx.host.find(place.port).await? {
        return Err(Failure::new(format!(
            "port {} of slot {slot} is taken by process {} ({})",
            place.port,
            found.main,
            found.argv.join(" ")
        ))
        .hint(format!("stop that process, or give slot {slot} another port")));
    }
    cx.claim(slot).await??;
    Ok(Acted::plainly(format!("port {} is free and claimed", place.port)))
}

pub(super) fn undo<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Undone, Failure> {
    let state = cx.dir.load()?;
    let mut kept = state.serving.iter().chain(state.retained.iter().map(|kept| &kept.replica));
    // A later swap's, where this one was left behind.
    if kept.any(|replica| &replica.slot == slot && replica.swap.as_ref() != Some(&cx.swap)) {
        return Ok(Undone::Quietly(format!("slot {slot} stays reserved for what is there by now")));
    }
    cx.dir.release(slot)?;
    Ok(Undone::Quietly(format!("slot {slot} is released")))
}
