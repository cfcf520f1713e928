use std::io::{IoSlice, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::super::testing::{Process, Strays, socket, until, until_runs};
use super::*;
use crate::model::replica::Keeper;

const LISTENER: &str = "as-listener";
/// Passes for sudo, as which it runs a command.
const AS_SUDO: &str = r#"perl -e '$0 = "sudo"; exit system @ARGV'"#;
const PORT_FILE: &str = "LISTENER_PORT_FILE";

/// Not a test of its own: others run this test binary again, to listen on a port that it writes to a file.
#[test]
fn plays_a_listener() {
    if std::env::args().any(|argument| argument == LISTENER) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = PathBuf::from(std::env::var_os(PORT_FILE).unwrap());
        // Whole at once, for the reader.
        let mut part = tempfile::NamedTempFile::new_in(file.parent().unwrap()).unwrap();
        write!(part, "{}", listener.local_addr().unwrap().port()).unwrap();
        part.persist(file).unwrap();
        listener.accept().unwrap();
    }
}

/// The shell command that plays a listener.
fn listener() -> String {
    let exe = std::env::current_exe().unwrap();
    format!(
        "{} --exact host::process::find::tests::plays_a_listener {LISTENER} api_key=topsecret",
        exe.display()
    )
}

/// Runs a script that starts a listener in a shell; the shell and the port.
async fn listening(script: &str) -> (Process, Port) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("port");
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env(PORT_FILE, &file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let wrapper = Process::spawn(&mut command);
    let port =
        until("the listener listens", || std::fs::read_to_string(&file).ok()?.parse().ok()).await;
    (wrapper, Port(port))
}

/// A child that holds the socket as its standard input.
async fn holder(socket: OwnedFd) -> Process {
    let child = Process::start(&["sleep", "1000"], socket);
    until_runs(child.id(), "sleep").await;
    child
}

#[tokio::test]
async fn a_port_without_a_listener_has_no_process() {
    let (socket, port) = socket();
    drop(socket);
    assert_eq!(find(port).await.unwrap(), None);
    assert!(listeners(port).unwrap().is_empty());
}

#[tokio::test]
async fn a_hand_started_process_is_found_by_its_port() {
    let (socket, port) = socket();
    let child = holder(socket).await;
    let found = find(port).await.unwrap().unwrap();
    assert_eq!(found.main, child.id());
    assert_eq!((found.tree, found.listeners), (vec![child.id()], vec![child.id()]));
    assert_eq!(found.argv, ["sleep", "1000"]);
    assert_eq!(found.cwd.unwrap(), std::env::current_dir().unwrap());
    assert_eq!(found.uid, rustix::process::geteuid().as_raw());
    assert_eq!(found.keeper, Keeper::Nobody);
}

#[tokio::test]
async fn what_others_live_on_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("containerd");
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let (socket, port) = socket();
    let child = Process::start(&[program.to_str().unwrap(), "1000"], socket);
    until_runs(child.id(), program.to_str().unwrap()).await;
    let refused = find(port).await.unwrap_err();
    assert!(matches!(refused, ProcessError::Foundation { .. }), "{refused}");
}

#[tokio::test]
async fn ipv6_listeners_are_found_as_well() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let port = Port(listener.local_addr().unwrap().port());
    let child = holder(listener.into()).await;
    assert_eq!(listeners(port).unwrap(), [child.id()]);
}

#[tokio::test]
async fn a_child_that_inherited_the_socket_belongs_to_its_parent() {
    let (socket, port) = socket();
    let main = Process::start(&["sh", "-c", "exec 3<&0; sleep 1000 <&3 & wait"], socket);
    let child =
        until("the child runs", || super::super::tree(main.id()).ok()?.get(1).copied()).await;
    let _strays = Strays(vec![child]);
    until_runs(child, "sleep").await;
    let found = find(port).await.unwrap().unwrap();
    assert_eq!((found.main, found.tree), (main.id(), vec![main.id(), child]));
    assert_eq!(found.listeners.len(), 2);
}

