//! The two slots: where the model is now, and where the next one finds room.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::words::{inert, scalar};
use crate::model::ids::Port;
use crate::model::replica::Keeper;
use crate::model::spec::Gpu;
use crate::model::survey::{Listener, SeenGpu, Survey};

/// Where vLLM listens unless told otherwise, for a server on which nothing was seen.
const USUAL: Port = Port(8001);

pub(super) fn write(
    text: &mut String,
    survey: &Survey,
    port: Option<Port>,
    listener: Option<&Listener>,
) {
    text.push_str("\n# Two places for a model: during a swap both run, side by side, each on GPUs of its own.\n");
    for gpu in &survey.gpus {
        let _ = writeln!(text, "# GPU {}", described(gpu, survey));
    }
    if let Some(why) = &survey.no_gpus {
        let _ = writeln!(text, "# No GPU was seen: {}", inert(why));
    }
    let first = port.unwrap_or_else(|| free(survey, USUAL));
    let second = free(survey, Port(first.0.saturating_add(1)));
    let (a, b) = gpus(survey, listener);
    text.push_str("slots:\n");
    let note = match (listener, port) {
        (Some(it), _) => {
            let kept = match &it.keeper {
                Keeper::Nobody => String::new(),
                keeper => format!(", kept by {keeper}"),
            };
            format!("process {} of {}{kept}, {}", it.process, it.user, it.answer)
        }
        (None, Some(_)) => "nginx points there, and nobody listens".to_owned(),
        (None, None) => "nobody listens there".to_owned(),
    };
    slot(text, "a", (first, &a), &note);
    slot(text, "b", (second, &b), "free: for the next model");
}

/// A slot's GPUs, or why they are not known.
type Gpus = Result<Vec<Gpu>, String>;

fn slot(text: &mut String, name: &str, (port, gpus): (Port, &Gpus), note: &str) {
    let note = inert(note);
    match gpus {
        Ok(gpus) => {
            let gpus: Vec<_> = gpus.iter().map(scalar_of).collect();
            let setting = format!("  {name}: {{ port: {port}, gpus: [{}] }}", gpus.join(", "));
            let _ = writeln!(text, "{setting:<39} # {note}");
        }
        Err(why) => {
            let _ = writeln!(text, "  {name}:\n    port: {port:<27} # {note}");
            for line in why.lines() {
                let _ = writeln!(text, "    # {line}");
            }
        }
    }
}

fn scalar_of(gpu: &Gpu) -> String {
    match gpu {
        Gpu::Index(index) => index.to_string(),
        Gpu::Uuid(uuid) => scalar(uuid),
    }
}

fn indices(gpus: &[u32]) -> Vec<Gpu> {
    gpus.iter().copied().map(Gpu::Index).collect()
}

/// The GPUs of the model that serves, and as many for the next one.
fn gpus(survey: &Survey, listener: Option<&Listener>) -> (Gpus, Gpus) {
    let all: Vec<u32> = survey.gpus.iter().map(|gpu| gpu.index).collect();
    let example = "? gpus: [1]";
    if let Some(it) = listener.filter(|it| !it.no_gpus.is_empty()) {
        let why = format!(
            "That model was started with {} in CUDA_VISIBLE_DEVICES, which is no GPU that nvidia-smi lists, or not one alone.\n\
             ? gpus: [0]",
            inert(&it.no_gpus.join(", "))
        );
        return (Err(why), Err(example.to_owned()));
    }
    if let Some(it) = listener.filter(|it| !it.uncounted.is_empty()) {
        return (Err(uncounted(it)), Err(example.to_owned()));
    }
    if let Some(it) = listener.filter(|it| !it.instances.is_empty()) {
        return divided(survey, it);
    }
    if all.is_empty() {
        return (Ok(Vec::new()), Ok(Vec::new()));
    }
    if let [only] = all[..] {
        let why = format!(
            "There is one GPU. A swap is blue-green, the one strategy of this version: the next model loads beside the\n\
             old one, on a GPU of its own. With a second GPU:\n{example}"
        );
        return (Ok(indices(&[only])), Err(why));
    }
    let used = listener.map(|it| it.gpus.clone()).unwrap_or_default();
    let unused =
        survey.gpus.iter().filter(|gpu| gpu.users.is_empty() && !used.contains(&gpu.index));
    let unused: Vec<u32> = unused.map(|gpu| gpu.index).collect();
    if used.is_empty() {
        // Nobody is there, or it is not seen where: an even share each.
        if listener.is_some() {
            let why = format!("Which GPUs that model uses could not be seen.\n{}", "? gpus: [0]");
            return (Err(why), Err(example.to_owned()));
        }
        let half = unused.len() / 2;
        if half > 0 {
            return (Ok(indices(&unused[..half])), Ok(indices(&unused[half..2 * half])));
        }
        let why = format!("Fewer than two GPUs are unused.\n{}", "? gpus: [0]");
        return (Err(why), Err(example.to_owned()));
    }
    if unused.len() >= used.len() {
        return (Ok(indices(&used)), Ok(indices(&unused[..used.len()])));
    }
    let why = format!(
        "The model in slot a has {} GPUs, and {} are unused: the next one needs as many, of its own.\n{example}",
        used.len(),
        unused.len()
    );
    (Ok(indices(&used)), Err(why))
}

