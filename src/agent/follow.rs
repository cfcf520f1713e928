//! Follows a swap's event log for a runner, from any number on, for as long as it asked and is there.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::answer::Answers;
use super::{closing, stdin};
use crate::event_log::EventReader;
use crate::host::agent_unit::AgentUnit;
use crate::host::process;
use crate::host::watch::Watch;
use crate::journal::Journal;
use crate::model::event::{Event, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::{ProcessId, SwapId};
use crate::model::refusal::{Known, Refusal};
use crate::model::wire::{Frame, WIRE_VERSION, Wait};
use crate::service_dir::{self, ServiceDir, StateError};

/// The file that names the agent's process, in the swap's folder.
pub(super) const AGENT: &str = "agent.json";

/// How long systemd and the agent that it keeps may take to go on with a swap.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks whether they did.
const LOOK: Duration = Duration::from_millis(50);

/// What [`AGENT`] holds.
#[derive(Serialize, Deserialize)]
struct AtWork {
    #[serde(flatten)]
    process: ProcessId,
    /// Of which boot.
    #[serde(default)]
    boot: Option<String>,
}

/// Whoever follows the swap of this folder looks at this process from now on.
pub(super) fn take_over(folder: &Path) -> Result<(), StateError> {
    let own = AtWork { process: process::own(), boot: Some(process::boot()) };
    service_dir::write_json(&folder.join(AGENT), &own)
}

/// The same where nobody works on it any more.
pub(super) fn take_over_from_the_dead(folder: &Path) -> Result<(), StateError> {
    if at_work(folder).is_some_and(process::alive) { Ok(()) } else { take_over(folder) }
}

/// The agent that works on the swap of this folder, or did within this boot.
pub(super) fn at_work(folder: &Path) -> Option<ProcessId> {
    let text = std::fs::read(folder.join(AGENT)).ok()?;
    let AtWork { process, boot } = serde_json::from_slice(&text).ok()?;
    boot.is_none_or(|boot| boot == process::boot()).then_some(process)
}

/// Sends the events after `since` until the stream may end, or nobody is there who reads it.
pub(super) async fn follow(
    dir: &ServiceDir,
    swap: &SwapId,
    known: (u64, Wait),
    answers: &mut Answers,
) {
    tokio::select! {
        biased;
        () = tell(dir, swap, known, answers) => {}
        // A link that is lost ends it: whoever makes another one has another session.
        () = stdin::ended() => {}
    }
}

async fn tell(dir: &ServiceDir, swap: &SwapId, (since, wait): (u64, Wait), answers: &mut Answers) {
    let folder = dir.swap(swap);
    let mut watch = Watch::folder(&folder);
    if !folder.is_dir() {
        let failure = Failure::new(format!("swap {swap} of service {} has not begun", dir.service()))
            .hint(format!("it has its turn only while its step is there: `model-swap status` shows what waits, `model-swap abort --swap-id {swap}` gives it up"));
        return answers.send(&Frame::Refused(Refusal::environment(failure)));
    }
    let mut agent = at_work(&folder);
    let mut waited = None;
    let mut reader = EventReader::new(&folder);
    let (mut concluded, mut seq) = (false, since);
    loop {
        // Asked before reading, so that nothing it wrote is missed.
        let alive = agent.is_some_and(process::alive);
        let events = reader.read().unwrap_or_default();
        // An outcome from before that is not one any more.
        let taken_up = events.iter().rposition(|e| matches!(e.kind, EventKind::TakenUp { .. }));
        for (index, event) in events.into_iter().enumerate() {
            let counts = taken_up.is_none_or(|taken_up| taken_up < index);
            concluded = counts && (concluded || matches!(event.kind, EventKind::Concluded(_)));
            let last = counts && is_last(&event, wait);
            seq = seq.max(event.seq);
            if event.seq > since {
                answers.send(&Frame::Event(event));
            }
            if last || !answers.are_heard() {
                return;
            }
        }
        if !alive {
            // Where systemd keeps the agent, another one takes over within moments.
            let successor = at_work(&folder).filter(|successor| Some(*successor) != agent);
            let begin = *waited.get_or_insert_with(Instant::now);
            if successor.is_some() {
                (agent, waited) = (successor, None);
                continue;
            }
            if AgentUnit::of(dir.service()).is_there() && begin.elapsed() < TAKEOVER_LIMIT {
                sleep(LOOK).await;
                continue;
            }
            return answers.send(&left(dir, swap, (concluded, seq)));
        }
        tokio::select! {
            () = watch.changed() => {}
            () = gone(agent) => {}
        }
    }
}

/// What is said of a swap whose agent is gone and has no successor; its story ended with the event of this number.
fn left(dir: &ServiceDir, swap: &SwapId, (concluded, seq): (bool, u64)) -> Frame {
    // It may have died between writing down that all is over and telling it. Nobody adds to that story any more.
    if let Some((closing, at)) = closing::untold(dir, swap).filter(|_| concluded) {
        let (swap, kind) = (swap.clone(), EventKind::Closed(closing));
        return Frame::Event(Event { v: WIRE_VERSION, swap, seq: seq + 1, at, kind });
    }
    // Or between writing its outcome down and telling that.
    let has_outcome = concluded || Journal::is_at_its_end(&dir.swap(swap));
    let gone = if has_outcome { gone_after_outcome } else { gone_before_outcome };
    Frame::Refused(Refusal { known: Known::Left, ..Refusal::environment(gone(swap)) })
}

fn gone_after_outcome(swap: &SwapId) -> Failure {
    Failure::new(format!(
        "the agent that works on swap {swap} is gone; the swap has its outcome, and perhaps not all that comes after it"
    ))
    .hint("`model-swap status` tells what still runs; the next swap retires it")
}

fn gone_before_outcome(swap: &SwapId) -> Failure {
    Failure::new(format!(
        "the agent that works on swap {swap} is gone, and the swap has no outcome"
    ))
    .hint(
        "`model-swap repair`, or any other command that changes something, brings it to its end first; traffic is where \
         `model-swap status` says",
    )
}

/// Returns once the agent is gone; never without one, or where its end cannot be seen.
pub(super) async fn gone(agent: Option<ProcessId>) {
    match agent {
        Some(agent) => {
            if process::exited(agent).await.is_err() {
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}

fn is_last(event: &Event, wait: Wait) -> bool {
    matches!(
        (&event.kind, wait),
        (EventKind::Closed(_), _)
            | (EventKind::Concluded(_), Wait::Promoted)
            | (EventKind::Overdue { .. }, Wait::Retired)
    )
}
