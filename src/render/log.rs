//! The live log: one line for each change worth reading.

use jiff::Timestamp;

use super::text::{duration, inert, millis_between, moment};
use super::{Line, failure, plan};
use crate::model::event::{Closing, Conclusion, Event, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::Plan;

/// What has been shown so far.
#[derive(Debug, Clone, Default)]
pub struct Log {
    seq: u64,
    began: Option<Timestamp>,
    plan: Option<Plan>,
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
                line(format!("→ {}", self.step(*index, Words::WithIntent)))
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
                self.with_details(line(text), failure)
            }
            EventKind::UndoStarted { index } => {
                line(format!("↩ undo {}", self.step(*index, Words::Name)))
            }
            EventKind::UndoFinished { index, detail } => {
                line(format!("↩ undone {}{}", self.step(*index, Words::Name), after_colon(detail)))
            }
            EventKind::UndoFailed { index, failure } => {
                let step = self.step(*index, Words::Name);
                let text = format!("✗ cannot undo {step}{}", after_colon(&failure.message));
                self.with_details(line(text), failure)
            }
            EventKind::TrafficIsBack { traffic } => {
                line(format!("↩ traffic is where it was{}", after_colon(traffic)))
            }
            EventKind::TakenUp { found } => line(format!("taken up again{}", after_colon(found))),
            EventKind::Warning { text } => vec![Line::Warning(inert(text))],
            EventKind::Overdue { failure } => {
                let text = format!("kept and watched{}", after_colon(&failure.message));
                self.with_details(vec![Line::Warning(text)], failure)
            }
            EventKind::Concluded(conclusion) => self.concluded(&event.swap, conclusion, &elapsed),
            EventKind::Closed(closing) => match closing {
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
            },
            EventKind::AwaitsWord { .. } | EventKind::Unknown => Vec::new(),
        }
    }

    fn concluded(&mut self, swap: &SwapId, conclusion: &Conclusion, elapsed: &str) -> Vec<Line> {
        let Conclusion { outcome, traffic, rollback_until, failure, .. } = conclusion;
        let text = format!("{outcome}{}", after_colon(traffic));
        let mut lines = if self.is_wanted(*outcome) {
            vec![Line::Text(format!("{elapsed:>8}  {text}"))]
        } else {
            let why = failure.as_ref().map(|failure| format!("; {}", inert(&failure.message)));
            vec![Line::Error(format!("{text}{}", why.unwrap_or_default()))]
        };
        if let Some(failure) = failure {
            lines = self.with_details(lines, failure);
        }
        lines.extend(rollback_until.map(|until| {
            Line::Text(format!(
                "{:>8}  the previous replica stays warm until {}: rollback of {swap}",
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
