//! Tells now and then what replicas and GPUs do, for whoever reads the story afterwards. Nothing depends on it.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use crate::executor::Context;
use crate::host::gpu::{self, Gpus};
use crate::host::{Host, SystemHost, engine};
use crate::model::event::EventKind;
use crate::model::sample::{GpuMemory, ReplicaLoad, Sample};
use crate::model::spec::SwapSpec;

/// Between the first two samples. A swap of seconds has a picture as well.
const SHORTEST: Duration = Duration::from_millis(250);

/// Between two samples in the end.
const LONGEST: Duration = Duration::from_secs(30);

/// By how many percent each pause is longer than the one before: a swap of an hour has about 200 samples, of 200 bytes each.
const GROWTH: u32 = 5;

/// Between two looks at the GPUs: without its persistence daemon the driver takes seconds for one.
const GPUS_EVERY: Duration = Duration::from_secs(10);

/// Samples until the swap is over.
pub(super) async fn sample(cx: &Context<'_, SystemHost>) -> Infallible {
    let spec = cx.spec();
    let mut pause = SHORTEST;
    let mut told = Sample::default();
    // Where there are none, or they cannot be asked, they are not asked again.
    let mut next_gpus = spec.slots.values().any(|slot| !slot.gpus.is_empty()).then(Instant::now);
    loop {
        let mut sample = Sample { replicas: replicas(spec).await, gpus: Vec::new() };
        if next_gpus.is_some_and(|next| next <= Instant::now()) {
            let seen = gpu::look().await.ok();
            sample.gpus = seen.as_ref().map(|gpus| memory(gpus, spec)).unwrap_or_default();
            next_gpus = seen.map(|_| Instant::now() + GPUS_EVERY);
        }
        if sample != told && sample != Sample::default() {
            cx.tell(EventKind::Sampled(sample.clone()));
            told = sample;
        }
        cx.host.pause(pause).await;
        pause = (pause * (100 + GROWTH) / 100).min(LONGEST);
    }
}

/// What does not answer is left out: nothing runs there, or it is not ready.
async fn replicas(spec: &SwapSpec) -> Vec<ReplicaLoad> {
    let mut replicas = Vec::new();
    for (name, slot) in &spec.slots {
        if let Ok(load) = engine::load(spec.replica.engine, slot.port).await {
            replicas.push(ReplicaLoad { slot: name.clone(), load });
        }
    }
    replicas
}

/// Of the slots' GPUs alone: the others are somebody else's. What a driver does not say is left out.
fn memory(gpus: &Gpus, spec: &SwapSpec) -> Vec<GpuMemory> {
    let named = spec.slots.values().flat_map(|slot| &slot.gpus);
    let mut memory: Vec<GpuMemory> = named
        .filter_map(|name| {
            let device = gpus.device(name)?;
            let (total, free) = (device.total_mib?, device.free_mib?);
            Some(GpuMemory { index: device.index, used: total.saturating_sub(free), total })
        })
        .collect();
    memory.sort_unstable_by_key(|gpu| gpu.index);
    memory.dedup();
    memory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::gpu::Device;
    use crate::swap::planner::tests::spec;

    #[test]
    fn only_the_gpus_of_the_slots_are_told_of() {
        let device = |index, free_mib| Device {
            index,
            uuid: format!("GPU-{index}"),
            name: "NVIDIA H200".to_owned(),
            total_mib: Some(1000),
            free_mib,
        };
        let devices = vec![device(1, None), device(0, Some(300)), device(7, Some(900))];
        let gpus = Gpus { devices, ..Gpus::default() };
        let used: Vec<_> = memory(&gpus, &spec()).iter().map(|gpu| (gpu.index, gpu.used)).collect();
        assert_eq!(used, [(0, 700)], "1 does not say, 7 is nobody's");
    }
}
