//! What must be refused, with nginx's own words where it has some, and the file as it was.

use std::net::TcpListener;
use std::process::Command;

use super::support::{Backend, Master, Scratch, expect, is_root};
use crate::host::nginx::process::ErrorLog;
use crate::host::nginx::{Nginx, NginxError};
use crate::model::failure::Hint;
use crate::model::record::UpstreamImage;
use crate::swap::nginx_conf::ConfError;

/// Lets `prepare` spoil what else nginx reads, then tries a flip: it must fail, and A must serve as if nothing were.
async fn fails_to_load(kind: Master, prepare: impl FnOnce(&Scratch)) -> NginxError {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start_as(kind, &Scratch::upstream(a.port));
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    prepare(&scratch);
    let error = nginx.load(&image).await.unwrap_err();
    assert!(!error.leaves_doubt(), "{error}");
    assert_eq!(scratch.upstream_file(), Scratch::upstream(a.port).into_bytes(), "not put back");
    assert!(scratch.get("/v1/models").contains("\"root\":\"A\""));
    // Undoing it must succeed although nginx would refuse every reload.
    assert_eq!(nginx.restore(&image).await.unwrap(), None);
    assert!(scratch.get("/v1/models").contains("\"root\":\"A\""));
    error
}

fn add(scratch: &Scratch, text: &str) {
    std::fs::write(scratch.path("conf.d/other.conf"), text).unwrap();
}

#[track_caller]
fn says(error: &NginxError, words: &str) {
    assert!(error.to_string().contains("[emerg]"), "{error}");
    assert!(
        error.to_failure().log_tail.iter().any(|line| line.contains(words)),
        "{:?}",
        error.to_failure()
    );
}

#[tokio::test]
async fn what_the_test_rejects_is_put_back() {
    let error =
        fails_to_load(Master::Own, |scratch| add(scratch, "server { listen 80 nonsense; }")).await;
    assert!(matches!(error, NginxError::Rejected { .. }), "{error}");
    says(&error, "invalid parameter \"nonsense\"");
}

#[tokio::test]
async fn a_missing_log_folder_is_caught() {
    let error = fails_to_load(Master::Own, |scratch| {
        add(scratch, "server { listen 127.0.0.1:1; access_log /nowhere/a.log; }")
    })
    .await;
    says(&error, "/nowhere/a.log");
}

#[tokio::test]
async fn a_listen_port_in_use_is_caught() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap();
    let error = fails_to_load(Master::Own, |scratch| {
        add(scratch, &format!("server {{ listen {address}; }}"))
    })
    .await;
    assert!(matches!(error, NginxError::NotLoaded { .. }), "{error}");
    says(&error, "Address already in use");
    says(&error, "still could not bind()");
}

#[tokio::test]
async fn a_listen_port_that_gets_free_in_time_is_no_failure() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    add(&scratch, &format!("server {{ listen {}; }}", busy.local_addr().unwrap()));
    let log = scratch.path("logs/error.log");
    let freed = std::thread::spawn(move || {
        while !std::fs::read_to_string(&log).unwrap().contains("Address already in use") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(busy);
    });
    let reloaded = nginx.load(&image).await.unwrap();
    freed.join().unwrap();
    nginx.prove(&expect(&b, &a), &reloaded).await.unwrap();
}

#[tokio::test]
async fn a_privileged_port_for_a_master_without_root_is_caught() {
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert!(lowest.trim().parse::<u16>().unwrap() > 88, "this machine lets everybody bind port 88");
    let error =
        fails_to_load(Master::NotRoot, |scratch| add(scratch, "server { listen 127.0.0.88:88; }"))
            .await;
    assert_eq!(matches!(error, NginxError::NotLoaded { .. }), is_root(), "{error}");
    says(&error, "bind() to 127.0.0.88:88 failed (13: Permission denied)");
}

