//! What GitHub is told, what a workflow finds afterwards, and that GitHub's troubles stay GitHub's.

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::github::{Deployment, FakeGitHub, Fault, Operation, Times};

use crate::step::{Step, until};
use crate::support::{Action, NEW, OLD, Run, World};

const NEWER: &str = "Qwen/Newer";
const RUN: &str = "https://github.example.com/acme/llm/actions/runs/77/attempts/1";

/// What a command line of the log tells the runner to do, by the runner's own grammar: `::name properties::data` at the
/// start of a line, nothing between `::stop-commands::token` and `::token::`.
fn obeyed(stdout: &str) -> Vec<(&str, &str)> {
    let mut commands = Vec::new();
    let mut deaf_until: Option<String> = None;
    for line in stdout.lines() {
        if let Some(end) = &deaf_until {
            if line.trim() == end {
                deaf_until = None;
            }
            continue;
        }
        assert!(!line.contains("##["), "a command in the old form: {line}");
        let Some(command) = line.trim_start().strip_prefix("::") else { continue };
        let (head, data) = command.split_once("::").unwrap_or_else(|| panic!("no command: {line}"));
        let name = head.split(' ').next().unwrap_or_default();
        if name == "stop-commands" {
            assert!(data.len() >= 32, "a token that can be guessed: {line}");
            deaf_until = Some(format!("::{data}::"));
        } else {
            commands.push((name, data));
        }
    }
    assert_eq!(deaf_until, None, "the runner was left deaf\n{stdout}");
    commands
}

/// Asserts that groups are closed and not nested, and that nothing else is commanded but annotations of ours.
fn assert_well_formed(run: &Run) {
    let mut open = 0;
    for (name, data) in obeyed(&run.stdout) {
        match name {
            "group" => open += 1,
            "endgroup" => open -= 1,
            "warning" | "error" => assert!(data.len() <= 4096, "{run}"),
            other => panic!("{other} is obeyed\n{run}"),
        }
        assert!((0..=1).contains(&open), "{run}");
    }
    assert_eq!(open, 0, "{run}");
}

fn annotations<'a>(run: &'a Run, kind: &str) -> Vec<&'a str> {
    let all = obeyed(&run.stdout).into_iter();
    all.filter(|(name, _)| *name == kind).map(|(_, data)| data).collect()
}

fn action(world: &World, github: &FakeGitHub, command: &str, model: &str) -> Result<Action> {
    Ok(world.action(command, model, &[])?.on_github(github))
}

fn states(deployment: &Deployment) -> Vec<&str> {
    deployment.statuses.iter().map(|status| status.state.as_str()).collect()
}

/// The states of the deployment of an earlier run's swap, and the last word on it.
fn over(github: &FakeGitHub, run: &Run) -> (Vec<String>, String) {
    let swap = run.output("swap-id");
    let mut all = github.deployments().into_iter();
    let deployment = all.find(|deployment| deployment.payload["swap_id"] == swap);
    let statuses = deployment.unwrap_or_else(|| panic!("none of {swap}\n{github}")).statuses;
    let last = statuses.last().map(|status| status.description.clone()).unwrap_or_default();
    (statuses.into_iter().map(|status| status.state).collect(), last)
}

fn over_states(github: &FakeGitHub, run: &Run) -> Vec<String> {
    over(github, run).0
}

/// Asserts what holds for every deployment of ours.
fn assert_told(deployment: &Deployment, run: &Run, last: &str, traffic: &str) {
    assert_eq!(states(deployment), ["in_progress", last], "{deployment}\n{run}");
    assert_eq!((&*deployment.environment, &*deployment.task), ("chat", "deploy:model"));
    for status in &deployment.statuses {
        assert_eq!(status.log_url, RUN);
        assert!(status.description.chars().count() <= 140, "{}", status.description);
    }
    let end = deployment.statuses.last().map_or("", |status| &status.description);
    assert!(end.starts_with(traffic), "{end:?} does not say that {traffic}");
    assert_eq!(deployment.payload["swap_id"], run.output("swap-id"));
    assert_eq!(run.output("deployment-id"), deployment.id.to_string());
}

