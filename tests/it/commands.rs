//! The commands beside `swap`, from a workflow and from a terminal, and how the agent gets to the server.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use testbed::end;
use testbed::relay::Relay;
use testbed::server::listeners;

use crate::step::{Step, until};
use crate::support::{NAME, NEW, OLD, World, binary};

/// The plan within what was said: its group of lines.
fn plan_in(said: &str) -> Option<&str> {
    let from = said.find("::group::Plan for")?;
    said[from..].split_once("::endgroup::").map(|(plan, _)| plan)
}

#[tokio::test]
async fn plan_changes_nothing_and_prints_what_swap_then_does() -> Result<()> {
    let world = World::start().await?;
    let (_, b) = world.server.slot_ports();
    let look = || {
        anyhow::Ok((
            fs::read(world.server.nginx_config())?,
            fs::metadata(world.server.nginx_config())?.ino(),
            world.server.nginx_workers()?,
            listeners(b)?,
        ))
    };
    let before = look()?;
    let leftovers = world.server.leftovers();
    let plan = Step::run(world.action("plan", NEW, &[])?).await?.answered(&[
        "blue-green",
        "now   slot a",
        "then  slot b",
        "retire a",
    ]);
    assert_eq!(look()?, before, "plan changed something\n{plan}");
    // What answered may take a moment to end.
    until("plan leaves no process", || Ok((world.server.leftovers() == leftovers).then_some(())))
        .await?;
    let state = world.server.state_dir().join(NAME);
    let swaps = fs::read_dir(state.join("swaps"))?.count();
    assert!(swaps == 0 && !state.join("state.json").exists(), "plan left a record\n{plan}");
    assert_eq!(plan.outputs.keys().collect::<Vec<_>>(), ["plan-digest"], "{plan}");
    assert!(plan.summary.contains("reserve_slot&#160;b"), "{plan}");

    let swap = Step::run(world.action("swap", NEW, &[])?).await?.ended(0, "promoted");
    assert_eq!(plan_in(&swap.stdout).context("a plan")?, plan_in(&plan.stdout).context("a plan")?);
    let steps = plan_in(&plan.stdout).into_iter().flat_map(str::lines);
    let planned: Vec<_> = steps
        .map_while(|line| if line.starts_with("later") { None } else { Some(line) })
        .filter_map(|line| line.split("  ").map(str::trim).filter(|part| !part.is_empty()).nth(1))
        .filter(|step| step.contains(' ') && !step.contains(':'))
        .collect();
    let done: Vec<_> = swap
        .stdout
        .lines()
        .filter_map(|line| line.split_once("✓ ")?.1.split(" in ").next())
        .collect();
    assert_eq!(done.len(), 5, "{swap}");
    assert_eq!(done, planned, "{swap}");

    Step::run(world.action("plan", NEW, &[])?).await?.answered(&["unchanged: "]);
    Ok(())
}

#[tokio::test]
async fn status_tells_what_is_before_and_after_a_swap() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let cells = |said: &str, slot: &str| -> Vec<String> {
        let row = said.lines().find(|line| line.starts_with(&format!("  {slot} ")));
        row.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let before = Step::run(world.action("status", NEW, &[])?).await?;
    let before =
        before.answered(&[&format!("nginx sends traffic to port {a}"), "nobody is at work"]);
    assert_eq!(cells(&before.stdout, "a")[2..6], ["serving", "yes", "0", OLD], "{before}");
    assert_eq!(cells(&before.stdout, "b")[2..], ["free", "no", "-", "-"], "{before}");
    assert!(!before.stdout.contains("history"), "{before}");

    let swap = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let after = Step::run(world.action("status", NEW, &[])?).await?.answered(&[
        &format!("nginx sends traffic to port {b}"),
        &format!("serving is the result of {}", swap.output("swap-id")),
        "a warm rollback is possible until",
        &format!("no command is at work; the agent of {} (pid ", swap.output("swap-id")),
    ]);
    assert_eq!(cells(&after.stdout, "a")[2..6], ["retained", "yes", "0", OLD], "{after}");
    assert_eq!(cells(&after.stdout, "b")[2..6], ["serving", "yes", "0", NEW], "{after}");
    assert!(after.outputs.is_empty(), "{after}");
    Ok(())
}

