//! What `doctor` found: a table of facts, and below it what has to be mended.

use super::markdown::code;
use super::text::inert;
use super::{Line, failure};
use crate::model::checkup::{Finding, Mark, Part};
use crate::model::failure::Failure;

/// The table, and below it every failure and every warning with how to mend it.
pub fn lines(title: &str, parts: &[Part]) -> Vec<Line> {
    let mut lines = vec![Line::Text(format!("doctor: {}", inert(title)))];
    let width = all(parts).map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    for part in parts {
        lines.push(Line::Text(format!("  {}:", inert(&part.place))));
        lines.extend(part.findings.iter().map(|finding| {
            let Finding { what, mark, seen, .. } = finding;
            let cells = format!("    {:<4}  {what:<width$}  {seen}", word(*mark));
            Line::Text(inert(&cells))
        }));
    }
    for finding in all(parts) {
        match finding.mark {
            Mark::Fail(_) => lines.extend(failure::refusal(&[as_failure(finding)])),
            Mark::Warn => {
                let mut told = failure::refusal(&[as_failure(finding)]);
                told[0] = Line::Warning(inert(&as_failure(finding).to_string()));
                lines.extend(told);
            }
            Mark::Ok | Mark::Unseen => {}
        }
    }
    lines.push(Line::Text(verdict(parts)));
    lines
}

/// The same in Markdown.
pub fn markdown(title: &str, parts: &[Part]) -> String {
    let rows: String = parts
        .iter()
        .map(|part| {
            let findings: String = part.findings.iter().map(row).collect();
            format!("| | **{}** | | |\n{findings}", code(&part.place))
        })
        .collect();
    format!(
        "## Doctor: {}\n\n**{}**\n\n| | What | Seen | How to mend it |\n|---|---|---|---|\n{rows}\n",
        code(title),
        verdict(parts)
    )
}

fn row(finding: &Finding) -> String {
    let Finding { what, mark, seen, mend } = finding;
    let mend: Vec<_> = mend.iter().flat_map(|hint| hint.lines()).map(code).collect();
    format!("| {} | {} | {} | {} |\n", word(*mark), code(what), code(seen), mend.join("<br>"))
}

fn all(parts: &[Part]) -> impl Iterator<Item = &Finding> {
    parts.iter().flat_map(|part| &part.findings)
}

fn word(mark: Mark) -> &'static str {
    match mark {
        Mark::Ok => "ok",
        Mark::Warn => "warn",
        Mark::Fail(_) => "fail",
        Mark::Unseen => "?",
    }
}

fn as_failure(finding: &Finding) -> Failure {
    Failure {
        hints: finding.mend.clone(),
        ..Failure::new(format!("{}: {}", finding.what, finding.seen))
    }
}

fn verdict(parts: &[Part]) -> String {
    let count = |counts: fn(Mark) -> bool| all(parts).filter(|f| counts(f.mark)).count();
    let failed = count(|mark| matches!(mark, Mark::Fail(_)));
    let warned = count(|mark| mark == Mark::Warn);
    let unseen = count(|mark| mark == Mark::Unseen);
    let good = count(|mark| mark == Mark::Ok);
    let ready = if failed == 0 && unseen == 0 { "; ready to swap" } else { "" };
    format!("{good} ok, {warned} to know of, {failed} failed, {unseen} not looked at{ready}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::refusal::Fault;

    fn parts() -> [Part; 2] {
        let failure =
            Failure::new("nginx has no upstream `llm`").hint("add it:\nupstream llm {\n}");
        [
            Part {
                place: "on this side".to_owned(),
                findings: vec![Finding::ok("ssh key", "ssh-ed25519 SHA256:x")],
            },
            Part {
                place: "on the server, gpu-1".to_owned(),
                findings: vec![
                    Finding::of_failure("upstream", Fault::Environment, failure),
                    Finding::warn("access log", "is \u{1b}[1mmute", "add $upstream_addr"),
                    Finding::unseen("plan of a swap", "what failed above is in the way"),
                ],
            },
        ]
    }

    #[test]
    fn a_terminal_sees_a_table_and_then_what_is_to_be_mended() {
        let text = |line: &str| Line::Text(line.to_owned());
        assert_eq!(
            lines("chat on gpu-1", &parts()),
            [
                text("doctor: chat on gpu-1"),
                text("  on this side:"),
                text("    ok    ssh key         ssh-ed25519 SHA256:x"),
                text("  on the server, gpu-1:"),
                text("    fail  upstream        nginx has no upstream `llm`"),
                text(r"    warn  access log      is \u{1b}[1mmute"),
                text("    ?     plan of a swap  what failed above is in the way"),
                Line::Error("upstream: nginx has no upstream `llm`".to_owned(), None),
                text("            hint: add it:"),
                text("              upstream llm {"),
                text("              }"),
                Line::Warning(r"access log: is \u{1b}[1mmute".to_owned()),
                text("            hint: add $upstream_addr"),
                text("1 ok, 1 to know of, 1 failed, 1 not looked at"),
            ]
        );
    }

    #[test]
    fn a_summary_sees_one_table() {
        let text = markdown("chat on gpu-1", &parts());
        assert!(
            text.starts_with(
                "## Doctor: <code>chat on gpu-1</code>\n\n**1 ok, 1 to know of, 1 failed"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "| ok | <code>ssh key</code> | <code>ssh-ed25519 SHA256&#58;x</code> |  |\n"
            ),
            "{text}"
        );
        assert!(text.contains("| fail | <code>upstream</code> |"), "{text}");
        assert!(
            text.contains("<code>add it&#58;</code><br><code>upstream llm &#123;</code><br>"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_server_without_a_fault_is_ready() {
        let good = [Part { place: String::new(), findings: vec![Finding::ok("a", "b")] }];
        let said = lines("x", &good);
        let verdict =
            Line::Text("1 ok, 0 to know of, 0 failed, 0 not looked at; ready to swap".to_owned());
        assert_eq!(said.last(), Some(&verdict));
    }
}
