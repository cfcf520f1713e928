//! The commands that bring a swap to its end which nobody works on any more: `repair`, and `abort` where nobody is there to be
//! asked.

use jiff::Timestamp;

use super::abort::{closed, not_its_turn, nothing_to_abort};
use super::answer::Answers;
use super::arming::arm_if_possible;
use super::closing::close_all;
use super::ending::{bring_to_end, left_open, needs};
use super::turn::{self, NoTurn, RETRY};
use super::{follow, hand_over, observe_at_rest, place, stdin, unchanged};
use crate::abort::{self, AbortOrder};
use crate::event_log::EventReader;
use crate::executor::{Wanted, unfinished_swaps};
use crate::host::{SystemHost, process};
use crate::journal::Journal;
use crate::lease::{Lease, LeaseError};
use crate::model::event::EventKind;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ProcessId, SwapId};
use crate::model::refusal::Refusal;
use crate::model::state::{Holder, Requester};
use crate::model::wire::{AbortRequest, Asked, Frame, RepairRequest, Wait, Wish};
use crate::service_dir::ServiceDir;

/// [`Holder::command`] of whoever repairs.
pub(super) const REPAIR: &str = "repair";

/// Has a detached agent repair, and tells what it finds and does. `line` is the request as it came.
pub(super) async fn hand_over_repair(
    dir: &ServiceDir,
    line: &str,
    answers: &mut Answers,
) -> Result<(), Refusal> {
    while let Some(swap) = hand_over(dir, line, answers).await? {
        follow_repair(dir, &swap, answers).await;
        let is_at_its_end = !needs(dir, &swap, Wanted::Repair);
        // Another one may be stuck as well. Its agent begins with the lease, which the one before gives back when it is done.
        if !is_at_its_end || to_repair(dir).is_none() {
            break;
        }
        while Lease::holder(&dir.root()).is_some_and(|holder| holder.command == REPAIR) {
            tokio::time::sleep(RETRY).await;
        }
    }
    Ok(())
}

async fn follow_repair(dir: &ServiceDir, swap: &SwapId, answers: &mut Answers) {
    // What was told before is another command's story, but for the plan, which names the steps.
    let told = EventReader::new(&dir.swap(swap)).read().unwrap_or_default();
    let taken_up =
        |event: &&crate::model::event::Event| matches!(event.kind, EventKind::TakenUp { .. });
    let since = told.iter().rev().find(taken_up).map_or(0, |event| event.seq.saturating_sub(1));
    if let Some(planned) = told.into_iter().next().filter(|_| since > 0) {
        answers.send(&Frame::Event(planned));
    }
    follow::follow(dir, swap, (since, Wait::Promoted), answers).await;
}

/// The detached agent's part: takes up the newest swap that is stuck or unfinished. Backwards, as all undoing: what was done
/// last stands on what was done before.
pub(super) async fn repair(wanted: &RepairRequest, answers: &mut Answers) -> Result<(), Refusal> {
    let RepairRequest { asked, lock_wait, requester, .. } = wanted;
    let id = &wanted.id.clone().map_or_else(unnamed, Ok).map_err(Refusal::environment)?;
    let dir = place::service_dir(asked).map_err(Refusal::environment)?;
    // Where no swap ever was, there is nobody's id to hold the lease by.
    let Some(newest) = begun(&dir).next() else {
        return nothing_to_repair(&dir, asked, answers).await;
    };
    let own = |swap: &SwapId| holder(swap.clone(), REPAIR, requester);
    let at_first = || own(to_repair(&dir).as_ref().unwrap_or(&newest));
    // Asked again by a runner that had lost the first answer.
    let attaches = |held: &Holder| Some(held.swap.clone()).filter(|_| held.command == REPAIR);
    let itself = own(id);
    let taken =
        turn::take((&dir, *lock_wait), (&itself, &at_first), &attaches, answers, stdin::ended())
            .await;
    let mut lease = match taken {
        Ok(lease) => lease,
        Err(NoTurn::Lease(LeaseError::Held { holder: Some(held) }))
            if attaches(&held).is_some() =>
        {
            answers.send(&Frame::Accepted { swap: held.swap });
            return Ok(());
        }
        Err(NoTurn::Aborted) => return Err(not_its_turn(&dir, (&itself.command, id))),
        Err(error) => return Err(Refusal::environment(error.to_failure())),
    };
    // Another command may have ended meanwhile what had no outcome a moment ago.
    let swap = to_repair(&dir);
    let mut repaired = None;
    if let Some(died) = lease.died.clone().filter(|died| Some(&died.swap) != swap.as_ref()) {
        // Its swap has its outcome, and perhaps nobody was told.
        repaired = Some(died.swap.clone()).filter(|swap| is_taken_up(&dir, swap));
        bring_to_end(&dir, &died.swap, (Some(asked), Wanted::End), || {})
            .await
            .map_err(Refusal::environment)?;
        let own = own(swap.as_ref().unwrap_or(&died.swap));
        lease.recovered(&own).map_err(|error| Refusal::environment(error.to_failure()))?;
    }
    let Some(swap) = swap else {
        close_all(&dir);
        if let Some(swap) = repaired {
            answers.send(&Frame::Accepted { swap });
            return Ok(());
        }
        return nothing_to_repair(&dir, asked, answers).await;
    };
    // What is stuck the agent that systemd kept has left to a person; half undone it is unfinished again.
    arm_if_possible(&SystemHost::new(asked), &dir).await;
    let accepted = || {
        answers.send(&Frame::Accepted { swap: swap.clone() });
        answers.close();
    };
    if let Err(failure) = bring_to_end(&dir, &swap, (Some(asked), Wanted::Repair), accepted).await {
        // Half undone it is neither stuck nor at its end: the next command must learn that somebody was at it.
        lease.leave_to_the_next();
        return Err(Refusal::environment(failure));
    }
    close_all(&dir);
    lease.recovered(&own(&swap)).map_err(|error| Refusal::environment(error.to_failure()))
}

