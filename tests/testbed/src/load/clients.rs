//! The clients: each sends one request after the other until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Course;
use super::fault::{Fault, Mishap};
use super::http::Connection;
use super::oracle::{EventStream, Expected};
use super::tally::{Incident, Kind, Tally};

/// The pause after a lost request, so that an outage is no storm of requests: clients do not retry, but do go on.
const AFTER_A_FAULT: Duration = Duration::from_millis(50);
/// Pieces that an upload is sent in.
const UPLOAD_PIECES: u32 = 10;
/// Between two messages on a websocket.
const BETWEEN_MESSAGES: Duration = Duration::from_millis(50);

/// One client.
pub(super) struct Client {
    course: Arc<Course>,
    kind: Kind,
    /// Tells clients of a kind apart: every other one speaks the chat API.
    index: usize,
    /// Kept between requests by [`Kind::Keepalive`] alone.
    connection: Option<Connection>,
    /// The connection of the request in progress, for descriptions.
    name: String,
}

impl Client {
    pub(super) fn new(course: Arc<Course>, kind: Kind, index: usize) -> Self {
        Self { course, kind, index, connection: None, name: String::new() }
    }

    /// One request after the other, until the load stops.
    pub(super) async fn run(mut self) {
        let mut stopping = self.course.stopping.subscribe();
        while !*stopping.borrow() && self.course.began.elapsed() < self.course.spec.lasts_at_most {
            "-".clone_into(&mut self.name);
            let began = self.course.began.elapsed();
            let pause = match self.request().await {
                Ok(fingerprint) => {
                    self.course.tally.send_modify(|tally| tally.count_ok(self.kind, fingerprint));
                    self.course.spec.pause
                }
                Err(mishap) => {
                    self.lose(mishap, began);
                    AFTER_A_FAULT
                }
            };
            if self.kind == Kind::Websocket && *self.course.websockets_go.borrow() {
                return;
            }
            // The end of the pause and the end of the load are equally good reasons to go on.
            let _ = tokio::time::timeout(pause, stopping.wait_for(|stop| *stop)).await;
        }
    }

    fn lose(&mut self, mishap: Mishap, began: Duration) {
        let connection = std::mem::take(&mut self.name);
        let at = self.course.began.elapsed();
        let incident = Incident { kind: self.kind, mishap, began, at, connection };
        self.course.tally.send_modify(|tally| tally.count_lost(incident));
    }

    /// One request; the `system_fingerprint` of its answer, where there is one.
    async fn request(&mut self) -> Result<Option<String>, Mishap> {
        match self.kind {
            Kind::Keepalive | Kind::Fresh => self.short().await.map(Some),
            Kind::Stream => self.stream().await.map(Some),
            Kind::Upload => self.upload().await.map(Some),
            Kind::Idle => self.idle().await.map(Some),
            Kind::Websocket => self.websocket().await.map(|()| None),
        }
    }

    async fn short(&mut self) -> Result<String, Mishap> {
        let mut connection = match self.connection.take().filter(Connection::reusable) {
            Some(connection) => self.named(connection),
            None => self.connect().await?,
        };
        let _flight = self.take_off();
        let (head, body) = self.compose(Course::short);
        connection.send(&[head, body].concat()).await;
        let answer = connection.answer(|_| {}).await?;
        if self.kind == Kind::Keepalive {
            self.connection = Some(connection);
        }
        self.expected().judge(&answer)
    }

    async fn stream(&mut self) -> Result<String, Mishap> {
        let mut connection = self.connect().await?;
        let (head, body) = self.compose(Course::stream);
        connection.send(&[head, body].concat()).await;
        let tokens = self.course.spec.stream_tokens;
        let mut events = EventStream::new(Expected { tokens, ..self.expected() });
        let mut flight = None;
        let answer = connection
            .answer(|bytes| {
                events.feed(bytes);
                if flight.is_none() && events.has_begun() {
                    flight = Some(self.take_off());
                }
            })
            .await?;
        events.judge(&answer)
    }

