//! `fetch`: brings image and weights to the server before anything is reserved. Its undo ends what still runs; what was
//! brought is kept.

use std::path::Path;

use super::{Acted, Undone, ended, start_replica};
use crate::config::command;
use crate::executor::context::Context;
use crate::host::fetch::Fetch;
use crate::host::process::Launch;
use crate::host::{Ending, Host};
use crate::model::failure::Failure;
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
        cx.unless_aborted(cx.host.pull(|text| cx.progress(text))).await?;
        done.push(format!("{image} is here"));
    }
    if let Some(spec) = &cx.spec().fetch {
        done.push(bring(cx, spec).await?);
    }
    Ok(Acted::plainly(done.join("; ")))
}

async fn bring<H: Host>(cx: &Context<'_, H>, spec: &FetchSpec) -> Result<String, Failure> {
    let inherited = start_replica::inherited(cx)?;
    let env = start_replica::environment(cx, &inherited, marker(cx));
    let home = Path::new(env.get("HOME").map_or("/", String::as_str));
    let asked = cx.spec();
    let order = Fetch {
        folder: weights::brought_to(asked, &env, home),
        size: spec.size,
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
            log: cx.dir.swap(&cx.swap).join("fetch.log"),
            keeper: Keeper::Nobody,
            container: None,
        },
    };
    let limit = spec.timeout;
    let fetched = async {
        tokio::select! {
            biased;
            fetched = cx.host.fetch(&order, |text| cx.progress(text)) => fetched,
            () = cx.host.pause(limit) => Err(Failure::new(format!(
                "the weights were not here within {}",
                humantime::format_duration(limit)
            ))
            .hint("what was brought so far is kept; if it only needs longer, raise fetch.timeout")),
        }
    };
    cx.unless_aborted(fetched).await
}

/// Ends the program, if it still runs.
pub(super) async fn undo<H: Host>(cx: &Context<'_, H>, marker: &str) -> Result<Undone, Failure> {
    Ok(Undone::Quietly(match cx.host.marked(&Keeper::Nobody, marker).await? {
        None => "nothing to undo: what was brought is kept".to_owned(),
        Some(order) => ended(&cx.host.stop(&order, Ending::Graceful).await?),
    }))
}
