//! A disk that gets full at any moment: nothing is done that could not be recorded.
//!
//! A full disk is made by the limit on the size of files, which is a process's own; so this test is one, too.

use std::process::Command;

use super::aftermath::{self, assert_retired, done};
use super::death::settle;
use super::host::Fault;
use super::scene::{Kind, Scene};
use super::wrong::{Wrong, limit_files};

/// Set for the process of its own.
const ALONE: &str = "MODEL_SWAP_TEST_ALONE";

#[test]
fn nothing_is_done_without_its_record_on_a_full_disk() {
    // The limit is on the whole process: this test runs itself again, alone.
    if std::env::var_os(ALONE).is_some() {
        let mut alone = tokio::runtime::Builder::new_current_thread();
        alone.enable_all().start_paused(true).build().unwrap().block_on(async {
            under_a_full_disk().await;
            for kind in [Kind::First, Kind::Rollback, Kind::BackToUnit] {
                after_promote(kind).await;
            }
        });
        return;
    }
    // The kernel kills whoever writes beyond the limit, unless that is ignored: then it is an error as on a full disk.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "fault::disk::nothing_is_done_without_its_record_on_a_full_disk"])
        .args(["--test-threads=1", "--nocapture"])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn under_a_full_disk() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let (calls, after) = (scene.host.calls(), scene.facts().across_runs());
    let all = scene.records(&attempt).len();
    let mut refused = std::collections::BTreeSet::new();
    for (number, call) in calls.iter().enumerate() {
        let what = format!("{number}: {call:?}");
        let (scene, attempt) = Scene::of(Kind::First).await;
        let before = scene.facts();
        let fault = Fault { call: number, wrong: Wrong::DiskFills };
        let ended = scene.execute(&attempt, &[fault]).await.unwrap();
        limit_files(None);
        assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
        let recorded = scene.records(&attempt).len();
        match ended {
            Err(error) => {
                assert!(error.to_string().contains("cannot append to journal"), "{what}: {error}");
                refused.insert(recorded);
            }
            Ok(conclusion) => assert_eq!(recorded, all, "{what}: {conclusion:#?}"),
        }
        settle(&scene, &attempt, &before, &after, &what).await;
    }
    // Every record was refused once, the first after the plan and the conclusion included.
    assert_eq!(refused, (0..all).collect());
}

async fn after_promote(kind: Kind) {
    let (calls, after, all) = aftermath::clean(kind).await;
    let mut recorded = std::collections::BTreeSet::new();
    let mut promoted = 0;
    for (number, call) in calls.iter().enumerate() {
        let what = format!("{kind:?}: {number}: {call:?}");
        let (scene, attempt) = done(kind).await;
        promoted = scene.records(&attempt).len();
        let fault = Fault { call: number, wrong: Wrong::DiskFills };
        scene.aftermath(&attempt, &[fault]).await;
        limit_files(None);
        assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
        recorded.insert(scene.records(&attempt).len());
        scene.go_on(&attempt).await;
        assert_retired(&scene, &attempt, &after, &what).await;
    }
    // Every record was refused once; the last look at the clock is for a word that is said and not recorded.
    assert_eq!(recorded, (promoted..=all).collect(), "{kind:?}");
}
