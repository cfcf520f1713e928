//! What a specification alone says of its plan.

use crate::config::command;
use crate::model::plan::{Outline, Strategy};
use crate::model::spec::{Slot, SwapSpec};

use super::planner::{ROLL_BACK, bound, drained, fetched, verified};
use super::redact::redact;
use super::revision;

/// What can be known of a swap without the server.
pub fn outline(spec: &SwapSpec) -> Outline {
    let fetch = fetched(spec, spec.replica.image.as_deref());
    let fetch = (!fetch.is_empty()).then_some(("fetch", fetch));
    let mut steps: Vec<_> = fetch.into_iter().collect();
    steps.extend([
        ("reserve_slot", "claim port and GPUs of the slot that does not serve".to_owned()),
        ("start_replica", format!("start {}", redact(&spec.replica.command).join(" "))),
        ("await_ready", format!("wait until it is ready, at most {}", bound(spec.ready.timeout))),
        (
            "cut_over",
            format!(
                "point upstream {} at it and prove that new requests go there",
                spec.nginx.upstream
            ),
        ),
        ("promote", format!("record it as what serves {}", spec.service)),
    ]);
    if let Some(verify) = &spec.verify {
        steps.insert(steps.len() - 1, ("verify", verified(verify, ROLL_BACK)));
    }
    let later = vec![
        ("drain", format!("wait until the old replica has nothing in flight, {}", drained(spec))),
        ("retire", "stop the old replica for good".to_owned()),
    ];
    Outline {
        service: spec.service.clone(),
        strategy: Strategy::BlueGreen,
        model: spec.model.clone(),
        places: places(spec),
        steps,
        later,
        unknown: vec![
            "what serves now; if it is this already, nothing is done".to_owned(),
            "whether this revision is still warm, and need not be started".to_owned(),
            "whether port, program and nginx are as the configuration says".to_owned(),
        ],
        digest: revision::of_outline(spec),
    }
}

/// The slots, one line each.
pub(super) fn places(spec: &SwapSpec) -> Vec<String> {
    let place = |(name, Slot { port, gpus }): (_, &Slot)| {
        let gpus = if gpus.is_empty() { "none".to_owned() } else { command::gpu_list(gpus) };
        format!("slot {name}, port {port}, GPUs {gpus}")
    };
    spec.slots.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swap::planner::tests::spec;

    #[test]
    fn an_outline_names_every_step_of_a_swap_and_no_secret() {
        let mut spec = spec();
        spec.replica.command.extend(["--api-key".to_owned(), "sk-hidden".to_owned()]);
        let outline = outline(&spec);
        let names: Vec<_> = outline.steps.iter().chain(&outline.later).map(|step| step.0).collect();
        let all = "reserve_slot start_replica await_ready cut_over promote drain retire";
        assert_eq!(names.join(" "), all);
        assert_eq!(outline.places.len(), 2);
        assert!(outline.digest.is_of_outline(), "{outline:?}");
        assert!(!format!("{outline:?}").contains("sk-hidden"), "{outline:?}");
    }

    #[test]
    fn its_digest_follows_the_specification() {
        let mut other = spec();
        assert_eq!(revision::of_outline(&spec()), revision::of_outline(&other));
        other.retain *= 2;
        assert_ne!(revision::of_outline(&spec()), revision::of_outline(&other));
    }
}