/// Whether a swap was taken up by somebody who has told no end of it.
fn is_taken_up(dir: &ServiceDir, swap: &SwapId) -> bool {
    let told = EventReader::new(&dir.swap(swap)).read().unwrap_or_default();
    let last = told
        .iter()
        .rev()
        .find(|event| matches!(event.kind, EventKind::TakenUp { .. } | EventKind::Concluded(_)));
    last.is_some_and(|event| matches!(event.kind, EventKind::TakenUp { .. }))
}

/// The swaps that have begun, newest first.
fn begun(dir: &ServiceDir) -> impl Iterator<Item = SwapId> {
    dir.swaps().into_iter().filter(|swap| Journal::has_begun(&dir.swap(swap)))
}

/// What a repair takes up: the newest swap that has begun, unless that is at its end; else the newest that is not.
fn to_repair(dir: &ServiceDir) -> Option<SwapId> {
    let newest = begun(dir).next().filter(|swap| needs(dir, swap, Wanted::Repair));
    newest.or_else(|| unfinished_swaps(dir).into_iter().next().map(|unfinished| unfinished.swap))
}

/// The detached agent's part of an abort where nobody is there to be asked: what died is brought to its end.
pub(super) async fn abort(wanted: &AbortRequest, answers: &mut Answers) -> Result<(), Refusal> {
    let AbortRequest { asked, of, requester, wish, .. } = wanted;
    let dir = place::service_dir(asked).map_err(Refusal::environment)?;
    let own = |swap: &SwapId| holder(swap.clone(), "abort", requester);
    let is_meant = |swap: &SwapId| of.as_ref().is_none_or(|of| of == swap);
    let newest = left_open(&dir);
    if let Some(other) = newest.as_ref().filter(|newest| !is_meant(newest)) {
        let failure = Failure::new(format!("swap {other} is not at its end, and comes first"));
        let hint = "nothing was changed; `model-swap abort` without an id, or `model-swap repair`, brings that one to its end";
        return Err(Refusal::environment(failure.hint(hint)));
    }
    let taken = match newest {
        Some(swap) => Lease::take(&dir.root(), &own(&swap)).map(Some),
        None => Lease::take_from_the_dead(&dir.root(), |died| own(&died.swap)),
    };
    let order = |swap: &SwapId| {
        if *wish == Wish::Ended {
            return Ok(());
        }
        let order = AbortOrder { at: Timestamp::now(), requester: requester.clone() };
        abort::order(&dir, swap, &order).map_err(Refusal::environment)
    };
    let lease = match taken {
        Ok(lease) => lease,
        // Whoever brings it to its end looks for the order.
        Err(LeaseError::Held { holder: Some(holder) })
            if is_meant(holder.works_on()) && needs(&dir, holder.works_on(), Wanted::End) =>
        {
            order(holder.works_on())?;
            answers.send(&Frame::Accepted { swap: holder.works_on().clone() });
            return Ok(());
        }
        Err(error) => return Err(Refusal::environment(error.to_failure())),
    };
    let unfinished = lease.and_then(|lease| {
        let died = lease.died.as_ref().map(|died| died.swap.clone());
        // An outcome that is on the disk may not have been told: who asks for a swap's end wants to hear it.
        let is_untold = |swap: &SwapId| *wish == Wish::Ended || needs(&dir, swap, Wanted::End);
        let swap = died.filter(is_untold).or_else(|| left_open(&dir))?;
        is_meant(&swap).then_some((lease, swap))
    });
    let Some((mut lease, swap)) = unfinished else {
        let nothing = match of {
            Some(swap) => closed(&dir, swap, wanted).await?,
            None => nothing_to_abort(&dir, wanted).await.map_err(Refusal::environment)?,
        };
        answers.send(&nothing);
        return Ok(());
    };
    order(&swap)?;
    arm_if_possible(&SystemHost::new(asked), &dir).await;
    let accepted = || {
        answers.send(&Frame::Accepted { swap: swap.clone() });
        answers.close();
    };
    if let Err(failure) = bring_to_end(&dir, &swap, (Some(asked), Wanted::End), accepted).await {
        lease.leave_to_the_next();
        return Err(Refusal::environment(failure));
    }
    lease.recovered(&own(&swap)).map_err(|error| Refusal::environment(error.to_failure()))
}

/// An id for a repair whose runner gave it none: nobody else's, since what is ordered by an id outlives who was meant.
fn unnamed() -> Result<SwapId, Failure> {
    let ProcessId { pid, start } = process::own();
    format!("repair-{pid}-{start}").parse().map_err(|error| Failure::from_error(&error))
}

async fn nothing_to_repair(
    dir: &ServiceDir,
    asked: &Asked,
    answers: &mut Answers,
) -> Result<(), Refusal> {
    let host = SystemHost::new(asked);
    let world = observe_at_rest(&host, dir, asked).await.map_err(Refusal::environment)?;
    let reason = format!("no swap of service {} needs repair", dir.service());
    answers.send(&unchanged(&host, &world, dir, asked, reason).await);
    Ok(())
}

fn holder(swap: SwapId, command: &str, requester: &Requester) -> Holder {
    Holder {
        swap,
        since: Timestamp::now(),
        process: process::own(),
        command: command.to_owned(),
        requester: requester.clone(),
        recovers: None,
    }
}
