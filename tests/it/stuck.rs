//! A swap that cannot be unwound says what it could not undo and why, where traffic is, and what mends it; and that does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testbed::github::FakeGitHub;
use testbed::load::{Kind, Load, LoadSpec};
use testbed::server::{Aim, listeners};

use crate::commands::Terminal;
use crate::doctor::mark;
use crate::kills::{CUT_OVER, Facts, READY, bereft_at_work, frozen, ordered, orphaned, world};
use crate::step::{Step, send, until};
use crate::support::{NAME, NEW, OLD, Run, World, engine};

/// A swap whose agent dies when nginx sends requests to the new model, and whose undo then meets what somebody did.
async fn moved() -> Result<(World, Facts)> {
    let world = world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    orphaned(&world, Aim::After(CUT_OVER), world.action("swap", NEW, &[])?).await?;
    assert_eq!(world.serves().await?, NEW);
    Ok((world, before))
}

/// Somebody writes another line, and nobody reloads nginx: neither the old nor the new one. What the file was before.
fn spoil(world: &World, serves: u16, line: u16) -> Result<String> {
    let config = world.server.nginx_config();
    let text = fs::read_to_string(&config)?;
    let edited =
        text.replace(&format!("127.0.0.1:{serves};"), &format!("127.0.0.1:{line} weight=7;"));
    assert_ne!(edited, text);
    fs::write(&config, &edited)?;
    Ok(text)
}

/// The folders of all swaps.
fn swaps(world: &World) -> Result<Vec<PathBuf>> {
    let folder = world.server.state_dir().join(NAME).join("swaps");
    let mut swaps: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    swaps.sort();
    Ok(swaps)
}

/// The id of the swap of a folder.
fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[tokio::test]
async fn what_cannot_be_undone_is_said_and_repaired_when_a_person_has_mended_it() -> Result<()> {
    let (world, before) = moved().await?;
    let load = world.load().await?;
    let found = ["s-", " is not at its end: its agent ended between two steps; to undo: cut_over"];
    world.run("status", NEW, &[]).await?.answered(&found);

    let config = world.server.nginx_config();
    let (a, b) = world.server.slot_ports();
    let text = spoil(&world, b, a)?;
    let edited = fs::read_to_string(&config)?;
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
    let doctor = Step::run(world.action("doctor", NEW, &[])?).await?;
    let doctor =
        doctor.refused(3, &["nothing new begins before it is repaired", "model-swap repair"]);
    assert_eq!(mark(&doctor, "stuck swap"), "fail", "{doctor}");
    // Nothing has changed yet: stuck it is, also for somebody at a terminal, who reads what is to be typed there.
    let terminal = Terminal::at(&world)?;
    fs::rename(
        terminal.folder.path().join("model-swap.yaml"),
        terminal.folder.path().join("it.yaml"),
    )?;
    let output = terminal.run("repair --known-hosts hosts --config it.yaml --ssh-key key").await?;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let said = String::from_utf8(output.stdout)?;
    let typed = said.split_once("mend that first, then `model-swap ").map(|(_, rest)| rest);
    let typed = typed.and_then(|rest| Some(rest.split_once('`')?.0)).context("no command")?;
    assert_eq!(typed, "repair --config it.yaml --ssh-key key --known-hosts hosts", "{said}");

    fs::write(&config, &text)?;
    let output = terminal.run(typed).await?;
    let run = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{run}");
    for told in ["taken up again: cut_over a -> b could not be undone", "rolled-back"] {
        assert!(run.contains(told), "{run}");
    }
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
    let (a, b) = world.server.slot_ports();
    let text = spoil(&world, b, a)?;
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

/// What was started by hand cannot always be started again: then whoever repairs keeps what serves.
#[tokio::test]
async fn a_swap_that_is_stuck_and_whose_old_model_is_gone_is_ended_with_the_new_one() -> Result<()>
{
    let (world, _) = moved().await?;
    let load = world.load().await?;
    let (a, b) = world.server.slot_ports();
    let text = spoil(&world, b, a)?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");
    fs::write(world.server.nginx_config(), text)?;
    send("-KILL", world.old.pid)?;
    until("the old model is gone", || Ok(listeners(a)?.is_empty().then_some(()))).await?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "promoted");
    for told in [
        "taken up again: cut_over a -> b could not be undone",
        "Qwen/Old in slot a, which served before, does not come back: the swap goes on to its end with Qwen/New",
    ] {
        assert!(run.stdout.contains(told), "no {told:?} in\n{run}");
    }
    assert_eq!(world.serves().await?, NEW);
    let history = world.run("status", NEW, &[]).await?.answered(&["promoted     Qwen/New"]);
    assert!(!history.stdout.contains("stuck"), "one swap, one line\n{history}");
    Step::run(world.action("swap", "Qwen/Third", &[("wait", "retired")])?)
        .await?
        .ended(0, "promoted");
    load.stop().await.assert_clean();
    Ok(())
}

