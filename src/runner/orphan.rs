//! A swap whose agent is gone while somebody follows it. Where no systemd brings another one, the next command ends it; where that
//! may come too late, the server is asked at once.

use super::follow::Followed;
use crate::model::state::Requester;
use crate::model::wire::{AbortRequest, Command, Request, SwapRequest, Unknown};

/// The request by which the server brings the swap to its end that `origin` has begun or follows: it waits for our word with
/// traffic at the new model, or its step is over. `None`: a person decides, or the next command.
pub(super) fn brought_to_end(
    followed: &mut Followed,
    origin: Request,
    requester: &Requester,
) -> Option<Request> {
    let swap = followed.swap.clone().filter(|_| followed.conclusion.is_none())?;
    let command = match origin.command {
        // By its id the server knows that it has begun, and does not begin it again.
        Command::Swap(wanted) if followed.looks_no_longer() => {
            Command::Swap(SwapRequest { swap, ..wanted })
        }
        Command::Follow { asked, .. } => Command::Abort(AbortRequest {
            asked,
            of: Some(swap),
            unknown: Unknown::Refused,
            since: followed.seq,
            requester: requester.clone(),
        }),
        _ => return None,
    };
    Some(Request { v: origin.v, command })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::github::inputs::CommandName;
    use crate::model::ids::SwapId;
    use crate::model::wire::{Asked, Secrets, WIRE_VERSION, Wait, When};
    use crate::swap::planner::tests::spec;

    #[test]
    fn a_swap_that_waited_for_our_word_is_brought_to_its_end_however_often_that_is_lost() {
        let swap: SwapId = "s-1".parse().unwrap();
        let requester = Requester::default();
        let wanted = SwapRequest {
            asked: Asked { spec: spec(), secrets: Secrets::default() },
            swap: swap.clone(),
            when: When::Changed,
            plan_digest: None,
            plan_parts: None,
            lock_wait: Duration::ZERO,
            wait: Wait::Promoted,
            requester: requester.clone(),
        };
        let origin = Request { v: WIRE_VERSION, command: Command::Swap(wanted) };
        let mut followed = Followed::of(CommandName::Swap);
        followed.swap = Some(swap);
        let asks = |followed: &mut Followed| {
            brought_to_end(followed, origin.clone(), &requester).is_some()
        };
        assert!(!asks(&mut followed), "the next command brings it to its end");
        followed.awaited = Some("nonce".to_owned());
        assert!(asks(&mut followed));
        assert!(asks(&mut followed), "nobody may have heard what was asked for");
    }
}
