//! Brings a swap to its end that nobody works on any more: the same, whoever finds it, a command or the agent that systemd
//! keeps.

use super::closing::{close_all, last_word};
use super::follow;
use super::left::Left;
use super::run::remember;
use crate::executor::{self, Context, Direction, Wanted, unfinished_swaps};
use crate::host::docker::{self, DockerError};
use crate::host::{Host, SystemHost, process};
use crate::journal::Journal;
use crate::model::event::EventKind;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::Plan;
use crate::model::record::RecordKind;
use crate::model::replica::Keeper;
use crate::model::wire::Asked;
use crate::service_dir::ServiceDir;
use crate::swap::recovery;

/// Brings a swap to its end; `accepted` is called once that is about to begin. What it leaves warm is for
/// [`aftermath::go_on`](super::aftermath::go_on). It is done by its own specification; of what a command asks for now the
/// secrets count, and for a repair how a replica is drained.
///
/// # Errors
/// If the swap's folder cannot be read or written, nginx cannot be seen that may send requests to the candidate, or Docker
/// does not answer that keeps one side. Then the swap is where it was, or half-way, and may be brought to its end later.
pub(super) async fn bring_to_end(
    dir: &ServiceDir,
    swap: &SwapId,
    (given, wanted): (Option<&Asked>, Wanted),
    accepted: impl FnOnce(),
) -> Result<(), Failure> {
    dir.forget_last_boot(&process::boot())?;
    let Some((mut left, mut journal)) = Left::open(dir, swap, given).await? else { return Ok(()) };
    if let (Some(asked), Wanted::Repair) = (given, wanted) {
        left.drain_as(&asked.spec);
    }
    let mut cx = left.context(dir)?;
    // Whoever follows the swap looks at this process from now on.
    follow::take_over(&dir.swap(swap))?;
    if is_open(journal.status().outcome, wanted) {
        docker_answers(&cx.plan).await?;
        if recovery::may_be_moved(journal.status(), &cx.plan) {
            seen(cx.host).await?;
        }
        cx.tell(EventKind::TakenUp { found: recovery::found(journal.status(), &cx.plan) });
    }
    accepted();
    match (executor::direction(&cx, &journal, wanted).await, wanted) {
        (Direction::Forward, _) => {
            cx.replicas = executor::replicas_left(&cx, &journal)?;
            executor::finish(&cx, &mut journal).await.map(drop)
        }
        (Direction::Back, Wanted::End) => executor::recover(&cx, &mut journal).await.map(drop),
        (Direction::Back, Wanted::Repair) => executor::repair(&cx, &mut journal).await.map(drop),
    }
    .map_err(Failure::from)?;
    close(&cx, &mut journal)
}

/// Without nginx nothing can be moved or proven, and what is tried would end stuck. After a boot it may come up late.
async fn seen(host: &SystemHost) -> Result<(), Failure> {
    let unseen = |failure: Failure| {
        failure.hint(
        "a swap may have sent requests to the new model, and its agent is gone: it is brought to its end once nginx can be seen",
    )
    };
    host.upstream().await.map(drop).map_err(unseen)
}

/// Without its Engine no container can be found or stopped, and what is tried would end stuck. It may come up late, too.
///
/// # Errors
/// If one side of the plan is a container, and Docker does not answer.
pub(super) async fn docker_answers(plan: &Plan) -> Result<(), Failure> {
    let mut sides = plan.incumbent.iter().chain([&plan.candidate]);
    if !sides.any(|side| matches!(side.keeper, Keeper::Docker(_))) {
        return Ok(());
    }
    let unseen = |error: DockerError| {
        error
            .to_failure()
            .hint("a swap has containers, and its agent is gone: it is brought to its end once Docker answers")
    };
    docker::versions().await.map(drop).map_err(unseen)
}

/// Writes down that it is over, and tells so. Its agent may have died when it had the outcome, and before it could.
fn close(cx: &Context<'_, SystemHost>, journal: &mut Journal) -> Result<(), Failure> {
    let Some(outcome) = journal.status().outcome else { return Ok(()) };
    let state = cx.dir.load()?;
    let is_told = state.history.iter().any(|past| past.swap == cx.swap && past.outcome == outcome);
    if !journal.status().promoted() && !is_told {
        remember(cx.dir, &cx.swap, outcome, &cx.plan, cx.host.now())?;
    }
    let retained = state.retained.as_ref();
    let keeps_something = retained.is_some_and(|retained| retained.swap == cx.swap);
    if !keeps_something && !journal.status().closed {
        journal.append(RecordKind::Closed, cx.host.now())?;
        cx.tell(EventKind::Closed(last_word((&cx.swap, &cx.plan), journal.status(), &state)));
    }
    Ok(())
}

/// The newest swap that is not at its end, unless a person has to mend it first: an older one is undone after it. For the
/// holder of the lease, nobody works on it.
pub(super) fn left_open(dir: &ServiceDir) -> Option<SwapId> {
    let newest = unfinished_swaps(dir).into_iter().next();
    newest.filter(|unfinished| !unfinished.needs_a_person()).map(|unfinished| unfinished.swap)
}

/// Brings every swap to its end that can be, newest first, and closes those that are there, for the holder of the lease.
///
/// # Errors
/// As [`bring_to_end`].
pub(super) async fn bring_all_to_end(
    dir: &ServiceDir,
    given: Option<&Asked>,
) -> Result<(), Failure> {
    let mut before = None;
    while let Some(swap) = left_open(dir).filter(|swap| before.as_ref() != Some(swap)) {
        bring_to_end(dir, &swap, (given, Wanted::End), || {}).await?;
        before = Some(swap);
    }
    close_all(dir);
    Ok(())
}

/// Whether a swap has begun and is not at its end. What cannot be read is for its recovery to tell.
pub(super) fn needs(dir: &ServiceDir, swap: &SwapId, wanted: Wanted) -> bool {
    let folder = dir.swap(swap);
    Journal::has_begun(&folder)
        && Journal::look(&folder).map_or(true, |status| is_open(status.outcome, wanted))
}

fn is_open(outcome: Option<Outcome>, wanted: Wanted) -> bool {
    match outcome {
        None => true,
        Some(Outcome::Stuck) => wanted == Wanted::Repair,
        Some(_) => false,
    }
}
