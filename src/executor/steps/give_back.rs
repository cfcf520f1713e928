//! How the undo of `cut_over` gives traffic back, and proves it.

use super::cut_over::{one_generation, start_again};
use crate::executor::context::Context;
use crate::executor::route::{Presence, identity_at_once, is_astray, presence, prove_route};
use crate::host::nginx::{Expectation, Reloaded};
use crate::host::{Host, Unloaded};
use crate::model::failure::Failure;
use crate::model::ids::{Port, ProcessId, SlotName};
use crate::model::plan::Side;
use crate::model::record::UpstreamImage;

/// How often an undo waits once more for workers that a slow nginx has not started within a reload's bound: the reload before it
/// has to end first, and took longer than that bound as well.
const MORE_RELOADS: usize = 2;

/// How traffic came back.
pub(super) struct Returned {
    pub(super) proof: String,
    /// nginx workers from before the reload.
    pub(super) old_workers: Vec<ProcessId>,
}

/// Brings traffic back, and proves it. `None` if nginx never loaded the cutover.
pub(super) async fn give_back<H: Host>(
    cx: &Context<'_, H>,
    (from, to): (&SlotName, &SlotName),
    image: &UpstreamImage,
) -> Result<Option<Returned>, Failure> {
    let (old, new) = (cx.slot(from).port, cx.slot(to).port);
    let lock = cx.lock_host().await?;
    // nginx has refused to load the change and would refuse its undo as well: what it has loaded must do, and does.
    if cx.never_loaded()
        && let Ok(view) = cx.host.upstream().await
        && view.port == old
    {
        if cx.plan.incumbent.is_some() {
            prove_route(cx.host, cx.spec(), &view, new).await?;
        }
        cx.tell_traffic_is_back();
        return Ok(None);
    }
    let reloaded = match cx.host.restore(image).await {
        Ok(Some(reloaded)) => Ok(reloaded),
        Ok(None) if is_loaded(cx, (old, new)).await => {
            cx.tell_traffic_is_back();
            return Ok(None);
        }
        // The file only looks as if it were loaded: whoever puts an old one back may keep its time.
        Ok(None) => cx.host.load(&image.reversed()).await,
        Err(unloaded) => Err(unloaded),
    };
    let returned = await_return(cx, (old, new), (image, reloaded)).await?;
    drop(lock);
    cx.tell_traffic_is_back();
    Ok(returned)
}

/// Waits until nginx has loaded what was there before the cutover, and proves it. A reload that nobody has seen the end of may
/// end meanwhile, and give workers that know the candidate: nginx is then told once more. `None` if nginx refused that one.
async fn await_return<H: Host>(
    cx: &Context<'_, H>,
    (old, new): (Port, Port),
    (image, mut reloaded): (&UpstreamImage, Result<Reloaded, Unloaded>),
) -> Result<Option<Returned>, Failure> {
    let mut in_doubt = cx.is_in_doubt();
    let mut waits = MORE_RELOADS;
    loop {
        let failure = match reloaded {
            Ok(reloaded) => {
                if in_doubt {
                    // While both answer, those that go would prove what those that come do not do.
                    one_generation(cx, &reloaded.old_workers, new).await;
                }
                match prove_return(cx, (old, new), &reloaded).await {
                    Ok(proof) => {
                        let old_workers = reloaded.old_workers;
                        return Ok(Some(Returned { proof, old_workers }));
                    }
                    // Of the reload that was under way these were the workers: the next ones are of ours.
                    Err(failure) if std::mem::take(&mut in_doubt) => failure,
                    Err(failure) => return Err(failure),
                }
            }
            Err(Unloaded::Perhaps(failure)) if waits > 0 => {
                (in_doubt, waits) = (true, waits - 1);
                failure
            }
            // It would refuse every other one as well: what it has loaded must do.
            Err(Unloaded::Surely(_)) if in_doubt && is_back(cx, (old, new)).await => {
                return Ok(None);
            }
            Err(unloaded) => return Err(unloaded.into()),
        };
        cx.progress(format!("nginx is told to reload once more: {failure}"));
        reloaded = cx.host.load(&image.reversed()).await;
    }
}

/// Proves that requests go where they went before the cutover. Where nobody served then, nothing can answer a proof.
async fn prove_return<H: Host>(
    cx: &Context<'_, H>,
    (old, new): (Port, Port),
    reloaded: &Reloaded,
) -> Result<String, Failure> {
    match &cx.plan.incumbent {
        None => Ok("the upstream is as it was".to_owned()),
        Some(side) if side.keeper.is_process() && cx.host.is_silent(old) => Err(gone(cx, side)),
        Some(_) => {
            let identity = identity_at_once(cx.host, old, new).await;
            let expectation = Expectation { candidate: old, incumbent: new, identity };
            let proof = cx.host.prove(&expectation, reloaded).await?;
            Ok(proof.told("what served before", "the candidate"))
        }
    }
}

/// Whether requests are seen to go where nginx's file says, which names what served before. Where that does not answer it can
/// only be seen that they go to the candidate.
async fn is_loaded<H: Host>(cx: &Context<'_, H>, (old, new): (Port, Port)) -> bool {
    if cx.plan.incumbent.is_none() || presence(cx.host, old).await != Presence::Ready {
        return !is_astray(cx.host, new, old).await;
    }
    let Ok(view) = cx.host.upstream().await else { return false };
    prove_route(cx.host, cx.spec(), &view, new).await.is_ok()
}

/// Whether nginx's file names what served before, and requests are seen to go there.
async fn is_back<H: Host>(cx: &Context<'_, H>, (old, new): (Port, Port)) -> bool {
    let named = cx.host.upstream().await.is_ok_and(|view| view.port == old);
    named && is_loaded(cx, (old, new)).await
}

/// Why traffic cannot come back: what served was a plain process, and is no more.
fn gone<H: Host>(cx: &Context<'_, H>, side: &Side) -> Failure {
    let to = &cx.plan.candidate.slot;
    let Side { slot, port, revision, .. } = side;
    let upstream = &cx.spec().nginx.upstream;
    Failure::new(format!(
        "upstream {upstream} names port {port} of slot {slot} again, and nobody listens there: {} was a plain process, \
         which nothing starts again once it has ended or the server was restarted",
        revision.model
    ))
    .hint(format!(
        "until something listens there, clients get an error from nginx (502); what runs in slot {to} gets no new requests"
    ))
    .hint(start_again(cx, side))
}
