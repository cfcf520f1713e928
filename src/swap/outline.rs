//! What a specification alone says of its plan, and whether a plan is the one that was approved.

use crate::config::command;
use crate::model::failure::Failure;
use crate::model::plan::{Outline, Plan, PlanDigest, Strategy};
use crate::model::spec::{Slot, SwapSpec};

use super::planner::{ROLL_BACK, bound, drained, fetched, verified};
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

/// Holds a plan to the digest that was approved. One that was approved while its image was not here is held to the image's
/// reference: `by_reference` is what its candidate's digest was then.
///
/// # Errors
/// If it is another plan; the failure names both.
pub fn confirm(
    spec: &SwapSpec,
    (plan, by_reference): (&Plan, &str),
    approved: &PlanDigest,
) -> Result<(), Failure> {
    let now =
        if approved.is_of_outline() { revision::of_outline(spec) } else { plan.digest.clone() };
    let before_its_image_came = || revision::of_plan_to(spec, plan, by_reference);
    if now == approved.as_str() || before_its_image_came() == approved.as_str() {
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
        "what serves, the configuration, a secret or the image has changed since that plan"
    };
    let causes = vec![
        changed.to_owned(),
        format!("{incumbent} serves now, and {} is to serve", plan.candidate.revision),
        format!("the steps would be {}", steps.join(", ")),
    ];
    let failure = Failure { causes, ..failure }.hint("run `plan` again and look at it");
    Err(failure.hint(
        "a digest does not hold its plan: in a workflow `plan-digest: from-pr` shows line by line what is different",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::UNCHANGED;
    use crate::model::replica::Image;
    use crate::model::spec::Runtime;
    use crate::model::step::Step;
    use crate::model::wire::When;
    use crate::swap::planner::plan_swap;
    use crate::swap::planner::tests::{acts, adopted_in_a, spec, two_slot_plan};

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
            let now = (&plan, &*plan.candidate.revision.digest);
            let failure = confirm(&spec(), now, &approved.parse().unwrap()).unwrap_err();
            assert!(failure.message.contains(approved), "{failure:?}");
            assert!(failure.causes[0].contains(changed), "{failure:?}");
            assert!(failure.causes[2].contains("cut_over"), "{failure:?}");
            assert!(failure.hints[1].contains("`plan-digest: from-pr` shows"), "{failure:?}");
        }
        let own = revision::of_outline(&spec()).parse().unwrap();
        let now = (&plan, &*plan.candidate.revision.digest);
        assert_eq!(confirm(&spec(), now, &own), Ok(()));
    }

    #[test]
    fn its_digest_follows_the_specification() {
        let mut other = spec();
        assert_eq!(revision::of_outline(&spec()), revision::of_outline(&other));
        other.retain *= 2;
        assert_ne!(revision::of_outline(&spec()), revision::of_outline(&other));
    }

    #[test]
    fn an_approval_by_an_images_reference_holds_once_it_is_here_and_one_by_its_id_for_that_alone() {
        let mut spec = spec();
        spec.replica.runtime = Runtime::Docker;
        spec.replica.image = Some("vllm/vllm-openai:v1".to_owned());
        let planned = |id: Option<&str>| {
            let image = id.map(|id| Image { id: id.to_owned(), pinned: None });
            let mut seen = adopted_in_a();
            seen.must_pull = image.is_none();
            seen.wanted = revision::specified(&spec, "", image.as_ref(), None);
            seen.wanted_by_reference = revision::specified(&spec, "", None, None).digest;
            let plan = acts(plan_swap(&spec, &seen, When::Changed));
            (plan, seen)
        };
        let all = [None, Some("sha256:aa"), Some("sha256:bb")].map(planned);
        assert_eq!(all[0].0.steps[0].step, Step::Fetch);
        let holds = |approved: usize, now: usize| {
            let (plan, seen) = &all[now];
            let approved = all[approved].0.digest.parse().unwrap();
            confirm(&spec, (plan, &seen.wanted_by_reference), &approved).is_ok()
        };
        for (approved, now, expected) in [
            (0, 0, true),
            (0, 1, true),
            (0, 2, true),
            (1, 1, true),
            (1, 2, false),
            // It went, and who knows what the same reference brings.
            (1, 0, false),
        ] {
            assert_eq!(holds(approved, now), expected, "{approved} {now}");
        }
    }
}
