//! User, home, working folder and `PATH`: taken from an incumbent, or from what this server knows of its users.
//!
//! `/etc/passwd` and `/etc/group` are read here, and whom they do not know getent(1) is asked for, as users of a directory
//! (LDAP, SSSD, OS Login) are: a static binary has no name service switch of its own. The incumbent's own identity comes from
//! `/proc`, where every user is known by number.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use procfs::process::Process;
use rustix::fs::{Access, access};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use serde::{Deserialize, Serialize};

use super::ProcessError;
use super::resolve::resolve;
use super::table::{alive, is_blank};
use crate::model::ids::ProcessId;

/// Debian's `PATH` of a login (login.defs), for a user whose own is not known.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";

/// Bound on the name service's answer, in seconds: its directory may be away, and one that is there answers at once.
const NAMES_LIMIT: &str = "10";

/// What a candidate takes over from the incumbent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// As whom it runs.
    pub identity: Identity,
    /// Name of the user, if it is known.
    pub user: Option<String>,
    /// Home folder.
    pub home: PathBuf,
    /// Working folder.
    pub cwd: PathBuf,
    /// `PATH`.
    pub path: String,
}

/// User and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// The environment of a process as it was started. Holds secrets: keep it in a file of mode 0600.
///
/// Variables that are not UTF-8 are left out.
///
/// # Errors
/// If the process is gone, is another user's, or has written a title over its environment.
pub fn environment(process: ProcessId) -> Result<BTreeMap<String, String>, ProcessError> {
    let bytes = std::fs::read(format!("/proc/{process}/environ"));
    if !alive(process) {
        return Err(ProcessError::Gone(process));
    }
    let bytes = bytes.map_err(|source| ProcessError::Unreadable {
        process,
        what: "environment",
        source,
    })?;
    // An environment that was empty from the start has no bytes at all.
    if !bytes.is_empty() && is_blank(&bytes) {
        return Err(ProcessError::BlankEnvironment(process));
    }
    let entries =
        bytes.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    Ok(entries
        .filter_map(|entry| entry.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect())
}

/// argv of a process, as it is. May hold secrets: keep it in a file of mode 0600.
///
/// # Errors
/// If the process is gone or is another user's.
pub fn argv(process: ProcessId) -> Result<Vec<String>, ProcessError> {
    let argv = Process::new(process.pid).and_then(|process| process.cmdline());
    if !alive(process) {
        return Err(ProcessError::Gone(process));
    }
    argv.map_err(|source| ProcessError::Unreadable {
        process,
        what: "argv",
        source: std::io::Error::other(source),
    })
}

/// User, home, working folder and `PATH` of a process.
///
/// What its environment does not tell (any more) comes from `/etc/passwd`.
///
/// # Errors
/// If the process is gone or is another user's.
pub fn inherited(process: ProcessId) -> Result<Inherited, ProcessError> {
    let unreadable = |what, source| match source {
        procfs::ProcError::NotFound(_) => ProcessError::Gone(process),
        source => ProcessError::Unreadable { process, what, source: std::io::Error::other(source) },
    };
    let proc = Process::new(process.pid).map_err(|source| unreadable("status", source))?;
    let status = proc.status().map_err(|source| unreadable("status", source))?;
    let cwd = proc.cwd().map_err(|source| unreadable("working folder", source))?;
    let env = match environment(process) {
        Err(ProcessError::BlankEnvironment(_)) => BTreeMap::new(),
        env => env?,
    };
    let account = accounts()?.into_iter().find(|account| account.uid == status.euid);
    let known_home = account.as_ref().map(|account| account.home.clone());
    Ok(Inherited {
        identity: Identity { uid: status.euid, gid: status.egid, groups: status.groups },
        user: account.map(|account| account.name),
        home: env
            .get("HOME")
            .map(PathBuf::from)
            .or(known_home)
            .unwrap_or_else(|| PathBuf::from("/")),
        cwd,
        path: env.get("PATH").cloned().unwrap_or_else(|| DEFAULT_PATH.to_owned()),
    })
}

/// Name of a user, or the number where `/etc/passwd` knows none.
pub fn user_name(uid: u32) -> String {
    let account = accounts().ok().and_then(|list| list.into_iter().find(|known| known.uid == uid));
    account.map_or_else(|| uid.to_string(), |account| account.name)
}

/// Whether a user may execute a file, as far as permission bits tell: access lists may allow more.
///
/// # Errors
/// With the folder, or the file itself, that the user may not pass.
pub fn reaches(identity: &Identity, file: &Path) -> Result<(), PathBuf> {
    if identity.uid == 0 {
        return Ok(());
    }
    let file = file.canonicalize().map_err(|_| file.to_owned())?;
    let mut places: Vec<&Path> = file.ancestors().collect();
    places.reverse();
    let barrier = places
        .into_iter()
        .find(|place| !std::fs::metadata(place).is_ok_and(|found| identity.may_execute(&found)));
    barrier.map_or(Ok(()), |place| Err(place.to_owned()))
}

/// Whether a user may make files in a folder, as the kernel decides: a mount may be read-only, and a list may allow more than
/// the bits do.
///
/// # Errors
/// Why not.
pub fn may_write(identity: &Identity, folder: &Path) -> io::Result<()> {
    let look = || access(folder, Access::WRITE_OK | Access::EXEC_OK);
    if identity.is_own() {
        return Ok(look()?);
    }
    // Credentials are each thread's own, and this one ends with what it has taken on.
    let looked = std::thread::scope(|scope| {
        let become_and_look = || {
            let groups: Vec<_> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            set_thread_groups(&groups)?;
            set_thread_gid(Gid::from_raw(identity.gid))?;
            set_thread_uid(Uid::from_raw(identity.uid))?;
            look()
        };
        scope.spawn(become_and_look).join()
    });
    Ok(looked.map_err(|_| io::Error::other("the look was broken off"))??)
}

impl Inherited {
    /// A user of this server, in its home folder.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn of_user(name: &str) -> Result<Self, ProcessError> {
        let known = accounts()?.into_iter().find(|account| account.name == name);
        let is_known = known.is_some();
        let account = known.or_else(|| account(said(&["getent", "passwd", name])?.trim()));
        let account = account.ok_or_else(|| ProcessError::UnknownUser(name.to_owned()))?;
        let mut groups = groups_of(&read("/etc/group")?, name, account.gid);
        if !is_known {
            let more = said(&["id", "-G", name]).unwrap_or_default();
            groups.extend(more.split_whitespace().filter_map(|gid| gid.parse::<u32>().ok()));
            groups.sort_unstable();
            groups.dedup();
        }
        Ok(Self {
            identity: Identity { uid: account.uid, gid: account.gid, groups },
            user: Some(account.name),
            cwd: account.home.clone(),
            home: account.home,
            path: DEFAULT_PATH.to_owned(),
        })
    }

    /// The file that a command runs, with these variables set.
    ///
    /// # Errors
    /// If there is none, or if it can't be executed.
    pub fn program(
        &self,
        command: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<PathBuf, ProcessError> {
        let path = env.get("PATH").unwrap_or(&self.path);
        resolve(command.first().map_or("", String::as_str), path, &self.cwd)
    }

    fn nameless(uid: u32, gid: u32) -> Self {
        Self {
            identity: Identity { uid, gid, groups: vec![gid] },
            user: None,
            home: "/".into(),
            cwd: "/".into(),
            path: DEFAULT_PATH.to_owned(),
        }
    }

    /// Whoever called sudo, of whom that tells name and numbers: nothing else may know him.
    fn of_caller(name: &str, ids: Option<(u32, u32)>) -> Result<Self, ProcessError> {
        match (Self::of_user(name), ids) {
            (Err(ProcessError::UnknownUser(_)), Some((uid, gid))) => {
                Ok(Self { user: Some(name.to_owned()), ..Self::nameless(uid, gid) })
            }
            (found, _) => found,
        }
    }

    /// Whoever connected: the agent's own user in its home folder with its own `PATH`; through sudo, the one who called it.
    ///
    /// # Errors
    /// If `/proc` or `/etc/passwd` can't be read, or nobody knows who called sudo.
    pub fn of_self() -> Result<Self, ProcessError> {
        // sudo(8): a replica must not become root because nobody else was there to take the user from.
        if let Ok(caller) = std::env::var("SUDO_USER") {
            let number = |name| std::env::var(name).ok()?.parse().ok();
            return Self::of_caller(&caller, number("SUDO_UID").zip(number("SUDO_GID")));
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let row = super::table::row(pid).ok_or(ProcessError::Gone(ProcessId { pid, start: 0 }))?;
        let own = inherited(row.id)?;
        Ok(Self { cwd: own.home.clone(), ..own })
    }
}

impl Identity {
    /// By the bits for the owner, else for the group, else for others (path_resolution(7)).
    fn may_execute(&self, found: &Metadata) -> bool {
        let group = found.gid() == self.gid || self.groups.contains(&found.gid());
        let bit = match (found.uid() == self.uid, group) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        found.mode() & bit != 0
    }

    /// The agent's own.
    pub fn own() -> Self {
        use rustix::process::{getegid, geteuid, getgroups};
        let groups = getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    /// Whether the agent itself runs as this user: nothing to change, and no right to.
    pub fn is_own(&self) -> bool {
        self.uid == rustix::process::geteuid().as_raw()
            && self.gid == rustix::process::getegid().as_raw()
    }
}

/// A line of `/etc/passwd` (passwd(5)).
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

fn accounts() -> Result<Vec<Account>, ProcessError> {
    Ok(read("/etc/passwd")?.lines().filter_map(account).collect())
}

fn account(line: &str) -> Option<Account> {
    let fields: Vec<_> = line.split(':').collect();
    let [name, _, uid, gid, _, home, _] = fields[..] else { return None };
    Some(Account {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.into(),
    })
}

/// What a program says, if it succeeds in time.
fn said(argv: &[&str]) -> Option<String> {
    // timeout(1) is of coreutils, as id(1) is.
    let mut command = Command::new("timeout");
    command.arg(NAMES_LIMIT).args(argv).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// The primary group, and every group of `/etc/group` (group(5)) that lists the user.
fn groups_of(groups: &str, user: &str, primary: u32) -> Vec<u32> {
    let listed = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(4, ':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    });
    let mut groups: Vec<_> = std::iter::once(primary).chain(listed).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn read(path: &str) -> Result<String, ProcessError> {
    std::fs::read_to_string(Path::new(path))
        .map_err(|source| ProcessError::Read { path: path.into(), source })
}

#[cfg(test)]
mod tests;
