//! `fetch`: brings image and weights to the server before anything is reserved. Its undo ends what still runs; what was
//! brought is kept.

use std::path::Path;
use std::time::Duration;

use super::{Acted, Undone, ended, start_replica};
use crate::config::command;
use crate::executor::context::Context;
use crate::host::fetch::{Fetch, Room};
use crate::host::process::Launch;
use crate::host::{Ending, Host};
use crate::model::failure::Failure;
use crate::model::plan::Strategy;
use crate::model::record::Undo;
use crate::model::replica::Keeper;
use crate::model::spec::FetchSpec;
use crate::swap::weights;

/// In the place of a slot's name in the marker of the program that fetches.
const PLACE: &str = "fetch";

pub(super) fn prepare<H: Host>(cx: &Context<'_, H>) -> Undo {
    Undo::Stop { marker: marker(cx), keeper: Keeper::Nobody }
}

fn marker<H: Host>(cx: &Context<'_, H>) -> String {
    format!("{}/{}/{PLACE}", cx.spec().service, cx.swap)
}

pub(super) async fn act<H: Host>(cx: &Context<'_, H>) -> Result<Acted, Failure> {
    let mut done = Vec::new();
    if let Some(image) = cx.spec().replica.image_reference()
        && cx.host.image().await?.is_none()
    {
        let hint = format!(
            "what was pulled so far is kept: run the swap again, or first `docker pull {image}` on the server"
        );
        let pulled = cx.host.pull(|text| cx.progress(text));
        let what = format!("the image {image} was");
        within(cx, cx.spec().pull_limit(), (&what, &hint), pulled).await?;
        done.push(format!("{image} is here"));
    }
    if let Some(spec) = &cx.spec().fetch {
        done.push(bring(cx, spec).await?);
    }
    Ok(Acted::plainly(done.join("; ")))
}

async fn bring<H: Host>(cx: &Context<'_, H>, spec: &FetchSpec) -> Result<String, Failure> {
    let (asked, image) = (cx.spec(), cx.host.image().await?);
    let here = image.as_ref();
    let inherited = start_replica::inherited(cx)?;
    let mut env = start_replica::environment(cx, &inherited, marker(cx));
    env.extend(weights::cache_of_a_container(asked, here));
    let order = Fetch {
        folder: weights::brought_to(asked, (&env, Path::new("/")), here),
        size: spec.size,
        room: match cx.plan.strategy {
            Strategy::ColdRollback => Room::UnlessMostIsHere,
            Strategy::BlueGreen | Strategy::WarmRollback => Room::ForTheRest,
        },
        secrets: asked.replica.secret_env.clone(),
        launch: Launch {
            argv: command::render_fetch(
                &spec.command,
                &asked.model,
                asked.model_revision.as_deref(),
            ),
            env,
            cwd: inherited.cwd,
            identity: inherited.identity,
            log: cx.dir.fetch_log(&cx.swap),
            keeper: Keeper::Nobody,
            container: None,
        },
    };
    let hint = "what was brought so far is kept; if it only needs longer, raise fetch.timeout";
    let fetched = cx.host.fetch(&order, |text| cx.progress(text));
    within(cx, spec.timeout, ("the weights were", hint), fetched).await
}

/// What is brought in time, unless the swap is aborted meanwhile.
async fn within<H: Host, T>(
    cx: &Context<'_, H>,
    limit: Duration,
    (what, hint): (&str, &str),
    bringing: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let brought = async {
        tokio::select! {
            biased;
            brought = bringing => brought,
            () = cx.host.pause(limit) => Err(Failure::new(format!(
                "{what} not here within {}",
                humantime::format_duration(limit)
            ))
            .hint(hint)),
        }
    };
    cx.unless_aborted(brought).await
}

/// Ends the program, if it still runs.
pub(super) async fn undo<H: Host>(cx: &Context<'_, H>, marker: &str) -> Result<Undone, Failure> {
    Ok(Undone::Quietly(match cx.host.marked(&Keeper::Nobody, marker).await? {
        None => "nothing to undo: what was brought is kept".to_owned(),
        Some(order) => ended(&cx.host.stop(&order, Ending::Graceful).await?),
    }))
}
