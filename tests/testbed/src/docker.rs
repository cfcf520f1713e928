//! A real Docker Engine of our own: its own data, socket and containerd namespace, no firewall rules. It shares nothing
//! with one that may run on the machine, and ends with this value.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;

use crate::{PATIENCE, end};

mod lent;
mod registry;

pub use lent::Lent;
pub use registry::{Door, Registry};

/// By path: other programs of this name may come first in `PATH`, and need not speak to an Engine of ours.
pub(crate) const CLIENT: &str = "/usr/bin/docker";

/// The container of an old model that Compose has made.
pub const COMPOSED: &str = "llm_vllm_1";

/// Between two looks whether it answers: nobody tells.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs dockerd until nobody holds the other end of its standard input any more, and then removes all that it left: so
/// the end of who started it, however it comes, is the end of the Engine.
///
/// Where it ends while there is a file `away`, it is started anew once that is gone.
///
/// dockerd leaves the namespace of the machine's own network mounted.
///
/// The bridge has an address of its own, as Docker gives one to those that it makes: else it has that of one of its containers, another
/// one once that ends, and the others do not reach it until they ask for it again, a minute later.
const KEEP: &str = r#"set -u
folder=$1 bridge=$2 network=$3 address=$4; shift 4
trap : INT TERM HUP
ended() { cd /; ip link delete "$bridge"
    grep -o " $folder/[^ ]*" /proc/self/mounts | tac | while read -r mounted; do umount "$mounted"; done
    rm -rf "$folder"; }
ip link add "$bridge" address "$address" type bridge && ip addr add "$network" dev "$bridge" && ip link set "$bridge" up || { ended; exit 1; }
{ while dockerd "$@" >>"$folder/log" 2>&1 </dev/null; [ -e "$folder/away" ]; do
    while [ -e "$folder/away" ]; do [ ! -e "$folder/over" ] || exit; sleep 0.1; done
  done; : >"$folder/ended"; } &
cat >/dev/null
: >"$folder/over"
[ ! -e "$folder/pid" ] || kill -TERM "$(cat "$folder/pid")"
wait
ended"#;

/// How published ports of an Engine are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publishes {
    /// Through its proxies, which need no rule of the firewall.
    ByProxy,
    /// Through the packet filter of the network that it is in; it listens there itself, to keep others from the port.
    ByFilter,
}

impl Publishes {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::ByProxy => &["--iptables=false", "--ip-forward=false", "--ip-masq=false"],
            Self::ByFilter => &["--userland-proxy=false"],
        }
    }
}

/// A running Engine.
pub struct Engine {
    keeper: Child,
    folder: PathBuf,
    network: Network,
    publishes: Publishes,
}

impl Engine {
    /// Starts one that keeps images, containers and build cache in `data`; returns when it answers. Its containers have a
    /// bridge of their own, on which it publishes ports, and which reaches nothing but this machine.
    ///
    /// # Errors
    /// If dockerd is missing or does not come up, or there can be no bridge.
    pub fn start(data: &Path) -> Result<Self> {
        fs::create_dir_all(data)?;
        Self::launch(folder()?, data, Publishes::ByProxy)
    }

