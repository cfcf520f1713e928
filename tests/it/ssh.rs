//! The way to the server: who is trusted, who is let in, and what is left behind on the runner's side.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::step::Step;
use crate::support::{NEW, OLD, World};

/// A new pair of keys: the private one, and the public one's type and base64.
pub(crate) fn new_key(passphrase: &str) -> Result<(String, String)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-C", "test", "-N", passphrase, "-f"])
        .arg(&path)
        .status()?;
    ensure!(made.success(), "ssh-keygen: {made}");
    let public = fs::read_to_string(path.with_extension("pub"))?;
    let (public, _comment) = public.trim().rsplit_once(' ').context("a comment")?;
    Ok((fs::read_to_string(path)?, public.to_owned()))
}

/// The fingerprint of a server's host key of a type, as `ssh-keygen -l` prints it on the console.
fn fingerprint(world: &World, kind: &str) -> Result<String> {
    let file = world.server.scratch().join(format!("ssh/host_{kind}.pub"));
    let shown = Command::new("ssh-keygen").arg("-lf").arg(file).output()?;
    let text = String::from_utf8(shown.stdout)?;
    Ok(text.split_whitespace().nth(1).context("a fingerprint")?.to_owned())
}

#[tokio::test]
async fn a_server_with_another_host_key_is_not_trusted_and_the_way_to_pin_it_is_said() -> Result<()>
{
    let world = World::start().await?;
    let at = format!("[127.0.0.1]:{}", world.server.ssh_port());
    let (_, other) = new_key("")?;
    let pinned = format!("{at} {other}\n");
    let run = Step::run(world.action("status", NEW, &[("known-hosts", &pinned)])?).await?;
    let real = world.server.known_hosts().lines().find(|line| line.contains("ed25519"));
    let texts = [
        &format!("the host key of {at} is not the known one"),
        "do not pin anything",
        &format!("the server offers ssh-ed25519 {}", fingerprint(&world, "ed25519")?),
        "verify on the server's console",
        &format!("line of known-hosts: {}", real.context("an ed25519 key")?),
    ];
    let run = run.refused(3, &texts);
    for text in texts {
        assert!(run.summary.contains(text), "no {text:?} in the summary of\n{run}");
    }
    // What is suggested is what works.
    Step::run(world.action("status", NEW, &[("known-hosts", real.context("an ed25519 key")?)])?)
        .await?
        .answered(&["nginx sends traffic to port"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_among_the_known_hosts_is_not_trusted() -> Result<()> {
    let world = World::start().await?;
    let elsewhere = world.server.known_hosts().replace("127.0.0.1", "127.0.0.2");
    let run = Step::run(world.action("swap", NEW, &[("known-hosts", &elsewhere)])?).await?;
    let texts = [
        &format!("the host key of [127.0.0.1]:{} is not among", world.server.ssh_port()),
        "the server offers",
        "only then pin it",
    ];
    let run = run.refused(3, &texts);
    assert!(!run.stdout.contains("do not pin anything"), "{run}");
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_named_by_its_fingerprint() -> Result<()> {
    let world = World::start().await?;
    let (key, public) = new_key("")?;
    let run = Step::run(world.action("swap", NEW, &[("ssh-key", &key)])?).await?;
    let run = run.refused(
        3,
        &["the server does not let us in", "Permission denied (publickey)", "authorized_keys"],
    );
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), public)?;
    let shown = Command::new("ssh-keygen").arg("-lf").arg(file.path()).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    let fingerprint = shown.split_whitespace().nth(1).context("a fingerprint")?;
    assert!(run.stdout.contains(fingerprint), "no {fingerprint} in\n{run}");
    Ok(())
}

#[tokio::test]
async fn a_port_on_which_nobody_listens_is_named() -> Result<()> {
    let world = World::start().await?;
    let port = testbed::server::free_port()?;
    let config = world.config(NEW).replace(&world.server.ssh_port().to_string(), &port.to_string());
    let action = world.action("swap", NEW, &[])?.with_config(&config)?;
    Step::run(action).await?.refused(
        3,
        &[
            &format!("{} does not answer ssh on port {port}", world.server.ssh_host()),
            "Connection refused",
            "check that sshd listens",
        ],
    );
    Ok(())
}

#[tokio::test]
async fn an_encrypted_key_is_refused_before_anybody_is_connected_to() -> Result<()> {
    let world = World::start().await?;
    let log = world.server.scratch().join("logs/sshd.log");
    let before = fs::read_to_string(&log)?;
    let (key, _) = new_key("a passphrase")?;
    let run = Step::run(world.action("swap", NEW, &[("ssh-key", &key)])?).await?;
    run.refused(2, &["the ssh key is encrypted", "passphrase"]);
    assert_eq!(fs::read_to_string(&log)?, before, "somebody was connected to");
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_pasted_badly_and_known_hosts_of_many_kinds_work() -> Result<()> {
    let world = World::start().await?;
    let key = world.server.private_key().trim_end().replace('\n', "\r\n");
    let (_, other) = new_key("")?;
    let known_hosts = format!(
        "# the old machine\ngpu-0.example.com {other}\n\n{}\nbastion,10.0.0.1 {other} with a comment\n",
        world.server.known_hosts().replace('\n', "\r\n")
    );
    Step::run(world.action("status", NEW, &[("ssh-key", &key), ("known-hosts", &known_hosts)])?)
        .await?
        .answered(&["nginx sends traffic to port"]);
    // Either kind of host key alone will do.
    for line in world.server.known_hosts().lines() {
        Step::run(world.action("status", NEW, &[("known-hosts", line)])?).await?.answered(&[]);
    }
    Ok(())
}
