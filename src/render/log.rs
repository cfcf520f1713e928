//! The live log: one line for each change worth reading.

use jiff::Timestamp;

use super::text::{duration, inert, millis_between, moment};
use super::{Line, failure, plan};
use crate::model::event::{Closing, Conclusion, Event, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, PlannedStep};
use crate::model::step::Step;

/// What has been shown so far.
#[derive(Debug, Clone, Default)]
pub struct Log {
    seq: u64,
    began: Option<Timestamp>,
    plan: Option<Plan>,
    phase: Option<Phase>,
    shown: Vec<Failure>,
    wanted: &'static [Outcome],
}

impl Log {
    /// A log for somebody who wants a swap to end in one of these ways, whatever it was begun for.
    pub fn wanting(outcomes: &'static [Outcome]) -> Self {
        Self { wanted: outcomes, ..Self::default() }
    }

    /// The lines of one event; none for one that was shown before, as it happens after a reconnect.
    pub fn lines(&mut self, event: &Event) -> Vec<Line> {
        if event.seq <= self.seq {
            return Vec::new();
        }
        self.seq = event.seq;
        let began = *self.began.get_or_insert(event.at);
        let elapsed = duration(millis_between(began, event.at));
        let line = |text: String| vec![Line::Text(format!("{elapsed:>8}  {text}"))];
        match &event.kind {
            EventKind::Planned { plan, .. } => {
                self.plan = Some(plan.as_ref().clone());
                plan::lines(plan)
            }
            EventKind::StepStarted { index } => {
                let begun = line(format!("→ {}", self.step(*index, Words::WithIntent)));
                self.within(self.phase_of(*index), begun)
            }
            EventKind::Progress { text, .. } => line(format!("  {}", inert(text))),
            EventKind::StepSucceeded { index, took_ms, detail } => {
                let step = self.step(*index, Words::Name);
                line(format!("✓ {step} in {}{}", duration(*took_ms), after_colon(detail)))
            }
            EventKind::StepFailed { index, took_ms, failure } => {
                let step = self.step(*index, Words::Name);
                let text = format!(
                    "✗ {step} after {}{}",
                    duration(*took_ms),
                    after_colon(&failure.message)
                );
                let failed = self.with_details(line(text), failure);
                self.outside(failed)
            }
            EventKind::UndoStarted { index } => {
                let begun = line(format!("↩ undo {}", self.step(*index, Words::Name)));
                self.within(Phase::Undo, begun)
            }
            EventKind::UndoFinished { index, detail } => {
                line(format!("↩ undone {}{}", self.step(*index, Words::Name), after_colon(detail)))
            }
            EventKind::UndoFailed { index, failure } => {
                let step = self.step(*index, Words::Name);
                let text = format!("✗ cannot undo {step}{}", after_colon(&failure.message));
                let failed = self.with_details(line(text), failure);
                self.outside(failed)
            }
            EventKind::TrafficIsBack { traffic } => {
                let back = line(format!("↩ traffic is where it was{}", after_colon(traffic)));
                self.outside(back)
            }
            EventKind::TakenUp { found } => line(format!("taken up again{}", after_colon(found))),
            EventKind::Warning { text } => vec![Line::Warning(inert(text))],
            EventKind::Overdue { failure } => {
                let text = format!("kept and watched{}", after_colon(&failure.message));
                let overdue = self.with_details(vec![Line::Warning(text)], failure);
                self.outside(overdue)
            }
            EventKind::Concluded(conclusion) => {
                let concluded = self.concluded(&event.swap, conclusion, &elapsed);
                self.outside(concluded)
            }
            EventKind::Closed(closing) => {
                let closed = self.closed(closing, line);
                self.outside(closed)
            }
            // The line of the step that they are gates of says the same in short.
            EventKind::GatePassed { .. }
            | EventKind::AwaitsWord { .. }
            | EventKind::Sampled(_)
            | EventKind::Unknown => Vec::new(),
        }
    }

    /// Lines of a phase, which a reader may fold.
    fn within(&mut self, phase: Phase, lines: Vec<Line>) -> Vec<Line> {
        if self.phase == Some(phase) {
            return lines;
        }
        let mut all = self.outside(Vec::new());
        self.phase = Some(phase);
        all.push(Line::GroupStart(self.title(phase)));
        all.extend(lines);
        all
    }

    /// Lines that are to be seen whatever is folded.
    fn outside(&mut self, lines: Vec<Line>) -> Vec<Line> {
        let end = self.phase.take().map(|_| Line::GroupEnd);
        end.into_iter().chain(lines).collect()
    }

