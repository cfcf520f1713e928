//! The nginx in front of a service: what its upstream names, and the proven way to make it name something else.
//!
//! `nginx -s reload` answers 0 although the master may reject the configuration, and `nginx -t` misses what only the
//! running master can know (a port in use, its own user's rights). So a change counts only once new workers appeared,
//! and traffic has moved only once an answer or a socket shows it.

mod call;
mod error;
mod examine;
mod mounts;
mod process;
mod prove;
mod reload;
mod sockets;
mod survey;
mod way;

#[cfg(test)]
mod tests;

use std::fs::Metadata;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;

use crate::model::ids::{Port, ProcessId};
use crate::model::record::UpstreamImage;
use crate::model::spec::NginxSpec;
use crate::swap::nginx_conf::{ConfError, Dump, Located, active_servers, port_of, with_port};

pub use error::NginxError;
pub use examine::Examined;
use process::{Master, read_pid};
pub(super) use prove::unmet;
pub use prove::{Expectation, Identity, Proof};
pub use reload::Reloaded;
pub use survey::survey;
pub use way::Way;

/// One upstream of one nginx.
pub struct Nginx {
    spec: NginxSpec,
    ports: Vec<Port>,
    api_key: Option<String>,
    reload_limit: Duration,
    proof_limit: Duration,
}

/// An upstream as nginx's configuration has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamView {
    /// The file that holds the `server` line, symlinks resolved, as this process can open it.
    pub file: PathBuf,
    /// The only active `server` directive as written, without its `;`.
    pub server: String,
    /// The port that it names.
    pub port: Port,
    /// The address of this machine that it names, if that is surely another one than 127.0.0.1.
    pub beside_loopback: Option<IpAddr>,
    /// The running nginx master.
    pub master: ProcessId,
    /// How long old workers may finish their requests; `None` if for ever.
    pub worker_shutdown_timeout: Option<Duration>,
    /// The main error log on disk, if it is a file with a full path.
    pub error_log: Option<PathBuf>,
}

/// An nginx worker from before a reload that is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLeft {
    /// The worker.
    pub process: ProcessId,
    /// Connections that it holds to the port; `None` if they may not be looked at.
    pub connections: Option<usize>,
    /// Whether it takes no new connections any more.
    pub shutting_down: bool,
}

/// The running nginx, and the names under which it reads the configured file.
struct Running {
    master: Master,
    names: Vec<PathBuf>,
}

impl Nginx {
    /// The nginx of a service.
    pub fn new(spec: NginxSpec) -> Self {
        let (reload_limit, proof_limit) = (reload::RELOAD_LIMIT, prove::PROOF_LIMIT);
        Self { spec, ports: Vec::new(), api_key: None, reload_limit, proof_limit }
    }

    /// The replicas' ports: they tell a location that proxies straight to a replica from any other.
    #[must_use]
    pub fn ports(mut self, ports: Vec<Port>) -> Self {
        self.ports = ports;
        self
    }

    /// The API key of probes; sent to `probe.url` as a bearer token and shown nowhere.
    #[must_use]
    pub fn api_key(mut self, api_key: Option<String>) -> Self {
        self.api_key = api_key;
        self
    }

    /// Looks at the upstream and at the running nginx, and checks that both can be changed.
    ///
    /// # Errors
    /// If nginx is not installed, not running or not ours, its configuration is broken, the upstream is not there or has
    /// not exactly one active `server` line, or its file cannot be replaced.
    pub async fn view(&self) -> Result<UpstreamView, NginxError> {
        let dump = call::test_and_dump(&self.spec.command).await?;
        let running = self.running(&dump).await?;
        self.upstream_in(&dump, &running)
    }

    /// The upstream of a configuration that passed its test, if its file can be changed.
    fn upstream_in(&self, dump: &Dump, running: &Running) -> Result<UpstreamView, NginxError> {
        let located = dump.locate(&self.spec.upstream, &self.ports)?;
        let file = self.file_of(&located, running)?;
        mounts::refuse_bind_mount(&file, &located.file, running.master.process.pid)?;
        refuse_foreign(&file)?;
        let content = read(&file)?;
        let upstream = self.spec.upstream.clone();
        let server = match active_servers(&content, &upstream)?.as_slice() {
            [server] => server.clone(),
            [] => return Err(ConfError::NoActive { upstream }.into()),
            several => {
                return Err(ConfError::SeveralActive { upstream, servers: several.to_vec() }.into());
            }
        };
        Ok(UpstreamView {
            file,
            port: port_of(&server)?,
            beside_loopback: way::beside_loopback(&running.master, &server),
            server,
            master: running.master.process,
            worker_shutdown_timeout: dump.worker_shutdown_timeout(),
            error_log: call::error_log(dump),
        })
    }

