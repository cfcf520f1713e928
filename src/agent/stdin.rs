//! Standard input: one request, and by its end that nobody follows any more.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::oneshot;

use crate::model::failure::Failure;
use crate::model::line::LONGEST_REQUEST;
use crate::model::refusal::Refusal;

/// The request: one line.
///
/// # Errors
/// If it is longer than [`LONGEST_REQUEST`], or no text: whoever has a key could fill the memory of the server with it.
pub(super) async fn request() -> Result<String, Refusal> {
    let mut line = String::new();
    // One byte more, which tells a line that is too long from one that just is not.
    let bounded = tokio::io::stdin().take(LONGEST_REQUEST as u64 + 1);
    let read = BufReader::new(bounded).read_line(&mut line).await;
    read.map_err(|error| Refusal::input(Failure::from_error(&error)))?;
    if line.len() <= LONGEST_REQUEST {
        return Ok(line);
    }
    let failure = Failure::new(format!("the request is longer than {LONGEST_REQUEST} bytes"));
    Err(Refusal::input(failure.hint(
        "the configuration and the values of its variables make the request: leave out what no replica needs",
    )))
}

/// Returns at the end of standard input, after the request. Who calls it again waits for the same end.
pub(super) async fn ended() {
    let (tell, told) = oneshot::channel::<()>();
    // A thread of its own: the runtime would wait at its end for a read that it makes itself.
    let reading = std::thread::Builder::new().spawn(move || {
        let _rest = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(tell);
    });
    match reading {
        Ok(_) => {
            let _ended = told.await;
        }
        Err(_) => std::future::pending().await,
    }
}
