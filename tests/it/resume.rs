//! systemd brings the agent back: after a crash, and after a boot. Nobody else asks for anything meanwhile.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use testbed::PATIENCE;
use testbed::guest::{GuestSpec, SLOTS, UPSTREAM_FILE};

use crate::step::{LOOK_EVERY, Step};
use crate::support::guest::{GuestWorld, on_guest, on_guest_of};
use crate::support::{NEW, OLD};

const AGENT: &str = "model-swap-agent@chat.service";

/// Whether the agent's unit is there, by its file.
fn is_armed(world: &GuestWorld) -> Result<bool> {
    Ok(world.guest.file(&format!("/etc/systemd/system/{AGENT}"))?.exists())
}

async fn until(what: &str, mut met: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !met().await? {
        ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Process id, in the guest, of the agent that works on the newest swap.
async fn agent(world: &GuestWorld) -> Result<String> {
    let said =
        world.guest.run(&["sh", "-c", "cat /var/lib/model-swap/chat/swaps/*/agent.json"]).await?;
    let value: serde_json::Value = serde_json::from_str(&said)?;
    Ok(value["pid"].as_i64().context("a pid")?.to_string())
}

/// The records of the newest swap.
async fn journal(world: &GuestWorld) -> Result<Vec<serde_json::Value>> {
    let said = world
        .guest
        .run(&["sh", "-c", "cat /var/lib/model-swap/chat/swaps/*/journal.ndjson"])
        .await?;
    Ok(said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

async fn history(world: &GuestWorld) -> Result<String> {
    Ok(world.run("status", NEW, &[]).await?.stdout)
}

#[test]
fn an_agent_that_is_killed_in_mid_swap_has_a_successor() -> Result<()> {
    on_guest(async |world| {
        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let load = world.load().await?;
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        assert!(is_armed(world)?);
        let agent = agent(world).await?;
        world.guest.run(&["kill", "-KILL", &agent]).await?;
        // The step follows the successor to the end of the story.
        let run = step.finish().await?.ended(4, "failed");
        assert!(run.stdout.contains("the agent that worked on this swap ended"), "{run}");
        until("the unit is removed", async || Ok(!is_armed(world)?)).await?;
        assert!(world.guest.listeners(SLOTS.1).await?.is_empty());
        load.stop().await.assert_clean();
        Ok(())
    })
}

#[test]
fn a_boot_within_retain_brings_both_models_back_and_the_old_one_is_retired() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "30s".to_owned();
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        world.guest.power_loss().await?;
        world.guest.power_on().await?;
        world.until_serves(NEW).await?;
        until("the old model is retired", async || {
            Ok(!is_armed(world)? && world.guest.listeners(SLOTS.0).await?.is_empty())
        })
        .await?;
        let said = history(world).await?;
        assert!(said.contains("free"), "{said}");
        world.until_serves(NEW).await
    })
}

#[test]
fn a_boot_while_the_model_loads_ends_in_the_old_one() -> Result<()> {
    on_guest(async |world| {
        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        world.guest.power_loss().await?;
        step.kill()?;
        world.guest.power_on().await?;
        world.until_serves(OLD).await?;
        until("the agent is through", async || Ok(!is_armed(world)?)).await?;
        let said = history(world).await?;
        assert!(said.contains("failed       Qwen/New"), "{said}");
        let left = world
            .guest
            .run(&[
                "find",
                "/etc/systemd/system",
                "/var/lib/model-swap/env.d",
                "-name",
                "model-swap-*",
            ])
            .await?;
        assert_eq!(left, "");
        Ok(())
    })
}

/// The model that a person had started does not come back: the new one stays, and the swap is finished.
#[test]
fn a_boot_after_the_cutover_from_a_process_finishes_the_swap() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        let file = world.guest.file(UPSTREAM_FILE)?;
        until("nginx's file names the new model", async || {
            Ok(fs::read_to_string(&file)?.contains("8002"))
        })
        .await?;
        let lost_at = Timestamp::now();
        world.guest.power_loss().await?;
        step.kill()?;
        world.guest.power_on().await?;
        world.until_serves(NEW).await?;
        until("the agent is through", async || Ok(!is_armed(world)?)).await?;
        let said = history(world).await?;
        assert!(said.contains("promoted     Qwen/New"), "{said}");
        let records = journal(world).await?;
        let concluded = records.iter().find(|record| record["kind"]["record"] == "concluded");
        let at: Timestamp =
            concluded.context("an end")?["at"].as_str().context("a time")?.parse()?;
        assert!(at > lost_at, "the swap had its end before the power failed: {records:#?}");
        Ok(())
    })
}