#[tokio::test]
async fn logs_are_those_of_the_latest_candidate_also_of_one_that_failed() -> Result<()> {
    let mut world = World::start().await?;
    let none = world.run("logs", NEW, &[]).await?;
    none.refused(2, &["no replica of service chat was started by model-swap yet"]);
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let logs = Step::run(world.action("logs", NEW, &[])?).await?;
    let logs = logs.answered(&["Application startup complete", "Starting to load model Qwen/New"]);
    assert_eq!(logs.stdout.matches("::stop-commands::").count(), 1, "{logs}");

    world.settings.flags = "--stub-load-time 30s --stub-die-after 50ms".to_owned();
    world.run("swap", "Qwen/Big", &[]).await?.ended(4, "failed");
    let logs = Step::run(world.action("logs", NEW, &[])?).await?;
    let logs = logs.answered(&["Starting to load model Qwen/Big", "CUDA out of memory"]);
    assert!(!logs.stdout.contains("Application startup complete"), "{logs}");
    Ok(())
}

/// Runs the binary as a person does, with the server's files in a folder of their own.
pub(crate) struct Terminal {
    /// What ends with the server that is spoken to.
    mark: Option<(&'static str, String)>,
    /// Where the person is.
    pub(crate) folder: tempfile::TempDir,
}

impl Terminal {
    pub(crate) fn at(world: &World) -> Result<Self> {
        let access = (world.server.private_key(), world.server.known_hosts());
        let terminal = Self::with(&world.config(NEW), access)?;
        Ok(Self { mark: Some(world.server.mark()), ..terminal })
    }

    /// In a folder with a configuration, a key and the host keys.
    pub(crate) fn with(config: &str, (key, hosts): (&str, &str)) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, text) in [("model-swap.yaml", config), ("key", key), ("hosts", hosts)] {
            fs::write(folder.path().join(name), text)?;
        }
        Ok(Self { mark: None, folder })
    }

    pub(crate) async fn run(&self, words: &str) -> Result<Output> {
        let mut command = self.command(&binary());
        command.args(words.split_whitespace());
        tokio::task::spawn_blocking(move || end::run(&mut command)).await?
    }

    /// A program as the person starts it.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.folder.path())
            .env("USER", "ann")
            .envs(self.mark.clone())
            .current_dir(self.folder.path());
        command
    }

    /// What was said to a question or an order that was obeyed.
    async fn says(&self, words: &str) -> Result<String> {
        let output = self.run(words).await?;
        let said = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{words}: {}\n{said}\n{errors}", output.status);
        ensure!(!said.contains("::"), "a workflow command on a terminal:\n{said}");
        Ok(said)
    }
}

#[tokio::test]
async fn a_terminal_on_the_server_itself_needs_no_ssh() -> Result<()> {
    let world = World::start().await?;
    let terminal = Terminal::at(&world)?;
    let log = world.server.scratch().join("logs/sshd.log");
    let quiet = fs::read_to_string(&log)?;
    let plan = terminal.says("plan --host local").await?;
    assert!(
        plan.contains("Plan for chat: blue-green") && plan.contains("cut_over a -> b"),
        "{plan}"
    );
    let said = terminal.says("swap --host local --wait promoted").await?;
    assert!(said.contains("promoted: Qwen/New serves from slot b"), "{said}");
    world.until_serves(NEW).await?;
    let said = terminal.says("swap --host local").await?;
    assert!(said.contains("unchanged: "), "{said}");
    let said = terminal.says("swap --host local --force --model Qwen/Forced").await?;
    assert!(said.contains("promoted: Qwen/Forced serves from slot a"), "{said}");
    let said = terminal.says("logs --host local").await?;
    assert!(said.contains("Starting to load model Qwen/Forced"), "{said}");
    let said = terminal.says("rollback --host local").await?;
    assert!(said.contains("rolled-back: Qwen/New serves from slot b"), "{said}");
    world.until_serves(NEW).await?;
    assert_eq!(fs::read_to_string(&log)?, quiet, "somebody used ssh");
    Ok(())
}

#[tokio::test]
async fn a_terminal_elsewhere_swaps_over_ssh() -> Result<()> {
    let world = World::start().await?;
    let terminal = Terminal::at(&world)?;
    let access = "--ssh-key key --known-hosts hosts";
    let said = terminal.says(&format!("swap --config model-swap.yaml {access}")).await?;
    assert!(said.contains("promoted: Qwen/New serves from slot b"), "{said}");
    let said = terminal.says(&format!("status {access}")).await?;
    assert!(said.contains("promoted     Qwen/New"), "{said}");
    let output = terminal.run(&format!("rollback --swap-id s-never {access}")).await?;
    let said = String::from_utf8(output.stdout)?;
    assert_ne!(output.status.code(), Some(1), "{said}");
    assert_eq!(world.serves().await?, NEW, "{said}");
    Ok(())
}

