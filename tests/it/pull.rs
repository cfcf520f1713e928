//! Images from a real registry: pulled before anything is reserved, told as they come, and part of the revision.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;
use testbed::built;
use testbed::docker::{Door, Registry, said};
use testbed::server::free_port;

use crate::step::Step;
use crate::support::docked::Docked;
use crate::support::{NEW, OLD, Run};
use crate::swap::claims;

/// The container of slot b.
const OURS: &str = "model-swap-chat.b";

/// Docker's client, asking for a manifest of a registry without TLS as it asks others.
const TRUSTING: &str = r#"#!/bin/sh
[ "$1" != manifest ] || { shift 2; set -- manifest inspect --insecure "$@"; }
exec /usr/bin/docker "$@"
"#;

/// A world whose image is in a registry and nowhere else.
struct Stored {
    docked: Docked,
    registry: Registry,
    /// What the registry keeps.
    images: TempDir,
    /// The image's id, as the Engine that pushed it knew it.
    id: String,
}

impl Stored {
    async fn start() -> Result<Self> {
        let images = tempfile::tempdir()?;
        let registry = Registry::start(images.path(), Door::Open)?;
        let mut docked = Docked::start().await?;
        let local = docked.world.settings.image.take().context("an image")?;
        let name = format!("{}:v1", registry.name());
        let docker = |args: &[&str]| said(&mut docked.engine.docker(args));
        let id = docker(&["image", "inspect", "--format", "{{.Id}}", &local])?.trim().to_owned();
        docker(&["tag", &local, &name])?;
        docker(&["push", "--quiet", &name])?;
        // All: an earlier test's image may have the same layer, and what is here is not pulled.
        docker(&["image", "prune", "--all", "--force"])?;
        docked.world.settings.image = Some(name);
        Ok(Self { docked, registry, images, id })
    }
}

