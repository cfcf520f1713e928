//! The swap that has no outcome yet, and what it means for each slot: a replica that loads listens nowhere.

use super::{started, unfinished_swaps};
use crate::host::Host;
use crate::journal::Journal;
use crate::lease::Lease;
use crate::model::ids::SlotName;
use crate::model::plan::Plan;
use crate::model::replica::{Found, Replica};
use crate::model::step::Step;
use crate::service_dir::ServiceDir;
use crate::swap::recovery::{self, Recovery};
use crate::swap::transition::StepStatus;

/// A swap that somebody works on, or that is left half-way.
#[derive(Debug)]
pub struct Underway {
    plan: Plan,
    /// What it has started, and not stopped again.
    pub candidate: Option<Replica>,
}

impl Underway {
    /// The swap of whoever holds the lease, or else the newest that is not at its end; `None` where that has its outcome or has
    /// not begun.
    pub fn of(dir: &ServiceDir) -> Option<Self> {
        let swap = match Lease::holder(&dir.root()) {
            Some(holder) => holder.works_on().clone(),
            None => unfinished_swaps(dir).into_iter().next()?.swap,
        };
        let folder = dir.swap(&swap);
        let (status, plan) = (Journal::look(&folder).ok()?, Journal::plan(&folder)?);
        if matches!(recovery::decide(&status), Recovery::Finished) {
            return None;
        }
        let mut steps = plan.steps.iter().zip(&status.steps);
        let stopped = steps.any(|(planned, status)| {
            matches!(planned.step, Step::StartReplica { .. }) && *status == StepStatus::Undone
        });
        let records = Journal::read(&folder).ok()?;
        let candidate = started(&plan, &swap, &records, dir.replica_log(&swap));
        Some(Self { plan, candidate: candidate.filter(|_| !stopped) })
    }

    /// The candidate, if it is in this slot: it was found there, or it lives and listens nowhere yet.
    pub fn candidate_in<H: Host>(
        &self,
        host: &H,
        slot: &SlotName,
        found: Option<&Found>,
    ) -> Option<&Replica> {
        let its = |replica: &&Replica| match found {
            Some(found) => replica.is(found),
            None => host.alive(replica.main),
        };
        self.candidate.as_ref().filter(|replica| replica.slot == *slot).filter(its)
    }

    /// Whether a slot is that of the replica that serves until the cutover.
    pub fn is_incumbents(&self, slot: &SlotName) -> bool {
        self.plan.incumbent.as_ref().is_some_and(|side| side.slot == *slot)
    }
}
