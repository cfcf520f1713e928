//! Asks the agent that works on a swap to give it up, and follows how it does so; or ends the wait of what waits for its turn.

use jiff::Timestamp;

use super::answer::Answers;
use super::recover::REPAIR;
use super::{follow, hand_over, observe_at_rest, stuck, unchanged};
use crate::abort::{self, AbortOrder};
use crate::event_log::EventReader;
use crate::executor::unfinished_swaps;
use crate::host::SystemHost;
use crate::journal::Journal;
use crate::lease::{Lease, RETIRE, waiting};
use crate::model::event::EventKind;
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::refusal::{Fault, Refusal};
use crate::model::state::Holder;
use crate::model::wire::{AbortRequest, Frame, RollbackRequest, Unknown, Wait, Wish};
use crate::service_dir::ServiceDir;

/// Answers a request to abort; `line` is the request as it came.
pub(super) async fn abort(
    dir: &ServiceDir,
    (wanted, line): (&AbortRequest, &str),
    answers: &mut Answers,
) -> Result<(), Refusal> {
    let at_work = at_work(dir);
    let of = match &wanted.of {
        Some(swap) if wanted.wish == Wish::Ended => {
            // Somebody has taken it up again meanwhile, or has told its end.
            if standing(dir, swap) == Standing::Open || has_told_its_end(dir, swap) {
                answers.send(&Frame::Accepted { swap: swap.clone() });
                follow::follow(dir, swap, (wanted.since, Wait::Promoted), answers).await;
                return Ok(());
            }
            None
        }
        Some(swap) => match (standing(dir, swap), wanted.unknown) {
            (Standing::Left, _) => None,
            (Standing::Closed, Unknown::Refused) => {
                answers.send(&closed(dir, swap, wanted).await?);
                return Ok(());
            }
            (Standing::Open, _) | (Standing::Closed, Unknown::Kept) => Some(swap.clone()),
        },
        None => at_work.as_ref().map(|holder| holder.swap.clone()),
    };
    let Some(swap) = of else {
        // Nobody is there to be asked; what somebody left unfinished when he died is brought to its end.
        if let Some(swap) = hand_over(dir, line, answers).await? {
            follow::follow(dir, &swap, (wanted.since, Wait::Promoted), answers).await;
        }
        return Ok(());
    };
    let order = AbortOrder { at: Timestamp::now(), requester: wanted.requester.clone() };
    let first = at_work.as_ref().and_then(|it| Some(it.recovers.as_ref()?.swap.clone()));
    if let (None, Some(died)) = (&wanted.of, &first) {
        // Whatever is under way is given up: what is brought to its end as well as what would begin then.
        abort::order(dir, died, &order).map_err(Refusal::environment)?;
    }
    abort::order(dir, &swap, &order).map_err(Refusal::environment)?;
    let waited = waiting::strike(dir, &swap);
    // Who waited may have been the step that was asked again, beside the swap that it had begun before.
    if !begun(dir, &swap).await {
        if let Some(waited) = waited {
            return Err(not_its_turn(dir, (&waited.command, &swap)));
        }
        let goes_on = |holder: &Holder| {
            let is_asked_by_the_same = holder.requester == wanted.requester;
            holder.command == REPAIR && holder.swap != swap && is_asked_by_the_same
        };
        return Err(match at_work.filter(goes_on) {
            Some(repair) => repairs(&repair),
            None => not_its_turn(dir, ("swap", &swap)),
        });
    }
    answers.send(&Frame::Accepted { swap: swap.clone() });
    follow::follow(dir, &swap, (wanted.since, Wait::Promoted), answers).await;
    Ok(())
}

/// Whether whoever follows a swap hears how it ended.
fn has_told_its_end(dir: &ServiceDir, swap: &SwapId) -> bool {
    let told = EventReader::new(&dir.swap(swap)).read().unwrap_or_default();
    told.iter().any(|event| matches!(event.kind, EventKind::Concluded(_)))
}

