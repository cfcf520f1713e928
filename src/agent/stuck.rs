//! While a swap of a service is stuck, or nobody can tell whether it is, no other one begins: it would build on what a person
//! has yet to mend, and the way back that the stuck one still needs would be lost.

use crate::executor::{Unfinished, traffic_now, unfinished_swaps};
use crate::host::SystemHost;
use crate::journal::Journal;
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::record::RecordKind;
use crate::model::refusal::{Fault, Refusal};
use crate::model::wire::Asked;
use crate::service_dir::ServiceDir;
use crate::swap::recovery::MEND_FIRST;

/// Goes on only where no swap of the service waits for a person.
///
/// # Errors
/// All that do, with what is left of each and why, and where new requests go meanwhile. Nothing is changed.
pub(super) async fn refuse_while_stuck(dir: &ServiceDir, asked: &Asked) -> Result<(), Refusal> {
    let unfinished = unfinished_swaps(dir);
    let stuck: Vec<_> = unfinished.iter().filter(|one| one.needs_a_person()).collect();
    if stuck.is_empty() {
        return Ok(());
    }
    // The newest one whose plan is known was the last to move traffic.
    let traffic = match stuck.iter().find_map(|one| Journal::plan(&dir.swap(&one.swap))) {
        Some(plan) => {
            format!("; {}", traffic_now(&SystemHost::new(asked), &asked.spec, &plan).await.0)
        }
        None => String::new(),
    };
    let failures = stuck.into_iter().map(|Unfinished { swap, recovery, found }| match recovery {
        Ok(_) => {
            let message = format!(
                "swap {swap} is stuck, and nothing new begins before it is repaired: {found}{traffic}"
            );
            let (causes, hints) = why(dir, swap);
            Failure { causes, hints, ..Failure::new(message) }.hint(MEND_FIRST)
        }
        Err(failure) => {
            let message = format!(
                "swap {swap} may not be at its end, and nothing new begins before that is known: {}{traffic}",
                failure.message
            );
            Failure { message, ..failure.clone() }
        }
    });
    Err(Refusal::of(failures.collect::<Vec<_>>(), Fault::Stuck))
}

/// Why its last undo failed and what mends that, as it was told then.
fn why(dir: &ServiceDir, swap: &SwapId) -> (Vec<String>, Vec<String>) {
    let records = Journal::read(&dir.swap(swap)).unwrap_or_default();
    let failed = records.into_iter().rev().find_map(|record| match record.kind {
        RecordKind::UndoFailed { failure, .. } => Some(failure),
        _ => None,
    });
    let told = failed.map(|why| ([vec![why.message], why.causes].concat(), why.hints));
    told.unwrap_or_default()
}