#[tokio::test]
async fn a_launcher_belongs_to_the_program_that_it_launched() {
    let (launcher, port) = listening(&format!("exec timeout 1h {}", listener())).await;
    let found = find(port).await.unwrap().unwrap();
    let _strays = Strays(found.tree.clone());
    assert_eq!(found.main, launcher.id());
    assert_eq!(found.listeners, found.tree[1..]);
    assert_eq!(found.keeper, Keeper::Nobody);
}

#[tokio::test]
async fn a_script_around_the_listener_is_its_keeper_and_no_part_of_it() {
    for as_another_user in ["", AS_SUDO] {
        let script = format!("while true; do {as_another_user} {}; done", listener());
        let (wrapper, port) = listening(&script).await;
        let found = find(port).await.unwrap().unwrap();
        let _strays = Strays(found.tree.clone());
        assert_ne!(found.main, wrapper.id());
        assert!(!found.tree.contains(&wrapper.id()));
        assert_eq!(found.argv.last().unwrap(), "api_key=***");
        let keeper = found.keeper;
        let Keeper::Wrapper { process, command } = keeper else { panic!("{keeper:?}") };
        assert_eq!(process, wrapper.id());
        // Before what it would start again.
        drop(wrapper);
        assert!(
            command.starts_with("sh -c while true; do") && !command.contains("topsecret"),
            "{command}"
        );
    }
}

/// Two sockets that listen on one port.
fn shared_port() -> (OwnedFd, OwnedFd, Port) {
    let listen = |address: &SocketAddr| {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::sockopt::set_socket_reuseport(&socket, true).unwrap();
        rustix::net::bind(&socket, address).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        TcpListener::from(socket)
    };
    let first = listen(&SocketAddr::from(([127, 0, 0, 1], 0)));
    let address = first.local_addr().unwrap();
    (first.into(), listen(&address).into(), Port(address.port()))
}

#[tokio::test]
async fn the_two_proxies_of_a_published_port_are_one_container() {
    let (first, second, port) = shared_port();
    let proxy = |socket: OwnedFd| {
        let arguments =
            ["-e", "sleep 1000", "--", "-container-ip", "172.17.0.2", "-container-port", "8000"];
        Process::spawn(Command::new("perl").arg0("docker-proxy").args(arguments).stdin(socket))
    };
    let proxies = [proxy(first), proxy(second)];
    for proxy in &proxies {
        until_runs(proxy.id(), "docker-proxy").await;
    }
    let found = find(port).await.unwrap().unwrap();
    assert_eq!(found.listeners.len(), 2);
    assert_eq!(
        found.keeper,
        Keeper::Container("behind docker-proxy, at 172.17.0.2:8000".to_owned())
    );
}

#[tokio::test]
async fn unrelated_processes_on_one_port_are_made_visible() {
    let (first, second, port) = shared_port();
    let [first, second] = [holder(first).await, holder(second).await];

    let mut holders = vec![first.id(), second.id()];
    let mut found = listeners(port).unwrap();
    holders.sort();
    found.sort();
    assert_eq!(found, holders);
    let error = find(port).await.unwrap_err();
    let ProcessError::SharedPort { processes, .. } = &error else { panic!("{error}") };
    assert_eq!(processes.len(), 2);
    assert!(error.to_string().contains(&format!("{} (sleep 1000)", first.id())), "{error}");
}

#[test]
fn a_listener_that_can_not_be_seen_is_an_error() {
    // In flight between two sockets, a descriptor is in nobody's table: as invisible as another user's.
    let (socket, port) = socket();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds = [socket.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    assert!(message.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&one, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).unwrap();
    drop(socket);
    assert!(matches!(listeners(port), Err(ProcessError::UnseenOwner { .. })));
    drop(other);
}