/// Gives up what a rollback names, if that still waits for its turn, and answers: it would begin afterwards, and is not wanted.
/// `false`: it waits for nothing.
///
/// # Errors
/// If the disk refuses the order, or what serves cannot be seen.
pub(super) async fn called_off(
    dir: &ServiceDir,
    wanted: &RollbackRequest,
    answers: &mut Answers,
) -> Result<bool, Refusal> {
    let Some(swap) = &wanted.of else { return Ok(false) };
    let is_it = |asked: &Holder| asked.swap == *swap;
    let Some(waits) = waiting::all(dir).into_iter().find(is_it) else { return Ok(false) };
    if dir.swap(swap).exists() {
        // It has begun: its step was asked again, and would follow it.
        return Ok(false);
    }
    let order = AbortOrder { at: Timestamp::now(), requester: wanted.requester.clone() };
    abort::order(dir, swap, &order).map_err(Refusal::environment)?;
    waiting::strike(dir, swap);
    if begun(dir, swap).await {
        // Its turn came before the order: its agent gives it up.
        answers.send(&Frame::Accepted { swap: swap.clone() });
        return Ok(true);
    }
    let reason =
        format!("{} {swap} waited for its turn, is given up and never begins", waits.command);
    let host = SystemHost::new(&wanted.asked);
    let world = observe_at_rest(&host, dir, &wanted.asked).await;
    let world = world.map_err(|why| Refusal::environment(over(&reason, why)))?;
    answers.send(&unchanged(&host, &world, dir, &wanted.asked, reason).await);
    Ok(true)
}

/// What an order to abort meets that names its swap.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Somebody who will find the order.
    Open,
    /// A swap that nobody works on any more, and that is not at its end.
    Left,
    /// Nothing that could be aborted.
    Closed,
}

fn standing(dir: &ServiceDir, swap: &SwapId) -> Standing {
    // In the order in which a command goes through them, so that none gets past between two looks.
    let waits = || waiting::all(dir).iter().any(|asked| asked.swap == *swap);
    let is_its = |holder: Holder| holder.swap == *swap || holder.works_on() == swap;
    if waits() || at_work(dir).is_some_and(is_its) {
        return Standing::Open;
    }
    let left = unfinished_swaps(dir).into_iter().find(|unfinished| unfinished.swap == *swap);
    match left {
        Some(unfinished) if !unfinished.needs_a_person() => Standing::Left,
        _ => Standing::Closed,
    }
}

/// The answer where nothing can be done about the swap that is meant, and nothing is done about any other.
///
/// # Errors
/// If it is stuck, or is none that is known here.
pub(super) async fn closed(
    dir: &ServiceDir,
    swap: &SwapId,
    wanted: &AbortRequest,
) -> Result<Frame, Refusal> {
    let state = dir.load().map_err(Refusal::environment)?;
    let told = state.history.iter().rev().find(|past| past.swap == *swap);
    let recorded = Journal::look(&dir.swap(swap)).ok().and_then(|status| status.outcome);
    match recorded.or(told.map(|past| past.outcome)) {
        Some(Outcome::Stuck) => {
            stuck::refuse_while_stuck(dir, &wanted.asked).await?;
            Err(unknown(dir, swap))
        }
        Some(outcome) => {
            let host = SystemHost::new(&wanted.asked);
            let reason = format!("swap {swap} has ended already: {outcome}");
            let world = observe_at_rest(&host, dir, &wanted.asked).await;
            let world = world.map_err(|why| Refusal::environment(over(&reason, why)))?;
            Ok(unchanged(&host, &world, dir, &wanted.asked, reason).await)
        }
        None => Err(unknown(dir, swap)),
    }
}

/// That nothing can be aborted, where nobody can tell what serves.
fn over(reason: &str, why: Failure) -> Failure {
    Failure {
        message: format!("{reason}, and what serves cannot be seen"),
        causes: [vec![why.message], why.causes].concat(),
        ..why
    }
}

/// The refusal of an id that names nothing, which tells what there is.
fn unknown(dir: &ServiceDir, swap: &SwapId) -> Refusal {
    let word = |holder: &Holder| format!("{} {}", holder.command, holder.swap);
    let under_way = at_work(dir).map(|holder| format!("{} is under way", word(&holder)));
    let waiting = waiting::all(dir).into_iter().map(|asked| format!("{} waits", word(&asked)));
    let open: Vec<_> = under_way.into_iter().chain(waiting).collect();
    let open = if open.is_empty() { "nobody is at work".to_owned() } else { open.join(", ") };
    let service = dir.service();
    let failure = Failure::new(format!(
        "no swap {swap} of service {service} is under way or waits for its turn"
    ));
    Refusal::input(failure.hint(format!("nothing was changed; {open}"))).unbegun()
}

