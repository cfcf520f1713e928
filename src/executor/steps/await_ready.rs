//! `await_ready`: alive, healthy, the right model, and alone on its port. Nothing to undo.

use std::time::Duration;

use jiff::Timestamp;

use super::Acted;
use crate::executor::context::Context;
use crate::host::Host;
use crate::host::engine::{Answer, Models};
use crate::model::failure::Failure;
use crate::model::ids::SlotName;
use crate::model::record::{Done, Record};
use crate::model::replica::Replica;
use crate::swap::revision::UNKNOWN_MODEL;
use crate::swap::weights;

/// The shortest pause between two looks: an engine that is up at once is seen at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause between two looks: loading takes minutes, and a look is cheap.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A pause is this part of the time so far, so that looking adds no more than a twentieth to any loading time.
const PART_OF_WAIT: u32 = 20;

/// How many of the last lines of its log a failure shows: a Python traceback with what came before it.
const LOG_LINES: usize = 40;

pub(super) async fn act<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    records: &[Record],
) -> Result<Acted, Failure> {
    let Some(replica) = cx.candidate(records) else {
        return Err(Failure::new(format!("slot {slot} holds no replica to wait for")));
    };
    let limit = cx.spec().ready.timeout;
    let ready = async {
        tokio::select! {
            biased;
            () = cx.host.exited(replica.main) => Err(died(cx, &replica).await),
            ready = until_ready(cx, &replica) => ready,
            () = cx.host.pause(limit) => Err(late(cx, &replica).await),
        }
    };
    cx.unless_aborted(ready).await
}

async fn until_ready<H: Host>(cx: &Context<'_, H>, replica: &Replica) -> Result<Acted, Failure> {
    let began = cx.host.now();
    let mut shown = String::new();
    loop {
        let news = match cx.host.ask(replica.port).await {
            Answer::Ready(models) => {
                let own = alone(cx, replica).await?;
                cx.passed("health", health(cx, began));
                cx.passed("port", own);
                serves_what_it_should(cx, replica, &models)?;
                if replica.swap.as_ref() == Some(&cx.swap) {
                    // What cannot be counted now could never be drained.
                    let counted = cx.host.in_flight(replica.port).await?;
                    cx.passed("model", models.to_string());
                    cx.passed("requests", format!("{counted} in flight, by its own count"));
                }
                let done = Done::Nothing;
                return Ok(Acted {
                    done,
                    detail: format!("port {} answers as {models}", replica.port),
                });
            }
            // Nobody listens while vLLM loads (0.33 launcher.py): refused and alive means loading.
            Answer::Refused => cx.host.loading(replica).await.unwrap_or_default(),
            Answer::Unwell(detail) => detail,
            // Healthy, and checked by the swap that started it.
            Answer::Locked if replica.swap.as_ref() != Some(&cx.swap) => {
                let own = alone(cx, replica).await?;
                cx.passed("health", health(cx, began));
                cx.passed("port", own);
                return Ok(Acted::plainly(format!(
                    "port {} is healthy and wants a key",
                    replica.port
                )));
            }
            Answer::Locked => {
                return Err(Failure::new(format!("port {} wants an API key, or another one", replica.port)).hint(
                    "name the variable that holds it as nginx.probe.api_key_env, or put VLLM_API_KEY into replica.secret_env",
                ));
            }
        };
        if !news.is_empty() && news != shown {
            cx.progress(&news);
            shown = news;
        }
        let waited: Duration = cx.host.now().duration_since(began).try_into().unwrap_or_default();
        cx.host.pause((waited / PART_OF_WAIT).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
    }
}

/// How long it took to be healthy, and how long it might have.
fn health<H: Host>(cx: &Context<'_, H>, began: Timestamp) -> String {
    let waited: Duration = cx.host.now().duration_since(began).try_into().unwrap_or_default();
    let limit = humantime::format_duration(cx.spec().ready.timeout);
    format!("answers 200 after {:.1}s, of at most {limit}", waited.as_secs_f64())
}

/// Whether it is the model that was to be started. An older replica was checked when it was started, against the
/// specification of its own swap.
pub(super) fn serves_what_it_should<H: Host>(
    cx: &Context<'_, H>,
    replica: &Replica,
    models: &Models,
) -> Result<(), Failure> {
    match replica.swap.as_ref() == Some(&cx.swap) {
        true if replica.revision.is_adopted() => is_as_adopted(replica, models),
        true => cx.host.check(&replica.slot, models),
        false => Ok(()),
    }
}

/// No specification says what an adopted revision should serve; what it said when it was adopted does.
fn is_as_adopted(replica: &Replica, models: &Models) -> Result<(), Failure> {
    let known = replica.revision.model != UNKNOWN_MODEL;
    if known && models.root() != Some(replica.revision.model.as_str()) {
        return Err(Failure::new(format!(
            "the replica in slot {} serves {models}, and was to be {}",
            replica.slot, replica.revision
        )));
    }
    Ok(())
}

/// Every LISTEN socket on the port must be the replica's own: with `SO_REUSEPORT` two servers silently share one.
async fn alone<H: Host>(cx: &Context<'_, H>, replica: &Replica) -> Result<String, Failure> {
    let tree = cx.host.tree(replica.main)?;
    let (own, strangers): (Vec<_>, Vec<_>) = cx
        .host
        .listeners(replica.port)
        .await?
        .into_iter()
        .partition(|listener| tree.contains(listener));
    if strangers.is_empty() {
        let own: Vec<_> = own.iter().map(ToString::to_string).collect();
        return Ok(format!("{}: its own process {} alone listens", replica.port, own.join(", ")));
    }
    let pids: Vec<_> = strangers.iter().map(ToString::to_string).collect();
    Err(Failure::new(format!(
        "port {} of slot {} is shared: process {} listens there too, and would answer some of the requests",
        replica.port,
        replica.slot,
        pids.join(", ")
    ))
    .hint("stop that process, or give the slot another port"))
}

async fn died<H: Host>(cx: &Context<'_, H>, replica: &Replica) -> Failure {
    let log = cx.host.log_tail(replica, LOG_LINES).await;
    Failure::new(format!(
        "the replica in slot {} (process {}) ended before it was ready",
        replica.slot, replica.main
    ))
    .hint("the last lines of its log say why; `model-swap logs` shows more of it")
    .log(log)
}

async fn late<H: Host>(cx: &Context<'_, H>, replica: &Replica) -> Failure {
    let log = cx.host.log_tail(replica, LOG_LINES).await;
    let failure = Failure::new(format!(
        "the replica in slot {} was not ready within {}",
        replica.slot,
        humantime::format_duration(cx.spec().ready.timeout)
    ))
    .hint("if it only needs longer, raise ready.timeout")
    .log(log);
    match cx.spec().fetch.is_none() && !cx.spec().model.starts_with('/') {
        true => failure.hint(format!("if it was downloading: {}", weights::ADD_FETCH)),
        false => failure,
    }
}
