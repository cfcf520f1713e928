//! nginx's upgrade of its own binary, as a package does it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::LOOK_AGAIN;
use super::runner::signal;
use crate::PATIENCE;
use crate::server::{GpuServer, parent_of};

/// Which master goes in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    Old,
    /// The upgrade is given up.
    New,
}

/// Starts a second master, and tells one of both to quit when both have taken requests for a while. Returns when it is gone.
pub(super) async fn upgrade(server: &GpuServer, lasts: Duration, goes: Goes) -> Result<()> {
    let old = server.nginx_master()?;
    signal(old, Signal::USR2);
    let second = || server.nginx_master().ok().filter(|master| *master != old);
    let is_there = || server.nginx_workers().is_ok_and(|workers| !workers.is_empty());
    until("a second master", || second().is_some() && is_there()).await?;
    tokio::time::sleep(lasts).await;
    let stays = match goes {
        Goes::Old => server.nginx_master()?,
        Goes::New => old,
    };
    let quits = if stays == old { server.nginx_master()? } else { old };
    signal(quits, Signal::QUIT);
    let is_gone = || parent_of(quits).is_none();
    // The one that stays takes its pid file back.
    until("one master", || is_gone() && server.nginx_master().is_ok_and(|master| master == stays))
        .await
}

async fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "nginx's upgrade does not come to {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
