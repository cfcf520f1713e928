//! The way to the server, tried piece by piece: where a command stops at the first thing that is wrong, `doctor` names
//! them all.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::error::RemoteError;
use super::key;
use super::known_hosts::KnownHosts;
use super::program;
use super::session::{Credentials, Session, configure, first_hop, private_folder};
use crate::model::checkup::Finding;
use crate::model::failure::{Failure, Hint};
use crate::model::refusal::Fault;
use crate::model::target::{HostAddr, SSH_PORT, Target};

/// A name server that takes longer holds up every command.
const NAME_LIMIT: Duration = Duration::from_secs(10);
/// As long as ssh itself waits for one hop would be too long for a question: a route that drops packets shows sooner.
const TCP_LIMIT: Duration = Duration::from_secs(10);
/// ssh and ssh-keygen only read files here.
const PROGRAM_LIMIT: Duration = Duration::from_secs(10);

const KEY: &str = "ssh key";
const PINNED: &str = "known hosts";
const NAME: &str = "host name";
const PORT: &str = "ssh port";
const LOGIN: &str = "ssh login";

/// How far the way leads.
pub struct Way {
    /// What was found on it.
    pub findings: Vec<Finding>,
    /// The connection, if it leads to the server.
    pub session: Option<Session>,
}

/// Tries every piece of the way to the server.
pub async fn look(target: &Target, credentials: Credentials) -> Way {
    let HostAddr::Ssh { host, .. } = &target.host else {
        let session = Session::open(target, credentials).await.ok();
        return Way {
            findings: vec![Finding::ok(LOGIN, "none: this machine is the server")],
            session,
        };
    };
    let mut findings = vec![ssh_key(&credentials).await, pinned(target, host, &credentials).await];
    let usable = !findings.iter().any(Finding::is_failure);
    // What cannot be used cannot be shown to ssh either.
    let shown = usable.then_some(&credentials);
    match first_contact(target, host, shown).await {
        Some((host, port)) => findings.extend(connected(&host, port).await),
        None => findings.push(Finding::ok(NAME, "reached as your own ssh configuration says")),
    }
    let connects = !findings.iter().any(Finding::is_failure);
    if !usable {
        findings.push(Finding::unseen(LOGIN, "ssh key or known hosts cannot be used"));
        return Way { findings, session: None };
    }
    match Session::open(target, credentials).await {
        Ok(session) => {
            findings.push(Finding::ok(LOGIN, format!("{} lets us in", session.name())));
            Way { findings, session: Some(session) }
        }
        Err(error) => {
            // What is said twice is read as two faults.
            findings.push(match error {
                RemoteError::Unresolved { .. } | RemoteError::Unreachable { .. } if !connects => {
                    Finding::unseen(LOGIN, "nobody answers")
                }
                error => of_error(LOGIN, &error),
            });
            Way { findings, session: None }
        }
    }
}

/// A finding of an error on the way.
pub fn of_error(what: &str, error: &RemoteError) -> Finding {
    let fault = if error.is_input() { Fault::Input } else { Fault::Environment };
    Finding::of_failure(what, fault, error.to_failure())
}

async fn ssh_key(credentials: &Credentials) -> Finding {
    let Some(key) = &credentials.key else {
        return Finding::ok(KEY, "not given: your own ssh configuration and agent apply");
    };
    let judged = async {
        let folder = private_folder()?;
        let file = key::write(folder.path(), key).await?;
        Ok::<_, RemoteError>(format!("{} {}", file.public.kind, file.public.fingerprint))
    };
    match judged.await {
        Ok(seen) => Finding::ok(KEY, seen),
        Err(error) => of_error(KEY, &error),
    }
}

async fn pinned(target: &Target, host: &str, credentials: &Credentials) -> Finding {
    let Some(text) = &credentials.known_hosts else {
        return Finding::ok(PINNED, "not given: your own and this machine's apply");
    };
    let name = match target.port {
        SSH_PORT => host.to_owned(),
        port => format!("[{host}]:{port}"),
    };
    let listed = async {
        let file = KnownHosts::parse(text)?.file(host, target.port);
        let folder = private_folder()?;
        let path = folder.path().join("known_hosts");
        std::fs::write(&path, file)
            .map_err(|source| RemoteError::Folder { path: path.clone(), source })?;
        // It knows hashed names and patterns as ssh does.
        let args = [OsStr::new("-F"), OsStr::new(&name), OsStr::new("-f"), path.as_os_str()];
        Ok::<_, RemoteError>(program::run("ssh-keygen", &args, PROGRAM_LIMIT).await?.success)
    };
    match listed.await {
        Ok(true) => Finding::ok(PINNED, format!("{name} is pinned")),
        // ssh has the last word, and says what the server offers.
        Ok(false) => Finding::warn(
            PINNED,
            format!("no line is for {name}"),
            format!("pin the server's host key with a line that begins with `{name} `"),
        ),
        Err(error) => of_error(PINNED, &error),
    }
}

