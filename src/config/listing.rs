//! What root lets a locked-down key ask for: one file a service, `/etc/model-swap/services.d/<service>.yaml`.
//!
//! A specification names programs to run, files to edit and ports whose processes may be stopped, and the agent may be
//! root. A key with a forced command is held to what this file says. Where the server is concerned it says it itself
//! (slots, nginx, user, runtime, state folder), and the request must agree; models, their revisions, commands and variables are given as
//! patterns.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_yaml::Value;
use wildmatch::WildMatch;

use super::form;
use super::problem::Problems;
use super::reader::{Form, Node, Report, Section};
use super::section;
use crate::model::failure::Failure;
use crate::model::ids::SlotName;
use crate::model::spec::{FetchSpec, NginxSpec, PinnedWorkers, Runtime, Slot, SwapSpec};
use crate::model::wire::{Asked, Command, Secrets};

/// What a command line's last pattern is called when it stands for any number of further words.
const ANY_WORDS: &str = "*";

/// What may be asked of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// Names of the commands.
    commands_asked: Vec<String>,
    /// Patterns of models.
    models: Vec<WildMatch>,
    /// Patterns of the pinned revisions of their weights.
    revisions: Vec<WildMatch>,
    /// Patterns of the replica's command, word by word.
    commands: Vec<Vec<WildMatch>>,
    /// Patterns of the command that fetches, word by word.
    fetches: Vec<Vec<WildMatch>>,
    /// Patterns of the folder that it fills, where the request names one.
    folders: Vec<WildMatch>,
    /// Patterns of the names of variables, secret or not.
    env: Vec<WildMatch>,
    slots: BTreeMap<SlotName, Slot>,
    nginx: NginxSpec,
    /// `None` among them: where the request names nobody.
    users: Vec<Option<String>>,
    supervision: Supervision,
    /// Patterns of images.
    images: Vec<WildMatch>,
    docker_options: Vec<String>,
    state_dir: Option<PathBuf>,
}

/// What may supervise a replica. Images are no bound for a key that can have the command run beside Docker.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Supervision {
    /// One of these: where replicas move from one to another, a way back needs the one that they had.
    Any(Vec<Runtime>),
    /// Anything that makes no container.
    NoContainer,
}

impl Supervision {
    fn covers(&self, runtime: Runtime) -> bool {
        match self {
            Self::Any(listed) => listed.contains(&runtime),
            Self::NoContainer => runtime != Runtime::Docker,
        }
    }

    /// What root writes to allow another one as well.
    fn with(&self, runtime: Runtime) -> String {
        match self {
            Self::Any(listed) => {
                let words = listed.iter().chain([&runtime]).map(|it| it.word());
                format!("[{}]", words.collect::<Vec<_>>().join(", "))
            }
            Self::NoContainer => runtime.word().to_owned(),
        }
    }
}

impl fmt::Display for Supervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(listed) => {
                let words: Vec<_> = listed.iter().map(|runtime| runtime.word()).collect();
                f.write_str(&words.join(" or "))
            }
            Self::NoContainer => f.write_str("one without containers"),
        }
    }
}

impl Listing {
    /// Reads a listing. `origin` leads every message.
    ///
    /// # Errors
    /// With every problem that the text has.
    pub fn load(text: &str, origin: &str) -> Result<Self, Problems> {
        let text = super::unmarked(text);
        let report = Report::default();
        let document = super::document(text);
        let read = document
            .map(|document| Node::root(&report, &document).section(|file| listing(file)).flatten());
        let mut list = report.into_problems(text);
        match read {
            Ok(Some(listing)) if list.is_empty() => return Ok(listing),
            Ok(_) => {}
            Err(problem) => list.push(*problem),
        }
        Err(Problems { origin: origin.to_owned(), list })
    }

