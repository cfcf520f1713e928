//! The job summary, in Markdown.

use jiff::Timestamp;

use super::counts::{Counts, mean};
use super::failure::{hints, reasons, tail};
use super::gates::{Gate, Gates};
use super::markdown::{code, fenced, unbroken};
use super::plan::title;
use super::text::{duration, millis_between, moment};
use crate::model::event::{Closing, Conclusion, Event, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, PlannedStep, Side};

/// A swap as far as its events have told it.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    seq: u64,
    swap: Option<SwapId>,
    began: Option<Timestamp>,
    plan: Option<Plan>,
    rows: Vec<Row>,
    warnings: Vec<String>,
    counts: Counts,
    gates: Gates,
    conclusion: Option<(Timestamp, Conclusion)>,
    closing: Option<Closing>,
}

/// What became of a step.
#[derive(Debug, Clone, Default)]
struct Row {
    result: StepResult,
    /// From the swap's beginning to the step's, in milliseconds.
    after_ms: Option<u64>,
    took_ms: Option<u64>,
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
enum StepResult {
    #[default]
    NotReached,
    Running,
    Done,
    Failed,
    Undone,
    UndoFailed,
}

impl Summary {
    /// Takes one event in; one that was taken before is ignored.
    pub fn apply(&mut self, event: &Event) {
        if event.seq <= self.seq {
            return;
        }
        self.seq = event.seq;
        self.swap.get_or_insert_with(|| event.swap.clone());
        self.began.get_or_insert(event.at);
        self.gates.take(self.plan.as_ref(), event);
        match &event.kind {
            EventKind::Planned { plan, .. } => {
                self.rows = plan.all_steps().map(|_| Row::default()).collect();
                self.plan = Some(plan.as_ref().clone());
            }
            EventKind::StepStarted { index } => {
                self.step(*index, StepResult::Running, None, None);
                let after_ms = self.began.map(|began| millis_between(began, event.at));
                if let Some(row) = self.rows.get_mut(*index) {
                    row.after_ms = after_ms;
                }
            }
            EventKind::StepSucceeded { index, took_ms, detail } => {
                self.step(*index, StepResult::Done, Some(*took_ms), Some(detail));
            }
            EventKind::StepFailed { index, took_ms, failure } => {
                self.step(*index, StepResult::Failed, Some(*took_ms), Some(&failure.message));
            }
            // A failed step stays one, though it may have been half-done and is undone as well.
            EventKind::UndoFinished { index, detail } if !self.has_failed(*index) => {
                self.step(*index, StepResult::Undone, None, Some(detail));
            }
            EventKind::UndoFailed { index, failure } => {
                self.step(*index, StepResult::UndoFailed, None, Some(&failure.message));
            }
            // The steps' rows say what becomes of it now.
            EventKind::TakenUp { found } => {
                self.conclusion = None;
                self.warnings.push(format!("taken up again: {found}"));
            }
            EventKind::Warning { text } => self.warnings.push(text.clone()),
            EventKind::Overdue { failure } => self.warnings.push(failure.message.clone()),
            EventKind::Concluded(conclusion) => {
                self.conclusion = Some((event.at, conclusion.clone()))
            }
            EventKind::Closed(closing) => self.closing = Some(closing.clone()),
            EventKind::Sampled(sample) => self.counts.take(sample),
            EventKind::UndoFinished { .. }
            | EventKind::UndoStarted { .. }
            | EventKind::TrafficIsBack { .. }
            | EventKind::Progress { .. }
            | EventKind::GatePassed { .. }
            | EventKind::AwaitsWord { .. }
            | EventKind::Unknown => {}
        }
    }

    /// The summary of what is known so far, also when the outcome is not.
    pub fn markdown(&self) -> String {
        let Some(plan) = &self.plan else { return String::new() };
        let conclusion = self.conclusion.as_ref().map(|(_, conclusion)| conclusion);
        let outcome = conclusion
            .map_or_else(|| "outcome not known".to_owned(), |end| end.outcome.to_string());
        let mut parts = vec![format!("## {}: {outcome}\n", plan.service), sides(plan)];
        parts.push(self.traffic());
        parts.extend(
            conclusion.and_then(|end| end.failure.as_ref()).map(|failure| why("Why", failure)),
        );
        parts.push(table(plan.all_steps().zip(&self.rows)));
        parts.extend(gates(self.gates.met()));
        parts.extend(self.requests(plan));
        parts.extend(self.memory());
        parts.extend(warnings(self.warnings.iter().chain(&plan.notes)));
        parts.extend(self.after());
        parts.extend(self.rollback());
        parts.join("\n")
    }

