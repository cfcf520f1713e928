//! A swap that cannot be unwound says what it could not undo and why, where traffic is, and what mends it; and that does.

use std::fs;

use anyhow::Result;
use testbed::server::Aim;

use crate::kills::{Facts, world};
use crate::step::Step;
use crate::support::{NEW, OLD, World};

/// The record that the cutover is done.
const CUT_OVER: usize = 9;

/// A swap whose agent dies when nginx sends requests to the new model, and whose undo then meets what somebody did.
async fn moved() -> Result<(World, Facts)> {
    let world = world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    world.server.strike(Some(Aim::After(CUT_OVER)))?;
    let run = Step::run(world.action("swap", NEW, &[])?).await?;
    world.server.strike(None)?;
    run.refused(3, &["is gone", "model-swap repair"]);
    assert_eq!(world.serves().await?, NEW);
    Ok((world, before))
}

#[tokio::test]
async fn what_cannot_be_undone_is_said_and_repaired_when_a_person_has_mended_it() -> Result<()> {
    let (world, before) = moved().await?;
    let load = world.load().await?;
    let found = ["s-", " is not at its end: its agent ended between two steps; to undo: cut_over"];
    world.run("status", NEW, &[]).await?.answered(&found);

    // Somebody writes another line, and nobody reloads nginx: neither the old nor the new one.
    let config = world.server.nginx_config();
    let (a, b) = world.server.slot_ports();
    let text = fs::read_to_string(&config)?;
    let edited = text.replace(&format!("127.0.0.1:{b};"), &format!("127.0.0.1:{a} weight=7;"));
    assert_ne!(edited, text);
    fs::write(&config, &edited)?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");
    let run = run.refused(
        7,
        &[
            "taken up again: its agent ended between two steps",
            "✗ cannot undo cut_over a -> b: ",
            "stuck: upstream llm names port ",
            "it was to be undone because the agent that worked on this swap ended",
            "hint: mend that first, then `model-swap repair` (in a workflow `command: repair`)",
        ],
    );
    assert!(run.summary.contains("model-swap repair"), "{run}");
    assert_eq!(fs::read_to_string(&config)?, edited, "somebody's line was overwritten");
    assert_eq!(world.serves().await?, NEW, "{run}");
    let stuck = ["cut_over a -> b could not be undone; to undo: cut_over a -> b, await_ready b, "];
    world.run("status", NEW, &[]).await?.answered(&stuck);
    // Nothing has changed yet: stuck it is.
    Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");

    fs::write(&config, &text)?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "rolled-back");
    assert!(run.stdout.contains("taken up again: cut_over a -> b could not be undone"), "{run}");
    assert_eq!(Facts::of(&world)?, before, "{run}");
    assert_eq!(world.serves().await?, OLD);
    let history = world.run("status", NEW, &[]).await?.answered(&["rolled-back  Qwen/New"]);
    assert!(!history.stdout.contains("stuck"), "one swap, one line\n{history}");
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "unchanged");
    load.stop().await.assert_clean();
    Ok(())
}
