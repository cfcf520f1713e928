use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use super::sshd::{Sshd, gone, keygen, processes_with};
use crate::model::failure::Hint;
use crate::model::secret::Secret;
use crate::model::target::Target;
use crate::remote::error::{HostKeyFault, RemoteError};
use crate::remote::key::KeyError;
use crate::remote::session::{Credentials, Session};

/// The private folder of a session, found by the only ssh that goes to this port.
fn master_of(sshd: &Sshd) -> Vec<String> {
    processes_with(&format!("-p {} ", sshd.port))
        .into_iter()
        .filter(|line| line.contains("ControlPersist"))
        .collect()
}

#[tokio::test]
async fn nothing_is_left_after_close_or_drop() {
    let sshd = Sshd::start();
    for closed in [true, false] {
        let session = sshd.open().await;
        let masters = master_of(&sshd);
        assert_eq!(masters.len(), 1, "{masters:?}");
        let folder = masters[0]
            .split_whitespace()
            .find_map(|word| word.strip_suffix("/config"))
            .unwrap()
            .to_owned();
        assert!(std::path::Path::new(&folder).join("key").exists());
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&folder).unwrap());
        assert_eq!(mode & 0o777, 0o700);
        if closed {
            session.close().await;
        } else {
            drop(session);
        }
        gone(&folder);
        assert!(!std::path::Path::new(&folder).exists());
    }
}

#[tokio::test]
async fn an_unknown_host_key_is_offered_for_pinning() {
    let sshd = Sshd::start();
    let known_hosts = Some(sshd.pin("gpu-9", "ed25519"));
    let error = sshd.refused(Credentials { known_hosts, ..sshd.credentials() }).await;
    let RemoteError::HostKey { known_as, fault: HostKeyFault::Unknown, offered } = &error else {
        panic!("{error}")
    };
    assert_eq!(*known_as, format!("[127.0.0.1]:{}", sshd.port));
    assert_eq!(
        offered.iter().map(|key| key.kind.as_str()).collect::<Vec<_>>(),
        ["ssh-ed25519", "ecdsa-sha2-nistp256"]
    );

    // The line that the hint gives is one that works.
    let hints = error.hints();
    let line = hints.iter().find_map(|hint| hint.split_once("known-hosts: ")).unwrap().1.to_owned();
    let credentials = Credentials { known_hosts: Some(line), ..sshd.credentials() };
    Session::open(&sshd.target(), credentials).await.unwrap().close().await;
}

#[tokio::test]
async fn a_changed_host_key_is_refused_with_a_warning() {
    let sshd = Sshd::start();
    let other = Sshd::start();
    let pin = other.pin(&format!("[127.0.0.1]:{}", sshd.port), "ed25519");
    let error = sshd.refused(Credentials { known_hosts: Some(pin), ..sshd.credentials() }).await;
    assert!(matches!(&error, RemoteError::HostKey { fault: HostKeyFault::Changed, .. }), "{error}");
    assert!(error.hints()[0].contains("do not pin"), "{:?}", error.hints());
}

#[tokio::test]
async fn any_pinned_type_of_key_is_enough_and_so_is_the_bare_host() {
    let sshd = Sshd::start();
    // ssh prefers ed25519, so only a file that names the port makes it ask for ecdsa.
    for name in [format!("[127.0.0.1]:{}", sshd.port), "127.0.0.1".to_owned()] {
        let known_hosts =
            format!("{}{}", Sshd::start().pin("gpu-9", "ed25519"), sshd.pin(&name, "ecdsa"));
        let credentials = Credentials { known_hosts: Some(known_hosts), ..sshd.credentials() };
        Session::open(&sshd.target(), credentials).await.unwrap().close().await;
    }
}

#[tokio::test]
async fn a_key_that_is_not_authorised_is_named() {
    let sshd = Sshd::start();
    let path = sshd.folder.path().join("stranger").display().to_string();
    keygen(&path, "ed25519");
    let stranger = Secret::from(sshd.read("stranger"));
    let error = sshd.refused(Credentials { key: Some(stranger), ..sshd.credentials() }).await;
    let RemoteError::Denied { said, fingerprint: Some(fingerprint) } = &error else {
        panic!("{error}")
    };
    assert!(said.contains("@127.0.0.1: Permission denied"), "{said}");
    let shown =
        std::process::Command::new("ssh-keygen").args(["-lf", &path]).output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&shown).contains(fingerprint), "{fingerprint}");
}

#[tokio::test]
async fn a_mangled_key_works_and_an_encrypted_one_is_refused_before_connecting() {
    let sshd = Sshd::start();
    let mangled = Secret::from(sshd.read("client").trim_end().replace('\n', "\r\n"));
    let credentials = Credentials { key: Some(mangled), ..sshd.credentials() };
    Session::open(&sshd.target(), credentials).await.unwrap().close().await;

    let path = sshd.folder.path().join("client");
    let locked = std::process::Command::new("ssh-keygen")
        .args(["-q", "-p", "-N", "secret", "-f"])
        .arg(path)
        .status();
    assert!(locked.unwrap().success());
    let error = sshd.refused(sshd.credentials()).await;
    assert!(matches!(error, RemoteError::Key(KeyError::Encrypted)), "{error}");
}

#[tokio::test]
async fn who_cannot_be_reached_is_named() {
    let sshd = Sshd::start();
    let closed = testbed::server::free_port().unwrap();
    let target = Target { port: closed, ..sshd.target() };
    let error = Session::open(&target, sshd.credentials()).await.unwrap_err();
    assert!(
        matches!(&error, RemoteError::Unreachable { said, .. } if said.contains("refused")),
        "{error}"
    );

    let target = Target { host: "gpu-1.invalid".parse().unwrap(), ..sshd.target() };
    let error = Session::open(&target, sshd.credentials()).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Unresolved { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_never_speaks_meets_the_deadline() {
    let sshd = Sshd::start();
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = Target { port: silent.local_addr().unwrap().port(), ..sshd.target() };
    let error = Session::open_within(&target, sshd.credentials(), Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(&error, RemoteError::Slow { .. }), "{error}");
}

#[tokio::test]
async fn a_jump_is_held_to_the_same_key_and_known_hosts() {
    let bastion = Sshd::start();
    let sshd = Sshd::start();
    std::fs::copy(sshd.folder.path().join("client.pub"), bastion.folder.path().join("authorized"))
        .unwrap();
    // Another name for the same machine: ssh refuses to jump from a host to itself.
    let target = Target { jump: Some(format!("localhost:{}", bastion.port)), ..sshd.target() };

    let error = Session::open(&target, sshd.credentials()).await.unwrap_err();
    let RemoteError::HostKey { known_as, offered, .. } = &error else { panic!("{error}") };
    assert_eq!(*known_as, format!("[localhost]:{}", bastion.port));
    assert!(!offered.is_empty());

    let mut both = sshd.credentials().known_hosts.unwrap();
    both.push_str(&bastion.pin(&format!("[localhost]:{}", bastion.port), "ed25519"));
    let credentials = Credentials { known_hosts: Some(both), ..sshd.credentials() };
    let session = Session::open(&target, credentials.clone()).await.unwrap();
    assert!(sshd.read("log").contains("Accepted publickey"));
    session.close().await;

    let behind = Target { port: 1, ..target };
    let error = Session::open(&behind, credentials).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Unreachable { .. }), "{error}");
}
