use tempfile::TempDir;

use super::sshd::{Sshd, script, stand_in};
use crate::model::failure::Hint;
use crate::model::target::{HostAddr, SSH_PORT, Target};
use crate::model::wire::{Command, Frame, Request, WIRE_VERSION};
use crate::remote::agent::{self, Install};
use crate::remote::build::Build;
use crate::remote::error::RemoteError;
use crate::remote::frames::Frames;
use crate::remote::session::{Credentials, Session};

/// Digest of the stand-in.
const OWN: &str = "0123abc";

/// Echoes the request back, as proof that it arrived whole.
const ECHO: &str = r#"echo "{\"frame\":\"line\",\"text\":\"one\"}"; echo noise; echo '{"frame":"later"}'; echo "$request" >> "$0.requests"; echo '{"frame":"end"}'"#;

fn request() -> Request {
    let asked = serde_json::json!({ "v": WIRE_VERSION, "command": { "command": "status", "secrets": {}, "spec": {
        "service": "chat", "model": "Qwen's \"best\" $HOME", "model_revision": null, "slots": {},
        "replica": { "command": [], "engine": "vllm", "runtime": "auto", "user": null, "env": {}, "secret_env": [] },
        "ready": { "timeout": { "secs": 1, "nanos": 0 } },
        "drain": { "timeout": { "secs": 1, "nanos": 0 }, "on_timeout": "keep" },
        "retain": { "secs": 1, "nanos": 0 },
        "nginx": { "config": "/x", "upstream": "llm", "command": [], "pinned_workers": "wait",
            "probe": { "url": "http://127.0.0.1", "host": null, "api_key_env": null } },
        "state_dir": null } } });
    let request: Request = serde_json::from_value(asked).unwrap();
    assert!(matches!(request.command, Command::Status(_)));
    request
}

async fn local() -> Session {
    let target = Target { host: HostAddr::Local, port: SSH_PORT, jump: None };
    Session::open(&target, Credentials::default()).await.unwrap()
}

async fn all(frames: &mut Frames) -> Vec<Frame> {
    let mut seen = Vec::new();
    while let Some(frame) = frames.next().await.unwrap() {
        seen.push(frame);
    }
    seen
}

/// Asks twice: cold, then warm.
async fn asks_cold_and_warm(session: &Session, install: &Install, digest: &str) {
    for brought in [true, false] {
        let mut frames = agent::ask(session, install, &request()).await.unwrap();
        assert_eq!(frames.brought(), brought);
        assert_eq!(all(&mut frames).await, [Frame::Line { text: "one".to_owned() }]);
    }
    let placed = install.state_dir.as_ref().unwrap().join("bin").join(digest);
    let heard = std::fs::read_to_string(placed.join("model-swap.requests")).unwrap();
    let sent = serde_json::to_string(&request()).unwrap();
    assert_eq!(heard, format!("{sent}\n{sent}\n"));
    let names = std::fs::read_dir(&placed).unwrap().count();
    assert_eq!(names, 2, "the temporary file is gone");
}

#[tokio::test]
async fn the_agent_is_brought_once_over_ssh() {
    let sshd = Sshd::start();
    let session = sshd.open().await;
    asks_cold_and_warm(&session, &stand_in(sshd.folder.path(), ECHO), OWN).await;
    session.close().await;
}

#[tokio::test]
async fn the_same_lines_work_without_ssh() {
    let folder = tempfile::tempdir().unwrap();
    asks_cold_and_warm(&local().await, &stand_in(folder.path(), ECHO), OWN).await;
}

#[tokio::test]
async fn what_login_scripts_print_is_no_frame() {
    // The forced command replaces the login shell's noise: half a line, without its newline.
    let sshd = Sshd::start_with(
        "ForceCommand printf 'Welcome\\n{\"frame\":\"end\"}\\nhalf a line '; sh -c \"$SSH_ORIGINAL_COMMAND\"",
    );
    let session = sshd.open().await;
    asks_cold_and_warm(&session, &stand_in(sshd.folder.path(), ECHO), OWN).await;
}

