//! What supervises a replica may be away for a moment, and what is undone then waits for it: an upgrade starts dockerd anew,
//! and systemd itself.

use std::time::Duration;

use jiff::Timestamp;

use super::context::Context;
use crate::host::Host;
use crate::model::failure::Failure;
use crate::model::replica::Keeper;

/// How long an undo waits for it: dockerd stops its containers and starts within a minute, an upgrade of its packages keeps it
/// stopped for minutes.
const AWAY_LIMIT: Duration = Duration::from_secs(300);

/// Between two looks whether it answers; nobody tells.
const LOOK: Duration = Duration::from_secs(1);

/// How often one undo has failed of what supervises its replica.
pub(super) struct Away<'a, H> {
    cx: &'a Context<'a, H>,
    keeper: &'a Keeper,
    /// Until when it is waited for.
    limit: Option<Timestamp>,
    /// Whether something failed although it answered.
    has_refused: bool,
}

impl<'a, H: Host> Away<'a, H> {
    pub(super) fn new(cx: &'a Context<'a, H>, keeper: &'a Keeper) -> Self {
        Self { cx, keeper, limit: None, has_refused: false }
    }

    /// Returns once what failed so may be tried again. If the keeper answers it may have been away just now, or be about to:
    /// one more try tells.
    ///
    /// # Errors
    /// The failure itself, if nobody supervises the replica, what does answers and has refused before, or is away for too
    /// long.
    pub(super) async fn tries_again(&mut self, failure: Failure) -> Result<(), Failure> {
        let Self { cx, keeper, .. } = self;
        if keeper.is_process() {
            return Err(failure);
        }
        let limit = *self.limit.get_or_insert_with(|| cx.host.now() + AWAY_LIMIT);
        let mut was_away = false;
        while let Err(away) = cx.host.answers(keeper).await {
            if cx.host.now() >= limit {
                return Err(failure);
            }
            if !was_away {
                cx.progress(format!("waiting for what supervises it: {away}"));
            }
            was_away = true;
            cx.host.pause(LOOK).await;
        }
        if was_away {
            return Ok(());
        }
        if std::mem::replace(&mut self.has_refused, true) {
            return Err(failure);
        }
        cx.host.pause(LOOK).await;
        Ok(())
    }
}
