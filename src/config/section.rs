//! The sections of the file, each read into its part of the specification.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde_yaml::Value;

use crate::model::ids::SlotName;
use crate::model::spec::{
    DrainSpec, Engine, FetchSpec, Gpu, NginxSpec, OnTimeout, PinnedWorkers, ProbeSpec, ReadySpec,
    ReplicaSpec, Runtime, Slot, VerifySpec,
};
use crate::model::wire::MARKER;

use super::command;
use super::form;
use super::problem::{did_you_mean, meant};
use super::reader::{Form, Node, Section};

/// Two slots, neither of which gets in the other's way.
pub(super) fn slots(node: &Node<'_>) -> Option<BTreeMap<SlotName, Slot>> {
    const EXPECTED: &str =
        "exactly two slots, like a: { port: 8001, gpus: [0] } and b: { port: 8002, gpus: [1] }";
    let entries = node.entries(EXPECTED)?;
    match entries.len() {
        2 => {}
        0 => node.refuse_missing(EXPECTED),
        1 => node.refuse_part("one slot".to_owned(), EXPECTED, None),
        number => node.refuse_part(format!("{number} slots"), EXPECTED, None),
    }
    let mut slots = BTreeMap::new();
    for (name, entry) in &entries {
        let read = slot(entry, &slots);
        match SlotName::from_str(name) {
            Ok(name) => {
                slots.extend(read.map(|slot| (name, slot)));
            }
            Err(error) => {
                node.refuse_part(format!("{name:?} as a slot's name"), error.accepted, None)
            }
        }
    }
    (slots.len() == 2).then_some(slots)
}

fn slot(node: &Node<'_>, others: &BTreeMap<SlotName, Slot>) -> Option<Slot> {
    node.section(|section| {
        let port = section.at("port");
        let number = port.required(&form::PORT);
        if let Some((name, _)) = others.iter().find(|(_, other)| Some(other.port) == number) {
            port.refuse_value(&format!("a port of its own: slot {name} has this one"), None);
        }
        let gpus = gpus(&section.at("gpus"), others);
        Some(Slot { port: number?, gpus: gpus? })
    })?
}

fn gpus(node: &Node<'_>, others: &BTreeMap<SlotName, Slot>) -> Option<Vec<Gpu>> {
    let elements = node.elements("a list of GPUs like [0], or [] for none")?;
    let mut gpus: Vec<Gpu> = Vec::new();
    for element in &elements {
        let Some(gpu) = element.required(&form::GPU) else { continue };
        let is_among = |gpus: &[Gpu]| gpus.iter().any(|other| are_one(other, &gpu));
        if is_among(&gpus) {
            element.refuse_value("each GPU once", None);
        } else if let Some((name, _)) = others.iter().find(|(_, other)| is_among(&other.gpus)) {
            let hint = "a swap on a shared GPU is not part of this version".to_owned();
            let expected = format!(
                "a GPU of its own: slot {name} has this one, and both replicas run side by side"
            );
            element.refuse_value(&expected, Some(hint));
        } else if others
            .values()
            .flat_map(|other| &other.gpus)
            .chain(&gpus)
            .any(|other| !same_kind(other, &gpu))
        {
            // CUDA takes no mixed lists, and one GPU under two names would pass for two.
            element.refuse_value("either indices or UUIDs throughout", None);
        }
        gpus.push(gpu);
    }
    (gpus.len() == elements.len()).then_some(gpus)
}

/// Whether two names are seen to mean one GPU: CUDA takes the beginning of a UUID as well, where only one begins so.
fn are_one(one: &Gpu, other: &Gpu) -> bool {
    match (one, other) {
        // What follows a slash in the older name of an instance is a number, and 1 is not the beginning of 10.
        (Gpu::Uuid(one), Gpu::Uuid(other)) if !one.contains('/') && !other.contains('/') => {
            one.starts_with(other) || other.starts_with(one)
        }
        _ => one == other,
    }
}

fn same_kind(one: &Gpu, other: &Gpu) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Variables that are not the user's to set, and whose they are.
type Reserved = &'static [(&'static str, &'static str)];

/// The first is always reserved, the others where slots have GPUs.
const RESERVED: [(&str, &str); 3] = [
    (MARKER, "it marks the replicas that model-swap starts"),
    ("CUDA_VISIBLE_DEVICES", "the slots' gpus set it"),
    ("CUDA_DEVICE_ORDER", "the slots' gpus set it"),
];