    fn traffic(&self) -> String {
        let Some((at, conclusion)) = &self.conclusion else {
            return "The events ended before the outcome was known. The server goes on by itself; `command: status` \
                    tells what serves.\n"
                .to_owned();
        };
        let took = duration(self.began.map_or(0, |began| millis_between(began, *at)));
        format!("Traffic after {took}: {}\n", code(&conclusion.traffic))
    }

    /// What the engines have counted since the swap began.
    fn requests(&self, plan: &Plan) -> Option<String> {
        let sides = plan.incumbent.iter().chain([&plan.candidate]);
        let counted: Vec<_> =
            sides.filter_map(|side| Some((side, self.counts.since_first(&side.slot)?))).collect();
        let cut: u64 = counted.iter().map(|(_, counted)| counted.cut).sum();
        let completed = counted.iter().map(|(side, counted)| {
            let by = format!(
                "{} by {} in slot {}",
                counted.completed,
                code(&side.revision.model),
                side.slot
            );
            mean(counted).map_or(by.clone(), |mean| format!("{by} ({mean} each)"))
        });
        let completed = completed.collect::<Vec<_>>().join(", ");
        (!counted.is_empty()).then(|| {
            format!("Requests completed meanwhile: {completed}. Cut by an engine: {cut}.\n")
        })
    }

    /// What the GPUs of the slots hold, by the latest look.
    fn memory(&self) -> Option<String> {
        let gpus = self.counts.gpus().iter().map(|gpu| {
            let gib = |mib: u64| format!("{}.{}", mib / 1024, mib % 1024 * 10 / 1024);
            format!("GPU {} {} of {} GiB", gpu.index, gib(gpu.used), gib(gpu.total))
        });
        let gpus = gpus.collect::<Vec<_>>().join(", ");
        (!gpus.is_empty()).then(|| format!("GPU memory in use at the end: {gpus}.\n"))
    }

    /// What became of the replica that lost its traffic.
    fn after(&self) -> Option<String> {
        match self.closing.as_ref()? {
            Closing::Nothing => None,
            Closing::Retired { slot } => {
                Some(format!("Slot {slot} is free: its replica is drained and gone.\n"))
            }
            Closing::Kept { slot, failure } => {
                Some(why(&format!("The replica on slot {slot} still runs"), failure))
            }
            Closing::Superseded { by: Some(swap) } => {
                Some(format!("`{swap}` took over what was left to do.\n"))
            }
            Closing::Superseded { by: None } => {
                Some("Another command took over what was left to do.\n".to_owned())
            }
        }
    }

    fn rollback(&self) -> Option<String> {
        let (_, conclusion) = self.conclusion.as_ref()?;
        let until = conclusion.rollback_until?;
        let still_there = match self.closing {
            None | Some(Closing::Nothing | Closing::Kept { .. }) => true,
            Some(Closing::Retired { .. } | Closing::Superseded { .. }) => false,
        };
        let swap = self
            .swap
            .as_ref()
            .filter(|_| conclusion.outcome == Outcome::Promoted && still_there)?;
        Some(format!(
            "### Roll back\n\nThe previous replica stays warm until {}. To bring it back:\n\n\
             ```yaml\nwith:\n  command: rollback\n  swap-id: {swap}\n```\n",
            moment(until)
        ))
    }

    fn has_failed(&self, index: usize) -> bool {
        self.rows.get(index).is_some_and(|row| matches!(row.result, StepResult::Failed))
    }

    fn step(
        &mut self,
        index: usize,
        result: StepResult,
        took_ms: Option<u64>,
        detail: Option<&str>,
    ) {
        if let Some(row) = self.rows.get_mut(index) {
            row.result = result;
            row.took_ms = took_ms.or(row.took_ms);
            row.detail = detail.map(str::to_owned);
        }
    }
}

impl StepResult {
    fn word(self) -> &'static str {
        match self {
            Self::NotReached => "–",
            Self::Running => "running",
            Self::Done => "✓ done",
            Self::Failed => "✗ failed",
            Self::Undone => "↩ undone",
            Self::UndoFailed => "✗ not undone",
        }
    }
}

/// How the line begins that says what a plan will likely meet.
pub(super) const OUTLOOK: &str = "Outlook: ";

/// The summary of `plan`, with what it will likely meet.
pub fn of_plan(plan: &Plan, outlook: &[String]) -> String {
    let nothing_yet = Row::default();
    let mut parts =
        vec![format!("## {} {}\n", title(plan), code(&plan.approval().to_string())), sides(plan)];
    parts.push(table(plan.all_steps().map(|planned| (planned, &nothing_yet))));
    if !outlook.is_empty() {
        let seen: Vec<_> = outlook.iter().map(|seen| code(seen)).collect();
        parts.push(format!("{OUTLOOK}{}.\n", seen.join("; ")));
    }
    parts.extend(warnings(plan.notes.iter()));
    parts.join("\n")
}

