//! What listens on a slot's port number at another address than 127.0.0.1.

use anyhow::Result;
use testbed::docker::said;

use crate::support::docked::Docked;
use crate::support::{NEW, OLD};

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
