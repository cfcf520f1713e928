//! A command takes the lease of an agent that died, and is seen to have it while it brings that one's swap to its end.

use std::fs;

use anyhow::{Context, Result};
use testbed::github::FakeGitHub;
use testbed::server::Aim;

use crate::kills::{self, READY, agent, frozen};
use crate::runner::swaps;
use crate::step::{Step, send, until};
use crate::support::relayed::{relay, through};
use crate::support::{Action, NAME, NEW, Run, World};

/// A server on which an agent died before its cutover, and the swap that it has left.
async fn left_by_the_dead() -> Result<(World, String)> {
    let world = kills::world().await?;
    kills::orphaned(&world, Aim::After(READY), world.action("swap", NEW, &[])?).await?;
    let swap = kills::swap(&world)?;
    Ok((world, swap))
}

/// Who holds the lease, and whose end comes first, by the file.
fn holder(world: &World) -> Result<(String, Option<String>)> {
    let text = fs::read_to_string(world.server.state_dir().join(NAME).join("lease.json"))?;
    let last: serde_json::Value = serde_json::from_str(text.lines().last().context("no line")?)?;
    let swap = |holder: &serde_json::Value| Some(holder["swap"].as_str()?.to_owned());
    Ok((swap(&last).context("nobody")?, swap(&last["recovers"])))
}

/// A command of the same workflow run as all others of `on_github`.
fn of_run(action: Action, github: &FakeGitHub, id: &str) -> Action {
    action.on_github(github).with(&[("GITHUB_RUN_ID", id)])
}

#[tokio::test]
async fn a_link_that_is_cut_while_a_dead_one_is_recovered_finds_its_own_swap() -> Result<()> {
    let (world, dead) = left_by_the_dead().await?;
    let github = FakeGitHub::start()?;
    let (load, relay) = (world.load().await?, relay(&world).await?);
    // Where it says in the dead one's journal that it undoes.
    world.server.strike(Some(Aim::Freeze(1)))?;
    let mut step = Step::start(of_run(through(&relay, &world)?, &github, "77"))?;
    let (recovering, _) = frozen(&world).await?;
    let (own, first) = holder(&world)?;
    assert_eq!(first, Some(dead.clone()));
    assert_ne!(own, dead);

    let brings = format!("first it brings {dead} to its end, whose agent is gone");
    let at_work = format!(": swap {own} (pid {recovering}");
    let run = world.run("status", NEW, &[]).await?.answered(&["at work since ", &at_work, &brings]);
    assert!(!run.stdout.contains("is not at its end"), "{run}");
    let other = || Ok::<_, anyhow::Error>(of_run(world.action("swap", NEW, &[])?, &github, "78"));
    let whose = format!("works on this service: swap {own} since ");
    Step::run(other()?).await?.refused(3, &["ann from acme/llm", &whose, "look at https://"]);

    relay.cut();
    step.says("trying again in 1s").await?;
    until("the same request again", || Ok((agents(&world) == 2).then_some(()))).await?;
    world.server.strike(None)?;
    send("-CONT", recovering)?;
    let run = step.finish().await?.ended(0, "promoted");
    assert_eq!((run.output("swap-id"), swaps(&world)), (own.as_str(), 2), "{run}");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// How many detached agents there are.
fn agents(world: &World) -> usize {
    let all = world.server.leftovers().into_iter();
    all.filter(|line| line.contains("model-swap agent run")).count()
}

/// The next command after one that died while it recovered a dead one's swap ends that one's, and then does its own.
async fn ends_well(world: &World, (dead, outcome): (&str, &str), own: &str) -> Result<Run> {
    let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(swaps(world), 2, "{own} has begun nothing\n{run}");
    let told = format!("{dead}  {outcome}");
    world.run("status", NEW, &[]).await?.answered(&["nobody is at work", &told]);
    Ok(run)
}

#[tokio::test]
async fn who_dies_over_a_dead_one_has_begun_nothing() -> Result<()> {
    let (world, dead) = left_by_the_dead().await?;
    world.server.strike(Some(Aim::Freeze(1)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (second, _) = frozen(&world).await?;
    let (own, _) = holder(&world)?;
    world.server.strike(None)?;
    send("-KILL", second)?;
    step.finish().await?.refused(3, &["the agent ended without an answer"]);
    ends_well(&world, (&dead, "failed"), &own).await?;
    Ok(())
}

#[tokio::test]
async fn who_recovers_a_dead_one_can_be_told_to_begin_nothing() -> Result<()> {
    let (world, dead) = left_by_the_dead().await?;
    world.server.strike(Some(Aim::Freeze(1)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (second, _) = frozen(&world).await?;
    let (own, _) = holder(&world)?;
    // Its agent is frozen: whoever asks is answered all the same.
    let run = Step::run(world.action("abort", NEW, &[])?).await?;
    let run = run.ended(0, "aborted");
    run.answered(&[&format!("swap {own} was aborted before it began"), &dead]);
    world.server.strike(None)?;
    send("-CONT", second)?;
    step.finish().await?.refused(6, &["was aborted before it began"]);
    until("its end", || Ok(agent(&world).is_none().then_some(()))).await?;
    ends_well(&world, (&dead, "aborted"), &own).await?;
    Ok(())
}
