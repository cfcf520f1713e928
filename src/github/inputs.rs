//! What a user asks for, from the action's inputs or from a terminal.
//!
//! The runner hands an input over as `INPUT_` + its name in upper case; dashes stay, and one that is not given is
//! empty (runner, `Handler.cs`). Nothing is checked by GitHub: neither `required` nor a name that does not exist.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::model::failure::Hint;
use crate::model::ids::{InvalidName, ServiceName, SwapId};
use crate::model::secret::Secret;
use crate::model::wire::{Wait, When};

/// An input as `action.yml` declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    /// What it is when it is not given.
    pub default: Option<&'static str>,
}

/// Every input of the action, in the order of `action.yml`.
pub const INPUTS: [Declared; 12] = [
    Declared { name: "command", default: Some("swap") },
    Declared { name: "config", default: Some(DEFAULT_CONFIG) },
    Declared { name: "service", default: None },
    Declared { name: "model", default: None },
    Declared { name: "host", default: None },
    Declared { name: "ssh-key", default: None },
    Declared { name: "known-hosts", default: None },
    Declared { name: "environment", default: None },
    Declared { name: "swap-id", default: None },
    Declared { name: "wait", default: Some("promoted") },
    Declared { name: "force", default: Some("false") },
    Declared { name: "github-token", default: Some("${{ github.token }}") },
];

/// Path of the configuration when none is given.
pub const DEFAULT_CONFIG: &str = "model-swap.yaml";

/// `with: entrypoint` and `with: args` are the runner's own and reach the container like inputs.
const OF_THE_RUNNER: [&str; 2] = ["entrypoint", "args"];

/// How alike two words must be (Jaro-Winkler, 0 to 1) for one to be offered for the other.
const ALIKE: f64 = 0.8;

/// What a user asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// What is to be done.
    pub command: CommandName,
    /// The configuration's path.
    pub config: PathBuf,
    /// Overrides the file's `service`.
    pub service: Option<ServiceName>,
    /// Overrides the file's `model`.
    pub model: Option<String>,
    /// Overrides the file's `host`.
    pub host: Option<String>,
    /// Private key, as pasted.
    pub ssh_key: Option<Secret>,
    /// Lines of a `known_hosts` file.
    pub known_hosts: Option<String>,
    /// GitHub's environment for the deployment; see [`Inputs::environment_for`].
    pub environment: Option<String>,
    /// The swap that a rollback undoes.
    pub swap_id: Option<SwapId>,
    /// How far the command is followed.
    pub wait: Wait,
    /// Whether an equal revision is swapped all the same.
    pub when: When,
    /// Token for deployments.
    pub github_token: Option<Secret>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandName {
    /// What would a swap do?
    Plan,
    /// Do it.
    Swap,
    /// Bring the retained replica back.
    Rollback,
    /// What serves?
    Status,
    /// The candidate's log.
    Logs,
}

/// An input that cannot be used. Never holds a secret's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct InputProblem {
    /// The input's name.
    pub input: String,
    /// Its value, unless it is a secret or the name itself is wrong.
    pub value: Option<String>,
    /// What is accepted, in words.
    pub accepted: String,
    /// What was probably meant.
    pub meant: Option<&'static str>,
}

impl CommandName {
    /// Every command.
    pub const ALL: [Self; 5] = [Self::Plan, Self::Swap, Self::Rollback, Self::Status, Self::Logs];

    /// The command as a user writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Swap => "swap",
            Self::Rollback => "rollback",
            Self::Status => "status",
            Self::Logs => "logs",
        }
    }
}

impl fmt::Display for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Inputs {
    /// Reads the inputs of an environment in the runner's form.
    ///
    /// # Errors
    /// Every problem at once, in the order of [`INPUTS`].
    pub fn from_env(env: &BTreeMap<String, String>) -> Result<Self, Vec<InputProblem>> {
        let mut reader = Reader { env, problems: unknown_names(env) };
        let commands = CommandName::ALL.map(|command| (command.as_str(), command));
        let inputs = Self {
            command: reader.choice("command", &commands).unwrap_or(CommandName::Swap),
            config: reader.text("config").unwrap_or_else(|| DEFAULT_CONFIG.to_owned()).into(),
            service: reader.name("service"),
            model: reader.text("model"),
            host: reader.text("host"),
            ssh_key: reader.raw("ssh-key").map(Secret::new),
            known_hosts: reader.raw("known-hosts").map(str::to_owned),
            environment: reader.text("environment"),
            swap_id: reader.name("swap-id"),
            wait: reader
                .choice("wait", &[("promoted", Wait::Promoted), ("retired", Wait::Retired)])
                .unwrap_or(Wait::Promoted),
            when: reader
                .choice("force", &[("false", When::Changed), ("true", When::Always)])
                .unwrap_or(When::Changed),
            github_token: reader.token("github-token"),
        };
        reader.problems.extend(inputs.contradiction());
        if reader.problems.is_empty() { Ok(inputs) } else { Err(reader.problems) }
    }

