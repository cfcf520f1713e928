//! `start_replica`: starts the candidate under its runtime; undo: stops it and proves that it is gone.

use std::collections::BTreeMap;

use super::drain::{self, Idle, Watched};
use super::{Acted, Undone, ended};
use crate::config::command;
use crate::executor::context::Context;
use crate::host::process::{Inherited, Launch, Snapshot};
use crate::host::runtime::Started;
use crate::host::{Ending, Host};
use crate::model::event::EventKind;
use crate::model::failure::Failure;
use crate::model::ids::SlotName;
use crate::model::record::{Done, Undo};
use crate::model::replica::Keeper;
use crate::model::spec::OnTimeout;
use crate::model::wire::MARKER;

pub(super) async fn act<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Acted, Failure> {
    let incumbent = cx.plan.incumbent.as_ref().and_then(|side| cx.replicas.get(&side.slot));
    let ended = incumbent.is_some_and(|replica| !cx.host.alive(replica.main));
    let inherited = cx.host.inherited(incumbent.map(|replica| replica.main));
    let inherited = inherited.map_err(|failure| match ended {
        true => failure.hint(
            "the old model has ended, whose user and folder the new one takes over: run the swap again, it then goes on \
             without it",
        ),
        false => failure,
    })?;
    let launch = match &cx.again {
        Some(snapshot) => again(cx, slot, (snapshot, &inherited)),
        None => specified(cx, slot, inherited),
    };
    let Started { main, keeper, invocation, left_out } = cx.host.start(&launch).await?;
    if !left_out.is_empty() {
        let text = format!(
            "{keeper} passes on no variable with a control character in its value, so the replica does without {}",
            left_out.join(", ")
        );
        cx.tell(EventKind::Warning { text });
    }
    let detail = if keeper.is_process() {
        format!("process {main}, output in {}", launch.log.display())
    } else {
        format!("process {main}, kept by {keeper}")
    };
    Ok(Acted { done: Done::Started { main, keeper, invocation }, detail })
}

pub(super) fn prepare<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Undo {
    Undo::Stop { marker: cx.marker(slot), keeper: cx.plan.candidate.keeper.clone() }
}

/// As the specification says.
fn specified<H: Host>(cx: &Context<'_, H>, slot: &SlotName, inherited: Inherited) -> Launch {
    let (spec, place) = (cx.spec(), cx.slot(slot));
    let mut env = BTreeMap::from([
        ("HOME".to_owned(), inherited.home.display().to_string()),
        ("PATH".to_owned(), inherited.path.clone()),
    ]);
    for name in ["USER", "LOGNAME"] {
        env.extend(inherited.user.clone().map(|user| (name.to_owned(), user)));
    }
    env.extend(command::gpu_env(&place.gpus));
    env.extend(spec.replica.env.clone());
    let secret =
        |name: &String| cx.asked.secrets.0.get(name).map(|value| (name.clone(), value.clone()));
    env.extend(spec.replica.secret_env.iter().filter_map(secret));
    env.insert(MARKER.to_owned(), cx.marker(slot));
    Launch {
        argv: command::render(&spec.replica.command, &spec.model, place.port, &place.gpus),
        env,
        cwd: inherited.cwd,
        identity: inherited.identity,
        log: cx.replica_log(),
        keeper: cx.plan.candidate.keeper.clone(),
    }
}

/// As somebody once started it by hand.
fn again<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    (snapshot, inherited): (&Snapshot, &Inherited),
) -> Launch {
    let mut env = snapshot.env.clone();
    // An engine may have written its title over the environment that it was started with.
    env.entry("HOME".to_owned()).or_insert_with(|| inherited.home.display().to_string());
    env.entry("PATH".to_owned()).or_insert_with(|| inherited.path.clone());
    env.insert(MARKER.to_owned(), cx.marker(slot));
    Launch {
        argv: snapshot.argv.clone(),
        env,
        cwd: snapshot.cwd.clone(),
        identity: snapshot.identity.clone(),
        log: cx.replica_log(),
        keeper: cx.plan.candidate.keeper.clone(),
    }
}

pub(super) async fn undo<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    (keeper, marker): (&Keeper, &str),
) -> Result<Undone, Failure> {
    let Some(order) = cx.host.marked(keeper, marker).await? else {
        return Ok(Undone::Quietly("no process of it is left".to_owned()));
    };
    let port = cx.slot(slot).port;
    // It may have had traffic for a moment, if cut_over came so far. Whatever does not listen yet had none, and while
    // it loads it cannot say so.
    // A child that wrote a title over its environment carries no marker any more.
    let tree = [order.tree.as_slice(), &cx.host.tree(order.main)?].concat();
    let listens = cx.host.listeners(port)?.iter().any(|process| tree.contains(process));
    let limit = cx.host.now() + cx.spec().drain.timeout;
    let watched = Watched { port, main: order.main, old_workers: &[], since: cx.host.now() };
    let idle = if listens { drain::until_idle(cx, &watched, limit).await } else { Idle::Yes };
    let how = match idle {
        Idle::Yes => Ending::Graceful,
        Idle::No(_) if cx.spec().drain.on_timeout == OnTimeout::Cut => Ending::Cut,
        Idle::No(left) => return Err(left.failure(slot)),
    };
    Ok(Undone::Quietly(ended(&cx.host.stop(&order, how).await?)))
}