#[tokio::test]
async fn a_forced_command_may_be_the_agent_itself() {
    let folder = tempfile::tempdir().unwrap();
    let install = stand_in(folder.path(), ECHO);
    let sshd = Sshd::start_with(&format!(
        "ForceCommand sh {} agent session",
        install.build.path.display()
    ));
    let session = sshd.open().await;
    let mut frames = agent::ask(&session, &install, &request()).await.unwrap();
    assert!(!frames.brought());
    assert_eq!(all(&mut frames).await.len(), 1);
}

#[tokio::test]
async fn standard_input_stays_open_until_nobody_follows() {
    let sshd = Sshd::start();
    let session = sshd.open().await;
    let [go, done] = ["go", "done"].map(|name| sshd.folder.path().join(name));
    assert!(std::process::Command::new("mkfifo").args([&go, &done]).status().unwrap().success());
    // `read -t 0` succeeds where there is something to read, also an end.
    let wait = format!(
        "read -r go < {}; bash -c \"read -t 0\" && was=closed || was=open; \
         echo \"{{\\\"frame\\\":\\\"line\\\",\\\"text\\\":\\\"$was\\\"}}\"; cat >/dev/null; echo gone > {}",
        go.display(),
        done.display()
    );
    let mut frames =
        agent::ask(&session, &stand_in(sshd.folder.path(), &wait), &request()).await.unwrap();
    tokio::fs::write(&go, "go\n").await.unwrap();
    let was = frames.next().await.unwrap();
    assert_eq!(was, Some(Frame::Line { text: "open".to_owned() }));
    drop(frames);
    assert_eq!(tokio::fs::read_to_string(&done).await.unwrap(), "gone\n");
}

#[tokio::test]
async fn a_cut_connection_is_lost_and_not_failed() {
    let sshd = Sshd::start();
    let session = sshd.open().await;
    let hang = r#"echo '{"frame":"line","text":"on"}'; printf '{"frame":'; cat >/dev/null"#;
    let mut frames =
        agent::ask(&session, &stand_in(sshd.folder.path(), hang), &request()).await.unwrap();
    assert!(frames.next().await.unwrap().is_some());
    sshd.cut();
    let error = frames.next().await.unwrap_err();
    assert!(matches!(error, RemoteError::Lost { .. }) && error.is_lost(), "{error}");
    assert!(frames.next().await.unwrap_err().is_lost());

    // A new connection follows on.
    let session = sshd.open().await;
    let mut frames =
        agent::ask(&session, &stand_in(sshd.folder.path(), hang), &request()).await.unwrap();
    assert!(frames.next().await.unwrap().is_some());
}

#[tokio::test]
async fn an_answer_without_its_end_is_lost_and_says_what_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let install = stand_in(folder.path(), "echo 'thread panicked' >&2; exit 101");
    let mut frames = agent::ask(&local().await, &install, &request()).await.unwrap();
    let error = frames.next().await.unwrap_err();
    assert!(error.is_lost());
    assert!(
        error.to_string().contains("101") && error.to_string().contains("thread panicked"),
        "{error}"
    );
}

#[tokio::test]
async fn somebody_else_who_answers_is_quoted() {
    for expected in [1, 127] {
        let sshd = Sshd::start_with(&format!(
            "ForceCommand echo 'This account is not available'; echo sorry >&2; exit {expected}"
        ));
        let session = sshd.open().await;
        let install = stand_in(sshd.folder.path(), ECHO);
        let error = agent::ask(&session, &install, &request()).await.err().unwrap();
        assert!(
            matches!(&error, RemoteError::NoAgent { code, .. } if *code == expected),
            "{error}"
        );
        assert_eq!(error.log_tail(), ["This account is not available", "sorry"]);
        assert!(!error.is_lost());
    }
}

