//! What root lets a locked-down key ask for: one file a service, `/etc/model-swap/services.d/<service>.yaml`.
//!
//! A specification names programs to run, files to edit and ports whose processes may be stopped, and the agent may be
//! root. A key with a forced command is held to what this file says. Where the server is concerned it says it itself
//! (slots, nginx, user, state folder), and the request must agree; models, commands and variables are given as patterns.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_yaml::Value;
use wildmatch::WildMatch;

use super::form;
use super::problem::Problems;
use super::reader::{Form, Node, Report, Section};
use super::section;
use crate::model::failure::Failure;
use crate::model::ids::SlotName;
use crate::model::spec::{NginxSpec, Slot, SwapSpec};
use crate::model::wire::{Command, Secrets};

/// What a command line's last pattern is called when it stands for any number of further words.
const ANY_WORDS: &str = "*";

/// What may be asked of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// Names of the commands.
    commands_asked: Vec<String>,
    /// Patterns of models.
    models: Vec<WildMatch>,
    /// Patterns of the replica's command, word by word.
    commands: Vec<Vec<WildMatch>>,
    /// Patterns of the command that fetches, word by word.
    fetches: Vec<Vec<WildMatch>>,
    /// Patterns of the names of variables, secret or not.
    env: Vec<WildMatch>,
    slots: BTreeMap<SlotName, Slot>,
    nginx: NginxSpec,
    user: Option<String>,
    /// Patterns of images.
    images: Vec<WildMatch>,
    docker_options: Vec<String>,
    state_dir: Option<PathBuf>,
}

