//! The nginx that runs, although somebody may restart it between any two looks at it.

use crate::host::Host;
use crate::host::nginx::Reloaded;
use crate::model::failure::Failure;
use crate::model::ids::ProcessId;

/// How often nginx may be restarted while it is looked at. A person restarts it once, an upgrade of its packages does so a
/// second time; more often it only is where it keeps failing.
const RESTARTS: usize = 3;

/// The nginx that runs, as it was seen last.
pub(super) struct Running {
    master: ProcessId,
    restarts: usize,
}

impl Running {
    /// As somebody has seen it.
    pub(super) fn seen(master: ProcessId) -> Self {
        Self { master, restarts: 0 }
    }

    /// Its workers as they are now, without a reload; of an nginx that was restarted since it was seen, those of the one that
    /// runs. Whoever restarted it had it read the same file, unless that was changed as well: only a proof tells.
    ///
    /// # Errors
    /// If it cannot be seen, or is restarted again and again.
    pub(super) async fn workers<H: Host>(&mut self, host: &H) -> Result<Reloaded, Failure> {
        loop {
            let gone = match host.loaded(self.master) {
                Ok(workers) => return Ok(workers),
                Err(gone) => gone,
            };
            let running = host.upstream_at_rest().await?.master;
            if running == self.master || self.restarts == RESTARTS {
                return Err(gone);
            }
            (self.master, self.restarts) = (running, self.restarts + 1);
        }
    }
}
