use std::process::{Command, Stdio};

use super::super::testing::{Process, until, until_runs};
use super::*;

#[tokio::test]
async fn a_process_passes_on_where_and_as_whom_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sleep");
    command
        .arg("1000")
        .env_clear()
        .env("HOME", "/srv/llm")
        .env("PATH", "/opt/bin:/bin")
        .env("TOKEN", "a=b");
    let child = Process::spawn(command.current_dir(folder.path()));
    // The environment is the last thing that an exec puts in place.
    until("the environment is there", || environment(child.id()).ok()?.get("TOKEN").cloned()).await;
    let found = inherited(child.id()).unwrap();
    assert_eq!(found.home, Path::new("/srv/llm"));
    assert_eq!(found.path, "/opt/bin:/bin");
    assert_eq!(found.cwd, folder.path().canonicalize().unwrap());
    assert!(found.identity.is_own());
    assert_eq!(environment(child.id()).unwrap()["TOKEN"], "a=b");
}

#[tokio::test]
async fn an_overwritten_environment_is_not_taken_for_an_empty_one() {
    let title = "$0 = 'VLLM::EngineCore'; sleep 1000";
    let child = Process::spawn(
        Command::new("perl").args(["-e", title]).env("HOME", "/nowhere").stdin(Stdio::null()),
    );
    until("the title is set", || {
        matches!(environment(child.id()), Err(ProcessError::BlankEnvironment(_))).then_some(())
    })
    .await;
    // The rest is known all the same.
    assert_ne!(inherited(child.id()).unwrap().home, Path::new("/nowhere"));
    let bare = Process::spawn(Command::new("sleep").arg("1000").env_clear());
    until_runs(bare.id(), "sleep").await;
    assert!(environment(bare.id()).unwrap().is_empty());
}

#[test]
fn a_gone_process_passes_nothing_on() {
    let child = Process::start(&["sleep", "1000"], Stdio::null());
    let id = child.id();
    drop(child);
    assert!(matches!(environment(id), Err(ProcessError::Gone(_))));
    assert!(matches!(inherited(id), Err(ProcessError::Gone(_))));
}

#[test]
fn users_come_from_passwd() {
    let root = Inherited::of_user("root").unwrap();
    assert_eq!(
        (root.identity.uid, root.identity.gid, root.home.as_path()),
        (0, 0, Path::new("/root"))
    );
    assert!(matches!(Inherited::of_user("no-such-user"), Err(ProcessError::UnknownUser(_))));
    let own = Inherited::of_self().unwrap();
    assert!(own.identity.is_own());
    assert_eq!(own.cwd, own.home);
}

#[test]
fn who_called_sudo_is_known_by_his_numbers_where_nothing_knows_his_name() {
    let known = Inherited::of_caller("root", Some((4242, 4243))).unwrap();
    assert_eq!((known.identity.uid, known.home.as_path()), (0, Path::new("/root")));
    let unknown = Inherited::of_caller("no-such-user", Some((4242, 4243))).unwrap();
    let identity = Identity { uid: 4242, gid: 4243, groups: vec![4243] };
    assert_eq!((unknown.identity, unknown.user.as_deref()), (identity, Some("no-such-user")));
    assert!(matches!(
        Inherited::of_caller("no-such-user", None),
        Err(ProcessError::UnknownUser(_))
    ));
}

#[test]
fn who_may_write_the_kernel_says() {
    let folder = tempfile::tempdir().unwrap();
    let own = Identity::own();
    may_write(&own, folder.path()).unwrap();
    assert!(may_write(&own, &folder.path().join("none")).is_err());
    if own.uid == 0 {
        // A temporary folder is nobody else's.
        let nobody = Identity { uid: 65534, gid: 65534, groups: vec![65534] };
        assert!(may_write(&nobody, folder.path()).is_err());
        may_write(&nobody, Path::new("/tmp")).unwrap();
        assert_eq!(Identity::own(), own, "the look is a thread's of its own");
    }
}

#[test]
fn groups_are_the_primary_one_and_those_that_list_the_user() {
    let groups = "root:x:0:\nvideo:x:44:llm,deploy\nrender:x:105:deploy\nllm:x:1001:\nbroken\n";
    assert_eq!(groups_of(groups, "llm", 1001), [44, 1001]);
    assert_eq!(groups_of(groups, "deploy", 1002), [44, 105, 1002]);
    assert_eq!(groups_of(groups, "ll", 7), [7]);
}
