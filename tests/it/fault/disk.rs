//! A disk that gets full at any moment: nothing is done that could not be recorded.
//!
//! A full disk is made by the limit on the size of files, which is a process's own; so this test is one, too.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use model_swap::abort::{self, AbortOrder};
use model_swap::model::event::Closing;
use model_swap::model::record::RecordKind;

use super::aftermath::{self, assert_retired, done};
use super::death::settle;
use super::host::{Call, Fault};
use super::scene::{Attempt, Facts, Kind, Scene};
use super::wrong::{Wrong, limit_files};

/// More bytes than what comes after `promote` has to say.
const WORDS: u64 = 8192;

/// Set for the process of its own.
const ALONE: &str = "MODEL_SWAP_TEST_ALONE";

#[test]
fn nothing_is_done_without_its_record_on_a_full_disk() {
    // The limit is on the whole process: this test runs itself again, alone.
    if std::env::var_os(ALONE).is_some() {
        let mut alone = tokio::runtime::Builder::new_current_thread();
        alone.enable_all().start_paused(true).build().unwrap().block_on(async {
            is_given_up().await;
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

/// A swap that waits for minutes writes nothing: a full disk must not keep anybody from giving it up.
async fn is_given_up() {
    let (scene, attempt) = Scene::of(Kind::First).await;
    limit_files(Some(0));
    let ordered = abort::order(&scene.dir, &attempt.swap, &AbortOrder::default());
    limit_files(None);
    ordered.unwrap();
    assert_eq!(abort::ordered(&scene.dir, &attempt.swap), Some(AbortOrder::default()));
}

async fn under_a_full_disk() {
    for kind in Kind::ALL {
        fills_anywhere(kind).await;
        fills_on_the_way_back(kind).await;
    }
}

async fn fills_anywhere(kind: Kind) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    let (calls, after) = (scene.host.calls(), scene.facts().across_runs());
    let all = scene.records(&attempt).len();
    let mut refused = BTreeSet::new();
    for number in 0..calls.len() {
        refused.extend(refused_at(kind, (&[], number), &calls, &after).await);
    }
    // Every record was refused once, the first after the plan and the conclusion included.
    assert_eq!(refused, (0..all).collect(), "{kind:?}");
}

/// The disk fills while what failed late is undone.
async fn fills_on_the_way_back(kind: Kind) {
    let (failed, scene, attempt) = fails_late(kind).await;
    let (calls, all) = (scene.host.calls(), scene.records(&attempt));
    let after = scene.facts().across_runs();
    let mut refused = BTreeSet::new();
    for number in failed.call + 1..calls.len() {
        refused.extend(refused_at(kind, (&[failed], number), &calls, &after).await);
    }
    let undoes = |record: &RecordKind| matches!(record, RecordKind::UndoStarted { .. });
    let first = all.iter().position(undoes).expect("an undo");
    assert!((first..all.len()).all(|record| refused.contains(&record)), "{kind:?}: {refused:?}");
}

/// The last call whose failure fails a command, and the world after it was unwound.
async fn fails_late(kind: Kind) -> (Fault, Scene, Attempt) {
    let (scene, attempt) = Scene::of(kind).await;
    scene.execute(&attempt, &[]).await.unwrap().unwrap();
    for call in (0..scene.host.calls().len()).rev() {
        let fault = Fault { call, wrong: Wrong::Fails };
        let (scene, attempt) = Scene::of(kind).await;
        if scene.execute(&attempt, &[fault]).await.unwrap().unwrap().failure.is_some() {
            return (fault, scene, attempt);
        }
    }
    panic!("{kind:?}: no failure fails it")
}

/// Lets the disk fill at a call, and the next agent find room again. How many records there were, if one was refused.
async fn refused_at(
    kind: Kind,
    (faults, number): (&[Fault], usize),
    calls: &[Call],
    after: &Facts,
) -> Option<usize> {
    let what = format!("{kind:?}: {number}: {:?} after {faults:?}", calls[number]);
    let (scene, attempt) = Scene::of(kind).await;
    let before = scene.facts();
    let full = Fault { call: number, wrong: Wrong::DiskFills };
    let ended = scene.execute(&attempt, &[faults, &[full]].concat()).await.unwrap();
    limit_files(None);
    assert_eq!(scene.host.struck().last(), Some(&calls[number]), "{what}");
    let records = scene.records(&attempt);
    let refused = match ended {
        Err(error) => {
            assert!(error.to_string().contains("cannot append to journal"), "{what}: {error}");
            Some(records.len())
        }
        Ok(conclusion) => {
            let is_end = matches!(records.last(), Some(RecordKind::Concluded { .. }));
            assert!(is_end, "{what}: {conclusion:#?} after {records:#?}");
            None
        }
    };
    settle(&scene, &attempt, &before, after, &what).await;
    refused
}

async fn after_promote(kind: Kind) {
    let (calls, after, all) = aftermath::clean(kind).await;
    let mut recorded = BTreeSet::new();
    let mut promoted = 0;
    for (number, call) in calls.iter().enumerate() {
        let what = format!("{kind:?}: {number}: {call:?}");
        let (scene, attempt) = done(kind).await;
        promoted = scene.records(&attempt).len();
        outgrow_the_events(&scene.dir.swap(&attempt.swap));
        let fault = Fault { call: number, wrong: Wrong::DiskFills };
        let closing = scene.aftermath(&attempt, &[fault]).await;
        limit_files(None);
        if let Some(Closing::Kept { failure, .. }) = closing {
            let state = scene.dir.load().unwrap();
            assert!(state.retained.is_some(), "{what}: what is gone is said to run: {failure:?}");
        }
        assert_eq!(scene.host.struck(), std::slice::from_ref(call), "{what}");
        recorded.insert(scene.records(&attempt).len());
        scene.go_on(&attempt).await;
        assert_retired(&scene, &attempt, &after, &what).await;
    }
    // Every record was refused once; the last look at the clock is for a word that is said and not recorded.
    assert_eq!(recorded, (promoted..=all).collect(), "{kind:?}");
}

/// Lets the journal alone meet a limit that is made to its length: what is said fits.
fn outgrow_the_events(folder: &Path) {
    let length = |name| std::fs::metadata(folder.join(name)).unwrap().len();
    let room = (length("events.ndjson") + WORDS).saturating_sub(length("journal.ndjson"));
    let mut journal = OpenOptions::new().append(true).open(folder.join("journal.ndjson")).unwrap();
    journal.write_all(&vec![b'\n'; usize::try_from(room).unwrap()]).unwrap();
}
