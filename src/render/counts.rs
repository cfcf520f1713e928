//! What engines have counted since a swap began.

use std::collections::BTreeMap;

use super::text::duration;
use crate::model::ids::SlotName;
use crate::model::sample::{GpuMemory, Load, Sample};

/// First and latest counts of each slot's replica. One that is started meanwhile counts from zero.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    slots: BTreeMap<SlotName, Span>,
    gpus: Vec<GpuMemory>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: Load,
    latest: Load,
}

impl Counts {
    /// Takes the next sample in.
    pub(super) fn take(&mut self, sample: &Sample) {
        for replica in &sample.replicas {
            let load = replica.load;
            let span = self
                .slots
                .entry(replica.slot.clone())
                .or_insert(Span { first: load, latest: load });
            if load.completed < span.latest.completed {
                span.first = Load::default();
            }
            span.latest = load;
        }
        if !sample.gpus.is_empty() {
            self.gpus.clone_from(&sample.gpus);
        }
    }

    /// The GPUs by the latest sample that has any.
    pub(super) fn gpus(&self) -> &[GpuMemory] {
        &self.gpus
    }

    /// What a slot's replica has done since the first sample; `None` without one.
    pub(super) fn since_first(&self, slot: &SlotName) -> Option<Load> {
        let Span { first, latest } = self.slots.get(slot)?;
        Some(since(first, latest))
    }
}

/// The difference of two counts of one replica.
pub(super) fn since(before: &Load, now: &Load) -> Load {
    Load {
        in_flight: now.in_flight,
        completed: now.completed.saturating_sub(before.completed),
        cut: now.cut.saturating_sub(before.cut),
        timed: now.timed.saturating_sub(before.timed),
        took_ms: now.took_ms.saturating_sub(before.took_ms),
    }
}

/// How long a request took on average; `None` where none was timed.
pub(super) fn mean(counted: &Load) -> Option<String> {
    let ms = counted.took_ms.checked_div(counted.timed)?;
    Some(if ms < 1000 { format!("{ms}ms") } else { duration(ms) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::ReplicaLoad;

    #[test]
    fn a_replica_that_is_started_meanwhile_counts_from_zero() {
        let slot: SlotName = "a".parse().unwrap();
        let mut counts = Counts::default();
        let mut take = |completed, cut| {
            let load = Load { completed, cut, ..Load::default() };
            counts.take(&Sample {
                replicas: vec![ReplicaLoad { slot: slot.clone(), load }],
                gpus: Vec::new(),
            });
            let counted = counts.since_first(&slot).unwrap();
            (counted.completed, counted.cut)
        };
        assert_eq!(take(100, 1), (0, 0));
        assert_eq!(take(130, 3), (30, 2));
        assert_eq!(take(5, 0), (5, 0));
        assert!(Counts::default().since_first(&slot).is_none());
    }

    #[test]
    fn what_takes_less_than_a_second_is_told_in_milliseconds() {
        let counted = |timed, took_ms| mean(&Load { timed, took_ms, ..Load::default() });
        assert_eq!(counted(40, 1_000).as_deref(), Some("25ms"));
        assert_eq!(counted(2, 3_000).as_deref(), Some("1.5s"));
        assert_eq!(counted(0, 0), None);
    }
}