    /// Everything in a request that the listing does not allow; empty if it may be done.
    pub fn objections(&self, command: &Command) -> Vec<Failure> {
        let name = command.name();
        let Some(asked) = command.asked() else {
            return vec![Failure::new(format!("the command {name} is about no service"))];
        };
        let mut found = Vec::new();
        if !self.allows(command) {
            found.push(format!(
                "the command {name} is not allowed (allowed: {})",
                self.commands_asked.join(", ")
            ));
        }
        self.object_to_server(&asked.spec, &mut found);
        object_to_form(asked, &mut found);
        self.object_to_revision(&asked.spec, &asked.secrets, &mut found);
        found.into_iter().map(Failure::new).collect()
    }

    /// Everything in a command that brings weights which the listing does not allow.
    pub fn objections_to_fetch(&self, fetch: &FetchSpec) -> Vec<Failure> {
        let mut found = Vec::new();
        self.object_to_fetch(fetch, &mut found);
        found.into_iter().map(Failure::new).collect()
    }

    /// Whoever may begin a swap may see it through and give it up: a lost link or a cancelled job would leave it alone else.
    fn allows(&self, command: &Command) -> bool {
        let names = |name: &str| self.commands_asked.iter().any(|allowed| allowed == name);
        let begins = || names("swap") || names("rollback");
        let is_about_its_own =
            matches!(command, Command::Follow { .. } | Command::Abort(_) | Command::Confirm(_));
        names(command.name()) || (is_about_its_own && begins())
    }

    /// What concerns the server itself must be as root has it.
    fn object_to_server(&self, spec: &SwapSpec, found: &mut Vec<String>) {
        if spec.slots != self.slots {
            found.push("slots are not those of the listing".to_owned());
        }
        let patient = NginxSpec { pinned_workers: self.nginx.pinned_workers, ..spec.nginx.clone() };
        if patient != self.nginx {
            found.push(
                "nginx's config, upstream, command or probe is not that of the listing".to_owned(),
            );
        }
        let user = &spec.replica.user;
        if !self.users.contains(user) {
            let named =
                |unset| move |it: &Option<String>| it.clone().unwrap_or(String::from(unset));
            let listed: Vec<_> = self.users.iter().map(named("unset")).collect();
            let wanted: Vec<_> = self.users.iter().chain([user]).map(named("null")).collect();
            found.push(format!(
                "replica.user is {}, not {}: root allows it with `user: [{}]`",
                user.as_deref().unwrap_or("unset"),
                listed.join(" or "),
                wanted.join(", ")
            ));
        }
        let runtime = spec.replica.runtime;
        if !self.supervision.covers(runtime) {
            found.push(format!(
                "replica.runtime is {}, not {}: root allows it with `runtime: {}`",
                runtime.word(),
                self.supervision,
                self.supervision.with(runtime)
            ));
        }
        // They open the machine to a container, as root, and nothing else has any.
        let options = if runtime == Runtime::Docker { &self.docker_options[..] } else { &[] };
        if spec.replica.docker_options != options {
            found.push("replica.docker_options are not those of the listing".to_owned());
        }
        if spec.state_dir != self.state_dir {
            found.push("state_dir is not that of the listing".to_owned());
        }
    }