/// How a replica is started. The slots own the variables that choose GPUs, if they have any.
pub(super) fn replica(
    node: &Node<'_>,
    slots: Option<&BTreeMap<SlotName, Slot>>,
) -> Option<ReplicaSpec> {
    let with_gpus = slots.is_some_and(|slots| slots.values().any(|slot| !slot.gpus.is_empty()));
    let reserved = if with_gpus { &RESERVED[..] } else { &RESERVED[..1] };
    node.section(|section| {
        let command = replica_command(&section.at("command"));
        let engine = section.at("engine").choice(Engine::Vllm, &[("vllm", Engine::Vllm)]);
        let runtime = runtime(&section.at("runtime"));
        let image = image(section, runtime);
        let docker_options = docker_options(section, runtime);
        let user = section.at("user").optional(&form::USER);
        let env = env(&section.at("env"), reserved);
        let secret_env = secret_env(&section.at("secret_env"), env.as_ref(), reserved);
        Some(ReplicaSpec {
            command: command?,
            engine: engine?,
            runtime: runtime?,
            user: user?,
            env: env?,
            secret_env: secret_env?,
            image: image?,
            pinned: None,
            docker_options: docker_options?,
        })
    })?
}

/// What supervises a replica.
pub(super) fn runtime(node: &Node<'_>) -> Option<Runtime> {
    node.choice(Runtime::Auto, &Runtime::ALL.map(|runtime| (runtime.word(), runtime)))
}

/// The image of a container, and of nothing else.
fn image(section: &Section<'_, '_>, runtime: Option<Runtime>) -> Option<Option<String>> {
    let node = section.at("image");
    match runtime {
        Some(Runtime::Docker) => node.required(&form::IMAGE).map(Some),
        _ => {
            let image = node.optional(&form::IMAGE)?;
            if image.is_some() {
                node.refuse_value(
                    "no image where there is no container",
                    Some(AS_CONTAINER.to_owned()),
                );
            }
            Some(image)
        }
    }
}

/// What turns a replica into a container.
const AS_CONTAINER: &str = "add `runtime: docker`";

/// Options of `docker run` that are not the user's to give, by all of their names, and where what they say belongs.
const DOCKER_OPTIONS: [(&[&str], &str); 9] = [
    (&["--name"], "the slot names the container"),
    (&["--publish", "--publish-all"], "the slot's port is published on 127.0.0.1"),
    (&["--gpus"], "the slot's gpus are given to it"),
    (&["--restart"], "it is restarted once it gets traffic"),
    (&["--rm"], "it is removed once its output is kept"),
    (&["--detach", "--interactive", "--tty"], "it runs in the background"),
    (&["--env", "--env-file"], "use replica.env and replica.secret_env"),
    (&["--user"], "use replica.user"),
    (&["--stop-timeout", "--stop-signal"], "the engine decides how it is stopped"),
];

/// More options of `docker run`.
pub(super) fn docker_options(
    section: &Section<'_, '_>,
    runtime: Option<Runtime>,
) -> Option<Vec<String>> {
    const EXPECTED: &str = "a list of options of docker run, like [--ipc=host, --volume=/srv/hf:/root/.cache/huggingface]";
    let node = section.at("docker_options");
    if node.value().is_none() {
        return Some(Vec::new());
    }
    let options = words(&node, EXPECTED)?;
    if !options.is_empty() && runtime.is_some_and(|runtime| runtime != Runtime::Docker) {
        node.refuse_value("none where there is no container", Some(AS_CONTAINER.to_owned()));
    }
    for option in &options {
        // Each with its value after a `=`: a word by itself might be taken for the image.
        let long = option.strip_prefix("--").is_some_and(|rest| !rest.is_empty());
        if !long {
            let hint =
                "write its long name, and its value into the same word: --ipc=host".to_owned();
            node.refuse_part(format!("{option:?}"), EXPECTED, Some(hint));
        }
        let name = option.split('=').next().unwrap_or_default();
        let taken = DOCKER_OPTIONS.iter().find(|(names, _)| names.contains(&name));
        if let Some((_, why)) = taken {
            node.refuse_part(name.to_owned(), &format!("other options: {why}"), None);
        }
    }
    Some(options)
}

fn env(node: &Node<'_>, reserved: Reserved) -> Option<BTreeMap<String, String>> {
    let entries = node.entries("a mapping of names to texts, like HF_HOME: /data/hf")?;
    let total = entries.len();
    let mut env = BTreeMap::new();
    for (name, entry) in entries {
        let name_is_free = variable_is_free(node, name, reserved);
        let value = entry.required(&form::VARIABLE_VALUE);
        env.extend(value.filter(|_| name_is_free).map(|value| (name.to_owned(), value)));
    }
    (env.len() == total).then_some(env)
}

