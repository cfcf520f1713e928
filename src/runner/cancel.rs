//! A signal: the swap is given up, and waited for until traffic is where it was. What is left to do goes on without us.
//!
//! GitHub sends a container SIGINT, 7.5 s later SIGTERM, and kills it 2.5 s after that (runner, `ProcessInvoker.cs`).

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::follow::{Ears, Ended, Followed, Line};
use super::report::Reporter;
use super::urgent::{AGAIN, AGAIN_LIMIT, Answer, ask_at_once, telling};
use super::{Stopped, Voice};
use crate::model::event::{Conclusion, Event, EventKind};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::outcome::{Exit, Outcome};
use crate::model::plan::Side;
use crate::model::state::Requester;
use crate::model::wire::{AbortRequest, Asked, Command, Request, Unknown, WIRE_VERSION, Wish};
use crate::remote::session::Session;
use crate::render;

/// How long traffic's return is waited for: what is left of GitHub's ten seconds is for the summary and the deployment.
const BACK_LIMIT: Duration = Duration::from_secs(8);

/// How long the outcome is waited for once traffic is back: a candidate without requests is stopped within moments.
const OUTCOME_LIMIT: Duration = Duration::from_millis(1000);

/// What is given up, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// It may be given up until it has its outcome.
    Swap,
    /// It may be given up until its turn: then it undoes what has to be undone.
    Repair,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Swap => "swap",
            Self::Repair => "repair",
        })
    }
}

/// The order that gives up what a command has asked for.
#[derive(Debug, Clone)]
pub(super) struct Order {
    asked: Asked,
    /// The id that it was asked for by.
    id: SwapId,
    what: What,
    requester: Requester,
}

impl Order {
    /// The order for a command; `None` for one that nothing is left of when it is not followed.
    pub(super) fn of(command: &Command) -> Option<Self> {
        let (asked, id, what, requester) = match command {
            Command::Swap(request) => {
                (&request.asked, &request.swap, What::Swap, &request.requester)
            }
            Command::Rollback(request) => {
                (&request.asked, &request.swap, What::Swap, &request.requester)
            }
            Command::Repair(request) => {
                (&request.asked, request.id.as_ref()?, What::Repair, &request.requester)
            }
            _ => return None,
        };
        Some(Self { asked: asked.clone(), id: id.clone(), what, requester: requester.clone() })
    }

    /// Whether what was asked for may still be given up, as far as is known.
    fn is_in_time(&self, followed: &Followed) -> bool {
        self.what == What::Swap || followed.swap.is_none()
    }

    fn id<'a>(&'a self, followed: &'a Followed) -> &'a SwapId {
        followed.swap.as_ref().unwrap_or(&self.id)
    }

    fn request(&self, followed: &Followed) -> Request {
        let of = Some(self.id(followed).clone());
        let (asked, requester) = (self.asked.clone(), self.requester.clone());
        let (unknown, wish) = (Unknown::Kept, Wish::GivenUp);
        let wanted = AbortRequest { asked, of, unknown, wish, since: followed.seq, requester };
        Request { v: WIRE_VERSION, command: Command::Abort(wanted) }
    }
}

/// What is known of traffic while a swap is given up.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic {
    /// What serves unless the swap is promoted.
    incumbent: Option<Side>,
    /// Where new requests go for good, once the swap is unwound so far.
    back: Option<String>,
}

impl Traffic {
    /// Takes an event in.
    pub(super) fn hear(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Planned { plan, .. } => self.incumbent.clone_from(&plan.incumbent),
            EventKind::TrafficIsBack { traffic } => self.back = Some(traffic.clone()),
            _ => {}
        }
    }
}