/// Why a repair is not given up.
fn repairs(repair: &Holder) -> Refusal {
    let failure =
        Failure::new(format!("the repair of swap {} has begun, and goes on", repair.swap));
    Refusal::environment(failure.hint("`model-swap status` tells how it goes"))
}

/// The answer where nobody works on anything.
pub(super) async fn nothing_to_abort(
    dir: &ServiceDir,
    wanted: &AbortRequest,
) -> Result<Frame, Failure> {
    let host = SystemHost::new(&wanted.asked);
    let reason = format!("no swap of service {} is under way", dir.service());
    let world =
        observe_at_rest(&host, dir, &wanted.asked).await.map_err(|why| over(&reason, why))?;
    Ok(unchanged(&host, &world, dir, &wanted.asked, reason).await)
}

/// The same of one that waited for its turn, or may have: whoever has the turn goes on.
pub(super) fn not_its_turn(dir: &ServiceDir, named: (&str, &SwapId)) -> Refusal {
    let first = at_work(dir).and_then(|holder| holder.recovers).map(|died| died.swap);
    never_begun(named, first.as_ref())
}

/// Why a command does nothing that was aborted before it began. `first` is a swap that it brings to its end before.
pub(super) fn never_begun((command, id): (&str, &SwapId), first: Option<&SwapId>) -> Refusal {
    let hint = first.map_or_else(
        || "nothing was changed; traffic is where it was".to_owned(),
        |first| {
            format!("{first} is brought to its end, whose agent is gone; `model-swap status` tells where traffic is then")
        },
    );
    let failure = Failure::new(format!("{command} {id} was aborted before it began")).hint(hint);
    Refusal::of([failure], Fault::Aborted).unbegun()
}

/// Whoever works on a swap that has no outcome yet.
fn at_work(dir: &ServiceDir) -> Option<Holder> {
    Lease::holder(&dir.root()).filter(|holder| holder.command != RETIRE)
}

/// Whether a swap has begun, once that is certain: one that its agent still plans may begin, and one that comes to the
/// lease later finds the order first.
async fn begun(dir: &ServiceDir, swap: &SwapId) -> bool {
    let folder = dir.swap(swap);
    let is_followable = || folder.join(follow::AGENT).exists();
    loop {
        // Looked at before the folder: an agent makes that while it holds the lease.
        let holder = at_work(dir).filter(|holder| &holder.swap == swap);
        if is_followable() {
            return true;
        }
        // One that recovers what another left has yet to look for the order.
        if holder.is_none_or(|holder| holder.recovers.is_some()) {
            return false;
        }
        // A plan is made within moments; nothing tells of a lease that was given back.
        tokio::time::sleep(super::turn::RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::holder;

    #[test]
    fn traffic_is_only_vouched_for_where_nothing_else_is_brought_to_its_end() {
        let (swap, died) = ("s-2".parse().unwrap(), "s-1".parse().unwrap());
        let hints = |first| never_begun(("swap", &swap), first).failures[0].hints.concat();
        assert!(hints(None).contains("traffic is where it was"));
        let told = hints(Some(&died));
        assert!(
            told.contains("s-1 is brought to its end") && !told.contains("where it was"),
            "{told}"
        );
    }

    #[test]
    fn one_that_waited_while_another_recovers_vouches_for_no_traffic() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let swap = "s-3".parse().unwrap();
        let told = || not_its_turn(&dir, ("swap", &swap)).failures[0].hints.concat();
        Lease::take(&dir.root(), &holder("s-1")).unwrap().leave_to_the_next();
        let recovers = Lease::take(&dir.root(), &holder("s-2")).unwrap();
        assert!(told().contains("s-1 is brought to its end"), "{}", told());
        drop(recovers);
        assert!(told().contains("traffic is where it was"), "{}", told());
    }
}
