//! A swap that cannot be unwound says what it could not undo and why, where traffic is, and what mends it; and that does.

use std::fs;

use anyhow::Result;
use testbed::github::FakeGitHub;
use testbed::server::Aim;

use crate::kills::{CUT_OVER, Facts, frozen, ordered, world};
use crate::step::{Step, send};
use crate::support::{NEW, OLD, World, engine};

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

#[tokio::test]
async fn a_step_whose_swap_gets_stuck_ends_with_7_and_its_deployment_in_error() -> Result<()> {
    let world = world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let load = world.load().await?;
    let github = FakeGitHub::start()?;
    world.server.strike(Some(Aim::Freeze(CUT_OVER)))?;
    let step = Step::start(world.action("swap", NEW, &[])?.on_github(&github))?;
    let (agent, _) = frozen(&world).await?;
    world.server.strike(None)?;
    let config = world.server.nginx_config();
    let text = fs::read_to_string(&config)?;
    let (a, b) = world.server.slot_ports();
    let edited = text.replace(&format!("127.0.0.1:{b};"), &format!("127.0.0.1:{a} weight=7;"));
    assert_ne!(edited, text);
    fs::write(&config, edited)?;
    let abort = Step::start(world.action("abort", NEW, &[])?)?;
    ordered(&world).await?;
    send("-CONT", agent)?;
    let run = step.finish().await?.ended(7, "stuck");
    abort.finish().await?.ended(7, "stuck");
    for text in [
        "✗ cannot undo cut_over a -> b: ",
        "stuck: ",
        "it was to be undone because somebody asked to abort",
        "hint: mend that first, then `model-swap repair`",
    ] {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
    }
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "error", "{github}");
    assert_eq!(world.serves().await?, NEW, "{run}");
    fs::write(&config, &text)?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "aborted");
    assert_eq!(Facts::of(&world)?, before);
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// As after a reboot of a server without systemd: neither model is there, and nothing starts one.
#[tokio::test]
async fn an_old_model_that_nothing_starts_again_is_named_with_the_command_that_does() -> Result<()>
{
    let (world, _) = moved().await?;
    let (a, b) = world.server.slot_ports();
    send("-KILL", world.old.pid)?;
    let new = testbed::server::listeners(b)?;
    new.iter().try_for_each(|pid| send("-KILL", *pid))?;
    let gone = || {
        [a, b].iter().all(|port| testbed::server::listeners(*port).is_ok_and(|it| it.is_empty()))
    };
    crate::support::until("both models are gone", gone).await?;

    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");
    let argv = engine(OLD, a)?;
    let run = run.refused(
        7,
        &[
            &format!("upstream llm names port {a} of slot a again, and nobody listens there"),
            "Qwen/Old was a plain process, which nothing starts again",
            "clients get an error from nginx (502)",
            "start it again as it was started, by user ",
            &argv.join(" "),
            "hint: mend that first, then `model-swap repair`",
        ],
    );
    // Whoever obeys is helped.
    let _again = world.server.start_by_hand(&argv, &[])?;
    world.until_serves(OLD).await?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "rolled-back");
    assert_eq!(world.serves().await?, OLD, "{run}");
    Ok(())
}
