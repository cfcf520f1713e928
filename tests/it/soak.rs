//! A few lives of `make soak` that are lived every time.

use anyhow::Result;
use testbed::soak;
use tokio::task::JoinSet;

use crate::support::binary;

/// A full disk, a link that is cut, an agent, a runner and a candidate that are killed, half a record.
const SEEDS: [u64; 4] = [5007, 5013, 5018, 5026];

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
