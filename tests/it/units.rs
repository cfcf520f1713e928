//! Replicas as systemd units: written, enabled before they get traffic, watched, stopped and removed; and somebody's own unit,
//! which is only stopped and started.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use testbed::PATIENCE;
use testbed::guest::GuestSpec;
use testbed::load::{Kind, Load, LoadSpec};
use testbed::service::NAME;

use crate::step::{LOOK_EVERY, Step};
use crate::support::guest::{GuestWorld, on_guest, on_guest_of};
use crate::support::{NEW, OLD};

/// The units of the two slots.
const UNITS: [&str; 2] = ["model-swap-chat.a.service", "model-swap-chat.b.service"];
const NEWER: &str = "Qwen/Newer";

/// One property of a unit, as systemd has it.
async fn property(world: &GuestWorld, unit: &str, name: &str) -> Result<String> {
    let said = world.guest.run(&["systemctl", "show", "--value", "--property", name, unit]).await?;
    Ok(said.trim().to_owned())
}

/// What a unit is, in three words: whether it runs, whether a boot starts it, whether it is started again.
async fn state(world: &GuestWorld, unit: &str) -> Result<String> {
    let mut words = Vec::new();
    for name in ["ActiveState", "UnitFileState", "Restart"] {
        words.push(property(world, unit, name).await?);
    }
    Ok(words.join(" "))
}

/// Files that are there only while a unit of ours is.
async fn left(world: &GuestWorld) -> Result<Vec<String>> {
    let folders = ["/etc/systemd/system", "/var/lib/model-swap/env.d"];
    let mut found = Vec::new();
    for folder in folders {
        let listed = world.guest.run(&["find", folder, "-name", "model-swap-chat.*"]).await;
        found.extend(listed.unwrap_or_default().lines().map(str::to_owned));
    }
    Ok(found)
}

#[test]
fn traffic_goes_from_somebodys_unit_to_ours_and_from_slot_to_slot() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        let load = world.load().await?;
        let plan = world.run("plan", NEW, &[]).await?;
        assert!(plan.stdout.contains("as unit model-swap-chat.b.service"), "{plan}");
        let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert_eq!(state(world, UNITS[1]).await?, "active enabled always", "{run}");
        assert_eq!(state(world, "vllm.service").await?, "inactive disabled always", "{run}");
        assert_eq!(property(world, UNITS[1], "User").await?, uid_of(world, "vllm").await?);
        let modes = ["stat", "--format=%U %a", "/var/lib/model-swap/env.d", &environment(UNITS[1])];
        assert_eq!(world.guest.run(&modes).await?, "root 700\nroot 600\n");
        let logs = world.run("logs", NEW, &[]).await?;
        assert!(
            logs.stdout.contains("Application startup complete"),
            "what the engine said: {logs}"
        );

        let run = world.run("swap", NEWER, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert_eq!(state(world, UNITS[0]).await?, "active enabled always", "{run}");
        let only: Vec<_> =
            left(world).await?.into_iter().filter(|path| !path.contains("chat.a")).collect();
        assert!(only.is_empty(), "{only:?}");
        load.stop().await.assert_clean();
        Ok(())
    })
}

fn environment(unit: &str) -> String {
    format!("/var/lib/model-swap/env.d/{unit}")
}

async fn uid_of(world: &GuestWorld, user: &str) -> Result<String> {
    Ok(world.guest.run(&["id", "-u", user]).await?.trim().to_owned())
}

