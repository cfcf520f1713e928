//! GitHub's API as it is: limits, failures, a renamed repository, an Enterprise Server. No server is asked: `fail` without a
//! key, and `plan` without one, are about GitHub alone.

use anyhow::{Context, Result};
use serde_json::json;
use testbed::github::{FakeGitHub, Fault, Operation, Times};

use crate::step::Step;
use crate::support::{Action, Run, binary};

const SWAP: &str = "s-20261123-091500-4f1c02";

const CONFIG: &str = "service: chat
host: deploy@gpu.invalid
model: Qwen/New
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --port {port}
nginx: { config: /etc/nginx/llm.conf, upstream: llm }
";

/// A GitHub on which a swap has been promoted.
fn promoted() -> Result<FakeGitHub> {
    let github = FakeGitHub::start()?;
    github.deploy("chat", &json!({ "swap_id": SWAP }));
    Ok(github)
}

fn failing(github: &FakeGitHub) -> Result<Action> {
    let inputs = [("command", "fail"), ("swap-id", SWAP)];
    Ok(Action::new(&binary(), CONFIG)?.on_github(github).with_inputs(&inputs))
}

async fn fail(github: &FakeGitHub) -> Result<Run> {
    Step::run(failing(github)?).await
}

fn states(github: &FakeGitHub) -> Vec<String> {
    let statuses = github.deployments().into_iter().flat_map(|deployment| deployment.statuses);
    statuses.map(|status| status.state).collect()
}

/// How many requests an operation has met.
fn met(github: &FakeGitHub, method: &str, end: &str) -> usize {
    let requests = github.requests().into_iter();
    requests.filter(|request| request.method == method && request.path.ends_with(end)).count()
}

fn assert_kept(github: &FakeGitHub) {
    assert!(github.violations().is_empty(), "{:?}", github.violations());
}

#[tokio::test]
async fn a_limit_that_is_used_up_for_the_hour_is_told_with_its_end_and_not_waited_for() -> Result<()>
{
    let github = promoted()?;
    github.fail(Fault::RateLimit(3600), &[Operation::CreateStatus], Times::Always);
    let run = fail(&github).await?;
    let run = run.refused(3, &["GitHub's rate limit refused to add a status", "(403)"]);
    let hint = run.stdout.split("try again in ").nth(1).context("no time")?;
    assert!(hint.starts_with("59m") || hint.starts_with("1h"), "{run}");
    assert_eq!(met(&github, "POST", "/statuses"), 1, "{:?}", github.requests());
    assert_kept(&github);
    Ok(())
}

#[tokio::test]
async fn a_secondary_limit_is_waited_for_where_it_is_short() -> Result<()> {
    let github = promoted()?;
    let operations = [Operation::ListDeployments, Operation::CreateStatus];
    for operation in operations {
        github.fail(Fault::SecondaryLimit(1), &[operation], Times::Next(1));
    }
    fail(&github).await?.answered(&["is a failure now"]);
    assert_eq!(states(&github), ["success", "failure"]);
    let met = [met(&github, "GET", "/deployments"), met(&github, "POST", "/statuses")];
    assert!(met.iter().sum::<usize>() == 4, "{met:?} {:?}", github.requests());

    let github = promoted()?;
    github.fail(Fault::SecondaryLimit(600), &operations, Times::Always);
    fail(&github).await?.refused(3, &["rate limit", "try again in 10m"]);
    assert_kept(&github);
    Ok(())
}

#[tokio::test]
async fn what_only_asks_is_asked_again_while_github_is_broken() -> Result<()> {
    let github = promoted()?;
    github.fail(Fault::Status(502), &[Operation::ListDeployments], Times::Next(2));
    fail(&github).await?.answered(&["is a failure now"]);
    assert_eq!(met(&github, "GET", "/deployments"), 3, "{:?}", github.requests());

    let github = promoted()?;
    github.fail(Fault::Status(503), &[Operation::ListDeployments], Times::Always);
    fail(&github).await?.refused(3, &["GitHub answered 503", "githubstatus.com"]);
    assert_eq!(states(&github), ["success"]);
    assert_kept(&github);
    Ok(())
}

#[tokio::test]
async fn a_token_without_rights_is_told_which_it_needs() -> Result<()> {
    let github = promoted()?;
    for status in [403, 404] {
        github.fail(Fault::Status(status), &[Operation::ListDeployments], Times::Next(1));
        let said = format!("GitHub answered {status}");
        fail(&github).await?.refused(3, &[&said, "permissions: deployments: write"]);
    }
    let stranger = failing(&github)?.with_inputs(&[("github-token", "ghs_somebodyElses")]);
    Step::run(stranger).await?.refused(3, &["GitHub answered 401", "was not accepted"]);
    assert_eq!(states(&github), ["success"]);
    assert_kept(&github);
    Ok(())
}

/// A plan for pull request 7, which comments on it.
fn planning(github: &FakeGitHub) -> Result<Action> {
    Action::new(&binary(), CONFIG)?
        .with_inputs(&[("command", "plan")])
        .on_github(github)
        .for_pull_request("pull_request", "acme/llm")
}

#[tokio::test]
async fn a_renamed_repository_is_found_by_its_old_name() -> Result<()> {
    let github = promoted()?;
    github.rename("acme/llm", "acme/models");
    fail(&github).await?.answered(&["is a failure now"]);
    assert_eq!(states(&github), ["success", "failure"]);
    for model in ["Qwen/New", "Qwen/Newer"] {
        let run = Step::run(planning(&github)?.with_inputs(&[("model", model)])).await?;
        assert!(!run.stdout.contains("::warning"), "{run}");
        let [written] = &*github.comments() else { panic!("{:?}\n{run}", github.comments()) };
        assert!(written.repository == "acme/models" && written.body.contains(model), "{run}");
    }
    let answers = github.requests().into_iter().map(|request| (request.method, request.answer));
    let mut answers: Vec<_> =
        answers.filter(|(_, answer)| answer.is_some_and(|status| status >= 300)).collect();
    answers.dedup();
    let redirected = ["GET", "POST", "PATCH"].map(|method| {
        let status = if method == "GET" { 301 } else { 307 };
        answers.contains(&(method.to_owned(), Some(status)))
    });
    assert_eq!(redirected, [true; 3], "{:?}", github.requests());
    assert_kept(&github);
    Ok(())
}

#[tokio::test]
async fn the_api_is_found_below_the_address_of_github_and_of_an_enterprise_server() -> Result<()> {
    let github = promoted()?;
    let paths = |github: &FakeGitHub| {
        let mut paths: Vec<_> = github.requests().into_iter().map(|request| request.path).collect();
        paths.sort();
        paths.dedup();
        paths
    };
    let public = [("GITHUB_API_URL", &*github.url())];
    Step::run(planning(&github)?.with(&public)).await?.answered(&["(o-"]);
    assert_eq!(paths(&github), ["/graphql", "/repos/acme/llm/issues/7/comments"]);
    Step::run(planning(&github)?.with_inputs(&[("model", "Qwen/B")])).await?.answered(&["Qwen/B"]);
    let all = paths(&github);
    for path in ["/api/graphql", "/api/v3/repos/acme/llm/issues/comments/1"] {
        assert!(all.iter().any(|met| met == path), "{all:?}");
    }
    assert_eq!(github.comments().len(), 1, "both are one GitHub");
    assert_kept(&github);
    Ok(())
}