    /// What may differ from swap to swap must be of a kind that root has foreseen.
    fn object_to_revision(&self, spec: &SwapSpec, secrets: &Secrets, found: &mut Vec<String>) {
        if !self.models.iter().any(|pattern| pattern.matches(&spec.model)) {
            found.push(format!(
                "model {:?} is none of the allowed ones ({})",
                spec.model,
                shown(&self.models)
            ));
        }
        // Whoever may propose a change to a model's weights makes a revision of them, with code for the engine perhaps.
        if let Some(pinned) = &spec.model_revision
            && !self.revisions.iter().any(|pattern| pattern.matches(pinned))
        {
            found.push(format!(
                "model_revision {pinned:?} is none of the allowed ones ({}): root allows it with `revisions: [{pinned:?}]`",
                shown(&self.revisions)
            ));
        }
        if !self.commands.iter().any(|words| matches_words(words, &spec.replica.command)) {
            found.push(format!(
                "replica.command is none of the allowed ones ({})",
                shown_lines(&self.commands)
            ));
        }
        if let Some(fetch) = &spec.fetch {
            self.object_to_fetch(fetch, found);
        }
        if let Some(image) = &spec.replica.image
            && !self.images.iter().any(|pattern| pattern.matches(image))
        {
            found.push(format!(
                "image {image:?} is none of the allowed ones ({})",
                shown(&self.images)
            ));
        }
        // What a name meant once only the server knows, and no pattern speaks of.
        if let Some(pinned) = &spec.replica.pinned {
            found.push(format!("image {pinned:?} is not asked for by its name"));
        }
        let key = spec.nginx.probe.api_key_env.as_ref();
        let names = spec.replica.env.keys().chain(&spec.replica.secret_env);
        let sent = secrets.0.keys().filter(|name| Some(*name) != key);
        let mut strange: Vec<_> = names
            .chain(sent)
            .filter(|name| !self.env.iter().any(|pattern| pattern.matches(name)))
            .collect();
        strange.sort_unstable();
        strange.dedup();
        for name in strange {
            found.push(format!(
                "variable {name} is none of the allowed ones ({})",
                shown(&self.env)
            ));
        }
    }

    fn object_to_fetch(&self, fetch: &FetchSpec, found: &mut Vec<String>) {
        if !self.fetches.iter().any(|words| matches_words(words, &fetch.command)) {
            found.push(format!(
                "fetch.command is none of the allowed ones ({})",
                shown_lines(&self.fetches)
            ));
        }
        // How much is below it is told, and the agent may read what the key must not.
        if let Some(folder) = fetch.folder.as_ref().map(|folder| folder.display().to_string())
            && !self.folders.iter().any(|pattern| pattern.matches(&folder))
        {
            found.push(format!(
                "fetch.folder {folder:?} is none of the allowed ones ({}): root allows it with `folders: [{folder:?}]`",
                shown(&self.folders)
            ));
        }
    }
}

/// What the configuration's reader has looked at is not so on the wire: whoever has the key need not use our runner. A pattern
/// alone would let a leading dash pass, which makes one more option of a value, and the way out of a folder.
fn object_to_form(Asked { spec, secrets }: &Asked, found: &mut Vec<String>) {
    let replica = &spec.replica;
    found.extend(unfit("model", &form::MODEL, &spec.model));
    let pinned = spec.model_revision.as_deref();
    found.extend(pinned.and_then(|it| unfit("model_revision", &form::MODEL_REVISION, it)));
    let image = replica.image.as_deref();
    found.extend(image.and_then(|it| unfit("image", &form::IMAGE, it)));
    let folder = spec.fetch.as_ref().and_then(|fetch| fetch.folder.as_ref());
    let folder = folder.map(|folder| folder.display().to_string());
    let folder = folder.as_deref();
    found.extend(folder.and_then(|it| unfit("fetch.folder", &form::PATH, it)));
    for (what, named) in [
        ("model", Some(&*spec.model)),
        ("model_revision", pinned),
        ("image", image),
        ("fetch.folder", folder),
    ] {
        if let Some(named) = named.filter(|it| leads_up(it)) {
            found.push(format!("{what} {named:?} leads out of its folder with `..`"));
        }
    }
    match (image, replica.runtime) {
        (None, Runtime::Docker) => found.push("replica.runtime docker has no image".to_owned()),
        (Some(image), runtime) if runtime != Runtime::Docker => {
            found
                .push(format!("replica.runtime {} has no use for image {image:?}", runtime.word()));
        }
        _ => {}
    }
    let names = replica.env.keys().chain(&replica.secret_env).chain(secrets.0.keys());
    found.extend(names.filter_map(|name| unfit("variable", &form::VARIABLE, name)));
    let ignored_after = match spec.nginx.pinned_workers {
        PinnedWorkers::IgnoreAfter(limit) => Some(limit),
        PinnedWorkers::Wait => None,
    };
    let times = [
        ("nginx.pinned_workers", ignored_after),
        ("ready.timeout", Some(spec.ready.timeout)),
        ("drain.timeout", Some(spec.drain.timeout)),
        ("retain", Some(spec.retain)),
        ("fetch.timeout", spec.fetch.as_ref().map(|fetch| fetch.timeout)),
        ("verify.within", spec.verify.as_ref().map(|verify| verify.within)),
    ];
    for (what, _) in times.iter().filter(|(_, time)| time.is_some_and(|it| it > form::LONGEST)) {
        found.push(format!("{what} is longer than {}", humantime::format_duration(form::LONGEST)));
    }
}

