//! Load with an oracle: clients of the kinds that a swap can hurt, and a count of every request that one did.
//!
//! Nothing is ever retried, so every lost request is seen and counted once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::PATIENCE;

mod clients;
mod fault;
pub mod http;
mod oracle;
mod tally;

pub use fault::{Fault, Mishap};
pub use tally::{Excuse, Incident, Kind, Tally};

use clients::Client;

#[cfg(test)]
mod tests;

/// Which clients there are and what they do. A number of 0 leaves a kind out.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    /// Where to connect: nginx, or a replica itself.
    pub target: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The model that requests name.
    pub model: String,
    /// The key that they carry.
    pub api_key: Option<String>,
    /// Clients of kind [`Kind::Keepalive`].
    pub keepalive: usize,
    /// Clients of kind [`Kind::Fresh`].
    pub fresh: usize,
    /// `max_tokens` of all requests but the streams.
    pub short_tokens: u64,
    /// The pause after a request, of every kind.
    pub pause: Duration,
    /// Clients of kind [`Kind::Stream`].
    pub streams: usize,
    /// `max_tokens` of streams; times the engine's time for a token this is their duration.
    pub stream_tokens: u64,
    /// Clients of kind [`Kind::Upload`].
    pub uploads: usize,
    /// How long sending one request takes them.
    pub upload_time: Duration,
    /// Clients of kind [`Kind::Idle`].
    pub idle: usize,
    /// How long they rest with half a head sent.
    pub idle_time: Duration,
    /// Clients of kind [`Kind::Websocket`].
    pub websockets: usize,
    /// When the load ends by itself, should nobody stop it.
    pub lasts_at_most: Duration,
}

impl LoadSpec {
    /// No clients yet; the rest is set to something small.
    pub fn none(target: SocketAddr, model: &str) -> Self {
        Self {
            target,
            host: "localhost".to_owned(),
            model: model.to_owned(),
            api_key: None,
            keepalive: 0,
            fresh: 0,
            short_tokens: 2,
            pause: Duration::from_millis(10),
            streams: 0,
            stream_tokens: 50,
            uploads: 0,
            upload_time: Duration::from_millis(300),
            idle: 0,
            idle_time: Duration::from_millis(300),
            websockets: 0,
            lasts_at_most: Duration::from_secs(300),
        }
    }

    /// A few clients of every kind but websockets, which pin a worker until they are told to go.
    pub fn mixed(target: SocketAddr, model: &str) -> Self {
        Self {
            keepalive: 4,
            fresh: 2,
            streams: 4,
            uploads: 2,
            idle: 2,
            ..Self::none(target, model)
        }
    }
}

/// A load in progress. Dropping it cuts it off.
#[derive(Debug)]
pub struct Load {
    course: Arc<Course>,
    clients: JoinSet<()>,
}

/// What all clients of a load share.
#[derive(Debug)]
struct Course {
    spec: LoadSpec,
    tally: watch::Sender<Tally>,
    began: Instant,
    /// No new requests once this is true.
    stopping: watch::Sender<bool>,
    /// Websockets go once this is true.
    websockets_go: watch::Sender<bool>,
}

impl Load {
    /// Starts all clients on the current tokio runtime.
    pub fn start(spec: LoadSpec) -> Self {
        let numbers = [
            (Kind::Keepalive, spec.keepalive),
            (Kind::Fresh, spec.fresh),
            (Kind::Stream, spec.streams),
            (Kind::Upload, spec.uploads),
            (Kind::Idle, spec.idle),
            (Kind::Websocket, spec.websockets),
        ];
        let course = Arc::new(Course {
            spec,
            tally: watch::Sender::default(),
            began: Instant::now(),
            stopping: watch::Sender::new(false),
            websockets_go: watch::Sender::new(false),
        });
        let mut clients = JoinSet::new();
        for (kind, number) in numbers {
            for index in 0..number {
                clients.spawn(Client::new(course.clone(), kind, index).run());
            }
        }
        Self { course, clients }
    }

    /// The counts so far.
    pub fn tally(&self) -> Tally {
        self.course.tally.borrow().clone()
    }

    /// When it began: what the times of its incidents count from.
    pub fn began(&self) -> Instant {
        self.course.began
    }

    /// Streams that have begun to come and have not ended.
    pub fn streams_in_flight(&self) -> u64 {
        self.course.tally.borrow().in_flight(Kind::Stream)
    }

    /// Waits until the counts satisfy `condition`, which is asked after every change.
    ///
    /// # Errors
    /// If that takes longer than [`PATIENCE`]: with the counts.
    pub async fn wait_until(&self, condition: impl FnMut(&Tally) -> bool) -> anyhow::Result<()> {
        let mut tally = self.course.tally.subscribe();
        let waited =
            tokio::time::timeout(PATIENCE, async { tally.wait_for(condition).await.map(drop) })
                .await;
        waited.with_context(|| {
            format!("the load did not come to what was waited for:\n{}", self.tally())
        })??;
        Ok(())
    }

    /// Tells the websockets to go, and waits until they are gone.
    ///
    /// # Errors
    /// As [`Self::wait_until`].
    pub async fn close_websockets(&self) -> anyhow::Result<()> {
        self.course.websockets_go.send_replace(true);
        self.wait_until(|tally| tally.in_flight(Kind::Websocket) == 0).await
    }

    /// Starts no more requests, lets those in flight come to their end, and counts them all.
    pub async fn stop(mut self) -> Tally {
        self.course.stopping.send_replace(true);
        self.course.websockets_go.send_replace(true);
        while let Some(client) = self.clients.join_next().await {
            if let Err(error) = client
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.tally()
    }
}
