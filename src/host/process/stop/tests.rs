use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::super::launch::tests::{launcher, script};
use super::super::testing::{LIMIT, Process, Strays, until, until_runs};
use super::super::{Launch, start, tree};
use super::*;
use crate::model::wire::MARKER;

/// For those that end by themselves; long enough to never matter.
const PATIENT: Duration = LIMIT;
/// For those that don't; long enough for a shell to answer the signal in its own way.
const SHORT: Duration = Duration::from_secs(2);

fn order(main: ProcessId, grace: Duration) -> StopOrder {
    StopOrder { main, tree: tree(main).unwrap(), marker: None, grace, keeper: Keeper::Nobody }
}

async fn tree_of(main: ProcessId, size: usize) -> Vec<ProcessId> {
    until("the tree has grown", || tree(main).ok().filter(|tree| tree.len() == size)).await
}

/// A tree of a shell that runs `script` and starts `sleep 1000` itself.
async fn shell(script: &str, size: usize) -> (Process, Strays) {
    let main = Process::start(&["sh", "-c", script], Stdio::null());
    let tree = tree_of(main.id(), size).await;
    for child in &tree[1..] {
        until_runs(*child, "sleep").await;
    }
    (main, Strays(tree[1..].to_vec()))
}

#[tokio::test]
async fn the_end_of_a_process_is_awaited() {
    let mut child = Process::start(&["sleep", "1000"], Stdio::null());
    let id = child.id();
    let waiting = tokio::spawn(exited(id));
    child.0.kill().unwrap();
    tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap();
    // Still a zombie, and no longer one.
    exited(id).await.unwrap();
    drop(child);
    exited(id).await.unwrap();
}

#[tokio::test]
async fn a_process_that_ends_when_asked_is_not_forced() {
    let main = Process::start(&["sleep", "1000"], Stdio::null());
    let stopped = stop(&order(main.id(), PATIENT)).await.unwrap();
    assert_eq!(stopped, Stopped { ended: vec![main.id()], ..Stopped::default() });
}

#[tokio::test]
async fn what_others_live_on_is_not_stopped_whatever_a_record_says() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("dockerd");
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let program = program.to_str().unwrap();
    let main = Process::start(&[program, "1000"], Stdio::null());
    until_runs(main.id(), program).await;
    let order = order(main.id(), PATIENT);
    for refused in [stop(&order).await, cut(&order).await] {
        assert!(matches!(refused, Err(ProcessError::Spared(_))), "{refused:?}");
    }
    assert!(alive(main.id()));
}

#[tokio::test]
async fn only_the_main_process_is_asked_and_the_rest_is_forced() {
    // The shell ends when asked; its child, which nobody asks, stays.
    let (main, _strays) = shell("trap 'exit 0' TERM; sleep 1000 & wait", 2).await;
    let order = order(main.id(), SHORT);
    let stopped = stop(&order).await.unwrap();
    assert_eq!(stopped.forced, order.tree[1..]);
    assert!(order.tree.iter().all(|process| !alive(*process)));
}

#[tokio::test]
async fn who_ignores_the_request_is_forced_with_those_that_came_up_meanwhile() {
    let (main, _strays) = shell("trap 'sleep 1000 & wait' TERM; sleep 1000 & wait", 2).await;
    let stopped = stop(&order(main.id(), SHORT)).await.unwrap();
    let _more = Strays(stopped.ended.clone());
    assert_eq!(stopped.ended.len(), 3);
    assert_eq!(stopped.forced, stopped.ended);
    assert!(stopped.ended.iter().all(|process| !alive(*process)));
}

#[tokio::test]
async fn a_stranger_in_the_same_group_lives() {
    let (main, _strays) = {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]).process_group(0);
        let main = Process::spawn(&mut command);
        let tree = tree_of(main.id(), 2).await;
        (main, Strays(tree[1..].to_vec()))
    };
    let mut command = Command::new("sleep");
    let stranger = Process::spawn(command.arg("1000").process_group(main.id().pid));
    let group = |id: ProcessId| procfs::process::Process::new(id.pid).unwrap().stat().unwrap().pgrp;
    assert_eq!(group(stranger.id()), group(main.id()));
    let order = order(main.id(), SHORT);
    stop(&order).await.unwrap();
    assert!(order.tree.iter().all(|process| !alive(*process)));
    assert!(alive(stranger.id()));
}

#[tokio::test]
async fn a_later_process_of_the_same_pid_lives() {
    let stranger = Process::start(&["sleep", "1000"], Stdio::null());
    let before = ProcessId { start: stranger.id().start - 1, ..stranger.id() };
    let order = StopOrder {
        main: before,
        tree: vec![before],
        marker: None,
        grace: PATIENT,
        keeper: Keeper::Nobody,
    };
    assert!(stop(&order).await.unwrap().forced.is_empty());
    assert!(cut(&order).await.unwrap().forced.is_empty());
    assert!(alive(stranger.id()));
}

