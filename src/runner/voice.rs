//! Says lines: as workflow commands in a job's log, plainly on a terminal.

use std::io::Write;

use crate::github::command::{self, Annotation};
use crate::render::Line;

/// Where the words go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// The log of a workflow's step.
    Workflow,
    /// A terminal, or a file.
    Terminal,
}

/// The one place that writes to standard output.
pub struct Voice {
    surface: Surface,
    out: Box<dyn Write>,
}

/// Title of annotations.
const TITLE: &str = "model-swap";

impl Voice {
    /// A voice on this process's standard output.
    pub fn new(surface: Surface) -> Self {
        Self { surface, out: Box::new(std::io::stdout()) }
    }

    /// Says lines. A log that cannot be written to stops nothing.
    pub fn say(&mut self, lines: impl IntoIterator<Item = Line>) {
        for line in lines {
            for text in self.form(line) {
                let _ = writeln!(self.out, "{text}");
            }
        }
        let _ = self.out.flush();
    }

    fn form(&self, line: Line) -> Vec<String> {
        match (self.surface, line) {
            (Surface::Workflow, Line::Text(text)) => vec![command::plain(&text)],
            (Surface::Workflow, Line::GroupStart(title)) => vec![command::group(&title)],
            (Surface::Workflow, Line::GroupEnd) => vec![command::END_GROUP.to_owned()],
            (Surface::Workflow, Line::Warning(text)) => {
                vec![command::annotation(Annotation::Warning, TITLE, &text)]
            }
            (Surface::Workflow, Line::Error(text)) => {
                vec![command::annotation(Annotation::Error, TITLE, &text)]
            }
            (Surface::Workflow, Line::Remote(lines)) => {
                // Without random bytes nothing from the server is shown: it could command the runner.
                command::remote(lines.iter().map(String::as_str)).unwrap_or_default()
            }
            (Surface::Terminal, Line::Text(text) | Line::GroupStart(text)) => vec![text],
            (Surface::Terminal, Line::GroupEnd) => Vec::new(),
            (Surface::Terminal, Line::Warning(text)) => vec![format!("warning: {text}")],
            (Surface::Terminal, Line::Error(text)) => vec![format!("error: {text}")],
            (Surface::Terminal, Line::Remote(lines)) => {
                lines.iter().map(|line| format!("  {line}")).collect()
            }
        }
    }
}
