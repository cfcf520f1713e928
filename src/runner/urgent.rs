//! What has to get through at once: an order to abort, the word of `verify`. It goes by the connection at hand, and by one of its own
//! where that gives no answer soon: a link may be dead and not tell for half a minute, and an sshd with `MaxSessions 1` lets nothing
//! pass beside what is followed.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::follow::Line;
use crate::model::wire::{Frame, Request};
use crate::remote::agent::ask;
use crate::remote::error::RemoteError;
use crate::remote::frames::Frames;
use crate::remote::session::Session;

/// How long the connection at hand has the server's ear alone: several round trips to another continent, and the agent's
/// start. Of GitHub's ten seconds for a cancelled job it leaves a new connection enough.
const ALONE: Duration = Duration::from_secs(1);

/// For as long as this it is asked again where no connection was made, or it broke: an order to abort that gets through later leaves
/// traffic no time to come back.
pub(super) const AGAIN_LIMIT: Duration = Duration::from_secs(4);

/// Between two tries.
pub(super) const AGAIN: Duration = Duration::from_millis(500);

/// The answer to what was asked at once.
pub(super) struct Answer {
    frames: Frames,
    first: Option<Frame>,
    /// The connection that it came by, if it is not the one at hand.
    own: Option<Session>,
}

/// Asks by whatever way answers first, and until then again by each that fails. The server may hear the same twice: `request` must
/// mean the same then.
///
/// # Errors
/// If no way has led to the server when it is not asked again. [`RemoteError::is_lost`] says whether it may have heard.
pub(super) async fn ask_at_once(
    at_hand: Option<&Session>,
    line: &Line<'_>,
    request: &Request,
    until: Instant,
) -> Result<Answer, RemoteError> {
    let own = async || {
        let session = Session::open(line.target, line.credentials.clone()).await?;
        let answer = first_word(&session, line, request).await?;
        Ok(Answer { own: Some(session), ..answer })
    };
    let Some(session) = at_hand else { return again(until, own).await };
    either(until, async || first_word(session, line, request).await, own).await
}

/// What the way at hand or the other one leads to, whichever is there first; the other one is gone once the first has failed, or
/// takes longer than [`ALONE`].
async fn either<T>(
    until: Instant,
    mut at_hand: impl AsyncFnMut() -> Result<T, RemoteError>,
    own: impl AsyncFnMut() -> Result<T, RemoteError>,
) -> Result<T, RemoteError> {
    let failed = Notify::new();
    let at_hand = again(until, async || {
        let answer = at_hand().await;
        if answer.is_err() {
            failed.notify_one();
        }
        answer
    });
    let own = async {
        let _late = timeout(ALONE, failed.notified()).await;
        again(until, own).await
    };
    let (first, second) = match select(pin!(at_hand), pin!(own)).await {
        Either::Left((Err(error), own)) => (error, own.await),
        Either::Right((Err(error), at_hand)) => (error, at_hand.await),
        Either::Left((answer, _)) | Either::Right((answer, _)) => return answer,
    };
    second.map_err(|error| telling(Some(first), error))
}

/// Goes a way until it leads somewhere; what has failed at `until` is the end.
async fn again<T>(
    until: Instant,
    mut way: impl AsyncFnMut() -> Result<T, RemoteError>,
) -> Result<T, RemoteError> {
    let mut earlier = None;
    loop {
        let error = match way().await {
            Ok(answer) => return Ok(answer),
            Err(error) => telling(earlier, error),
        };
        if Instant::now() >= until {
            return Err(error);
        }
        earlier = Some(error);
        sleep(AGAIN).await;
    }
}

/// Which of two errors tells what may be so on the server: what was heard once is not unheard by a later try.
pub(super) fn telling(earlier: Option<RemoteError>, later: RemoteError) -> RemoteError {
    earlier.filter(RemoteError::is_lost).unwrap_or(later)
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn unreachable() -> RemoteError {
        let said = "Connection refused".to_owned();
        RemoteError::Unreachable { name: "gpu-1".to_owned(), port: 22, said }
    }

    fn lost() -> RemoteError {
        let (doing, detail) = ("following its answer", "it broke".to_owned());
        RemoteError::Lost { name: "gpu-1".to_owned(), doing, detail }
    }

    fn soon() -> Instant {
        Instant::now() + AGAIN_LIMIT
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_link_at_hand_is_silent_a_refused_connection_is_made_again() {
        let mut tries = 0;
        let own = async || {
            tries += 1;
            if tries < 5 { Err(unreachable()) } else { Ok("heard") }
        };
        let silent = async || pending::<Result<_, RemoteError>>().await;
        let asked = timeout(2 * AGAIN_LIMIT, either(soon(), silent, own)).await;
        assert_eq!(asked.expect("it is not asked again").unwrap(), "heard");
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_heard_stays_so_whatever_fails_after_it() {
        let fails = async || Err::<(), _>(unreachable());
        let breaks = async || Err::<(), _>(lost());
        let mut first = Some(lost());
        let then_fails = async || Err::<(), _>(first.take().unwrap_or_else(unreachable));
        assert!(either(soon(), breaks, fails).await.unwrap_err().is_lost());
        assert!(either(soon(), fails, breaks).await.unwrap_err().is_lost());
        assert!(again(soon(), then_fails).await.unwrap_err().is_lost());
        assert!(!either(soon(), fails, fails).await.unwrap_err().is_lost());
    }
}
