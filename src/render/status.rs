//! The answer of `status`: what serves, what is warm, who is at work.

use std::time::Duration;

use super::Line;
use super::text::{inert, moment};
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::state::{Holder, Past, SlotReport, StatusReport};

/// The columns of the table of slots.
const COLUMNS: [&str; 6] = ["slot", "port", "role", "ready", "in flight", "revision"];

/// The report, newest swap of the history first.
pub fn lines(report: &StatusReport) -> Vec<Line> {
    let StatusReport { service, nginx_port, .. } = report;
    let mut text = vec![match (nginx_port, &report.astray) {
        (None, _) => format!("{service}: nobody can tell where nginx sends traffic"),
        (Some(port), None) => format!("{service}: nginx sends traffic to port {port}"),
        (Some(port), Some(_)) => format!(
            "{service}: nginx's file names port {port}, and requests are not seen to go there"
        ),
    }];
    let why = |failure: &Failure| {
        failure
            .causes
            .iter()
            .chain(&failure.hints)
            .map(|why| format!("  {}", inert(why)))
            .collect::<Vec<_>>()
    };
    text.extend(report.astray.iter().flat_map(why));
    text.extend(table(&report.slots));
    text.extend(
        report.serving_swap.as_ref().map(|swap| format!("serving is the result of {swap}")),
    );
    text.extend(report.rollback_until.map(|until| {
        format!("a warm rollback is possible until {}: `model-swap rollback`", moment(until))
    }));
    if let Some(failure) = &report.overdue {
        text.push(format!("what was to be retired is still there: {}", inert(&failure.message)));
        text.extend(why(failure));
    }
    text.extend(at_work(report));
    text.extend(report.waiting.iter().map(|asked| {
        format!(
            "{}; `model-swap abort --swap-id {}` gives it up",
            told("waits for its turn", asked),
            asked.swap
        )
    }));
    if !report.history.is_empty() {
        text.push("history, newest first:".to_owned());
        text.extend(report.history.iter().rev().map(past));
    }
    text.into_iter().map(Line::Text).collect()
}

/// What is not at its end, and who works on what.
fn at_work(report: &StatusReport) -> Vec<String> {
    let StatusReport { holder, agent, unfinished, step, .. } = report;
    let mut text = Vec::new();
    if let Some((swap, found)) = unfinished {
        let by = match agent {
            Some((_, pid)) => format!(
                "another agent (pid {pid}) brings it there as soon as it can, and `model-swap repair` does so now"
            ),
            None => "`model-swap repair` brings it there".to_owned(),
        };
        let found = inert(found);
        text.push(format!("{swap} is not at its end: {found}; {by}, or says what is in the way"));
    }
    match (holder, agent) {
        (Some(holder), _) => text.push(self::holder(holder)),
        (None, None) => text.push("nobody is at work".to_owned()),
        (None, Some(_)) if unfinished.is_some() => {}
        (None, Some((swap, pid))) => text.push(format!(
            "no command is at work; the agent of {swap} (pid {pid}) drains what served before it, keeps that warm and then stops it"
        )),
    }
    text.extend(step.as_ref().map(|step| format!("in {}", inert(step))));
    text
}

/// Nothing had to change, and what serves.
pub fn unchanged(reason: &str, report: &StatusReport) -> Vec<Line> {
    let mut all = vec![Line::Text(format!("unchanged: {}", inert(reason)))];
    all.extend(lines(report));
    all
}

fn table(slots: &[SlotReport]) -> Vec<String> {
    let rows: Vec<[String; 6]> =
        std::iter::once(COLUMNS.map(str::to_owned)).chain(slots.iter().map(row)).collect();
    columns(&rows)
}

/// Rows as lines, indented, with columns as wide as they need.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:<width$}"));
            cells.collect::<String>().trim_end().to_owned()
        })
        .collect()
}

fn row(slot: &SlotReport) -> [String; 6] {
    let unknown = || "-".to_owned();
    [
        slot.slot.to_string(),
        slot.port.to_string(),
        inert(&slot.role),
        match slot.ready {
            true => "yes".to_owned(),
            false if slot.role == "candidate" => "not yet".to_owned(),
            false => "no".to_owned(),
        },
        slot.in_flight.map_or_else(unknown, |count| count.to_string()),
        slot.revision.as_ref().map_or_else(unknown, |revision| inert(&revision.to_string())),
    ]
}

