//! While a swap of a service is stuck, no other one begins: it would build on what a person has yet to mend, and the way
//! back that the stuck one still needs would be lost.

use crate::executor::{Unfinished, traffic_now, unfinished_swaps};
use crate::host::SystemHost;
use crate::journal::Journal;
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::record::RecordKind;
use crate::model::wire::{Asked, Fault, Refusal};
use crate::service_dir::ServiceDir;
use crate::swap::recovery::MEND_FIRST;

/// Goes on only where no swap of the service is stuck.
///
/// # Errors
/// All that are, with what is left of each and why, and where new requests go meanwhile. Nothing is changed.
pub(super) async fn refuse_while_stuck(dir: &ServiceDir, asked: &Asked) -> Result<(), Refusal> {
    let unfinished = unfinished_swaps(dir);
    let stuck: Vec<_> = unfinished.iter().filter(|unfinished| unfinished.is_stuck()).collect();
    // The newest one was the last to move traffic.
    let plan = stuck.first().and_then(|newest| Journal::plan(&dir.swap(&newest.swap)));
    let Some(plan) = plan else { return Ok(()) };
    let (traffic, _) = traffic_now(&SystemHost::new(asked), &asked.spec, &plan).await;
    let failures = stuck.into_iter().map(|Unfinished { swap, found, .. }| {
        let message = format!(
            "swap {swap} is stuck, and nothing new begins before it is repaired: {found}; {traffic}"
        );
        Failure { causes: why(dir, swap), ..Failure::new(message) }.hint(MEND_FIRST)
    });
    Err(Refusal { failures: failures.collect(), fault: Fault::Stuck })
}

/// Why its last undo failed, as it was told then.
fn why(dir: &ServiceDir, swap: &SwapId) -> Vec<String> {
    let records = Journal::read(&dir.swap(swap)).unwrap_or_default();
    let failed = records.into_iter().rev().find_map(|record| match record.kind {
        RecordKind::UndoFailed { failure, .. } => Some(failure),
        _ => None,
    });
    failed.map(|failure| [vec![failure.message], failure.causes].concat()).unwrap_or_default()
}
