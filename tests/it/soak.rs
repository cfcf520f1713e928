//! A few lives of `make soak` that are lived every time.

use anyhow::Result;
use testbed::soak;
use tokio::task::JoinSet;

use crate::support::binary;

/// A line of nginx's file that a person changes in the midst of a cutover, torn records, a killed agent and runner, a file that nginx
/// cannot load and a swap that is stuck because of it, nginx stopped and started, a new model that dies once it serves.
const SEEDS: [u64; 6] = [2014, 2020, 2032, 2034, 2040, 2047];

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
