//! The machine goes down and comes back, in order or not, at every stage of a swap. Nobody asks for anything afterwards: the
//! service answers through nginx, and systemd's agent brings the story to its end.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::PATIENCE;
use testbed::guest::{GuestSpec, SLOTS};
use testbed::load::{Load, LoadSpec};

use crate::step::{LOOK_EVERY, Step};
use crate::support::guest::{GuestWorld, on_guest, on_guest_of};
use crate::support::{NAME, NEW, OLD};

const AGENT: &str = "/etc/systemd/system/model-swap-agent@chat.service";

/// How the machine goes down.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// `systemctl reboot`.
    Reboot,
    /// SIGKILL for its PID 1, and on again.
    PowerLoss,
}

impl Outage {
    async fn strike(self, world: &mut GuestWorld) -> Result<()> {
        match self {
            Self::Reboot => world.guest.reboot().await,
            Self::PowerLoss => {
                world.guest.power_loss().await?;
                world.guest.power_on().await
            }
        }
    }
}

/// Waits for a fact of a guest, that announces nothing outside.
async fn until(what: &str, mut met: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !met().await? {
        ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// A file of the newest swap that there is.
async fn of_swap(world: &GuestWorld, file: &str) -> Result<String> {
    let line = format!("cat /var/lib/model-swap/chat/swaps/*/{file}");
    world.guest.run(&["sh", "-c", &line]).await
}

/// Waits until the agent has nothing left to do, and has removed its unit.
async fn until_through(world: &GuestWorld) -> Result<()> {
    until("the agent is through", async || Ok(!world.guest.file(AGENT)?.exists())).await
}

async fn serves_cleanly(world: &GuestWorld, model: &str) -> Result<()> {
    world.until_serves(model).await?;
    world.load().await?.stop().await.assert_clean();
    world.until_serves(model).await
}

#[test]
fn what_serves_comes_back_with_the_machine() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        Outage::PowerLoss.strike(world).await?;
        serves_cleanly(world, OLD).await?;
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        for outage in [Outage::Reboot, Outage::PowerLoss] {
            until_through(world).await?;
            outage.strike(world).await?;
            serves_cleanly(world, NEW).await?;
            assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "{outage:?}: it was retired");
        }
        Ok(())
    })
}

#[test]
fn a_reboot_in_mid_load_ends_in_the_old_model() -> Result<()> {
    on_guest(async |world| {
        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        assert!(!of_swap(world, "journal.ndjson").await?.contains(r#""undo_started""#));
        Outage::Reboot.strike(world).await?;
        step.kill()?;
        serves_cleanly(world, OLD).await?;
        until_through(world).await?;
        assert!(world.guest.listeners(SLOTS.1).await?.is_empty());
        assert!(of_swap(world, "journal.ndjson").await?.contains(r#""concluded""#));
        Ok(())
    })
}

/// There the agent has systemd read the candidate's unit again, and this `systemctl` holds it until the machine is down.
const HELD: &str = r#"#!/bin/sh
case " $* " in
*" daemon-reload "*)
    while [ -e /run/hold ] && grep -q 127.0.0.1:8002 /etc/nginx/conf.d/llm.conf; do sleep 0.1; done ;;
esac
exec /usr/bin/systemctl "$@"
"#;

fn between_cutover_and_promote(outage: Outage) -> Result<()> {
    let held = ("/usr/local/bin/systemctl".to_owned(), 0o755, HELD.to_owned());
    let spec = GuestSpec { files: vec![held], ..GuestSpec::serving(OLD) };
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        std::fs::write(world.guest.file("/run/hold")?, "")?;
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ promote b").await?;
        world.until_serves(NEW).await?;
        let journal = of_swap(world, "journal.ndjson").await?;
        assert!(!journal.contains(r#""concluded""#), "it has its outcome already: {journal}");
        outage.strike(world).await?;
        step.kill()?;
        until_through(world).await?;
        serves_cleanly(world, OLD).await?;
        assert!(world.guest.listeners(SLOTS.1).await?.is_empty(), "the new model is gone");
        let journal = of_swap(world, "journal.ndjson").await?;
        assert!(journal.contains(r#""rolled-back""#), "{journal}");
        Ok(())
    })
}

#[test]
fn a_reboot_between_cutover_and_promote_ends_in_the_old_model() -> Result<()> {
    between_cutover_and_promote(Outage::Reboot)
}

#[test]
fn a_power_loss_between_cutover_and_promote_ends_in_the_old_model() -> Result<()> {
    between_cutover_and_promote(Outage::PowerLoss)
}

#[test]
fn a_reboot_within_retain_leaves_the_way_back_warm() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "1h".to_owned();
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        Outage::Reboot.strike(world).await?;
        serves_cleanly(world, NEW).await?;
        until("the old model is there again", async || {
            Ok(world.guest.listeners(SLOTS.0).await?.len() == 1)
        })
        .await?;
        world.settings.retain = "0s".to_owned();
        let load = world.load().await?;
        let run = world.run("rollback", NEW, &[("wait", "retired")]).await?;
        let run = run.ended(0, "rolled-back");
        assert!(!run.stdout.contains("start_replica"), "it was warm: {run}");
        world.until_serves(OLD).await?;
        load.stop().await.assert_clean();
        until_through(world).await
    })
}

fn while_draining(outage: Outage) -> Result<()> {
    let slow = ("Qwen/Old".to_owned(), "--stub-token-delay 50ms".to_owned());
    let spec = GuestSpec { incumbent: Some(slow), ..GuestSpec::bare() };
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        world.settings.retain = "0s".to_owned();
        world.settings.drain = "{ timeout: 1h }".to_owned();
        let addr = world.guest.nginx_addr();
        let spec = LoadSpec { streams: 1, stream_tokens: 1_000_000, ..LoadSpec::none(addr, NAME) };
        let stream = Load::start(spec);
        stream.wait_until(|tally| tally.in_flight(testbed::load::Kind::Stream) == 1).await?;
        let mut step = Step::start(world.action("swap", NEW, &[("wait", "retired")])?)?;
        step.says("→ drain a").await?;
        assert_eq!(world.guest.listeners(SLOTS.0).await?.len(), 1, "it is not retired yet");
        outage.strike(world).await?;
        step.kill()?;
        drop(stream);
        serves_cleanly(world, NEW).await?;
        until_through(world).await?;
        assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "it is retired");
        serves_cleanly(world, NEW).await
    })
}

#[test]
fn a_reboot_while_draining_ends_with_the_old_model_retired() -> Result<()> {
    while_draining(Outage::Reboot)
}

#[test]
fn a_power_loss_while_draining_ends_with_the_old_model_retired() -> Result<()> {
    while_draining(Outage::PowerLoss)
}
