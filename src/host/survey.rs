//! This server as it is before anybody has said what of it belongs to a service: reads only.

use std::collections::{BTreeMap, BTreeSet};

use super::docker::{self, Container};
use super::engine::{self, Answer, Models};
use super::gpu::{self, Gpus};
use super::{nginx, process, runtime};
use crate::config::command;
use crate::model::failure::Failure;
use crate::model::ids::Port;
use crate::model::replica::{Found, ImageHere, Keeper};
use crate::model::spec::{Engine, Gpu, Runtime};
use crate::model::survey::{Listener, SeenGpu, Start, Survey, Upstream};
use crate::swap::redact::redact;

/// How variables begin that engines and their libraries read. Others are named, and their values are not looked at.
const OF_ENGINES: &[&str] = &[
    "HF_",
    "HUGGING_FACE_",
    "LD_LIBRARY_PATH",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "TMPDIR",
    "TORCH",
    "TRANSFORMERS_",
    "TRITON_",
    "VLLM_",
];

/// How variables begin that a login, systemd, a container or a slot sets: they are not the model's own.
const OF_OTHERS: &[&str] = &[
    "CUDA_",
    "DBUS_",
    "HOME",
    "HOSTNAME",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LANG",
    "LC_",
    "LOGNAME",
    "LS_COLORS",
    "MAIL",
    "MEMORY_PRESSURE_",
    "MODEL_SWAP_REPLICA",
    "MOTD_",
    "NVIDIA_",
    "OLDPWD",
    "PATH",
    "PWD",
    "SHELL",
    "SHLVL",
    "SSH_",
    "SUDO_",
    "SYSTEMD_",
    "TERM",
    "USER",
    "XDG_",
    "_",
];

/// What chooses an engine's GPUs.
const DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// By what it counts them, and the way that nvidia-smi and slots count. By default CUDA puts the fastest first.
const ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");

/// Looks at every nginx or the one that a command names, at who listens behind it, and at the GPUs.
pub async fn survey(nginx: &[String]) -> Survey {
    let mut proxies = nginx::survey(nginx).await;
    let taken = process::ports();
    let upstreams: BTreeSet<Port> =
        proxies.iter().flat_map(|proxy| &proxy.upstreams).filter_map(|it| it.port).collect();
    let (gpus, no_gpus) = match gpu::look().await {
        Ok(gpus) => (gpus, None),
        Err(error) => (Gpus::default(), Some(Failure::from_error(&error).to_string())),
    };
    let mut listeners: Vec<Listener> = Vec::new();
    for port in taken.iter().copied().filter(|port| upstreams.contains(port) || is_engine(*port)) {
        let process = process::find(port).await;
        let Ok(Some(found)) = runtime::docker::find(port, process, Runtime::Auto).await else {
            continue;
        };
        // An engine's further ports, as those of its workers, are not where clients are answered.
        let known = listeners.iter().any(|other| other.process == found.main);
        if upstreams.contains(&port) || !known {
            listeners.push(listener(port, found, &gpus).await);
        }
    }
    let upstreams = proxies.iter_mut().flat_map(|proxy| &mut proxy.upstreams);
    for Upstream { port, entrance, .. } in upstreams {
        let behind = listeners.iter().find(|it| Some(it.port) == *port && it.unknown.is_none());
        let model = behind.filter(|it| !it.locked).and_then(|it| it.model.as_deref());
        if let (Some(entrance), Some(root)) = (entrance, model) {
            entrance.unmet = nginx::unmet(entrance, root).await.unwrap_or_default();
        }
    }
    let own = rustix::process::geteuid();
    let looked_as = (!own.is_root()).then(|| process::user_name(own.as_raw()));
    let (gpus, instances) = (seen(&gpus), gpus.instances);
    Survey { proxies, listeners, taken, gpus, instances, no_gpus, looked_as }
}

/// Whether an engine listens on a port, by what its program is called: a stranger is asked nothing.
fn is_engine(port: Port) -> bool {
    let owners = process::listeners(port).unwrap_or_default();
    owners
        .into_iter()
        .filter_map(|owner| process::argv(owner).ok())
        .any(|argv| engine::of_program(&argv).is_some())
}

