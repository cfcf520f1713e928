//! Digests of what runs, and of plans.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model::digest::{Part, Parts, PlanDigest};
use crate::model::plan::{Plan, PlannedStep};
use crate::model::replica::{Image, Revision};
use crate::model::spec::{ReplicaSpec, SwapSpec};
use crate::model::step::Step;

/// Hex digits that a digest shows: 48 bits tell a person's revisions apart.
const SHOWN: usize = 12;

/// The revision that a specification asks for.
///
/// `secrets` is a keyed hash of the secret values, made where the key is kept; `image` the image, if there is one and it is
/// here.
pub fn specified(
    spec: &SwapSpec,
    secrets: &str,
    image: Option<&Image>,
    git_sha: Option<String>,
) -> Revision {
    let replica = &spec.replica;
    let parts = (
        (&spec.model, &spec.model_revision, replica.engine),
        (&replica.command, &replica.user),
        (&replica.env, &replica.secret_env, secrets),
    );
    let digest = match &replica.image {
        None => digest(&parts),
        // A tag may come to name another image. Until it is here, nobody knows which.
        Some(name) => {
            digest(&(parts, image.map_or(name, |image| &image.id), &replica.docker_options))
        }
    };
    let digest = format!("r-{digest}");
    Revision { digest, model: spec.model.clone(), git_sha, image: image.cloned() }
}

/// The model of an adopted revision that did not say what it serves.
pub const UNKNOWN_MODEL: &str = "an unknown model";

/// The revision of a process tree that nobody here started. It never equals a specified one.
pub fn adopted(argv: &[String], model: Option<String>) -> Revision {
    Revision {
        digest: format!("adopted-{}", digest(&argv)),
        model: model.unwrap_or_else(|| UNKNOWN_MODEL.to_owned()),
        git_sha: None,
        image: None,
    }
}

/// The digest of a plan: of the specification, the strategy, both revisions, and the steps from the candidate's readiness on.
///
/// Never of pids, memory or times, so that the same plan can be recognised later. What gets the candidate into its slot is
/// decided by what time alone changes: what is warm there, and whether its image has come.
pub fn of_plan(spec: &SwapSpec, plan: &Plan) -> String {
    of_plan_to(spec, plan, &plan.candidate.revision.digest)
}

/// The digest of the same plan to a candidate of another revision.
pub fn of_plan_to(spec: &SwapSpec, plan: &Plan, candidate: &str) -> String {
    let incumbent = plan.incumbent.as_ref().map(|side| &side.revision.digest);
    format!("p-{}", digest(&(spec, plan.strategy, moves(plan), incumbent, candidate)))
}

/// The steps that move traffic, and those after.
fn moves(plan: &Plan) -> Vec<&Step> {
    let prepares = |planned: &&PlannedStep| !matches!(planned.step, Step::AwaitReady { .. });
    let moves = plan.steps.iter().skip_while(prepares);
    moves.chain(&plan.later).map(|planned| &planned.step).collect()
}

/// The digest of what can be known of a plan without the server: of the specification alone.
pub fn of_outline(spec: &SwapSpec) -> PlanDigest {
    let parts = parts_of_spec(spec, None).into_iter().collect();
    PlanDigest::new(&format!("o-{}", digest(spec)), Some(&parts))
}

/// What the parts of a plan are known by; together they hold whatever its digest does.
///
/// `secrets` is the keyed hash that the candidate's digest holds as well.
pub fn parts_of_plan(spec: &SwapSpec, plan: &Plan, secrets: &str) -> Parts {
    let incumbent = plan.incumbent.as_ref().map(|side| &side.revision);
    let image = plan.candidate.revision.image.as_ref();
    let others = [short(&secrets), of_incumbent(incumbent), short(&(plan.strategy, moves(plan)))];
    parts_of_spec(spec, image).into_iter().chain(others).collect()
}

/// What serves, as a part of a plan.
pub fn of_incumbent(revision: Option<&Revision>) -> u8 {
    short(&revision.map(|revision| &revision.digest))
}

fn parts_of_spec(spec: &SwapSpec, here: Option<&Image>) -> [u8; Part::OF_OUTLINE] {
    // Whatever is added to a specification must become a part: nothing is left out here.
    let SwapSpec {
        service,
        model,
        model_revision,
        slots,
        fetch,
        replica,
        ready,
        drain,
        retain,
        nginx,
        verify,
        state_dir,
    } = spec;
    let ReplicaSpec {
        command,
        engine,
        runtime,
        user,
        env,
        secret_env,
        image,
        pinned,
        docker_options,
    } = replica;
    let here = here.map(|image| &image.id);
    [
        short(&(model, model_revision, engine)),
        short(&(command, user)),
        short(&(env, secret_env)),
        short(&(image, pinned, docker_options, here)),
        short(&(
            (service, slots, fetch, runtime),
            (ready, drain, retain, nginx, verify, state_dir),
        )),
    ]
}

/// One byte of a hash.
fn short(value: &impl Serialize) -> u8 {
    let text = serde_json::to_vec(value).unwrap_or_default();
    Sha256::digest(&text)[0]
}

fn digest(value: &impl Serialize) -> String {
    // Values of the model always serialise: maps have string keys and nothing fails by itself.
    let text = serde_json::to_vec(value).unwrap_or_default();
    hex(&Sha256::digest(&text))[..SHOWN].to_owned()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swap::planner::tests::spec;

    #[test]
    fn whatever_changes_the_answers_changes_the_revision() {
        let base = specified(&spec(), "s", None, None).digest;
        assert_eq!(
            base,
            specified(&spec(), "s", None, Some("abc".into())).digest,
            "the commit does not"
        );
        assert_ne!(base, specified(&spec(), "t", None, None).digest, "a secret");
        let changes: [fn(&mut SwapSpec); 4] = [
            |s| s.model = "other".into(),
            |s| s.model_revision = Some("main".into()),
            |s| s.replica.command.push("--enforce-eager".into()),
            |s| drop(s.replica.env.insert("A".into(), "1".into())),
        ];
        for change in changes {
            let mut changed = spec();
            change(&mut changed);
            assert_ne!(base, specified(&changed, "s", None, None).digest);
        }
        let mut slower = spec();
        slower.ready.timeout *= 2;
        assert_eq!(base, specified(&slower, "s", None, None).digest, "patience does not");
    }

    #[test]
    fn another_image_is_another_revision_whatever_its_name_is() {
        let mut spec = spec();
        spec.replica.image = Some("vllm/vllm-openai:latest".to_owned());
        let image = |id: &str| Image { id: id.to_owned(), pinned: None };
        let (one, other) = (image("sha256:aa"), image("sha256:bb"));
        let of = |image| specified(&spec, "", image, None).digest;
        assert_ne!(of(Some(&one)), of(Some(&other)));
        assert_ne!(of(Some(&one)), of(None));
        let before = of(Some(&one));
        spec.replica.docker_options.push("--ipc=host".to_owned());
        assert_ne!(before, specified(&spec, "", Some(&one), None).digest);
    }

    #[test]
    fn an_adopted_revision_equals_no_specified_one() {
        let argv = spec().replica.command;
        assert!(adopted(&argv, None).is_adopted());
        assert!(!specified(&spec(), "", None, None).is_adopted());
    }
}