impl Listing {
    /// Reads a listing. `origin` leads every message.
    ///
    /// # Errors
    /// With every problem that the text has.
    pub fn load(text: &str, origin: &str) -> Result<Self, Problems> {
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
        self.object_to_revision(&asked.spec, &asked.secrets, &mut found);
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
        if spec.replica.user != self.user {
            found.push(format!(
                "replica.user is {}, not {}",
                or_none(spec.replica.user.as_deref()),
                or_none(self.user.as_deref())
            ));
        }
        // They open the machine to a container, as root.
        if spec.replica.docker_options != self.docker_options {
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
        // In the place of a value it would be one more option.
        if let Some(pinned) = spec.model_revision.as_ref().filter(|it| it.starts_with('-')) {
            found.push(format!("model_revision {pinned:?} begins with a dash"));
        }
        if !self.commands.iter().any(|words| matches_words(words, &spec.replica.command)) {
            let allowed: Vec<_> = self.commands.iter().map(|words| shown_words(words)).collect();
            found.push(format!(
                "replica.command is none of the allowed ones ({})",
                allowed.join("; ")
            ));
        }
        if let Some(fetch) = &spec.fetch
            && !self.fetches.iter().any(|words| matches_words(words, &fetch.command))
        {
            let allowed: Vec<_> = self.fetches.iter().map(|words| shown_words(words)).collect();
            found.push(format!(
                "fetch.command is none of the allowed ones ({})",
                allowed.join("; ")
            ));
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
        strange.sort();
        strange.dedup();
        for name in strange {
            found.push(format!(
                "variable {name} is none of the allowed ones ({})",
                shown(&self.env)
            ));
        }
    }
}

fn listing(file: &Section<'_, '_>) -> Option<Listing> {
    let commands_asked = names(&file.at("allow"));
    let models = patterns(&file.at("models"), "a list of patterns, like [Qwen/*]");
    let commands = commands(&file.at("commands"));
    let fetches = match file.at("fetches") {
        node if node.value().is_none() => Some(Vec::new()),
        node => self::commands(&node),
    };
    let env = match file.at("env") {
        node if node.value().is_none() => Some(Vec::new()),
        node => patterns(&node, "a list of patterns, like [HF_*]"),
    };
    let images = match file.at("images") {
        node if node.value().is_none() => Some(Vec::new()),
        node => patterns(&node, "a list of patterns, like [\"vllm/vllm-openai:*\"]"),
    };
    let docker_options = section::docker_options(file, None);
    let slots = section::slots(&file.at("slots"));
    let nginx = section::nginx(&file.at("nginx"), slots.as_ref());
    let user = file.at("user").optional(&form::USER);
    let state_dir = file.at("state_dir").optional(&form::PATH);
    Some(Listing {
        commands_asked: commands_asked?,
        models: models?,
        commands: commands?,
        fetches: fetches?,
        env: env?,
        slots: slots?,
        nginx: nginx?,
        user: user?,
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

fn patterns(node: &Node<'_>, expected: &str) -> Option<Vec<WildMatch>> {
    let elements = node.elements(expected)?;
    if elements.is_empty() {
        node.refuse_value(expected, None);
    }
    let read: Vec<_> = elements.iter().filter_map(|word| word.required(&form::WORD)).collect();
    (read.len() == elements.len()).then(|| read.iter().map(|word| WildMatch::new(word)).collect())
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
        Some((last, before)) if *last == ANY_WORDS => (before, true),
        _ => (patterns, false),
    };
    let fits = if rest { words.len() >= patterns.len() } else { words.len() == patterns.len() };
    fits && patterns.iter().zip(words).all(|(pattern, word)| pattern.matches(word))
}

fn shown(patterns: &[WildMatch]) -> String {
    match patterns {
        [] => "none".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn shown_words(patterns: &[WildMatch]) -> String {
    patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn or_none(value: Option<&str>) -> &str {
    value.unwrap_or("unset")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state::Requester;
    use crate::model::wire::{
        AbortRequest, Asked, ConfirmRequest, KeptWarm, UninstallRequest, Unknown, Wait,
    };

    const TEXT: &str = r#"
models: [ "Qwen/*" ]
commands: [ "vllm serve {model} --host 127.0.0.1 --port {port} *" ]
env: [ "HF_*" ]
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
"#;

    /// The least configuration of this listing's service, with some text replaced.
    fn asked(from: &str, to: &str) -> Asked {
        let text = "
service: chat
host: local
model: Qwen/Qwen2.5-32B-Instruct
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat
  env: { HF_HOME: /data }
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
";
        let changed = text.replace(from, to);
        assert!(from.is_empty() || changed != text, "nothing replaced");
        let spec = crate::config::load(&changed, "x", &Default::default()).unwrap().spec;
        Asked { spec, secrets: Secrets::default() }
    }

    fn objections(from: &str, to: &str) -> Vec<String> {
        let listing = Listing::load(TEXT, "chat.yaml").unwrap();
        let asked = asked(from, to);
        listing.objections(&Command::Status(asked)).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn what_root_has_foreseen_passes() {
        assert_eq!(objections("", ""), [""; 0]);
        assert_eq!(objections("Qwen2.5-32B-Instruct", "Qwen3"), [""; 0]);
        assert_eq!(objections("HF_HOME", "HF_HUB_CACHE"), [""; 0]);
    }

    #[test]
    fn everything_else_is_named() {
        let rows = [
            (
                "Qwen/Qwen2.5",
                "Evil/Qwen2.5",
                "model \"Evil/Qwen2.5-32B-Instruct\" is none of the allowed ones (Qwen/*)",
            ),
            ("vllm serve", "/tmp/evil serve", "replica.command is none of the allowed ones"),
            ("--host 127.0.0.1", "--host 0.0.0.0", "replica.command is none of the allowed ones"),
            (
                "replica:",
                "fetch: { command: /tmp/evil }\nreplica:",
                "fetch.command is none of the allowed ones",
            ),
            ("HF_HOME", "LD_PRELOAD", "variable LD_PRELOAD is none of the allowed ones (HF_*)"),
            ("  env:", "  user: root\n  env:", "replica.user is root, not unset"),
            ("8002", "22", "slots are not those of the listing"),
            ("conf.d/llm", "conf.d/other", "nginx's config, upstream, command or probe"),
            (
                "upstream: llm",
                "upstream: llm, command: [/tmp/evil]",
                "nginx's config, upstream, command or probe",
            ),
            (
                "service: chat",
                "service: chat\nstate_dir: /root",
                "state_dir is not that of the listing",
            ),
        ];
        for (from, to, expected) in rows {
            let found = objections(from, to);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{to}: {found:?}");
        }
    }

    #[test]
    fn a_container_is_of_a_listed_image_and_sees_of_the_machine_what_is_listed() {
        let docker = |more: &str| {
            let line = "  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat\n";
            asked(
                line,
                &format!("{line}  runtime: docker\n  image: vllm/vllm-openai:v0.33.0\n{more}"),
            )
        };
        let objections = |listing: &str, asked: Asked| -> Vec<String> {
            let listing = Listing::load(&format!("{TEXT}{listing}"), "chat.yaml").unwrap();
            let found = listing.objections(&Command::Status(asked)).into_iter();
            found.map(|failure| failure.message).collect()
        };
        let listed = "images: [ \"vllm/*\" ]\ndocker_options: [--ipc=host]\n";
        let options = "  docker_options: [--ipc=host]\n";
        assert_eq!(objections(listed, docker(options)), [""; 0]);
        assert!(
            objections("", docker(""))[0].starts_with("image \"vllm/vllm-openai:v0.33.0\" is none")
        );
        let mut pinned = docker(options);
        pinned.spec.replica.pinned = Some("evil/image".to_owned());
        let found = objections(listed, pinned);
        assert_eq!(found, ["image \"evil/image\" is not asked for by its name"]);
        for other in ["", "  docker_options: [--ipc=host, --volume=/:/host]\n"] {
            let found = objections(listed, docker(other));
            assert_eq!(found, ["replica.docker_options are not those of the listing"]);
        }
    }

    #[test]
    fn what_nobody_foresaw_is_named_and_the_value_of_a_secret_is_not() {
        let listing = Listing::load(TEXT, "chat.yaml").unwrap();
        let mut asked = asked("", "");
        asked.secrets.0.insert("LD_AUDIT".to_owned(), "canary".to_owned());
        asked.spec.model_revision = Some("--trust-remote-code".to_owned());
        let mut found = listing.objections(&Command::Status(asked));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.remove(0).message.contains("begins with a dash"));
        assert!(found[0].message.contains("LD_AUDIT") && !found[0].message.contains("canary"));
    }

    #[test]
    fn only_commands_that_are_allowed_may_be_asked() {
        let listing = Listing::load(&format!("{TEXT}allow: [plan]\n"), "chat.yaml").unwrap();
        let found = listing.objections(&Command::Status(asked("", "")));
        assert_eq!(found[0].message, "the command status is not allowed (allowed: plan)");
    }

    #[test]
    fn whoever_may_swap_or_roll_back_may_follow_confirm_and_abort() {
        let follow = Command::Follow {
            asked: asked("", ""),
            swap: "s-1".parse().unwrap(),
            since: 0,
            wait: Wait::Promoted,
        };
        let abort = Command::Abort(AbortRequest {
            asked: asked("", ""),
            of: None,
            unknown: Unknown::Kept,
            since: 0,
            requester: Requester::default(),
        });
        let confirm = Command::Confirm(ConfirmRequest {
            asked: asked("", ""),
            swap: "s-1".parse().unwrap(),
            nonce: String::new(),
        });
        for (allowed, may) in [("[swap]", true), ("[rollback]", true), ("[plan]", false)] {
            let listing = Listing::load(&format!("{TEXT}allow: {allowed}\n"), "chat.yaml").unwrap();
            for command in [&follow, &abort, &confirm] {
                let found = listing.objections(command);
                assert_eq!(found.is_empty(), may, "{allowed}: {found:?}");
            }
        }
    }

    #[test]
    fn giving_the_server_back_is_allowed_by_name_only() {
        let wanted = Command::Uninstall(UninstallRequest {
            asked: asked("", ""),
            swap: "s-1".parse().unwrap(),
            kept: KeptWarm::Refuse,
            requester: Requester::default(),
        });
        let objections = |more: &str| {
            Listing::load(&format!("{TEXT}{more}"), "chat.yaml").unwrap().objections(&wanted)
        };
        let expected = "the command uninstall is not allowed (allowed: plan, swap, rollback, status, \
                        abort)";
        assert_eq!(objections("")[0].message, expected);
        assert_eq!(objections("allow: [uninstall]\n"), []);
    }

    #[test]
    fn a_wrong_listing_is_told_with_every_problem_and_its_line() {
        let text = TEXT.replace("models: [ \"Qwen/*\" ]", "model: []\nallow: [swop]");
        let problems = Listing::load(&text, "chat.yaml").unwrap_err();
        let messages: Vec<_> = problems.to_failures().into_iter().map(|f| f.message).collect();
        assert_eq!(messages.len(), 3, "{messages:#?}");
        assert!(messages.iter().any(|m| m.contains("chat.yaml:3") && m.contains("swop")));
        assert!(messages.iter().any(|m| m.contains("models") && m.contains("missing")));
        assert!(messages.iter().any(|m| m.contains("unknown key")));
    }

    #[test]
    fn a_last_star_stands_for_more_words_and_another_one_for_one() {
        let matches = |line: &str, words: &[&str]| {
            let patterns: Vec<_> = line.split(' ').map(WildMatch::new).collect();
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            matches_words(&patterns, &words)
        };
        assert!(matches("vllm serve *", &["vllm", "serve"]));
        assert!(matches("vllm serve *", &["vllm", "serve", "a", "b"]));
        assert!(!matches("vllm serve", &["vllm", "serve", "a"]));
        assert!(!matches("vllm * --port", &["vllm", "--port"]));
        assert!(matches("vllm * --port", &["vllm", "a", "--port"]));
    }
}
