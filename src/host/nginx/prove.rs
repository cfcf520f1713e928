//! Proof that new requests go where they should.

use std::fmt;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Nginx;
use super::error::NginxError;
use super::process::{Master, is_alive};
use super::reload::Reloaded;
use super::sockets::{self, Held};
use crate::host::body;
use crate::model::ids::{Port, ProcessId};
use crate::model::survey::Entrance;

/// How many fresh connections in a row must meet the candidate: for about 100 ms both generations of workers accept.
const ANSWERS: usize = 3;

/// Bound on the whole proof.
pub(super) const PROOF_LIMIT: Duration = Duration::from_secs(15);

/// Bound on one probe: a candidate that was ready answers a list of models or one token in far less.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after an answer that proves nothing.
const PROBE_PAUSE: Duration = Duration::from_millis(10);

/// Pause after a look at the sockets that proves nothing; each one costs some requests.
const WATCH_PAUSE: Duration = Duration::from_millis(50);

/// For how long answers of somebody else are put down to old workers; after that sockets decide as well, since the probe
/// may meet a cache.
const PATIENCE: Duration = Duration::from_secs(1);

/// Requests at once while sockets are looked at: together they keep a connection to the upstream open for longer.
const AT_ONCE: usize = 8;

/// Pause between two looks at the sockets while requests are under way.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// The longest answer that is read, in bytes: a list of models, or one token.
const LONGEST_ANSWER: usize = 1 << 20;

/// The longest identity of somebody else that is shown, in characters.
const LONGEST_SHOWN: usize = 200;

/// Where new requests should go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The port that should get them.
    pub candidate: Port,
    /// The port that should not.
    pub incumbent: Port,
    /// What tells the candidate's answers from the incumbent's; `None` if nothing does.
    pub identity: Option<Identity>,
}

/// What a replica's answers carry and no other replica's do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// `data[].root` of `/v1/models`.
    Root(String),
    /// `system_fingerprint` of a completion of one token, where both replicas have the same root.
    Fingerprint {
        /// The fingerprint.
        fingerprint: String,
        /// The name under which the model is asked for.
        served_model: String,
    },
}

/// What showed that new requests go to the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Answers on so many fresh connections in a row identified it.
    Answers(usize),
    /// New workers hold connections to it and none to the incumbent.
    Sockets {
        /// New workers.
        workers: usize,
        /// Their connections to the candidate.
        connections: usize,
    },
}

impl Proof {
    /// What was seen, in words: of requests that go `to` one, and no more to the other.
    pub fn told(&self, to: &str, other: &str) -> String {
        match self {
            Self::Answers(count) => format!("{count} fresh connections in a row reached {to}"),
            Self::Sockets { workers, connections } => format!(
                "{workers} new workers hold {connections} connections to {to} and none to {other}"
            ),
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told("the candidate", "the incumbent"))
    }
}

/// What one probe met.
enum Answer {
    /// The candidate.
    Candidate,
    /// Somebody who identified themselves otherwise.
    Other(String),
    /// Nobody who could be told.
    Unknown(String),
}

/// One way to ask through nginx; cheap to clone.
#[derive(Clone)]
struct Probe {
    client: Client,
    url: String,
    host: Option<String>,
    api_key: Option<String>,
}