fn secret_env(
    node: &Node<'_>,
    env: Option<&BTreeMap<String, String>>,
    reserved: Reserved,
) -> Option<Vec<String>> {
    if node.value().is_none() {
        return Some(Vec::new());
    }
    let elements = node.elements("a list of names, like [HF_TOKEN]")?;
    let mut names = Vec::new();
    for element in &elements {
        let Some(name) = element.required(&form::VARIABLE) else { continue };
        if env.is_some_and(|env| env.contains_key(&name)) {
            element.refuse_value("a name that is not in replica.env too", None);
        } else if names.contains(&name) {
            element.refuse_value("each name once", None);
        } else if variable_is_free(element, &name, reserved) {
            names.push(name);
        }
    }
    (names.len() == elements.len()).then_some(names)
}

/// Whether a variable may be set by the user; a problem if not.
fn variable_is_free(node: &Node<'_>, name: &str, reserved: Reserved) -> bool {
    if let Some((_, owner)) = reserved.iter().find(|(reserved, _)| *reserved == name) {
        node.refuse_part(name.to_owned(), &format!("another variable: {owner}"), None);
    } else if !command::is_variable_name(name) {
        node.refuse_part(format!("{name:?} as a name"), form::VARIABLE.expected, None);
    } else {
        return true;
    }
    false
}

fn replica_command(node: &Node<'_>) -> Option<Vec<String>> {
    let example = "vllm serve {model} --port {port}";
    let words = command_line(node, example, &command::TOKENS)?;
    if !command::holds(&words, "{port}") {
        let hint = "add --port {port}, or whatever the engine calls it".to_owned();
        node.refuse_value("a command with {port}, because each slot has its own", Some(hint));
    }
    Some(words)
}

/// What brings the weights, if something is to.
pub(super) fn fetch(node: &Node<'_>) -> Option<Option<FetchSpec>> {
    const TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
    if node.value().is_none() {
        return Some(None);
    }
    node.section(|section| {
        let example = "hf download {model} --revision {revision}";
        let command = command_line(&section.at("command"), example, &command::FETCH_TOKENS);
        let timeout = section.at("timeout").or(TIMEOUT, &form::BOUND);
        let folder = section.at("folder").optional(&form::PATH);
        let size = section.at("size").optional(&form::SIZE);
        let (command, timeout) = (command?, timeout?);
        Some(Some(FetchSpec { command, timeout, folder: folder?, size: size? }))
    })?
}

/// A command that no shell reads, with these tokens in it.
fn command_line(node: &Node<'_>, example: &str, tokens: &[&str]) -> Option<Vec<String>> {
    let expected = format!("a program and its arguments, like {example}");
    let expected = expected.as_str();
    const SCRIPT: &str = "put what needs a shell into a script";
    const QUOTE: &str =
        "put single quotes around what is meant as it stands, and what needs a shell into a script";
    let (words, shell, hint) = match node.value() {
        Some(Value::String(line)) => {
            let Ok(words) = shell_words::split(line) else {
                node.refuse_value("quotes that close", None);
                return None;
            };
            (words, command::shell_syntax(line), QUOTE)
        }
        _ => {
            let words = words(node, expected)?;
            let shell = command::shell_words(&words);
            (words, shell, SCRIPT)
        }
    };
    if words.first().is_none_or(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
        node.refuse_value(expected, None);
        return None;
    }
    if let Some(name) = command::leading_assignment(&words) {
        let hint = format!("put {name} under replica.env");
        node.refuse_part(
            format!("{:?} first", words[0]),
            "a program first, because no shell sets variables",
            Some(hint),
        );
    }
    const JOINED: &str = "leave it out: YAML joins the lines";
    let is_joined = |piece: &String| piece == "\\";
    let hint = if shell.iter().all(is_joined) { JOINED } else { hint };
    if !shell.is_empty() {
        node.refuse_part(
            shell.join(" "),
            "plain words, because no shell reads them",
            Some(hint.to_owned()),
        );
    }
    for token in words.iter().flat_map(|word| command::strange_tokens(word, tokens)) {
        let hint = meant(token, tokens.iter().copied()).map(did_you_mean);
        node.refuse_part(token.to_owned(), &format!("one of {}", tokens.join(", ")), hint);
    }
    Some(words)
}

/// The words of a list, if all are words.
fn words(node: &Node<'_>, expected: &str) -> Option<Vec<String>> {
    let elements = node.elements(expected)?;
    let words: Vec<_> = elements.iter().filter_map(|word| word.required(&form::WORD)).collect();
    (words.len() == elements.len()).then_some(words)
}

