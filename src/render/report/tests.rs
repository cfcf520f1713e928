use super::super::sample::{self, events, failure, planned, revision, slot};
use super::*;
use crate::model::sample::{GpuMemory, ReplicaLoad};

fn load(name: &str, in_flight: u64, completed: u64) -> ReplicaLoad {
    let load = Load { in_flight, completed, timed: completed, took_ms: completed * 1500, cut: 0 };
    ReplicaLoad { slot: slot(name), load }
}

fn sampled(replicas: Vec<ReplicaLoad>) -> EventKind {
    EventKind::Sampled(Sample {
        replicas,
        gpus: vec![GpuMemory { index: 0, used: 71_680, total: 143_360 }],
    })
}

fn swap() -> Vec<Event> {
    events(vec![
        (0, planned()),
        (0, EventKind::StepStarted { index: 0 }),
        (1, sampled(vec![load("a", 8, 100)])),
        (
            40,
            EventKind::StepSucceeded {
                index: 0,
                took_ms: 40_000,
                detail: "serves Qwen/B".to_owned(),
            },
        ),
        (40, sample::passed(0, "model", "chat <Qwen/B>")),
        (41, sampled(vec![load("a", 9, 180), load("b", 0, 0)])),
        (41, EventKind::StepStarted { index: 1 }),
        (42, EventKind::StepSucceeded { index: 1, took_ms: 450, detail: String::new() }),
        (50, sampled(vec![load("a", 1, 190), load("b", 7, 20)])),
        (60, sample::promoted()),
    ])
}

#[test]
fn what_is_gone_is_not_said_to_be_warm() {
    let retired = EventKind::Closed(Closing::Retired { slot: slot("a") });
    let whole = page(&events(vec![(0, planned()), (1, sample::promoted()), (2, retired)])).unwrap();
    assert!(!whole.contains("To bring it back") && whole.contains("slot a is free"), "{whole}");
}

/// Whatever a page could ask the network for, or run.
fn assert_alone(page: &str) {
    for part in
        ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<img", "//"]
    {
        assert!(!page.contains(part), "{part} in\n{page}");
    }
    assert!(page.contains("default-src 'none'"), "{page}");
}

#[test]
fn a_swap_is_one_page_that_needs_nothing_else() {
    let page = page(&swap()).unwrap();
    assert_alone(&page);
    for part in [
        "<title>chat: promoted</title>",
        "<body class=\"good\">",
        "concluded after 1m 00s: Qwen/B on slot b serves.",
        "<code>swap-id: s-1</code>",
        "<li class=\"done\"><b>await_ready b</b><span class=\"bar\"><i style=\"left:0.00%;width:66.67%\">",
        "<li class=\"later\"><b>retire a</b><span class=\"bar\"></span><time>–</time>",
        "slot a, Qwen/A<small> at most 9, last 1</small>",
        "slot b, Qwen/B<small> at most 7, last 7</small>",
        "at most 1.5 s, last 1.5 s",
        "GPU 0 of 140 GiB<small> at most 70 GiB, last 70 GiB",
        "<tr class=\"\"><td>✓</td><td>model</td><td>chat &lt;Qwen/B&gt;</td></tr>",
        "<td>slot a, Qwen/A</td><td>90</td><td>1.5s</td><td>0</td>",
        "<td>slot b, Qwen/B</td><td>20</td><td>1.5s</td><td>0</td>",
        "<td>40.0s</td><td>✓ await_ready b in 40.0s: serves Qwen/B</td>",
        "<tr class=\"warning\"><td>0.0s</td><td>slot a is kept alive by run.sh</td></tr>",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(part), "no {part} in\n{page}");
    }
}

#[test]
fn what_a_server_says_is_nothing_but_text() {
    let hostile = "<script>alert(1)</script>'\"&\u{202e}";
    let mut plan = sample::plan();
    plan.candidate.revision = revision(hostile, hostile);
    plan.steps[0].does = hostile.to_owned();
    let mut failure = failure();
    failure.message = hostile.to_owned();
    failure.log_tail = vec![hostile.to_owned()];
    let concluded = Conclusion {
        failure: Some(failure.clone()),
        ..sample::conclusion(Outcome::Failed, hostile)
    };
    let page = page(&events(vec![
        (0, EventKind::Planned { plan: Box::new(plan), replaces: None }),
        (0, EventKind::StepStarted { index: 0 }),
        (1, EventKind::Progress { index: 0, text: hostile.to_owned() }),
        (2, EventKind::StepFailed { index: 0, took_ms: 2000, failure }),
        (2, EventKind::Warning { text: hostile.to_owned() }),
        (3, EventKind::Concluded(concluded)),
    ]))
    .unwrap();
    assert_alone(&page);
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&#39;&quot;&amp;\\u{202e}"),
        "{page}"
    );
    assert!(page.contains("<body class=\"bad\">"), "{page}");
    let place = |heading: &str| page.find(&format!("<h2>{heading}</h2>"));
    assert!(place("Why").unwrap() < place("Timeline").unwrap(), "{page}");
    assert_eq!(page.matches("Not measured.").count(), 3, "{page}");
}

#[test]
fn a_story_without_a_plan_is_none_and_one_that_broke_off_says_so() {
    assert_eq!(page(&[]), None);
    let broken =
        page(&events(vec![(0, planned()), (9, EventKind::StepStarted { index: 0 })])).unwrap();
    assert!(
        broken.contains("outcome not known") && broken.contains("followed for 9.0s"),
        "{broken}"
    );
    assert!(broken.contains("<li class=\"running\">"), "{broken}");
}

/// Relative luminance of `#rrggbb` (WCAG 2.2).
fn luminance(colour: &str) -> f64 {
    let parts = [1, 3, 5].map(|at| u8::from_str_radix(&colour[at..at + 2], 16).unwrap());
    let [red, green, blue] = parts.map(|part| {
        let part = f64::from(part) / 255.0;
        if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// WCAG 2.2 asks for 4.5 to 1 where a text is read, and for 3 to 1 where a line is told from its ground.
#[test]
fn texts_and_lines_stand_out_by_day_and_by_night() {
    let mut schemes = 0;
    for scheme in STYLE.split(":root {").skip(1) {
        let (scheme, _) = scheme.split_once('}').unwrap();
        let colour = |name: &str| {
            let (_, rest) = scheme.split_once(&format!("--{name}: ")).unwrap();
            luminance(rest.split(';').next().unwrap().trim())
        };
        let contrast = |one: &str, other: &str| {
            let (one, other) = (colour(one), colour(other));
            (one.max(other) + 0.05) / (one.min(other) + 0.05)
        };
        let grounds = ["page", "card"];
        let texts = ["text", "quiet", "fair", "bad"].map(|text| (text, 4.5));
        // Of the badge, whose letters have the page's colour.
        let badge = [("good", 4.5)];
        let lines = ["c0", "c1", "c2", "c3"].map(|line| (line, 3.0));
        for (name, least) in texts.into_iter().chain(badge).chain(lines) {
            for ground in grounds {
                let found = contrast(name, ground);
                assert!(found >= least, "{name} on {ground}: {found:.2}, of {least}");
            }
        }
        schemes += 1;
    }
    assert_eq!(schemes, 2);
}

/// A name that is cut within a word is hard to read, as on a phone.
#[test]
fn a_gate_is_named_on_one_line() {
    let page = page(&swap()).unwrap();
    assert!(page.contains("<table class=\"gates\">") && page.contains(".gates td:nth-child(2) {"));
}