impl Nginx {
    /// Proves that new requests go to the candidate; where nginx is restarted meanwhile, through the one that comes after it.
    ///
    /// # Errors
    /// If neither answers nor sockets show it in time, with what was seen instead.
    pub async fn prove(
        &self,
        expect: &Expectation,
        reloaded: &Reloaded,
    ) -> Result<Proof, NginxError> {
        let probe = self.probe()?;
        let mut reloaded = reloaded.clone();
        let started = Instant::now();
        let (mut streak, mut answer, mut looked) =
            (0, "nothing".to_owned(), "no socket was looked at".to_owned());
        while started.elapsed() < self.proof_limit {
            let mut watch = true;
            if let Some(identity) = &expect.identity {
                match probe.ask(identity).await {
                    Answer::Candidate => {
                        streak += 1;
                        if streak == ANSWERS {
                            return Ok(Proof::Answers(streak));
                        }
                        continue;
                    }
                    Answer::Other(seen) => {
                        (streak, answer) = (0, seen);
                        watch = started.elapsed() > PATIENCE;
                    }
                    Answer::Unknown(seen) => (streak, answer) = (0, seen),
                }
            }
            if watch {
                let workers = match new_workers(&reloaded) {
                    Err(why) if !is_alive(reloaded.master) => {
                        looked = why.to_string();
                        // It may not be back yet.
                        reloaded.master =
                            self.view().await.map_or(reloaded.master, |view| view.master);
                        tokio::time::sleep(WATCH_PAUSE).await;
                        continue;
                    }
                    workers => workers?,
                };
                let (held, seen) = probe.watch(&workers, expect.candidate, expect.incumbent).await;
                if held.wanted > 0 && held.unwanted == 0 {
                    return Ok(Proof::Sockets { workers: workers.len(), connections: held.wanted });
                }
                let Held { wanted, unwanted } = held;
                let count = workers.len();
                looked = format!(
                    "{count} new workers held {wanted} connections to it and {unwanted} to port {}",
                    expect.incumbent
                );
                if expect.identity.is_none() {
                    answer = seen;
                }
                tokio::time::sleep(WATCH_PAUSE).await;
            } else {
                tokio::time::sleep(PROBE_PAUSE).await;
            }
        }
        let url = self.spec.probe.url.clone();
        Err(NginxError::Unproven {
            limit: self.proof_limit,
            port: expect.candidate,
            url,
            answer,
            sockets: looked,
        })
    }

    /// Why an answer to the probe does not meet the model with this root; `None` if it does. Where requests go sockets may show
    /// all the same.
    ///
    /// # Errors
    /// If no request can be made.
    pub async fn missed(&self, root: &str) -> Result<Option<String>, NginxError> {
        Ok(match self.probe()?.ask(&Identity::Root(root.to_owned())).await {
            Answer::Candidate => None,
            Answer::Other(seen) | Answer::Unknown(seen) => Some(seen),
        })
    }

    fn probe(&self) -> Result<Probe, NginxError> {
        let spec = &self.spec.probe;
        Probe::of(spec.url.clone(), spec.host.clone(), self.api_key.clone())
    }
}

/// Why a request for the models, on a way through nginx, does not meet the one with this root; `None` if it does.
///
/// # Errors
/// If no request can be made.
pub(in crate::host) async fn unmet(
    entrance: &Entrance,
    root: &str,
) -> Result<Option<String>, NginxError> {
    let probe = Probe::of(entrance.url.clone(), entrance.host.clone(), None)?;
    Ok(match probe.send(probe.client.get(&probe.url)).await {
        Err(why) => Some(why),
        Ok((status, body)) => match &roots(&body)[..] {
            [] => Some(format!("the answer has status {status} and names no model")),
            seen if seen.iter().any(|it| it == root) => None,
            seen => Some(format!("`{}` answers there", seen.join("`, `"))),
        },
    })
}

fn new_workers(reloaded: &Reloaded) -> Result<Vec<ProcessId>, NginxError> {
    let master = reloaded.master.pid;
    let found = Master::of_pid(master)?.filter(|found| found.process == reloaded.master);
    let mut workers = found.ok_or(NginxError::MasterGone { master })?.live_workers()?;
    workers.retain(|worker| !reloaded.old_workers.contains(worker));
    Ok(workers)
}

