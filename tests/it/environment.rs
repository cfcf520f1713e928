//! Everything around a swap that can be wrong: each refused with exit code 3, in words that say how to mend it, and nothing
//! started.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result};
use jiff::Timestamp;
use model_swap::host::process;
use model_swap::lease::Lease;
use model_swap::model::state::{Holder, Requester};
use testbed::guest::SLOTS;
use testbed::server::{free_port, listeners};

use crate::doctor::NVIDIA_SMI;
use crate::ssh::new_key;
use crate::step::{Step, send, until};
use crate::support::guest::on_guest;
use crate::support::{NEW, OLD, Run, World};

/// Runs a command with a configuration of its own, and asserts that it was refused as the environment's fault.
async fn refused(
    world: &World,
    (command, config): (&str, &str),
    inputs: &[(&str, &str)],
    texts: &[&str],
) -> Result<Run> {
    let action = world.action(command, NEW, inputs)?.with_config(config)?;
    let run = Step::run(action).await?.refused(3, texts);
    assert!(run.stdout.contains("hint: "), "nothing says how to mend it\n{run}");
    assert!(run.outputs.is_empty(), "{run}");
    Ok(run)
}

async fn swap(world: &World, config: &str, texts: &[&str]) -> Result<Run> {
    refused(world, ("swap", config), &[], texts).await
}

#[tokio::test]
async fn the_way_to_the_server() -> Result<()> {
    let world = World::start().await?;
    let config = world.config(NEW);
    let (key, public) = new_key("")?;
    let given = async |input: (&str, &str), texts: &[&str]| {
        refused(&world, ("swap", &config), &[input], texts).await
    };
    given(("ssh-key", &key), &["the server does not let us in", "authorized_keys"]).await?;
    let elsewhere = world.server.known_hosts().replace("127.0.0.1", "127.0.0.2");
    given(("known-hosts", &elsewhere), &["is not among the known hosts", "only then pin it"])
        .await?;
    let changed = format!("[127.0.0.1]:{} {public}\n", world.server.ssh_port());
    given(("known-hosts", &changed), &["is not the known one", "do not pin anything"]).await?;
    given(
        ("host", "deploy@no-such-host.invalid"),
        &["is not known by that name", "check host for a typing error"],
    )
    .await?;
    let closed = free_port()?.to_string();
    let nobody = config.replace(&world.server.ssh_port().to_string(), &closed);
    swap(&world, &nobody, &["does not answer ssh on port", "check that sshd listens"]).await?;
    let state = world.server.state_dir().display().to_string();
    let file = world.server.scratch().join("ssh/login").display().to_string();
    let nowhere = config.replace(&format!("state_dir: {state}"), &format!("state_dir: {file}/x"));
    let action = world.action("swap", NEW, &[])?.with_config(&nowhere)?;
    Step::run(action).await?.refused(3, &["the agent could not be installed", "Not a directory"]);
    assert!(world.old_runs()?);
    Ok(())
}

