use super::super::sample::{self, events, failure, planned, slot};
use super::*;
use crate::model::plan::Strategy;

/// A log as a terminal would show it, with a mark for what is not plain text.
fn shown(events: &[Event]) -> String {
    let mut log = Log::default();
    let lines = events.iter().flat_map(|event| log.lines(event));
    lines
        .map(|line| match line {
            Line::Text(text) => format!("{text}\n"),
            Line::GroupStart(title) => format!("[ {title}\n"),
            Line::GroupEnd => "]\n".to_owned(),
            Line::Warning(text) => format!("WARNING {text}\n"),
            Line::Error(text, _) => format!("ERROR {text}\n"),
            Line::Remote(lines) => lines.iter().map(|line| format!("> {line}\n")).collect(),
        })
        .collect()
}

const PLAN: &str = "\
[ Plan for chat: blue-green (p-1)
now   slot a, port 8001: Qwen/A (adopted-a)
then  slot b, port 8002: Qwen/B (r-b)
   1  await_ready b    at most 20m
   2  cut_over a -> b  upstream llm: 8001 -> 8002
later, by itself (what served is drained, kept warm for a rollback while `retain` lasts, then stopped):
   3  retire a         stops pid 77
]
WARNING slot a is kept alive by run.sh
";

#[test]
fn a_swap_that_goes_well() {
    let story = events(vec![
        (0, planned()),
        (0, EventKind::StepStarted { index: 0 }),
        (30, EventKind::Progress { index: 0, text: "loading\u{1b}[0m weights".to_owned() }),
        (
            62,
            EventKind::StepSucceeded {
                index: 0,
                took_ms: 62_000,
                detail: "serves Qwen/B".to_owned(),
            },
        ),
        (62, EventKind::StepStarted { index: 1 }),
        (63, EventKind::StepSucceeded { index: 1, took_ms: 450, detail: String::new() }),
        (63, EventKind::Warning { text: "an old worker lingers".to_owned() }),
        (63, sample::promoted()),
        (63, EventKind::Unknown),
        (700, EventKind::Closed(Closing::Retired { slot: slot("a") })),
    ]);
    let expected = "[ Prepare Qwen/B in slot b
    0.0s  → await_ready b: at most 20m
   30.0s    loading\\u{1b}[0m weights
  1m 02s  ✓ await_ready b in 1m 02s: serves Qwen/B
]
[ Move traffic to Qwen/B in slot b
  1m 02s  → cut_over a -> b: upstream llm: 8001 -> 8002
  1m 03s  ✓ cut_over a -> b in 0.4s
WARNING an old worker lingers
]
  1m 03s  promoted: Qwen/B on slot b serves
          the previous replica stays warm until 2026-11-23 09:10:00 UTC: `model-swap rollback --swap-id s-1` brings it back at once (in a workflow `command: rollback` with `swap-id: s-1`)
 11m 40s  slot a is free: its replica is drained and gone
";
    assert_eq!(shown(&story), format!("{PLAN}{expected}"));
}

#[test]
fn a_failure_is_told_in_full_once() {
    let story = events(vec![
        (0, planned()),
        (3, EventKind::StepFailed { index: 0, took_ms: 3_000, failure: failure() }),
        (3, EventKind::UndoStarted { index: 0 }),
        (4, EventKind::UndoFinished { index: 0, detail: "pid 9 is gone".to_owned() }),
        (4, sample::failed()),
        (4, EventKind::Closed(Closing::Nothing)),
    ]);
    let expected = "    3.0s  ✗ await_ready b after 3.0s: the engine ended with code 1
            because: CUDA out of memory
            hint: free the GPU
[ Last 2 lines of its log
> ::error::boom
> \\u{1b}[31mTraceback ``` @acme
]
[ Undo
    3.0s  ↩ undo await_ready b
    4.0s  ↩ undone await_ready b: pid 9 is gone
]
ERROR failed: Qwen/A on slot a serves; the engine ended with code 1
";
    assert_eq!(shown(&story), format!("{PLAN}{expected}"));
}

#[test]
fn what_cannot_be_undone_or_ended_is_told() {
    let stuck = || Failure::new("nginx -t rejects the file");
    let story = events(vec![
        (0, EventKind::UndoFailed { index: 6, failure: stuck() }),
        (1, EventKind::Concluded(sample::conclusion(Outcome::Stuck, "nothing is known"))),
        (
            2,
            EventKind::Closed(Closing::Kept {
                slot: slot("a"),
                failure: Failure::new("3 requests run"),
            }),
        ),
        (3, EventKind::Closed(Closing::Superseded { by: Some("s-2".parse().unwrap()) })),
    ]);
    assert_eq!(
        shown(&story),
        "    0.0s  ✗ cannot undo step 7: nginx -t rejects the file\n\
         ERROR stuck: nothing is known\n\
         WARNING the replica on slot a still runs: 3 requests run\n    \
         3.0s  s-2 took over what was left to do\n"
    );
}

#[test]
fn going_back_is_an_error_only_where_it_was_not_asked_for() {
    let back = || EventKind::Concluded(sample::conclusion(Outcome::RolledBack, "Qwen/A serves"));
    let swap = events(vec![(0, planned()), (1, back())]);
    assert_eq!(shown(&swap), format!("{PLAN}ERROR rolled-back: Qwen/A serves\n"));
    let plan = Plan { strategy: Strategy::WarmRollback, ..sample::plan() };
    let rollback =
        events(vec![(0, EventKind::Planned { plan: Box::new(plan), replaces: None }), (1, back())]);
    assert!(shown(&rollback).ends_with("    1.0s  rolled-back: Qwen/A serves\n"));
}

#[test]
fn an_event_that_comes_again_is_not_shown_again() {
    let story = events(vec![(0, planned()), (1, sample::promoted())]);
    let again: Vec<Event> = story.iter().chain(&story).cloned().collect();
    assert_eq!(shown(&again), shown(&story));
}