/// Warm: somebody's unit runs on, and gets its traffic back. Cold: it was stopped, and is started by its own means.
#[test]
fn a_rollback_to_somebodys_unit_starts_that_unit() -> Result<()> {
    on_guest(async |world| {
        let load = world.load().await?;
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        assert_eq!(state(world, "vllm.service").await?, "active enabled always", "it is warm");
        world.run("rollback", NEW, &[("wait", "retired")]).await?.ended(0, "rolled-back");
        world.until_serves(OLD).await?;
        assert_eq!(left(world).await?, Vec::<String>::new());

        world.settings.retain = "0s".to_owned();
        world.run("swap", NEWER, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert_eq!(state(world, "vllm.service").await?, "inactive disabled always");
        let run =
            world.run("rollback", NEWER, &[("wait", "retired")]).await?.ended(0, "rolled-back");
        world.until_serves(OLD).await?;
        assert_eq!(state(world, "vllm.service").await?, "active enabled always", "{run}");
        assert_eq!(left(world).await?, Vec::<String>::new());
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// Its end is seen at once and told with its own words; and nothing of it is left.
#[test]
fn a_unit_whose_model_dies_while_it_loads_is_removed_and_quoted() -> Result<()> {
    on_guest(async |world| {
        let load = world.load().await?;
        world.settings.flags = "--stub-load-time 600s --stub-die-after 300ms".to_owned();
        let run = world.run("swap", NEW, &[]).await?.ended(4, "failed");
        for text in ["✗ await_ready b after ", "Main process exited", "Qwen/Old serves from slot a"]
        {
            assert!(run.stdout.contains(text), "no {text:?} in {run}");
        }
        assert_eq!(left(world).await?, Vec::<String>::new());
        assert_eq!(state(world, "vllm.service").await?, "active enabled always");

        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        assert_eq!(state(world, UNITS[1]).await?, "active disabled no", "no boot needs it yet");
        Step::run(world.action("abort", NEW, &[])?).await?.ended(0, "aborted");
        step.finish().await?.ended(6, "aborted");
        assert_eq!(left(world).await?, Vec::<String>::new());
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// What its unit has started again is still the model on record: nothing is adopted, and it is retired as ever.
#[test]
fn a_promoted_model_that_dies_is_started_again() -> Result<()> {
    on_guest(async |world| {
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let first = property(world, UNITS[1], "MainPID").await?;
        world.guest.run(&["kill", "-KILL", &first]).await?;
        let deadline = Instant::now() + PATIENCE;
        while property(world, UNITS[1], "NRestarts").await? == "0" {
            ensure!(Instant::now() < deadline, "nothing starts it again");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        world.until_serves(NEW).await?;
        assert_ne!(property(world, UNITS[1], "MainPID").await?, first);
        let run = world.run("swap", NEW, &[]).await?.ended(0, "unchanged");
        assert!(run.stdout.contains("already serves from slot b"), "{run}");
        Ok(())
    })
}

/// `on_timeout: cut` kills what a unit keeps, and the unit does not start it again.
#[test]
fn a_unit_that_is_not_drained_is_cut() -> Result<()> {
    let mut spec = GuestSpec::serving(OLD);
    spec.incumbent = Some((OLD.to_owned(), "--stub-token-delay 100ms".to_owned()));
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        world.settings.retain = "0s".to_owned();
        world.settings.drain = "{ timeout: 1s, on_timeout: cut }".to_owned();
        let mut long = LoadSpec::none(world.guest.nginx_addr(), NAME);
        (long.streams, long.stream_tokens) = (1, 100_000);
        let long = Load::start(long);
        long.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
        let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert!(run.stdout.contains("cutting what is left: 1 request in the engine"), "{run}");
        assert!(run.stdout.contains("had to be killed"), "{run}");
        assert_eq!(state(world, "vllm.service").await?, "inactive disabled always", "{run}");
        drop(long);
        world.until_serves(NEW).await
    })
}

/// Whatever argv and environment hold, systemd hands it on as it was written.
#[test]
fn systemd_hands_on_what_was_written() -> Result<()> {
    const WORD: &str = r#"100% %n $HOME $$ a"b\c'd ü ;"#;
    const VALUE: &str = "100% %n $HOME ${HOME} `x` a\"b\\c'd\nsecond line # no comment\t\\";
    on_guest(async |world| {
        world.settings.flags = format!("--download-dir {}", shell_words(WORD));
        world.settings.env = format!("ODD: {}", serde_json::to_string(VALUE)?);
        let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let main = property(world, UNITS[1], "MainPID").await?;
        let read = |file: &str| -> Result<Vec<String>> {
            let bytes = fs::read(world.guest.file(&format!("/proc/{main}/{file}"))?)?;
            Ok(bytes
                .split(|byte| *byte == 0)
                .map(|w| String::from_utf8_lossy(w).into_owned())
                .collect())
        };
        let argv = read("cmdline")?;
        let at = argv.iter().position(|word| word == "--download-dir").context("the flag")?;
        assert_eq!(argv[at + 1], WORD, "{run}");
        assert_eq!(argv[0], "/opt/vllm/bin/vllm");
        let environment = read("environ")?;
        assert!(environment.contains(&format!("ODD={VALUE}")), "{environment:?}");
        Ok(())
    })
}

/// As a person quotes a word.
fn shell_words(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
