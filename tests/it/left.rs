//! What an agent that is gone has left, whoever finds it brings to its end: under what it is safe to, and with all that
//! comes after.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use model_swap::model::event::EventKind;
use model_swap::model::outcome::Outcome;
use model_swap::model::wire::Frame;
use testbed::load::{Kind, Load, LoadSpec};
use testbed::server::{Aim, ServerSpec, listeners};

use crate::commands::Terminal;
use crate::kills::{
    CUT_OVER, Facts, READY, agent, closed, frozen, journal, ordered, orphaned, world,
};
use crate::step::{Step, send, until};
use crate::support::{NAME, NEW, OLD, World, alive};

/// The records of a swap whose new model dies while it loads: three steps begun, two of them done, three undone.
const FAILED: usize = 14;

/// A swap whose agent dies there, and nobody follows it.
async fn dead(world: &World, record: usize) -> Result<()> {
    orphaned(world, Aim::After(record), world.action("swap", NEW, &[])?).await
}

/// Calls this server's nginx.
fn nginx(world: &World, more: &[&str]) -> Result<()> {
    let (program, args) = world.server.nginx_command().split_first().context("no command")?;
    ensure!(Command::new(program).args(args).args(more).status()?.success());
    Ok(())
}

/// The folder of the only swap.
fn only_swap(world: &World) -> Result<PathBuf> {
    let mut swaps = fs::read_dir(world.server.state_dir().join(NAME).join("swaps"))?;
    Ok(swaps.next().context("no swap")??.path())
}

#[tokio::test]
async fn a_swap_waits_for_nginx_before_it_is_brought_to_its_end() -> Result<()> {
    let world = world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    dead(&world, CUT_OVER).await?;
    let master = world.server.nginx_master()?;
    nginx(&world, &["-s", "stop"])?;
    until("nginx has ended", || Ok((!alive(master)).then_some(()))).await?;
    let records = journal(&world)?;
    let said = ["nginx.pid", "it is brought to its end once nginx can be seen"];
    let id = only_swap(&world)?.file_name().context("a name")?.to_string_lossy().into_owned();
    let other = Step::run(world.action("abort", NEW, &[("swap-id", "s-other")])?).await?;
    other.refused(2, &["no swap s-other of service chat is under way", "nobody is at work"]);
    for (command, inputs) in [("swap", &[][..]), ("repair", &[]), ("abort", &[("swap-id", &*id)])] {
        Step::run(world.action(command, NEW, inputs)?).await?.refused(3, &said);
        assert_eq!(journal(&world)?, records, "{command}");
    }
    nginx(&world, &[])?;
    world.until_serves(NEW).await?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "aborted");
    assert_eq!(Facts::of(&world)?, before);
    Ok(())
}

/// As where the link was lost as well, and comes back too late.
#[tokio::test]
async fn a_step_that_is_cancelled_has_the_swap_unwound_that_has_no_agent() -> Result<()> {
    let world = world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    dead(&world, CUT_OVER).await?;
    let id = only_swap(&world)?.file_name().context("a name")?.to_string_lossy().into_owned();
    let frames = crate::wire::give_up(&world, &id).await?;
    let is_aborted = |frame: &Frame| match frame {
        Frame::Event(event) => {
            matches!(&event.kind, EventKind::Concluded(it) if it.outcome == Outcome::Aborted)
        }
        _ => false,
    };
    assert!(frames.iter().any(is_aborted), "{frames:#?}");
    assert_eq!((Facts::of(&world)?, world.serves().await?.as_str()), (before, OLD));
    Ok(())
}

