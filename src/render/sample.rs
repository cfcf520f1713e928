//! A swap of two slots, for the tests of what is made of its events.

use jiff::{SignedDuration, Timestamp};

use crate::model::event::{Conclusion, Event, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::{Port, SlotName};
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, PlannedStep, Side, Strategy};
use crate::model::replica::{Keeper, Revision};
use crate::model::step::Step;
use crate::model::wire::WIRE_VERSION;

pub(super) fn slot(name: &str) -> SlotName {
    name.parse().unwrap()
}

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn revision(model: &str, digest: &str) -> Revision {
    Revision { digest: digest.to_owned(), model: model.to_owned(), git_sha: None, image: None }
}

/// Two steps, then one more when the time has come.
pub(super) fn plan() -> Plan {
    let step = |step, does: &str| PlannedStep::new(step, does.to_owned());
    Plan {
        service: "chat".parse().unwrap(),
        strategy: Strategy::BlueGreen,
        incumbent: Some(Side {
            slot: slot("a"),
            port: Port(8001),
            revision: revision("Qwen/A", "adopted-a"),
            keeper: Keeper::Nobody,
        }),
        candidate: Side {
            slot: slot("b"),
            port: Port(8002),
            revision: revision("Qwen/B", "r-b"),
            keeper: Keeper::Nobody,
        },
        steps: vec![
            step(Step::AwaitReady { slot: slot("b") }, "at most 20m"),
            step(Step::CutOver { from: slot("a"), to: slot("b") }, "upstream llm: 8001 -> 8002"),
        ],
        later: vec![step(Step::Retire { slot: slot("a") }, "stops pid 77")],
        notes: vec!["slot a is kept alive by run.sh".to_owned()],
        digest: "p-1".to_owned(),
        parts: None,
    }
}

/// The events of a swap that began at nine, each with its second and its kind.
pub(super) fn events(kinds: Vec<(i64, EventKind)>) -> Vec<Event> {
    let began = at("2026-11-23T09:00:00Z");
    kinds
        .into_iter()
        .zip(1..)
        .map(|((second, kind), seq)| Event {
            v: WIRE_VERSION,
            swap: "s-1".parse().unwrap(),
            seq,
            at: began + SignedDuration::from_secs(second),
            kind,
        })
        .collect()
}

pub(super) fn planned() -> EventKind {
    EventKind::Planned { plan: Box::new(plan()), replaces: None }
}

pub(super) fn passed(index: usize, gate: &str, measured: &str) -> EventKind {
    EventKind::GatePassed { index, gate: gate.to_owned(), measured: measured.to_owned() }
}

pub(super) fn failure() -> Failure {
    Failure {
        message: "the engine ended with code 1".to_owned(),
        causes: vec!["CUDA out of memory".to_owned()],
        hints: vec!["free the GPU".to_owned()],
        log_tail: vec!["::error::boom".to_owned(), "\u{1b}[31mTraceback ``` @acme".to_owned()],
        location: None,
    }
}

pub(super) fn conclusion(outcome: Outcome, traffic: &str) -> Conclusion {
    Conclusion {
        outcome,
        traffic: traffic.to_owned(),
        slot: None,
        revision: None,
        previous_revision: None,
        rollback_until: None,
        failure: None,
    }
}

pub(super) fn promoted() -> EventKind {
    EventKind::Concluded(Conclusion {
        rollback_until: Some(at("2026-11-23T09:10:00Z")),
        ..conclusion(Outcome::Promoted, "Qwen/B on slot b serves")
    })
}

pub(super) fn failed() -> EventKind {
    EventKind::Concluded(Conclusion {
        failure: Some(failure()),
        ..conclusion(Outcome::Failed, "Qwen/A on slot a serves")
    })
}
