//! Whether a plan is the one that was approved, and what is different if not.

use std::collections::BTreeMap;

use super::outline::places;
use super::planner::{Observed, bound, drained, fetched};
use super::redact::redact;
use super::revision;
use crate::model::digest::{Part, Parts, PlanDigest};
use crate::model::failure::Failure;
use crate::model::plan::Plan;
use crate::model::replica::Revision;
use crate::model::spec::SwapSpec;

/// Holds a plan to the digest that was approved. One that was approved while its image was not here is held to the image's
/// reference.
///
/// The digest of the whole decides alone. Its parts hold nothing that it does not, and say what is different: one that has been
/// copied wrongly must not stop the very plan that was looked at.
///
/// # Errors
/// If it is another plan; the failure names both, and what is different as far as the digest tells.
pub fn confirm(
    spec: &SwapSpec,
    (plan, seen): (&Plan, &Observed),
    approved: &PlanDigest,
) -> Result<(), Failure> {
    let is_outline = approved.is_of_outline();
    let now = if is_outline { revision::of_outline(spec) } else { plan.approval() };
    let before_its_image_came = || revision::of_plan_to(spec, plan, &seen.wanted_by_reference);
    if now.whole() == approved.whole() || before_its_image_came() == approved.whole() {
        return Ok(());
    }
    let failure =
        Failure::new(format!("the plan is {now}, and plan-digest allows {approved} alone"));
    let (causes, shows) = match (approved.parts(), now.parts()) {
        (Some(then), Some(now)) => {
            let different = different(spec, (&then, &now));
            (told(spec, (plan, seen), (&then, &different)), "it line by line")
        }
        _ => (
            untold(plan, approved),
            "line by line what is different, which this digest does not hold",
        ),
    };
    let failure = Failure { causes, ..failure }.hint("run `plan` again and look at it");
    Err(failure.hint(format!("in a workflow `plan-digest: from-pr` shows {shows}")))
}

/// The parts that are others than approved.
fn different(spec: &SwapSpec, (then, now): (&Parts, &Parts)) -> Vec<Part> {
    let by_reference = revision::of_outline(spec).parts();
    let image = |parts: &Parts| parts.of(Part::Image).map(str::to_owned);
    // It has come since, and was approved as whatever its reference brings.
    let has_come = by_reference.is_some_and(|reference| image(&reference) == image(then));
    now.different(then).into_iter().filter(|part| *part != Part::Image || !has_come).collect()
}

/// What is different, part by part.
fn told(
    spec: &SwapSpec,
    (plan, seen): (&Plan, &Observed),
    (then, different): (&Parts, &[Part]),
) -> Vec<String> {
    if different.is_empty() {
        let text = "no part shows which has changed: each is known by two digits alone, and of 256 changes one leaves them as they were";
        return vec![text.to_owned()];
    }
    let is_other = |part: &Part| {
        let before = match part {
            Part::Incumbent => served(seen, then),
            _ => String::new(),
        };
        format!("{} is another one{before}: now {}", part.name(), now(*part, spec, (plan, seen)))
    };
    let mut causes: Vec<String> = different.iter().map(is_other).collect();
    let known = Part::ALL.into_iter().filter(|part| then.of(*part).is_some()).count();
    if different.len() < known {
        causes.push("everything else is as approved".to_owned());
    }
    causes
}

/// What served when a plan was made, if one revision that the server knows fits its part.
fn served(seen: &Observed, then: &Parts) -> String {
    let state = &seen.state;
    let replicas = [state.serving.as_ref(), state.retained.as_ref().map(|it| &it.replica)];
    let kept = replicas.into_iter().flatten().map(|replica| &replica.revision);
    let known = state.history.iter().map(|past| &past.revision).chain(kept);
    let mut known: BTreeMap<Option<&str>, Option<&Revision>> =
        known.map(|revision| (Some(revision.digest.as_str()), Some(revision))).collect();
    known.insert(None, None);
    let fits =
        |revision: &Option<&Revision>| then.has(Part::Incumbent, revision::of_incumbent(*revision));
    match known.into_values().filter(fits).collect::<Vec<_>>()[..] {
        [Some(revision)] => format!(" than, most likely, {revision}"),
        [None] => " than, most likely, nothing".to_owned(),
        _ => String::new(),
    }
}

