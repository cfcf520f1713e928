//! Nobody: a plain process in a session of its own. It ends with the machine, and nothing starts it again.

use std::time::Duration;

use super::{Boot, Runtime, Started};
use crate::host::Ending;
use crate::host::process::{self, Launch, Launcher, StopOrder, Stopped};
use crate::model::failure::Failure;
use crate::model::replica::{Keeper, Replica};

/// Plain processes.
pub(super) struct Process;

impl Runtime for Process {
    async fn start(&self, launch: &Launch, _: Duration) -> Result<Started, Failure> {
        // Dropping the child leaves it running; tokio reaps it.
        let main = process::start(launch, &Launcher::default()).await?.main;
        Ok(Started { main, keeper: Keeper::Nobody, invocation: None, left_out: Vec::new() })
    }

    async fn answers(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn marked(&self, marker: &str, grace: Duration) -> Result<Option<StopOrder>, Failure> {
        Ok(StopOrder::marked(marker, grace)?)
    }

    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure> {
        Ok(match how {
            Ending::Graceful => process::stop(order).await?,
            Ending::Cut => process::cut(order).await?,
        })
    }

    async fn booted(&self) -> Result<bool, Failure> {
        Ok(false)
    }

    async fn on_boot(&self, _: Boot) -> Result<(), Failure> {
        // The plan says that nothing starts it.
        Ok(())
    }

    async fn promoted(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn log_tail(&self, replica: &Replica, lines: usize) -> Result<Vec<String>, Failure> {
        Ok(replica.log.as_deref().map(|log| process::log_tail(log, lines)).unwrap_or_default())
    }
}
