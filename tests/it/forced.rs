//! A key with a forced command: it may ask what root lists, and nothing else.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use testbed::github::FakeGitHub;
use testbed::server::listeners;

use crate::approved;
use crate::commands::Terminal;
use crate::init::init;
use crate::step::Step;
use crate::support::{NEW, OLD, World, binary};

/// Locks the server's key down to the agent, and lists the service as root would.
async fn world(more: &str) -> Result<World> {
    let world = World::start().await?;
    let services = world.server.scratch().join("services.d");
    fs::create_dir(&services)?;
    let listing = listing(&world.config(NEW))?;
    let env = format!("env: [{:?}]\n", world.server.mark().0);
    fs::write(services.join("chat.yaml"), listing + &env + more)?;
    let keys = world.server.scratch().join("ssh/authorized_keys");
    let key = fs::read_to_string(&keys)?;
    let forced = format!("{} agent --services {}", binary().display(), services.display());
    fs::write(&keys, format!("command=\"{forced}\",restrict {key}"))?;
    Ok(world)
}

/// What root lists of a service: its command, models of one maker, and what concerns the server as it stands in the
/// configuration.
pub(crate) fn listing(config: &str) -> Result<String> {
    let of_server: String = ["slots:", "  a:", "  b:", "state_dir:", "nginx:", "  config:"]
        .into_iter()
        .chain(["  upstream:", "  command: [", "  probe:"])
        .filter_map(|start| config.lines().find(|line| line.starts_with(start)))
        .map(|line| format!("{line}\n"))
        .collect();
    let (_, command) = config.split_once("  command: ").context("a command")?;
    let command = command.lines().next().context("a line")?.trim();
    Ok(format!("models: [\"Qwen/*\"]\ncommands: [{command:?}]\n{of_server}"))
}

/// What a person with this key gets from ssh itself.
fn ssh(world: &World, args: &[&str]) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    fs::copy(world.server.scratch().join("ssh/login"), path("key"))?;
    fs::write(path("known_hosts"), world.server.known_hosts())?;
    let known = format!("UserKnownHostsFile={}", path("known_hosts").display());
    let output = Command::new("ssh")
        .args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", &known])
        .arg("-i")
        .arg(path("key"))
        .args(["-p", &world.server.ssh_port().to_string()])
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()?;
    Ok(output)
}

#[tokio::test]
async fn a_locked_down_key_swaps_what_is_listed_and_brings_it_back() -> Result<()> {
    let world = world("").await?;
    let load = world.load().await?;
    world.run("plan", NEW, &[]).await?.answered(&["cut_over a -> b"]);
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, NEW);
    world.run("status", NEW, &[]).await?.answered(&["nginx sends traffic to port"]);
    world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// The key of a plan may do no more than plan: who swaps has another.
