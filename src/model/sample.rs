//! What replicas and GPUs do while a swap goes on, as measured now and then.

use serde::{Deserialize, Serialize};

use super::ids::SlotName;

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The replicas that say what they do.
    pub replicas: Vec<ReplicaLoad>,
    /// The GPUs of the slots, where they could be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuMemory>,
}

/// What the replica in a slot does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaLoad {
    /// The slot.
    pub slot: SlotName,
    /// By the engine's own count.
    #[serde(flatten)]
    pub load: Load,
}

/// What an engine counts. All but `in_flight` since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Requests that run or wait.
    pub in_flight: u64,
    /// Requests that were answered to their end.
    pub completed: u64,
    /// Requests that the engine itself cut (`finish_reason: "abort"`); those that a client left are not among them.
    pub cut: u64,
    /// Requests that `took_ms` is the sum of.
    pub timed: u64,
    /// From the arrivals to the ends of all of them, in milliseconds.
    pub took_ms: u64,
}

/// A GPU's memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// In PCI bus order.
    pub index: u32,
    /// Used, by whomever.
    pub used: u64,
    /// Of so much.
    pub total: u64,
}
