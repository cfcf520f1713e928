//! A few lives of `make soak` that are lived every time.

use anyhow::Result;
use testbed::soak;
use tokio::task::JoinSet;

use crate::support::binary;

/// An agent and a runner that are killed, a link that is cut, a cancel, a candidate that is never healthy.
const SEEDS: [u64; 3] = [1001, 1003, 1004];

#[tokio::test]
async fn whatever_strikes_when_the_server_lives_well() -> Result<()> {
    let mut lives = JoinSet::new();
    for seed in SEEDS {
        lives.spawn(async move { soak::live(&binary(), seed).await });
    }
    while let Some(life) = lives.join_next().await {
        let life = life??;
        assert!(life.problems.is_empty(), "{life}");
    }
    Ok(())
}
