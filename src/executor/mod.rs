//! F3: the engine room. One small executor drives the steps: record, act, record; on failure, undo backwards.

mod away;
mod context;
mod direction;
mod observe;
mod route;
mod running;
mod steps;
mod underway;

use context::Cutover;
pub use context::{Context, started};
pub use direction::{Direction, Wanted, direction, replicas_left};
pub use observe::{
    Unfinished, World, beside_loopback, look, met, observe, report_unseen, unfinished_swaps,
};
use route::is_where_it_was;
pub use route::{Presence, confirm_route, presence, prove_route, traffic_now};
pub use underway::Underway;

use crate::abort;
use crate::host::Host;
use crate::journal::{Journal, JournalError};
use crate::model::event::{Conclusion, EventKind};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ProcessId, SlotName};
use crate::model::outcome::Outcome;
use crate::model::plan::{Side, Strategy};
use crate::model::record::{RecordKind, Traffic, Undo};
use crate::model::step::Step;
use crate::swap::recovery::{self, Recovery};
use crate::swap::transition::StepStatus;
use steps::Acted;

/// Executes a plan up to and including `promote`, or unwinds what it began. An order to abort is looked for between the
/// steps, and by every step that waits.
///
/// # Errors
/// Only if the journal cannot be written: then nothing more is done, and recovery decides later.
pub async fn execute<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
) -> Result<Conclusion, JournalError> {
    cx.note(Cutover::NotLoaded);
    for index in 0..cx.plan.steps.len() {
        if let Some(order) = cx.order() {
            return unwind(cx, journal, order.failure()).await;
        }
        if let Err(failure) = perform(cx, journal, index).await? {
            return unwind(cx, journal, failure).await;
        }
    }
    conclude(cx, journal)
}

/// Returns once a replica that lost its traffic has nothing in flight, however long that takes.
///
/// # Errors
/// If it cannot be told what is retained.
pub async fn await_idle<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<(), Failure> {
    steps::drain::await_idle(cx, slot).await
}

/// Whether it has nothing in flight now.
///
/// # Errors
/// If it cannot be told what is retained.
pub async fn is_idle<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<bool, Failure> {
    steps::drain::is_idle(cx, slot).await
}

/// Executes one step after `promote`: `drain` or `retire`.
///
/// # Errors
/// The outer one if the journal cannot be written, the inner one if the step failed.
pub async fn perform<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    index: usize,
) -> Result<Result<(), Failure>, JournalError> {
    let Some(planned) = cx.plan.all_steps().nth(index) else {
        return Ok(Ok(()));
    };
    let clock = std::time::Instant::now();
    cx.begin(index);
    cx.tell(EventKind::StepStarted { index });
    let took_ms = || u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
    let undo = match steps::prepare(cx, &planned.step).await {
        Ok(undo) => undo,
        // Nothing was done yet, so there is nothing to record or to undo.
        Err(failure) => {
            cx.outlive_shutdown().await;
            cx.tell(EventKind::StepFailed { index, took_ms: took_ms(), failure: failure.clone() });
            return Ok(Err(failure));
        }
    };
    journal.append(RecordKind::Started { step: index, undo: undo.clone() }, cx.host.now())?;
    match steps::act(cx, &planned.step, &undo, journal.records()).await {
        Ok(Acted { done, detail }) => {
            journal.append(RecordKind::Succeeded { step: index, done }, cx.host.now())?;
            cx.tell(EventKind::StepSucceeded { index, took_ms: took_ms(), detail });
            Ok(Ok(()))
        }
        Err(failure) => {
            cx.outlive_shutdown().await;
            let kind = RecordKind::Failed { step: index, failure: failure.clone() };
            journal.append(kind, cx.host.now())?;
            cx.tell(EventKind::StepFailed { index, took_ms: took_ms(), failure: failure.clone() });
            Ok(Err(failure))
        }
    }
}