impl Probe {
    fn of(url: String, host: Option<String>, api_key: Option<String>) -> Result<Self, NginxError> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .timeout(PROBE_TIMEOUT)
            .build()
            .map_err(NginxError::Client)?;
        Ok(Self { client, url, host, api_key })
    }

    async fn ask(&self, identity: &Identity) -> Answer {
        let (answer, expected) = match identity {
            Identity::Root(root) => (self.roots().await, root),
            Identity::Fingerprint { fingerprint, served_model } => {
                (self.fingerprint(served_model).await, fingerprint)
            }
        };
        match answer {
            Ok(seen) if seen.contains(expected) => Answer::Candidate,
            Ok(seen) => {
                let seen: String = seen.join("`, `").chars().take(LONGEST_SHOWN).collect();
                Answer::Other(format!("`{seen}` instead of `{expected}`"))
            }
            Err(seen) => Answer::Unknown(seen),
        }
    }

    /// The roots of the models behind nginx.
    async fn roots(&self) -> Result<Vec<String>, String> {
        let (status, body) = self.send(self.client.get(&self.url)).await?;
        identified(status, roots(&body), "root")
    }

    /// The fingerprint of a completion of one token.
    async fn fingerprint(&self, served_model: &str) -> Result<Vec<String>, String> {
        let Some(base) = self.url.strip_suffix("/models") else {
            return Err(format!("{} does not end in /models", self.url));
        };
        let body = json!({ "model": served_model, "prompt": "1", "max_tokens": 1 });
        let (status, body) =
            self.send(self.client.post(format!("{base}/completions")).json(&body)).await?;
        let fingerprint = body.get("system_fingerprint").and_then(Value::as_str);
        identified(
            status,
            fingerprint.map(str::to_owned).into_iter().collect(),
            "system_fingerprint",
        )
    }

    /// Sends one request on a connection of its own; a body that is no JSON is null.
    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<(u16, Value), String> {
        if let Some(host) = &self.host {
            request = request.header(reqwest::header::HOST, host);
        }
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        // The innermost cause is the one that says something: refused, reset, timed out.
        let why = |mut cause: &dyn std::error::Error| {
            while let Some(next) = cause.source() {
                cause = next;
            }
            cause.to_string()
        };
        let response = request.send().await.map_err(|error| why(&error))?;
        let status = response.status().as_u16();
        let body = body::read(response, LONGEST_ANSWER).await.map_err(|error| why(&error))?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Sends some requests and looks at the workers' sockets until all are answered. Gives what they held, and the last
    /// answer.
    async fn watch(&self, workers: &[ProcessId], wanted: Port, unwanted: Port) -> (Held, String) {
        let mut probes = JoinSet::new();
        for _ in 0..AT_ONCE {
            let probe = self.clone();
            probes.spawn(async move { probe.send(probe.client.get(&probe.url)).await });
        }
        let (mut most, mut seen) = (Held::default(), String::new());
        while !probes.is_empty() {
            let workers = workers.to_vec();
            let now =
                tokio::task::spawn_blocking(move || sockets::held(&workers, wanted, unwanted))
                    .await
                    .unwrap_or_default();
            most = Held {
                wanted: most.wanted.max(now.wanted),
                unwanted: most.unwanted.max(now.unwanted),
            };
            tokio::time::sleep(LOOK_PAUSE).await;
            while let Some(answer) = probes.try_join_next() {
                seen = match answer {
                    Ok(Ok((status, _))) => format!("status {status}"),
                    Ok(Err(why)) => why,
                    Err(_) => continue,
                };
            }
        }
        (most, seen)
    }
}

/// `data[].root` of a list of models; none where it is no such list.
fn roots(body: &Value) -> Vec<String> {
    let models = body.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let roots = models.iter().filter_map(|model| model.get("root")?.as_str());
    roots.map(str::to_owned).collect()
}

fn identified(status: u16, seen: Vec<String>, what: &str) -> Result<Vec<String>, String> {
    if seen.is_empty() { Err(format!("status {status} without a {what}")) } else { Ok(seen) }
}
