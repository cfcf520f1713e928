//! A scratch nginx on loopback with two small backends behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::host::nginx::process::{Master as Running, read_pid};
use crate::host::nginx::{Expectation, Identity, Nginx};
use crate::model::ids::Port;
use crate::model::spec::{NginxSpec, PinnedWorkers, ProbeSpec};

/// Nothing that a test waits for takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Answers every request with the same status and JSON; `GET /slow` only once it is released.
pub(super) struct Backend {
    pub(super) port: Port,
    pub(super) root: String,
    released: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Backend {
    /// Identifies itself by its root and fingerprint.
    pub(super) fn named(root: &str) -> Self {
        let body = format!(
            r#"{{"data":[{{"id":"chat","root":"{root}"}}],"system_fingerprint":"fp-{root}"}}"#
        );
        Self::start(root, 200, body)
    }

    /// Wants a key, and takes long enough to say so that a look at a busy machine's sockets meets the connection.
    pub(super) fn locked(root: &str) -> Self {
        Self::start(root, 401, r#"{"error":"Unauthorized"}"#.to_owned())
    }

    /// Lets requests for `/slow` end.
    pub(super) fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    fn start(root: &str, status: u16, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port(listener.local_addr().unwrap().port());
        let backend =
            Self { port, root: root.to_owned(), released: Arc::default(), over: Arc::default() };
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
        let (released, over) = (Arc::clone(&backend.released), Arc::clone(&backend.over));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let (answer, body, released) =
                    (answer.clone(), body.clone(), Arc::clone(&released));
                thread::spawn(move || serve(&stream, &answer, &body, &released));
            }
        });
        backend
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.release();
        // Wakes the listener up.
        let _ = TcpStream::connect(("127.0.0.1", self.port.0));
    }
}

/// Serves one connection until its end; nothing that fails here is of interest.
fn serve(stream: &TcpStream, answer: &str, body: &str, released: &AtomicBool) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let request = lines.next()?.ok()?;
        let mut keep = request.contains("HTTP/1.1");
        let mut length = 0_usize;
        for line in lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let line = line.to_ascii_lowercase();
            keep &= line != "connection: close";
            length = line
                .strip_prefix("content-length: ")
                .and_then(|value| value.parse().ok())
                .unwrap_or(length);
        }
        if length > 0 {
            // A body has no line end of its own, so nothing more can come on this connection.
            keep = false;
        }
        if answer.contains(" 401 ") {
            thread::sleep(Duration::from_millis(50));
        }
        while request.contains(" /slow ") && !released.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        let connection = if keep { "keep-alive" } else { "close" };
        let mut writer = stream;
        writer
            .write_all(format!("{answer}Connection: {connection}\r\n\r\n{body}").as_bytes())
            .ok()?;
        if !keep {
            return None;
        }
    }
}

/// How a scratch nginx is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Master {
    /// By the user who runs the tests.
    Own,
    /// By a user who is not root.
    NotRoot,
    /// By somebody who has ended since: nginx's binary can be upgraded then (`ngx_signal_handler` ignores SIGUSR2 where its
    /// first parent still runs).
    Left,
    /// In a network of its own, where it meets nobody.
    Apart,
    /// In a mount namespace of its own, where `mounts/` was mounted over what it is to hide. Needs root.
    Mounted(&'static str),
}

/// A scratch nginx whose upstream `llm` is in `conf.d/llm.conf`.
pub(super) struct Scratch {
    pub(super) folder: TempDir,
    pub(super) port: u16,
    kind: Master,
    child: Child,
}

impl Scratch {
    /// The text of `conf.d/llm.conf`: everything but the port must survive.
    pub(super) fn upstream(port: Port) -> String {
        format!(
            "# what serves: 8001\nupstream llm {{\r\n\tserver 127.0.0.1:{port} weight=2;  # keep\n  keepalive 4;\n}}\n"
        )
    }

    pub(super) fn start(incumbent: Port) -> Self {
        Self::start_as(Master::Own, &Self::upstream(incumbent))
    }