/// Brings an interrupted swap to its end, from its journal. `None` if it had one already, or was known to be stuck. An undo
/// that failed is not tried again: the swap is stuck, and that is said.
///
/// # Errors
/// If the journal cannot be written.
pub async fn recover<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
) -> Result<Option<Conclusion>, JournalError> {
    match recovery::decide(journal.status()) {
        Recovery::Finished | Recovery::Stuck => {
            tell_end(cx, journal).await;
            Ok(None)
        }
        Recovery::Conclude => conclude(cx, journal).map(Some),
        Recovery::GiveUp => give_up(cx, journal, why_unwound(cx, journal)).await.map(Some),
        Recovery::Unwind => unwind(cx, journal, why_unwound(cx, journal)).await.map(Some),
    }
}

/// As [`recover`], and tries the undo again that a stuck swap failed of: whoever asks for it has mended what was wrong.
///
/// # Errors
/// If the journal cannot be written.
pub async fn repair<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
) -> Result<Option<Conclusion>, JournalError> {
    if matches!(recovery::decide(journal.status()), Recovery::GiveUp | Recovery::Stuck) {
        return unwind(cx, journal, why_unwound(cx, journal)).await.map(Some);
    }
    recover(cx, journal).await
}

/// Tells the outcome of a swap whose agent died between writing it down and telling it.
async fn tell_end<H: Host>(cx: &Context<'_, H>, journal: &Journal) {
    let Some(outcome) = journal.status().outcome.filter(|_| !cx.has_told_its_end()) else { return };
    let conclusion = match outcome {
        Outcome::Stuck => stuck(cx, journal, why_unwound(cx, journal)).await,
        _ if journal.status().promoted() => cx.done(outcome),
        _ => unwound(cx, outcome, why_unwound(cx, journal)).await,
    };
    cx.tell(EventKind::Concluded(conclusion));
}

/// Why a swap came to nothing that another process unwinds.
fn why_unwound<H: Host>(cx: &Context<'_, H>, journal: &Journal) -> Failure {
    if let Some(order) = abort::ordered(cx.dir, &cx.swap) {
        return order.failure();
    }
    let failed = journal.records().iter().rev().find_map(|record| match &record.kind {
        RecordKind::Failed { failure, .. } => Some(failure.clone()),
        _ => None,
    });
    let died = "the agent that worked on this swap ended before it was done";
    failed.unwrap_or_else(|| Failure::new(died))
}

/// Finishes a swap whose agent is gone, whose traffic was moved, and which had no incumbent or one that does not come back; also one
/// that is stuck at the undo of its cutover.
///
/// # Errors
/// If the journal cannot be written.
pub async fn finish<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
) -> Result<Conclusion, JournalError> {
    cx.go_forward();
    let why = cx.plan.incumbent.as_ref().map_or_else(
        || "nobody served before".to_owned(),
        |Side { slot, revision, .. }| {
            format!("{} in slot {slot}, which served before, does not come back", revision.model)
        },
    );
    let model = &cx.plan.candidate.revision.model;
    let text = format!("{why}: the swap goes on to its end with {model}");
    cx.tell(EventKind::Warning { text });
    for index in 0..cx.plan.steps.len() {
        if let Some(order) = cx.order() {
            return unwind(cx, journal, order.failure()).await;
        }
        let done = match journal.status().steps[index] {
            StepStatus::Succeeded => continue,
            StepStatus::Pending => perform(cx, journal, index).await?,
            StepStatus::Undoing | StepStatus::UndoFailed => turn(cx, journal, index).await?,
            _ => again(cx, journal, index).await?,
        };
        if let Err(failure) = done {
            return unwind(cx, journal, failure).await;
        }
    }
    if let Some(order) = abort::ordered(cx.dir, &cx.swap).filter(|_| cx.plan.incumbent.is_some()) {
        let asked = order.failure().message;
        let text =
            format!("{asked}, but what served before is gone: traffic stays with the new model");
        cx.tell(EventKind::Warning { text });
    }
    conclude(cx, journal)
}

/// Does a step again whose undo was begun, at whose end the world may be as it wanted it.
async fn turn<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    index: usize,
) -> Result<Result<(), Failure>, JournalError> {
    cx.begin(index);
    cx.tell(EventKind::StepStarted { index });
    let undo = undo_of(journal, index);
    journal.append(RecordKind::Started { step: index, undo }, cx.host.now())?;
    again(cx, journal, index).await
}

