//! Ports on which nobody listens for himself: a packet filter forwards them. Each test is in a network of its own.

use std::process::Command;

use anyhow::Result;
use testbed::docker::said;
use testbed::guest::{Lab, ran_as_root};
use testbed::server::{ServerSpec, free_port};
use testbed::service::engine;

use crate::doctor::mark;
use crate::support::docked::{AWAY, CLIENT, COMPOSED, Docked};
use crate::support::{NEW, OLD, World, alive};

/// With `userland-proxy: false` it is dockerd that listens on a published port, and never answers there.
#[tokio::test]
async fn an_engine_that_listens_for_its_containers_is_never_taken_for_the_model() -> Result<()> {
    if ran_as_root()? {
        return Ok(());
    }
    let _lab = Lab::enter()?;
    let mut docked = Docked::forwarded().await?;
    docked.world.settings.retain = "0s".to_owned();
    let dockerd = docked.engine.pid()?;
    let load = docked.world.load().await?;

    // Where Docker does not say whose port it is, nobody else's word is taken for it.
    docked.world.server.put_program("docker", AWAY)?;
    let image = docked.world.settings.image.take();
    let doctor = docked.world.run("doctor", NEW, &[]).await?;
    let refused = docked.world.run("swap", NEW, &[("wait", "retired")]).await?;
    refused.refused(3, &["belongs to the container behind dockerd"]);
    assert_eq!(mark(&doctor, "plan of a swap"), "fail", "{doctor}");

    docked.world.server.put_program("docker", CLIENT)?;
    docked.world.settings.image = image;
    let run = docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    assert!(alive(dockerd), "{run}");
    assert!(run.stdout.contains(", kept by Docker's container "), "{run}");
    assert_eq!(docked.world.serves().await?, NEW);
    assert_eq!(docked.inspect(COMPOSED, "{{.State.Running}}")?, "false", "{run}");
    load.stop().await.assert_clean();
    Ok(())
}

/// Forwards a port of this thread's network to another one, as the portmap of CNI does for a container's.
fn forward(from: u16, to: u16) -> Result<()> {
    let rule = format!("OUTPUT --protocol tcp --dport {from} --jump REDIRECT --to-ports {to}");
    let mut filter = Command::new("iptables");
    said(filter.args(["--table", "nat", "--append"]).args(rule.split(' '))).map(drop)
}

#[tokio::test]
async fn what_a_packet_filter_forwards_to_is_neither_down_nor_free() -> Result<()> {
    if ran_as_root()? {
        return Ok(());
    }
    let _lab = Lab::enter()?;
    let inside = free_port()?;
    let world = World::started_by(ServerSpec::default(), |server, _| {
        forward(server.slot_ports().0, inside)?;
        server.start_by_hand(&engine(OLD, inside)?, &[])
    })
    .await?;
    let (a, b) = world.server.slot_ports();
    let why = |slot, port| {
        format!("port {port} of slot {slot} answers, and no process of this server listens there")
    };
    let serves = world.run("swap", NEW, &[]).await?.refused(3, &[&why("a", a)]);
    assert!(!serves.stdout.contains("the service is down"), "{serves}");
    let doctor = world.run("doctor", NEW, &[]).await?.refused(3, &[&why("a", a)]);
    assert_eq!((mark(&doctor, "slot a"), mark(&doctor, "slot b")), ("fail".into(), "ok".into()));
    assert_eq!(world.serves().await?, OLD);

    forward(b, inside)?;
    world.run("swap", NEW, &[]).await?.refused(3, &[&why("a", a), &why("b", b)]);
    Ok(())
}