#[tokio::test]
async fn each_swap_and_each_rollback_is_one_deployment_that_says_where_traffic_is() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let github = FakeGitHub::start()?;
    let (first_sha, second_sha) = ("1".repeat(40), "2".repeat(40));

    github.push("main", &first_sha);
    let first = action(&world, &github, "swap", NEW)?.with(&[("GITHUB_SHA", &first_sha)]);
    let first = Step::run(first).await?.ended(0, "promoted");
    let [told] = &*github.deployments() else { panic!("{github}\n{first}") };
    assert_told(told, &first, "success", &format!("{NEW} serves from slot b, port {b}"));
    assert_eq!(told.payload["revision"], first.output("revision"));
    assert_eq!(told.payload["previous_revision"], first.output("previous-revision"));
    assert_eq!((told.payload["git_sha"].as_str(), &*told.git_ref), (Some(&*first_sha), "main"));
    assert_eq!(told.payload["previous_git_sha"], Value::Null, "nobody knows what {OLD} came from");
    for name in ["swap-id", "revision", "previous-revision", "slot", "rollback-until"] {
        assert!(!first.output(name).is_empty(), "{name}\n{first}");
    }
    assert_eq!(first.outputs.len(), 7, "{first}");
    assert_well_formed(&first);
    let groups = [
        "Plan for chat: blue-green",
        "Prepare Qwen/New in slot b",
        "Move traffic to Qwen/New in slot b",
    ];
    let begun = obeyed(&first.stdout).into_iter().filter(|(name, _)| *name == "group");
    let begun: Vec<_> = begun.map(|(_, title)| title).collect();
    assert!(
        begun.len() == 3 && begun.iter().zip(groups).all(|(one, other)| one.starts_with(other)),
        "{begun:?}"
    );
    assert!(annotations(&first, "warning").is_empty(), "{first}");

    let second = action(&world, &github, "swap", NEWER)?.with(&[("GITHUB_SHA", &second_sha)]);
    let second = Step::run(second).await?.ended(0, "promoted");
    let told = github.deployments().pop().context("a deployment")?;
    assert_told(&told, &second, "success", &format!("{NEWER} serves from slot a, port {a}"));
    assert_eq!(told.payload["previous_revision"], first.output("revision"));
    assert_eq!(told.payload["git_sha"], *second_sha);
    assert_eq!((&told.git_ref, &told.sha), (&second_sha, &second_sha), "main is elsewhere");
    assert_eq!(told.payload["previous_git_sha"], *first_sha);
    let (states, by) = over(&github, &first);
    assert_eq!(states, ["in_progress", "success", "inactive"], "{github}");
    assert!(by.starts_with(&format!("superseded by {}", second.output("swap-id"))), "{by}");

    let same = Step::run(action(&world, &github, "swap", NEWER)?).await?.ended(0, "unchanged");
    assert_eq!(same.output("revision"), second.output("revision"));
    assert!(!same.outputs.contains_key("deployment-id"), "{same}");
    assert_well_formed(&same);
    assert_eq!(github.deployments().len(), 2, "{github}");

    let back =
        Step::run(action(&world, &github, "rollback", NEWER)?).await?.ended(0, "rolled-back");
    let told = github.deployments().pop().context("a deployment")?;
    assert_told(&told, &back, "success", &format!("{NEW} serves from slot b, port {b}"));
    assert_eq!(told.payload["revision"], first.output("revision"));
    assert_eq!(told.payload["previous_revision"], second.output("revision"));
    assert_eq!(told.git_ref, first_sha, "of what it brings back");
    let (states, by) = over(&github, &second);
    assert_eq!(states, ["in_progress", "success", "failure"], "{github}");
    assert!(by.starts_with(&format!("rolled back by {}", back.output("swap-id"))), "{by}");
    assert_eq!(github.deployments().len(), 3, "{github}");
    assert_well_formed(&back);

    // What a rollback brought is superseded like any other.
    let third =
        Step::run(action(&world, &github, "swap", "Qwen/Third")?).await?.ended(0, "promoted");
    assert_eq!(over_states(&github, &back), ["in_progress", "success", "inactive"], "{github}");
    assert_eq!(over_states(&github, &third), ["in_progress", "success"], "{github}");

    assert!(
        github.requests().iter().all(|request| request.path.starts_with("/api/v3/repos/acme/llm/"))
    );
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn a_failed_candidate_is_a_failed_deployment_that_says_who_still_serves() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 30s --stub-die-after 50ms".to_owned();
    let (a, _) = world.server.slot_ports();
    let github = FakeGitHub::start()?;
    let run = Step::run(action(&world, &github, "swap", NEW)?).await?.ended(4, "failed");
    let [told] = &*github.deployments() else { panic!("{github}\n{run}") };
    assert_told(told, &run, "failure", &format!("{OLD} serves from slot a, port {a}; failed: "));
    assert_well_formed(&run);
    assert!(!annotations(&run, "error").is_empty(), "{run}");
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

