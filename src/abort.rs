//! F2: orders to abort a swap: one durable file a swap, written by whoever asks, read by the agent that works on it.
//!
//! The file outlives every process, so that an agent that comes up late, or one that recovers a dead one's swap, finds
//! it. It lies outside of the swap's own folder, which an agent that is still planning has not made yet. On a disk that takes
//! no byte any more it is empty: who gave it is not known then, and it is heeded all the same.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::durable;
use crate::host::watch::Watch;
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::state::Requester;
use crate::service_dir::{PRIVATE, ServiceDir, StateError, write_json};

/// Who wants a swap to be given up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AbortOrder {
    /// When, by the server's clock.
    pub at: Timestamp,
    /// Who.
    pub requester: Requester,
}

impl AbortOrder {
    /// Why the swap came to nothing.
    pub fn failure(&self) -> Failure {
        let who = self.requester.actor.as_deref().unwrap_or("somebody");
        let failure = Failure::new(format!("{who} asked to abort"));
        match &self.requester.url {
            Some(url) => failure.hint(format!("the order came from {url}")),
            None => failure,
        }
    }
}

/// Orders a swap to be aborted. On the disk when this returns, on a full one without who gave it; the swap may not have begun
/// yet, or be over.
///
/// # Errors
/// If the disk refuses.
pub fn order(dir: &ServiceDir, swap: &SwapId, order: &AbortOrder) -> Result<(), StateError> {
    let file = file(dir, swap);
    write_json(&file, order).or_else(|why| durable::mark(&file, PRIVATE).map_err(|_| why))
}

/// The order to abort a swap, if there is one.
pub fn ordered(dir: &ServiceDir, swap: &SwapId) -> Option<AbortOrder> {
    let text = std::fs::read(file(dir, swap)).ok()?;
    // An order that cannot be read is one all the same.
    Some(serde_json::from_slice(&text).unwrap_or_default())
}

/// Returns once there is an order to abort the swap.
pub async fn until_ordered(dir: &ServiceDir, swap: &SwapId) -> AbortOrder {
    let mut watch = Watch::folder(&dir.aborts());
    loop {
        // Watched before it is looked at, so that no order falls between.
        if let Some(order) = ordered(dir, swap) {
            return order;
        }
        watch.changed().await;
    }
}

fn file(dir: &ServiceDir, swap: &SwapId) -> PathBuf {
    dir.aborts().join(format!("{swap}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_found_before_and_after_one_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let (swap, other): (SwapId, SwapId) = ("s-1".parse().unwrap(), "s-2".parse().unwrap());
        assert_eq!(ordered(&dir, &swap), None);
        let requester = Requester { actor: Some("ann".to_owned()), ..Requester::default() };
        let by_ann = AbortOrder { requester, ..AbortOrder::default() };
        let (found, ()) = tokio::join!(until_ordered(&dir, &swap), async {
            order(&dir, &other, &AbortOrder::default()).unwrap();
            order(&dir, &swap, &by_ann).unwrap();
        });
        assert_eq!(found, by_ann);
        assert_eq!(until_ordered(&dir, &swap).await, by_ann);
        assert_eq!(found.failure().message, "ann asked to abort");
    }

    #[test]
    fn an_order_that_cannot_be_read_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        std::fs::write(file(&dir, &"s-1".parse().unwrap()), "{\"at\"").unwrap();
        assert_eq!(ordered(&dir, &"s-1".parse().unwrap()), Some(AbortOrder::default()));
    }
}
