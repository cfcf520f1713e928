//! Somebody changes the server behind our back: what serves is never taken for what does not.

use std::fs;

use anyhow::{Context, Result};
use testbed::load::http;
use testbed::server::Aim;

use crate::kills::{self, CUT_OVER, Facts, READY};
use crate::support::{NAME, NEW, OLD, World, alive};

/// Points the upstream's `server` line from one port to another, in the file alone.
fn point(world: &World, from: u16, to: u16) -> Result<()> {
    let config = world.server.nginx_config();
    let text = fs::read_to_string(&config)?;
    let edited = text.replace(&format!("127.0.0.1:{from};"), &format!("127.0.0.1:{to};"));
    anyhow::ensure!(edited != text, "no server line with port {from}");
    Ok(fs::write(&config, edited)?)
}

fn reload(world: &World) -> Result<()> {
    let master = i32::try_from(world.server.nginx_master()?)?;
    let master = rustix::process::Pid::from_raw(master).context("pid 0")?;
    Ok(rustix::process::kill_process(master, rustix::process::Signal::HUP)?)
}

#[tokio::test]
async fn a_file_that_nginx_has_not_loaded_is_not_believed() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let load = world.load().await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    point(&world, b, a)?;
    let serving = testbed::server::listeners(b)?;
    let named = format!("nginx's file names port {a}, and requests are not seen to go there");
    let status = world.run("status", NEW, &[]).await?.answered(&[&named, "nginx -s reload"]);
    assert!(!status.stdout.contains("  serving  "), "{status}");
    let refused = ["new requests are not seen to go there", "nginx -s reload"];
    world.run("plan", "Qwen/Third", &[]).await?.refused(3, &refused);
    world.run("swap", "Qwen/Third", &[]).await?.refused(3, &refused);
    assert_eq!(testbed::server::listeners(b)?, serving, "what serves was touched");
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

/// A person went back by hand and forgot the reload: the bad model still has all requests.
#[tokio::test]
async fn a_rollback_does_not_take_what_only_the_file_names_for_what_serves() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    point(&world, b, a)?;
    let run = world.run("rollback", NEW, &[]).await?;
    run.refused(3, &["new requests are not seen to go there", "nginx -s reload"]);
    reload(&world)?;
    world.until_serves(OLD).await?;
    let run = world.run("rollback", NEW, &[]).await?.ended(0, "unchanged");
    run.answered(&["already serves"]);
    Ok(())
}

/// `unchanged` is a claim about traffic, too.
#[tokio::test]
async fn a_wanted_revision_that_only_the_file_names_is_not_taken_for_what_serves() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.run("swap", "Qwen/Third", &[]).await?.ended(0, "promoted");
    world.until_serves("Qwen/Third").await?;
    point(&world, a, b)?;
    for command in ["plan", "swap"] {
        let run = world.run(command, NEW, &[]).await?;
        run.refused(3, &["new requests are not seen to go there", "nginx -s reload"]);
    }
    assert_eq!(world.serves().await?, "Qwen/Third");
    Ok(())
}

#[tokio::test]
async fn a_model_that_somebody_pointed_nginx_back_at_is_not_retired() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "10s".to_owned();
    let (a, b) = world.server.slot_ports();
    let load = world.load().await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    point(&world, b, a)?;
    reload(&world)?;
    world.until_serves(OLD).await?;
    world.until_told(&format!("nginx points at port {a} of slot a again")).await?;
    assert!(alive(world.old.pid));
    // A worker from before the reload may still have taken one.
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_probe_that_tells_nothing_is_found_out_before_a_model_is_loaded() -> Result<()> {
    let world = World::start().await?;
    let (_, b) = world.server.slot_ports();
    let elsewhere = world.config(NEW).replace("/v1/models", "/nowhere");
    let text = fs::read_to_string(world.server.nginx_config())?;
    // nginx answers this one by itself.
    let own = "location /nowhere { return 204; }\n    location / {";
    fs::write(world.server.nginx_config(), text.replacen("location / {", own, 1))?;
    reload(&world)?;
    // The old workers would pass it on to the model.
    while http::get(world.server.nginx_addr(), "/nowhere").await?.status != 204 {}
    let run = world.action("swap", NEW, &[])?.with_config(&elsewhere)?.spawn()?.finish().await?;
    let _ = run.refused(3, &["new requests are not seen to go there", "nginx.probe.url"]);
    assert_eq!(testbed::server::listeners(b)?, [0_u32; 0]);
    Ok(())
}

