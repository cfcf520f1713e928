//! systemd-logind: whether it ends what an ssh session leaves behind, and the way out of the session.
//!
//! With `KillUserProcesses=yes` it stops the session's scope at its end, with everything in it, sessions of their own
//! (setsid(2)) included. Lingering alone changes nothing about that (seen with systemd 252); a scope of another manager is
//! not the session's. Without lingering the user's own manager ends a moment after the user's last session.

use std::path::Path;
use std::time::Duration;

use super::exec::{self, ExecError};
use super::process;

/// It answers within milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Users from here on are none of the system's (`SYS_UID_MAX` of login.defs(5), as distributions have it).
const FIRST_PLAIN: u32 = 1000;

/// A file for each user who lingers, by name: of those who are not logged in logind has no object to ask.
const LINGERING: &str = "/var/lib/systemd/linger";

/// logind did not tell.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// busctl could not be run to its end.
    #[error("cannot ask systemd-logind")]
    Run(#[from] ExecError),
    /// It said something else than was asked for.
    #[error("systemd-logind does not tell {asked}: {said}")]
    Unclear {
        /// The properties.
        asked: String,
        /// The answer, or the refusal.
        said: String,
    },
}

/// What becomes of a process that is left behind here, once the session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stays,
    /// It is ended, unless it is in a scope that is not the session's.
    Ended {
        /// Whose session it is.
        user: String,
        /// Who can make such a scope; nobody, if `None`.
        refuge: Option<Refuge>,
    },
}

/// The manager that makes a scope which outlives the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuge {
    /// The system's, for root.
    System,
    /// The user's own, which lingers.
    User,
}

impl Refuge {
    /// The words in front of a command that is to run in such a scope. It keeps its standard input and outputs.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::System => &["systemd-run", "--scope", "--quiet", "--"],
            Self::User => &["systemd-run", "--user", "--scope", "--quiet", "--"],
        }
    }
}

/// What becomes of what this process leaves behind.
///
/// # Errors
/// If this is a session of logind's, and logind does not tell.
pub async fn fate() -> Result<Fate, LogindError> {
    let Some(uid) = process::cgroups(process::own().pid).iter().find_map(|path| session(path))
    else {
        return Ok(Fate::Stays);
    };
    let user = process::user_name(uid);
    if !Kills::asked().await?.ends(&user) {
        return Ok(Fate::Stays);
    }
    let own = rustix::process::geteuid();
    let refuge = if own.is_root() {
        Some(Refuge::System)
    } else {
        lingers(own.as_raw()).await?.then_some(Refuge::User)
    };
    Ok(Fate::Ended { user, refuge })
}

/// Whether logind removes what a user has in `/dev/shm` when its last session ends (logind.conf(5), `RemoveIPC=`): a service that
/// runs as that user loses it, too. Users of the system's are spared, and who lingers.
///
/// # Errors
/// If logind does not tell.
pub async fn removes_shared_memory(uid: u32) -> Result<bool, LogindError> {
    if uid < FIRST_PLAIN || Path::new(LINGERING).join(process::user_name(uid)).exists() {
        return Ok(false);
    }
    flag("", "Manager", "RemoveIPC").await
}

/// Whose session a control group is of: `/user.slice/user-1000.slice/session-3.scope` and what is below.
fn session(path: &str) -> Option<u32> {
    let mut segments = path.split('/');
    let slice = segments.find(|segment| segment.starts_with("user-"))?;
    let uid = slice.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()?;
    let scope = segments.next()?;
    (scope.starts_with("session-") && scope.ends_with(".scope")).then_some(uid)
}

/// Whose processes logind ends (logind.conf(5)).
#[derive(Debug, PartialEq, Eq)]
struct Kills {
    any: bool,
    only: Vec<String>,
    exclude: Vec<String>,
}

impl Kills {
    async fn asked() -> Result<Self, LogindError> {
        let names = ["KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers"];
        let said = property("", "Manager", &names).await?;
        Self::read(&said).ok_or_else(|| LogindError::Unclear { asked: names.join(", "), said })
    }

    /// As busctl prints the three: `b true`, `as 0`, `as 2 "root" "ann"`.
    fn read(said: &str) -> Option<Self> {
        let mut lines = said.lines();
        let any = lines.next()?.strip_prefix("b ")? == "true";
        let mut list = || -> Option<Vec<String>> {
            let words = lines.next()?.strip_prefix("as ")?.split(' ').skip(1);
            Some(words.map(|word| word.trim_matches('"').to_owned()).collect())
        };
        Some(Self { any, only: list()?, exclude: list()? })
    }

    /// As `manager_shall_kill` in `logind-core.c` has it: root is spared where nobody else is.
    fn ends(&self, user: &str) -> bool {
        let names = |list: &[String]| list.iter().any(|name| name == user);
        let spared = if self.exclude.is_empty() { user == "root" } else { names(&self.exclude) };
        self.any && !spared && (self.only.is_empty() || names(&self.only))
    }
}

async fn lingers(uid: u32) -> Result<bool, LogindError> {
    flag(&format!("/user/_{uid}"), "User", "Linger").await
}

async fn flag(object: &str, interface: &str, name: &str) -> Result<bool, LogindError> {
    let said = property(object, interface, &[name]).await?;
    match said.trim() {
        "b true" => Ok(true),
        "b false" => Ok(false),
        _ => Err(LogindError::Unclear { asked: name.to_owned(), said }),
    }
}

/// Properties of one of logind's objects (org.freedesktop.login1(5)), a line each. `loginctl` leaves lists out.
async fn property(object: &str, interface: &str, names: &[&str]) -> Result<String, LogindError> {
    const NAME: &str = "org.freedesktop.login1";
    let object = format!("/org/freedesktop/login1{object}");
    let interface = format!("{NAME}.{interface}");
    let argv = ["busctl", "get-property", NAME, &object, &interface];
    let argv: Vec<String> = argv.iter().chain(names).map(ToString::to_string).collect();
    let output = exec::run(&argv, LIMIT).await?;
    if output.success() {
        return Ok(output.stdout);
    }
    Err(LogindError::Unclear { asked: names.join(", "), said: output.stderr.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_its_scope() {
        for (path, uid) in [
            ("/user.slice/user-1000.slice/session-3.scope", Some(1000)),
            ("/user.slice/user-0.slice/session-c2.scope/below", Some(0)),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1.scope", None),
            ("/system.slice/ssh.service", None),
            ("/", None),
        ] {
            assert_eq!(session(path), uid, "{path}");
        }
    }

    #[test]
    fn whose_processes_are_ended_is_what_logind_makes_of_its_lists() {
        let rows: [(&str, &[&str], &[&str]); 5] = [
            ("b false\nas 0\nas 0\n", &[], &["ann", "root"]),
            ("b true\nas 0\nas 0\n", &["ann", "bob"], &["root"]),
            ("b true\nas 0\nas 2 \"root\" \"ann\"\n", &["bob"], &["ann", "root"]),
            ("b true\nas 0\nas 1 \"ann\"\n", &["bob", "root"], &["ann"]),
            ("b true\nas 1 \"ann\"\nas 0\n", &["ann"], &["bob", "root"]),
        ];
        for (said, ended, spared) in rows {
            let kills = Kills::read(said).unwrap();
            assert!(ended.iter().all(|user| kills.ends(user)), "{said}");
            assert!(!spared.iter().any(|user| kills.ends(user)), "{said}");
        }
        assert_eq!(Kills::read("Failed to get property"), None);
    }
}
