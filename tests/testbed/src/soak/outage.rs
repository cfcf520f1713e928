//! How long a service is down that somebody has broken.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::LOOK_AGAIN;
use crate::PATIENCE;
use crate::load::{Excuse, Fault, Load};
use crate::service;

/// So many good answers in a row, and it is back: longer than nginx's old workers take requests after a reload.
const GOOD: usize = 25;

/// An outage that has begun.
pub(super) struct Outage {
    from: Duration,
    back: JoinHandle<Duration>,
}

impl Outage {
    /// Of what was whole until then, counted from the load's beginning, and is broken by now.
    pub(super) fn since(from: Duration, load: &Load, nginx: SocketAddr) -> Self {
        Self { from, back: tokio::spawn(back(nginx, load.began())) }
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// If that takes longer than [`PATIENCE`] from now on: what brings it back may be the next command alone.
    pub(super) async fn over(self) -> Result<Excuse> {
        let over = timeout(PATIENCE, self.back).await;
        let until = over.context("the service does not come back")??;
        Ok(Excuse { from: self.from, until, losses: &Fault::OF_THE_GONE })
    }
}

/// Waits until it is over, and says when that was.
pub(super) async fn back(nginx: SocketAddr, began: Instant) -> Duration {
    let mut good = 0;
    while good < GOOD {
        good = if service::serves(nginx).await.is_ok() { good + 1 } else { 0 };
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    began.elapsed()
}