/// Why a value cannot be one that the configuration's reader gave.
fn unfit<T>(what: &str, form: &Form<T>, value: &str) -> Option<String> {
    let read = (form.parse)(&Value::String(value.to_owned()));
    read.is_err().then(|| format!("{what} {value:?} is not {}", form.expected))
}

/// Whether a path or name in it has a part that leads to the folder above.
fn leads_up(text: &str) -> bool {
    text.split(['/', '=', ':', ',']).any(|part| part == "..")
}

fn listing(file: &Section<'_, '_>) -> Option<Listing> {
    let commands_asked = names(&file.at("allow"));
    let models = patterns(&file.at("models"), "a list of patterns, like [Qwen/*]");
    let revisions = any_patterns(file, "revisions", "[main, \"v1.*\"]");
    let commands = commands(&file.at("commands"));
    let fetches = match file.at("fetches") {
        node if node.value().is_none() => Some(Vec::new()),
        node => self::commands(&node),
    };
    let folders = any_patterns(file, "folders", "[\"/srv/models/*\"]");
    let env = any_patterns(file, "env", "[HF_*]");
    let images = any_patterns(file, "images", "[\"vllm/vllm-openai:*\"]");
    let supervision = match (file.at("runtime"), &images) {
        (node, _) if node.value().is_some() => runtimes(&node).map(Supervision::Any),
        (_, Some(images)) if !images.is_empty() => Some(Supervision::Any(vec![Runtime::Docker])),
        _ => Some(Supervision::NoContainer),
    };
    let docker_options = section::docker_options(file, None);
    let slots = section::slots(&file.at("slots"));
    let nginx = section::nginx(&file.at("nginx"), slots.as_ref());
    let users = users(&file.at("user"));
    let state_dir = file.at("state_dir").optional(&form::PATH);
    Some(Listing {
        commands_asked: commands_asked?,
        models: models?,
        revisions: revisions?,
        commands: commands?,
        fetches: fetches?,
        folders: folders?,
        env: env?,
        slots: slots?,
        nginx: nginx?,
        users: users?,
        supervision: supervision?,
        images: images?,
        docker_options: docker_options?,
        state_dir: state_dir?,
    })
}

/// The commands that a listing allows unless it says otherwise. The others have to be allowed by name: they show what a
/// model was asked (`logs`) and how the server is made (`doctor`), or want a person who has mended something (`repair`) or
/// takes the way back away (`uninstall`).
const USUAL: [&str; 5] = ["plan", "swap", "rollback", "status", "abort"];

fn names(node: &Node<'_>) -> Option<Vec<String>> {
    if node.value().is_none() {
        return Some(USUAL.map(str::to_owned).to_vec());
    }
    let elements =
        node.elements("a list of commands, like [plan, swap, rollback, abort, repair, status]")?;
    let choices: Vec<_> = Command::NAMES.iter().map(|name| (*name, *name)).collect();
    let named: Vec<_> =
        elements.iter().filter_map(|name| name.choice("", &choices)).map(str::to_owned).collect();
    (named.len() == elements.len()).then_some(named)
}

/// Patterns that may be left out: then nothing is allowed.
fn any_patterns(
    file: &Section<'_, '_>,
    key: &'static str,
    example: &str,
) -> Option<Vec<WildMatch>> {
    let node = file.at(key);
    if node.value().is_none() {
        return Some(Vec::new());
    }
    patterns(&node, &format!("a list of patterns, like {example}"))
}