#[tokio::test]
async fn the_server() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let config = world.config(NEW);
    let line = config.lines().find(|line| line.starts_with("  command: ")).context("a command")?;
    let with_command = |command: &str| config.replacen(line, &format!("  command: {command}"), 1);

    swap(
        &world,
        &with_command("no-such-engine --port {port}"),
        &["there is no program", "full path"],
    )
    .await?;
    let plain = world.server.nginx_config().display().to_string();
    swap(
        &world,
        &with_command(&format!("{plain} --port {{port}}")),
        &["is not executable", "chmod +x"],
    )
    .await?;
    let user = config.replace("replica:\n", "replica:\n  user: no-such-user\n");
    swap(&world, &user, &["there is no user no-such-user", "name a local user"]).await?;

    let stranger = TcpListener::bind(("127.0.0.1", b))?;
    swap(&world, &config, &[&format!("port {b} of slot b is taken by process"), "stop it"]).await?;
    drop(stranger);

    world.server.put_program("nvidia-smi", NVIDIA_SMI)?;
    let gpu = config.replace(&format!("{b}, gpus: []"), &format!("{b}, gpus: [7]"));
    refused(&world, ("doctor", &gpu), &[], &["there is no such GPU", "correct slots.b.gpus"])
        .await?;

    let state = world.server.state_dir();
    let claim = state.join(format!("claims/port-{b}"));
    fs::write(&claim, r#"{ "service": "code", "slot": "a" }"#)?;
    refused(&world, ("doctor", &config), &[], &["is reserved by service code", "another port"])
        .await?;
    fs::remove_file(claim)?;

    let record = state.join("chat/state.json");
    fs::write(&record, "{")?;
    swap(&world, &config, &["state.json is damaged", "move "]).await?;
    fs::write(&record, r#"{ "v": 99 }"#)?;
    swap(&world, &config, &["has version 99", "a newer one"]).await?;
    fs::remove_file(record)?;

    let holder = Holder {
        swap: "s-1".parse()?,
        since: Timestamp::now(),
        process: process::own(),
        command: "swap".to_owned(),
        requester: Requester { actor: Some("ann".to_owned()), ..Requester::default() },
    };
    let lease = Lease::take(&state.join("chat"), &holder)?;
    swap(&world, &config, &["ann works on this service: swap s-1", "wait until it ends"]).await?;
    drop(lease);

    assert!(world.old_runs()? && listeners(b)? == [0_u32; 0], "something was started");
    assert_eq!((world.serves().await?.as_str(), listeners(a)?.len()), (OLD, 1));
    Ok(())
}

#[test]
fn a_state_folder_without_room() -> Result<()> {
    const STATE: &str = "/var/lib/model-swap";
    on_guest(async |world| {
        let guest = &world.guest;
        guest.run(&["mkdir", "-p", STATE]).await?;
        guest.run(&["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", STATE]).await?;
        let fill = format!("dd if=/dev/zero of={STATE}/fill 2>/dev/null; df {STATE}");
        let full = guest.run(&["sh", "-c", &fill]).await?;
        assert!(full.contains("100%"), "the disk is not full: {full}");

        let run = Step::run(world.action("swap", NEW, &[])?).await?;
        let room = format!("make room on the disk of {STATE}/");
        let run = run.refused(3, &["No space left on device", &room, "another disk"]);
        assert!(run.outputs.is_empty(), "{run}");
        let doctor = Step::run(world.action("doctor", NEW, &[])?).await?;
        doctor.refused(3, &["room for state", "0 MiB free in", "make room, or set state_dir"]);
        assert!(world.guest.listeners(SLOTS.1).await?.is_empty(), "something was started");
        world.until_serves(OLD).await?;

        world.guest.run(&["rm", &format!("{STATE}/fill")]).await?;
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        Ok(())
    })
}

#[tokio::test]
async fn nginx() -> Result<()> {
    let world = World::start().await?;
    let (a, _) = world.server.slot_ports();
    let config = world.config(NEW);
    let file = world.server.nginx_config();
    let good = fs::read_to_string(&file)?;
    let stranger = free_port()?;
    for (text, texts) in [
        (format!("{good}bogus on;\n"), ["unknown directive \"bogus\"", "run `nginx -t`"]),
        (good.replace("llm", "lmm"), ["nginx has no upstream `llm`", "did you mean `lmm`?"]),
        (
            good.replace(&format!("127.0.0.1:{a};"), &format!("127.0.0.1:{stranger};")),
            ["which is no slot's", "give the slot of the running replica the port"],
        ),
    ] {
        fs::write(&file, &text)?;
        swap(&world, &config, &texts).await?;
        assert_eq!(fs::read_to_string(&file)?, text, "the file was touched");
        fs::write(&file, &good)?;
    }
    let master = world.server.nginx_master()?;
    send("-QUIT", master)?;
    until("nginx ends", || Ok((world.server.nginx_master().is_err()).then_some(()))).await?;
    swap(&world, &config, &["no running nginx was found", "nginx.pid"]).await?;
    let doctor = refused(&world, ("doctor", &config), &[], &["no running nginx was found"]).await?;
    assert!(doctor.stdout.contains("the running nginx is not known"), "{doctor}");
    assert!(world.old_runs()?);
    Ok(())
}