#[tokio::test]
async fn an_image_is_pulled_before_anything_is_reserved_and_pinned_by_its_id() -> Result<()> {
    let Stored { mut docked, registry, images: _images, id } = Stored::start().await?;
    let load = docked.world.load().await?;
    let name = format!("{}:v1", registry.name());
    docked.world.run("plan", NEW, &[]).await?.answered(&[&format!("pull {name}")]);
    // The client believes a registry without TLS only when it is told to, and the Engine does where it is on loopback.
    let doctor = docked.world.run("doctor", NEW, &[]).await?;
    doctor.answered(&[&format!("{name} is not here, and "), &format!("`docker pull {name}`")]);
    docked.world.server.put_program("docker", TRUSTING)?;
    let doctor = docked.world.run("doctor", NEW, &[]).await?;
    doctor.answered(&[
        &format!("{name} is in its registry, and the next swap pulls it; "),
        " free in ",
    ]);
    let run = docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    docked.world.until_serves(NEW).await?;
    let at = |text: &str| run.stdout.find(text).with_context(|| format!("no {text:?} in\n{run}"));
    assert!(at("→ fetch")? < at("1 of 1 layers are here")?, "{run}");
    assert!(at("1 of 1 layers are here")? < at("✓ fetch")?, "{run}");
    assert!(at("✓ fetch")? < at("→ reserve_slot b")?, "{run}");
    assert!(run.stdout.contains(&format!("{name} is here")), "{run}");
    assert_eq!(docked.inspect(OURS, "{{.Image}}")?, id);

    // Under whatever name, it is the same image; and under the same name another one is another revision.
    let digest = said(&mut docked.engine.docker([
        "image",
        "inspect",
        "--format",
        "{{index .RepoDigests 0}}",
        &name,
    ]))?;
    assert!(digest.starts_with(&format!("{}@sha256:", registry.name())), "{digest}");
    for name in [name.as_str(), digest.trim()] {
        docked.world.settings.image = Some(name.to_owned());
        let again = docked.world.run("swap", NEW, &[]).await?.ended(0, "unchanged");
        assert_eq!(again.output("revision"), run.output("revision"));
    }
    let other = docked.engine.image_of(&built::program("stub-engine")?, &["serve"])?;
    said(&mut docked.engine.docker(["tag", &other, &name]))?;
    docked.world.settings.image = Some(name);
    docked.world.settings.retain = "0s".to_owned();
    let moved = docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    assert_ne!(moved.output("revision"), run.output("revision"));

    // The way back is to what served, whatever its name has come to mean: as it is here, or from the registry again.
    let back = async |docked: &Docked| -> Result<Run> {
        let back = docked.world.run("rollback", NEW, &[("wait", "retired")]).await?;
        assert_eq!(docked.inspect(OURS, "{{.Image}}")?, id, "{back}");
        assert_eq!(back.output("revision"), run.output("revision"));
        Ok(back.ended(0, "rolled-back"))
    };
    back(&docked).await?;
    docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    said(&mut docked.engine.docker(["rmi", digest.trim()]))?;
    let pulled = back(&docked).await?;
    assert!(pulled.stdout.contains(&format!("pull {}", digest.trim())), "{pulled}");
    assert!(!pulled.stdout.contains("secret_env"), "{pulled}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn what_was_approved_before_its_image_was_here_holds_once_it_is() -> Result<()> {
    let Stored { docked, registry, images: _images, .. } = Stored::start().await?;
    let name = format!("{}:v1", registry.name());
    let planned = docked.world.run("plan", NEW, &[]).await?.answered(&[&format!("pull {name}")]);
    said(&mut docked.engine.docker(["pull", "--quiet", &name]))?;
    let approved = [("plan-digest", planned.output("plan-digest"))];
    let run = docked.world.run("swap", NEW, &approved).await?.ended(0, "promoted");
    assert!(!run.stdout.contains("→ fetch"), "{run}");
    Ok(())
}

/// What a client that has logged in has written down.
fn log_in(folder: &Path, registry: &Registry) -> Result<()> {
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode("deploy:canary-4711-registry");
    let host = registry.name().replace("/llm", "");
    let config = serde_json::json!({ "auths": { host: { "auth": auth } } });
    Ok(fs::write(folder.join("config.json"), config.to_string())?)
}

#[tokio::test]
async fn what_keeps_an_image_from_coming_is_named_and_nothing_else_was_begun() -> Result<()> {
    let mut stored = Stored::start().await?;
    let locked = Registry::start(stored.images.path(), Door::Locked)?;
    let (open, closed) = (stored.registry.name(), locked.name());
    let nobody = format!("127.0.0.1:{}/llm:v1", free_port()?);
    let load = stored.docked.world.load().await?;
    let rows = [
        (format!("{open}:v0"), "manifest unknown", "correct replica.image"),
        (format!("{closed}:v1"), "no basic auth credentials", "docker login"),
        (format!("{closed}:v1"), "unauthorized", "docker login"),
        (nobody, "connection refused", "whether this server reaches the registry"),
    ];
    for (image, said, hint) in rows {
        if said == "unauthorized" {
            log_in(stored.docked.client.path(), &locked)?;
        }
        stored.docked.world.settings.image = Some(image.clone());
        let doctor = Step::run(stored.docked.world.action("doctor", NEW, &[])?).await?;
        assert!(doctor.stdout.contains(&format!("`docker pull {image}`")), "{doctor}");
        let run = Step::run(stored.docked.world.action("swap", NEW, &[])?).await?;
        let run = run.ended(4, "failed");
        for text in ["✗ fetch", &format!("docker cannot pull {image}"), said, hint] {
            assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
        }
        assert!(!run.to_string().contains("canary"), "{run}");
        let claims = claims(&stored.docked.world)?;
        assert!(claims.is_empty(), "{claims:?}");
        assert!(stored.docked.names()?.is_empty(), "{run}");
        assert_eq!(stored.docked.world.serves().await?, OLD);
    }
    // It takes the connection, and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0))?;
    let settings = &mut stored.docked.world.settings;
    settings.image = Some(format!("{}/llm:v1", silent.local_addr()?));
    settings.fetch = "fetch: { command: env, timeout: 2s }".to_owned();
    let run = stored.docked.world.run("swap", NEW, &[]).await?.ended(4, "failed");
    assert!(run.stdout.contains("llm:v1 was not here within 2s"), "{run}");
    load.stop().await.assert_clean();
    Ok(())
}
