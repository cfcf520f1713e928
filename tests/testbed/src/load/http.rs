//! An HTTP/1.1 client that never retries, never hides a fault, and knows exactly when a connection ended.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fault::{Fault, Mishap};

/// Longest silence before a request counts as stalled. Above nginx's timeouts of 60 s, so that its own 504 is seen first.
pub const STALL_LIMIT: Duration = Duration::from_secs(75);
/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// Longest head that is believed, in bytes; nginx sends less than a tenth of it.
const HEAD_LIMIT: usize = 64 * 1024;
/// How much of an unexpected body a description quotes, in characters.
const QUOTE: usize = 120;

/// A finished answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status line's code.
    pub status: u16,
    /// Names in lower case, values trimmed.
    pub headers: Vec<(String, String)>,
    /// Without any transfer encoding.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text, lossy.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The beginning of the body in one line, for descriptions.
    pub(super) fn quote(&self) -> String {
        let words: Vec<_> = self.text().split_whitespace().map(str::to_owned).collect();
        words.join(" ").chars().take(QUOTE).collect()
    }

    fn says(&self, name: &str, word: &str) -> bool {
        self.header(name).is_some_and(|value| value.to_ascii_lowercase().contains(word))
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    local: SocketAddr,
    /// Read, but not yet consumed.
    pending: Vec<u8>,
    answers: u64,
    reusable: bool,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`Fault::Refused`], [`Fault::Stalled`].
    pub async fn open(address: SocketAddr) -> Result<Self, Mishap> {
        let refused = |error: io::Error| Mishap::new(Fault::Refused, error);
        let connecting = tokio::time::timeout(STALL_LIMIT, TcpStream::connect(address));
        let stream = connecting.await.map_err(|_| stalled("connecting"))?.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let local = stream.local_addr().map_err(refused)?;
        Ok(Self { stream, local, pending: Vec::new(), answers: 0, reusable: true })
    }

    /// Which connection this is, and which request on it comes next: `127.0.0.1:40000#3`.
    pub fn name(&self) -> String {
        format!("{}#{}", self.local, self.answers + 1)
    }

    /// Whether another request may be sent: the last answer left it open, and the peer has not closed it since. Asks
    /// the kernel, as careful clients do, so that only a close that is still on its way goes unseen.
    pub fn reusable(&self) -> bool {
        let silent =
            rustix::net::recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        self.reusable && silent == Err(rustix::io::Errno::AGAIN)
    }

    /// Sends bytes of a request. That the peer has closed is no error yet: what it said before comes out of
    /// [`Self::answer`].
    pub async fn send(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).await.is_err() {
            self.reusable = false;
        }
    }

    /// Reads one answer to its end. `on_data` sees each piece of the body as it comes.
    ///
    /// # Errors
    /// [`Fault::ResetFresh`] or [`Fault::ReuseRace`] before the first byte, [`Fault::Truncated`] after it, and
    /// [`Fault::Malformed`], [`Fault::Stalled`].
    pub async fn answer(&mut self, mut on_data: impl FnMut(&[u8])) -> Result<Answer, Mishap> {
        let mut answer = self.head().await?;
        if answer.status == 101 {
            return Ok(answer);
        }
        if answer.says("transfer-encoding", "chunked") {
            self.chunks(&mut answer.body, &mut on_data).await?;
        } else if let Some(length) = answer.header("content-length") {
            let length =
                length.parse().map_err(|_| malformed(format!("content-length {length}")))?;
            self.take(length, &mut answer.body, &mut on_data).await?;
        } else {
            self.reusable = false;
            while self.fill().await? {
                on_data(&self.pending);
                answer.body.append(&mut self.pending);
            }
        }
        self.answers += 1;
        self.reusable &= !answer.says("connection", "close");
        Ok(answer)
    }

    /// Reads exactly `length` bytes of an upgraded connection.
    ///
    /// # Errors
    /// [`Fault::Truncated`], [`Fault::Stalled`].
    pub async fn raw(&mut self, length: usize) -> Result<Vec<u8>, Mishap> {
        let mut bytes = Vec::new();
        self.take(length, &mut bytes, &mut |_| {}).await?;
        Ok(bytes)
    }

    async fn head(&mut self) -> Result<Answer, Mishap> {
        let end = loop {
            if let Some(end) = find(&self.pending, b"\r\n\r\n") {
                break end;
            }
            if self.pending.len() > HEAD_LIMIT {
                return Err(malformed("endless head"));
            }
            let silent = self.pending.is_empty();
            match self.fill().await {
                Ok(true) => {}
                Err(mishap) if !silent || mishap.fault == Fault::Stalled => return Err(mishap),
                Ok(false) if !silent => {
                    return Err(Mishap::new(Fault::Truncated, "closed within the head"));
                }
                Ok(false) => return Err(self.unanswered("closed before any byte")),
                Err(mishap) => return Err(self.unanswered(&mishap.detail)),
            }
        };
        let head: Vec<u8> = self.pending.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head);
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.filter(|_| status_line.starts_with("HTTP/1.1 "));
        let status = status.ok_or_else(|| malformed(format!("status line {status_line:?}")))?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Answer { status, headers, body: Vec::new() })
    }

    fn unanswered(&self, detail: &str) -> Mishap {
        Mishap::new(if self.answers == 0 { Fault::ResetFresh } else { Fault::ReuseRace }, detail)
    }

    async fn chunks(
        &mut self,
        body: &mut Vec<u8>,
        on_data: &mut impl FnMut(&[u8]),
    ) -> Result<(), Mishap> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| malformed(format!("chunk size {line:?}")))?;
            if size == 0 {
                // Trailers, up to an empty line.
                while !self.line().await?.is_empty() {}
                return Ok(());
            }
            self.take(size, body, on_data).await?;
            if !self.line().await?.is_empty() {
                return Err(malformed("a chunk is longer than it says"));
            }
        }
    }

    async fn line(&mut self) -> Result<String, Mishap> {
        loop {
            if let Some(end) = find(&self.pending, b"\r\n") {
                let line: Vec<u8> = self.pending.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more("chunk").await?;
        }
    }

    async fn take(
        &mut self,
        mut length: usize,
        body: &mut Vec<u8>,
        on_data: &mut impl FnMut(&[u8]),
    ) -> Result<(), Mishap> {
        while length > 0 {
            if self.pending.is_empty() {
                self.more("body").await?;
            }
            let piece: Vec<u8> = self.pending.drain(..length.min(self.pending.len())).collect();
            length -= piece.len();
            on_data(&piece);
            body.extend(piece);
        }
        Ok(())
    }

    async fn more(&mut self, within: &str) -> Result<(), Mishap> {
        if self.fill().await? {
            Ok(())
        } else {
            Err(Mishap::new(Fault::Truncated, format!("closed within a {within}")))
        }
    }

    /// Reads something; `false` at the end.
    async fn fill(&mut self) -> Result<bool, Mishap> {
        self.pending.reserve(PIECE);
        let reading = tokio::time::timeout(STALL_LIMIT, self.stream.read_buf(&mut self.pending));
        let length = reading.await.map_err(|_| stalled("reading"))?;
        Ok(length.map_err(|error| Mishap::new(Fault::Truncated, error))? > 0)
    }
}

