use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::processes::{command_line, parent_of, until};
use super::*;

fn words(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&word| word.to_owned()).collect()
}

/// Serves one request on `port` and says who it is.
fn answer_once(port: u16, name: &'static str) -> std::thread::JoinHandle<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).unwrap();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}",
            name.len()
        )
        .unwrap();
    })
}

fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The user's own ssh, with nothing of the user's own configuration.
fn ssh(server: &GpuServer, known_hosts: &str, command: &str) -> Command {
    let (key, hosts) = (server.scratch().join("key"), server.scratch().join("hosts"));
    let _ = fs::remove_file(&key);
    let mut file =
        fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&key).unwrap();
    file.write_all(server.private_key().as_bytes()).unwrap();
    fs::write(&hosts, known_hosts).unwrap();
    let port = server.ssh_port().to_string();
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "IdentitiesOnly=yes",
    ])
    .args(["-o", &format!("UserKnownHostsFile={}", hosts.display()), "-p", &port, "-i"])
    .args([key.as_os_str(), server.ssh_host().as_ref(), command.as_ref()]);
    ssh
}

/// A child of this test that is ended by its handle, whatever the test does.
struct Stranger(Child);

impl Stranger {
    fn with(mark: &str) -> Self {
        Self(
            Command::new("sleep").arg("infinity").env(MARK, mark).process_group(0).spawn().unwrap(),
        )
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nginx_answers_from_the_slot_and_reloads() {
    let server = GpuServer::start(ServerSpec::default()).unwrap();
    let (a, b) = server.slot_ports();
    let replica = answer_once(a, "the old model");
    assert!(get(server.nginx_addr()).ends_with("the old model"));
    replica.join().unwrap();

    let before = server.nginx_workers().unwrap();
    let config = fs::read_to_string(server.nginx_config()).unwrap();
    fs::write(server.nginx_config(), config.replace(&a.to_string(), &b.to_string())).unwrap();
    let (nginx, args) = server.nginx_command().split_first().unwrap();
    assert!(
        Command::new(nginx).args(args).args(["-s", "reload"]).output().unwrap().status.success()
    );
    until("new workers replace the old", || {
        let now = server.nginx_workers()?;
        Ok(now.len() == 2 && now.iter().all(|pid| !before.contains(pid)))
    })
    .unwrap();
    let replica = answer_once(b, "the new model");
    assert!(get(server.nginx_addr()).ends_with("the new model"));
    replica.join().unwrap();
    server.stop().unwrap();
}

#[test]
fn nginx_is_gone_when_it_is_stopped_and_comes_back_on_the_same_files() {
    let server = GpuServer::start(ServerSpec::default()).unwrap();
    let before = server.nginx_master().unwrap();
    server.stop_nginx().unwrap();
    assert!(TcpStream::connect(server.nginx_addr()).is_err());
    server.start_nginx().unwrap();
    assert_ne!(server.nginx_master().unwrap(), before);
    let replica = answer_once(server.ports().a, "the model");
    assert!(get(server.nginx_addr()).ends_with("the model"));
    replica.join().unwrap();
    server.stop().unwrap();
}

#[test]
fn a_clock_that_is_set_is_wrong_on_the_server_alone() {
    const HOUR: i64 = 3600;
    let spec = ServerSpec { faults: true, ..ServerSpec::default() };
    let server = GpuServer::start(spec).unwrap();
    let clock = || -> i64 {
        let said = ssh(&server, server.known_hosts(), "date +%s").output().unwrap();
        String::from_utf8(said.stdout).unwrap().trim().parse().unwrap()
    };
    let true_time = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        i64::try_from(since.unwrap().as_secs()).unwrap()
    };
    for set in [0, -24 * HOUR, 24 * HOUR] {
        server.set_clock(set).unwrap();
        let off = clock() - true_time();
        assert!((off - set).abs() < HOUR, "set to {set}, {off}");
    }
    server.stop().unwrap();
}

#[test]
fn a_spec_reaches_the_configuration() {
    let spec = ServerSpec {
        main_lines: "worker_shutdown_timeout 1s;".into(),
        http_lines: "keepalive_timeout 7s;".into(),
        upstream_file: Box::new(|ports| {
            format!(
                "server {{ listen 127.0.0.1:{}; location / {{ return 200 custom; }} }}",
                ports.nginx
            )
        }),
        ..ServerSpec::default()
    };
    let server = GpuServer::start(spec).unwrap();
    assert!(get(server.nginx_addr()).ends_with("custom"));
    let (nginx, args) = server.nginx_command().split_first().unwrap();
    let shown = Command::new(nginx).args(args).arg("-T").output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("worker_shutdown_timeout 1s;") && shown.contains("keepalive_timeout 7s;"),
        "{shown}"
    );
}