#[tokio::test]
async fn a_swap_that_another_command_brings_to_its_end_can_be_aborted_meanwhile() -> Result<()> {
    let world = world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    dead(&world, CUT_OVER).await?;
    world.server.strike(Some(Aim::Freeze(1)))?;
    let repair = Step::start(world.action("repair", NEW, &[])?)?;
    let (agent, _) = frozen(&world).await?;
    world.server.strike(None)?;
    let abort = Step::start(world.action("abort", NEW, &[])?)?;
    ordered(&world).await?;
    send("-CONT", agent)?;
    repair.finish().await?.ended(0, "aborted");
    abort.finish().await?.ended(0, "aborted");
    assert_eq!(Facts::of(&world)?, before);
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

/// Else the job that a failure starts would take a healthy model away.
#[tokio::test]
async fn a_swap_that_failed_is_in_the_history_even_if_its_agent_died_before_it_was() -> Result<()> {
    let mut world = world().await?;
    world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    world.settings.flags = "--stub-load-time 600s --stub-die-after 10ms".to_owned();
    orphaned(&world, Aim::After(FAILED), world.action("swap", "Qwen/Third", &[])?).await?;
    let (records, _) = journal(&world)?;
    assert!(records.last().is_some_and(|last| last.contains(r#""concluded""#)), "{records:#?}");
    world.settings.flags = String::new();
    let run = Step::run(world.action("rollback", NEW, &[])?).await?;
    run.ended(0, "unchanged").answered(&["the last swap, s-", ", ended failed"]);
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn a_swap_that_was_left_behind_another_one_is_brought_to_its_end() -> Result<()> {
    let world = world().await?;
    dead(&world, READY).await?;
    let (_, b) = world.server.slot_ports();
    let [candidate] = listeners(b)?[..] else { panic!("no new model") };
    send("-KILL", candidate)?;
    until("nobody in slot b", || Ok(listeners(b)?.is_empty().then_some(()))).await?;
    // As where the lease was lost that says whose agent died.
    let older = only_swap(&world)?;
    let aside = world.server.state_dir().join("aside");
    fs::rename(&older, &aside)?;
    let promoted = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    closed(&world).await?;
    fs::rename(&aside, &older)?;
    let before = Facts::of(&world)?;

    let id = older.file_name().context("a name")?.to_string_lossy().into_owned();
    let found = format!("{id} is not at its end: its agent ended between two steps; to undo: ");
    world.run("status", NEW, &[]).await?.answered(&[&found]);
    let said = Step::run(world.action("doctor", NEW, &[])?).await?;
    assert!(said.stdout.contains(&found), "{said}");
    let terminal = Terminal::at(&world)?;
    let output = terminal.run("uninstall --retire-now --ssh-key key --known-hosts hosts").await?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(Facts::of(&world)?, before);

    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "failed");
    assert_eq!(run.output("swap-id"), id, "{run}");
    assert_eq!(Facts::of(&world)?, before, "what serves lost what is reserved for it\n{run}");
    assert_eq!(world.serves().await?, NEW);
    // As where an agent died before its last word, or the disk refused that.
    let (records, _) = journal(&world)?;
    let swaps = world.server.state_dir().join(NAME).join("swaps");
    let text = records[..records.len() - 1].join("\n") + "\n";
    fs::write(swaps.join(promoted.output("swap-id")).join("journal.ndjson"), text)?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "unchanged");
    closed(&world).await?;
    assert_eq!(journal(&world)?.0.len(), records.len());
    assert_ne!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn what_is_kept_warm_is_retired_although_a_later_swap_died_meanwhile() -> Result<()> {
    let spec = ServerSpec { faults: true, ..ServerSpec::default() };
    let mut world = World::on(spec, &["--stub-token-delay", "50ms"]).await?;
    world.settings.retain = "0s".to_owned();
    let addr = world.server.nginx_addr();
    let spec = LoadSpec { streams: 1, stream_tokens: 1_000_000, ..LoadSpec::none(addr, NAME) };
    let answer = Load::start(spec);
    answer.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let first = agent(&world).context("nobody drains")?;
    orphaned(&world, Aim::After(1), world.action("swap", "Qwen/Third", &[])?).await?;
    drop(answer);
    until("it is left to whoever repairs", || Ok((!alive(first)).then_some(()))).await?;
    assert!(world.old_runs()?);
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "failed");
    until("the old model is gone", || Ok((!world.old_runs()?).then_some(()))).await?;
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}