/// One GET on a connection of its own.
///
/// # Errors
/// Any fault of the connection; statuses are no faults here.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer, Mishap> {
    let mut connection = Connection::open(address).await?;
    connection
        .send(
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await;
    connection.answer(|_| {}).await
}

/// One POST of JSON on a connection of its own.
///
/// # Errors
/// As [`get`].
pub async fn post(
    address: SocketAddr,
    path: &str,
    json: &serde_json::Value,
) -> Result<Answer, Mishap> {
    let mut connection = Connection::open(address).await?;
    let body = json.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.send(head.as_bytes()).await;
    connection.answer(|_| {}).await
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn malformed(detail: impl std::fmt::Display) -> Mishap {
    Mishap::new(Fault::Malformed, detail)
}

fn stalled(doing: &str) -> Mishap {
    Mishap::new(Fault::Stalled, format!("{doing} took longer than {} s", STALL_LIMIT.as_secs()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// A server that answers each request on one connection with the next of `answers`, then closes.
    async fn scripted(answers: &'static [&'static str]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            for answer in answers {
                connection.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
                connection.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Connection::open(address).await.unwrap()
    }

    async fn exchange(connection: &mut Connection) -> Result<String, Fault> {
        connection.send(REQUEST).await;
        connection.answer(|_| {}).await.map(|answer| answer.text()).map_err(|mishap| mishap.fault)
    }

    #[tokio::test]
    async fn reads_both_framings_on_one_connection() {
        let mut connection = scripted(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ncd\r\n1;x=y\r\ne\r\n0\r\n\r\n",
        ])
        .await;
        assert_eq!(exchange(&mut connection).await.unwrap(), "ab");
        assert!(connection.name().ends_with("#2"));
        assert_eq!(exchange(&mut connection).await.unwrap(), "cde");
    }

    #[tokio::test]
    async fn tells_every_early_end_from_the_others() {
        for (answer, fault) in [
            ("", Fault::ResetFresh),
            ("HTTP/1.1 200 OK\r\nConten", Fault::Truncated),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", Fault::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", Fault::Truncated),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
                Fault::Malformed,
            ),
            ("nonsense\r\n\r\n", Fault::Malformed),
        ] {
            let mut connection = scripted(vec![answer].leak()).await;
            assert_eq!(exchange(&mut connection).await, Err(fault), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_end_on_a_reused_connection_is_a_race_of_its_own() {
        let mut connection = scripted(&["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""]).await;
        exchange(&mut connection).await.unwrap();
        assert_eq!(exchange(&mut connection).await, Err(Fault::ReuseRace));
    }

    #[tokio::test]
    async fn a_closed_connection_is_not_reused() {
        let mut connection = scripted(&["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await;
        assert!(connection.reusable());
        exchange(&mut connection).await.unwrap();
        // The peer closes at once; the kernel learns of it soon.
        let closed = async {
            while connection.reusable() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(STALL_LIMIT, closed).await.unwrap();

        let mut connection = scripted(&[
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "never",
        ])
        .await;
        exchange(&mut connection).await.unwrap();
        assert!(!connection.reusable());
    }
}
