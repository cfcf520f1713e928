//! What has to get through at once: an order to abort, the word of `verify`. It goes by the connection at hand, and by one of its own
//! where that gives no answer soon: a link may be dead and not tell for half a minute, and an sshd with `MaxSessions 1` lets nothing
//! pass beside what is followed.

use std::pin::Pin;
use std::time::Duration;

use futures_util::future::select_ok;
use tokio::sync::Notify;

use super::follow::Line;
use crate::model::wire::{Frame, Request};
use crate::remote::agent::ask;
use crate::remote::error::RemoteError;
use crate::remote::frames::Frames;
use crate::remote::session::Session;

/// How long the connection at hand has the server's ear alone: several round trips to another continent, and the agent's
/// start. Of GitHub's ten seconds for a cancelled job it leaves a new connection enough.
const ALONE: Duration = Duration::from_secs(1);

/// The answer to what was asked at once.
pub(super) struct Answer {
    frames: Frames,
    first: Option<Frame>,
    /// The connection that it came by, if it is not the one at hand.
    own: Option<Session>,
}

type Way<'a> = Pin<Box<dyn Future<Output = Result<Answer, RemoteError>> + 'a>>;

/// Asks by whatever way answers first. The server may hear the same twice: `request` must mean the same then.
///
/// # Errors
/// If no way leads to the server.
pub(super) async fn ask_at_once(
    at_hand: Option<&Session>,
    line: &Line<'_>,
    request: &Request,
) -> Result<Answer, RemoteError> {
    let given_up = Notify::new();
    let mut ways: Vec<Way<'_>> = Vec::new();
    if let Some(session) = at_hand {
        let given_up = &given_up;
        ways.push(Box::pin(async move {
            let answer = first_word(session, line, request).await;
            if answer.is_err() {
                given_up.notify_one();
            }
            answer
        }));
    }
    ways.push(Box::pin(async {
        if at_hand.is_some() {
            let _late = tokio::time::timeout(ALONE, given_up.notified()).await;
        }
        let session = Session::open(line.target, line.credentials.clone()).await?;
        let answer = first_word(&session, line, request).await?;
        Ok(Answer { own: Some(session), ..answer })
    }));
    let (answer, _slower) = select_ok(ways).await?;
    Ok(answer)
}

/// Asks by a connection, and waits until the server is heard on it.
async fn first_word(
    session: &Session,
    line: &Line<'_>,
    request: &Request,
) -> Result<Answer, RemoteError> {
    let mut frames = ask(session, &line.install, request).await?;
    let first = frames.next().await?;
    Ok(Answer { frames, first, own: None })
}

impl Answer {
    /// The next frame; `None` at the answer's end.
    ///
    /// # Errors
    /// As [`Frames::next`].
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, RemoteError> {
        match self.first.take() {
            Some(frame) => Ok(Some(frame)),
            None => self.frames.next().await,
        }
    }

    /// Ends the connection that was made for it.
    pub(super) async fn close(self) {
        drop(self.frames);
        if let Some(session) = self.own {
            session.close().await;
        }
    }
}
