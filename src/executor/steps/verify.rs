//! `verify`: waits for the runner's word that customers meet the candidate. Nothing to undo; without the word the swap is,
//! unless nobody served before, or what did is gone.

use super::Acted;
use super::promote::alive;
use crate::confirmation;
use crate::executor::context::Context;
use crate::executor::route::{Presence, presence};
use crate::host::Host;
use crate::model::event::EventKind;
use crate::model::failure::Failure;
use crate::model::ids::{Port, SlotName};
use crate::model::record::Record;
use crate::model::spec::VerifySpec;
use crate::swap::revision::hex;

/// Bytes of a nonce: nobody guesses it, and no two attempts share one.
const NONCE_BYTES: usize = 16;

pub(super) async fn act<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    records: &[Record],
) -> Result<Acted, Failure> {
    let Some(verify) = &cx.spec().verify else {
        return Err(Failure::new("the specification has no section verify"));
    };
    let Some(replica) = cx.candidate(records) else {
        return Err(Failure::new(format!("slot {slot} holds no replica to verify")));
    };
    let replica = alive(cx, replica).await?;
    let mut random = [0; NONCE_BYTES];
    getrandom::fill(&mut random).map_err(|error| Failure::from_error(&error))?;
    let nonce = hex(&random);
    let confirmed = async {
        tokio::select! {
            biased;
            () = cx.host.exited(replica.main) => Err(Failure::new(format!(
                "the replica in slot {slot} (process {}) ended before it was promoted",
                replica.main
            ))),
            () = confirmation::until_given(cx.dir, &cx.swap, &nonce) => Ok(true),
            () = cx.host.pause(verify.within) => unconfirmed(cx, verify).await.map(|()| false),
        }
    };
    cx.tell(EventKind::AwaitsWord { nonce: nonce.clone() });
    if !cx.unless_aborted(confirmed).await? {
        return Ok(Acted::plainly("nobody confirmed it, and there is no way back"));
    }
    let seen = format!("{} answers as {}, seen from outside", verify.url, verify.expect_model);
    cx.passed("customers", seen.as_str());
    Ok(Acted::plainly(seen))
}

/// What becomes of a swap that nobody has confirmed: it goes back, where there is somebody to go back to.
async fn unconfirmed<H: Host>(cx: &Context<'_, H>, verify: &VerifySpec) -> Result<(), Failure> {
    let nobody = format!(
        "nobody confirmed within {} that {} answers as {}",
        humantime::format_duration(verify.within),
        verify.url,
        verify.expect_model
    );
    let gone = match &cx.plan.incumbent {
        None => Some("nobody served before"),
        Some(incumbent) if cx.goes_forward() && !is_back(cx, incumbent.port).await => {
            Some("what served before is gone")
        }
        Some(_) => None,
    };
    let Some(gone) = gone else {
        return Err(Failure::new(nobody)
            .hint("the log of the step says what it met there; a step that has ended confirms nothing")
            .hint("if customers only need longer to meet the new model, raise verify.within"));
    };
    let model = &cx.plan.candidate.revision.model;
    let text = format!("{nobody}, and {gone}: {model} is kept unconfirmed");
    cx.tell(EventKind::Warning { text });
    Ok(())
}

/// Whether what served before is there after all: a person may have started it again. One that only listens is still loading:
/// it was gone when this began, so that it cannot be busy.
async fn is_back<H: Host>(cx: &Context<'_, H>, port: Port) -> bool {
    presence(cx.host, port).await == Presence::Ready
}
