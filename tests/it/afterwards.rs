//! The stage after a step: what the step could not say, or never learnt, it asks the server and tells.

use std::fs::{self, File};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use testbed::github::FakeGitHub;
use testbed::server::Aim;

use crate::kills::{self, CONCLUDED, orphaned, swap};
use crate::runner::{
    agent, cut_before_its_answer, cut_before_the_answer, events, in_mid_swap, outcome, swaps, world,
};
use crate::step::{Step, until};
use crate::support::relayed::{led_through, relay, through};
use crate::support::{Action, NAME, NEW, OLD, Run, World, binary};

/// The stage after a step, with what the step left in its state.
pub(crate) fn afterwards(
    world: &World,
    github: &FakeGitHub,
    state: &str,
) -> Result<(Action, TempDir)> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("model-swap-afterwards");
    std::os::unix::fs::symlink(binary(), &program)?;
    let action = Action::new(&program, &world.config(NEW))?.with_access_to(&world.server);
    let state = state.lines().filter_map(|line| line.split_once('='));
    let state: Vec<_> = state.map(|(name, value)| (format!("STATE_{name}"), value)).collect();
    let state: Vec<_> = state.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    Ok((action.on_github(github).with(&state), folder))
}

/// Asserts that the stage after a step that lost its swap tells that it was promoted.
pub(crate) async fn is_told_after(world: &World, step: &Run) -> Result<()> {
    let github = FakeGitHub::start()?;
    let state: String =
        step.state.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let (action, _program) = afterwards(world, &github, &state)?;
    let run = Step::run(action).await?.answered(&[&step.state["swap"], "promoted: "]);
    assert!(run.outputs.is_empty(), "GitHub passes none on\n{run}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "success", "{github}");
    Ok(())
}

#[tokio::test]
async fn what_a_step_that_was_killed_could_not_say_is_said_after_it() -> Result<()> {
    let world = world().await?;
    let github = FakeGitHub::start()?;
    let load = world.load().await?;
    let action = || -> Result<Action> { Ok(world.action("swap", NEW, &[])?.on_github(&github)) };
    let (step, candidate) = in_mid_swap(&world, action()?).await?;
    step.kill()?;
    // Run again it follows the swap that it has begun already, and not the one that it asks for.
    let again = action()?;
    let [state, output] = ["GITHUB_STATE", "GITHUB_OUTPUT"].map(|name| again.env[name].clone());
    let mut again = Step::start(again)?;
    again.says("→ await_ready b").await?;
    let (state, output) = (fs::read_to_string(state)?, fs::read_to_string(output)?);
    again.kill()?;
    let swap = state.lines().rev().find_map(|line| line.strip_prefix("swap=")).context("swap")?;
    assert!(output.contains(swap), "nothing names the swap to the rest of the workflow: {output}");

    let (action, _program) = afterwards(&world, &github, &state)?;
    let mut later = Step::start(action)?;
    later.says("→ await_ready b").await?;
    candidate.thaw()?;
    let run = later.finish().await?.answered(&["promoted: "]);
    assert!(run.summary.contains("promoted") && run.outputs.is_empty(), "{run}");
    assert_eq!(world.serves().await?, NEW);
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "success", "{github}");
    assert_eq!(swaps(&world), 1, "{run}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_job_that_lost_its_server_before_the_answer_is_told_afterwards_what_became_of_it()
-> Result<()> {
    let world = World::with_faults().await?;
    let relay = relay(&world).await?;
    let mut step = cut_before_the_answer(&world, &relay).await?;
    drop(relay);
    step.says("Connection refused; the server goes on by itself; trying again in ").await?;
    step.signal("-TERM")?;
    let run = step.finish().await?.refused(3, &["the swap goes on on the server"]);
    assert!(!run.summary.contains("Nothing was done"), "{run}");
    // What may have begun the rest of the workflow can roll back.
    assert_eq!(run.output("swap-id"), run.state["swap"], "{run}");
    assert_eq!(outcome(&world).await?, "promoted");
    is_told_after(&world, &run).await
}

/// Else GitHub would hear that nothing was changed.
#[tokio::test]
async fn an_outcome_that_an_agent_wrote_down_and_did_not_live_to_tell_is_told_after_its_step()
-> Result<()> {
    let world = kills::world().await?;
    let github = FakeGitHub::start()?;
    let action = world.action("swap", NEW, &[])?.on_github(&github);
    orphaned(&world, Aim::After(CONCLUDED), action).await?;
    let told = || {
        Ok::<_, anyhow::Error>(
            events(&world)?.iter().any(|it| it.to_string().contains("concluded")),
        )
    };
    assert!(!told()?, "it lived to tell");
    let (action, _program) = afterwards(&world, &github, &format!("swap={}", swap(&world)?))?;
    let run = Step::run(action).await?.answered(&["promoted: "]);
    assert!(told()?, "{run}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "success", "{github}");
    Ok(())
}

/// Asked again it is refused for what says nothing of the swap that has begun.
#[tokio::test]
async fn a_step_that_is_refused_after_its_answer_was_lost_still_names_its_swap() -> Result<()> {
    let world = World::with_faults().await?;
    let relay = relay(&world).await?;
    let step = cut_before_the_answer(&world, &relay).await?;
    relay.shut();
    until("the swap", || Ok(events(&world).ok().map(drop))).await?;
    assert_eq!(outcome(&world).await?, "promoted");
    let log = world.server.state_dir().join(NAME).join("agent.log");
    fs::remove_file(&log)?;
    fs::create_dir(&log)?;
    relay.open();
    let run = step.finish().await?.refused(3, &["cannot write ", "agent.log"]);
    assert!(run.summary.contains("Outcome not known"), "{run}");
    assert_eq!(run.output("swap-id"), run.state["swap"], "{run}");
    is_told_after(&world, &run).await
}

#[tokio::test]
async fn a_step_of_whose_swap_the_server_knows_nothing_names_none() -> Result<()> {
    let world = World::with_faults().await?;
    let relay = relay(&world).await?;
    let action = through(&relay, &world)?.with_inputs(&[("plan-digest", "p-000000000000")]);
    let step = cut_before_its_answer((&world, &relay), action).await?;
    let run = step.finish().await?;
    let run = run.refused(2, &["plan"]);
    assert_eq!((run.outputs.get("swap-id"), swaps(&world)), (None, 0), "{run}");
    Ok(())
}

/// The later stage runs where the network was just lost.
#[tokio::test]
async fn a_link_that_fails_after_the_step_is_made_again() -> Result<()> {
    let world = world().await?;
    let (github, relay) = (FakeGitHub::start()?, relay(&world).await?);
    let action = world.action("swap", NEW, &[])?;
    let path = action.env["GITHUB_STATE"].clone();
    let (step, candidate) = in_mid_swap(&world, action).await?;
    let state = fs::read_to_string(path)?;
    step.kill()?;

    let (action, _program) = afterwards(&world, &github, &state)?;
    relay.shut();
    let mut later = Step::start(led_through(&relay, &world, action)?)?;
    let told = "the server goes on by itself; trying again in 1s";
    later.says(told).await?;
    relay.open();
    later.says("→ await_ready b").await?;
    relay.cut();
    until("it is told of", || Ok((later.said().matches(told).count() == 2).then_some(()))).await?;
    candidate.thaw()?;
    let run = later.finish().await?.answered(&["promoted: "]);
    assert_eq!(run.stdout.matches("→ await_ready b").count(), 1, "{run}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "success", "{github}");
    Ok(())
}

/// What cannot be mended by trying again is said at once.
#[tokio::test]
async fn a_key_that_is_none_any_more_after_the_step_is_told_at_once() -> Result<()> {
    let world = World::start().await?;
    let (action, _program) = afterwards(&world, &FakeGitHub::start()?, "swap=s-1\n")?;
    let run = Step::run(action.with_inputs(&[("ssh-key", "none")])).await?;
    assert!(run.code == 2 && run.summary.contains("Outcome not known"), "{run}");
    assert!(!run.stdout.contains("trying again"), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_step_that_was_killed_while_its_swap_waits_is_not_said_to_have_done_nothing() -> Result<()>
{
    let world = World::start().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    // As another command does that works on the service.
    let lease = File::create(world.server.state_dir().join(NAME).join("lease.json"))?;
    flock(&lease, FlockOperation::LockExclusive)?;
    let action = world.action("swap", NEW, &[("lock-wait", "10m")])?;
    let [state, output] = ["GITHUB_STATE", "GITHUB_OUTPUT"].map(|name| action.env[name].clone());
    let step = Step::start(action)?;
    until("the agent", || agent(&world)).await?;
    let (state, output) = (fs::read_to_string(state)?, fs::read_to_string(output)?);
    step.kill()?;
    let swap = state.trim().strip_prefix("swap=").context("swap")?;
    assert!(output.contains(swap), "nothing names the swap to the rest of the workflow: {output}");

    let github = FakeGitHub::start()?;
    let (action, _program) = afterwards(&world, &github, &state)?;
    let run =
        Step::run(action).await?.refused(3, &["has not begun", "`model-swap abort --swap-id s-"]);
    assert!(run.summary.contains("Outcome not known"), "{run}");
    assert_eq!(swaps(&world), 0, "{run}");
    // Nobody waits for that swap any more.
    until("the agent's end", || Ok(agent(&world)?.is_none().then_some(()))).await?;
    flock(&lease, FlockOperation::Unlock)?;
    world.run("status", NEW, &[]).await?.answered(&["nobody is at work"]);
    assert_eq!((swaps(&world), world.serves().await?.as_str()), (0, OLD));
    Ok(())
}

#[tokio::test]
async fn after_a_step_that_said_how_it_ended_there_is_nothing_to_say() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    for state in ["", "swap=s-1\ntold=true\n"] {
        let (action, _program) = afterwards(&world, &github, state)?;
        let run = Step::run(action).await?;
        assert_eq!((run.code, run.stdout.as_str(), run.summary.as_str()), (0, "", ""), "{run}");
    }
    assert_eq!(swaps(&world), 0);
    let action = world.action("swap", NEW, &[])?;
    let path = action.env["GITHUB_STATE"].clone();
    let mut step = Step::start(action)?;
    step.says("promoted: ").await?;
    until("word of it", || {
        // The step's folder goes with the step.
        let state = fs::read_to_string(&path).unwrap_or_default();
        Ok((state.contains("told=true") || state.is_empty()).then_some(()))
    })
    .await?;
    step.finish().await?.ended(0, "promoted");
    Ok(())
}
