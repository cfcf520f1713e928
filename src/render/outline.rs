//! What a configuration alone says of its plan.

use super::Line;
use super::markdown::code;
use super::plan::{later_by_itself, strategy};
use super::text::inert;
use crate::model::plan::Outline;

/// The outline as a part of its own; `why` says what kept us from the server.
pub fn lines(outline: &Outline, why: &str) -> Vec<Line> {
    let mut lines = vec![Line::GroupStart(format!("{} ({})", title(outline), outline.digest))];
    let mut say = |text: String| lines.push(Line::Text(text));
    say(format!("from the configuration alone: {}", inert(why)));
    say(format!("then  {} in the one that does not serve of:", inert(&outline.model)));
    outline.places.iter().for_each(|place| say(format!("      {}", inert(place))));
    let width = outline.steps.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (index, (name, does)) in outline.steps.iter().chain(&outline.later).enumerate() {
        if index == outline.steps.len() {
            say(later_by_itself(outline.strategy).to_owned());
        }
        say(format!("{:>4}  {name:<width$}  {}", index + 1, inert(does)));
    }
    say("only the server can tell:".to_owned());
    outline.unknown.iter().for_each(|what| say(format!("  - {}", inert(what))));
    lines.push(Line::GroupEnd);
    lines
}

/// The same in Markdown.
pub fn markdown(outline: &Outline, why: &str) -> String {
    let items = |texts: &[String]| -> String {
        texts.iter().map(|text| format!("- {}\n", code(text))).collect()
    };
    let rows: String = outline
        .steps
        .iter()
        .chain(&outline.later)
        .map(|(name, does)| format!("| {name} | {} |\n", code(does)))
        .collect();
    format!(
        "## {} {}\n\n**From the configuration alone**: {}\n\n{} in the one that does not serve of:\n\n{}\n\
         | Step | |\n|---|---|\n{rows}\nOnly the server can tell:\n\n{}",
        title(outline),
        code(&outline.digest.to_string()),
        code(why),
        code(&outline.model),
        items(&outline.places),
        items(&outline.unknown)
    )
}

fn title(outline: &Outline) -> String {
    format!("Plan for {}: {}", outline.service, strategy(outline.strategy))
}