/// How long a candidate may take.
pub(super) fn ready(node: &Node<'_>) -> Option<ReadySpec> {
    const TIMEOUT: Duration = Duration::from_secs(20 * 60);
    node.section(|section| {
        Some(ReadySpec { timeout: section.at("timeout").or(TIMEOUT, &form::BOUND)? })
    })?
}

/// How long the last requests may take.
pub(super) fn drain(node: &Node<'_>) -> Option<DrainSpec> {
    const TIMEOUT: Duration = Duration::from_secs(10 * 60);
    node.section(|section| {
        let timeout = section.at("timeout").or(TIMEOUT, &form::BOUND);
        let on_timeout = section.at("on_timeout").choice(
            OnTimeout::Keep,
            &[("keep", OnTimeout::Keep), ("fail", OnTimeout::Fail), ("cut", OnTimeout::Cut)],
        );
        Some(DrainSpec { timeout: timeout?, on_timeout: on_timeout? })
    })?
}

/// The proxy in front.
pub(super) fn nginx(
    node: &Node<'_>,
    slots: Option<&BTreeMap<SlotName, Slot>>,
) -> Option<NginxSpec> {
    node.section(|section| {
        let config = section.at("config").required(&form::PATH);
        let upstream = section.at("upstream").required(&form::UPSTREAM);
        let command = nginx_command(&section.at("command"));
        let probe = section.at("probe").section(|section| probe(section, slots));
        let pinned_workers = pinned_workers(&section.at("pinned_workers"));
        Some(NginxSpec {
            config: config?,
            upstream: upstream?,
            command: command?,
            probe: probe??,
            pinned_workers: pinned_workers?,
        })
    })?
}

fn nginx_command(node: &Node<'_>) -> Option<Vec<String>> {
    const EXPECTED: &str = "a list of words, like [nginx] or [docker, exec, edge, nginx]";
    if node.value().is_none() {
        return Some(vec!["nginx".to_owned()]);
    }
    let words = words(node, EXPECTED)?;
    if words.first().is_none_or(String::is_empty) {
        node.refuse_value(EXPECTED, None);
        return None;
    }
    Some(words)
}

fn probe(section: &Section<'_, '_>, slots: Option<&BTreeMap<SlotName, Slot>>) -> Option<ProbeSpec> {
    let node = section.at("url");
    let url = node.or("http://127.0.0.1:80/v1/models".to_owned(), &form::URL);
    let port =
        url.as_deref().and_then(|url| reqwest::Url::parse(url).ok()?.port_or_known_default());
    if let Some((name, _)) =
        slots.iter().copied().flatten().find(|(_, slot)| Some(slot.port.0) == port)
    {
        node.refuse_value(
            &format!("the port on which nginx listens: this one leads past it to slot {name}"),
            None,
        );
    }
    let host = section.at("host").optional(&form::HOST_HEADER);
    let api_key_env = section.at("api_key_env").optional(&form::VARIABLE);
    Some(ProbeSpec { url: url?, host: host?, api_key_env: api_key_env? })
}

/// What customers must meet. A section without a URL is none.
pub(super) fn verify(node: &Node<'_>, model: Option<&str>) -> Option<Option<VerifySpec>> {
    const WITHIN: Duration = Duration::from_secs(2 * 60);
    node.section(|section| {
        let (url, named) = (section.at("url"), section.at("expect_model"));
        let expect_model = named.optional(&form::MODEL);
        let within = section.at("within").or(WITHIN, &form::BOUND);
        let api_key_env = section.at("api_key_env").optional(&form::VARIABLE);
        let is_given = |node: &Node<'_>| node.value().is_some();
        let others = [&named, &section.at("api_key_env")];
        if !is_given(&url) {
            if others.into_iter().any(is_given) {
                url.refuse_missing(form::PUBLIC_URL.expected);
                return None;
            }
            return within.map(|_| None);
        }
        Some(Some(VerifySpec {
            url: url.required(&form::PUBLIC_URL)?,
            expect_model: expect_model?.or_else(|| model.map(str::to_owned))?,
            within: within?,
            api_key_env: api_key_env?,
        }))
    })?
}

fn pinned_workers(node: &Node<'_>) -> Option<PinnedWorkers> {
    const WORD: Form<PinnedWorkers> = Form {
        expected: "wait, or a bound like ignore_after: 10m",
        parse: |value| {
            if value.as_str() == Some("wait") {
                Ok(PinnedWorkers::Wait)
            } else {
                Err(String::new())
            }
        },
    };
    match node.value() {
        Some(Value::Mapping(_)) => {
            let bound =
                node.section(|section| section.at("ignore_after").required(&form::BOUND))?;
            bound.map(PinnedWorkers::IgnoreAfter)
        }
        _ => node.or(PinnedWorkers::Wait, &WORD),
    }
}