/// A swap during which GitHub is in trouble: it succeeds all the same, and the warnings say so.
async fn swap_in_trouble(world: &World, github: &FakeGitHub, texts: &[&str]) -> Result<Run> {
    let model = if world.serves().await? == NEW { NEWER } else { NEW };
    let run = Step::run(action(world, github, "swap", model)?).await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, model);
    assert_well_formed(&run);
    let warnings = annotations(&run, "warning").join("\n");
    for text in texts {
        assert!(warnings.contains(text), "no warning with {text:?}\n{run}");
    }
    assert!(run.stdout.matches(github.token()).count() == 0, "{run}");
    Ok(run)
}

#[tokio::test]
async fn a_github_that_refuses_changes_no_swap_and_the_warning_says_how_to_mend_it() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    for status in [403, 404, 422] {
        github.fail(Fault::Status(status), &Operation::ALL, Times::Always);
        let said = format!("GitHub answered {status} when asked to");
        let mend = ["permissions: deployments: write", "acme/llm"][usize::from(status == 422)];
        let run = swap_in_trouble(&world, &github, &[&said, mend]).await?;
        assert!(!run.outputs.contains_key("deployment-id"), "{run}");
        github.heal();
    }
    assert!(github.deployments().is_empty(), "{github}");
    Ok(())
}

#[tokio::test]
async fn a_github_that_is_broken_or_gone_changes_no_swap() -> Result<()> {
    let world = World::start().await?;
    let mut github = FakeGitHub::start()?;
    github.fail(Fault::Status(500), &Operation::ALL, Times::Always);
    swap_in_trouble(&world, &github, &["GitHub answered 500", "githubstatus.com"]).await?;
    github.heal();
    github.down();
    let reach = format!("check that the runner reaches {}", github.ghes_url());
    swap_in_trouble(&world, &github, &["no usable answer from", &reach]).await?;
    assert!(github.deployments().is_empty(), "{github}");
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_deployment_and_no_second_status() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    github.fail(Fault::LostAnswer, &[Operation::CreateDeployment], Times::Next(1));
    github.fail(Fault::LostAnswer, &[Operation::CreateStatus], Times::Next(1));
    let run = swap_in_trouble(&world, &github, &[]).await?;
    let unanswered = github.requests().iter().filter(|request| request.answer.is_none()).count();
    assert_eq!(unanswered, 2, "the faults did not strike: {:?}", github.requests());
    let [told] = &*github.deployments() else { panic!("{github}\n{run}") };
    assert_eq!(states(told), ["in_progress", "success"], "{told}\n{run}");
    assert_eq!(run.output("deployment-id"), told.id.to_string());
    assert!(annotations(&run, "warning").is_empty(), "nothing is missing\n{run}");
    Ok(())
}