    /// The environment of the deployment: the one given, else the service's name.
    ///
    /// GitHub makes an environment that does not exist, without protection rules; a service's name at least says
    /// what is deployed, where GitHub's own default says `production` of everything.
    pub fn environment_for(&self, service: &ServiceName) -> String {
        self.environment.clone().unwrap_or_else(|| service.to_string())
    }

    /// A swap id beside any other command would look obeyed and not be.
    pub fn contradiction(&self) -> Option<InputProblem> {
        let id = self.swap_id.as_ref().filter(|_| self.command != CommandName::Rollback)?;
        Some(InputProblem {
            input: "swap-id".to_owned(),
            value: Some(id.to_string()),
            accepted: format!(
                "only the command rollback takes it, and the command is {}",
                self.command
            ),
            meant: None,
        })
    }
}

impl InputProblem {
    fn text(&self) -> String {
        let Self { input, value, accepted, .. } = self;
        match value {
            Some(value) => format!("input {input} is {value:?}: {accepted}"),
            None => format!("input {input}: {accepted}"),
        }
    }
}

impl Hint for InputProblem {
    fn hints(&self) -> Vec<String> {
        self.meant.iter().map(|meant| format!("did you mean `{meant}`?")).collect()
    }
}

/// One pass over the inputs that collects what is wrong with them.
struct Reader<'a> {
    env: &'a BTreeMap<String, String>,
    problems: Vec<InputProblem>,
}

impl<'a> Reader<'a> {
    /// As given; `None` if blank.
    fn raw(&self, name: &str) -> Option<&'a str> {
        let value = self.env.get(&format!("INPUT_{}", name.to_uppercase()))?;
        (!value.trim().is_empty()).then_some(value.as_str())
    }

    /// Without the blanks and newlines around it, which YAML's block texts bring.
    fn text(&self, name: &str) -> Option<String> {
        self.raw(name).map(|value| value.trim().to_owned())
    }

    fn choice<T: Copy>(&mut self, name: &str, choices: &[(&'static str, T)]) -> Option<T> {
        let value = self.text(name)?;
        let found = choices.iter().find(|(word, _)| *word == value).map(|(_, choice)| *choice);
        if found.is_none() {
            let words: Vec<&'static str> = choices.iter().map(|(word, _)| *word).collect();
            self.problems.push(InputProblem {
                input: name.to_owned(),
                meant: closest(&value, words.iter().copied()),
                value: Some(value),
                accepted: format!("accepted are {}", listed(&words)),
            });
        }
        found
    }

    fn name<T: std::str::FromStr<Err = InvalidName>>(&mut self, name: &str) -> Option<T> {
        let value = self.text(name)?;
        match value.parse() {
            Ok(parsed) => Some(parsed),
            Err(InvalidName { accepted, .. }) => {
                self.problems.push(InputProblem {
                    input: name.to_owned(),
                    value: Some(value),
                    accepted: format!("accepted is {accepted}"),
                    meant: None,
                });
                None
            }
        }
    }

    /// A token travels in a header, where nothing but visible ASCII may stand.
    fn token(&mut self, name: &str) -> Option<Secret> {
        let value = self.text(name)?;
        if value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(Secret::new(value));
        }
        self.problems.push(InputProblem {
            input: name.to_owned(),
            value: None,
            accepted: "it holds a blank or a character that no token has".to_owned(),
            meant: None,
        });
        None
    }
}

fn unknown_names(env: &BTreeMap<String, String>) -> Vec<InputProblem> {
    let names = || INPUTS.iter().map(|input| input.name);
    env.keys()
        .filter_map(|key| key.strip_prefix("INPUT_"))
        .map(str::to_lowercase)
        .filter(|name| {
            !names().any(|known| known == name) && !OF_THE_RUNNER.contains(&name.as_str())
        })
        .map(|name| InputProblem {
            meant: closest(&name, names()),
            accepted: format!(
                "there is no such input; there are {}",
                listed(&names().collect::<Vec<_>>())
            ),
            value: None,
            input: name,
        })
        .collect()
}

