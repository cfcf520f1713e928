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
