//! What is told in rows: gates, and requests.

use super::super::counts::{Counts, mean};
use super::super::gates::Gates;
use super::{Story, escaped};

/// What was looked at before the swap went on.
pub(super) fn gates(story: &Story<'_>) -> String {
    let mut gates = Gates::default();
    story.events.iter().for_each(|event| gates.take(Some(story.plan), event));
    let rows = gates.met().iter().map(|gate| {
        let (class, sign) = if gate.passed { ("", "✓") } else { ("error", "✗") };
        let (name, measured) = (escaped(&gate.name), escaped(&gate.measured));
        format!("<tr class=\"{class}\"><td>{sign}</td><td>{name}</td><td>{measured}</td></tr>")
    });
    let rows: String = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>Gates</h2><table class=\"gates\"><thead><tr><th></th><th>gate</th><th>measured</th></tr></thead>\
         <tbody>{rows}</tbody></table></section>\n"
    )
}

/// What the engines have counted since the swap began.
pub(super) fn requests(story: &Story<'_>) -> String {
    let mut counts = Counts::default();
    story.samples.iter().for_each(|(_, sample)| counts.take(sample));
    let rows: String = story
        .slots()
        .into_iter()
        .filter_map(|(slot, name)| {
            let counted = counts.since_first(&slot.parse().ok()?)?;
            let name = escaped(&name);
            Some(format!(
                "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                counted.completed,
                mean(&counted).unwrap_or_else(|| "–".to_owned()),
                counted.cut
            ))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>Requests</h2><table class=\"requests\"><thead><tr><th>replica</th><th>completed</th><th>mean time</th><th>cut by the engine</th></tr></thead>\
         <tbody>{rows}</tbody></table></section>\n"
    )
}