fn patterns(node: &Node<'_>, expected: &str) -> Option<Vec<WildMatch>> {
    let elements = node.elements(expected)?;
    if elements.is_empty() {
        node.refuse_value(expected, None);
    }
    let read: Vec<_> = elements.iter().filter_map(|word| word.required(&form::WORD)).collect();
    (read.len() == elements.len()).then(|| read.iter().map(|word| WildMatch::new(word)).collect())
}

/// Whom a replica may run as: one user or none, or a list, since a way back needs the one that it had.
fn users(node: &Node<'_>) -> Option<Vec<Option<String>>> {
    const EXPECTED: &str = "a user, or a list of them, like [llm, null]; null is for none";
    if !node.value().is_some_and(Value::is_sequence) {
        return node.optional(&form::USER).map(|user| vec![user]);
    }
    let elements = node.elements(EXPECTED)?;
    if elements.is_empty() {
        node.refuse_value(EXPECTED, None);
    }
    let read: Vec<_> = elements.iter().filter_map(|user| user.optional(&form::USER)).collect();
    (read.len() == elements.len()).then_some(read)
}

/// One, or a list of them.
fn runtimes(node: &Node<'_>) -> Option<Vec<Runtime>> {
    const EXPECTED: &str = "a runtime, or a list of them, like [systemd, docker]";
    if !node.value().is_some_and(Value::is_sequence) {
        return section::runtime(node).map(|runtime| vec![runtime]);
    }
    let elements = node.elements(EXPECTED)?;
    if elements.is_empty() {
        node.refuse_value(EXPECTED, None);
    }
    let read: Vec<_> = elements.iter().filter_map(section::runtime).collect();
    (read.len() == elements.len()).then_some(read)
}

fn commands(node: &Node<'_>) -> Option<Vec<Vec<WildMatch>>> {
    const EXPECTED: &str =
        "a list of command lines, like [\"vllm serve {model} --host 127.0.0.1 --port {port} *\"]";
    const LINE: Form<Vec<String>> = Form {
        expected: "a program and its arguments; words may hold *, and a last * stands for any more words",
        parse: |value| match value {
            Value::String(line) => match shell_words::split(line) {
                Ok(words) if words.first().is_some_and(|word| word != ANY_WORDS) => Ok(words),
                _ => Err(String::new()),
            },
            _ => Err(String::new()),
        },
    };
    let elements = node.elements(EXPECTED)?;
    if elements.is_empty() {
        node.refuse_value(EXPECTED, None);
    }
    let lines: Vec<_> = elements.iter().filter_map(|line| line.required(&LINE)).collect();
    let of_words = |words: Vec<String>| words.iter().map(|word| WildMatch::new(word)).collect();
    (lines.len() == elements.len()).then(|| lines.into_iter().map(of_words).collect())
}

/// Word for word; a last `*` stands for any number of words.
fn matches_words(patterns: &[WildMatch], words: &[String]) -> bool {
    let (patterns, rest) = match patterns.split_last() {
        // By its text: a pattern equals whatever it matches.
        Some((last, before)) if shown_words(std::slice::from_ref(last)) == ANY_WORDS => {
            (before, true)
        }
        _ => (patterns, false),
    };
    let fits = if rest { words.len() >= patterns.len() } else { words.len() == patterns.len() };
    fits && patterns.iter().zip(words).all(|(pattern, word)| matches_word(pattern, word))
}

/// In the place of a value a word with a leading dash would be one more option.
fn matches_word(pattern: &WildMatch, word: &str) -> bool {
    let text = pattern.to_string();
    let is_option = word.starts_with('-') && !text.starts_with('-');
    pattern.matches(word) && (text == word || !(is_option || leads_up(word)))
}

fn shown(patterns: &[WildMatch]) -> String {
    match patterns {
        [] => "none".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn shown_lines(lines: &[Vec<WildMatch>]) -> String {
    match lines {
        [] => "none".to_owned(),
        some => some.iter().map(|words| shown_words(words)).collect::<Vec<_>>().join("; "),
    }
}

fn shown_words(patterns: &[WildMatch]) -> String {
    patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
