//! Says lines: as workflow commands in a job's log, plainly or in colour at a terminal, or leaves them to whoever reads frames.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::tint::tinted;
use super::typed::Typed;
use crate::github::command::{self, Annotation};
use crate::model::event::{Event, EventKind};
use crate::model::failure::Failure;
use crate::model::plan::Plan;
use crate::model::wire::Frame;
use crate::render::{self, Line};

/// Where the words go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// The log of a workflow's step.
    Workflow,
    /// A terminal, or a file.
    Terminal,
    /// A program: one JSON object a line on standard output, warnings on standard error.
    Program,
}

/// How a terminal is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Plain,
    /// With colour, and a bar that says how far the swap is.
    Lively,
}

/// The one place that writes to standard output.
pub struct Voice {
    surface: Surface,
    manner: Manner,
    out: Box<dyn Write>,
    /// Whether a group is open: they are never nested.
    grouped: bool,
    bar: Option<(ProgressBar, Plan)>,
    /// How commands are typed that are named.
    pub(super) typed: Typed,
}

/// Title of annotations.
const TITLE: &str = "model-swap";

/// How often the bar's clock is drawn again.
const TICK: Duration = Duration::from_millis(250);

impl Voice {
    /// A voice on this process's standard output. Colour is for a terminal alone, and not where `NO_COLOR` is set
    /// (<https://no-color.org>) or the terminal is a dumb one.
    pub fn new(surface: Surface, env: &BTreeMap<String, String>) -> Self {
        let out = std::io::stdout();
        let plain = env.get("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env.get("TERM").is_none_or(|term| term == "dumb");
        let lively = surface == Surface::Terminal && out.is_terminal() && !plain;
        let manner = if lively { Manner::Lively } else { Manner::Plain };
        Self {
            surface,
            manner,
            out: Box::new(out),
            grouped: false,
            bar: None,
            typed: Typed::default(),
        }
    }

    /// Says lines. A log that cannot be written to stops nothing.
    pub fn say(&mut self, lines: impl IntoIterator<Item = Line>) {
        let bar = self.bar.as_ref().map(|(bar, _)| bar.clone());
        let write = || {
            for line in lines {
                let line = self.spelled(line);
                let texts = match self.surface {
                    Surface::Workflow => self.for_workflow(line),
                    Surface::Terminal => self.for_terminal(line),
                    Surface::Program => {
                        for_stderr(line);
                        Vec::new()
                    }
                };
                for text in texts {
                    let _ = writeln!(self.out, "{text}");
                }
            }
            let _ = self.out.flush();
        };
        // The bar stays below what is said.
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Prints a text word for word, for whoever redirects it into a file.
    pub(super) fn print(&mut self, text: &str) {
        match self.surface {
            Surface::Workflow => {
                let lines: Vec<&str> = text.lines().collect();
                self.say([render::remote(&lines)]);
            }
            Surface::Terminal => {
                let _ = write!(self.out, "{text}");
                let _ = self.out.flush();
            }
            Surface::Program => self.put(&serde_json::json!({ "frame": "drafted", "text": text })),
        }
    }

    /// Passes a frame on to a program.
    pub(super) fn pass_on(&mut self, frame: &Frame) {
        // A refusal is said once, wherever it comes from.
        if !matches!(frame, Frame::Hello(_) | Frame::End | Frame::Refused(_)) {
            self.put(frame);
        }
    }

    /// Tells a program why nothing was done.
    pub(super) fn refuse(&mut self, failures: &[Failure]) {
        self.put(&serde_json::json!({ "frame": "refused", "failures": failures }));
    }

    /// One JSON object on a line of its own, for a program alone.
    pub(super) fn put(&mut self, object: &impl serde::Serialize) {
        if self.surface == Surface::Program
            && let Ok(text) = serde_json::to_string(object)
        {
            let _ = writeln!(self.out, "{text}");
            let _ = self.out.flush();
        }
    }

    /// Moves the bar, where there is one.
    pub(super) fn follow(&mut self, event: &Event) {
        if self.manner == Manner::Plain {
            return;
        }
        match (&event.kind, &self.bar) {
            (EventKind::Planned { plan, .. }, None) => {
                self.bar = Some((bar(plan), plan.as_ref().clone()));
            }
            (EventKind::StepStarted { index }, Some((bar, plan))) => {
                let step = plan.all_steps().nth(*index).map(|planned| planned.step.to_string());
                bar.set_message(step.unwrap_or_default());
            }
            (EventKind::StepSucceeded { index, .. }, Some((bar, _))) => {
                bar.set_position(*index as u64 + 1);
            }
            (EventKind::UndoStarted { .. }, Some((bar, _))) => bar.set_message("undoing"),
            (EventKind::UndoFinished { index, .. }, Some((bar, _))) => {
                bar.set_position(*index as u64)
            }
            (EventKind::Closed(_), Some((bar, _))) => bar.finish_and_clear(),
            _ => {}
        }
    }

    /// The line with every command as it has to be typed. What a log of the server says stays as it is.
    fn spelled(&self, line: Line) -> Line {
        match line {
            Line::Text(text) => Line::Text(self.typed.spell(&text)),
            Line::Warning(text) => Line::Warning(self.typed.spell(&text)),
            Line::Error(text, at) => Line::Error(self.typed.spell(&text), at),
            Line::GroupStart(_) | Line::GroupEnd | Line::Remote(_) => line,
        }
    }

    fn for_workflow(&mut self, line: Line) -> Vec<String> {
        let starts = matches!(line, Line::GroupStart(_));
        let ends = matches!(line, Line::GroupEnd);
        // A failure must be seen, which a folded group would hide.
        let closes = self.grouped && (starts || matches!(line, Line::Error(..)));
        let mut texts: Vec<String> =
            closes.then(|| command::END_GROUP.to_owned()).into_iter().collect();
        match line {
            Line::GroupEnd if !self.grouped => {}
            Line::GroupEnd => texts.push(command::END_GROUP.to_owned()),
            Line::GroupStart(title) => texts.push(command::group(&title)),
            Line::Text(text) => texts.push(command::plain(&text)),
            Line::Warning(text) => {
                texts.push(command::annotation(Annotation::Warning, TITLE, None, &text));
            }
            Line::Error(text, at) => {
                texts.push(command::annotation(Annotation::Error, TITLE, at.as_ref(), &text));
            }
            // Without random bytes nothing from the server is shown: it could command the runner.
            Line::Remote(lines) => {
                texts.extend(command::remote(lines.iter().map(String::as_str)).unwrap_or_default());
            }
        }
        self.grouped = starts || (self.grouped && !closes && !ends);
        texts
    }

    fn for_terminal(&self, line: Line) -> Vec<String> {
        let plain = plainly(&line);
        match self.manner {
            Manner::Plain => plain,
            Manner::Lively => plain.iter().map(|text| tinted(&line, text)).collect(),
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        if let Some((bar, _)) = &self.bar {
            bar.finish_and_clear();
        }
        if self.grouped {
            self.say([Line::GroupEnd]);
        }
    }
}

/// A line as a file has it.
fn plainly(line: &Line) -> Vec<String> {
    match line {
        Line::Text(text) | Line::GroupStart(text) => vec![text.clone()],
        Line::GroupEnd => Vec::new(),
        Line::Warning(text) => vec![format!("warning: {text}")],
        Line::Error(text, _) => vec![format!("error: {text}")],
        Line::Remote(lines) => lines.iter().map(|line| format!("  {line}")).collect(),
    }
}

/// What a program's user should see all the same.
fn for_stderr(line: Line) {
    if matches!(line, Line::Warning(_) | Line::Error(..)) {
        for text in plainly(&line) {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

fn bar(plan: &Plan) -> ProgressBar {
    let bar = ProgressBar::new(plan.all_steps().count() as u64);
    let style = ProgressStyle::with_template("{elapsed:>8}  [{bar:24}] {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.enable_steady_tick(TICK);
    bar
}
