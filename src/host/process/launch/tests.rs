use std::path::Path;

use super::super::testing::{LIMIT, Strays, until};
use super::super::{Inherited, alive, find_marked};
use super::*;
use crate::model::wire::MARKER;

const LAUNCHER: &str = "as-launcher";

/// Not a test of its own: the others run this test binary again, to play the launcher.
#[test]
fn plays_the_launcher() {
    if std::env::args().any(|argument| argument == LAUNCHER) {
        launch_main();
    }
}

/// This test binary, as the launcher.
pub(in crate::host::process) fn launcher() -> Launcher {
    let only = "host::process::launch::tests::plays_the_launcher";
    Launcher {
        program: std::env::current_exe().unwrap(),
        arguments: ["--exact", only, LAUNCHER].map(str::to_owned).to_vec(),
    }
}

/// A shell script in `folder`, with a log there.
pub(in crate::host::process) fn script(folder: &Path, text: &str) -> Launch {
    Launch {
        keeper: Keeper::Nobody,
        container: None,
        argv: ["sh", "-c", text].map(str::to_owned).to_vec(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        cwd: folder.to_owned(),
        identity: Inherited::of_self().unwrap().identity,
        log: folder.join("log"),
    }
}

async fn output_of(launch: &Launch) -> String {
    let mut started = start(launch, &launcher()).await.unwrap();
    tokio::time::timeout(LIMIT, started.child.wait()).await.unwrap().unwrap();
    std::fs::read_to_string(&launch.log).unwrap()
}

#[tokio::test]
async fn a_program_gets_what_it_was_launched_with_and_nothing_else() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let mut launch = script(folder.path(), "pwd; echo error >&2; cat; env | grep -v ^_= | sort");
    launch.env.insert("SECRET".to_owned(), "s p\"a'ce".to_owned());
    let shown = output_of(&launch).await;
    let cwd = folder.path().canonicalize().unwrap();
    let cwd = cwd.display();
    assert_eq!(shown, format!("{cwd}\nerror\nPATH=/usr/bin:/bin\nPWD={cwd}\nSECRET=s p\"a'ce\n"));
    let mode = std::fs::metadata(&launch.log).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(output_of(&launch).await, shown.repeat(2), "a log is continued");
}

#[tokio::test]
async fn a_program_leads_a_session_and_keeps_its_identity_as_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let started = start(&script(folder.path(), "exec sleep 1000"), &launcher()).await.unwrap();
    let _strays = Strays(vec![started.main]);
    assert!(alive(started.main));
    let stat = procfs::process::Process::new(started.main.pid).unwrap().stat().unwrap();
    assert_eq!((stat.session, stat.pgrp, stat.tty_nr), (started.main.pid, started.main.pid, 0));
}

#[tokio::test]
async fn no_file_of_the_callers_is_left_open() {
    let folder = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(folder.path().join("lock")).unwrap();
    // As a script around the agent would: inherited by everything that it starts.
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).unwrap();
    let shown = output_of(&script(folder.path(), "ls -l /proc/$$/fd")).await;
    assert!(shown.contains("/log") && !shown.contains("/lock"), "{shown}");
}

#[tokio::test]
async fn a_program_that_ended_is_reaped_without_being_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let Started { main, child } =
        start(&script(folder.path(), "exit 3"), &launcher()).await.unwrap();
    drop(child);
    let entry = format!("/proc/{main}");
    until("the zombie is reaped", || (!Path::new(&entry).exists()).then_some(())).await;
}

#[tokio::test]
async fn another_user_is_taken_on_with_its_groups() {
    let folder = tempfile::tempdir().unwrap();
    let mut launch = script(
        Path::new("/"),
        "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; cat /etc/shadow",
    );
    launch.log = folder.path().join("log");
    launch.identity = Identity { uid: 65534, gid: 65533, groups: vec![65533, 44] };
    if !rustix::process::geteuid().is_root() {
        let refused = start(&launch, &launcher()).await.unwrap_err().to_string();
        assert_eq!(refused, "cannot become user id 65534");
        return;
    }
    let shown = output_of(&launch).await;
    assert!(shown.starts_with("65534\n65533\n65533 44\n"), "{shown}");
    assert!(shown.contains("Permission denied"), "{shown}");
}

#[tokio::test]
async fn what_can_not_be_done_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = script(folder.path(), "true");
    let refused = async |launch: &Launch| match start(launch, &launcher()).await {
        Err(ProcessError::Launch { doing, source }) => (doing, source.kind()),
        other => panic!("{other:?}"),
    };
    let program = Launch { argv: vec!["no-such-program".to_owned()], ..good.clone() };
    assert_eq!(
        refused(&program).await,
        ("run no-such-program".to_owned(), io::ErrorKind::NotFound)
    );
    let plain = folder.path().join("plain").display().to_string();
    std::fs::write(&plain, "").unwrap();
    let program = Launch { argv: vec![plain.clone()], ..good.clone() };
    assert_eq!(refused(&program).await, (format!("run {plain}"), io::ErrorKind::PermissionDenied));
    let cwd = Launch { cwd: "/no/such".into(), ..good.clone() };
    assert_eq!(refused(&cwd).await, ("enter /no/such".to_owned(), io::ErrorKind::NotFound));
    let log = Launch { log: "/no/such/log".into(), ..good.clone() };
    assert_eq!(
        refused(&log).await,
        ("open the log /no/such/log".to_owned(), io::ErrorKind::NotFound)
    );
}

#[tokio::test]
async fn a_launcher_that_is_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let launch = script(folder.path(), "true");
    let none = Launcher { program: "/no/such".into(), arguments: Vec::new() };
    assert!(matches!(start(&launch, &none).await, Err(ProcessError::Launcher { .. })));
    let talker = Launcher {
        program: "/bin/sh".into(),
        arguments: ["-c", "echo no >&2"].map(str::to_owned).to_vec(),
    };
    let error = start(&launch, &talker).await.unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no");
}

#[tokio::test]
async fn a_launcher_is_marked_before_it_is_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let marker = format!("chat/s-{}/a", folder.path().display());
    let mut launch = script(folder.path(), "exec sleep 1000");
    launch.env.insert(MARKER.to_owned(), marker.clone());
    // It stays where it opens its log until somebody reads that.
    let pipe = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &launch.log, pipe, rustix::fs::Mode::RWXU, 0).unwrap();
    let (log, launcher) = (launch.log.clone(), launcher());
    let starting = tokio::spawn(async move { start(&launch, &launcher).await });
    let marked =
        until("the launcher is marked", || find_marked(&marker).ok()?.first().copied()).await;
    let _strays = Strays(vec![marked]);
    assert!(!starting.is_finished());
    // It waits for whoever writes, who may not be told yet what to start.
    let opening = move || OpenOptions::new().read(true).open(log).unwrap();
    let reader = tokio::task::spawn_blocking(opening).await.unwrap();
    assert_eq!(starting.await.unwrap().unwrap().main, marked);
    drop(reader);
}
