//! Bodies of answers, as far as anybody reads them: whoever listens on a port may send without end.

use reqwest::Response;

/// A body that is not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection ended before it.
    #[error("the answer breaks off")]
    Broken(#[from] reqwest::Error),
    /// It is longer than anybody wants to know.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// The body of an answer, of at most `limit` bytes.
///
/// # Errors
/// If it is longer, or breaks off.
pub async fn read(mut answer: Response, limit: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
