//! Brings this program to the server as its agent.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;

use super::agent::{last_words, sudo_said};
use super::error::RemoteError;
use super::exec::{Ended, Exec, Tail};
use super::frames::Lines;
use super::line::Place;
use super::session::Session;

/// The whole of it: a few MB over a link of at least 0.2 Mbit/s.
const BRING_LIMIT: Duration = Duration::from_secs(300);

/// What the program says once it is in its place. What a login script printed before may lack a newline.
const INSTALLED: &str = "installed";

/// Pipes the executable to the server, where it checks and installs itself.
pub(super) async fn bring(
    session: &Session,
    binary: &Path,
    place: &Place<'_>,
) -> Result<(), RemoteError> {
    match tokio::time::timeout(BRING_LIMIT, transfer(session, binary, place)).await {
        Ok(brought) => brought,
        Err(_) => Err(RemoteError::Bring {
            name: session.name().to_owned(),
            said: format!("not done within {}", humantime::format_duration(BRING_LIMIT)),
        }),
    }
}

async fn transfer(session: &Session, binary: &Path, place: &Place<'_>) -> Result<(), RemoteError> {
    let name = session.name();
    let line = place.bring();
    let Exec { stdin, stdout, stderr, process } = session.exec_next(&line).await?;
    let mut lines = Lines::new(stdout);
    let mut tail = Tail::new(stderr);

    let reading = async {
        let mut said = Vec::new();
        while let Some(line) = lines.next_beside(&mut tail, name).await? {
            said.push(line);
        }
        Ok::<_, RemoteError>(said)
    };
    let (sent, said) = tokio::join!(send(binary, stdin), reading);
    let mut said = said?;
    sent?;
    let (ended, last) = last_words(&mut tail, process).await;

    if ended == Ended::Code(0) && said.iter().any(|line| line.trim_end().ends_with(INSTALLED)) {
        return Ok(());
    }
    let name = name.to_owned();
    said.extend(last);
    if let Some(said) = sudo_said(&said) {
        return Err(RemoteError::Sudo { name, said });
    }
    let how = match ended {
        Ended::Code(code) => format!("exit code {code}"),
        Ended::Unknown(how) => how,
    };
    let said = said.into_iter().rev().find(|line| !line.trim().is_empty());
    Err(RemoteError::Bring {
        name,
        said: said.map_or(how.clone(), |said| format!("{said} ({how})")),
    })
}

/// Sends the file and closes the stream. That nobody reads on is no error here: the answer says why.
async fn send(binary: &Path, mut stdin: Sender) -> Result<(), RemoteError> {
    let unreadable = |source| RemoteError::Own { path: binary.to_owned(), source };
    let mut file = tokio::fs::File::open(binary).await.map_err(unreadable)?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count =
            tokio::io::AsyncReadExt::read(&mut file, &mut chunk).await.map_err(unreadable)?;
        let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        if stdin.write_all(bytes).await.is_err() {
            return Ok(());
        }
    }
}