/// A part as it is now, in words. No secret is in them.
fn now(part: Part, spec: &SwapSpec, (plan, seen): (&Plan, &Observed)) -> String {
    let replica = &spec.replica;
    let or_none = |words: Vec<String>| match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(" "),
    };
    match part {
        Part::Model => {
            let pinned = spec.model_revision.as_deref().unwrap_or("none");
            format!("{}, model_revision {pinned}, engine {:?}", spec.model, replica.engine)
        }
        Part::Command => {
            let user = replica.user.as_deref().unwrap_or("of what serves");
            format!("{}, user {user}", redact(&replica.command).join(" "))
        }
        Part::Environment => {
            let env: Vec<_> =
                replica.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let secret = or_none(replica.secret_env.clone());
            format!("env {}, secret_env {secret}", or_none(redact(&env)))
        }
        Part::Image => {
            let name = replica.image_reference().unwrap_or("none");
            let here = match &plan.candidate.revision.image {
                Some(image) => format!(" ({})", image.id),
                None if seen.must_pull => " (yet to be pulled)".to_owned(),
                None => String::new(),
            };
            format!("{name}{here}, docker_options {}", or_none(redact(&replica.docker_options)))
        }
        Part::Rest => rest(spec),
        Part::Secrets => format!("as given for {}", or_none(replica.secret_env.clone())),
        Part::Incumbent => {
            plan.incumbent.as_ref().map_or("nothing".to_owned(), |side| side.revision.to_string())
        }
        Part::Steps => steps(plan),
    }
}

fn rest(spec: &SwapSpec) -> String {
    let nginx = &spec.nginx;
    let mut words = places(spec);
    words.extend([
        format!("runtime {}", spec.replica.runtime.word()),
        format!("ready at most {}", bound(spec.ready.timeout)),
        format!("drain {}", drained(spec)),
        format!("retain {}", bound(spec.retain)),
        format!("upstream {} in {}", nginx.upstream, nginx.config.display()),
        format!("probe {}", nginx.probe.url),
    ]);
    words.extend(spec.verify.iter().map(|it| format!("verify {} at {}", it.expect_model, it.url)));
    words.extend(spec.fetch.iter().map(|_| fetched(spec, None)));
    words.join("; ")
}

fn steps(plan: &Plan) -> String {
    let steps: Vec<String> = plan.all_steps().map(|planned| planned.step.to_string()).collect();
    steps.join(", ")
}