    pub(super) fn start_as(kind: Master, upstream: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let port = free_port();
        for name in ["conf.d", "logs", "temp", "real"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let d = folder.path().display();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|n| format!("{n}_temp_path {d}/temp/{n};"))
            .concat();
        let main = format!(
            "daemon off;\nworker_processes 2;\npid {d}/nginx.pid;\nerror_log {d}/logs/error.log;\nevents {{}}\n\
             http {{\n access_log off;\n {temp}\n include conf.d/*.conf;\n server {{\n listen 127.0.0.1:{port};\n location / {{\n\
             proxy_pass http://llm; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;\n }}\n }}\n}}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), main).unwrap();
        std::fs::write(folder.path().join("conf.d/llm.conf"), upstream).unwrap();
        std::fs::write(folder.path().join("real/llm.conf"), upstream).unwrap();
        let mut child = spawn(kind, folder.path());
        if kind == Master::Left {
            child.wait().unwrap();
        }
        let scratch = Self { folder, port, kind, child };
        scratch.until("nginx listens", || {
            kind == Master::Apart || TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        scratch.until("both workers run", || {
            scratch.master().is_some_and(|master| master.live_workers().unwrap().len() == 2)
        });
        scratch
    }

    /// Stops nginx, and waits until it is gone.
    pub(super) fn stop(&mut self) {
        signal(self.child.id(), "QUIT");
        self.child.wait().unwrap();
    }

    /// Starts nginx again.
    pub(super) fn start_again(&mut self) {
        self.child = spawn(self.kind, self.folder.path());
    }

    /// The nginx as the code under test sees it.
    pub(super) fn nginx(&self) -> Nginx {
        Nginx::new(self.spec())
    }

    pub(super) fn spec(&self) -> NginxSpec {
        let mut command = Vec::new();
        let mut config = self.path("conf.d/llm.conf");
        if let Master::Mounted(_) = self.kind {
            command.push("nsenter".to_owned());
            if !is_root() {
                command.push(format!("--user=/proc/{}/ns/user", self.child.id()));
                command.push("--preserve-credentials".to_owned());
            }
            command.push(format!("--mount=/proc/{}/ns/mnt", self.child.id()));
            config = self.path("real/llm.conf");
        }
        command.extend([
            "nginx".to_owned(),
            "-c".to_owned(),
            self.path("nginx.conf").display().to_string(),
        ]);
        NginxSpec {
            config,
            upstream: "llm".to_owned(),
            command,
            probe: ProbeSpec {
                url: format!("http://127.0.0.1:{}/v1/models", self.port),
                host: None,
                api_key_env: None,
            },
            pinned_workers: PinnedWorkers::Wait,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn upstream_file(&self) -> Vec<u8> {
        std::fs::read(self.path("conf.d/llm.conf")).unwrap()
    }

    pub(super) fn master_pid(&self) -> Option<i32> {
        read_pid(&self.path("nginx.pid"))
    }

    /// The running master, once its pid file names it.
    pub(super) fn master(&self) -> Option<Running> {
        Running::of_pid(self.master_pid()?).unwrap()
    }

    /// The body of one request on a fresh connection.
    pub(super) fn get(&self, path: &str) -> String {
        finish(self.begin(path))
    }

    /// A request whose answer nobody has read yet.
    pub(super) fn begin(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        stream
    }

    #[track_caller]
    pub(super) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            let log = std::fs::read_to_string(self.path("logs/error.log")).unwrap_or_default();
            assert!(started.elapsed() < PATIENCE, "not in time: {what}; nginx says: {log}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.kind == Master::Left {
            // Both, where a test failed in between.
            let pids = ["nginx.pid.oldbin", "nginx.pid"].map(|name| read_pid(&self.path(name)));
            for pid in pids.into_iter().flatten() {
                let _ = Command::new("kill").arg(pid.to_string()).status();
            }
            return;
        }
        signal(self.child.id(), "CONT");
        signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

/// Reads an answer to its end.
pub(super) fn finish(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(super) fn expect(candidate: &Backend, incumbent: &Backend) -> Expectation {
    let identity = Some(Identity::Root(candidate.root.clone()));
    Expectation { candidate: candidate.port, incumbent: incumbent.port, identity }
}

pub(super) fn signal(pid: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn free_port() -> u16 {
    testbed::server::free_port().unwrap()
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        // Who is not root may have the rights that this needs in a user namespace of its own.
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    command
}

fn spawn(kind: Master, folder: &Path) -> Child {
    let config = folder.join("nginx.conf");
    let mut command = match kind {
        Master::NotRoot if is_root() => {
            assert!(
                Command::new("chown")
                    .args(["-R", "65534:65534"])
                    .arg(folder)
                    .status()
                    .unwrap()
                    .success()
            );
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "nginx"]);
            command
        }
        Master::Own | Master::NotRoot => Command::new("nginx"),
        Master::Left => {
            let pid_file = folder.join("nginx.pid").display().to_string();
            let mut command = Command::new("sh");
            command.args([
                "-c",
                "\"$(command -v nginx)\" \"$@\" & until [ -s \"$0\" ]; do sleep 0.01; done",
                &pid_file,
            ]);
            command
        }
        Master::Apart => {
            let mut command = unshare();
            command.args(["--net", "sh", "-c", "ip link set lo up && exec nginx \"$@\"", "sh"]);
            command
        }
        Master::Mounted(over) => {
            let mut command = unshare();
            command.args([
                "--mount",
                "sh",
                "-c",
                "mount --bind \"$0\" \"$1\" && shift && exec nginx \"$@\"",
            ]);
            command.arg(folder.join("real").join(over)).arg(folder.join("conf.d").join(over));
            command
        }
    };
    command
        .arg("-c")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
