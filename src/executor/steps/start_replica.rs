//! `start_replica`: starts the candidate under its runtime; undo: stops it and proves that it is gone.

use std::collections::BTreeMap;

use super::drain::{self, Idle, Uncounted, Watched};
use super::{Acted, Undone, ended};
use crate::config::command;
use crate::executor::away::Away;
use crate::executor::context::Context;
use crate::executor::observe::secrets_hash;
use crate::executor::route::{Presence, is_astray, presence, prove_route};
use crate::host::process::{Contained, Identity, Inherited, Launch, Snapshot, StopOrder};
use crate::host::runtime::Started;
use crate::host::{Ending, Host};
use crate::model::event::EventKind;
use crate::model::failure::Failure;
use crate::model::ids::SlotName;
use crate::model::record::{Done, Undo};
use crate::model::replica::{ImageHere, Keeper, Revision};
use crate::model::spec::{OnTimeout, Runtime, Slot};
use crate::model::wire::MARKER;
use crate::swap::revision;

/// What ends a swap that is stuck at a candidate with requests, which may never end.
const DRAINED_AS_NOW: &str = "a repair drains by the configuration that it is run with: after `drain: { on_timeout: cut }` there it stops this replica with what it has in flight";

pub(super) async fn act<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Acted, Failure> {
    let launch = match (&cx.again, cx.spec().replica.runtime) {
        (Some(snapshot), _) => again(cx, slot, snapshot)?,
        (None, Runtime::Docker) => contained(cx, slot).await?,
        (None, _) => specified(cx, slot, inherited(cx)?),
    };
    let started = cx.host.start(&launch).await?;
    // A start is finished, whoever gives the swap up; the programs that somebody's unit runs first may take as long as loading.
    let runs = cx.host.until_runs(&started, cx.spec().ready.timeout, |text| cx.progress(text));
    let Started { main, keeper, invocation, left_out } = cx.unless_aborted(runs).await?;
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
    let revision = revision_of(cx, &launch)?;
    Ok(Acted { done: Done::Started { main, keeper, invocation, revision }, detail })
}

/// What a launch is, if the plan could not know it.
fn revision_of<H: Host>(cx: &Context<'_, H>, launch: &Launch) -> Result<Option<Revision>, Failure> {
    let Some(Contained { image, .. }) = &launch.container else { return Ok(None) };
    let planned = &cx.plan.candidate.revision;
    let secrets = secrets_hash(cx.dir, cx.asked)?;
    let sha = planned.git_sha.clone();
    let known = revision::specified(cx.spec(), &secrets, Some(image), sha);
    Ok((known.digest != planned.digest).then_some(known))
}

pub(super) fn prepare<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Undo {
    Undo::Stop { marker: cx.marker(slot), keeper: cx.plan.candidate.keeper.clone() }
}

/// What a candidate takes over.
pub(super) fn inherited<H: Host>(cx: &Context<'_, H>) -> Result<Inherited, Failure> {
    let incumbent = cx.plan.incumbent.as_ref().and_then(|side| cx.replicas.get(&side.slot));
    // A container's user, home and folder are not this machine's.
    let incumbent = incumbent.filter(|replica| !matches!(replica.keeper, Keeper::Docker(_)));
    let ended = incumbent.is_some_and(|replica| !cx.host.alive(replica.main));
    let inherited = cx.host.inherited(incumbent.map(|replica| replica.main));
    inherited.map_err(|failure| match ended {
        true => failure.hint(
            "the old model has ended, whose user and folder the new one takes over: run the swap again, it then goes on \
             without it",
        ),
        false => failure,
    })
}

/// The variables of whoever runs on this machine, and those of the specification.
pub(super) fn environment<H: Host>(
    cx: &Context<'_, H>,
    inherited: &Inherited,
    marker: String,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("HOME".to_owned(), inherited.home.display().to_string()),
        ("PATH".to_owned(), inherited.path.clone()),
    ]);
    for name in ["USER", "LOGNAME"] {
        env.extend(inherited.user.clone().map(|user| (name.to_owned(), user)));
    }
    env.extend(own_env(cx, marker));
    env
}

