//! Asks the agent that works on a swap to give it up, and follows how it does so.

use jiff::Timestamp;

use super::answer::Answers;
use super::{follow, hand_over, observe_at_rest, unchanged};
use crate::abort::{self, AbortOrder};
use crate::host::SystemHost;
use crate::lease::{Lease, RETIRE};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::state::Holder;
use crate::model::wire::{AbortRequest, Fault, Frame, Refusal, Wait};
use crate::service_dir::ServiceDir;

/// Answers a request to abort; `line` is the request as it came.
pub(super) async fn abort(
    dir: &ServiceDir,
    (wanted, line): (&AbortRequest, &str),
    answers: &mut Answers,
) -> Result<(), Refusal> {
    let at_work = at_work(dir);
    let first = at_work.as_ref().and_then(|it| Some(it.recovers.as_ref()?.swap.clone()));
    let order = AbortOrder { at: Timestamp::now(), requester: wanted.requester.clone() };
    if let (None, Some(died)) = (&wanted.of, at_work.as_ref().and_then(|it| it.recovers.as_ref())) {
        // Whatever is under way is given up: what is brought to its end as well as what would begin then.
        abort::order(dir, &died.swap, &order).map_err(Refusal::environment)?;
    }
    let Some(swap) = wanted.of.clone().or_else(|| at_work.map(|holder| holder.swap)) else {
        // Nobody is there to be asked; what somebody left unfinished when he died is brought to its end.
        let ended = hand_over(dir, line, answers).await.map_err(Refusal::environment)?;
        if let Some(swap) = ended {
            follow::follow(dir, &swap, (wanted.since, Wait::Promoted), answers).await;
        }
        return Ok(());
    };
    abort::order(dir, &swap, &order).map_err(Refusal::environment)?;
    if !begun(dir, &swap).await {
        return Err(never_begun(&swap, first.as_ref()));
    }
    answers.send(&Frame::Accepted { swap: swap.clone() });
    follow::follow(dir, &swap, (wanted.since, Wait::Promoted), answers).await;
    Ok(())
}

/// The answer where nobody works on anything.
pub(super) async fn nothing_to_abort(
    dir: &ServiceDir,
    wanted: &AbortRequest,
) -> Result<Frame, Failure> {
    let host = SystemHost::new(&wanted.asked);
    let world = observe_at_rest(&host, dir, &wanted.asked).await?;
    let reason = format!("no swap of service {} is under way", dir.service());
    Ok(unchanged(&host, &world, dir, &wanted.asked, reason).await)
}

/// Why a swap does nothing that was aborted before it began. `first` is another one that its command brings to its end before.
pub(super) fn never_begun(swap: &SwapId, first: Option<&SwapId>) -> Refusal {
    let hint = first.map_or_else(
        || "nothing was changed; traffic is where it was".to_owned(),
        |first| {
            format!("{first} is brought to its end, whose agent is gone; `model-swap status` tells where traffic is then")
        },
    );
    let failure = Failure::new(format!("swap {swap} was aborted before it began")).hint(hint);
    Refusal { failures: vec![failure], fault: Fault::Aborted }
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

    #[test]
    fn traffic_is_only_vouched_for_where_nothing_else_is_brought_to_its_end() {
        let (swap, died) = ("s-2".parse().unwrap(), "s-1".parse().unwrap());
        let hints = |first| never_begun(&swap, first).failures[0].hints.concat();
        assert!(hints(None).contains("traffic is where it was"));
        let told = hints(Some(&died));
        assert!(
            told.contains("s-1 is brought to its end") && !told.contains("where it was"),
            "{told}"
        );
    }
}