/// The summary of a command that found nothing to do.
pub fn of_unchanged(reason: &str) -> String {
    format!("## unchanged\n\n{}\n", code(reason))
}

/// The summary of an abort of what had not begun.
pub fn of_given_up(failures: &[Failure]) -> String {
    let said = failures.iter().flat_map(|failure| {
        std::iter::once(failure.to_string()).chain(failure.hints.iter().cloned())
    });
    let said: Vec<String> = said.map(|text| code(&text)).collect();
    format!("## aborted\n\n{}\n", said.join("\n\n"))
}

/// The summary of a command that was refused.
pub fn of_refusal(failures: &[Failure]) -> String {
    let parts: Vec<String> = failures.iter().map(|failure| why("Refused", failure)).collect();
    format!("## Nothing was done\n\n{}", parts.join("\n"))
}

/// Why a swap that had begun could not be followed to its end; stands after what is known of it.
pub fn of_loss(failures: &[Failure]) -> String {
    failures.iter().map(|failure| format!("\n{}", why("Lost", failure))).collect()
}

/// Why nobody can say how a swap ended that was asked for.
pub fn of_unknown(failures: &[Failure]) -> String {
    format!("## Outcome not known\n{}", of_loss(failures))
}

fn sides(plan: &Plan) -> String {
    let side = |side: &Side| format!("{} on slot {}", code(&side.revision.to_string()), side.slot);
    let now = plan.incumbent.as_ref().map_or_else(|| "nothing".to_owned(), side);
    format!("{now} → {}\n", side(&plan.candidate))
}

fn table<'a>(rows: impl Iterator<Item = (&'a PlannedStep, &'a Row)>) -> String {
    let rows: Vec<_> = rows.collect();
    let end = |row: &Row| Some(row.after_ms? + row.took_ms.unwrap_or(0));
    let whole = rows.iter().filter_map(|(_, row)| end(row)).max().unwrap_or(0);
    let text: String = rows
        .into_iter()
        .map(|(planned, row)| {
            let took = row.took_ms.map(duration).unwrap_or_default();
            let after = row.after_ms.map(duration).unwrap_or_default();
            let bar = row.after_ms.map(|after| bar(after, row.took_ms.unwrap_or(0), whole));
            let detail = code(row.detail.as_deref().unwrap_or(&planned.does));
            let step = unbroken(&planned.step.to_string());
            let word = unbroken(row.result.word());
            format!(
                "| {step} | {word} | {after} | {took} | {} | {detail} |\n",
                bar.unwrap_or_default()
            )
        })
        .collect();
    format!("| Step | Result | After | Took | When | |\n|---|---|--:|--:|---|---|\n{text}")
}

fn gates(met: &[Gate]) -> Option<String> {
    let row = |gate: &Gate| {
        let sign = if gate.passed { "✓" } else { "✗" };
        format!("| {} | {sign} | {} |\n", code(&gate.name), code(&gate.measured))
    };
    let rows: String = met.iter().map(row).collect();
    (!rows.is_empty()).then(|| format!("| Gate | | Measured |\n|---|---|---|\n{rows}"))
}

/// Cells of a bar.
const CELLS: u64 = 20;

/// A step in the swap's time. GitHub draws no diagram in a summary for sure; it draws a table and these characters.
fn bar(after: u64, took: u64, whole: u64) -> String {
    let cell = |at: u64| (at * CELLS).checked_div(whole).unwrap_or(0).min(CELLS);
    let from = cell(after).min(CELLS - 1);
    let to = cell(after + took).max(from + 1);
    let times = |sign: &str, count: u64| sign.repeat(usize::try_from(count).unwrap_or(0));
    format!("{}{}{}", times("░", from), times("█", to - from), times("░", CELLS - to))
}

fn warnings<'a>(texts: impl Iterator<Item = &'a String>) -> Option<String> {
    let items: String = texts.map(|text| format!("- {}\n", code(text))).collect();
    (!items.is_empty()).then(|| format!("**Worth knowing**\n\n{items}"))
}

fn why(title: &str, failure: &Failure) -> String {
    let mut text = format!("### {title}\n\n{}", fenced(&reasons(failure)));
    let hints = hints(failure);
    if !hints.is_empty() {
        text.push_str(&format!("\n{}", fenced(&hints)));
    }
    let tail = tail(failure);
    if !tail.is_empty() {
        let summary = format!("Last {} lines of its log", tail.len());
        text.push_str(&format!(
            "\n<details><summary>{summary}</summary>\n\n{}\n</details>\n",
            fenced(tail)
        ));
    }
    text
}

#[cfg(test)]
mod tests;