async fn listener(port: Port, found: Found, gpus: &Gpus) -> Listener {
    let answer = engine::ask(Engine::Vllm, port, None).await;
    let counted = engine::in_flight(Engine::Vllm, port).await;
    let unknown = counted.err().map(|error| Failure::from_error(&error).to_string());
    let (told, locked, models) = match answer {
        Answer::Ready(models) => (format!("serves {models}"), false, models),
        Answer::Locked => ("wants an API key".to_owned(), true, Models::default()),
        Answer::Refused => ("does not answer".to_owned(), false, Models::default()),
        Answer::Unwell(why) => (why, false, Models::default()),
    };
    let expected = engine::expected(Engine::Vllm, &found.argv, "");
    let model = models.entries.iter().find_map(|entry| entry.root.clone()).or(Some(expected.root));
    let names: Vec<String> = models.entries.iter().map(|entry| entry.id.clone()).collect();
    let mut seen = Listener {
        port,
        process: found.main,
        user: process::user_name(found.uid),
        answer: told,
        unknown,
        locked,
        model: model.filter(|model| !model.is_empty()),
        names: if names.is_empty() { expected.names } else { names },
        start: Start::default(),
        gpus: Vec::new(),
        instances: Vec::new(),
        no_gpus: Vec::new(),
        uncounted: Vec::new(),
        keeper: found.keeper.clone(),
    };
    let container = match &found.keeper {
        Keeper::Docker(name) => docker::inspect(name).await.ok().flatten(),
        _ => None,
    };
    // Of root's processes only root sees the variables; Docker tells them of its containers.
    let env = match &container {
        Some(container) => container.env(),
        None => process::environment(found.main).unwrap_or_default(),
    };
    devices(&mut seen, (&found, &env), gpus);
    let image = match &container {
        Some(container) => docker::image(&container.image).await.ok().flatten(),
        None => None,
    };
    let container = container.as_ref().map(|container| (container, image.as_ref()));
    seen.start = start(&found, &env, container, &seen);
    seen
}

/// How it was started, without what may be secret.
fn start(
    found: &Found,
    env: &BTreeMap<String, String>,
    container: Option<(&Container, Option<&ImageHere>)>,
    seen: &Listener,
) -> Start {
    let fixed = container.map_or(0, |(it, image)| it.fixed_words(image));
    let template = engine::template(Engine::Vllm, &found.argv, fixed, seen);
    let mut start = Start {
        image: container.map(|(it, image)| (it.config.image.clone(), it.options(image))),
        other_options: container.map(|(it, image)| it.other_options(image)).unwrap_or_default(),
        user_inside: container.and_then(|(it, image)| it.own_user(image)).map(str::to_owned),
        ..Start::default()
    };
    if let Some(template) = template {
        start.command = Some(template.words);
        start.left_out = template.left_out;
    }
    let begins = |name: &str, starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    for (name, value) in env.iter().filter(|(name, _)| command::is_variable_name(name)) {
        let entry = format!("{name}={value}");
        let is_plain =
            redact(std::slice::from_ref(&entry)) == [entry] && !value.contains(char::is_control);
        if !begins(name, OF_ENGINES) {
            start.other_env.extend((!begins(name, OF_OTHERS)).then(|| name.clone()));
        } else if is_plain {
            start.env.insert(name.clone(), value.clone());
        } else {
            start.secret_env.insert(name.clone());
        }
    }
    start
}

/// The GPUs that a tree has memory on, or else was given. Of an instance only its name tells: its memory counts as the whole
/// GPU's.
fn devices(seen: &mut Listener, (found, env): (&Found, &BTreeMap<String, String>), gpus: &Gpus) {
    let is_own = |pid: i32| found.tree.iter().any(|process| process.pid == pid);
    let holds = |uuid: &str| gpus.tenants.iter().any(|it| it.uuid == uuid && is_own(it.pid));
    let held: Vec<u32> =
        gpus.devices.iter().filter(|it| holds(&it.uuid)).map(|it| it.index).collect();
    let given = Given::read(env, gpus);
    seen.instances = given.instances;
    if held.is_empty() {
        (seen.gpus, seen.no_gpus, seen.uncounted) = (given.gpus, given.none, given.uncounted);
    } else {
        seen.gpus = held;
    }
}

/// What the names in `CUDA_VISIBLE_DEVICES` mean here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    gpus: Vec<u32>,
    instances: Vec<String>,
    none: Vec<String>,
    /// Indices by which CUDA may mean others than nvidia-smi does.
    uncounted: Vec<String>,
}