/// As the specification says.
fn specified<H: Host>(cx: &Context<'_, H>, slot: &SlotName, inherited: Inherited) -> Launch {
    let (spec, place) = (cx.spec(), cx.slot(slot));
    let mut env = environment(cx, &inherited, cx.marker(slot));
    env.extend(command::gpu_env(&place.gpus));
    Launch {
        argv: command::render(&spec.replica.command, spec.weights(), place.port, &place.gpus),
        env,
        cwd: inherited.cwd,
        identity: inherited.identity,
        log: cx.replica_log(),
        keeper: cx.plan.candidate.keeper.clone(),
        container: None,
    }
}

/// What the specification itself says of the environment, and the marker.
fn own_env<H: Host>(cx: &Context<'_, H>, marker: String) -> BTreeMap<String, String> {
    let replica = &cx.spec().replica;
    let mut env = replica.env.clone();
    let secret =
        |name: &String| cx.asked.secrets.0.get(name).map(|value| (name.clone(), value.clone()));
    env.extend(replica.secret_env.iter().filter_map(secret));
    env.insert(MARKER.to_owned(), marker);
    env
}

/// As the specification says, in a container: user, home, folder and `PATH` are the image's.
async fn contained<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Launch, Failure> {
    let (spec, replica) = (cx.spec(), &cx.spec().replica);
    let Some(ImageHere { image, .. }) = cx.host.image().await? else {
        let name = replica.image_reference().unwrap_or_default();
        return Err(Failure::new(format!("the image {name} is not here"))
            .hint(format!("somebody has removed it since the plan was made; docker pull {name}")));
    };
    let mut options = Vec::new();
    if replica.user.is_some() {
        // By number: whom this server knows by a name, the image may not.
        let Identity { uid, gid, .. } = cx.host.inherited(None)?.identity;
        options.push(format!("--user={uid}:{gid}"));
    }
    options.extend(replica.docker_options.iter().cloned());
    let Slot { port, gpus } = cx.slot(slot).clone();
    Ok(Launch {
        argv: command::render(&replica.command, spec.weights(), port, &gpus),
        env: own_env(cx, cx.marker(slot)),
        cwd: "/".into(),
        identity: Identity::own(),
        log: cx.replica_log(),
        keeper: cx.plan.candidate.keeper.clone(),
        container: Some(Contained {
            image,
            port: Some(port).filter(|_| !replica.shares_network()),
            gpus,
            options,
        }),
    })
}

/// As somebody once started it by hand.
fn again<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    snapshot: &Snapshot,
) -> Result<Launch, Failure> {
    let mut env = snapshot.env.clone();
    let keeper = cx.plan.candidate.keeper.clone();
    // An engine may have written its title over the environment that it was started with.
    let is_whole = ["HOME", "PATH"].iter().all(|name| env.contains_key(*name));
    // What Docker starts again it starts as it was made.
    if !is_whole && !matches!(keeper, Keeper::Docker(_)) {
        let inherited = inherited(cx)?;
        env.entry("HOME".to_owned()).or_insert_with(|| inherited.home.display().to_string());
        env.entry("PATH".to_owned()).or_insert(inherited.path);
    }
    env.insert(MARKER.to_owned(), cx.marker(slot));
    Ok(Launch {
        argv: snapshot.argv.clone(),
        env,
        cwd: snapshot.cwd.clone(),
        identity: snapshot.identity.clone(),
        log: cx.replica_log(),
        keeper,
        container: None,
    })
}

