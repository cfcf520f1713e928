//! A few lives of `make soak` that are lived every time.

use anyhow::Result;
use testbed::soak;
use tokio::task::JoinSet;

use crate::support::binary;

/// A new model that dies once it serves, an abort, a lost runner, a stolen port, nginx stopped, a kernel without watches, a clock that
/// is set, a file that nginx cannot load and a swap that is stuck because of it, a full disk.
const SEEDS: [u64; 5] = [6002, 6007, 6009, 6015, 6023];

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
