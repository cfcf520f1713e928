//! What a specification alone says of its plan, and whether a plan is the one that was approved.

use crate::config::command;
use crate::model::failure::Failure;
use crate::model::plan::{Outline, Plan, PlanDigest, Strategy};
use crate::model::spec::{Slot, SwapSpec};

use super::planner::{bound, drained, fetched, verified};
use super::redact::redact;
use super::revision;

/// What can be known of a swap without the server.
pub fn outline(spec: &SwapSpec) -> Outline {
    let place = |(name, Slot { port, gpus }): (_, &Slot)| {
        let gpus = if gpus.is_empty() { "none".to_owned() } else { command::gpu_list(gpus) };
        format!("slot {name}, port {port}, GPUs {gpus}")
    };
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
        steps.insert(steps.len() - 1, ("verify", verified(verify)));
    }
    let later = vec![
        ("drain", format!("wait until the old replica has nothing in flight, {}", drained(spec))),
        ("retire", "stop the old replica for good".to_owned()),
    ];
    Outline {
        service: spec.service.clone(),
        strategy: Strategy::BlueGreen,
        model: spec.model.clone(),
        places: spec.slots.iter().map(place).collect(),
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

/// Holds a plan to the digest that was approved.
///
/// # Errors
/// If it is another plan; the failure names both.
pub fn confirm(spec: &SwapSpec, plan: &Plan, approved: &PlanDigest) -> Result<(), Failure> {
    let now =
        if approved.is_of_outline() { revision::of_outline(spec) } else { plan.digest.clone() };
    if now == approved.as_str() {
        return Ok(());
    }
    let incumbent = plan
        .incumbent
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), |side| side.revision.to_string());
    let steps: Vec<String> = plan.all_steps().map(|planned| planned.step.to_string()).collect();
    let failure =
        Failure::new(format!("the plan is {now}, and plan-digest allows {approved} alone"));
    // The digest alone tells of that plan: its kind, and by it what can be different.
    let changed = if approved.is_of_outline() {
        "the configuration is another one than was planned; what serves and the secrets do not count here"
    } else if approved.is_unchanged() {
        "when that plan was made, what is asked for served already: what serves, the configuration or a secret has changed"
    } else {
        "what serves, the configuration, a secret or what is kept warm has changed since that plan"
    };
    let causes = vec![
        changed.to_owned(),
        format!("{incumbent} serves now, and {} is to serve", plan.candidate.revision),
        format!("the steps would be {}", steps.join(", ")),
    ];
    Err(Failure { causes, ..failure }.hint("run `plan` again and look at it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::UNCHANGED;
    use crate::swap::planner::tests::{spec, two_slot_plan};

    #[test]
    fn an_outline_names_every_step_of_a_swap_and_no_secret() {
        let mut spec = spec();
        spec.replica.command.extend(["--api-key".to_owned(), "sk-hidden".to_owned()]);
        let outline = outline(&spec);
        let names: Vec<_> = outline.steps.iter().chain(&outline.later).map(|step| step.0).collect();
        let all = "reserve_slot start_replica await_ready cut_over promote drain retire";
        assert_eq!(names.join(" "), all);
        assert_eq!(outline.places.len(), 2);
        assert!(outline.digest.starts_with("o-") && outline.digest.parse::<PlanDigest>().is_ok());
        assert!(!format!("{outline:?}").contains("sk-hidden"), "{outline:?}");
    }

    #[test]
    fn a_refused_plan_is_told_with_what_can_be_different() {
        let plan = two_slot_plan();
        for (approved, changed) in [
            ("o-000000000000", "the configuration is another one"),
            ("p-000000000000", "what serves, the configuration, a secret"),
            (UNCHANGED, "what is asked for served already"),
        ] {
            let failure = confirm(&spec(), &plan, &approved.parse().unwrap()).unwrap_err();
            assert!(failure.message.contains(approved), "{failure:?}");
            assert!(failure.causes[0].contains(changed), "{failure:?}");
            assert!(failure.causes[2].contains("cut_over"), "{failure:?}");
        }
        let own = revision::of_outline(&spec()).parse().unwrap();
        assert_eq!(confirm(&spec(), &plan, &own), Ok(()));
    }

    #[test]
    fn its_digest_follows_the_specification() {
        let mut other = spec();
        assert_eq!(revision::of_outline(&spec()), revision::of_outline(&other));
        other.retain *= 2;
        assert_ne!(revision::of_outline(&spec()), revision::of_outline(&other));
    }
}