/// What can be different from a plan whose digest tells nothing but its kind.
fn untold(plan: &Plan, approved: &PlanDigest) -> Vec<String> {
    let incumbent = plan
        .incumbent
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), |side| side.revision.to_string());
    let changed = if approved.is_of_outline() {
        "the configuration is another one than was planned; what serves and the secrets do not count here"
    } else if approved.is_unchanged() {
        "when that plan was made, what is asked for served already: what serves, the configuration or a secret has changed"
    } else {
        "what serves, the configuration, a secret or the image has changed since that plan"
    };
    vec![
        changed.to_owned(),
        format!("{incumbent} serves now, and {} is to serve", plan.candidate.revision),
        format!("the steps would be {}", steps(plan)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::UNCHANGED;
    use crate::model::outcome::Outcome;
    use crate::model::replica::Image;
    use crate::model::spec::Runtime;
    use crate::model::state::Past;
    use crate::model::step::Step;
    use crate::model::wire::When;
    use crate::swap::planner::tests::{acts, adopted_in_a, spec, two_slot_plan};
    use crate::swap::planner::{Occupant, plan_swap};

    type Change = fn(&mut SwapSpec, &mut Observed);

    /// A specification, what is seen of it, and the plan that it comes to.
    fn planned(change: Change) -> (SwapSpec, Observed, Plan) {
        let (mut spec, mut seen) = (spec(), adopted_in_a());
        spec.replica.runtime = Runtime::Docker;
        spec.replica.image = Some("vllm/vllm-openai:v1".to_owned());
        change(&mut spec, &mut seen);
        let image = (!seen.must_pull).then(|| Image { id: "sha256:aa".to_owned(), pinned: None });
        seen.wanted = revision::specified(&spec, &seen.secrets, image.as_ref(), None);
        seen.wanted_by_reference = revision::specified(&spec, &seen.secrets, None, None).digest;
        let plan = acts(plan_swap(&spec, &seen, When::Changed));
        (spec, seen, plan)
    }

    fn slot_a(seen: &mut Observed) -> &mut Occupant {
        seen.slots.get_mut(&"a".parse().unwrap()).unwrap()
    }

    fn refused(approved: &PlanDigest, change: Change) -> Failure {
        let (spec, seen, plan) = planned(change);
        confirm(&spec, (&plan, &seen), approved).unwrap_err()
    }

    #[test]
    fn each_change_is_told_as_the_part_that_it_is_in_and_no_other() {
        let changes: [(Change, &str); 8] = [
            (
                |spec, _| spec.model = "Qwen/Next".to_owned(),
                "the model is another one: now Qwen/Next",
            ),
            (
                |spec, _| spec.replica.command.push("--x".to_owned()),
                "the command is another one: now vllm",
            ),
            (
                |spec, _| drop(spec.replica.env.insert("A".to_owned(), "1".to_owned())),
                "now env A=1",
            ),
            (
                |spec, _| spec.replica.image = Some("vllm/vllm-openai:v2".to_owned()),
                "the image is another one: now vllm/vllm-openai:v2 (sha256:aa)",
            ),
            (
                |spec, _| spec.retain *= 2,
                "the rest of the configuration is another one: now slot a",
            ),
            (|_, seen| seen.secrets = "other".to_owned(), "the value of a secret is another one"),
            (|_, seen| slot_a(seen).found.as_mut().unwrap().argv.clear(), "what serves"),
            (|_, seen| seen.must_pull = true, "(yet to be pulled)"),
        ];
        let (_, _, before) = planned(|_, _| {});
        for (change, said) in changes {
            let causes = refused(&before.approval(), change).causes;
            assert!(causes[0].contains(said), "{said}: {causes:?}");
            assert_eq!(causes[1..], ["everything else is as approved"]);
        }
        // The parts of the specification are those of an outline.
        let approved = revision::of_outline(&planned(|_, _| {}).0);
        for (change, said) in &changes[..5] {
            let causes = refused(&approved, *change).causes;
            assert!(causes[0].contains(said) && causes.len() == 2, "{said}: {causes:?}");
        }
    }

    #[test]
    fn what_served_is_named_where_the_server_knows_it_and_nothing_secret_is_told() {
        let (_, _, before) = planned(|_, _| {});
        let approved = before.approval();
        let failure = refused(&approved, |spec, seen| {
            let revision = revision::adopted(&slot_a(seen).found.as_ref().unwrap().argv, None);
            let (swap, at) = ("s-1".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH);
            let past = Past { swap, at, outcome: Outcome::Promoted, revision, strategy: None };
            seen.state.history.push(past);
            slot_a(seen).found = None;
            spec.replica.command.extend(["--api-key".to_owned(), "sk-hidden".to_owned()]);
            spec.replica.env.insert("HF_TOKEN".to_owned(), "hf-hidden".to_owned());
            spec.replica.docker_options.push("--env=PASSWORD=pw-hidden".to_owned());
        });
        let told = failure.causes.join("\n");
        let was = "what serves is another one than, most likely, an unknown model (adopted-";
        assert!(told.contains(was) && told.contains(": now nothing"), "{told}");
        assert!(
            told.contains("the list of steps is another one: now reserve_slot")
                || told.contains("steps"),
            "{told}"
        );
        assert!(!told.contains("hidden"), "{told}");
    }

    #[test]
    fn an_image_that_has_come_since_is_no_difference() {
        let (_, _, before) = planned(|_, seen| seen.must_pull = true);
        let causes = refused(&before.approval(), |spec, _| spec.retain *= 2).causes;
        assert!(causes[0].starts_with("the rest of the configuration"), "{causes:?}");
        assert_eq!(causes[1..], ["everything else is as approved"]);
    }

    #[test]
    fn the_whole_decides_and_its_parts_explain() {
        let (spec, seen, plan) = planned(|_, _| {});
        let confirmed =
            |digest: &str| confirm(&spec, (&plan, &seen), &digest.parse::<PlanDigest>().unwrap());
        assert_eq!(confirmed(&plan.digest), Ok(()), "of an earlier release");
        assert_eq!(confirmed(&format!("{}-0000000000000000", plan.digest)), Ok(()));
        let parts = plan.approval().to_string()[plan.digest.len()..].to_owned();
        let failure = confirmed(&format!("p-000000000000{parts}")).unwrap_err();
        assert!(failure.causes[0].contains("no part shows which has changed"), "{failure:?}");
        let failure = confirmed("p-000000000000-0123456789abcdef").unwrap_err();
        assert!(
            !failure.causes.iter().any(|cause| cause.contains("everything else")),
            "{failure:?}"
        );
    }

    #[test]
    fn a_digest_without_parts_is_refused_with_what_can_be_different() {
        let plan = two_slot_plan();
        for (approved, changed) in [
            ("o-000000000000", "the configuration is another one"),
            ("p-000000000000", "what serves, the configuration, a secret"),
            (UNCHANGED, "what is asked for served already"),
        ] {
            let failure =
                confirm(&spec(), (&plan, &adopted_in_a()), &approved.parse().unwrap()).unwrap_err();
            assert!(failure.message.contains(approved), "{failure:?}");
            assert!(failure.causes[0].contains(changed), "{failure:?}");
            assert!(failure.causes[2].contains("cut_over"), "{failure:?}");
            assert!(failure.hints[1].contains("`plan-digest: from-pr` shows"), "{failure:?}");
        }
        let own = revision::of_outline(&spec());
        assert_eq!(confirm(&spec(), (&plan, &adopted_in_a()), &own), Ok(()));
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
            let approved = all[approved].0.approval();
            confirm(&spec, (plan, seen), &approved).is_ok()
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