#[tokio::test]
async fn wrong_arguments_are_bad_input_and_help_is_none() -> Result<()> {
    let world = World::start().await?;
    let terminal = Terminal::at(&world)?;
    let help = terminal.says("--help").await?;
    for command in ["plan", "swap", "rollback", "status", "logs", "history"] {
        assert!(help.contains(&format!("  {command} ")), "{help}");
    }
    assert!(!help.contains("agent"), "the server's side is shown\n{help}");
    for command in ["plan", "swap", "rollback", "status", "logs", "history"] {
        assert!(terminal.says(&format!("{command} --help")).await?.contains("--known-hosts"));
    }
    for (words, text) in [
        ("swap --modle x", "'--model'"),
        ("swpa", "'swap'"),
        ("swap --wait forever", "neither promoted nor retired"),
        ("status --force", "--force"),
        ("swap --service Chat", "Chat"),
        ("", "Usage"),
    ] {
        let output = terminal.run(words).await?;
        let errors = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{words}: {errors}");
        assert!(errors.contains(text), "{words}: {errors}");
    }
    for words in ["status --config none.yaml", "status --ssh-key none"] {
        let output = terminal.run(words).await?;
        let said = String::from_utf8(output.stdout)?;
        assert_eq!(output.status.code(), Some(2), "{words}: {said}");
        assert!(said.starts_with("error: cannot read") && said.contains("No such file"), "{said}");
    }
    Ok(())
}

/// The folder that the agent is brought to, and the file in it.
fn place(world: &World) -> Result<(PathBuf, PathBuf)> {
    let digest = Sha256::digest(fs::read(binary())?);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = world.server.state_dir().join("bin").join(digest);
    let file = folder.join("model-swap");
    Ok((folder, file))
}

#[tokio::test]
async fn the_agent_is_brought_once_and_kept_by_its_digest() -> Result<()> {
    let world = World::start().await?;
    let (folder, file) = place(&world)?;
    world.run("status", NEW, &[]).await?.answered(&[]);
    assert!(fs::read(&file)? == fs::read(binary())?, "what was brought is not what was sent");
    let first = fs::metadata(&file)?;
    assert_eq!(first.permissions().mode() & 0o777, 0o755);
    world.run("status", NEW, &[]).await?.answered(&[]);
    let second = fs::metadata(&file)?;
    assert_eq!((first.ino(), first.modified()?), (second.ino(), second.modified()?));
    let names: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["model-swap"]);
    Ok(())
}

#[tokio::test]
async fn a_transfer_that_breaks_installs_nothing_and_the_next_run_does() -> Result<()> {
    let world = World::start().await?;
    let (folder, file) = place(&world)?;
    let sshd = ([127, 0, 0, 1], world.server.ssh_port()).into();
    let relay = Relay::start(sshd, std::time::Duration::from_millis(40)).await?;
    let (from, to) = (world.server.ssh_port(), relay.address().port());
    let config = world.config(NEW).replace(&format!("port: {from} }}"), &format!("port: {to} }}"));
    let hosts = world.server.known_hosts().replace(&from.to_string(), &to.to_string());
    let action = world.action("swap", NEW, &[("known-hosts", &hosts)])?.with_config(&config)?;
    let step = Step::start(action)?;
    let part = until("a part of the binary", || {
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        let begun = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() > 0);
        Ok(files.map(|file| file.path()).find(begun))
    })
    .await?;
    relay.cut();
    assert_ne!(part, file, "it was cut too late for this test");
    step.finish().await?.refused(3, &["the agent could not be installed on"]);
    assert!(!file.exists(), "half a program is installed");
    assert_eq!(world.serves().await?, OLD);
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    Ok(())
}

#[tokio::test]
async fn a_program_that_arrived_damaged_does_not_take_its_place() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let brought = folder.path().join(".model-swap.1");
    // Bytes after its end run as well as the original and are not the original.
    let mut bytes = fs::read(binary())?;
    bytes.push(0);
    fs::write(&brought, bytes)?;
    fs::set_permissions(&brought, fs::Permissions::from_mode(0o755))?;
    let sent: String =
        Sha256::digest(fs::read(binary())?).iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new(&brought).args(["agent", "install", &sent]).output()?;
    let said = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("arrived damaged") && said.contains(&sent), "{said}");
    assert_eq!(fs::read_dir(folder.path())?.count(), 0, "something was left");
    Ok(())
}

#[tokio::test]
async fn a_program_that_was_damaged_on_the_server_is_told_of_and_nothing_is_done() -> Result<()> {
    let world = World::start().await?;
    let (_, file) = place(&world)?;
    world.run("status", NEW, &[]).await?.answered(&[]);
    for size in [0, 4096] {
        fs::File::options().write(true).open(&file)?.set_len(size)?;
        let run = Step::run(world.action("swap", NEW, &[])?).await?;
        run.refused(3, &["something else than the agent answered", "remove its folder"]);
    }
    assert_eq!(world.serves().await?, OLD);
    fs::remove_file(&file)?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    Ok(())
}