/// Whether the host has an address, and whether something listens there.
async fn connected(host: &str, port: u16) -> [Finding; 2] {
    match resolve(host, port).await {
        Ok(list) => {
            let shown: Vec<_> = list.iter().map(|address| address.ip().to_string()).collect();
            let named = Finding::ok(NAME, format!("{host} is {}", shown.join(", ")));
            [named, reachable(&list, port).await]
        }
        Err(failure) => {
            [Finding::fail(NAME, failure), Finding::unseen(PORT, format!("{host} has no address"))]
        }
    }
}

/// Host and port that are connected to first: of the server, or of the first host that is jumped through. ssh itself is
/// asked, because a user's own configuration may give a host another name, or another way; then it is `None`.
async fn first_contact(
    target: &Target,
    host: &str,
    credentials: Option<&Credentials>,
) -> Option<(String, u16)> {
    if let Some(jump) = &target.jump {
        let hop = jump.split(',').next().unwrap_or_default();
        let port = hop.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        return Some((first_hop(jump).to_owned(), port.unwrap_or(SSH_PORT)));
    }
    let written = (host.to_owned(), target.port);
    let Some(credentials) = credentials else { return Some(written) };
    asked_of_ssh(target, host, credentials).await.unwrap_or(Some(written))
}

/// `Some(None)` if another program makes the connection; `None` if ssh did not say.
async fn asked_of_ssh(
    target: &Target,
    host: &str,
    credentials: &Credentials,
) -> Option<Option<(String, u16)>> {
    let folder = private_folder().ok()?;
    let (config, _) = configure(folder.path(), target, host, credentials.clone()).await.ok()?;
    let port = target.port.to_string();
    let mut args = vec![OsStr::new("-G"), OsStr::new("-F"), config.as_os_str()];
    if target.port != SSH_PORT {
        args.extend([OsStr::new("-p"), OsStr::new(&port)]);
    }
    args.extend([OsStr::new("--"), OsStr::new(host)]);
    let said = program::run("ssh", &args, PROGRAM_LIMIT).await.ok()?.stdout;
    let value = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(str::to_owned)
    };
    if value("proxyjump").is_some() || value("proxycommand").is_some() {
        return Some(None);
    }
    Some(Some((value("hostname")?, value("port")?.parse().ok()?)))
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let unknown = |why: String| {
        Failure { causes: vec![why], ..Failure::new(format!("{host} has no address")) }.hint(
            "check host for a typing error; a private name needs a runner inside that network, or ssh.jump",
        )
    };
    match tokio::time::timeout(NAME_LIMIT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let list: Vec<_> = found.collect();
            if list.is_empty() { Err(unknown("no record".to_owned())) } else { Ok(list) }
        }
        Ok(Err(error)) => Err(unknown(error.to_string())),
        Err(_) => {
            Err(unknown(format!("no answer within {}", humantime::format_duration(NAME_LIMIT))))
        }
    }
}

async fn reachable(addresses: &[SocketAddr], port: u16) -> Finding {
    let connecting = TcpStream::connect(addresses);
    let failed = match tokio::time::timeout(TCP_LIMIT, connecting).await {
        Ok(Ok(stream)) => {
            let peer = stream.peer_addr().map_or(port.to_string(), |peer| peer.to_string());
            return Finding::ok(PORT, format!("{peer} accepts connections"));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {}", humantime::format_duration(TCP_LIMIT)),
    };
    Finding::fail(
        PORT,
        Failure { causes: vec![failed], ..Failure::new(format!("cannot connect to port {port}")) }
            .hint(
                "check that sshd listens there (ssh.port) and that a firewall lets this machine through; GitHub's own \
                 runners have changing addresses",
            ),
    )
}