#[test]
fn a_configuration_nginx_rejects_is_an_error_with_its_reason() {
    let spec = ServerSpec { http_lines: "no_such_directive on;".into(), ..ServerSpec::default() };
    let error = format!("{:#}", GpuServer::start(spec).err().unwrap());
    assert!(error.contains("no_such_directive"), "{error}");
}

#[test]
fn ssh_logs_in_under_every_pinned_key_and_carries_the_mark() {
    let server = GpuServer::start(ServerSpec::default()).unwrap();
    assert_eq!(server.known_hosts().lines().count(), 2);
    for line in server.known_hosts().lines() {
        let output = ssh(&server, line, "echo $TESTBED").output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), server.mark().1);
    }
    let other = server.known_hosts().lines().next().unwrap().replace("[127.0.0.1]", "[127.0.0.2]");
    assert!(!ssh(&server, &other, "true").output().unwrap().status.success());
}

#[test]
fn the_end_takes_everything_of_its_own_and_nothing_else() {
    let server = GpuServer::start(ServerSpec::default()).unwrap();
    let scratch = server.scratch().to_path_buf();
    let mut strangers = [
        Stranger::with("/tmp/gpu-another"),
        Stranger::with(&format!("{}0", scratch.display())),
        Stranger(Command::new("sleep").arg("infinity").current_dir(&scratch).spawn().unwrap()),
    ];
    let by_hand = server.start_by_hand(&words(&["sleep", "infinity"]), &[]).unwrap();
    // A connection with nothing in it that would carry the mark, as a control master is.
    let mut idle = ssh(&server, server.known_hosts(), "-N");
    let mut idle = Stranger(idle.stderr(Stdio::null()).spawn().unwrap());
    let listener = server.sshd.as_ref().unwrap().id();
    let (user, _) = server.ssh_host().split_once('@').unwrap();
    let mut session = Vec::new();
    until("sshd has the session", || {
        session = processes::children(listener);
        Ok(session.len() == 1 && command_line(session[0]).contains(user))
    })
    .unwrap();
    let mut detached = ssh(
        &server,
        server.known_hosts(),
        "setsid sleep infinity </dev/null >/dev/null 2>&1 & echo $!",
    );
    let detached: u32 =
        String::from_utf8_lossy(&detached.output().unwrap().stdout).trim().parse().unwrap();
    // Workers whose master is dead are found too.
    let workers = server.nginx_workers().unwrap();
    let master = server.nginx_master().unwrap().to_string();
    assert!(Command::new("kill").args(["-KILL", &master]).status().unwrap().success());

    let left = server.leftovers();
    assert_eq!(left.len(), 3, "{left:?}");
    let mut own = Stranger::with(&server.mark().1);
    let (nginx, ssh_port) = (server.nginx_addr().port(), server.ssh_port());
    server.stop().unwrap();

    assert!(!own.lives());
    until("the connection ends", || Ok(!idle.lives())).unwrap();
    for pid in [by_hand.pid, by_hand.innocent, detached].into_iter().chain(session).chain(workers) {
        assert_eq!(parent_of(pid), None, "{pid}: {}", command_line(pid));
    }
    assert!(leftovers(&scratch).is_empty());
    assert!(!scratch.exists());
    assert!(listeners(nginx).unwrap().is_empty() && listeners(ssh_port).unwrap().is_empty());
    for stranger in &mut strangers {
        assert!(stranger.lives());
    }
}

