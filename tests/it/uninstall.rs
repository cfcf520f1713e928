//! `uninstall`: what serves runs on, and everything else of the service goes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use testbed::server::listeners;
use tokio::process::Command;

use crate::commands::Terminal;
use crate::step::Step;
use crate::support::guest::{GuestWorld, on_guest, until as until_on_guest};
use crate::support::scene::below;
use crate::support::{NEW, OLD, World, alive, until};

/// Names of all files under the state folder.
fn files(world: &World) -> Result<Vec<String>> {
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut found: Vec<_> = below(&world.server.state_dir())?.iter().filter_map(name).collect();
    found.sort();
    Ok(found)
}

/// Exit code and words of a command at a terminal.
pub(crate) async fn says(terminal: &Terminal, words: &str) -> Result<(Option<i32>, String)> {
    let output = terminal.run(words).await?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

fn binaries(world: &World) -> PathBuf {
    world.server.state_dir().join("bin")
}

pub(crate) const UNINSTALL: &str = "uninstall --ssh-key key --known-hosts hosts";

#[tokio::test]
async fn what_serves_runs_on_and_everything_else_goes() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let terminal = Terminal::at(&world)?;
    let load = world.load().await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let config = fs::read(world.server.nginx_config())?;

    let (code, said) = says(&terminal, UNINSTALL).await?;
    assert_eq!(code, Some(2), "{said}");
    for text in ["Qwen/Old", "is kept warm in slot a until", "--retire-now"] {
        assert!(said.contains(text), "no {text:?} in {said}");
    }
    assert!(alive(world.old.pid) && world.server.state_dir().join("chat/state.json").exists());

    // Another service of this server needs the binaries and what both share.
    let other = world.server.state_dir().join("code");
    fs::create_dir(&other)?;
    let (code, said) = says(&terminal, &format!("{UNINSTALL} --retire-now")).await?;
    assert_eq!(code, Some(0), "{said}");
    for text in ["serves on, port", "a plain process", "used by code", "what serves writes to it"] {
        assert!(said.contains(text), "no {text:?} in {said}");
    }
    assert!(!alive(world.old.pid) && alive(world.old.innocent), "{said}");
    assert_eq!(listeners(a)?, [0_u32; 0], "{said}");
    let serving = *listeners(b)?.first().context("nothing serves")?;
    world.until_serves(NEW).await?;
    assert_eq!(fs::read(world.server.nginx_config())?, config);
    assert_eq!(files(&world)?, ["host.lock", "key", "model-swap", "replica.log"], "{said}");

    fs::remove_dir(other)?;
    let (code, said) = says(&terminal, UNINSTALL).await?;
    assert_eq!(code, Some(0), "{said}");
    until("nothing but the log is left", || {
        files(&world).is_ok_and(|left| left == ["replica.log"])
    })
    .await?;
    assert!(!binaries(&world).exists(), "{said}");
    assert_eq!(*listeners(b)?.first().context("nothing serves")?, serving);
    load.stop().await.assert_clean();

    // Whoever changes their mind swaps again: what serves is adopted.
    world.run("swap", "Qwen/Next", &[]).await?.ended(0, "promoted");
    Ok(())
}

