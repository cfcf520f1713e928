//! Failures: causes, hints, and the log that belongs to them.

use super::Line;
use super::text::{inert, inert_lines};
use crate::model::failure::Failure;

/// How many of the last lines of a failure's log are shown.
pub(super) const TAIL_LIMIT: usize = 100;

/// Nothing was done: every reason, each with its hints and log.
pub fn refusal(failures: &[Failure]) -> Vec<Line> {
    failures
        .iter()
        .flat_map(|failure| {
            let mut lines = vec![Line::Error(
                inert(&failure.to_string()),
                failure.location.as_deref().cloned(),
            )];
            lines.extend(indented(&hints(failure)));
            lines.extend(log(failure));
            lines
        })
        .collect()
}

/// What was to be given up never begins: each with its hints.
pub fn given_up(failures: &[Failure]) -> Vec<Line> {
    let texts = failures.iter().flat_map(|failure| {
        let said = std::iter::once(Line::Text(format!("aborted: {}", inert(&failure.to_string()))));
        said.chain(indented(&hints(failure)))
    });
    texts.collect()
}

/// What belongs under a line that has said the failure's message.
pub(super) fn details(failure: &Failure) -> Vec<Line> {
    let mut text: Vec<String> =
        failure.causes.iter().flat_map(|cause| labelled("because", cause)).collect();
    text.extend(hints(failure));
    let mut lines = indented(&text);
    lines.extend(log(failure));
    lines
}

/// Message, causes and hints as plain lines.
pub(super) fn reasons(failure: &Failure) -> Vec<String> {
    let causes = failure.causes.iter().flat_map(|cause| labelled("because", cause));
    failure.message.lines().map(str::to_owned).chain(causes).collect()
}

/// The hints, each beginning with a label; lines that are to be pasted keep their own.
pub(super) fn hints(failure: &Failure) -> Vec<String> {
    failure.hints.iter().flat_map(|hint| labelled("hint", hint)).collect()
}

/// The last lines of the failure's log.
pub(super) fn tail(failure: &Failure) -> &[String] {
    let from = failure.log_tail.len().saturating_sub(TAIL_LIMIT);
    &failure.log_tail[from..]
}

fn labelled(label: &str, text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let first = format!("{label}: {}", lines.next().unwrap_or_default());
    std::iter::once(first).chain(lines.map(|line| format!("  {line}"))).collect()
}

fn indented(lines: &[String]) -> Vec<Line> {
    lines.iter().map(|line| Line::Text(format!("            {}", inert(line)))).collect()
}

fn log(failure: &Failure) -> Vec<Line> {
    let tail = tail(failure);
    if tail.is_empty() {
        return Vec::new();
    }
    vec![
        Line::GroupStart(format!("Last {} lines of its log", tail.len())),
        Line::Remote(tail.iter().flat_map(|line| inert_lines(line)).collect()),
        Line::GroupEnd,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_everything_about_each_failure() {
        let failures = [
            Failure {
                message: "nginx -t rejects \u{1b}[1mthe file".to_owned(),
                causes: vec!["exit code 1".to_owned()],
                hints: vec!["put this into it:\nupstream llm {\n}".to_owned()],
                log_tail: vec!["[emerg] a".to_owned(), "b\r".to_owned()],
                location: None,
            },
            Failure::new("port 8002 is taken"),
        ];
        let text = |line: &str| Line::Text(line.to_owned());
        assert_eq!(
            refusal(&failures),
            [
                Line::Error(r"nginx -t rejects \u{1b}[1mthe file: exit code 1".to_owned(), None),
                text("            hint: put this into it:"),
                text("              upstream llm {"),
                text("              }"),
                Line::GroupStart("Last 2 lines of its log".to_owned()),
                Line::Remote(vec!["[emerg] a".to_owned(), r"b\r".to_owned()]),
                Line::GroupEnd,
                Line::Error("port 8002 is taken".to_owned(), None),
            ]
        );
    }

    #[test]
    fn the_log_is_cut_at_its_head() {
        let lines = (0..TAIL_LIMIT + 5).map(|n| n.to_string()).collect();
        let failure = Failure::new("x").log(lines);
        assert_eq!(tail(&failure).len(), TAIL_LIMIT);
        assert_eq!(tail(&failure)[0], "5");
    }
}