impl Given {
    /// By index, by UUID, or by the beginning of one, if only one begins so (CUDA programming guide, environment variables).
    fn read(env: &BTreeMap<String, String>, gpus: &Gpus) -> Self {
        let names = env.get(DEVICES).map(String::as_str).unwrap_or_default();
        // Of GPUs of one kind none is the fastest, and both ways of counting come to the same.
        let is_by_bus = env.get(ORDER.0).is_some_and(|order| order == ORDER.1) || are_alike(gpus);
        let mut given = Self::default();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let device = only(gpus.devices.iter().filter(|device| match Gpu::named(name) {
                Gpu::Index(index) => device.index == index,
                Gpu::Uuid(uuid) => device.uuid.starts_with(&uuid),
            }));
            let instance = only(gpus.instances.iter().filter(|uuid| uuid.starts_with(name)));
            let is_index = matches!(Gpu::named(name), Gpu::Index(_));
            match (device, instance) {
                (Some(_), _) if is_index && !is_by_bus => given.uncounted.push(name.to_owned()),
                (Some(device), _) => given.gpus.push(device.index),
                (None, Some(instance)) => given.instances.push(instance.clone()),
                (None, None) => given.none.push(name.to_owned()),
            }
        }
        given
    }
}

fn are_alike(gpus: &Gpus) -> bool {
    let mut names = gpus.devices.iter().map(|device| &device.name);
    let first = names.next();
    names.all(|name| Some(name) == first)
}

/// The one that there is, if there are not several.
fn only<T>(mut found: impl Iterator<Item = T>) -> Option<T> {
    let first = found.next();
    first.filter(|_| found.next().is_none())
}

fn seen(gpus: &Gpus) -> Vec<SeenGpu> {
    let devices = gpus.devices.iter().map(|device| SeenGpu {
        index: device.index,
        name: device.name.clone(),
        total_mib: device.total_mib,
        free_mib: device.free_mib,
        users: gpus.tenants_of(device).map(|tenant| tenant.pid).collect(),
    });
    devices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::gpu::Device;

    #[test]
    fn what_an_engine_was_given_is_named_as_a_configuration_names_it() {
        let device = |index: u32, uuid: &str| Device {
            index,
            uuid: uuid.to_owned(),
            name: "NVIDIA H200".to_owned(),
            total_mib: None,
            free_mib: None,
        };
        let gpus = Gpus {
            devices: vec![device(0, "GPU-5d3a"), device(1, "GPU-5d77"), device(2, "GPU-9")],
            instances: vec!["MIG-c6d4".to_owned(), "MIG-e1".to_owned()],
            ..Gpus::default()
        };
        let given = |indices: &[u32], instances: &[&str], none: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let (instances, none) = (owned(instances), owned(none));
            Given { gpus: indices.to_vec(), instances, none, uncounted: Vec::new() }
        };
        for (names, expected) in [
            ("", given(&[], &[], &[])),
            ("2, 0", given(&[2, 0], &[], &[])),
            ("GPU-5d77,GPU-9", given(&[1, 2], &[], &[])),
            ("GPU-5d3", given(&[0], &[], &[])),
            ("MIG-c6,MIG-e1", given(&[], &["MIG-c6d4", "MIG-e1"], &[])),
            // Two begin so, and the others are not there.
            ("GPU-5d,7,-1,MIG-x", given(&[], &[], &["GPU-5d", "7", "-1", "MIG-x"])),
        ] {
            let env = BTreeMap::from([(DEVICES.to_owned(), names.to_owned())]);
            assert_eq!(Given::read(&env, &gpus), expected, "{names}");
        }
    }

    #[test]
    fn where_gpus_differ_an_index_counts_only_as_cuda_was_told_to_count() {
        let device = |(index, name): (u32, &str)| Device {
            index,
            uuid: format!("GPU-{index}"),
            name: name.to_owned(),
            total_mib: None,
            free_mib: None,
        };
        let of = |names: [&str; 2]| {
            let devices = (0..).zip(names).map(device).collect();
            Gpus { devices, ..Gpus::default() }
        };
        let (alike, mixed) = (of(["NVIDIA L4", "NVIDIA L4"]), of(["NVIDIA T4", "NVIDIA H100 NVL"]));
        for (gpus, order, indices, uncounted) in [
            (&alike, "", vec![0], vec![]),
            (&mixed, "PCI_BUS_ID", vec![0], vec![]),
            (&mixed, "FASTEST_FIRST", vec![], vec!["0".to_owned()]),
            (&mixed, "", vec![], vec!["0".to_owned()]),
        ] {
            let vars = [(DEVICES, "0,GPU-1,7"), (ORDER.0, order)];
            let env = vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let given = Given::read(&env, gpus);
            assert_eq!(
                (&given.uncounted, &given.none),
                (&uncounted, &vec!["7".to_owned()]),
                "{order}"
            );
            assert_eq!(given.gpus, [indices, vec![1]].concat(), "{order}");
        }
    }
}