/// Why an index that CUDA knows is not taken over, and how to find out which GPU it is.
fn uncounted(listener: &Listener) -> String {
    format!(
        "That model was started with CUDA_VISIBLE_DEVICES={} and without CUDA_DEVICE_ORDER=PCI_BUS_ID. The GPUs here are of\n\
         several kinds: CUDA counts the fastest first then, and slots are counted as nvidia-smi does. With the model's Python\n\
         and its variables this prints the UUID of the first GPU that it has, and `nvidia-smi -L` the index of each UUID:\n\
         \x20 python3 -c 'import torch; print(torch.cuda.get_device_properties(0).uuid)'\n\
         ? gpus: [0]",
        inert(&listener.uncounted.join(","))
    )
}

/// The instances of divided GPUs that a model has. Who uses the others nvidia-smi does not tell.
fn divided(survey: &Survey, listener: &Listener) -> (Gpus, Gpus) {
    let has = listener.instances.iter().cloned().map(Gpu::Uuid).collect();
    let others = survey.instances.iter().filter(|it| !listener.instances.contains(it));
    let others: Vec<String> = others.map(|it| inert(it)).collect();
    let there = match others.is_empty() {
        true => "no other is there".to_owned(),
        false => format!("of the others it is not seen which are unused: {}", others.join(", ")),
    };
    let why = format!(
        "The model in slot a runs on {} of a divided GPU (MIG); {there}.\n? gpus: [MIG-…]",
        match listener.instances.len() {
            1 => "an instance".to_owned(),
            several => format!("{several} instances"),
        }
    );
    (Ok(has), Err(why))
}

/// `0: NVIDIA H200, 139 GiB, 139 GiB free; used by process 12`
fn described(gpu: &SeenGpu, survey: &Survey) -> String {
    let gib = |mib: Option<u64>| mib.map_or("?".to_owned(), |mib| (mib >> 10).to_string());
    let mut text = format!(
        "{}: {}, {} GiB, {} GiB free",
        gpu.index,
        inert(&gpu.name),
        gib(gpu.total_mib),
        gib(gpu.free_mib)
    );
    let known = survey.listeners.iter().filter(|it| it.gpus.contains(&gpu.index));
    let known: BTreeSet<String> =
        known.map(|it| format!("the model on port {}", it.port)).collect();
    let others = gpu.users.iter().filter(|_| known.is_empty()).map(|pid| format!("process {pid}"));
    let users: Vec<String> = known.iter().cloned().chain(others).collect();
    if !users.is_empty() {
        let _ = write!(text, "; used by {}", users.join(", "));
    }
    text
}

/// The first port from here on that nobody listens on and no upstream names.
fn free(survey: &Survey, from: Port) -> Port {
    let upstreams = survey.proxies.iter().flat_map(|proxy| &proxy.upstreams);
    let named: BTreeSet<Port> = upstreams.filter_map(|it| it.port).collect();
    let mut ports = (from.0..=u16::MAX).map(Port);
    ports.find(|port| !survey.taken.contains(port) && !named.contains(port)).unwrap_or(from)
}
