//! Surroundings that do not hold still: what a swap has looked at changes behind its back.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use testbed::PATIENCE;
use testbed::action::Run;
use testbed::relay::Relay;
use testbed::second::Second;
use testbed::server::{Aim, ServerSpec, listeners};

use crate::kills::{self, CUT_OVER, Facts, READY, frozen};
use crate::step::{Step, send};
use crate::support::{NAME, NEW, OLD, World, alive, until};

/// The records that a step of a first swap is done, by the step's number.
const RESERVED: usize = 3;
const STARTED: usize = 5;

/// A swap in the midst of which something happens while its agent stands still after a record.
async fn meanwhile(
    world: &World,
    record: usize,
    happens: impl FnOnce() -> Result<()>,
) -> Result<Run> {
    world.server.strike(Some(Aim::Freeze(record)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (agent, records) = frozen(world).await?;
    assert_eq!(records, record, "it froze elsewhere");
    world.server.strike(None)?;
    happens()?;
    send("-CONT", agent)?;
    step.finish().await
}

/// Kills a process, and returns when it is gone: the agent looks at once.
fn kill(pid: u32) -> Result<()> {
    send("-KILL", pid)?;
    let deadline = Instant::now() + PATIENCE;
    while alive(pid) {
        ensure!(Instant::now() < deadline, "process {pid} outlives SIGKILL");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_after_it_was_checked_is_nobodys_loss() -> Result<()> {
    let world = kills::world().await?;
    let load = world.load().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let (_, b) = world.server.slot_ports();
    let mut thief = None;
    let run = meanwhile(&world, RESERVED, || {
        thief = Some(TcpListener::bind((Ipv4Addr::LOCALHOST, b))?);
        Ok(())
    })
    .await?
    .ended(4, "failed");
    assert!(run.stdout.contains("ended before it was ready"), "{run}");
    drop(thief);
    // A process that another test begins has our files for a moment.
    until("nobody listens", || listeners(b).is_ok_and(|pids| pids.is_empty())).await?;
    assert_eq!(Facts::of(&world)?, before, "{run}");
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// The old model dies by itself: the new one is what brings the service back.
async fn without_its_old_model(record: usize) -> Result<()> {
    let world = kills::world().await?;
    let old = world.old.pid;
    let run = meanwhile(&world, record, || kill(old)).await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, NEW, "{run}");
    Ok(())
}

#[tokio::test]
async fn a_swap_whose_old_model_dies_in_the_midst_of_it_is_promoted() -> Result<()> {
    tokio::try_join!(without_its_old_model(READY), without_its_old_model(CUT_OVER))?;
    Ok(())
}

#[tokio::test]
async fn a_swap_that_loses_its_agent_and_its_old_model_is_finished_by_the_next_command()
-> Result<()> {
    let world = kills::world().await?;
    kills::orphaned(&world, Aim::After(CUT_OVER), world.action("swap", NEW, &[])?).await?;
    kill(world.old.pid)?;
    let run = Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "promoted");
    assert!(run.stdout.contains("taken up again: its agent ended"), "{run}");
    assert_eq!(world.serves().await?, NEW, "{run}");
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "unchanged");
    Step::run(world.action("swap", "Qwen/Third", &[])?).await?.ended(0, "promoted");
    Ok(())
}

#[tokio::test]
async fn a_new_model_that_finds_nobody_to_take_over_from_is_started_by_the_next_swap() -> Result<()>
{
    let world = kills::world().await?;
    let old = world.old.pid;
    let run = meanwhile(&world, RESERVED, || kill(old)).await?.ended(4, "failed");
    for text in ["failed: nobody serves: Qwen/Old in slot a has ended", "run the swap again"] {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
    }
    Step::run(world.action("swap", NEW, &[])?).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    Ok(())
}

/// The new model dies by itself.
async fn without_its_new_model(record: usize, code: i32, outcome: &str) -> Result<()> {
    let world = kills::world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let candidate = || {
        let all = world.server.leftovers().into_iter();
        let mut ours = all.filter(|line| line.contains(NEW) && line.contains("stub-engine"));
        let pid = ours.next().and_then(|line| line.split_once(':')?.0.parse().ok());
        kill(pid.context("no candidate")?)
    };
    let run = meanwhile(&world, record, candidate).await?.ended(code, outcome);
    assert_eq!(world.serves().await?, OLD, "{run}");
    assert_eq!(Facts::of(&world)?, before, "{run}");
    Ok(())
}

#[tokio::test]
async fn a_swap_whose_new_model_dies_at_any_step_before_promote_leaves_the_old_one() -> Result<()> {
    tokio::try_join!(
        without_its_new_model(STARTED, 4, "failed"),
        without_its_new_model(READY, 4, "failed")
    )?;
    without_its_new_model(CUT_OVER, 5, "rolled-back").await
}

#[tokio::test]
async fn another_tool_that_reloads_nginx_all_the_time_loses_no_request() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let master = Pid::from_raw(i32::try_from(world.server.nginx_master()?)?).context("pid 0")?;
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let tool = std::thread::spawn(move || {
        let mut reloads = 0;
        while !is_over.load(Ordering::Relaxed) {
            kill_process(master, Signal::HUP)?;
            reloads += 1;
            std::thread::sleep(Duration::from_millis(150));
        }
        anyhow::Ok(reloads)
    });
    let run = Step::run(world.action("swap", NEW, &[])?).await?.ended(0, "promoted");
    over.store(true, Ordering::Relaxed);
    let reloads = tool.join().ok().context("the tool")??;
    assert!(reloads > 3, "only {reloads} reloads\n{run}");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// Every program of a user shares them (`fs.inotify.max_user_instances`), and some take many.
#[tokio::test]
async fn a_server_whose_kernel_has_no_watches_left_swaps_and_aborts_all_the_same() -> Result<()> {
    let mut world = kills::world().await?;
    let url = format!("http://{}/v1/models", world.server.nginx_addr());
    world.settings.verify = format!("{{ url: {url:?} }}");
    world.server.strike(Some(Aim::Unwatched))?;
    Step::run(world.action("swap", NEW, &[])?).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    world.settings.flags = "--stub-load-time 600s".to_owned();
    let mut step = Step::start(world.action("swap", "Qwen/Third", &[])?)?;
    step.says("→ await_ready").await?;
    Step::run(world.action("abort", NEW, &[])?).await?.ended(0, "aborted");
    step.finish().await?.ended(6, "aborted");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn two_services_behind_one_nginx_are_swapped_at_once() -> Result<()> {
    let second = Second::on_free_ports()?;
    let upstream_file = Box::new(second.upstreams());
    let world = World::on(ServerSpec { upstream_file, ..ServerSpec::default() }, &[]).await?;
    world.server.start_by_hand(&crate::support::engine("Qwen/OldCode", second.a)?, &[])?;
    let load = world.load().await?;
    let config = second.config(&world.config("Qwen/NewCode"), world.server.ports());
    let other = world.action("swap", "Qwen/NewCode", &[])?.with_config(&config)?;
    let (one, other) =
        tokio::try_join!(Step::run(world.action("swap", NEW, &[])?), Step::run(other))?;
    let (one, other) = (one.ended(0, "promoted"), other.ended(0, "promoted"));
    assert_eq!(world.serves().await?, NEW, "{one}\n{other}");
    let text = fs::read_to_string(world.server.nginx_config())?;
    for port in [world.server.slot_ports().1, second.b] {
        assert_eq!(text.matches(&format!("server 127.0.0.1:{port};")).count(), 1, "{text}");
    }
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_state_folder_of_somebody_else_is_refused() -> Result<()> {
    let world = World::start().await?;
    let state = world.server.state_dir();
    let config = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&state, Some(65534), None)?;
        world.config(NEW)
    } else {
        // A folder of root's in which everybody may write.
        world.config(NEW).replace(&state.display().to_string(), "/tmp")
    };
    assert_ne!(fs::metadata("/tmp")?.uid(), 65534);
    let action = world.action("swap", NEW, &[])?.with_config(&config)?;
    let said = ["the state folder ", " belongs to user ", "chown "];
    Step::run(action).await?.refused(3, &said);
    assert_eq!(listeners(world.server.slot_ports().1)?, [0_u32; 0]);
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn a_journal_of_a_newer_agent_is_refused_and_an_older_ones_is_understood() -> Result<()> {
    let world = kills::world().await?;
    let load = world.load().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    kills::orphaned(&world, Aim::After(CUT_OVER), world.action("swap", NEW, &[])?).await?;
    let swap = kills::swap(&world)?;
    let path = world.server.state_dir().join("chat/swaps").join(&swap).join("journal.ndjson");
    let text = fs::read_to_string(&path)?;
    let newer = text.replace("{\"v\":2,", "{\"v\":3,");
    assert_ne!(newer, text);
    fs::write(&path, &newer)?;
    let after = Facts::of(&world)?;
    for command in ["swap", "repair"] {
        let run = Step::run(world.action(command, NEW, &[])?).await?;
        run.refused(3, &["has version 3; this binary knows 2", "use the version of model-swap"]);
    }
    // Nor is anything built on it where its agent has given the lease back.
    fs::write(world.server.state_dir().join("chat/lease.json"), "")?;
    let unknown = format!("swap {swap} may not be at its end, and nothing new begins before");
    for (command, code, first) in [
        ("plan", 7, unknown.as_str()),
        ("swap", 7, &unknown),
        ("rollback", 7, &unknown),
        ("repair", 3, ""),
    ] {
        let run = Step::run(world.action(command, "Qwen/Third", &[])?).await?;
        run.refused(code, &[first, "has version 3; this binary knows 2", "use the version of"]);
    }
    let left = format!("{swap} is not at its end: what is left of it is not known: ");
    world.run("status", NEW, &[]).await?.answered(&[&left, "has version 3"]);
    assert_eq!(Facts::of(&world)?, after, "something was done");
    assert_eq!(fs::read_to_string(&path)?, newer, "the journal was changed");
    assert_eq!(world.serves().await?, NEW);
    fs::write(&path, text.replace("{\"v\":2,", "{\"v\":1,"))?;
    Step::run(world.action("repair", NEW, &[])?).await?.ended(0, "rolled-back");
    assert_eq!(Facts::of(&world)?, before);
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_disk_that_is_full_at_any_write_costs_the_swap_and_nothing_else() -> Result<()> {
    let world = kills::world().await?;
    let load = world.load().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let mut refused = 0;
    for write in 1.. {
        world.server.strike(Some(Aim::Full(write)))?;
        let run = Step::run(world.action("swap", NEW, &[])?).await?;
        world.server.strike(None)?;
        if run.code == 0 {
            run.ended(0, "promoted");
            break;
        }
        refused += 1;
        // Whatever it came to: with space again, the next command finds the world as it was, or makes it so.
        let repair = Step::run(world.action("repair", NEW, &[])?).await?;
        assert_eq!(repair.code, 0, "write {write}\n{run}\n{repair}");
        if repair.outputs.get("outcome").is_some_and(|outcome| outcome == "promoted") {
            // Only the last word was missing.
            break;
        }
        assert_eq!(world.serves().await?, OLD, "write {write}\n{run}\n{repair}");
        assert_eq!(Facts::of(&world)?, before, "write {write}\n{run}\n{repair}");
    }
    assert!(refused > 12, "only {refused} writes were refused");
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

/// Fewer writes than there are up to the cutover. Those are the same as of a swap that is promoted.
const WRITES_BEFORE: usize = 12;

#[tokio::test]
async fn a_disk_that_is_full_at_any_write_of_the_way_back_costs_no_request() -> Result<()> {
    let mut world = kills::world().await?;
    let url = format!("http://{}/v1/models", world.server.nginx_addr());
    // Nobody ever gives the word.
    world.settings.verify = format!("{{ url: {url:?}, expect_model: \"Qwen/Other\", within: 1s }}");
    let load = world.load().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let mut refused = 0;
    for write in WRITES_BEFORE.. {
        world.server.strike(Some(Aim::Full(write)))?;
        let run = Step::run(world.action("swap", NEW, &[])?).await?;
        world.server.strike(None)?;
        let repair = Step::run(world.action("repair", NEW, &[])?).await?;
        assert_eq!(repair.code, 0, "write {write}\n{run}\n{repair}");
        assert_eq!(world.serves().await?, OLD, "write {write}\n{run}\n{repair}");
        assert_eq!(Facts::of(&world)?, before, "write {write}\n{run}\n{repair}");
        let swap = &crate::runner::events(&world)?[0]["swap"];
        let state = fs::read_to_string(world.server.state_dir().join(NAME).join("state.json"))?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        let history = state["history"].as_array().context("a history")?;
        assert!(
            history.iter().any(|past| past["swap"] == *swap),
            "write {write}: {swap} in {state}"
        );
        // An agent that is refused a record ends, and its step has another one bring the swap to its end.
        let is_struck = run.stdout.contains("the agent is gone");
        if run.code == 5 && !is_struck && repair.outputs["outcome"] == "unchanged" {
            break;
        }
        if run.stdout.contains("✓ cut_over a -> b") {
            refused += 1;
        }
    }
    assert!(refused > 6, "only {refused} writes were refused");
    load.stop().await.assert_clean();
    Ok(())
}

/// What lies in the folders of brought binaries, and how long each file is.
fn brought(world: &World) -> Vec<(String, u64)> {
    let folders =
        fs::read_dir(world.server.state_dir().join("bin")).into_iter().flatten().flatten();
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let file = |file: fs::DirEntry| {
        let length = file.metadata().map_or(0, |found| found.len());
        (file.file_name().to_string_lossy().into_owned(), length)
    };
    files.map(file).collect()
}

#[tokio::test]
async fn a_binary_that_is_cut_on_its_way_is_never_run_and_is_brought_again() -> Result<()> {
    let world = World::start().await?;
    let relay = crate::support::relayed::relay(&world).await?;
    let step = Step::start(crate::support::relayed::through(&relay, &world)?)?;
    crate::step::until("a part of the binary", || {
        Ok(brought(&world).iter().any(|(_, length)| *length > 100_000).then_some(()))
    })
    .await?;
    relay.cut();
    let there = brought(&world);
    assert!(there.iter().all(|(name, _)| name.starts_with(".model-swap.")), "too late: {there:?}");
    // Nothing was asked of the server yet, so that nothing goes on there.
    step.finish().await?.refused(3, &["the agent could not be installed"]);
    // What its shell was writing, it takes away itself.
    let is_clear = || Ok(brought(&world).is_empty().then_some(()));
    crate::step::until("nothing of the binary", is_clear).await?;
    let again = Step::start(crate::support::relayed::through(&relay, &world)?)?;
    let run = again.finish().await?.ended(0, "promoted");
    let whole = fs::metadata(crate::support::binary())?.len();
    let there = brought(&world);
    assert!(there.contains(&("model-swap".to_owned(), whole)), "{there:?}\n{run}");
    Ok(())
}

/// A step whose binary is on its way, and the file that the server writes it to.
async fn on_its_way(world: &World, relay: &Relay) -> Result<(Step, PathBuf)> {
    let before = parts(world);
    let step = Step::start(crate::support::relayed::through(relay, world)?)?;
    let part = crate::step::until("a part of the binary", || {
        Ok(parts(world).into_iter().find(|part| {
            !before.contains(part) && fs::metadata(part).is_ok_and(|part| part.len() > 100_000)
        }))
    })
    .await?;
    Ok((step, part))
}

/// The files that binaries are being brought in.
fn parts(world: &World) -> Vec<PathBuf> {
    let folders =
        fs::read_dir(world.server.state_dir().join("bin")).into_iter().flatten().flatten();
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).filter(|path| !path.ends_with("model-swap")).collect()
}

#[tokio::test]
async fn what_is_left_of_a_push_whose_shell_was_killed_is_cleared_by_the_next_and_no_other()
-> Result<()> {
    let world = World::start().await?;
    let (cut, silent) = (
        crate::support::relayed::relay(&world).await?,
        crate::support::relayed::relay(&world).await?,
    );
    // The server's side of one dies with its connection, as where logind ends what is left of a session.
    let (step, dead) = on_its_way(&world, &cut).await?;
    let shell: u32 = dead.extension().and_then(|pid| pid.to_str()).context("a pid")?.parse()?;
    kill(shell)?;
    cut.cut();
    step.finish().await?.refused(3, &["the agent could not be installed"]);
    assert!(dead.exists(), "somebody else cleared it");
    // Another one stands still: nothing comes any more, and nobody has said so.
    let (step, living) = on_its_way(&world, &silent).await?;
    silent.swallow();
    step.kill()?;

    Step::run(world.action("swap", NEW, &[])?).await?.ended(0, "promoted");
    assert_eq!((dead.exists(), living.exists()), (false, true));
    silent.cut();
    crate::step::until("its shell has cleared up", || Ok((!living.exists()).then_some(()))).await?;
    Ok(())
}
