use super::super::sample::{self, events, failure, planned, slot};
use super::*;
use crate::model::sample::{GpuMemory, Load, ReplicaLoad, Sample};

fn markdown(events: &[Event]) -> String {
    let mut summary = Summary::default();
    for event in events {
        summary.apply(event);
    }
    summary.markdown()
}

fn done(index: usize, took_ms: u64, detail: &str) -> EventKind {
    EventKind::StepSucceeded { index, took_ms, detail: detail.to_owned() }
}

#[test]
fn a_promoted_swap_says_how_to_go_back() {
    let mut story = vec![
        (0, planned()),
        (0, EventKind::StepStarted { index: 0 }),
        (60, sample::passed(0, "model", "chat (Qwen/C)")),
        (62, sample::passed(0, "model", "chat (Qwen|B)")),
        (62, done(0, 62_000, "serves | Qwen/B")),
        (62, EventKind::StepStarted { index: 1 }),
        (63, sample::passed(1, "route", "8 in a row")),
        (63, done(1, 450, "new workers <b>1</b>")),
        (63, sample::promoted()),
    ];
    let expected = "\
## chat: promoted

<code>Qwen/A (adopted-a)</code> on slot a → <code>Qwen/B (r-b)</code> on slot b

Traffic after 1m 03s: <code>Qwen/B on slot b serves</code>

| Step | Result | After | Took | When | |
|---|---|--:|--:|---|---|
| await_ready&#160;b | ✓&#160;done | 0.0s | 1m 02s | ███████████████████░ | <code>serves &#124; Qwen/B</code> |
| cut_over&#160;a&#160;&#8209;>&#160;b | ✓&#160;done | 1m 02s | 0.4s | ░░░░░░░░░░░░░░░░░░░█ | <code>new workers &#60;b&#62;1&#60;/b&#62;</code> |
| retire&#160;a | – |  |  |  | <code>stops pid 77</code> |

| Gate | | Measured |
|---|---|---|
| <code>model</code> | ✓ | <code>chat (Qwen&#124;B)</code> |
| <code>route</code> | ✓ | <code>8 in a row</code> |

**Worth knowing**

- <code>slot a is kept alive by run.sh</code>

### Roll back

The previous replica stays warm until 2026-11-23 09:10:00 UTC. To bring it back:

```yaml
with:
  command: rollback
  swap-id: s-1
```
";
    assert_eq!(markdown(&events(story.clone())), expected);
    story.push((700, EventKind::Closed(Closing::Retired { slot: slot("a") })));
    let retired = markdown(&events(story));
    assert!(!retired.contains("Roll back"), "{retired}");
    assert!(retired.ends_with("\nSlot a is free: its replica is drained and gone.\n"), "{retired}");
}

#[test]
fn a_failed_swap_says_why_and_its_log_breaks_nothing() {
    let story = events(vec![
        (0, planned()),
        (3, EventKind::StepFailed { index: 0, took_ms: 3_000, failure: failure() }),
        (4, EventKind::UndoFinished { index: 0, detail: "pid 9 is gone".to_owned() }),
        (4, EventKind::Warning { text: "@acme, #1".to_owned() }),
        (4, sample::failed()),
        (4, EventKind::Closed(Closing::Nothing)),
    ]);
    let expected = "\
## chat: failed

<code>Qwen/A (adopted-a)</code> on slot a → <code>Qwen/B (r-b)</code> on slot b

Traffic after 4.0s: <code>Qwen/A on slot a serves</code>

### Why

```text
the engine ended with code 1
because: CUDA out of memory
```

```text
hint: free the GPU
```

<details><summary>Last 2 lines of its log</summary>

````text
::error::boom
\\u{1b}[31mTraceback ``` @acme
````

</details>

| Step | Result | After | Took | When | |
|---|---|--:|--:|---|---|
| await_ready&#160;b | ✗&#160;failed |  | 3.0s |  | <code>the engine ended with code 1</code> |
| cut_over&#160;a&#160;&#8209;>&#160;b | – |  |  |  | <code>upstream llm&#58; 8001 -&#62; 8002</code> |
| retire&#160;a | – |  |  |  | <code>stops pid 77</code> |

| Gate | | Measured |
|---|---|---|
| <code>await&#95;ready b</code> | ✗ | <code>the engine ended with code 1</code> |

**Worth knowing**

- <code>&#64;acme, &#35;1</code>
- <code>slot a is kept alive by run.sh</code>
";
    assert_eq!(markdown(&story), expected);
}

#[test]
fn steps_that_were_undone_or_not_are_told_apart() {
    let stuck = || Failure::new("nginx is gone");
    let story = events(vec![
        (0, planned()),
        (1, done(0, 1_000, "ready")),
        (2, done(1, 500, "moved")),
        (3, EventKind::UndoFailed { index: 1, failure: stuck() }),
        (4, EventKind::UndoFinished { index: 0, detail: "stopped".to_owned() }),
        (5, EventKind::Closed(Closing::Kept { slot: slot("a"), failure: Failure::new("3 run") })),
    ]);
    let text = markdown(&story);
    assert!(
        text.contains("| await_ready&#160;b | ↩&#160;undone |  | 1.0s |  | <code>stopped</code> |"),
        "{text}"
    );
    assert!(
        text.contains(
            "| cut_over&#160;a&#160;&#8209;>&#160;b | ✗&#160;not&#160;undone |  | 0.5s |  | <code>nginx is gone</code> |"
        ),
        "{text}"
    );
    assert!(text.contains("### The replica on slot a still runs\n\n```text\n3 run\n```"), "{text}");
}

#[test]
fn a_stream_that_ended_early_is_said_to_be_one() {
    let text = markdown(&events(vec![(0, planned()), (0, EventKind::StepStarted { index: 0 })]));
    assert!(text.starts_with("## chat: outcome not known\n"), "{text}");
    assert!(text.contains("The server goes on by itself; `command: status` tells"), "{text}");
    assert!(text.contains("| await_ready&#160;b | running | 0.0s |"), "{text}");
    assert_eq!(markdown(&[]), "");
}

#[test]
fn an_event_that_comes_again_counts_once() {
    let warning = EventKind::Warning { text: "once".to_owned() };
    let story = events(vec![(0, planned()), (1, EventKind::Unknown), (2, warning)]);
    let again: Vec<Event> = story.iter().chain(&story).cloned().collect();
    assert_eq!(markdown(&again), markdown(&story));
}

#[test]
fn a_plan_an_unchanged_service_and_a_refusal_have_summaries_too() {
    let outlook = ["GPU 1 has 139.9 of 140.4 GiB free".to_owned(), "it took <8m>".to_owned()];
    let text = of_plan(&sample::plan(), &outlook);
    assert!(
        text.starts_with("## Plan for chat: blue-green <code>p-1</code>\n\n<code>Qwen/A"),
        "{text}"
    );
    assert!(
        text.contains("| await_ready&#160;b | – |  |  |  | <code>at most 20m</code> |"),
        "{text}"
    );
    let said = "Outlook: <code>GPU 1 has 139.9 of 140.4 GiB free</code>; <code>it took &#60;8m&#62;</code>.\n";
    assert!(text.contains(said) && !of_plan(&sample::plan(), &[]).contains("Outlook"), "{text}");
    assert_eq!(of_unchanged("Qwen/B serves"), "## unchanged\n\n<code>Qwen/B serves</code>\n");
    assert_eq!(
        of_refusal(&[Failure::new("port 8002 is taken").hint("free it")]),
        "## Nothing was done\n\n### Refused\n\n```text\nport 8002 is taken\n```\n\n```text\nhint: free it\n```\n"
    );
}

#[test]
fn what_engines_counted_and_what_gpus_hold_is_said() {
    let load = |name, completed, cut| ReplicaLoad {
        slot: slot(name),
        load: Load { in_flight: 1, completed, cut, timed: completed, took_ms: completed * 1500 },
    };
    let sampled = |replicas, used| {
        let gpus = vec![GpuMemory { index: 1, used, total: 81_920 }];
        EventKind::Sampled(Sample { replicas, gpus })
    };
    let text = markdown(&events(vec![
        (0, planned()),
        (1, sampled(vec![load("a", 100, 1)], 0)),
        (9, sampled(vec![load("a", 130, 3), load("b", 0, 0)], 62_000)),
        (12, sampled(vec![load("a", 140, 3), load("b", 20, 0)], 62_464)),
        (12, sample::promoted()),
    ]));
    let expected = "\
Requests completed meanwhile: 40 by <code>Qwen/A</code> in slot a (1.5s each), 20 by <code>Qwen/B</code> in slot b (1.5s each). \
Cut by an engine: 2.

GPU memory in use at the end: GPU 1 61.0 of 80.0 GiB.
";
    assert!(text.contains(expected), "{text}");
}