#[test]
fn an_incumbent_by_hand_is_an_orphan_that_shares_its_group() {
    let server = GpuServer::start(ServerSpec::default()).unwrap();
    let argv = words(&["bash", "-c", "echo $MODEL $TESTBED; exec sleep infinity"]);
    let by_hand = server.start_by_hand(&argv, &[("MODEL", "old")]).unwrap();
    until("it says what it is", || {
        Ok(fs::read_to_string(&by_hand.log)? == format!("old {}\n", server.scratch().display()))
    })
    .unwrap();
    assert_ne!(parent_of(by_hand.pid), Some(std::process::id()));
    assert_eq!(parent_of(by_hand.pid), parent_of(by_hand.innocent));
    let group = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
        rustix::process::getpgid(pid).unwrap()
    };
    assert_eq!(group(by_hand.pid), group(by_hand.innocent));
    assert_ne!(group(by_hand.pid), rustix::process::getpgrp());
}

#[test]
fn a_wrapper_starts_its_program_again_but_not_for_ever() {
    let server = GpuServer::start(ServerSpec::default()).unwrap();
    let wrapped = server.start_in_wrapper(&words(&["sleep", "infinity"]), &[], 1).unwrap();
    let kill =
        |pid: u32| assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    kill(wrapped.pid);
    let mut second = 0;
    until("it is started again", || {
        second = server.children(wrapped.wrapper).first().copied().unwrap_or_default();
        Ok(second != 0 && second != wrapped.pid)
    })
    .unwrap();
    kill(second);
    until("the wrapper gives up", || Ok(parent_of(wrapped.wrapper).is_none())).unwrap();
    assert!(server.leftovers().is_empty(), "{:?}", server.leftovers());
}

#[test]
fn listeners_names_who_listens() {
    let port = free_port().unwrap();
    assert!(listeners(port).unwrap().is_empty());
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    // A process that another test begins has our files for a moment.
    until("nobody else listens", || {
        Ok(listeners(port).is_ok_and(|pids| pids == [std::process::id()]))
    })
    .unwrap();
    assert_ne!(free_port().unwrap(), port);
}

#[test]
fn a_missing_program_names_its_package() {
    let error = programs::find("no-such-program").unwrap_err();
    assert_eq!(error.to_string(), "no-such-program is not installed");
    assert_eq!(programs::missing("sshd"), "sshd is not installed: apt-get install openssh-server");
    for program in ["bash", "nginx", "sshd", "ssh-keygen"] {
        assert!(programs::find(program).unwrap().is_absolute());
    }
}

#[test]
fn a_master_that_is_not_root_is_misjudged_by_roots_test() {
    if !rustix::process::getuid().is_root() {
        return; // Nobody else can run nginx as another user.
    }
    const NOBODY: u32 = 65534;
    let server =
        GpuServer::start(ServerSpec { nginx_uid: Some(NOBODY), ..ServerSpec::default() }).unwrap();
    let before = server.nginx_workers().unwrap();
    let locked = server.scratch().join("root-only");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let config = fs::read_to_string(server.nginx_config()).unwrap();
    fs::write(
        server.nginx_config(),
        format!("error_log {}/error.log;\n{config}", locked.display()),
    )
    .unwrap();
    let (nginx, args) = server.nginx_command().split_first().unwrap();
    for order in [&["-t"][..], &["-s", "reload"]] {
        assert!(Command::new(nginx).args(args).args(order).output().unwrap().status.success());
    }
    until("nginx says why not", || Ok(fs::read_to_string(server.error_log())?.contains("[emerg]")))
        .unwrap();
    assert_eq!(server.nginx_workers().unwrap(), before);
}
