//! The command `abort`: a swap is given up while nobody notices, and one that has its outcome is left alone.

use std::fs::{self, File};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use testbed::action::Run;
use testbed::server::Aim;

use crate::kills;
use crate::step::{Step, send};
use crate::support::relayed::{relay, through_for};
use crate::support::{NAME, NEW, OLD, World};

/// Asserts that a swap's own step says that it was aborted, and that nothing of it is left.
async fn assert_given_up(world: &World, run: Run) -> Result<()> {
    let run = run.ended(6, "aborted");
    assert!(run.stdout.contains("traffic is where it was: "), "{run}");
    assert!(run.summary.contains("aborted"), "{run}");
    assert_eq!(world.serves().await?, OLD);
    let left = world.server.leftovers();
    assert!(!left.iter().any(|line| line.contains(NEW)), "{left:?}");
    world.run("status", NEW, &[]).await?.answered(&["nobody is at work", "aborted      Qwen/New"]);
    Ok(())
}

#[tokio::test]
async fn a_swap_that_waits_for_its_turn_at_nginx_is_aborted_at_once() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 5s".to_owned();
    let load = world.load().await?;
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("✓ reserve_slot b").await?;
    // As another service does whose cutover takes its time.
    let lock = File::open(world.server.state_dir().join("host.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    step.says("→ cut_over a -> b").await?;
    let abort = Step::start(world.action("abort", NEW, &[])?)?;
    step.says("✗ cut_over a -> b").await?;
    flock(&lock, FlockOperation::Unlock)?;
    abort.finish().await?.ended(0, "aborted");
    assert_given_up(&world, step.finish().await?).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_swap_whose_cutover_nginx_has_loaded_is_aborted_and_traffic_comes_back() -> Result<()> {
    let world = kills::world().await?;
    let load = world.load().await?;
    // When its record is on the disk, nothing is done any more of the cutover.
    world.server.strike(Some(Aim::Freeze(kills::CUT_OVER)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (agent, _) = kills::frozen(&world).await?;
    world.server.strike(None)?;
    world.until_serves(NEW).await?;
    let abort = Step::start(world.action("abort", NEW, &[])?)?;
    kills::ordered(&world).await?;
    send("-CONT", agent)?;
    abort.finish().await?.ended(0, "aborted");
    assert_given_up(&world, step.finish().await?).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn an_abort_whose_answer_is_lost_is_not_asked_for_again() -> Result<()> {
    let world = World::start().await?;
    let relay = relay(&world).await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    // A swap that is still planned: nobody can say yet what becomes of it.
    let pid = world.old.pid;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let started = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
    let started: u64 = started.context("no start")?.parse()?;
    let holder = json!({
        "swap": "s-1", "since": "2026-11-23T09:15:00Z", "process": { "pid": pid, "start": started },
        "command": "swap", "requester": {},
    });
    let lease = world.server.state_dir().join(NAME).join("lease.json");
    fs::write(&lease, holder.to_string())?;
    let mut step = Step::start(through_for("abort", &relay, &world)?)?;
    kills::ordered(&world).await?;
    relay.cut();
    // By the next time another swap may be under way.
    step.says("what was begun on the server goes on without us").await?;
    step.finish().await?.refused(3, &[]);
    Ok(fs::remove_file(&lease)?)
}

#[tokio::test]
async fn where_no_swap_is_under_way_nothing_is_changed() -> Result<()> {
    let world = World::start().await?;
    let nothing = ["unchanged: no swap of service chat is under way"];
    let before = Step::run(world.action("abort", NEW, &[])?).await?.ended(0, "unchanged");
    assert!(before.stdout.contains(nothing[0]), "{before}");
    let swap = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let after = Step::run(world.action("abort", NEW, &[])?).await?.ended(0, "unchanged");
    assert!(after.stdout.contains(nothing[0]), "{after}");
    assert_eq!(after.output("swap-id"), swap.output("swap-id"), "{after}");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}
