//! Ports on which nobody listens for himself: a packet filter forwards them. Each test is in a network of its own.

use anyhow::Result;
use testbed::guest::{Lab, ran_as_root};

use crate::doctor::mark;
use crate::support::docked::{AWAY, CLIENT, COMPOSED, Docked};
use crate::support::{NEW, alive};

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