fn closest(word: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let word = word.to_lowercase();
    known
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

/// `a, b and c`.
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Inputs, Vec<InputProblem>> {
        let env = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Inputs::from_env(&env)
    }

    fn problems(pairs: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
        read(pairs)
            .unwrap_err()
            .iter()
            .map(|problem| (problem.to_string(), problem.hints()))
            .collect()
    }

    #[test]
    fn nothing_given_is_a_swap_by_the_file() {
        let nothing =
            read(&[("INPUT_MODEL", ""), ("INPUT_SSH-KEY", " \n"), ("PATH", "/bin")]).unwrap();
        assert_eq!(
            nothing,
            Inputs {
                command: CommandName::Swap,
                config: "model-swap.yaml".into(),
                service: None,
                model: None,
                host: None,
                ssh_key: None,
                known_hosts: None,
                environment: None,
                swap_id: None,
                wait: Wait::Promoted,
                when: When::Changed,
                github_token: None,
            }
        );
        assert_eq!(nothing.environment_for(&"chat".parse().unwrap()), "chat");
    }

    #[test]
    fn everything_given_is_read() {
        let inputs = read(&[
            ("INPUT_COMMAND", "rollback"),
            ("INPUT_CONFIG", "deploy/chat.yaml\n"),
            ("INPUT_SERVICE", "chat"),
            ("INPUT_MODEL", "Qwen/X"),
            ("INPUT_HOST", "deploy@gpu-1"),
            ("INPUT_SSH-KEY", "-----BEGIN\nx\n"),
            ("INPUT_KNOWN-HOSTS", "gpu-1 ssh-ed25519 AAAA\n"),
            ("INPUT_ENVIRONMENT", "production"),
            ("INPUT_SWAP-ID", "s-1"),
            ("INPUT_WAIT", "retired"),
            ("INPUT_FORCE", "true"),
            ("INPUT_GITHUB-TOKEN", "ghs_secret"),
            ("INPUT_ARGS", "x"),
        ])
        .unwrap();
        assert_eq!(inputs.command, CommandName::Rollback);
        assert_eq!(inputs.config, PathBuf::from("deploy/chat.yaml"));
        assert_eq!((inputs.wait, inputs.when), (Wait::Retired, When::Always));
        assert_eq!(inputs.ssh_key.as_ref().map(Secret::expose), Some("-----BEGIN\nx\n"));
        assert_eq!(inputs.swap_id.as_ref().map(SwapId::as_str), Some("s-1"));
        assert_eq!(inputs.environment_for(&"chat".parse().unwrap()), "production");
        let debug = format!("{inputs:?}");
        assert!(!debug.contains("ghs_secret") && !debug.contains("BEGIN"), "{debug}");
    }

    #[test]
    fn all_problems_come_at_once() {
        let expected = [
            (
                "input known_hosts: there is no such input; there are command, config, service, model, host, \
                 ssh-key, known-hosts, environment, swap-id, wait, force and github-token",
                Some("did you mean `known-hosts`?"),
            ),
            (
                "input command is \"Rolback\": accepted are plan, swap, rollback, status and logs",
                Some("did you mean `rollback`?"),
            ),
            (
                "input service is \"Chat GPT\": accepted is 1 to 40 of a-z, 0-9 and inner dashes, like chat or \
                 code-assist",
                None,
            ),
            ("input wait is \"drained\": accepted are promoted and retired", None),
            ("input force is \"yes\": accepted are false and true", None),
            ("input github-token: it holds a blank or a character that no token has", None),
        ];
        let found = problems(&[
            ("INPUT_KNOWN_HOSTS", "x"),
            ("INPUT_COMMAND", "Rolback"),
            ("INPUT_SERVICE", "Chat GPT"),
            ("INPUT_WAIT", "drained"),
            ("INPUT_FORCE", "yes"),
            ("INPUT_GITHUB-TOKEN", "ghs_a\nb"),
        ]);
        for ((text, hint), (found_text, found_hints)) in expected.iter().zip(&found) {
            assert_eq!(found_text, text);
            assert_eq!(found_hints.first().map(String::as_str), *hint, "{text}");
        }
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn a_swap_id_belongs_to_a_rollback() {
        let found = problems(&[("INPUT_SWAP-ID", "s-1")]);
        assert_eq!(
            found[0].0,
            "input swap-id is \"s-1\": only the command rollback takes it, and the command is swap"
        );
    }

    /// `action.yml` as GitHub reads it.
    #[derive(serde::Deserialize)]
    struct Action {
        inputs: BTreeMap<String, Entry>,
        outputs: BTreeMap<String, Entry>,
        runs: BTreeMap<String, String>,
    }

    #[derive(serde::Deserialize)]
    struct Entry {
        description: String,
        default: Option<String>,
    }

    #[test]
    fn the_action_declares_what_the_code_reads_and_writes() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml")).unwrap();
        let action: Action = serde_yaml::from_str(&text).unwrap();
        let declared: BTreeMap<&str, Option<&str>> = action
            .inputs
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.default.as_deref()))
            .collect();
        let known: BTreeMap<&str, Option<&str>> =
            INPUTS.iter().map(|input| (input.name, input.default)).collect();
        assert_eq!(declared, known);
        let outputs: Vec<&str> = action.outputs.keys().map(String::as_str).collect();
        let mut written = super::super::output::OUTPUTS.to_vec();
        written.sort_unstable();
        assert_eq!(outputs, written);
        for (name, entry) in action.inputs.iter().chain(&action.outputs) {
            assert!(entry.description.len() > 10, "{name} has no description");
        }
        assert_eq!(action.runs["using"], "docker");
    }

    #[test]
    fn the_declared_defaults_are_the_parsers() {
        let declared: Vec<(String, String)> = INPUTS
            .iter()
            .filter(|input| input.name != "github-token")
            .filter_map(|input| {
                Some((format!("INPUT_{}", input.name.to_uppercase()), input.default?.to_owned()))
            })
            .collect();
        assert_eq!(Inputs::from_env(&declared.into_iter().collect()), read(&[]));
    }
}
