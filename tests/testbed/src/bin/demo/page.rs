//! Words for a terminal: plain text, at once.

use std::fmt::Display;
use std::io::Write;

use anyhow::{Context, Result};

/// Writes a text and a newline.
pub(crate) fn say(text: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("nobody reads the demo")
}

/// Begins a part.
pub(crate) fn heading(title: &str) -> Result<()> {
    say(format!("\n=== {title} ===\n"))
}

/// Writes somebody else's words, set apart from the demo's.
pub(crate) fn indented(text: &str) -> Result<()> {
    text.lines().try_for_each(|line| say(format!("  | {line}").trim_end()))
}

/// How GitHub shows a line of a step's log; `None` for a command that it obeys without showing it.
pub(crate) fn shown(line: &str) -> Option<String> {
    let Some((command, data)) = line.strip_prefix("::").and_then(|rest| rest.split_once("::"))
    else {
        return Some(line.to_owned());
    };
    let data = data.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%");
    match command.split(' ').next() {
        Some("group") => Some(format!("▾ {data}")),
        Some("warning") => Some(format!("Warning: {data}")),
        Some("error") => Some(format!("Error: {data}")),
        Some("notice") => Some(format!("Notice: {data}")),
        _ => None,
    }
}
