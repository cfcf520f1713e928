//! The way back while the old model is warm, and the clear words where there is none.

use std::fs;

use anyhow::Result;
use testbed::server::listeners;

use crate::support::{NEW, OLD, Run, World, until};

#[tokio::test]
async fn a_named_swap_is_undone_from_anywhere_and_only_once() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let before = fs::read_to_string(world.server.nginx_config())?;
    let load = world.load().await?;
    let swap = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let id = swap.output("swap-id");

    // Another machine: a folder of its own with the configuration, and nothing else of the run before.
    let home = tempfile::tempdir()?;
    let mut elsewhere = world.action("rollback", NEW, &[("swap-id", id)])?;
    elsewhere.env.insert("HOME".to_owned(), home.path().display().to_string());
    let back = elsewhere.spawn()?.finish().await?.ended(0, "rolled-back");
    world.until_serves(OLD).await?;
    assert_eq!(back.output("slot"), "a");
    assert_eq!(back.output("revision"), swap.output("previous-revision"));
    assert_eq!(back.output("previous-revision"), swap.output("revision"));
    assert!(back.stdout.contains("Plan for chat: warm rollback"), "{back}");
    assert!(!back.stdout.contains("start_replica"), "nothing had to start: {back}");

    until("the model that was rolled back ends by itself", || {
        listeners(b).is_ok_and(|left| left.is_empty())
    })
    .await?;
    assert_eq!(listeners(a)?, [world.old.pid]);
    assert_eq!(fs::read_to_string(world.server.nginx_config())?, before);

    let settled = workers(&world).await?;
    let again = world.run("rollback", NEW, &[("swap-id", id)]).await?.ended(0, "unchanged");
    assert!(again.stdout.contains(&format!("swap {id} is not what serves now")), "{again}");
    assert!(again.stdout.contains("nobody is at work"), "who answers so is not: {again}");
    assert!(!again.outputs.contains_key("swap-id"), "no swap has brought what serves: {again}");
    assert_eq!(world.server.nginx_workers()?, settled);
    let unnamed = world.run("rollback", NEW, &[]).await?.ended(0, "unchanged");
    assert!(unnamed.stdout.contains("what serves was brought back by"), "{unnamed}");
    let plan = world.run("plan", NEW, &[]).await?;
    let note = format!("this revision was rolled back by {} at ", back.output("swap-id"));
    assert!(plan.stdout.contains(&note), "{plan}");
    assert_eq!(world.server.nginx_workers()?, settled);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_later_swap_is_not_undone_by_the_name_of_an_earlier_one() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let first = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let second = world.run("swap", "Qwen/Next", &[]).await?.ended(0, "promoted");
    world.until_serves("Qwen/Next").await?;
    let settled = workers(&world).await?;
    let id = first.output("swap-id");
    let run = world.run("rollback", NEW, &[("swap-id", id)]).await?.ended(0, "unchanged");
    assert!(
        run.stdout.contains(&format!("the result of {} does", second.output("swap-id"))),
        "{run}"
    );
    assert_eq!(world.server.nginx_workers()?, settled);

    // The one that serves goes back to the one before it, a replica that was started here.
    world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn before_the_first_swap_there_is_nothing_to_go_back_to() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    refuses(&world, "no swap's result serves").await?;
    load.stop().await.assert_clean();
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn a_failed_candidate_does_not_roll_the_healthy_model_back() -> Result<()> {
    let mut world = World::start().await?;
    let load = world.load().await?;
    let first = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    world.settings.flags = "--stub-load-time 30s --stub-die-after 50ms".to_owned();
    let failed = world.run("swap", "Qwen/Bad", &[]).await?.ended(4, "failed");
    let run = world.run("rollback", NEW, &[]).await?.ended(0, "unchanged");
    let said = format!("the last swap, {}, ended failed", failed.output("swap-id"));
    assert!(run.stdout.contains(&said) && run.stdout.contains(first.output("swap-id")), "{run}");
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

/// A rollback without a name is refused in these words, and moves nothing.
async fn refuses(world: &World, why: &str) -> Result<Run> {
    let file = fs::read(world.server.nginx_config())?;
    let settled = workers(world).await?;
    let run = world.run("rollback", NEW, &[]).await?.refused(
        3,
        &["there is nothing to roll back to: ", why, "hint: swap to the model that you want"],
    );
    assert!(run.outputs.is_empty(), "{run}");
    assert_eq!(fs::read(world.server.nginx_config())?, file);
    assert_eq!(world.server.nginx_workers()?, settled);
    Ok(run)
}

/// nginx's workers, once those of earlier reloads are gone.
async fn workers(world: &World) -> Result<Vec<u32>> {
    let now = || world.server.nginx_workers().unwrap_or_default();
    let shuts_down = |pid: &u32| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.contains("shutting down")
    };
    until("nginx's old workers are gone", || !now().iter().any(shuts_down)).await?;
    Ok(now())
}