#[tokio::test]
async fn a_log_that_only_root_may_write_is_caught() {
    let secret = tempfile::tempdir().unwrap();
    let folder = secret.path().display().to_string();
    if !is_root() {
        std::fs::set_permissions(
            secret.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o500),
        )
        .unwrap();
    }
    let text = format!("access_log {folder}/a.log;");
    let error = fails_to_load(Master::NotRoot, |scratch| add(scratch, &text)).await;
    assert_eq!(matches!(error, NginxError::NotLoaded { .. }), is_root(), "{error}");
    says(&error, "(13: Permission denied)");
}

#[tokio::test]
async fn a_configuration_that_is_broken_already_is_told_before_anything_is_done() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    add(&scratch, "upstream x {");
    let error = scratch.nginx().view().await.unwrap_err();
    says(&error, "unexpected end of file");
}

#[tokio::test]
async fn lines_that_somebody_edited_are_left_alone() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let edited = Scratch::upstream(a.port).replace("weight=2", "weight=3");
    std::fs::write(scratch.path("conf.d/llm.conf"), &edited).unwrap();
    for result in [nginx.load(&image).await.map(Some), nginx.restore(&image).await] {
        assert!(matches!(result, Err(NginxError::Conf(ConfError::Edited { .. }))), "{result:?}");
    }
    assert_eq!(scratch.upstream_file(), edited.into_bytes());
}

/// Somebody saves another text while nginx tests what was there a moment ago.
async fn saved_meanwhile(text: impl FnOnce(String) -> String) -> (Result<(), NginxError>, String) {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let image = scratch.nginx().image(&scratch.nginx().view().await.unwrap(), b.port).unwrap();
    std::fs::write(scratch.path("theirs"), text(Scratch::upstream(a.port))).unwrap();
    let [editor, theirs, file] = ["editor", "theirs", "conf.d/llm.conf"]
        .map(|name| scratch.path(name).display().to_string());
    let script = format!("#!/bin/sh\nmv {theirs} {file} 2>/dev/null\nexec \"$@\"\n");
    std::fs::write(&editor, script).unwrap();
    let mut spec = scratch.spec();
    spec.command.splice(0..0, ["sh".to_owned(), editor]);
    let loaded = crate::host::nginx::Nginx::new(spec).load(&image).await;
    let text = String::from_utf8(scratch.upstream_file()).unwrap();
    (loaded.map(drop), text.replace(&a.port.to_string(), "A").replace(&b.port.to_string(), "B"))
}

#[tokio::test]
async fn what_somebody_saves_in_the_midst_of_a_change_is_kept_or_refused() {
    let (loaded, text) = saved_meanwhile(|text| format!("# by hand\n{text}")).await;
    assert!(loaded.is_ok(), "{loaded:?}");
    assert!(text.starts_with("# by hand\n") && text.contains("127.0.0.1:B weight=2;"), "{text}");
    let (loaded, text) = saved_meanwhile(|text| text.replace("weight=2", "weight=3")).await;
    assert!(matches!(loaded, Err(NginxError::Conf(ConfError::Edited { .. }))), "{loaded:?}");
    assert!(text.contains("127.0.0.1:A weight=3;"), "{text}");
}

#[tokio::test]
async fn a_pid_file_that_names_no_running_nginx_is_told() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    let pid_file = scratch.path("nginx.pid");
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let own = std::process::id();
    for (content, problem) in [
        (
            Some(ended.id().to_string()),
            format!("names process {}, which is no running nginx", ended.id()),
        ),
        (Some(own.to_string()), format!("names process {own}, which is no running nginx")),
        (Some(String::new()), "holds no pid".to_owned()),
        // nginx's own test makes an empty one.
        (None, "holds no pid".to_owned()),
    ] {
        let real = std::fs::read(&pid_file).unwrap();
        match content {
            Some(content) => std::fs::write(&pid_file, content).unwrap(),
            None => std::fs::remove_file(&pid_file).unwrap(),
        }
        let error = scratch.nginx().view().await.unwrap_err();
        std::fs::write(&pid_file, &real).unwrap();
        let said = format!("no running nginx was found: {} {problem}", pid_file.display());
        assert_eq!(error.to_string(), said);
        let pid = String::from_utf8(real).unwrap();
        assert!(
            error.hints()[0].contains(pid.trim()),
            "the running master is not named: {:?}",
            error.hints()
        );
    }
    scratch.nginx().view().await.unwrap();
}