#[tokio::test]
async fn what_a_key_that_may_only_plan_has_planned_is_carried_out_with_another() -> Result<()> {
    let world = world("allow: [plan, status]\n").await?;
    let github = FakeGitHub::start()?;
    approved::plan(&world, &github, NEW).await?;
    let swap = || approved::swap(&world, &github, NEW);
    Step::run(swap()?).await?.refused(2, &["the command swap is not allowed"]);

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("key");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
    assert!(keygen.status()?.success());
    let keys = world.server.scratch().join("ssh/authorized_keys");
    let public = fs::read_to_string(path.with_extension("pub"))?;
    fs::write(&keys, fs::read_to_string(&keys)? + &public)?;
    let other = swap()?.with_inputs(&[("ssh-key", &fs::read_to_string(path)?)]);
    let run = Step::run(other).await?.ended(0, "promoted");
    run.answered(&["pull request 7 has plan p-"]);
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn a_locked_down_key_gets_nothing_that_is_not_listed() -> Result<()> {
    let world = world("allow: [plan, swap]\n").await?;
    let (_, b) = world.server.slot_ports();
    let listing = world.server.scratch().join("services.d/chat.yaml");
    let hint = format!("what {} on the server allows", listing.display());
    let swap = async |text: &str| {
        world.action("swap", NEW, &[])?.with_config(text)?.spawn()?.finish().await
    };
    // Everything that is wrong is said at once.
    let text = world
        .config("Evil/Model")
        .replace(
            "replica:\n",
            "model_revision: refs/pr/7\nfetch: { command: \"true\", folder: /root }\nreplica:\n  user: root\n",
        )
        .replace("  env: { ", "  env: { LD_PRELOAD: /tmp/evil.so, ")
        .replace(" serve {model}", " --evil {model}");
    swap(&text).await?.refused(
        2,
        &[
            "model \"Evil/Model\" is none of the allowed ones (Qwen/*)",
            "model_revision \"refs/pr/7\" is none of the allowed ones (none)",
            "replica.user is root, not unset",
            "variable LD_PRELOAD is none of the allowed ones",
            "replica.command is none of the allowed ones",
            "fetch.command is none of the allowed ones (none)",
            "fetch.folder \"/root\" is none of the allowed ones (none)",
            &hint,
        ],
    );
    swap(&world.config(NEW).replace("command: [", "command: [\"/bin/sh\", "))
        .await?
        .refused(2, &["nginx's config, upstream, command or probe is not that of the listing"]);
    swap(&world.config(NEW).replace(&format!("port: {b}"), "port: 22"))
        .await?
        .refused(2, &["slots are not those of the listing"]);
    swap(&world.config(NEW).replace("service: chat", "service: other"))
        .await?
        .refused(3, &["this key may not ask about service other"]);
    world
        .run("status", NEW, &[])
        .await?
        .refused(2, &["the command status is not allowed (allowed: plan, swap)"]);
    // What would show the whole server.
    let terminal = Terminal::at(&world)?;
    let (code, said) = init(&world, &terminal, &["--config", "-"]).await?;
    assert!(code == Some(2) && said.contains("this key may not ask for init"), "{said}");
    assert_eq!(listeners(b)?, [0_u32; 0], "something was started");
    assert!(world.old_runs()?);
    // A listing that others can write is no listing.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&listing, open)?;
    world.run("plan", NEW, &[]).await?.refused(3, &["can be written by others than root"]);
    Ok(())
}

#[tokio::test]
async fn a_locked_down_key_brings_back_only_what_is_listed_now() -> Result<()> {
    let mut world = world("").await?;
    world.settings.retain = "0s".to_owned();
    let retired = [("wait", "retired")];
    world.run("swap", NEW, &retired).await?.ended(0, "promoted");
    world.run("swap", "Qwen/Third", &retired).await?.ended(0, "promoted");
    let path = world.server.scratch().join("services.d/chat.yaml");
    let listing = fs::read_to_string(&path)?;
    fs::write(&path, listing.replace("[\"Qwen/*\"]", "[\"Qwen/Third\"]"))?;
    world.run("rollback", "Qwen/Third", &[]).await?.refused(
        2,
        &[
            "what the rollback would start again: model \"Qwen/New\" is none of the allowed ones (Qwen/Third)",
            &format!("what {} on the server allows", path.display()),
        ],
    );
    assert_eq!(world.serves().await?, "Qwen/Third");
    fs::write(&path, listing)?;
    world.run("rollback", "Qwen/Third", &[]).await?.ended(0, "rolled-back");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn a_locked_down_key_goes_back_to_another_user_where_both_are_listed() -> Result<()> {
    let mut world = world("").await?;
    world.settings.retain = "0s".to_owned();
    let retired = [("wait", "retired")];
    world.run("swap", NEW, &retired).await?.ended(0, "promoted");
    let path = world.server.scratch().join("services.d/chat.yaml");
    let listing = fs::read_to_string(&path)?;
    fs::write(&path, format!("{listing}user: root\n"))?;
    let named = world.config("Qwen/Third").replacen("replica:\n", "replica:\n  user: root\n", 1);
    let run = async |command: &str| {
        let action = world.action(command, "Qwen/Third", &retired)?;
        Step::run(action.with_config(&named)?).await
    };
    run("swap").await?.ended(0, "promoted");
    run("rollback").await?.refused(
        2,
        &["what the rollback would start again: replica.user is unset, not root: root allows it with `user: [root, null]`"],
    );
    fs::write(&path, format!("{listing}user: [root, null]\n"))?;
    run("rollback").await?.ended(0, "rolled-back");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn a_locked_down_key_brings_weights_back_by_what_is_listed_now() -> Result<()> {
    let (then, today) = ("true then {model}", "true today {model}");
    let mut world = world(&format!("fetches: [{then:?}, {today:?}]\n")).await?;
    let fetch = |command: &str| format!("fetch: {{ command: {command:?} }}");
    world.settings.retain = "0s".to_owned();
    let retired = [("wait", "retired")];
    world.settings.fetch = fetch(then);
    world.run("swap", NEW, &retired).await?.ended(0, "promoted");
    world.settings.fetch = String::new();
    world.run("swap", "Qwen/Third", &retired).await?.ended(0, "promoted");
    let path = world.server.scratch().join("services.d/chat.yaml");
    let listing = fs::read_to_string(&path)?;
    fs::write(&path, listing.replace(&format!("{then:?}, "), ""))?;
    world.run("rollback", "Qwen/Third", &[]).await?.refused(
        2,
        &[
            "nothing brings the weights of Qwen/New",
            "the fetch of then (true then {model}) cannot be used again: fetch.command is none of the allowed ones (true today {model})",
            "the configuration has none that could stand in for it",
            &format!("what {} on the server allows", path.display()),
        ],
    );
    world.settings.fetch = fetch(today);
    let back = world.run("rollback", "Qwen/Third", &[]).await?.ended(0, "rolled-back");
    back.answered(&["today's (true today {model}) brings Qwen/New in its place"]);
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn a_locked_down_key_opens_no_shell_and_forwards_nothing() -> Result<()> {
    let world = world("").await?;
    let (a, _) = world.server.slot_ports();
    let host = world.server.ssh_host().to_owned();
    let mark = world.server.scratch().join("touched");
    let said = ssh(&world, &[&host, &format!("touch {}; echo shell", mark.display())])?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(text.contains("--- model-swap agent ---"), "{said:?}");
    assert!(!text.contains("shell") && !mark.exists(), "{said:?}");
    let forwarded = ssh(&world, &["-W", &format!("127.0.0.1:{a}"), &host])?;
    assert!(!forwarded.status.success(), "{forwarded:?}");
    let copied = ssh(&world, &["-s", &host, "sftp"])?;
    assert!(!String::from_utf8_lossy(&copied.stdout).contains("sftp"), "{copied:?}");
    Ok(())
}