    /// Starts one with nothing in it but what is put there.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn empty(publishes: Publishes) -> Result<Self> {
        let folder = folder()?;
        let data = folder.join("data");
        Self::launch(folder, &data, publishes)
    }

    fn launch(folder: PathBuf, data: &Path, publishes: Publishes) -> Result<Self> {
        let network = network()?;
        let at = |name: &str| folder.join(name);
        let namespace = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Names of interfaces are short.
        let bridge = namespace.replace("docker-", "msd-");
        let mut keeper = privileged("sh");
        keeper.args(["-c", KEEP, "keep"]).arg(&folder);
        let [.., number, _] = network.address.octets();
        let own = format!("02:42:ac:1e:{number:02x}:01");
        keeper.args([&bridge, &format!("{}/24", network.address), &own]);
        keeper.arg("--data-root").arg(data).arg("--exec-root").arg(at("exec"));
        keeper.arg("--pidfile").arg(at("pid"));
        keeper.arg("--host").arg(format!("unix://{}", at("socket").display()));
        keeper.arg("--group").arg(rustix::process::getegid().as_raw().to_string());
        keeper.args(["--containerd-namespace", &namespace]);
        keeper.args(["--containerd-plugins-namespace", &format!("{namespace}-plugins")]);
        keeper.arg(format!("--bridge={bridge}"));
        keeper.args(publishes.options());
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let engine = Self { keeper, folder, network, publishes };
        engine.until_it_answers()?;
        Ok(engine)
    }

    fn until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.folder.join("ended").exists() || !self.folder.exists();
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            ensure!(!ended, "dockerd ended (it is in Debian's docker.io):\n{}", log());
            ensure!(Instant::now() < deadline, "dockerd does not answer:\n{}", log());
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Ends it, and with it its containers, as an upgrade of its packages does; it stays away until [`Engine::returns`].
    ///
    /// Nobody reaches it from before its containers end: whoever sees one end meets an Engine that is away.
    ///
    /// # Errors
    /// If it does not end.
    pub fn goes_away(&self) -> Result<()> {
        fs::write(self.folder.join("away"), "")?;
        // Where it listened it makes a new one when it returns.
        fs::rename(self.socket(), self.folder.join("socket-before"))?;
        let pid = fs::read_to_string(self.folder.join("pid"))?;
        said(privileged("kill").args(["-TERM", pid.trim()]))?;
        let deadline = Instant::now() + PATIENCE;
        while Path::new("/proc").join(pid.trim()).exists() {
            ensure!(Instant::now() < deadline, "dockerd does not end");
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Starts it again after it went away; returns when it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn returns(&self) -> Result<()> {
        fs::remove_file(self.folder.join("away"))?;
        self.until_it_answers()
    }

    /// The pid of dockerd.
    ///
    /// # Errors
    /// If it has not said it.
    pub fn pid(&self) -> Result<u32> {
        Ok(fs::read_to_string(self.folder.join("pid"))?.trim().parse()?)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The value of `DOCKER_HOST` with which clients find it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Where its containers find this machine.
    pub fn address(&self) -> Ipv4Addr {
        self.network.address
    }

    /// A command of its client.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = docker(args);
        command.env("DOCKER_HOST", self.host());
        command
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ended = end::of(&mut self.keeper);
    }
}

/// Short, for sockets have short names. Its keeper removes it.
fn folder() -> Result<PathBuf> {
    Ok(tempfile::Builder::new().prefix("docker-").tempdir_in("/tmp")?.keep())
}

/// A network of an Engine's own.
struct Network {
    address: Ipv4Addr,
    /// What keeps others from it, as long as it lives.
    _mine: UnixListener,
}

/// One of the private networks that are the least in use, that neither this machine nor another of our Engines has.
fn network() -> Result<Network> {
    for number in 0..=u8::MAX {
        let address = Ipv4Addr::new(172, 30, number, 1);
        // A name that the kernel gives to one process at a time, and takes back when that ends.
        let name = SocketAddr::from_abstract_name(format!("testbed-bridge-{address}"))?;
        let Ok(mine) = UnixListener::bind_addr(&name) else { continue };
        let known = said(Command::new("ip").args(["-brief", "-4", "address"]))
            .context("Debian: iproute2")?;
        if !known.contains(&format!(" 172.30.{number}.")) {
            return Ok(Network { address, _mine: mine });
        }
    }
    anyhow::bail!("every network of 172.30.0.0/16 is in use")
}

impl Engine {
    /// An image that holds a program with the libraries it needs, and starts it with `arguments` in front of a container's
    /// own. It is made once.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn image_of(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let name = program.file_name().context("no program")?.to_string_lossy().into_owned();
        let image = format!("{name}:here");
        if said(&mut self.docker(["image", "inspect", &image])).is_ok() {
            return Ok(image);
        }
        let linked = said(Command::new("ldd").arg(program))?;
        let mut files = vec![program.display().to_string()];
        files.extend(
            linked.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned),
        );
        let entrypoint = [&[files[0].as_str()], arguments].concat();
        let mut tar = Command::new("tar");
        // Libraries are often links, and a link alone is no library.
        tar.args(["--create", "--dereference", "--absolute-names"]).args(&files);
        let mut tar = tar.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stream = tar.stdout.take().context("a pipe is missing")?;
        let change = format!("ENTRYPOINT {entrypoint:?}");
        said(self.docker(["import", "--change", &change, "-", &image]).stdin(stream))?;
        ensure!(end::of(&mut tar)?.success(), "tar failed");
        Ok(image)
    }
}

/// A command of Docker's client, for the Engine that `DOCKER_HOST` names.
pub fn docker<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(CLIENT);
    command.args(args).env("DOCKER_BUILDKIT", "1").stdin(Stdio::null());
    command
}

/// What the command prints.
///
/// # Errors
/// If it fails; with what it said.
pub fn said(command: &mut Command) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let output = end::output(child).with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A command as root.
pub fn privileged(program: &str) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
