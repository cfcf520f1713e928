//! A few lives of `make soak` that are lived every time.

use anyhow::Result;
use testbed::soak;
use tokio::task::JoinSet;

use crate::support::binary;

/// A key with a forced command, an upgrade of nginx and what an older agent has left; a second service and a state folder that is
/// given away; a full disk, a link that is cut and a record that is torn under a program that follows; a kernel without watches, and a file that nginx
/// cannot load and a swap that is stuck because of it.
const SEEDS: [u64; 5] = [59, 779, 1322, 1850, 5127];

/// What the lives are for. Which fault meets which command a seed decides; whether it comes in time, the machine.
const FAULTS: [&str; 9] = [
    "NginxUpgraded",
    "LeftByOlder",
    "Neighboured",
    "StateTaken",
    "DiskFull",
    "LinkCut",
    "RecordTorn",
    "Unwatched",
    "FileSpoiled",
];

/// Each life has a thread: what one waits for holds up no other one's clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 5)]
async fn whatever_strikes_when_the_server_lives_well() -> Result<()> {
    let mut lives = JoinSet::new();
    for seed in SEEDS {
        lives.spawn(async move { soak::live(&binary(), seed).await });
    }
    let mut lived = Vec::new();
    while let Some(life) = lives.join_next().await {
        let life = life??;
        assert!(life.problems.is_empty(), "{life}");
        lived.push(life);
    }
    // A change of what dice decide takes the seeds their meaning: look for others then.
    let acts: Vec<_> = lived.iter().flat_map(|life| &life.acts).collect();
    let lacking =
        FAULTS.map(|fault| (fault, acts.iter().any(|act| act.contains(&format!(", {fault} ")))));
    assert!(lacking.iter().all(|(_, is_there)| *is_there), "{lacking:?} in {acts:#?}");
    assert!(lived.iter().any(|life| life.locked_down), "no key has a forced command: {acts:#?}");
    Ok(())
}
