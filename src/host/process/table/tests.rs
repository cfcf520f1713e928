use std::process::{Command, Stdio};

use super::super::testing::{Process, Strays, until, until_runs};
use super::*;

#[tokio::test]
async fn a_zombie_is_gone() {
    let child = Process::start(&["sleep", "1000"], Stdio::null());
    let id = child.id();
    assert!(alive(id));
    let mut child = child;
    child.0.kill().unwrap();
    // Ended, and not waited for.
    let is_zombie =
        || procfs::process::Process::new(id.pid).ok()?.stat().ok().filter(|stat| stat.state == 'Z');
    until("the child is a zombie", is_zombie).await;
    assert!(!alive(id));
    assert!(tree(id).unwrap().is_empty());
}

#[test]
fn a_later_process_of_the_same_pid_is_another_one() {
    let child = Process::start(&["sleep", "1000"], Stdio::null());
    let earlier = ProcessId { start: child.id().start - 1, ..child.id() };
    assert!(!alive(earlier));
    assert!(tree(earlier).unwrap().is_empty());
}

#[tokio::test]
async fn a_tree_holds_grandchildren_and_no_siblings() {
    let script = "sh -c 'sleep 1000 & sleep 1000 & wait' & wait";
    let main = Process::start(&["sh", "-c", script], Stdio::null());
    let _sibling = Process::start(&["sleep", "1000"], Stdio::null());
    let tree =
        until("the tree has grown", || tree(main.id()).ok().filter(|tree| tree.len() == 4)).await;
    let _strays = Strays(tree[1..].to_vec());
    assert_eq!(tree[0], main.id());
}

#[tokio::test]
async fn a_session_keeps_those_that_lost_their_parent() {
    // The parent in between ends at once; the main process became another program, as a launcher does.
    let script = "(sleep 1000 &) ; exec sleep 999";
    let main = Process::start(&["setsid", "sh", "-c", script], Stdio::null());
    let id = main.id();
    until_runs(id, "sleep").await;
    let tree = tree(id).unwrap();
    let _strays = Strays(tree[1..].to_vec());
    assert_eq!(tree.len(), 2, "{tree:?}");
    assert_ne!(Table::read().unwrap().parent(tree[1]), Some(id));
}

#[tokio::test]
async fn the_marker_is_found_exactly() {
    let marked = |marker| Process::spawn(Command::new("sleep").arg("1000").env(MARKER, marker));
    let [ours, other, longer] = [marked("chat/s-1/a"), marked("chat/s-1/b"), marked("chat/s-1/a2")];
    for process in [&ours, &other, &longer] {
        until_runs(process.id(), "sleep").await;
    }
    assert_eq!(find_marked("chat/s-1/a").unwrap(), [ours.id()]);
    assert!(find_marked("chat/s-1").unwrap().is_empty());
}

#[tokio::test]
async fn what_an_ended_main_process_left_behind_is_told_from_strangers() {
    // One child carries the marker, one wrote a title over its environment, one carries another marker.
    let title = "perl -e '$0 = \"VLLM::EngineCore\"; sleep 1000' &";
    let script = format!("sleep 1000 & {title} {MARKER}=other sleep 1000 & wait");
    let mut main = Process::spawn(
        Command::new("setsid")
            .args(["sh", "-c", &script])
            .env(MARKER, "chat/s-2/a")
            .stdin(Stdio::null()),
    );
    let id = main.id();
    let tree = until("the title is set", || {
        let tree = tree(id).ok()?;
        let has_title = |id: &&ProcessId| mark(**id, "chat/s-2/a") == Mark::Unknown;
        let is_complete = tree.len() == 4 && tree.iter().filter(has_title).count() == 1;
        is_complete.then_some(tree)
    })
    .await;
    let _strays = Strays(tree[1..].to_vec());
    until("the stranger runs", || (find_marked("other").ok()?.len() == 1).then_some(())).await;
    main.0.kill().unwrap();
    main.0.wait().unwrap();

    let table = Table::read().unwrap();
    let stranger = find_marked("other").unwrap();
    let mut left: Vec<_> = tree[1..].iter().copied().filter(|id| !stranger.contains(id)).collect();
    let mut orphans = table.orphans(id, "chat/s-2/a");
    left.sort();
    orphans.sort();
    assert_eq!(orphans, left);
    assert!(table.orphans(ProcessId { start: u64::MAX, ..id }, "chat/s-2/a").is_empty());
}

#[tokio::test]
async fn a_main_process_of_another_boot_left_nobody_behind() {
    let child = Process::spawn(Command::new("sleep").arg("1000").env_clear());
    until_runs(child.id(), "sleep").await;
    assert_eq!(mark(child.id(), "chat/s-1/a"), Mark::Unknown);
    // As a thread of the kernel: in no session, and without an environment.
    let kernel = Row { id: child.id(), parent: 2, session: 0 };
    let table = Table(BTreeMap::from([(kernel.id.pid, kernel)]));
    assert!(table.orphans(ProcessId::GONE, "chat/s-1/a").is_empty());
}