/// What nginx was never told of may be asked past it, for ever.
#[tokio::test]
async fn a_new_model_that_somebody_asks_past_nginx_does_not_get_its_swap_stuck() -> Result<()> {
    let (world, before, answer) = busy_at(READY).await?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "failed");
    let told = "is stopped with what somebody asks of it past nginx, which never sent it a request: 1 request in the engine";
    assert!(run.stdout.contains(told), "{run}");
    assert_eq!(Facts::of(&world)?, before);
    assert_eq!(answer.stop().await.ok_of(Kind::Stream), 0, "it was waited for");
    Ok(())
}

/// A world whose swap died when nginx sent requests to its new model, and where somebody has a long answer of that one.
async fn busy() -> Result<(World, Facts, Load)> {
    busy_at(CUT_OVER).await
}

/// The same of one that died when this record of its journal was on the disk.
async fn busy_at(record: usize) -> Result<(World, Facts, Load)> {
    let mut world = world().await?;
    world.settings.drain = "{ timeout: 1s }".to_owned();
    world.settings.flags = "--stub-token-delay 50ms".to_owned();
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    orphaned(&world, Aim::After(record), world.action("swap", NEW, &[])?).await?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, world.server.slot_ports().1));
    let (streams, stream_tokens) = (1, 100_000);
    let load = Load::start(LoadSpec { streams, stream_tokens, ..LoadSpec::none(target, NAME) });
    load.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    Ok((world, before, load))
}

#[tokio::test]
async fn while_a_swap_is_stuck_nothing_new_begins() -> Result<()> {
    let (world, before, answer) = busy().await?;
    let third = [("wait", "retired")];
    // The swap brings the one that died to its end first, which gets stuck, and goes no further.
    let run = Step::run(world.action("swap", "Qwen/Third", &third)?).await?;
    let stuck = swaps(&world)?;
    let [swap] = &stuck[..] else { panic!("not one swap: {stuck:?}\n{run}") };
    let said = [
        &format!("swap {} is stuck, and nothing new begins before it is repaired: ", name(swap)),
        "start_replica b could not be undone; to undo: start_replica b, reserve_slot b; Qwen/Old serves from slot a",
        "in the engine",
        "hint: a repair drains by the configuration that it is run with: after `drain: { on_timeout: cut }`",
        "hint: mend that first, then `model-swap repair` (in a workflow `command: repair`)",
    ];
    run.refused(7, &said);
    let facts = (Facts::of(&world)?, stuck);
    let rollback = [("to", "r-0")];
    for (command, inputs) in
        [("swap", &third[..]), ("plan", &[]), ("rollback", &[]), ("rollback", &rollback)]
    {
        Step::run(world.action(command, "Qwen/Third", inputs)?).await?.refused(7, &said);
        assert_eq!((Facts::of(&world)?, swaps(&world)?), facts, "{command}");
    }
    let terminal = Terminal::at(&world)?;
    let output = terminal.run("uninstall --retire-now --ssh-key key --known-hosts hosts").await?;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!((Facts::of(&world)?, swaps(&world)?), facts);

    drop(answer);
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "rolled-back");
    assert_eq!(Facts::of(&world)?, before);
    Step::run(world.action("swap", "Qwen/Third", &third)?).await?.ended(0, "promoted");
    Ok(())
}

/// What is in flight may never end, and the swap's own specification says that it is kept.
#[tokio::test]
async fn a_repair_drains_by_the_configuration_of_now() -> Result<()> {
    let (mut world, before, answer) = busy().await?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");
    run.refused(7, &["is not drained: 1 request in the engine", "`drain: { on_timeout: cut }`"]);
    world.settings.drain = "{ timeout: 1s, on_timeout: cut }".to_owned();
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "rolled-back");
    assert_eq!(Facts::of(&world)?, before);
    assert_eq!(answer.stop().await.ok_of(Kind::Stream), 0, "it was waited for");
    Ok(())
}

/// A world with two swaps that are stuck, of which somebody has mended what the newer one met; their names, newest first.
async fn two_stuck() -> Result<(World, Facts, [String; 2])> {
    let (world, before, answer) = busy().await?;
    let (a, b) = world.server.slot_ports();
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");
    assert!(run.stdout.contains("✗ cannot undo start_replica b: "), "{run}");
    let [candidate] = listeners(b)?[..] else { panic!("no new model") };
    send("-KILL", candidate)?;
    drop(answer);
    until("nobody in slot b", || Ok(listeners(b)?.is_empty().then_some(()))).await?;

    // As a version of this program left it that began a swap over one that was stuck.
    let older = swaps(&world)?.remove(0);
    let aside = world.server.state_dir().join("aside");
    fs::rename(&older, &aside)?;
    orphaned(&world, Aim::After(CUT_OVER), world.action("swap", NEW, &[])?).await?;
    let text = spoil(&world, b, a)?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(7, "stuck");
    let newer = swaps(&world)?.remove(0);
    fs::rename(&aside, &older)?;
    let names = [name(&newer), name(&older)];
    let said = names.each_ref().map(|name| format!("swap {name} is stuck"));
    Step::run(world.action("swap", "Qwen/Third", &[])?)
        .await?
        .refused(7, &said.each_ref().map(String::as_str));
    fs::write(world.server.nginx_config(), text)?;
    Ok((world, before, names))
}