#[tokio::test]
async fn a_single_file_bind_mount_is_refused() {
    let a = Backend::named("A");
    let scratch = Scratch::start_as(Master::Mounted("llm.conf"), &Scratch::upstream(a.port));
    let error = scratch.nginx().view().await.unwrap_err();
    assert!(matches!(error, NginxError::BindMount { .. }), "{error}");
    assert_eq!(error.hints(), ["mount the folder instead of the file"]);
}

#[tokio::test]
async fn a_file_that_nginx_does_not_read_is_refused() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    let mut spec = scratch.spec();
    spec.config = scratch.path("real/llm.conf");
    let error = Nginx::new(spec.clone()).view().await.unwrap_err();
    assert!(matches!(error, NginxError::NotIncluded { .. }), "{error}");
    add(&scratch, "# nothing");
    spec.config = scratch.path("conf.d/other.conf");
    let error = Nginx::new(spec.clone()).view().await.unwrap_err();
    assert_eq!(
        error.hints(),
        [format!("set nginx.config to {}", scratch.path("conf.d/llm.conf").display())]
    );
    spec.config = scratch.path("nginx.conf");
    let view = Nginx::new(spec.clone()).view().await.unwrap();
    assert_eq!(view.file, scratch.path("conf.d/llm.conf").canonicalize().unwrap());
    spec.config = scratch.path("missing.conf");
    let error = Nginx::new(spec).view().await.unwrap_err();
    assert!(matches!(error, NginxError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_there_or_says_nothing_of_use_is_named() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    let mut spec = scratch.spec();
    spec.command = vec!["no-such-nginx".to_owned()];
    let error = Nginx::new(spec.clone()).view().await.unwrap_err();
    assert_eq!(error.to_string(), "`no-such-nginx` is not installed where it was looked for");
    spec.command = ["sh", "-c", "echo no such container >&2; exit 7"].map(str::to_owned).to_vec();
    let error = Nginx::new(spec).view().await.unwrap_err();
    assert!(error.to_string().ends_with("failed with exit code 7"), "{error}");
    assert_eq!(error.log_tail(), ["no such container"]);
}

#[tokio::test]
async fn only_the_masters_own_lines_are_its_reasons() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    let master = scratch.master().unwrap();
    let mut log = ErrorLog::of(&master, None).unwrap();
    let pid = master.process.pid;
    let own = format!("2026/11/23 10:00:00 [emerg] {pid}#{pid}: bind() failed");
    let lines = [
        format!("2026/11/23 10:00:00 [emerg] {pid}1#1: a test run's"),
        format!(
            "2026/11/23 10:00:00 [error] 7#7: upstream failed, request: \"GET / [emerg] {pid}#{pid}: x\""
        ),
        own.clone(),
        "not yet a whole line".to_owned(),
    ];
    let mut content = std::fs::read_to_string(scratch.path("logs/error.log")).unwrap();
    content.push_str(&lines.join("\n"));
    std::fs::write(scratch.path("logs/error.log"), content).unwrap();
    assert_eq!(log.news(), [own]);
    assert_eq!(log.news(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_of_another_shape_is_not_applied() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    let before = vec![format!("server 127.0.0.1:{} weight=2", a.port)];
    let image = UpstreamImage { file: scratch.path("conf.d/llm.conf"), before, after: vec![] };
    assert!(matches!(
        scratch.nginx().load(&image).await,
        Err(NginxError::Conf(ConfError::Edited { .. }))
    ));
}