/// Another command is waited for, for `limit` at most; by its `id` that can be ended.
pub fn waiting(holder: &Holder, limit: Duration, id: Option<&SwapId>) -> Line {
    let limit = humantime::format_duration(limit);
    let ends = id.map(|id| format!("; `model-swap abort --swap-id {id}` gives up what waits"));
    Line::Text(format!(
        "waiting up to {limit} for another command, {}{}",
        self::holder(holder),
        ends.unwrap_or_default()
    ))
}

fn holder(holder: &Holder) -> String {
    told("at work", holder)
}

/// Who does what since when.
fn told(does: &str, holder: &Holder) -> String {
    let Holder { swap, since, process, command, requester, recovers } = holder;
    let who = requester.actor.as_deref().map(|actor| format!(", asked by {}", inert(actor)));
    let from = requester.url.as_deref().map(|url| format!(", {}", inert(url)));
    let first = recovers
        .as_ref()
        .map(|died| format!("; first it brings {} to its end, whose agent is gone", died.swap));
    format!(
        "{does} since {}: {} {swap} (pid {process}{}{}){}",
        moment(*since),
        inert(command),
        who.unwrap_or_default(),
        from.unwrap_or_default(),
        first.unwrap_or_default()
    )
}

fn past(past: &Past) -> String {
    let Past { swap, at, outcome, revision, .. } = past;
    format!(
        "  {}  {swap}  {:<11}  {}",
        moment(*at),
        outcome.to_string(),
        inert(&revision.to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{Port, ProcessId};
    use crate::model::outcome::Outcome;
    use crate::model::replica::Revision;
    use crate::model::state::Requester;

    fn report() -> StatusReport {
        let revision = |model: &str, digest: &str| Revision {
            digest: digest.to_owned(),
            model: model.to_owned(),
            git_sha: None,
            image: None,
        };
        let at = |text: &str| text.parse().unwrap();
        StatusReport {
            service: "chat".parse().unwrap(),
            nginx_port: Some(Port(8002)),
            astray: None,
            slots: vec![
                SlotReport {
                    slot: "a".parse().unwrap(),
                    port: Port(8001),
                    role: "free".to_owned(),
                    revision: None,
                    ready: false,
                    in_flight: None,
                },
                SlotReport {
                    slot: "b".parse().unwrap(),
                    port: Port(8002),
                    role: "serving".to_owned(),
                    revision: Some(revision("Qwen/B\r", "r-b")),
                    ready: true,
                    in_flight: Some(12),
                },
            ],
            holder: Some(Holder {
                swap: "s-3".parse().unwrap(),
                since: at("2026-11-23T09:20:00Z"),
                process: ProcessId { pid: 77, start: 1 },
                command: "swap".to_owned(),
                requester: Requester {
                    actor: Some("ann".to_owned()),
                    url: Some("https://github.com/x".to_owned()),
                    ..Requester::default()
                },
                recovers: None,
            }),
            agent: None,
            waiting: vec![Holder {
                swap: "s-4".parse().unwrap(),
                since: at("2026-11-23T09:21:00Z"),
                process: ProcessId { pid: 78, start: 1 },
                command: "rollback".to_owned(),
                requester: Requester::default(),
                recovers: None,
            }],
            step: Some("verify b: wait".to_owned()),
            unfinished: Some(("s-3".parse().unwrap(), "its agent ended\n in cut_over".to_owned())),
            serving_swap: Some("s-2".parse().unwrap()),
            rollback_until: Some(at("2026-11-23T09:25:00Z")),
            overdue: None,
            history: vec![
                Past {
                    swap: "s-1".parse().unwrap(),
                    at: at("2026-11-22T09:15:00Z"),
                    outcome: Outcome::RolledBack,
                    revision: revision("Qwen/A", "r-a"),
                    strategy: None,
                },
                Past {
                    swap: "s-2".parse().unwrap(),
                    at: at("2026-11-23T09:15:00Z"),
                    outcome: Outcome::Promoted,
                    revision: revision("Qwen/B", "r-b"),
                    strategy: None,
                },
            ],
        }
    }

    fn shown(lines: Vec<Line>) -> String {
        let text = lines.into_iter().map(|line| match line {
            Line::Text(text) => format!("{text}\n"),
            other => panic!("{other:?}"),
        });
        text.collect()
    }

    #[test]
    fn a_report_is_readable() {
        assert_eq!(
            shown(lines(&report())),
            r"chat: nginx sends traffic to port 8002
  slot  port  role     ready  in flight  revision
  a     8001  free     no     -          -
  b     8002  serving  yes    12         Qwen/B\r (r-b)
serving is the result of s-2
a warm rollback is possible until 2026-11-23 09:25:00 UTC: `model-swap rollback`
s-3 is not at its end: its agent ended\n in cut_over; `model-swap repair` brings it there, or says what is in the way
at work since 2026-11-23 09:20:00 UTC: swap s-3 (pid 77, asked by ann, https://github.com/x)
in verify b: wait
waits for its turn since 2026-11-23 09:21:00 UTC: rollback s-4 (pid 78); `model-swap abort --swap-id s-4` gives it up
history, newest first:
  2026-11-23 09:15:00 UTC  s-2  promoted     Qwen/B (r-b)
  2026-11-22 09:15:00 UTC  s-1  rolled-back  Qwen/A (r-a)
"
        );
    }

    #[test]
    fn what_should_be_gone_is_said_to_be_there_with_the_reason() {
        let failure = Failure::new("nginx -t\n fails").hint("mend it");
        let late = StatusReport { overdue: Some(failure), rollback_until: None, ..report() };
        let shown = shown(lines(&late));
        let told = "what was to be retired is still there: nginx -t\\n fails\n  mend it\n";
        assert!(shown.contains(told), "{shown}");
        assert!(!shown.contains("a warm rollback is possible"), "{shown}");
    }

    #[test]
    fn where_nginx_cannot_be_asked_no_port_is_named() {
        let unseen = StatusReport { nginx_port: None, ..report() };
        let shown = shown(lines(&unseen));
        let (first, rest) = shown.split_once('\n').unwrap();
        assert_eq!(first, "chat: nobody can tell where nginx sends traffic");
        assert!(rest.contains("at work since") && rest.contains("s-2  promoted"), "{rest}");
    }

    #[test]
    fn an_agent_that_goes_on_without_the_lease_is_told_of() {
        let agent = |swap: &str| Some((swap.parse().unwrap(), ProcessId { pid: 88, start: 1 }));
        let said = |report: &StatusReport| {
            let said = at_work(report);
            assert!(!said.iter().any(|line| line.contains("nobody is at work")), "{said:?}");
            said
        };
        let left = StatusReport { holder: None, step: None, agent: agent("s-3"), ..report() };
        assert_eq!(
            said(&left),
            [
                r"s-3 is not at its end: its agent ended\n in cut_over; another agent (pid 88) brings it there as soon as it can, and `model-swap repair` does so now, or says what is in the way"
            ]
        );
        let after = StatusReport { unfinished: None, agent: agent("s-2"), ..left };
        assert_eq!(
            said(&after),
            [
                "no command is at work; the agent of s-2 (pid 88) drains what served before it, keeps that warm and then stops it"
            ]
        );
    }

    #[test]
    fn a_candidate_that_loads_is_not_ready_yet() {
        let mut loads = report();
        loads.slots[0].role = "candidate".to_owned();
        let row = shown(lines(&loads)).lines().nth(2).unwrap().to_owned();
        assert_eq!(row, "  a     8001  candidate  not yet  -          -");
    }

    #[test]
    fn little_is_said_of_an_idle_service() {
        let idle = StatusReport {
            slots: Vec::new(),
            holder: None,
            waiting: Vec::new(),
            step: None,
            unfinished: None,
            serving_swap: None,
            rollback_until: None,
            history: Vec::new(),
            ..report()
        };
        assert_eq!(
            shown(unchanged("Qwen/B serves", &idle)),
            "unchanged: Qwen/B serves\n\
             chat: nginx sends traffic to port 8002\n  \
             slot  port  role  ready  in flight  revision\n\
             nobody is at work\n"
        );
    }
}
