//! What `status` and `doctor` say while somebody is at work: of what loads, of what waits, and that nothing of it is a fault;
//! and that another program in its place does not disturb who is at work.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::github::FakeGitHub;
use testbed::server::Aim;

use crate::commands::Terminal;
use crate::doctor::mark;
use crate::kills;
use crate::step::{Step, send};
use crate::support::guest::{on_guest, until};
use crate::support::scene::Scene;
use crate::support::{NEW, OLD, Run, World};

/// The cells of a slot's row in the table of `status`.
pub(crate) fn cells<'a>(status: &'a Run, slot: &str) -> Vec<&'a str> {
    let row = status.stdout.lines().find(|line| line.starts_with(&format!("  {slot} ")));
    let cells = row.unwrap_or_default().split("  ").map(str::trim);
    cells.filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test]
async fn a_model_that_loads_is_neither_free_room_nor_a_stranger() -> Result<()> {
    let (mut world, github) = (World::start().await?, FakeGitHub::start()?);
    world.settings.flags = "--stub-load-time 600s".to_owned();
    world.settings.ready = "900s".to_owned();
    let mut step = Step::start(world.action("swap", NEW, &[])?.on_github(&github))?;
    step.says("→ await_ready b").await?;
    let status = world.run("status", NEW, &[]).await?.answered(&["at work since", "await_ready b"]);
    assert_eq!(cells(&status, "a")[2..4], ["serving", "yes"], "{status}");
    let b = cells(&status, "b");
    assert_eq!(b[2..5], ["candidate", "not yet", "-"], "{status}");
    assert!(b[5].starts_with(NEW), "{status}");

    let doctor = world.run("doctor", NEW, &[]).await?;
    let doctor = doctor.answered(&[
        "works on this service: swap s-",
        "look at https://",
        "gives it up",
        "the new model of the unfinished swap loads",
        "a swap has no outcome yet",
    ]);
    let marks = ["swap under way", "slot a", "slot b", "plan of a swap"];
    assert_eq!(marks.map(|what| mark(&doctor, what)), ["warn", "ok", "ok", "?"], "{doctor}");
    assert!(!doctor.stdout.contains("ready to swap"), "{doctor}");
    world.run("abort", NEW, &[]).await?.ended(0, "aborted");
    step.finish().await?.ended(6, "aborted");
    Ok(())
}

