//! The signals that end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Stopped;
use crate::model::failure::Failure;
use crate::model::outcome::Exit;

/// SIGINT or SIGTERM: as PID 1 of a container, a process without handlers ignores both.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Stopped> {
        let handler = |kind| {
            signal(kind).map_err(|error| Stopped {
                failures: vec![Failure::from_error(&error)],
                exit: Exit::Environment,
            })
        };
        Ok(Self {
            interrupt: handler(SignalKind::interrupt())?,
            terminate: handler(SignalKind::terminate())?,
        })
    }

    /// SIGINT alone.
    pub(super) async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }

    /// Either of them.
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
