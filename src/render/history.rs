//! The answer of `history`: the latest swaps, and what a rollback could go back to.

use super::Line;
use super::status::columns;
use super::text::{inert, moment};
use crate::model::state::{Chapter, HistoryReport, WayBack};

/// The head of the table.
const HEAD: [&str; 5] = ["when", "swap", "outcome", "revision", "rollback to it"];

/// How to take one of the ways.
const HOW: &str = "`model-swap rollback --to DIGEST` (in a workflow `command: rollback` with `to: DIGEST`) goes back to one of these; \
                   its digest stands in brackets";

/// The history, newest first; under each swap what served before it.
pub fn lines(report: &HistoryReport) -> Vec<Line> {
    if report.chapters.is_empty() {
        return vec![Line::Text(format!("{}: no swap was made yet", report.service))];
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(report.chapters.iter().rev().flat_map(chapter));
    let title = format!("{}: the latest swaps, newest first", report.service);
    let ways = report.chapters.iter().flat_map(|chapter| {
        std::iter::once(&chapter.way).chain(chapter.previous.iter().map(|(_, way)| way))
    });
    let leads = |way: &WayBack| matches!(way, WayBack::Warm | WayBack::Cold(_));
    let how = ways.into_iter().any(leads).then(|| HOW.to_owned());
    std::iter::once(title).chain(columns(&rows)).chain(how).map(Line::Text).collect()
}

fn chapter(chapter: &Chapter) -> Vec<[String; 5]> {
    let Chapter { past, way: to_it, previous } = chapter;
    let revision = inert(&past.revision.to_string());
    let mut rows = vec![[
        moment(past.at),
        past.swap.to_string(),
        past.outcome.to_string(),
        revision,
        way(to_it),
    ]];
    rows.extend(previous.iter().map(|(before, to_it)| {
        let before = format!("  before: {}", inert(&before.to_string()));
        [String::new(), String::new(), String::new(), before, way(to_it)]
    }));
    rows
}

fn way(way: &WayBack) -> String {
    match way {
        WayBack::Serves => "serves now".to_owned(),
        WayBack::Warm => "yes: at once, it is kept warm".to_owned(),
        WayBack::Cold(_) => "yes: cold, it is started again".to_owned(),
        WayBack::RolledBack(by) => format!("no: rolled back by {by}"),
        WayBack::NeverServed => "no: never served".to_owned(),
        WayBack::Lost => "no: nothing is kept to start it from".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::Outcome;
    use crate::model::replica::Revision;
    use crate::model::state::Past;

    fn revision(model: &str, digest: &str) -> Revision {
        Revision { digest: digest.to_owned(), model: model.to_owned(), git_sha: None, image: None }
    }

    #[test]
    fn every_swap_says_whether_one_could_go_back() {
        let chapter = |swap: &str, at: &str, outcome, way, previous| Chapter {
            past: Past {
                swap: swap.parse().unwrap(),
                at: at.parse().unwrap(),
                outcome,
                revision: revision("Qwen/B\r", "r-b"),
                strategy: None,
            },
            way,
            previous,
        };
        let old = revision("Qwen/A", "adopted-a");
        let report = HistoryReport {
            service: "chat".parse().unwrap(),
            chapters: vec![
                chapter("s-1", "2026-11-22T09:15:00Z", Outcome::Failed, WayBack::NeverServed, None),
                chapter(
                    "s-2",
                    "2026-11-23T09:15:00Z",
                    Outcome::Promoted,
                    WayBack::Serves,
                    Some((old, WayBack::Cold("s-2".parse().unwrap()))),
                ),
            ],
        };
        let text: String = lines(&report)
            .into_iter()
            .map(|line| match line {
                Line::Text(text) => text + "\n",
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            text,
            r"chat: the latest swaps, newest first
  when                     swap  outcome   revision                      rollback to it
  2026-11-23 09:15:00 UTC  s-2   promoted  Qwen/B\r (r-b)                serves now
                                             before: Qwen/A (adopted-a)  yes: cold, it is started again
  2026-11-22 09:15:00 UTC  s-1   failed    Qwen/B\r (r-b)                no: never served
`model-swap rollback --to DIGEST` (in a workflow `command: rollback` with `to: DIGEST`) goes back to one of these; its digest stands in brackets
"
        );
    }
}
