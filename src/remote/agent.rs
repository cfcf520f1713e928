//! Speaking with the agent on the server, and bringing it where it is missing.
//!
//! The request goes out with the first command, without asking whether the agent is there: warm, that is one exec; where
//! the agent is missing, the request is dropped unread, the agent is brought, and the request is sent again. On a server
//! with a processor of another kind there never is an agent of our own build; there the build for it is asked next.

use std::env::consts::ARCH;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::bring::bring;
use super::build::Build;
use super::error::RemoteError;
use super::exec::{Ended, Exec, Tail};
use super::frames::{Frames, Lines};
use super::line::{ABSENT, Place, is_sentinel};
use super::session::Session;
use crate::model::wire::Request;

/// From the start of the command to the agent's first line: login scripts and sudo run before it, and may ask a
/// directory service that is slow.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// How long the rest of a finished program's words and its exit code are waited for.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(5);

/// How many lines that came before the agent's are kept for diagnosis.
const NOISE_LINES: usize = 20;

/// Which agent is to run, and what decides where and as whom.
#[derive(Debug, Clone)]
pub struct Install {
    /// The executable to bring: this program's own, if the server's processor is of our kind.
    pub build: Build,
    /// Folder on this machine with the builds for other kinds, if there is one.
    pub others: Option<PathBuf>,
    /// Folder on the server whose `bin` holds the agent; `None`: by mode, see `line`.
    pub state_dir: Option<PathBuf>,
    /// nginx's file on the server: who owns it, and nginx, needs no root. Absolute. Without one, who has sudo is root.
    pub nginx_config: Option<PathBuf>,
}

/// Sends `request` to the agent on the server; brings the agent first if it is missing.
///
/// The agent's standard input stays open as long as the frames live; its end tells the agent that nobody follows.
///
/// # Errors
/// [`RemoteError::is_lost`] says whether the agent may have heard the request all the same.
pub async fn ask(
    session: &Session,
    install: &Install,
    request: &Request,
) -> Result<Frames, RemoteError> {
    let place = Place::new(install)?;
    let mut request = serde_json::to_string(request).map_err(RemoteError::Request)?;
    request.push('\n');
    let architecture = match greet(session, session.exec(&place.ask()), &request).await? {
        Greeted::Agent(frames) => return Ok(frames),
        Greeted::Absent { architecture } => architecture,
    };
    let other;
    let (build, place) = if architecture == ARCH {
        (&install.build, place)
    } else {
        let folder = install.others.as_deref();
        let build = folder.map(|folder| Build::of(folder, &architecture)).transpose()?.flatten();
        let Some(build) = build else {
            let name = session.name().to_owned();
            return Err(RemoteError::Architecture { name, ours: ARCH, theirs: architecture });
        };
        other = Install { build, ..install.clone() };
        let place = Place::new(&other)?;
        let line = place.ask();
        if let Greeted::Agent(frames) = greet(session, session.exec_next(&line), &request).await? {
            return Ok(frames);
        }
        (&other.build, place)
    };
    bring(session, &build.path, &place).await?;
    match greet(session, session.exec_next(&place.ask()), &request).await? {
        Greeted::Agent(frames) => Ok(Frames { brought: true, ..frames }),
        Greeted::Absent { .. } => Err(RemoteError::Bring {
            name: session.name().to_owned(),
            said: "it was installed, and then was not there".to_owned(),
        }),
    }
}

enum Greeted {
    Agent(Frames),
    /// There is none.
    Absent {
        /// What `uname -m` says there.
        architecture: String,
    },
}

/// Sends the request to what was started for it, and reads to the sentinel.
async fn greet(
    session: &Session,
    exec: impl Future<Output = Result<Exec, RemoteError>>,
    request: &str,
) -> Result<Greeted, RemoteError> {
    let name = session.name().to_owned();
    let greeting = async {
        let Exec { mut stdin, stdout, stderr, process } = exec.await?;
        // If nobody reads it, the answer says why.
        let _unread = stdin.write_all(request.as_bytes()).await;

        let mut lines = Lines::new(stdout);
        let mut tail = Tail::new(stderr);
        let mut said = Vec::new();
        while let Some(line) = lines.next_beside(&mut tail, &name).await? {
            if is_sentinel(&line) {
                let frames = Frames {
                    name,
                    lines,
                    tail,
                    process: Some(process),
                    brought: false,
                    ended: false,
                    stdin,
                };
                return Ok(Greeted::Agent(frames));
            }
            // What a login script printed before may lack a newline.
            if let Some((_, architecture)) = line.split_once(ABSENT) {
                return Ok(Greeted::Absent { architecture: architecture.trim().to_owned() });
            }
            said.push(line);
            if said.len() > NOISE_LINES {
                said.remove(0);
            }
        }
        said.extend(lines.rest());
        let (ended, last) = last_words(&mut tail, process).await;
        said.extend(last);
        Err(no_agent(session, ended, said))
    };
    tokio::time::timeout(GREETING_LIMIT, greeting).await.unwrap_or_else(|_| {
        Err(RemoteError::Lost {
            name: session.name().to_owned(),
            doing: "waiting for the agent's first word",
            detail: format!("nothing within {}", humantime::format_duration(GREETING_LIMIT)),
        })
    })
}

/// Why there was no sentinel.
fn no_agent(session: &Session, ended: Ended, said: Vec<String>) -> RemoteError {
    let name = session.name().to_owned();
    match ended {
        Ended::Unknown(detail) => {
            RemoteError::Lost { name, doing: "waiting for the agent's first word", detail }
        }
        Ended::Code(code) => match sudo_said(&said) {
            Some(said) => RemoteError::Sudo { name, said },
            None => RemoteError::NoAgent { name, code, said },
        },
    }
}

/// sudo's own words in any of the forms that it has for a refusal, or the shell's where there is no sudo.
pub(super) fn sudo_said(lines: &[String]) -> Option<String> {
    const PHRASES: [&str; 4] =
        ["sudo: ", "is not in the sudoers file", "may not run sudo", "is not allowed to"];
    // A warning of sudo's, on hosts whose own name is in no directory.
    let is_warning = |line: &str| line.contains("unable to resolve host");
    lines
        .iter()
        .rev()
        .find(|line| PHRASES.iter().any(|phrase| line.contains(phrase)) && !is_warning(line))
        .cloned()
}

/// The last words and the exit of a program whose standard output has ended.
pub(super) async fn last_words(
    tail: &mut Tail,
    process: super::exec::Process,
) -> (Ended, Vec<String>) {
    // A detached process may hold standard error open for as long as it likes.
    let _open = tokio::time::timeout(LAST_WORDS_LIMIT, tail.drain()).await;
    let ended = tokio::time::timeout(LAST_WORDS_LIMIT, process.ended()).await;
    (
        ended.unwrap_or_else(|_| Ended::Unknown("its output ended, and it did not".to_owned())),
        tail.take(),
    )
}
