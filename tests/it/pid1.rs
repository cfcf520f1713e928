//! The binary as the first process of a container: a signal reaches the work, who is left behind is reaped, and the exit is
//! the work's.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use testbed::guest::ran_as_root;

use crate::runner;
use crate::step::{processes_with, send, until};
use crate::support::{NEW, OLD};

/// The parent of a process, and what is its own of the ids that it has in each namespace (proc_pid_status(5)).
fn ids(pid: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let last = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().last()?.parse().ok()
    };
    Some((last("PPid:")?, last("NSpid:")?))
}

/// The first process of the namespace that a process has made.
fn first_of(parent: u32) -> Option<u32> {
    let all = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| ids(*pid) == Some((parent, 1)))
}

/// Leaves a process behind in the namespace of `first`, whose parent has ended.
fn leave_behind(first: u32) -> Result<u32> {
    let naps = format!("86400.{}", std::process::id());
    let status = Command::new("nsenter")
        .args(["--target", &first.to_string(), "--pid", "sh", "-c", "sleep \"$0\" &", &naps])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("nsenter (Debian: util-linux)")?;
    ensure!(status.success(), "nsenter: {status}");
    let found = processes_with(&format!("sleep {naps}"));
    let [line] = &found[..] else { anyhow::bail!("not one sleeper: {found:?}") };
    Ok(line.split_once(' ').context("a process id")?.0.parse()?)
}

#[tokio::test]
async fn a_first_process_passes_signals_on_reaps_who_is_left_and_ends_as_its_child() -> Result<()> {
    if ran_as_root()? {
        return Ok(());
    }
    let world = runner::world().await?;
    let action = world.action("swap", NEW, &[])?.as_first_process();
    let (step, candidate) = runner::in_mid_swap(&world, action).await?;
    let first = first_of(step.pid()).context("nobody is first")?;

    let orphan = leave_behind(first)?;
    until("it is the first one's", || {
        Ok((ids(orphan).map(|ids| ids.0) == Some(first)).then_some(()))
    })
    .await?;
    send("-KILL", orphan)?;
    // A zombie would still be there.
    let gone = || !PathBuf::from(format!("/proc/{orphan}")).exists();
    until("it is reaped", || Ok(gone().then_some(()))).await?;
    assert!(
        crate::support::alive(first),
        "it took the orphan's end for its child's:\n{}",
        step.said()
    );

    send("-INT", first)?;
    let run = step.finish().await?.ended(6, "aborted");
    assert!(run.stdout.contains("stopped by a signal: asking the server to abort"), "{run}");
    assert_eq!(world.serves().await?, OLD);
    candidate.thaw_if_there();
    assert_eq!(runner::outcome(&world).await?, "aborted");
    Ok(())
}
