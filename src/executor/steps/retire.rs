//! `retire`: stops a replica for good and proves it. Point of no return, so there is no undo.

use super::drain::{self, Idle, Watched};
use super::{Acted, ended};
use crate::executor::context::Context;
use crate::executor::route::prove_route;
use crate::host::process::StopOrder;
use crate::host::{Ending, Host};
use crate::model::failure::Failure;
use crate::model::ids::{Port, SlotName};
use crate::model::replica::Keeper;
use crate::model::spec::OnTimeout;

pub(super) async fn act<H: Host>(cx: &Context<'_, H>, slot: &SlotName) -> Result<Acted, Failure> {
    let Some(retained) = cx.unless_aborted(cx.retained(slot)).await? else {
        return Ok(Acted::plainly("nothing is there any more"));
    };
    let replica = &retained.replica;
    cx.unless_aborted(refuse_what_serves(cx, slot, replica.port)).await?;
    let found = cx.host.find(replica.port).await?.filter(|found| replica.is(found));
    // A client that goes past nginx may have come since the drain: nobody is signalled with requests in flight.
    let cut = cx.spec().drain.on_timeout == OnTimeout::Cut;
    // After promote it was waited for without the lease; one look must do while others wait for it.
    let at_once = cut || cx.after_promote();
    let limit = if at_once { cx.host.now() } else { cx.host.now() + cx.spec().drain.timeout };
    let watched = Watched::of(&retained);
    let idle = async { Ok(drain::until_idle(cx, &watched, limit).await) };
    let how = match cx.unless_aborted(idle).await? {
        Idle::Yes => Ending::Graceful,
        Idle::No(_) if cut => Ending::Cut,
        Idle::No(left) => return Err(left.failure(slot)),
    };
    let (main, tree, keeper, argv) = match found {
        Some(found) => (found.main, found.tree, found.keeper, found.argv),
        None => (replica.main, cx.host.tree(replica.main)?, Keeper::Nobody, Vec::new()),
    };
    let marker = replica.swap.as_ref().map(|swap| cx.marker_of(swap, slot));
    // Its own: what is stopped is seldom what the specification describes by now.
    let grace = cx.host.stop_grace(&argv);
    let order = StopOrder { main, tree, marker, grace, keeper: replica.keeper.clone() };
    let detail = ended(&cx.host.stop(&order, how).await?);
    cx.dir.release(slot)?;
    let mut state = cx.dir.load()?;
    if state.retained.as_ref().is_some_and(|other| other.replica.main == replica.main) {
        state.retained = None;
        cx.dir.save(&state)?;
    }
    if let Keeper::Wrapper { process, command } = &keeper
        && let Some(again) = cx.host.restarted(*process, &argv).await
    {
        return Err(Failure::new(format!(
            "process {process} ({command}) started the retired model again as process {again}"
        ))
        .hint(format!("stop that wrapper: kill {process}; then kill {again}")));
    }
    Ok(Acted::plainly(detail))
}

/// A person may have pointed nginx back at it by hand, in the file or in what is loaded.
async fn refuse_what_serves<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    port: Port,
) -> Result<(), Failure> {
    let upstream = cx.host.upstream_at_rest().await?;
    if upstream.port == port {
        return Err(drain::used_again(slot, port));
    }
    // Before cutover the swap has proven it when it began.
    if cx.after_promote() { prove_route(cx.host, cx.spec(), &upstream, port).await } else { Ok(()) }
}