#[tokio::test]
async fn a_github_that_hangs_does_not_hold_up_the_swap() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    github.fail(Fault::Hang, &[Operation::CreateStatus], Times::Next(1));
    let mut step = Step::start(action(&world, &github, "swap", NEW)?)?;
    step.says("promoted: Qwen/New serves").await?;
    let hangs = || github.requests().last().is_some_and(|request| request.answer.is_none());
    assert!(hangs(), "the swap waited for GitHub: {:?}", github.requests());
    let run = step.finish().await?.ended(0, "promoted");
    let [told] = &*github.deployments() else { panic!("{github}\n{run}") };
    assert_eq!(states(told), ["in_progress", "success"], "{told}\n{run}");
    Ok(())
}

#[tokio::test]
async fn without_a_token_there_is_a_warning_and_no_request() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    let step = action(&world, &github, "swap", NEW)?.with_inputs(&[("github-token", "")]);
    let run = Step::run(step).await?.ended(0, "promoted");
    let warnings = annotations(&run, "warning");
    assert_eq!(warnings, ["no deployment is reported: the input github-token is empty"], "{run}");
    assert!(github.requests().is_empty(), "{:?}", github.requests());
    Ok(())
}

#[tokio::test]
async fn what_the_engine_writes_commands_nobody() -> Result<()> {
    let world = World::start().await?;
    let hostile = [
        "::error::pwned",
        "  ::add-mask::e",
        "##[add-mask]e",
        "x ##[error]pwned",
        "::set-output name=outcome::promoted",
        "::stop-commands::guess",
        "::endgroup::",
        "\\033[2K\\r::warning::pwned",
        "``` </details> <img src=x> @acme",
    ];
    let script = hostile.map(|line| format!("printf '{line}\\n';")).join(" ");
    let config = world.config(NEW);
    let command =
        config.lines().find(|line| line.starts_with("  command: /")).context("command")?;
    let hostile_command =
        format!("  command: [sh, -c, {:?}, \"{{port}}\"]", format!("{script} exit 9"));
    let config = config.replace(command, &hostile_command);
    for command in ["swap", "logs"] {
        let run = Step::run(world.action(command, NEW, &[])?.with_config(&config)?).await?;
        assert!(run.stdout.contains("::error::pwned"), "the log is not shown\n{run}");
        assert_well_formed(&run);
        assert!(
            !obeyed(&run.stdout).iter().any(|(_, data)| data.contains("pwned")),
            "it is obeyed\n{run}"
        );
        assert!(!run.stdout.contains(['\u{1b}', '\r']), "{run}");
        if command == "swap" {
            let run = run.ended(4, "failed");
            let fenced = run.summary.split("````").collect::<Vec<_>>();
            assert!(fenced.len() >= 3 && fenced[1].contains("</details>"), "{run}");
            assert!(!fenced[0].contains("<img") && !fenced[2].contains("<img"), "{run}");
        }
    }
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn a_deployment_is_there_while_the_swap_is_under_way() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 5s".to_owned();
    let github = FakeGitHub::start()?;
    let step = Step::start(action(&world, &github, "swap", NEW)?)?;
    let told = until("a deployment under way", || {
        Ok(github.deployments().pop().filter(|deployment| !deployment.statuses.is_empty()))
    })
    .await?;
    assert!(!step.said().contains("promoted: "), "it was told when all was over\n{}", step.said());
    assert_eq!(states(&told), ["in_progress"]);
    let said = &told.statuses[0].description;
    assert_eq!(said, &format!("{OLD} on slot a serves until {NEW} on slot b is ready"));
    step.finish().await?.ended(0, "promoted");
    Ok(())
}