#[tokio::test]
async fn why_the_agent_could_not_be_installed() {
    let folder = tempfile::tempdir().unwrap();
    let session = local().await;

    let mut install = stand_in(folder.path(), ECHO);
    install.state_dir = Some("/proc/model-swap".into());
    let error = agent::ask(&session, &install, &request()).await.err().unwrap();
    assert!(
        matches!(&error, RemoteError::Bring { said, .. } if said.contains("/proc/model-swap")),
        "{error}"
    );

    let mut install = stand_in(folder.path(), ECHO);
    std::fs::write(&install.build.path, "#!/bin/sh\necho 'digest differs' >&2; exit 3\n").unwrap();
    let error = agent::ask(&session, &install, &request()).await.err().unwrap();
    assert!(error.to_string().contains("digest differs (exit code 3)"), "{error}");

    install.build.digest = "'; rm -rf /".to_owned();
    let error = agent::ask(&session, &install, &request()).await.err().unwrap();
    assert!(matches!(&error, RemoteError::Value { what: "digest", .. }), "{error}");
}

/// A server whose processor is of the given kind by its `uname`, which lies in the folder.
fn server_that_is(architecture: &str) -> (Sshd, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    script(folder.path(), "uname", &format!("echo {architecture}"));
    let sshd = Sshd::start_with(&format!("SetEnv PATH={}:{path}", folder.path().display()));
    (sshd, folder)
}

#[tokio::test]
async fn another_architecture_is_named_before_anything_is_sent() {
    for architecture in ["riscv64", "/../secret"] {
        let (sshd, _uname) = server_that_is(architecture);
        let session = sshd.open().await;
        let install = stand_in(sshd.folder.path(), ECHO);
        // A server may not choose which file it is sent.
        let folder = sshd.folder.path();
        std::fs::create_dir(folder.join("model-swap-")).unwrap();
        std::fs::copy(&install.build.path, folder.join("secret")).unwrap();
        let error = agent::ask(&session, &install, &request()).await.err().unwrap();
        assert!(
            matches!(&error, RemoteError::Architecture { theirs, .. } if theirs == architecture),
            "{error}"
        );
        assert!(!install.state_dir.unwrap().exists());
    }
}

#[tokio::test]
async fn a_server_of_another_architecture_gets_the_build_for_it() {
    let theirs = if std::env::consts::ARCH == "x86_64" { "aarch64" } else { "x86_64" };
    let (sshd, _uname) = server_that_is(theirs);
    let session = sshd.open().await;
    let mut install = stand_in(sshd.folder.path(), ECHO);
    let beside = sshd.folder.path().join(format!("model-swap-{theirs}"));
    std::fs::rename(&install.build.path, &beside).unwrap();
    install.build.path = "/nowhere".into();
    let printed = std::process::Command::new("sha256sum").arg(beside).output().unwrap().stdout;
    let digest = String::from_utf8(printed).unwrap().split(' ').next().unwrap().to_owned();
    asks_cold_and_warm(&session, &install, &digest).await;
}

#[tokio::test]
async fn sudo_that_refuses_is_quoted_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    script(folder.path(), "id", "echo 1000");
    script(
        folder.path(),
        "sudo",
        "echo 'sudo: a password is required'; echo 'sudo: unable to resolve host gpu-1'; exit 1",
    );
    let sshd = Sshd::start_with(&format!("SetEnv PATH={}:{path}", folder.path().display()));
    let session = sshd.open().await;
    let install =
        Install { nginx_config: Some("/nowhere".into()), ..stand_in(folder.path(), ECHO) };
    let error = agent::ask(&session, &install, &request()).await.err().unwrap();
    assert!(
        matches!(&error, RemoteError::Sudo { said, .. } if said == "sudo: a password is required"),
        "{error}"
    );
    assert!(error.hints()[0].contains("NOPASSWD"), "{:?}", error.hints());
}

#[tokio::test]
async fn a_connection_that_broke_while_idle_says_that_nothing_was_asked() {
    let sshd = Sshd::start();
    let session = sshd.open().await;
    sshd.cut();
    let error =
        agent::ask(&session, &stand_in(sshd.folder.path(), ECHO), &request()).await.err().unwrap();
    // ssh may not have noticed yet; both are true.
    assert!(
        matches!(&error, RemoteError::NoChannel { .. } | RemoteError::Lost { .. }),
        "{error:?}"
    );
}

#[test]
fn the_digest_is_what_sha256sum_prints() {
    let Build { path, digest } = Build::own().unwrap();
    assert_eq!(path, std::path::Path::new("/proc/self/exe"));
    let printed = std::process::Command::new("sha256sum")
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&printed.stdout).starts_with(&digest));
}