/// Does the rest of a step that another agent began, at whose end the world is as it wanted it.
async fn again<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    index: usize,
) -> Result<Result<(), Failure>, JournalError> {
    let Some(planned) = cx.plan.steps.get(index) else { return Ok(Ok(())) };
    cx.begin(index);
    let undo = undo_of(journal, index);
    match steps::again(cx, &planned.step, &undo, journal.records()).await {
        Ok(Acted { done, detail }) => {
            journal.append(RecordKind::Succeeded { step: index, done }, cx.host.now())?;
            cx.tell(EventKind::StepSucceeded { index, took_ms: 0, detail });
            Ok(Ok(()))
        }
        Err(failure) => {
            cx.outlive_shutdown().await;
            let kind = RecordKind::Failed { step: index, failure: failure.clone() };
            journal.append(kind, cx.host.now())?;
            cx.tell(EventKind::StepFailed { index, took_ms: 0, failure: failure.clone() });
            Ok(Err(failure))
        }
    }
}

/// Undoes what was begun, backwards, and stops at the first undo that fails.
async fn unwind<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    failure: Failure,
) -> Result<Conclusion, JournalError> {
    let to_undo = journal.status().to_undo();
    let moves = to_undo.iter().any(|index| is_cutover(cx, *index));
    if !moves && is_where_it_was(cx).await {
        cx.tell_traffic_is_back();
    }
    if recovery::never_cut_over(journal.status(), &cx.plan) {
        cx.note_never_begun();
    }
    if has_arrived(cx, journal) {
        cx.note_arrived();
    }
    cx.note_workers_before(workers_before(journal));
    for index in to_undo {
        let Some(planned) = cx.plan.steps.get(index) else { continue };
        let (undo, moved) = (undo_of(journal, index), was_moved(journal, index));
        cx.begin(index);
        journal.append(RecordKind::UndoStarted { step: index }, cx.host.now())?;
        cx.tell(EventKind::UndoStarted { index });
        match steps::undo(cx, &planned.step, &undo).await {
            Ok(undone) => {
                let traffic = match &undo {
                    // An undo that was interrupted may have brought it back, or a person.
                    Undo::Upstream { .. } if moved => Traffic::Returned,
                    _ => undone.traffic(),
                };
                let kind = RecordKind::UndoFinished { step: index, traffic };
                journal.append(kind, cx.host.now())?;
                cx.tell(EventKind::UndoFinished { index, detail: undone.detail() });
            }
            Err(why) => {
                cx.outlive_shutdown().await;
                let kind = RecordKind::UndoFailed { step: index, failure: why.clone() };
                journal.append(kind, cx.host.now())?;
                cx.tell(EventKind::UndoFailed { index, failure: why });
                return give_up(cx, journal, failure).await;
            }
        }
    }
    // A rollback that fails leaves traffic where it was: that is no rollback.
    let outcome = match cx.plan.strategy {
        // Whatever went wrong meanwhile: it was given up, and is.
        _ if abort::ordered(cx.dir, &cx.swap).is_some() => Outcome::Aborted,
        // Nor does a swap that leaves the service as it found it: down.
        Strategy::BlueGreen if cx.plan.incumbent.is_some() && traffic_returned(journal) => {
            Outcome::RolledBack
        }
        Strategy::BlueGreen | Strategy::WarmRollback | Strategy::ColdRollback => Outcome::Failed,
    };
    journal.append(RecordKind::Concluded { outcome }, cx.host.now())?;
    let conclusion = unwound(cx, outcome, failure).await;
    cx.tell(EventKind::Concluded(conclusion.clone()));
    Ok(conclusion)
}

/// How a swap ended of which everything is undone.
async fn unwound<H: Host>(cx: &Context<'_, H>, outcome: Outcome, failure: Failure) -> Conclusion {
    let before = cx.plan.incumbent.as_ref();
    let traffic = match is_where_it_was(cx).await {
        true => (cx.traffic(before), before.cloned()),
        false => traffic_now(cx.host, cx.spec(), &cx.plan).await,
    };
    came_to_nothing(outcome, traffic, failure)
}