#[tokio::test]
async fn two_swaps_that_are_stuck_are_repaired_one_after_the_other() -> Result<()> {
    let (world, before, names) = two_stuck().await?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "rolled-back");
    assert_repaired(&run, &names[1]);
    assert_eq!(Facts::of(&world)?, before, "{run}");
    assert_eq!(world.serves().await?, OLD);
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "unchanged");
    Ok(())
}

/// Asserts that both were taken up, and this one last.
fn assert_repaired(run: &Run, last: &str) {
    assert_eq!(run.output("swap-id"), last, "{run}");
    for step in ["cut_over a -> b", "start_replica b"] {
        let text = format!("taken up again: {step} could not be undone");
        assert!(run.stdout.contains(&text), "no {text:?} in\n{run}");
    }
    assert_eq!(run.summary.matches("taken up again").count(), 2, "{run}");
}

#[tokio::test]
async fn a_runner_whose_link_is_lost_in_a_repair_goes_on_with_the_next() -> Result<()> {
    let (world, before, names) = two_stuck().await?;
    let relay = crate::support::relayed::relay(&world).await?;
    world.server.strike(Some(Aim::Freeze(1)))?;
    let mut step = Step::start(crate::support::relayed::through_for("repair", &relay, &world)?)?;
    let (agent, _) = frozen(&world).await?;
    world.server.strike(None)?;
    step.says("taken up again: cut_over a -> b could not be undone").await?;
    relay.cut();
    step.says("trying again in 1s").await?;
    // What else would go on with the second.
    for session in sessions(&world) {
        send("-KILL", session)?;
    }
    send("-CONT", agent)?;
    let run = step.finish().await?.ended(0, "rolled-back");
    assert_repaired(&run, &names[1]);
    assert_eq!(Facts::of(&world)?, before, "{run}");
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

/// The agents that speak with a runner.
fn sessions(world: &World) -> Vec<u32> {
    let all = world.server.leftovers().into_iter();
    let sessions = all.filter(|line| line.contains("agent session"));
    sessions.filter_map(|line| line.split_once(':')?.0.parse().ok()).collect()
}

/// The records of a repair that undoes a swap from its cutover on: traffic is back, and the outcome.
const RETURNED: usize = 2;
const REPAIRED: usize = 2 * 4 + 1;

/// Before it has said what it takes up, in the midst of it, and when it has written down what came of it and told nobody.
#[tokio::test]
async fn a_repair_whose_agent_is_killed_has_another_one_bring_the_swap_to_its_end() -> Result<()> {
    let (world, before) = moved().await?;
    let load = world.load().await?;
    for aim in [Aim::FreezeAtEachEvent, Aim::Freeze(RETURNED), Aim::Freeze(REPAIRED)] {
        let run = bereft_at_work(&world, aim, world.action("repair", NEW, &[])?).await?;
        let run = run.ended(0, "rolled-back");
        let swap = swaps(&world)?.pop().context("no swap")?;
        assert_eq!(run.output("swap-id"), name(&swap), "{aim:?}\n{run}");
        assert_eq!(Facts::of(&world)?, before, "{aim:?}\n{run}");
        assert_eq!(world.serves().await?, OLD, "{aim:?}\n{run}");
        Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "unchanged");
        orphaned(&world, Aim::After(CUT_OVER), world.action("swap", NEW, &[])?).await?;
    }
    load.stop().await.assert_clean();
    Ok(())
}

/// Half undone, a swap is neither stuck nor at its end.
#[tokio::test]
async fn a_repair_that_meets_a_full_disk_is_gone_on_with_before_anything_new_begins() -> Result<()>
{
    let (world, _, answer) = busy().await?;
    Step::run(world.action("swap", "Qwen/Third", &[])?).await?.refused(7, &["is stuck"]);
    let [swap] = &swaps(&world)?[..] else { panic!("not one swap") };
    drop(answer);
    let records = || fs::read_to_string(swap.join("journal.ndjson"));
    let is_open = || -> Result<bool> {
        // The disk took half of the record that came after it.
        let is_whole = |record: &&str| serde_json::from_str::<serde_json::Value>(record).is_ok();
        Ok(records()?.lines().rfind(is_whole).is_some_and(|record| record.contains("undo_")))
    };
    for write in 1.. {
        world.server.strike(Some(Aim::Full(write)))?;
        let run = Step::run(world.action("repair", NEW, &[])?).await?;
        world.server.strike(None)?;
        assert_ne!(run.code, 0, "no repair ended half-way\n{}\n{run}", records()?);
        if is_open()? {
            break;
        }
    }
    let run = Step::run(world.action("swap", "Qwen/Third", &[])?).await?.ended(0, "promoted");
    assert!(!is_open()?, "{}\n{run}", records()?);
    world.until_serves("Qwen/Third").await?;
    Ok(())
}
