//! What the runner tells a step about its workflow run: the `GITHUB_*` variables.
//!
//! Names and meanings: GitHub's documentation, "Variables reference".

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::state::Requester;

/// Where GitHub's API is, unless `GITHUB_API_URL` names an Enterprise Server.
pub const PUBLIC_API: &str = "https://api.github.com";

/// Where GitHub's pages are, unless `GITHUB_SERVER_URL` names an Enterprise Server.
const PUBLIC_SERVER: &str = "https://github.com";

/// The workflow run that a step belongs to. From a terminal everything is `None` but the API's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowRun {
    /// Who asks, for the lease and the journal.
    pub requester: Requester,
    /// The checked-out repository; relative paths are meant from here.
    pub workspace: Option<PathBuf>,
    /// Base address of the REST API, without a final slash; keeps the `/api/v3` of an Enterprise Server.
    pub api_url: String,
    /// Address of the GraphQL API.
    pub graphql_url: String,
    /// The repository that gets the deployment.
    pub repository: Option<Repository>,
    /// What a deployment names as its `ref`.
    pub deployment_ref: Option<Reference>,
    /// On what another workflow is started: GitHub wants a branch or tag.
    pub workflow_ref: Option<String>,
    /// File that takes the step's outputs.
    pub output: Option<PathBuf>,
    /// File that takes what the step's later stage shall know.
    pub state: Option<PathBuf>,
    /// File that takes the job summary.
    pub step_summary: Option<PathBuf>,
}

/// What is deployed, by a name that GitHub knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Branch, tag or commit.
    pub name: String,
    /// The commit that a branch has to be at for its name to be true; `None` for what does not move.
    pub commit: Option<String>,
}

/// `owner/name`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// User or organisation.
    pub owner: String,
    /// Name within it.
    pub name: String,
}

impl WorkflowRun {
    /// Reads the variables of one environment; an empty one counts as not given.
    pub fn from_env(env: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| env.get(name).filter(|value| !value.is_empty()).cloned();
        let api_url =
            get("GITHUB_API_URL").map_or_else(|| PUBLIC_API.to_owned(), without_final_slash);
        Self {
            requester: requester(&get),
            workspace: get("GITHUB_WORKSPACE").map(PathBuf::from),
            graphql_url: get("GITHUB_GRAPHQL_URL").unwrap_or_else(|| {
                format!("{}/graphql", api_url.strip_suffix("/v3").unwrap_or(&api_url))
            }),
            api_url,
            repository: get("GITHUB_REPOSITORY").as_deref().and_then(Repository::parse),
            deployment_ref: deployment_ref(&get),
            workflow_ref: workflow_ref(&get),
            output: get("GITHUB_OUTPUT").map(PathBuf::from),
            state: get("GITHUB_STATE").map(PathBuf::from),
            step_summary: get("GITHUB_STEP_SUMMARY").map(PathBuf::from),
        }
    }
}

impl Reference {
    /// What stays where it is: a tag or a commit.
    pub fn fixed(name: String) -> Self {
        Self { name, commit: None }
    }
}