/// Ends a swap of which an undo failed.
async fn give_up<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    reason: Failure,
) -> Result<Conclusion, JournalError> {
    let conclusion = stuck(cx, journal, reason).await;
    journal.append(RecordKind::Concluded { outcome: conclusion.outcome }, cx.host.now())?;
    cx.tell(EventKind::Concluded(conclusion.clone()));
    Ok(conclusion)
}

/// How a swap ended of which an undo failed: all that a person needs.
async fn stuck<H: Host>(cx: &Context<'_, H>, journal: &Journal, reason: Failure) -> Conclusion {
    let failed = journal.records().iter().rev().find_map(|record| match &record.kind {
        RecordKind::UndoFailed { step, failure } => {
            Some((cx.plan.steps.get(*step)?.step.to_string(), failure.clone()))
        }
        _ => None,
    });
    let (step, why) = failed.unwrap_or_else(|| ("a step".to_owned(), reason.clone()));
    let traffic = traffic_now(cx.host, cx.spec(), &cx.plan).await;
    let failure = Failure {
        message: format!("cannot undo {step}: {}", why.message),
        causes: [why.causes, vec![format!("it was to be undone because {}", reason.message)]]
            .concat(),
        hints: why.hints,
        log_tail: if why.log_tail.is_empty() { reason.log_tail } else { why.log_tail },
        location: None,
    }
    .hint(recovery::MEND_FIRST);
    came_to_nothing(Outcome::Stuck, traffic, failure)
}

/// Where traffic is, and what serves as far as that is known.
fn came_to_nothing(
    outcome: Outcome,
    (traffic, serves): (String, Option<Side>),
    failure: Failure,
) -> Conclusion {
    Conclusion {
        outcome,
        traffic,
        slot: serves.as_ref().map(|side| side.slot.clone()),
        revision: serves.map(|side| side.revision),
        previous_revision: None,
        rollback_until: None,
        failure: Some(failure),
    }
}

fn is_cutover<H: Host>(cx: &Context<'_, H>, index: usize) -> bool {
    cx.plan.steps.get(index).is_some_and(|planned| matches!(planned.step, Step::CutOver { .. }))
}

/// Whether a cutover of the swap was ever done, whatever became of it since.
fn has_arrived<H: Host>(cx: &Context<'_, H>, journal: &Journal) -> bool {
    journal.records().iter().any(
        |record| matches!(record.kind, RecordKind::Succeeded { step, .. } if is_cutover(cx, step)),
    )
}

/// Whether traffic was away and came back, in this life of the agent or in an earlier one.
fn traffic_returned(journal: &Journal) -> bool {
    journal.records().iter().any(|record| {
        matches!(record.kind, RecordKind::UndoFinished { traffic: Traffic::Returned, .. })
    })
}

/// Whether the step was done, or an earlier undo of it begun.
fn was_moved(journal: &Journal, index: usize) -> bool {
    journal.records().iter().any(|record| {
        matches!(
            record.kind,
            RecordKind::Succeeded { step, .. } | RecordKind::UndoStarted { step } if step == index
        )
    })
}

/// The nginx workers that were there when the swap's cutover was begun.
fn workers_before(journal: &Journal) -> Vec<ProcessId> {
    let begun = journal.records().iter().rev().find_map(|record| match &record.kind {
        RecordKind::Started { undo: Undo::Upstream { workers, .. }, .. } => Some(workers.clone()),
        _ => None,
    });
    begun.unwrap_or_default()
}

fn undo_of(journal: &Journal, index: usize) -> Undo {
    let started = journal.records().iter().rev().find_map(|record| match &record.kind {
        RecordKind::Started { step, undo } if *step == index => Some(undo.clone()),
        _ => None,
    });
    started.unwrap_or(Undo::Nothing)
}

/// Ends a swap of which every step up to `promote` is done.
fn conclude<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
) -> Result<Conclusion, JournalError> {
    let outcome = match cx.plan.strategy {
        Strategy::BlueGreen => Outcome::Promoted,
        Strategy::WarmRollback | Strategy::ColdRollback => Outcome::RolledBack,
    };
    journal.append(RecordKind::Concluded { outcome }, cx.host.now())?;
    let conclusion = cx.done(outcome);
    cx.tell(EventKind::Concluded(conclusion.clone()));
    Ok(conclusion)
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        error.to_failure()
    }
}