    /// The change that makes the upstream name another port, and the way back.
    ///
    /// # Errors
    /// If the `server` line names nothing that has a port; a view was already checked for that.
    pub fn image(&self, view: &UpstreamView, to: Port) -> Result<UpstreamImage, NginxError> {
        let after = vec![with_port(&view.server, to)?];
        Ok(UpstreamImage { file: view.file.clone(), before: vec![view.server.clone()], after })
    }

    /// Those of the old workers that are still there, with their connections to a port. A child of the master that turned out to
    /// be another master, forked while they were listed, is none.
    pub fn workers_left(&self, old: &[ProcessId], port: Port) -> Vec<WorkerLeft> {
        let alive = old.iter().copied().filter(|process| process::is_alive(*process));
        alive
            .filter(|process| !process::is_master(*process))
            .map(|process| WorkerLeft {
                process,
                connections: sockets::connections(process, port).ok(),
                shutting_down: process::is_shutting_down(process),
            })
            .collect()
    }

    /// The master that has loaded, or could load, this configuration.
    async fn running(&self, dump: &Dump) -> Result<Running, NginxError> {
        let config = &self.spec.config;
        let wanted = metadata(config)?;
        let same =
            |path: &Path| std::fs::metadata(path).is_ok_and(|found| is_same(&found, &wanted));
        let names = |master: &Master| -> Vec<PathBuf> {
            dump.paths().filter(|path| same(&master.sees(path))).map(Path::to_owned).collect()
        };
        let pid_file = call::pid_file(&self.spec.command, dump).await?;
        // Before anything is looked for: a master that starts meanwhile reads this very configuration.
        let named = read_pid(&pid_file);
        let stranger = named.map(Master::of_pid).transpose()?.flatten();
        if let Some(master) = Master::find(&pid_file, |master| !names(master).is_empty())? {
            if let Some(rival) = master.rival() {
                let (master, other) = (master.process.pid, rival.process.pid);
                return Err(NginxError::TwoMasters { master, other });
            }
            return Ok(Running { names: names(&master), master });
        }
        if stranger.is_some_and(|master| master.is_alive()) {
            let main = dump.paths().next().unwrap_or(Path::new("")).to_owned();
            return Err(NginxError::NotIncluded { config: config.clone(), main });
        }
        let problem = match named {
            None if pid_file.exists() => "holds no pid".to_owned(),
            None => "does not exist".to_owned(),
            Some(pid) => format!("names process {pid}, which is no running nginx"),
        };
        let running = Master::all().iter().map(|master| master.process.pid).collect();
        Err(NginxError::PidFile { file: pid_file, problem, running })
    }

    /// The file with the `server` line, as this process can open it.
    fn file_of(&self, located: &Located, running: &Running) -> Result<PathBuf, NginxError> {
        let config = &self.spec.config;
        let Some(name) = located.chain.iter().find(|file| running.names.contains(file)) else {
            return Err(self.elsewhere(located));
        };
        let file = if *name == located.file {
            config.clone()
        } else if running.master.is_contained() {
            // The folder is mounted into the container: what is beside the one is beside the other.
            let beside = name.parent().and_then(|folder| located.file.strip_prefix(folder).ok());
            let file = config.parent().zip(beside).map(|(folder, beside)| folder.join(beside));
            let inside = metadata(&running.master.sees(&located.file))?;
            let is_it = |file: &PathBuf| {
                std::fs::metadata(file).is_ok_and(|found| is_same(&found, &inside))
            };
            file.filter(is_it).ok_or_else(|| self.elsewhere(located))?
        } else {
            located.file.clone()
        };
        file.canonicalize().map_err(|source| NginxError::Unreadable { file, source })
    }

    fn elsewhere(&self, located: &Located) -> NginxError {
        NginxError::Elsewhere {
            upstream: self.spec.upstream.clone(),
            file: located.file.clone(),
            config: self.spec.config.clone(),
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, NginxError> {
    std::fs::read(file).map_err(|source| NginxError::Unreadable { file: file.to_owned(), source })
}

fn metadata(file: &Path) -> Result<Metadata, NginxError> {
    std::fs::metadata(file)
        .map_err(|source| NginxError::Unreadable { file: file.to_owned(), source })
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Refuses a file that this user could not replace under its owner's name.
fn refuse_foreign(file: &Path) -> Result<(), NginxError> {
    let refused = |source| NginxError::NotWritable { file: file.to_owned(), source };
    let user = rustix::process::geteuid();
    if !user.is_root() && metadata(file)?.uid() != user.as_raw() {
        return Err(refused(io::ErrorKind::PermissionDenied.into()));
    }
    let folder = file.parent().unwrap_or(Path::new("/"));
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| refused(error.into()))
}
