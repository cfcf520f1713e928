//! When there is nothing to do, and when there is after all.

use std::fs;

use anyhow::Result;
use testbed::server::listeners;

use crate::support::{NEW, World};

#[tokio::test]
async fn force_swaps_to_the_same_revision() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let first = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let forced = world.run("swap", NEW, &[("force", "true")]).await?.ended(0, "promoted");
    assert_eq!(forced.output("slot"), "a");
    assert_eq!(forced.output("revision"), first.output("revision"));
    assert_eq!(forced.output("previous-revision"), first.output("revision"));
    assert_ne!(forced.output("swap-id"), first.output("swap-id"));
    // Twins tell nothing by their answers.
    assert!(forced.stdout.contains("new workers hold"), "{forced}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_changed_flag_or_variable_is_a_new_revision() -> Result<()> {
    let mut world = World::start().await?;
    let load = world.load().await?;
    let plain = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.settings.flags = "--max-model-len 4096".to_owned();
    let longer = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_ne!(longer.output("revision"), plain.output("revision"));
    // The same model, told apart by the engine's fingerprint.
    assert!(longer.stdout.contains("fresh connections in a row reached the candidate"), "{longer}");

    world.settings.env = "VLLM_USE_V1: \"1\"".to_owned();
    let set = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_ne!(set.output("revision"), longer.output("revision"));
    let (_, b) = world.server.slot_ports();
    let [pid] = listeners(b)?[..] else { panic!("nobody alone on slot b: {set}") };
    let environment = fs::read(format!("/proc/{pid}/environ"))?;
    assert!(environment.split(|byte| *byte == 0).any(|entry| entry == b"VLLM_USE_V1=1"));

    world.run("swap", NEW, &[]).await?.ended(0, "unchanged");
    load.stop().await.assert_clean();
    Ok(())
}
