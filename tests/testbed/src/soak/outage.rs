//! How long a service is down that somebody has broken.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::LOOK_AGAIN;
use crate::PATIENCE;
use crate::load::{Excuse, Load};
use crate::service;

/// So many good answers in a row, and it is back: longer than nginx's old workers take requests after a reload.
const GOOD: usize = 25;

/// An outage that has begun.
pub(super) struct Outage {
    from: Duration,
    back: JoinHandle<Result<Duration>>,
}

impl Outage {
    /// Begins now; what is broken has to be so before the service is asked for the first time.
    pub(super) fn begin(
        load: &Load,
        nginx: SocketAddr,
        strike: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let began = load.began();
        let from = began.elapsed();
        strike()?;
        Ok(Self { from, back: tokio::spawn(back(nginx, began)) })
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// If that takes longer than [`PATIENCE`] from its beginning.
    pub(super) async fn over(self) -> Result<Excuse> {
        Ok(Excuse { from: self.from, until: self.back.await?? })
    }
}

async fn back(nginx: SocketAddr, began: Instant) -> Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    let mut good = 0;
    while good < GOOD {
        ensure!(Instant::now() < deadline, "the service does not come back");
        good = if service::serves(nginx).await.is_ok() { good + 1 } else { 0 };
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(began.elapsed())
}
