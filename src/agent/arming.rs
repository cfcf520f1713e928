//! Has systemd bring an agent back while a command works on a service.

use crate::host::agent_unit::AgentUnit;
use crate::host::{Host, SystemHost};
use crate::model::failure::Failure;
use crate::model::replica::Systemd;
use crate::service_dir::ServiceDir;

/// From now on systemd brings an agent back that goes on with this service, where systemd can be told.
///
/// # Errors
/// If systemd or the disk refuses.
pub(super) async fn arm(host: &SystemHost, dir: &ServiceDir) -> Result<(), Failure> {
    if host.systemd() != Systemd::Usable {
        return Ok(());
    }
    // The agent that it kept last may be about to remove the unit.
    let _lock = dir.lock_host().await?;
    AgentUnit::of(dir.service()).arm(dir.state_dir()).await
}

/// The same for who brings to its end what somebody has left: that is done all the same where it cannot be.
pub(super) async fn arm_if_possible(host: &SystemHost, dir: &ServiceDir) {
    if let Err(failure) = arm(host, dir).await {
        super::log(&failure);
    }
}