impl Repository {
    /// Takes `owner/name` apart; `None` for anything else.
    pub fn parse(value: &str) -> Option<Self> {
        let (owner, name) = value.split_once('/')?;
        let plain = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        (plain(owner) && plain(name))
            .then(|| Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

fn requester(get: &impl Fn(&str) -> Option<String>) -> Requester {
    let repository = get("GITHUB_REPOSITORY");
    let run_id = get("GITHUB_RUN_ID");
    let run_attempt = get("GITHUB_RUN_ATTEMPT");
    let url = repository.as_deref().zip(run_id.as_deref()).map(|(repository, run)| {
        let server =
            get("GITHUB_SERVER_URL").map_or_else(|| PUBLIC_SERVER.to_owned(), without_final_slash);
        let attempt = run_attempt.as_deref().map(|n| format!("/attempts/{n}")).unwrap_or_default();
        format!("{server}/{repository}/actions/runs/{run}{attempt}")
    });
    Requester {
        url,
        repository,
        run_id,
        run_attempt,
        job: get("GITHUB_JOB"),
        step: get("GITHUB_ACTION"),
        // The triggering actor is the one who pressed "re-run"; the actor is the one of the first attempt.
        actor: get("GITHUB_TRIGGERING_ACTOR")
            .or_else(|| get("GITHUB_ACTOR"))
            .or_else(|| get("USER")),
        sha: get("GITHUB_SHA"),
    }
}

/// A branch or tag where there is one: with a SHA, workflows on the deployment's events have no `GITHUB_REF`.
///
/// On a pull request `GITHUB_REF` is `refs/pull/N/merge`, which is neither, or, after its merge, the branch that it was merged
/// into. Its own branch is at another commit than the run, and may be gone.
fn deployment_ref(get: &impl Fn(&str) -> Option<String>) -> Option<Reference> {
    named_ref(get).or_else(|| get("GITHUB_SHA").map(Reference::fixed))
}

/// The branch or tag of the run, else the branch of its pull request.
fn workflow_ref(get: &impl Fn(&str) -> Option<String>) -> Option<String> {
    named_ref(get).map(|named| named.name).or_else(|| get("GITHUB_HEAD_REF"))
}

fn named_ref(get: &impl Fn(&str) -> Option<String>) -> Option<Reference> {
    let full = get("GITHUB_REF").unwrap_or_default();
    let branch = full.strip_prefix("refs/heads/");
    let named = branch.or_else(|| full.strip_prefix("refs/tags/"));
    named.map(|short| Reference {
        name: get("GITHUB_REF_NAME").unwrap_or_else(|| short.to_owned()),
        commit: branch.and_then(|_| get("GITHUB_SHA")),
    })
}

fn without_final_slash(url: String) -> String {
    url.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pairs: &[(&str, &str)]) -> WorkflowRun {
        let env = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        WorkflowRun::from_env(&env)
    }

    #[test]
    fn a_run_is_read_in_full() {
        let run = run(&[
            ("GITHUB_REPOSITORY", "acme/serving"),
            ("GITHUB_RUN_ID", "42"),
            ("GITHUB_RUN_ATTEMPT", "2"),
            ("GITHUB_JOB", "deploy"),
            ("GITHUB_ACTION", "swap"),
            ("GITHUB_ACTOR", "ann"),
            ("GITHUB_TRIGGERING_ACTOR", "bob"),
            ("GITHUB_SHA", "c0ffee"),
            ("GITHUB_REF", "refs/heads/feature/x"),
            ("GITHUB_REF_NAME", "feature/x"),
            ("GITHUB_SERVER_URL", "https://ghe.acme.example/"),
            ("GITHUB_API_URL", "https://ghe.acme.example/api/v3/"),
            ("GITHUB_OUTPUT", "/github/file_commands/out"),
            ("GITHUB_STEP_SUMMARY", ""),
        ]);
        assert_eq!(
            run.requester.url.as_deref(),
            Some("https://ghe.acme.example/acme/serving/actions/runs/42/attempts/2")
        );
        assert_eq!(run.requester.actor.as_deref(), Some("bob"));
        assert_eq!(run.requester.step.as_deref(), Some("swap"));
        assert_eq!(run.api_url, "https://ghe.acme.example/api/v3");
        assert_eq!(run.graphql_url, "https://ghe.acme.example/api/graphql");
        let branch = Reference { name: "feature/x".to_owned(), commit: Some("c0ffee".to_owned()) };
        assert_eq!(run.deployment_ref, Some(branch));
        assert_eq!(run.repository, Repository::parse("acme/serving"));
        assert_eq!(run.output, Some(PathBuf::from("/github/file_commands/out")));
        assert_eq!(run.step_summary, None);
    }

    #[test]
    fn a_terminal_knows_only_its_user() {
        let run = run(&[("USER", "carol")]);
        assert_eq!(
            run.requester,
            Requester { actor: Some("carol".to_owned()), ..Requester::default() }
        );
        assert_eq!(run.api_url, "https://api.github.com");
        assert_eq!(run.graphql_url, "https://api.github.com/graphql");
        assert_eq!(run.deployment_ref, None);
    }

    #[test]
    fn a_branch_or_tag_is_preferred_as_ref_and_never_one_of_another_commit() {
        let of = |pairs: &[(&str, &str)]| run(pairs).deployment_ref;
        let workflow_of = |pairs: &[(&str, &str)]| run(pairs).workflow_ref;
        let fixed = |name: &str| Some(Reference::fixed(name.to_owned()));
        let sha = ("GITHUB_SHA", "c0ffee");
        assert_eq!(of(&[("GITHUB_REF", "refs/tags/v1"), sha]), fixed("v1"));
        let pull = ("GITHUB_REF", "refs/pull/7/merge");
        let (pull_name, head) = (("GITHUB_REF_NAME", "7/merge"), ("GITHUB_HEAD_REF", "fix"));
        assert_eq!(of(&[pull, pull_name, head, sha]), fixed("c0ffee"));
        assert_eq!(workflow_of(&[pull, pull_name, head, sha]).as_deref(), Some("fix"));
        // Once it is merged.
        let merged = [("GITHUB_REF", "refs/heads/main"), ("GITHUB_REF_NAME", "main"), head, sha];
        let main = Reference { name: "main".to_owned(), commit: Some("c0ffee".to_owned()) };
        assert_eq!(of(&merged), Some(main));
        assert_eq!(workflow_of(&merged).as_deref(), Some("main"));
    }

    #[test]
    fn a_repository_is_two_plain_names() {
        for bad in ["", "acme", "/x", "x/", "a/b/c", "a/b?c", "a b/c"] {
            assert_eq!(Repository::parse(bad), None, "{bad:?}");
        }
    }
}