    async fn upload(&mut self) -> Result<String, Mishap> {
        let mut connection = self.connect().await?;
        let (head, body) = self.compose(Course::short);
        connection.send(&head).await;
        let _flight = self.take_off();
        for piece in body.chunks(body.len().div_ceil(UPLOAD_PIECES as usize)) {
            tokio::time::sleep(self.course.spec.upload_time / UPLOAD_PIECES).await;
            connection.send(piece).await;
        }
        self.expected().judge(&connection.answer(|_| {}).await?)
    }

    async fn idle(&mut self) -> Result<String, Mishap> {
        let mut connection = self.connect().await?;
        let (head, body) = self.compose(Course::short);
        let (sent, held) = head.split_at(head.len() / 2);
        connection.send(sent).await;
        let _flight = self.take_off();
        tokio::time::sleep(self.course.spec.idle_time).await;
        connection.send(&[held, body.as_slice()].concat()).await;
        self.expected().judge(&connection.answer(|_| {}).await?)
    }

    /// Upgrades, and has bytes echoed until it is told to go.
    async fn websocket(&mut self) -> Result<(), Mishap> {
        let mut connection = self.connect().await?;
        let head = format!(
            "GET /v1/realtime HTTP/1.1\r\n{}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            self.course.common_headers()
        );
        connection.send(head.as_bytes()).await;
        let answer = connection.answer(|_| {}).await?;
        match answer.status {
            101 => {}
            500..=599 => return Err(Mishap::new(Fault::ServerError, answer.status)),
            status => return Err(Mishap::new(Fault::OtherStatus, status)),
        }
        let _flight = self.take_off();
        let mut going = self.course.websockets_go.subscribe();
        for number in 0_u64.. {
            let message = number.to_be_bytes();
            connection.send(&message).await;
            let echo = connection.raw(message.len()).await?;
            if echo != message {
                return Err(Mishap::new(Fault::Malformed, format!("{echo:?} for {message:?}")));
            }
            if tokio::time::timeout(BETWEEN_MESSAGES, going.wait_for(|go| *go)).await.is_ok() {
                break;
            }
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<Connection, Mishap> {
        Ok(self.named(Connection::open(self.course.spec.target).await?))
    }

    fn named(&mut self, connection: Connection) -> Connection {
        self.name = connection.name();
        connection
    }

    fn take_off(&self) -> Flight {
        self.course.tally.send_modify(|tally| tally.takes_off(self.kind));
        Flight { course: self.course.clone(), kind: self.kind }
    }

    fn expected(&self) -> Expected {
        Expected { model: self.course.spec.model.clone(), tokens: self.course.spec.short_tokens }
    }

    /// Head and body of a request, in the API that this client speaks.
    fn compose(&self, fields: fn(&Course) -> serde_json::Value) -> (Vec<u8>, Vec<u8>) {
        let mut fields = fields(&self.course);
        fields["model"] = json!(self.course.spec.model);
        let path = if self.index.is_multiple_of(2) {
            fields["prompt"] = json!("tell me a story");
            "/v1/completions"
        } else {
            fields["messages"] = json!([{"role": "user", "content": "tell me a story"}]);
            "/v1/chat/completions"
        };
        let body = fields.to_string().into_bytes();
        let head = format!(
            "POST {path} HTTP/1.1\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.course.common_headers(),
            body.len()
        );
        (head.into_bytes(), body)
    }
}

impl Course {
    fn short(&self) -> serde_json::Value {
        json!({"max_tokens": self.spec.short_tokens})
    }

    fn stream(&self) -> serde_json::Value {
        json!({"max_tokens": self.spec.stream_tokens, "stream": true})
    }

    fn common_headers(&self) -> String {
        let key = self.spec.api_key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n"));
        format!("Host: {}\r\n{}", self.spec.host, key.unwrap_or_default())
    }
}

/// A request under way, until it is dropped.
struct Flight {
    course: Arc<Course>,
    kind: Kind,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.course.tally.send_modify(|tally: &mut Tally| tally.lands(self.kind));
    }
}
