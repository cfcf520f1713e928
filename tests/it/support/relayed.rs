//! A way to a server that can be cut, and a world's commands by that way.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use testbed::relay::Relay;

use super::{Action, NEW, World};

/// A relay to sshd.
pub(crate) async fn relay(world: &World) -> Result<Relay> {
    let sshd = SocketAddr::from(([127, 0, 0, 1], world.server.ssh_port()));
    Ok(Relay::start(sshd, Duration::ZERO).await?)
}

/// The configuration, and the host keys to pin, for whoever comes through the relay.
pub(crate) fn access(relay: &Relay, world: &World) -> (String, String) {
    let sshd = world.server.ssh_port().to_string();
    let port = relay.address().port().to_string();
    let config = world.config(NEW);
    let (from, to) = (format!("ssh: {{ port: {sshd} }}"), format!("ssh: {{ port: {port} }}"));
    assert!(config.contains(&from), "{config}");
    (config.replace(&from, &to), world.server.known_hosts().replace(&sshd, &port))
}

/// A swap whose way to the server leads through the relay.
pub(crate) fn through(relay: &Relay, world: &World) -> Result<Action> {
    through_for("swap", relay, world)
}

/// Another command by the same way.
pub(crate) fn through_for(command: &str, relay: &Relay, world: &World) -> Result<Action> {
    led_through(relay, world, world.action(command, NEW, &[])?)
}

/// The same action by that way.
pub(crate) fn led_through(relay: &Relay, world: &World, action: Action) -> Result<Action> {
    let (config, known_hosts) = access(relay, world);
    action.with_inputs(&[("known-hosts", &known_hosts)]).with_config(&config)
}
