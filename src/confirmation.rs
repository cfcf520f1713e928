//! F2: the runner's word that customers meet the candidate of a swap: one durable file a swap, read by its agent.
//!
//! It counts by its content: the nonce is made anew by every attempt to wait for it, so that no word from before counts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::watch::Watch;
use crate::model::ids::SwapId;
use crate::service_dir::{ServiceDir, StateError, write_json};

/// What the file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    nonce: String,
}

/// Gives the word for a swap. On the disk when this returns; whether the swap still waits for it is for its agent.
///
/// # Errors
/// If the disk refuses.
pub fn give(dir: &ServiceDir, swap: &SwapId, nonce: &str) -> Result<(), StateError> {
    write_json(&file(dir, swap), &Word { nonce: nonce.to_owned() })
}

/// Returns once the word with this nonce is given.
pub async fn until_given(dir: &ServiceDir, swap: &SwapId, nonce: &str) {
    let mut watch = Watch::folder(&dir.confirmations());
    let is_given = || {
        let text = std::fs::read(file(dir, swap)).ok()?;
        serde_json::from_slice::<Word>(&text).ok().filter(|word| word.nonce == nonce)
    };
    // Watched before it is looked at, so that no word falls between.
    while is_given().is_none() {
        watch.changed().await;
    }
}

fn file(dir: &ServiceDir, swap: &SwapId) -> PathBuf {
    dir.confirmations().join(format!("{swap}.json"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn only_the_word_with_the_nonce_of_this_attempt_counts() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let (swap, other): (SwapId, SwapId) = ("s-1".parse().unwrap(), "s-2".parse().unwrap());
        give(&dir, &swap, "of-an-earlier-attempt").unwrap();
        give(&dir, &other, "n-1").unwrap();
        let waits = std::pin::pin!(until_given(&dir, &swap, "n-1"));
        let long = Duration::from_millis(50);
        let mut waits = waits;
        assert!(tokio::time::timeout(long, &mut waits).await.is_err(), "another word counted");
        give(&dir, &swap, "n-1").unwrap();
        waits.await;
    }
}