/// With systemd there are units and their environments as well.
#[test]
fn a_server_with_systemd_is_given_back_as_it_was() -> Result<()> {
    on_guest(async |world| {
        let find =
            "find /var/lib /etc/systemd/system /etc/nginx -not -path '/var/lib/systemd/*' | sort";
        let everything = ["sh", "-c", find];
        let before = world.guest.run(&everything).await?;
        let access = (world.guest.private_key(), world.guest.known_hosts());
        let plain = world.config(NEW)?;
        let elsewhere = format!("{plain}state_dir: /srv/state\n");
        world.guest.run(&["mkdir", "/srv/state"]).await?;
        let run = async |config: &str, command: &str| {
            let action = world.action(command, NEW, &[("wait", "retired")])?;
            Step::run(action.with_config(config)?).await
        };
        for config in [&plain, &elsewhere] {
            let terminal = Terminal::with(config, access)?;
            let (code, said) = says(&terminal, "doctor --ssh-key key --known-hosts hosts").await?;
            // The new model would run as the user of the old one.
            let weights = "/var/lib/vllm/.cache/huggingface/hub/models--Qwen--New is not there yet";
            assert!(code == Some(0) && said.contains(weights), "{said}");
            let action = world.action("swap", NEW, &[])?.with_config(config)?;
            Step::run(action).await?.ended(0, "promoted");
            run(config, "rollback").await?.ended(0, "rolled-back");
            let (code, said) = says(&terminal, UNINSTALL).await?;
            assert_eq!(code, Some(0), "{said}");
            let told = ["serves on, port 8001", "vllm.service"];
            assert!(told.iter().all(|text| said.contains(text)), "{said}");
            assert_eq!(world.guest.run(&everything).await?, before, "{said}");
            world.guest.run(&["test", "!", "-e", "/usr/local/libexec/model-swap"]).await?;
            world.until_serves(OLD).await?;
        }

        // A unit of ours goes on with its secrets. What the swap keeps warm goes, whoever keeps it: the swap's agent, or
        // the one that systemd keeps, once that one is dead; and nothing comes back with either.
        let action = world.action("swap", NEW, &[])?;
        Step::run(action.with_config(&elsewhere)?).await?.ended(0, "promoted");
        given_back(world, &Terminal::with(&elsewhere, access)?, 'b').await?;
        world.until_serves(NEW).await?;
        let action = world.action("swap", OLD, &[])?;
        Step::run(action.with_config(&plain.replace(NEW, OLD))?).await?.ended(0, "promoted");
        let first = world.agent().await?;
        world.guest.run(&["kill", "-KILL", &first]).await?;
        until_on_guest("systemd's agent goes on", async || Ok(world.agent().await? != first))
            .await?;
        given_back(world, &Terminal::with(&plain, access)?, 'a').await?;
        world.until_serves(OLD).await
    })
}

/// Nothing is left of a service but the unit that serves, and nothing of ours runs.
async fn given_back(world: &GuestWorld, terminal: &Terminal, slot: char) -> Result<()> {
    let (code, said) = says(terminal, &format!("{UNINSTALL} --retire-now")).await?;
    assert_eq!(code, Some(0), "{said}");
    let secrets = format!(
        "/var/lib/model-swap/env.d/model-swap-chat.{slot}.service: the variables of that unit"
    );
    assert!(said.contains(&secrets), "{said}");
    until_on_guest("all agents end", async || {
        Ok(world.guest.run(&["pgrep", "--full", "model-swap agent"]).await.is_err())
    })
    .await?;
    let find = "find /var/lib/model-swap /srv/state /etc/systemd/system -name '*model-swap*' -o -name chat";
    let left = world.guest.run(&["sh", "-c", find]).await?;
    let unit = format!("model-swap-chat.{slot}.service");
    let foreign = |line: &&str| !line.ends_with(&unit) && !line.ends_with("lib/model-swap");
    assert_eq!(left.lines().filter(foreign).collect::<Vec<_>>(), [""; 0], "{said}");
    assert!(!world.is_armed()?, "{said}");
    Ok(())
}

/// As an agent of an older release whose binary was brought anew.
#[tokio::test]
async fn a_binary_that_runs_without_its_file_is_left_by_the_name_of_its_folder() -> Result<()> {
    let world = World::start().await?;
    let terminal = Terminal::at(&world)?;
    let folder = binaries(&world).join("a".repeat(64));
    let binary = folder.join("model-swap");
    fs::create_dir_all(&folder)?;
    fs::copy("/bin/sleep", &binary)?;
    let _runs = Command::new(&binary).arg("infinity").kill_on_drop(true).spawn()?;
    fs::remove_file(&binary)?;

    let (code, said) = says(&terminal, UNINSTALL).await?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("{}: the binary in it runs", folder.display())), "{said}");
    assert!(folder.exists(), "{said}");
    Ok(())
}

#[tokio::test]
async fn what_an_agent_left_unfinished_is_in_the_way() -> Result<()> {
    let world = World::start().await?;
    let terminal = Terminal::at(&world)?;
    world.run("status", NEW, &[]).await?.answered(&[]);
    let process = r#"{"pid":1,"start":1}"#;
    let lease = format!(
        r#"{{"swap":"s-1","since":"2026-11-23T09:15:00Z","process":{process},"command":"swap","requester":{{}}}}"#
    );
    fs::write(world.server.state_dir().join("chat/lease.json"), lease)?;
    let (code, said) = says(&terminal, &format!("{UNINSTALL} --retire-now")).await?;
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("swap s-1 was left unfinished") && said.contains("model-swap abort"),
        "{said}"
    );
    assert!(binaries(&world).exists() && world.old_runs()?);
    Ok(())
}