#[tokio::test]
async fn what_outlived_its_main_process_is_ended_if_it_was_known() {
    let (mut main, _strays) = shell("sleep 1000 & wait", 2).await;
    let order = order(main.id(), PATIENT);
    main.0.kill().unwrap();
    main.0.wait().unwrap();
    assert!(alive(order.tree[1]));
    let stopped = stop(&order).await.unwrap();
    assert!(!alive(order.tree[1]));
    assert!(stopped.forced.is_empty(), "it was asked, since nobody else could be");
}

#[tokio::test]
async fn what_outlived_its_main_process_is_ended_by_its_marker_alone() {
    let folder = tempfile::tempdir().unwrap();
    let marker = format!("chat/s-{}/a", folder.path().display());
    // The second child writes a title over its environment, as vLLM's engine core does.
    let text = "sleep 1000 & perl -e '$0 = \"VLLM::EngineCore\"; sleep 1000' & wait";
    let mut launch: Launch = script(folder.path(), text);
    launch.env.insert(MARKER.to_owned(), marker.clone());
    let mut started = start(&launch, &launcher()).await.unwrap();
    let tree = tree_of(started.main, 3).await;
    let _strays = Strays(tree.clone());
    until("the title is set", || (find_marked(&marker).ok()?.len() == 2).then_some(())).await;
    let marked = StopOrder::marked(&marker, PATIENT).unwrap().unwrap();
    assert_eq!(marked.main, started.main);

    started.child.kill().await.unwrap();
    assert!(tree[1..].iter().all(|process| alive(*process)));
    let order = StopOrder {
        main: started.main,
        tree: Vec::new(),
        marker: Some(marker.clone()),
        grace: PATIENT,
        keeper: Keeper::Nobody,
    };
    stop(&order).await.unwrap();
    assert!(tree.iter().all(|process| !alive(*process)));
    assert_eq!(StopOrder::marked(&marker, PATIENT).unwrap(), None);
}

#[tokio::test]
async fn of_what_ran_before_a_boot_nobody_is_stopped() {
    let marker = Some("chat/s-before-the-boot/a".to_owned());
    let main = ProcessId::GONE;
    let order =
        StopOrder { main, tree: vec![main], marker, grace: PATIENT, keeper: Keeper::Nobody };
    // Here no more than looked at: were anybody meant, it would not be ours.
    assert!(members(&order).unwrap().is_empty());
}

#[tokio::test]
async fn a_cut_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let asked = folder.path().join("asked");
    let script = format!("trap 'touch {}' TERM; sleep 1000 & wait", asked.display());
    let (main, _strays) = shell(&script, 2).await;
    let order = order(main.id(), PATIENT);
    let stopped = cut(&order).await.unwrap();
    assert_eq!(stopped.forced.len(), 2);
    assert!(order.tree.iter().all(|process| !alive(*process)));
    assert!(!asked.exists());
}

#[tokio::test]
async fn neither_the_agent_nor_its_parents_are_signalled() {
    let own = super::super::table::row(std::process::id().cast_signed()).unwrap().id;
    let order = StopOrder {
        main: own,
        tree: Vec::new(),
        marker: None,
        grace: SHORT,
        keeper: Keeper::Nobody,
    };
    assert!(matches!(stop(&order).await, Err(ProcessError::Own(_))));
    assert!(matches!(cut(&order).await, Err(ProcessError::Own(_))));
    // Nothing is tried on the parents: a failure would end the machine's own processes.
    let table = Table::read().unwrap();
    assert!(table.parent(own).is_none_or(|parent| table.own_line().contains(&parent)));
}

#[tokio::test]
async fn a_wrapper_that_starts_its_program_again_is_seen() {
    // Not as its child, where another one runs it, as sudo does.
    let script = "while true; do sh -c 'sleep 1000; true'; sleep 0.3; done";
    let wrapper = Process::start(&["sh", "-c", script], Stdio::null());
    let first = tree_of(wrapper.id(), 3).await[2];
    until_runs(first, "sleep").await;
    stop(&order(first, PATIENT)).await.unwrap();
    let argv = ["sleep", "1000"].map(str::to_owned);
    let again = restarted_by(wrapper.id(), &argv).await.unwrap().unwrap();
    let _strays = Strays(vec![again]);
    assert_ne!(again, first);
    // Not what it ran in between.
    assert_eq!(Program::of(again).unwrap().argv, argv);
    // Before what it would start again.
    drop(wrapper);
}

#[tokio::test]
async fn a_wrapper_that_ends_with_its_program_starts_nothing() {
    let mut wrapper = Process::start(&["sh", "-c", "sleep 1000; true"], Stdio::null());
    let first = tree_of(wrapper.id(), 2).await[1];
    until_runs(first, "sleep").await;
    stop(&order(first, PATIENT)).await.unwrap();
    let id = wrapper.id();
    wrapper.0.wait().unwrap();
    assert_eq!(restarted_by(id, &["sleep", "1000"].map(str::to_owned)).await.unwrap(), None);
}
