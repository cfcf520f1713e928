//! What listens on a slot's port number at another address than 127.0.0.1.

use anyhow::Result;
use testbed::docker::said;
use testbed::server::{ServerSpec, default_upstream_file};

use crate::support::docked::Docked;
use crate::support::{NEW, OLD, World};

/// A container that is published on the same number at another address is somebody else's.
#[tokio::test]
async fn a_container_on_another_address_is_neither_adopted_nor_stopped() -> Result<()> {
    let docked = Docked::start().await?;
    let (a, _) = docked.world.server.slot_ports();
    let image = docked.world.settings.image.clone().unwrap_or_default();
    let mut run = docked.engine.docker(["run", "--detach", "--name=litellm"]);
    run.arg(format!("--publish=127.0.0.2:{a}:4000")).arg(image);
    said(run.args(["acme/proxy", "--host", "0.0.0.0", "--port", "4000"]))?;
    for command in ["doctor", "swap"] {
        let run = docked.world.run(command, NEW, &[]).await?;
        run.refused(3, &["is shared by unrelated processes", "at any address"]);
    }
    assert_eq!(docked.inspect("litellm", "{{.State.Running}}")?, "true");
    docked.world.until_serves(OLD).await
}

/// nginx reaches it, and nobody else does: an undo would take it for gone.
#[tokio::test]
async fn a_model_beside_loopback_is_refused_before_anything_begins() -> Result<()> {
    let upstream_file =
        |ports| default_upstream_file(ports).replace("server 127.0.0.1", "server 127.0.0.2");
    let spec = ServerSpec { upstream_file: Box::new(upstream_file), ..ServerSpec::default() };
    let world = World::started_by(spec, |server, argv| {
        let argv: Vec<_> = argv.iter().map(|word| word.replace("127.0.0.1", "127.0.0.2")).collect();
        server.start_by_hand(&argv, &[])
    })
    .await?;
    let (a, _) = world.server.slot_ports();
    let said = format!("listens on 127.0.0.2:{a} and not on 127.0.0.1:{a}");
    for command in ["doctor", "plan", "swap"] {
        let run = world.run(command, NEW, &[]).await?;
        run.refused(3, &[&said, "start it again with --host 0.0.0.0"]);
    }
    assert!(world.old_runs()?);
    world.until_serves(OLD).await
}