/// As root replaces it who brings another release (`server install --apply`): the agent goes on from the file that it began with,
/// also where it starts itself, as for a model.
#[tokio::test]
async fn an_agent_whose_program_is_replaced_goes_on_all_the_same() -> Result<()> {
    let world = kills::world().await?;
    world.server.strike(Some(Aim::Freeze(kills::STARTING)))?;
    let step = Step::start(world.action("swap", NEW, &[("wait", "retired")])?)?;
    let (agent, _) = kills::frozen(&world).await?;
    world.server.strike(None)?;
    let program = fs::read_link(format!("/proc/{agent}/exe"))?;
    ensure!(program.starts_with(world.server.state_dir()), "{} is not its own", program.display());
    let other = program.with_extension("new");
    fs::copy("/bin/false", &other)?;
    fs::rename(&other, &program)?;
    send("-CONT", agent)?;
    step.finish().await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn what_served_until_the_cutover_is_known_for_what_it_is() -> Result<()> {
    let world = kills::world().await?;
    world.server.strike(Some(Aim::Freeze(kills::CUT_OVER)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (agent, _) = kills::frozen(&world).await?;
    world.server.strike(None)?;
    world.until_serves(NEW).await?;
    let status = world.run("status", NEW, &[]).await?.answered(&["at work since"]);
    assert_eq!(cells(&status, "a")[2..4], ["incumbent", "yes"], "{status}");
    assert_eq!(cells(&status, "b")[2..4], ["serving", "yes"], "{status}");
    assert!(cells(&status, "b")[5].contains("(r-"), "it is no adopted one: {status}");
    let doctor = world.run("doctor", NEW, &[]).await?;
    let doctor = doctor.answered(&["served until the unfinished swap"]);
    assert_eq!((mark(&doctor, "slot a"), mark(&doctor, "slot b")), ("ok".into(), "ok".into()));
    send("-CONT", agent)?;
    step.finish().await?.ended(0, "promoted");
    Ok(())
}

#[tokio::test]
async fn a_program_is_told_that_what_waited_never_begins() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 600s".to_owned();
    world.settings.ready = "900s".to_owned();
    let terminal = Terminal::at(&world)?;
    let mut first = Step::start(world.action("swap", NEW, &[])?)?;
    first.says("→ await_ready b").await?;
    let waits = [("lock-wait", "10m"), ("force", "true")];
    let mut second = Step::start(world.action("swap", NEW, &waits)?)?;
    second.says("waiting up to 10m").await?;
    let said = second.said();
    let (_, id) = said.split_once("`model-swap abort --swap-id ").context("no id")?;
    let (id, _) = id.split_once('`').context("no end")?;
    let words = format!("abort --swap-id {id} --json --ssh-key key --known-hosts hosts");
    let given_up = terminal.run(&words).await?;
    let said = String::from_utf8(given_up.stdout)?;
    let frame: Value = serde_json::from_str(said.lines().next_back().unwrap_or_default())?;
    assert_eq!((given_up.status.code(), &frame["frame"]), (Some(0), &"given_up".into()), "{said}");
    let why = frame["failures"][0]["message"].as_str().context(said.clone())?;
    assert!(why.contains(&format!("swap {id} was aborted before it began")), "{said}");
    second.finish().await?.refused(6, &["was aborted before it began"]);
    world.run("abort", NEW, &[]).await?.ended(0, "aborted");
    first.finish().await?.ended(6, "aborted");
    Ok(())
}

/// A rollback that did nothing would leave it to begin afterwards.
#[tokio::test]
async fn a_rollback_gives_up_what_still_waits_for_its_turn() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 600s".to_owned();
    world.settings.ready = "900s".to_owned();
    let mut first = Step::start(world.action("swap", NEW, &[])?)?;
    first.says("→ await_ready b").await?;
    let waits = [("lock-wait", "10m"), ("force", "true")];
    let mut second = Step::start(world.action("swap", NEW, &waits)?)?;
    second.says("waiting up to 10m").await?;
    let said = second.said();
    let (_, id) = said.split_once("`model-swap abort --swap-id ").context("no id")?;
    let (id, _) = id.split_once('`').context("no end")?;
    let given_up =
        |id: &str| format!("swap {id} waited for its turn, is given up and never begins");
    let back = world.run("rollback", NEW, &[("swap-id", id)]).await?.ended(0, "unchanged");
    back.answered(&[&given_up(id)]);
    second.finish().await?.refused(6, &["was aborted before it began"]);

    // What comes to wait beside a rollback that waits itself is given up once that has its turn.
    let mut third = Step::start(world.action("rollback", NEW, &[("swap-id", "s-1"), waits[0]])?)?;
    third.says("waiting up to 10m").await?;
    let folder = world.server.state_dir().join("chat/waiting");
    let entry = std::fs::read_dir(&folder)?.next().context("nobody waits")??;
    let mut line: Value = serde_json::from_slice(&std::fs::read(entry.path())?)?;
    (line["swap"], line["command"]) = ("s-1".into(), "swap".into());
    std::fs::write(folder.join("s-1.json"), line.to_string())?;
    world.run("abort", NEW, &[]).await?.ended(0, "aborted");
    first.finish().await?.ended(6, "aborted");
    third.finish().await?.ended(0, "unchanged").answered(&[&given_up("s-1")]);
    assert_eq!(std::fs::read_dir(&folder)?.count(), 0);
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

/// The lease is free between two tries, and somebody is at work all the same.
#[test]
fn an_agent_that_waits_for_nginx_is_told_of() -> Result<()> {
    on_guest(async |world| {
        let nowhere = format!("http://{}:9/v1/models", world.guest.address());
        world.settings.verify = format!("{{ url: {nowhere:?}, within: 1h }}");
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ verify b").await?;
        step.kill()?;
        world.guest.run(&["systemctl", "stop", "nginx.service"]).await?;
        world.kill_agent().await?;
        until("the agent that systemd keeps is told of", async || {
            let status = world.run("status", NEW, &[]).await?;
            assert!(!status.stdout.contains("nobody is at work"), "{status}");
            Ok(status.stdout.contains("is not at its end")
                && status.stdout.contains("another agent (pid "))
        })
        .await?;
        world.guest.run(&["systemctl", "start", "nginx.service"]).await?;
        world.until_through().await?;
        world.until_serves(OLD).await?;
        world.run("status", NEW, &[]).await?.answered(&["nobody is at work"]);
        Ok(())
    })
}
