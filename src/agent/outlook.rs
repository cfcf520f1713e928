//! What a plan will likely meet, for whoever decides about it: weights that are not there yet, room on the GPUs of the new model,
//! how long it took the last time, and a probe that proves nothing. Facts of the moment: no part of the plan, and of no digest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::event_log::EventReader;
use crate::executor::World;
use crate::host::engine::Answer;
use crate::host::gpu::{self, Gpus};
use crate::host::{Host, SystemHost};
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Strategy};
use crate::model::spec::{Gpu, SwapSpec};
use crate::model::state::Past;
use crate::model::step::Step;
use crate::service_dir::ServiceDir;
use crate::swap::weights::{self, Place};

/// Looks; what cannot be seen is left out, and `doctor` says why.
pub(super) async fn of(
    (dir, host, spec): (&ServiceDir, &SystemHost, &SwapSpec),
    plan: &Plan,
    world: &World,
) -> Vec<String> {
    let history = &world.seen.state.history;
    let mut seen = Vec::new();
    let named = &spec.slots[&plan.candidate.slot].gpus;
    let starts = plan.steps.iter().any(|planned| matches!(planned.step, Step::StartReplica { .. }));
    if starts
        && !named.is_empty()
        && let Ok(gpus) = gpu::look().await
    {
        seen.extend(named.iter().filter_map(|gpu| room(&gpus, gpu)));
    }
    seen.extend(
        looked_for(host, spec, world).filter(|_| starts).and_then(|it| download(spec, &it)),
    );
    let began = |swap: &SwapId| {
        let events = EventReader::new(&dir.swap(swap)).read().ok()?;
        Some(events.first()?.at)
    };
    seen.extend(Some(plan).filter(|_| starts).and_then(|plan| last_time(plan, history, began)));
    seen.extend(missed(host, plan).await);
    seen
}

/// That nginx's probe does not meet the model that serves, if so: with no other requests the cutover could not be proven.
async fn missed(host: &SystemHost, plan: &Plan) -> Option<String> {
    let incumbent = plan.incumbent.as_ref()?;
    let Answer::Ready(models) = host.ask(incumbent.port).await else { return None };
    let answer = host.nginx().missed(models.root()?).await.ok()??;
    let slot = &incumbent.slot;
    Some(format!(
        "nginx.probe does not meet the model in slot {slot} ({answer}): correct it, or a swap comes to nothing after the load whenever \
         nobody else asks"
    ))
}

/// Where the new replica looks for its weights, as `doctor` does: it runs as the user of what serves.
fn looked_for(host: &SystemHost, spec: &SwapSpec, world: &World) -> Option<PathBuf> {
    let user = world.inherited(host, spec).ok()?;
    match weights::looked_for(spec, &user.home, world.seen.image.as_ref()) {
        Place::Server { path, .. } => Some(path),
        Place::Volume | Place::Image(_) | Place::HomeOf(_) => None,
    }
}

/// What has to be downloaded, and when, if so. A path without `fetch` is nothing that an engine could.
fn download(spec: &SwapSpec, folder: &Path) -> Option<String> {
    let missing = missing(spec, folder).ok().flatten()?;
    match &spec.fetch {
        Some(_) => Some(format!("{missing}: fetch brings it before anything is reserved")),
        None if spec.model.starts_with('/') => Some(format!(
            "there is no {}: bring the weights there, or correct `model`",
            folder.display()
        )),
        None => Some(format!(
            "{missing}: the engine downloads it within ready.timeout ({}); {}",
            humantime::format_duration(spec.ready.timeout),
            weights::ADD_FETCH
        )),
    }
}

/// What of the weights is not where a replica looks for them, a fragment; `None` where they are, whole or not.
pub(super) fn missing(spec: &SwapSpec, folder: &Path) -> io::Result<Option<String>> {
    let there = folder.display();
    if !folder.try_exists()? {
        return Ok(Some(format!("{there} is not there yet")));
    }
    let Some(revision) = weights::cached_revision(spec) else { return Ok(None) };
    for trace in weights::traces(folder, revision) {
        if trace.try_exists()? {
            return Ok(None);
        }
    }
    Ok(Some(format!("{there} does not have revision {revision} yet")))
}

/// Free memory of a GPU, and who holds the rest; of one that is not there, which are.
fn room(gpus: &Gpus, gpu: &Gpu) -> Option<String> {
    if let Some(instead) = gpus.absence(gpu) {
        return Some(format!("GPU {gpu} is not there: {instead}"));
    }
    let device = gpus.device(gpu)?;
    let (free, total) = (device.free_mib?, device.total_mib?);
    let room = format!("GPU {} has {} of {} GiB free", device.index, gib(free), gib(total));
    let tenants: Vec<_> = gpus.tenants_of(device).map(|tenant| tenant.pid.to_string()).collect();
    Some(match &tenants[..] {
        [] => room,
        [one] => format!("{room}, and process {one} uses it"),
        several => format!("{room}, and processes {} use it", several.join(", ")),
    })
}

fn gib(mib: u64) -> String {
    format!("{}.{}", mib / 1024, mib % 1024 * 10 / 1024)
}