    fn phase_of(&self, index: usize) -> Phase {
        let steps = self.plan.as_ref().map_or(&[][..], |plan| &plan.steps);
        let is_cutover = |planned: &PlannedStep| matches!(planned.step, Step::CutOver { .. });
        match steps.iter().position(is_cutover) {
            _ if index >= steps.len() => Phase::Later,
            Some(cutover) if index < cutover => Phase::Prepare,
            _ => Phase::Move,
        }
    }

    fn title(&self, phase: Phase) -> String {
        let sides = self.plan.as_ref().map(|plan| (&plan.candidate, plan.incumbent.as_ref()));
        match (phase, sides) {
            (Phase::Prepare, Some((candidate, _))) => {
                format!("Prepare {} in slot {}", inert(&candidate.revision.model), candidate.slot)
            }
            (Phase::Move, Some((candidate, _))) => {
                format!(
                    "Move traffic to {} in slot {}",
                    inert(&candidate.revision.model),
                    candidate.slot
                )
            }
            (Phase::Later, Some((_, Some(before)))) => {
                format!(
                    "Drain and retire {} in slot {}",
                    inert(&before.revision.model),
                    before.slot
                )
            }
            (Phase::Undo, _) => "Undo".to_owned(),
            (Phase::Prepare, None) => "Prepare".to_owned(),
            (Phase::Move, None) => "Move traffic".to_owned(),
            (Phase::Later, _) => "Drain and retire".to_owned(),
        }
    }

    fn closed(&mut self, closing: &Closing, line: impl Fn(String) -> Vec<Line>) -> Vec<Line> {
        match closing {
            Closing::Nothing => Vec::new(),
            Closing::Retired { slot } => {
                line(format!("slot {slot} is free: its replica is drained and gone"))
            }
            Closing::Kept { slot, failure } => {
                let text = format!(
                    "the replica on slot {slot} still runs{}",
                    after_colon(&failure.message)
                );
                self.with_details(vec![Line::Warning(text)], failure)
            }
            Closing::Superseded { by: Some(swap) } => {
                line(format!("{swap} took over what was left to do"))
            }
            Closing::Superseded { by: None } => {
                line("another command took over what was left to do".to_owned())
            }
        }
    }

    fn concluded(&mut self, swap: &SwapId, conclusion: &Conclusion, elapsed: &str) -> Vec<Line> {
        let Conclusion { outcome, traffic, rollback_until, failure, .. } = conclusion;
        let text = format!("{outcome}{}", after_colon(traffic));
        let mut lines = if self.is_wanted(*outcome) {
            vec![Line::Text(format!("{elapsed:>8}  {text}"))]
        } else {
            let why = failure.as_ref().map(|failure| format!("; {}", inert(&failure.message)));
            vec![Line::Error(format!("{text}{}", why.unwrap_or_default()), None)]
        };
        if let Some(failure) = failure {
            lines = self.with_details(lines, failure);
        }
        lines.extend(rollback_until.map(|until| {
            Line::Text(format!(
                "{:>8}  the previous replica stays warm until {}: `model-swap rollback --swap-id {swap}` brings it back at once (in a workflow `command: rollback` with `swap-id: {swap}`)",
                "",
                moment(until)
            ))
        }));
        lines
    }

    /// Going back is what was wanted only where the plan was to go back.
    fn is_wanted(&self, outcome: Outcome) -> bool {
        match outcome {
            _ if self.wanted.contains(&outcome) => true,
            Outcome::Promoted | Outcome::Unchanged => true,
            Outcome::RolledBack => {
                self.plan.as_ref().is_some_and(|plan| plan.strategy.is_rollback())
            }
            Outcome::Aborted | Outcome::Failed | Outcome::Stuck => false,
        }
    }

    /// A step's failure is the swap's as well: its causes, hints and log are shown once.
    fn with_details(&mut self, mut lines: Vec<Line>, failure: &Failure) -> Vec<Line> {
        if !self.shown.contains(failure) {
            lines.extend(failure::details(failure));
            self.shown.push(failure.clone());
        }
        lines
    }

    fn step(&self, index: usize, words: Words) -> String {
        let planned = self.plan.as_ref().and_then(|plan| plan.all_steps().nth(index));
        match (planned, words) {
            (None, _) => format!("step {}", index + 1),
            (Some(planned), Words::Name) => planned.step.to_string(),
            (Some(planned), Words::WithIntent) => {
                format!("{}{}", planned.step, after_colon(&planned.does))
            }
        }
    }
}

/// A part of the log that a reader may fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Up to the cutover.
    Prepare,
    /// From the cutover to `promote`.
    Move,
    /// After `promote`.
    Later,
    /// Backwards.
    Undo,
}

/// How much is said of a step.
#[derive(Clone, Copy)]
enum Words {
    Name,
    WithIntent,
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {}", inert(text)) }
}

#[cfg(test)]
mod tests;
