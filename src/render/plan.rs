//! A plan as text: what `plan` answers, and how every swap begins.

use super::Line;
use super::text::inert;
use crate::model::plan::{Plan, PlannedStep, Side, Strategy};

/// The plan as a part of its own; its notes as warnings after it.
pub fn lines(plan: &Plan) -> Vec<Line> {
    let mut lines = vec![Line::GroupStart(format!(
        "{} ({})",
        title(plan),
        inert(&plan.approval().to_string())
    ))];
    lines.push(Line::Text(format!(
        "now   {}",
        plan.incumbent.as_ref().map_or_else(|| "nothing serves".to_owned(), side)
    )));
    lines.push(Line::Text(format!("then  {}", side(&plan.candidate))));
    let width = plan.all_steps().map(|planned| planned.step.to_string().len()).max().unwrap_or(0);
    let numbered: Vec<Line> = plan
        .all_steps()
        .enumerate()
        .map(|(index, planned)| Line::Text(step(index, planned, width)))
        .collect();
    let (now, later) = numbered.split_at(plan.steps.len());
    lines.extend_from_slice(now);
    if !later.is_empty() {
        lines.push(Line::Text(later_by_itself(plan.strategy).to_owned()));
        lines.extend_from_slice(later);
    }
    lines.push(Line::GroupEnd);
    lines.extend(plan.notes.iter().map(|note| Line::Warning(inert(note))));
    lines
}

/// What a plan will likely meet.
pub fn outlook(outlook: &[String]) -> Vec<Line> {
    outlook.iter().map(|seen| Line::Text(format!("outlook: {}", inert(seen)))).collect()
}

/// What a plan is called: service and strategy.
pub(super) fn title(plan: &Plan) -> String {
    format!("Plan for {}: {}", plan.service, strategy(plan.strategy))
}

/// What a strategy is called.
pub(super) fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::BlueGreen => "blue-green",
        Strategy::WarmRollback => "warm rollback",
        Strategy::ColdRollback => "cold rollback",
    }
}

/// The head of the steps after `promote`.
pub(super) fn later_by_itself(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::BlueGreen => {
            "later, by itself (what served is drained, kept warm for a rollback while `retain` lasts, then stopped):"
        }
        Strategy::WarmRollback | Strategy::ColdRollback => {
            "later, by itself (what this rollback leaves is stopped as soon as it is drained):"
        }
    }
}

fn side(side: &Side) -> String {
    format!("slot {}, port {}: {}", side.slot, side.port, inert(&side.revision.to_string()))
}

fn step(index: usize, planned: &PlannedStep, width: usize) -> String {
    format!("{:>4}  {:<width$}  {}", index + 1, planned.step.to_string(), inert(&planned.does))
}