/// Ends the following on a signal: a swap that may still be given up is, and is waited for until traffic is back.
///
/// # Errors
/// If it is not known what the server does.
pub(super) async fn give_up(
    session: Option<&Session>,
    line: &Line<'_>,
    order: Option<&Order>,
    (followed, voice, reporter, stop): Ears<'_>,
) -> Result<(), Stopped> {
    let warn = |voice: &mut Voice, text: &str| {
        voice.say([render::Line::Warning(format!("stopped by a signal: {text}"))]);
    };
    let Some(order) = order.filter(|order| order.is_in_time(followed)) else {
        return without_swap(followed, voice);
    };
    if followed.conclusion.is_some() {
        warn(voice, "the outcome stays as it is, and the server does the rest by itself");
        return Ok(());
    }
    let what = order.what;
    if session.is_none() && !followed.began() {
        let failure = Failure::new("stopped by a signal before the server was asked")
            .hint(format!("no {what} has begun: run it again if it is wanted"));
        return Err(Stopped { failures: vec![failure], exit: Exit::Aborted });
    }
    // What was so before the order is not its doing: such a swap comes to nothing by itself, and ends otherwise.
    followed.traffic.back = None;
    warn(voice, &format!("asking the server to abort the {what}"));
    let ended = tokio::select! {
        ended = until_back(session, line, order, (&mut *followed, &mut *voice, &mut *reporter)) => Some(ended),
        () = tokio::time::sleep(BACK_LIMIT) => None,
        // Somebody at a terminal does not want to wait. SIGTERM comes from GitHub, in its time.
        () = stop.interrupted() => None,
    };
    if followed.conclusion.is_some() {
        return Ok(());
    }
    if followed.traffic.back.is_some() {
        let event = given_up(followed, order);
        followed.event(&event, voice, reporter);
        return Ok(());
    }
    let failure = match ended {
        Some(Err(Ended::Refused(stopped) | Ended::Left(stopped) | Ended::Stopped(stopped))) => {
            return Err(stopped);
        }
        Some(Err(Ended::Remote(error))) if !error.is_lost() => Failure {
            causes: vec![error.to_failure().to_string()],
            ..Failure::new(format!(
                "the server could not be asked to abort: the {what} goes on on the server"
            ))
        },
        // It may have heard.
        Some(Ok(()) | Err(Ended::Remote(_))) | None => {
            Failure::new(format!("the server did not say in time whether the {what} is aborted"))
        }
    };
    // What was asked for may have begun all the same.
    followed.lost |= session.is_some();
    let failure = failure.hint(format!(
        "`model-swap status` tells what serves, `model-swap abort --swap-id {}` gives the {what} up",
        order.id(followed)
    ));
    Err(Stopped { failures: vec![failure], exit: Exit::Environment })
}

/// The end of a command that makes no swap.
fn without_swap(followed: &Followed, voice: &mut Voice) -> Result<(), Stopped> {
    if followed.began() {
        let text = "stopped by a signal: the server goes on; `model-swap status` tells how";
        voice.say([render::Line::Warning(text.to_owned())]);
        return Ok(());
    }
    let failure = Failure::new("stopped by a signal before the server had answered");
    Err(Stopped { failures: vec![failure], exit: Exit::Environment })
}

/// Sends the order, and listens for as long as there is something to wait for.
async fn until_back(
    session: Option<&Session>,
    line: &Line<'_>,
    order: &Order,
    (followed, voice, reporter): (&mut Followed, &mut Voice, &mut Reporter),
) -> Result<(), Ended> {
    let until = Instant::now() + AGAIN_LIMIT;
    let mut earlier = None;
    loop {
        let request = order.request(followed);
        let heard = match ask_at_once(session, line, &request, until).await {
            Ok(mut answer) => {
                let heard = until_known(&mut answer, (followed, voice, reporter)).await;
                answer.close().await;
                heard
            }
            Err(error) => Err(Ended::Remote(error)),
        };
        let Err(Ended::Remote(error)) = heard else { return heard };
        let error = telling(earlier, error);
        if followed.traffic.back.is_some() || Instant::now() >= until {
            return Err(Ended::Remote(error));
        }
        earlier = Some(error);
        sleep(AGAIN).await;
    }
}

/// Takes in what is answered, until the outcome is known or traffic has been back for [`OUTCOME_LIMIT`].
async fn until_known(
    answer: &mut Answer,
    (followed, voice, reporter): (&mut Followed, &mut Voice, &mut Reporter),
) -> Result<(), Ended> {
    let mut limit = None;
    while followed.conclusion.is_none() {
        if followed.traffic.back.is_some() {
            limit.get_or_insert_with(|| Instant::now() + OUTCOME_LIMIT);
        }
        let next = match limit {
            None => answer.next().await,
            Some(limit) => match timeout_at(limit, answer.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        let Some(frame) = next.map_err(Ended::Remote)? else { break };
        followed.take(frame, voice, reporter)?;
    }
    Ok(())
}

/// What is said, shown and reported where the candidate is still being stopped.
fn given_up(followed: &Followed, order: &Order) -> Event {
    let incumbent = followed.traffic.incumbent.as_ref();
    let failure = Failure::new("cancelled; the server stops the new model by itself")
        .hint("`model-swap status` tells when it is done");
    let conclusion = Conclusion {
        outcome: Outcome::Aborted,
        traffic: followed.traffic.back.clone().unwrap_or_default(),
        slot: incumbent.map(|side| side.slot.clone()),
        revision: incumbent.map(|side| side.revision.clone()),
        previous_revision: None,
        rollback_until: None,
        failure: Some(failure),
    };
    Event {
        v: WIRE_VERSION,
        swap: order.id(followed).clone(),
        seq: followed.seq + 1,
        at: jiff::Timestamp::now(),
        kind: EventKind::Concluded(conclusion),
    }
}