pub(super) async fn undo<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    (keeper, marker): (&Keeper, &str),
) -> Result<Undone, Failure> {
    let mut away = Away::new(cx, keeper);
    loop {
        let failure = match left(cx, slot, (keeper, marker)).await {
            Ok(None) => return Ok(Undone::Quietly("no process of it is left".to_owned())),
            Ok(Some((order, listens))) => {
                let how = if listens { drained(cx, slot, &order).await? } else { Ending::Graceful };
                match cx.host.stop(&order, how).await {
                    Ok(stopped) => return Ok(Undone::Quietly(ended(&stopped))),
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        away.tries_again(failure).await?;
    }
}

/// What is left of a candidate, and whether it listens: what does not do so yet had no traffic, and while it loads it cannot
/// say so.
async fn left<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    (keeper, marker): (&Keeper, &str),
) -> Result<Option<(StopOrder, bool)>, Failure> {
    let Some(order) = cx.host.marked(keeper, marker).await? else { return Ok(None) };
    // A child that wrote a title over its environment carries no marker any more.
    let tree = [order.tree.as_slice(), &cx.host.tree(order.main)?].concat();
    let listeners = cx.host.listeners(cx.slot(slot).port).await?;
    let listens = listeners.iter().any(|process| tree.contains(process));
    Ok(Some((order, listens)))
}

/// How a candidate that listens is stopped, once it has nothing in flight or may be cut: it may have had traffic for a moment,
/// if cut_over came so far.
async fn drained<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    order: &StopOrder,
) -> Result<Ending, Failure> {
    let port = cx.slot(slot).port;
    refuse_what_serves(cx, slot).await?;
    let since = cx.drains_since();
    let limit = since + cx.spec().drain.timeout;
    // Its engine may be started without its count, or it is no engine: what it never got need not be counted.
    let uncounted = if cx.never_begun() { Uncounted::None } else { Uncounted::Some };
    let old_workers = &cx.retiring_since_cutover().await;
    let watched = Watched { port, main: order.main, old_workers, since, uncounted };
    match drain::until_idle(cx, &watched, limit).await {
        Idle::Yes => Ok(Ending::Graceful),
        Idle::No(_) if cx.spec().drain.on_timeout == OnTimeout::Cut => Ok(Ending::Cut),
        // Whoever asks it goes past nginx, as a monitor does, and may never stop.
        Idle::No(left) if cx.never_begun() => {
            let text = format!(
                "the replica in slot {slot} is stopped with what somebody asks of it past nginx, which never sent it a request: {}",
                left.describe()
            );
            cx.tell(EventKind::Warning { text });
            Ok(Ending::Graceful)
        }
        // Traffic is back. What keeps them is some other service's websocket, or a request whose body has taken all that time.
        Idle::No(left) if left.is_elsewhere() => {
            let text = format!(
                "the replica in slot {slot} is stopped, which has nothing in flight, though it may be asked yet by {}",
                left.describe()
            );
            cx.tell(EventKind::Warning { text });
            Ok(Ending::Graceful)
        }
        Idle::No(left) => Err(left.failure(slot).hint(DRAINED_AS_NOW)),
    }
}

/// A person may have pointed nginx at it by hand, in the file or in what is loaded. An nginx that cannot be seen keeps nobody
/// from being stopped who has nothing in flight.
async fn refuse_what_serves<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<(), Failure> {
    let port = cx.slot(slot).port;
    let Ok(upstream) = cx.host.upstream().await else { return Ok(()) };
    if upstream.port == port {
        return Err(Failure::new(format!(
            "nginx points at port {port} of slot {slot}: what serves is not stopped"
        ))
        .hint("somebody changed the upstream by hand: change it back, and reload nginx"));
    }
    // Whoever does not answer proves nothing, and a third one was not asked when the swap began.
    let is_before = cx.plan.incumbent.as_ref().is_some_and(|side| side.port == upstream.port);
    if is_before && presence(cx.host, upstream.port).await == Presence::Ready {
        return prove_route(cx.host, cx.spec(), &upstream, port).await;
    }
    if !cx.never_loaded() && is_astray(cx.host, port, upstream.port).await {
        return Err(Failure::new(format!(
            "{} names port {}, and requests go to port {port} of slot {slot}: what serves is not stopped",
            cx.spec().nginx.config.display(),
            upstream.port
        ))
        .hint("make the port that nginx's file names answer, and reload nginx"));
    }
    Ok(())
}