/// How long the latest swap took that was promoted: one to the same model, if there was any.
fn last_time(
    plan: &Plan,
    history: &[Past],
    began: impl Fn(&SwapId) -> Option<Timestamp>,
) -> Option<String> {
    let promoted = || history.iter().rev().filter(|past| past.outcome == Outcome::Promoted);
    let model = &plan.candidate.revision.model;
    let past = promoted().find(|past| &past.revision.model == model).or_else(|| promoted().next());
    let past = past.filter(|_| plan.strategy == Strategy::BlueGreen)?;
    let took: Duration = past.at.duration_since(began(&past.swap)?).try_into().ok()?;
    let took = Duration::from_secs(took.as_secs().max(1));
    Some(format!(
        "the last swap to {} took {} ({})",
        past.revision.model,
        humantime::format_duration(took),
        past.swap
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::gpu::{Device, Tenant};
    use crate::model::replica::Revision;
    use crate::swap::planner::tests::two_slot_plan;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_last_swap_to_the_same_model_counts_first() {
        let plan = two_slot_plan();
        let model = plan.candidate.revision.model.clone();
        let past = |swap: &str, model: &str, outcome| Past {
            swap: swap.parse().unwrap(),
            at: at("2026-11-23T09:08:12.7Z"),
            outcome,
            revision: Revision {
                digest: "r-1".into(),
                model: model.into(),
                git_sha: None,
                image: None,
            },
            strategy: None,
        };
        let began = |_: &SwapId| Some(at("2026-11-23T09:00:00Z"));
        let other = past("s-1", "Qwen/Other", Outcome::Promoted);
        let same = past("s-2", &model, Outcome::Promoted);
        let failed = past("s-4", &model, Outcome::Failed);
        let later = past("s-3", "Qwen/Other", Outcome::Promoted);
        let told = |history: &[Past]| last_time(&plan, history, began);
        let expected = format!("the last swap to {model} took 8m 12s (s-2)");
        assert_eq!(told(&[other.clone(), same, later, failed.clone()]).unwrap(), expected);
        let expected = "the last swap to Qwen/Other took 8m 12s (s-1)";
        assert_eq!(told(&[other, failed.clone()]).unwrap(), expected);
        assert_eq!(told(&[failed]), None);
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn weights_that_nothing_brings_are_downloaded_while_it_loads() {
        let mut spec = crate::swap::planner::tests::spec();
        "Qwen/New".clone_into(&mut spec.model);
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("models--Qwen--New");
        let said = download(&spec, &missing).unwrap();
        assert!(said.contains("models--Qwen--New is not there yet"), "{said}");
        assert!(said.contains("fetch: { command: hf download"), "{said}");
        assert_eq!(download(&spec, folder.path()), None);
        // Another revision of it is there.
        spec.model_revision = Some("5ede1c97".to_owned());
        assert_eq!(download(&spec, folder.path()), None, "the engine is not told which");
        spec.replica.command.extend(["--revision", "{revision}"].map(str::to_owned));
        let said = download(&spec, folder.path()).unwrap();
        assert!(said.contains("does not have revision 5ede1c97 yet: the engine"), "{said}");
        for kind in ["refs", "snapshots"] {
            let trace = folder.path().join(kind).join("5ede1c97");
            std::fs::create_dir_all(&trace).unwrap();
            assert_eq!(download(&spec, folder.path()), None, "{kind}");
            std::fs::remove_dir(&trace).unwrap();
        }
        spec.fetch = serde_json::from_value(serde_json::json!({
            "command": ["hf"], "timeout": { "secs": 1, "nanos": 0 }, "folder": null, "size": null
        }))
        .unwrap();
        let said = download(&spec, folder.path()).unwrap();
        assert!(said.ends_with("yet: fetch brings it before anything is reserved"), "{said}");
        spec.fetch = None;
        "/models/qwen".clone_into(&mut spec.model);
        let said = download(&spec, &missing).unwrap();
        assert!(said.starts_with("there is no ") && said.ends_with("or correct `model`"), "{said}");
    }

    #[test]
    fn a_gpu_says_its_room_and_who_has_the_rest() {
        let device = |index, free_mib| Device {
            index,
            uuid: format!("GPU-{index}"),
            name: "NVIDIA H200".to_owned(),
            total_mib: Some(143_771),
            free_mib,
        };
        let tenant = |pid| Tenant { pid, uuid: "GPU-0".to_owned(), used_mib: Some(71_234) };
        let gpus = Gpus {
            devices: vec![device(0, Some(2_048)), device(1, Some(143_259)), device(2, None)],
            tenants: vec![tenant(41), tenant(42)],
            ..Gpus::default()
        };
        let said = |index| room(&gpus, &Gpu::Index(index));
        assert_eq!(said(1).unwrap(), "GPU 1 has 139.9 of 140.4 GiB free");
        let expected = "GPU 0 has 2.0 of 140.4 GiB free, and processes 41, 42 use it";
        assert_eq!(said(0).unwrap(), expected);
        assert_eq!(said(2), None, "it does not say");
        let expected = "GPU 7 is not there: nvidia-smi lists 0 (NVIDIA H200, GPU-0), 1 (NVIDIA H200, GPU-1), 2 (NVIDIA H200, GPU-2)";
        assert_eq!(said(7).unwrap(), expected);
    }
}
