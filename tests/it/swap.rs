//! The main job, under load, with the oracle at zero.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::Result;
use testbed::server::listeners;

use crate::support::{NEW, OLD, World, alive, until};

/// The model of a second swap.
const NEXT: &str = "Qwen/Next";

#[tokio::test]
async fn the_model_changes_and_no_request_notices() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let config = world.server.nginx_config();
    let target = world.server.scratch().join("elsewhere.conf");
    fs::rename(&config, &target)?;
    std::os::unix::fs::symlink(&target, &config)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&target, Some(1234), Some(1235))?;
    }
    let before = fs::read_to_string(&target)?;
    let owner = |metadata: fs::Metadata| (metadata.uid(), metadata.gid(), metadata.mode());
    let owned = owner(fs::metadata(&target)?);
    let load = world.load().await?;

    let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();

    assert_eq!(
        fs::read_to_string(&target)?,
        before.replace(&format!("127.0.0.1:{a};"), &format!("127.0.0.1:{b};"))
    );
    assert_eq!(fs::read_link(&config)?, target);
    assert_eq!(owner(fs::metadata(&target)?), owned);
    assert!(alive(world.old.pid), "the old model is kept warm");
    assert_eq!(listeners(a)?, [world.old.pid]);

    let swap = run.output("swap-id");
    assert!(world.server.state_dir().join("chat/swaps").join(swap).is_dir());
    assert_eq!(run.output("slot"), "b");
    assert!(run.output("revision").starts_with("r-"), "{run}");
    assert!(run.output("previous-revision").starts_with("adopted-"), "{run}");
    let until: jiff::Timestamp = run.output("rollback-until").parse()?;
    assert!(until > jiff::Timestamp::now());
    assert_eq!(run.outputs.len(), 6, "no deployment without GitHub: {run}");
    for text in [
        "## chat: promoted",
        "| reserve_slot&#160;b | ✓&#160;done |",
        "| start_replica&#160;b | ✓&#160;done |",
        "| await_ready&#160;b | ✓&#160;done |",
        "| cut_over&#160;a&#160;&#8209;>&#160;b | ✓&#160;done |",
        "| promote&#160;b | ✓&#160;done |",
        "| drain&#160;a |",
        "| retire&#160;a | – |",
        &format!("  command: rollback\n  swap-id: {swap}\n"),
    ] {
        assert!(run.summary.contains(text), "no {text:?} in\n{run}");
    }
    let status = world.run("status", NEW, &[]).await?;
    assert_eq!(status.code, 0, "{status}");
    let role = |slot: &str, role: &str| {
        let mut lines = status.stdout.lines();
        lines.any(|line| line.trim_start().starts_with(slot) && line.contains(role))
    };
    assert!(role("a ", "retained") && role("b ", "serving"), "{status}");
    Ok(())
}

#[tokio::test]
async fn swaps_in_a_row_alternate_and_free_the_retained_slot_first() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let first = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(first.output("slot"), "b");
    assert!(alive(world.old.pid));

    let plan = world.run("plan", NEXT, &[]).await?;
    assert_eq!(plan.code, 0, "{plan}");
    in_order(
        &plan.stdout,
        &[
            "drain a ",
            "retire a ",
            "reserve_slot a",
            "start_replica a",
            "cut_over b -> a",
            "promote a",
            "later,",
            "drain b",
            "retire b",
        ],
    );
    assert!(plan.stdout.contains(&format!("stop {OLD} ")), "{plan}");

    let second = world.run("swap", NEXT, &[]).await?.ended(0, "promoted");
    in_order(
        &second.stdout,
        &["✓ drain a ", "✓ retire a ", "✓ reserve_slot a ", "✓ cut_over b -> a "],
    );
    assert_eq!(second.output("slot"), "a");
    assert_eq!(second.output("previous-revision"), first.output("revision"));
    assert!(!alive(world.old.pid), "it had to make room");
    world.until_serves(NEXT).await?;

    let retained = listeners(world.server.slot_ports().1)?;
    let third = world.run("swap", OLD, &[]).await?.ended(0, "promoted");
    in_order(
        &third.stdout,
        &["✓ drain b ", "✓ retire b ", "✓ reserve_slot b ", "✓ cut_over a -> b "],
    );
    assert_eq!(third.output("slot"), "b");
    assert!(!retained.iter().any(|pid| alive(*pid)), "{retained:?} had to make room");
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// Swaps that were superseded end by themselves: no agent is left but the one that keeps the last replica warm.
#[tokio::test]
async fn a_superseded_swap_leaves_no_agent_behind() -> Result<()> {
    let world = World::start().await?;
    let agents = || {
        let left = world.server.leftovers();
        left.iter().filter(|line| line.contains("agent run")).count()
    };
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(agents(), 1);
    world.run("swap", NEXT, &[]).await?.ended(0, "promoted");
    until("the first swap's agent ends", || agents() == 1).await
}

/// What is claimed host-wide.
pub(crate) fn claims(world: &World) -> Result<Vec<String>> {
    let entries = fs::read_dir(world.server.state_dir().join("claims"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

#[track_caller]
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            panic!("no {part:?} where it should be in\n{text}");
        };
        rest = after;
    }
}