#[tokio::test]
async fn a_rollback_has_the_key_that_the_swap_had() -> Result<()> {
    let world = World::start().await?;
    let keyed =
        |model: &str| world.config(model).replace("  env:", "  secret_env: [VLLM_API_KEY]\n  env:");
    let run = async |command: &str, model: &str| -> Result<_> {
        let action = world.action(command, model, &[])?.with_config(&keyed(model))?;
        action.with(&[("VLLM_API_KEY", "canary-key-of-the-engine")]).spawn()?.finish().await
    };
    let _ = run("swap", NEW).await?.ended(0, "promoted");
    let _ = run("swap", "Qwen/Third").await?.ended(0, "promoted");
    let _ = run("rollback", NAME).await?.ended(0, "rolled-back");
    let log = fs::read_to_string(world.server.nginx_config())?;
    let (_, b) = world.server.slot_ports();
    assert!(log.contains(&format!("server 127.0.0.1:{b};")), "{log}");
    Ok(())
}

/// A swap whose agent dies when its new model is ready.
async fn left_ready() -> Result<(World, Facts)> {
    let world = kills::world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    kills::orphaned(&world, Aim::After(READY), world.action("swap", NEW, &[])?).await?;
    Ok((world, before))
}

#[tokio::test]
async fn a_new_model_that_somebody_pointed_nginx_at_is_not_stopped() -> Result<()> {
    let (world, before) = left_ready().await?;
    let (a, b) = world.server.slot_ports();
    let load = world.load().await?;
    point(&world, a, b)?;
    reload(&world)?;
    world.until_serves(NEW).await?;
    let run = world.run("repair", NEW, &[]).await?.ended(7, "stuck");
    let said = [
        &format!("nginx points at port {b} of slot b: what serves is not stopped"),
        "Qwen/New serves from slot b",
    ];
    let run = run.refused(7, &said);
    assert!(!run.stdout.contains("traffic is where it was"), "{run}");
    assert_eq!(world.serves().await?, NEW, "{run}");
    point(&world, b, a)?;
    reload(&world)?;
    world.until_serves(OLD).await?;
    world.run("repair", NEW, &[]).await?.ended(0, "failed");
    assert_eq!(Facts::of(&world)?, before);
    load.stop().await.assert_clean();
    Ok(())
}

/// As `mv`, `cp -p` and `rsync -a` do it: by its time the file is older than the workers that have loaded another.
#[tokio::test]
async fn a_file_that_is_put_back_with_its_old_time_is_not_taken_for_loaded() -> Result<()> {
    let world = kills::world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let (before, config) = (Facts::of(&world)?, world.server.nginx_config());
    let (text, modified) = (fs::read(&config)?, fs::metadata(&config)?.modified()?);
    let load = world.load().await?;
    kills::orphaned(&world, Aim::After(CUT_OVER), world.action("swap", NEW, &[])?).await?;
    fs::write(&config, text)?;
    fs::File::open(&config)?.set_modified(modified)?;
    assert_eq!(world.serves().await?, NEW);
    let run = world.run("repair", NEW, &[]).await?.ended(0, "rolled-back");
    assert_eq!(world.serves().await?, OLD, "{run}");
    assert_eq!(Facts::of(&world)?, before);
    load.stop().await.assert_clean();
    Ok(())
}
