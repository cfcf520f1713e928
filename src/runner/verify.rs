//! Looks at the service as a customer does, while a swap waits for that.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower_service::Service;

use super::follow::{Ended, Followed, Line};
use super::urgent::{AGAIN_LIMIT, ask_at_once};
use super::{Setting, Stopped};
use crate::config::{self, Config};
use crate::github::outside::{Outside, Proxies};
use crate::model::failure::Failure;
use crate::model::refusal::Refusal;
use crate::model::secret::Secret;
use crate::model::spec::VerifySpec;
use crate::model::wire::{Asked, Command, ConfirmRequest, Frame, Request, Secrets};
use crate::remote::session::Session;

/// Bound on one look: a list of models is answered at once, through whatever stands before the service.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks: a cache or a second proxy may take its time.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// The longest answer that is read, in bytes: a list of models is far shorter.
const LONGEST_ANSWER: usize = 1024 * 1024;

/// How rustls begins what it says of a certificate that does not hold.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

/// Which certificates hold (rustls-native-certs): the step's environment decides, and else the system that it runs on.
const TRUSTED: &str = "; only authorities count that are in the file that SSL_CERT_FILE names in the step's env, or without \
                       it the public ones: name a file that has yours as well, or give the URL that customers use";

/// What a customer asks, and with which key.
#[derive(Debug, Clone)]
pub(super) struct Customer {
    spec: VerifySpec,
    api_key: Option<Secret>,
    proxies: Proxies,
}

impl Customer {
    /// The customer of a command; `None` where nothing waits for one.
    ///
    /// # Errors
    /// If the step's environment lacks the key: found out before anything is begun.
    pub(super) fn of(
        setting: &Setting,
        config: &Config,
        command: &Command,
    ) -> Result<Option<Self>, Stopped> {
        let (Some(spec), Command::Swap(_)) = (&config.spec.verify, command) else {
            return Ok(None);
        };
        let names = spec.api_key_env.iter().cloned().collect();
        let keys = config::secrets(&names, &setting.env)
            .map_err(|problems| Stopped::input(problems.to_failures()))?;
        let api_key = keys.0.into_values().next().map(Secret::new);
        let proxies = Proxies::from_env(&setting.env);
        Ok(Some(Self { spec: spec.clone(), api_key, proxies }))
    }

    /// Begins to look, until the model that should serve is met.
    pub(super) fn visit(&self, nonce: String) -> Visit {
        let (news, heard) = unbounded_channel();
        let customer = self.clone();
        let looking = tokio::task::spawn_local(async move {
            customer.until_met(&news).await;
            let _ = news.send(Seen::Model(nonce));
        });
        Visit { heard, looking, word: None }
    }

    /// Says what is met instead, each thing once. The server's patience ends, not the customer's.
    async fn until_met(&self, news: &UnboundedSender<Seen>) {
        let mut said = String::new();
        while let Err(met) = self.look().await {
            let text = format!("not as expected yet: {} {met}", self.spec.url);
            if text != said {
                said.clone_from(&text);
                // A runner that does not listen any more needs no news.
                let _ = news.send(Seen::Other(text));
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// One request on a connection of its own; what was met, unless it is the model.
    async fn look(&self) -> Result<(), String> {
        match tokio::time::timeout(LOOK_LIMIT, self.ask()).await {
            Ok(met) => met,
            Err(_) => {
                Err(format!("does not answer within {}", humantime::format_duration(LOOK_LIMIT)))
            }
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let because = |error: &dyn std::error::Error| {
            let mut text = format!("cannot be asked: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            if text.contains(BAD_CERTIFICATE) {
                text.push_str(TRUSTED);
            }
            text
        };
        let mut client = Outside::new(&self.proxies).map_err(|error| because(&error))?;
        let mut request = hyper::Request::get(&self.spec.url).header("accept", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {}", key.expose()));
        }
        let request = request.body(Empty::<hyper::body::Bytes>::new()).map_err(|_| {
            "cannot be asked: the key holds a character that no header has".to_owned()
        })?;
        let answer = client.call(request).await.map_err(|error| because(&error))?;
        let status = answer.status();
        if status != hyper::StatusCode::OK {
            return Err(format!("answers {status}"));
        }
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| format!("breaks off: {error}"))?.to_bytes();
        let models: Value =
            serde_json::from_slice(&body).map_err(|_| "does not answer in JSON".to_owned())?;
        self.find(&models)
    }

    fn find(&self, models: &Value) -> Result<(), String> {
        let entries = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> = entries
            .iter()
            .flat_map(|entry| [&entry["id"], &entry["root"]])
            .filter_map(Value::as_str)
            .collect();
        if names.contains(&self.spec.expect_model.as_str()) {
            return Ok(());
        }
        if names.is_empty() {
            return Err("does not answer with a list of models".to_owned());
        }
        Err(format!("answers as {}, not as {}", names.join(", "), self.spec.expect_model))
    }
}

/// Sends the word that the swap waits for. Whether it still did, its events tell.
pub(super) async fn confirm(
    session: &Session,
    line: &Line<'_>,
    request: &Request,
    (followed, nonce): (&mut Followed, String),
) -> Result<Vec<Failure>, Ended> {
    let mut refused = Vec::new();
    let (Some(swap), Some(asked)) = (followed.swap.clone(), request.command.asked()) else {
        return Ok(refused);
    };
    // What is secret is not needed for a word.
    let asked = Asked { secrets: Secrets::default(), ..asked.clone() };
    let command = Command::Confirm(ConfirmRequest { asked, swap, nonce });
    let word = Request { v: request.v, command };
    let until = Instant::now() + AGAIN_LIMIT;
    let answer = ask_at_once(Some(session), line, &word, until).await;
    let mut answer = answer.map_err(Ended::Remote)?;
    while let Some(frame) = answer.next().await.map_err(Ended::Remote)? {
        if let Frame::Refused(Refusal { failures, .. }) = frame {
            refused.extend(failures);
        }
    }
    answer.close().await;
    followed.visit = None;
    Ok(refused)
}

/// What was seen from outside.
#[derive(Debug)]
pub(super) enum Seen {
    /// The model; the nonce to confirm with.
    Model(String),
    /// Something else, one line that somebody else may have written.
    Other(String),
}

/// A look that is under way. It ends with this value.
pub(super) struct Visit {
    heard: UnboundedReceiver<Seen>,
    looking: JoinHandle<()>,
    /// The nonce, once the model was met: told again until the visit is dropped, since a word may be lost.
    word: Option<String>,
}

impl Visit {
    /// What is seen next; nothing ever where nobody looks.
    pub(super) async fn next(visit: &mut Option<Self>) -> Seen {
        let Some(visit) = visit else { return std::future::pending().await };
        if let Some(nonce) = &visit.word {
            return Seen::Model(nonce.clone());
        }
        let Some(seen) = visit.heard.recv().await else { return std::future::pending().await };
        if let Seen::Model(nonce) = &seen {
            visit.word = Some(nonce.clone());
        }
        seen
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.looking.abort();
    }
}
