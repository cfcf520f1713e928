//! What a user asks for, from the action's inputs or from a terminal.
//!
//! The runner hands an input over as `INPUT_` + its name in upper case; dashes stay, and one that is not given is
//! empty (runner, `Handler.cs`). Nothing is checked by GitHub: neither `required` nor a name that does not exist.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::model::digest::PlanDigest;
use crate::model::ids::{InvalidName, ServiceName, SwapId};
use crate::model::secret::Secret;
use crate::model::wire::{KeptWarm, Wait, When};

mod problem;
mod reader;

pub use problem::InputProblem;
use problem::listed;
use reader::{Reader, unknown_names};

/// An input as `action.yml` declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    /// What it is when it is not given.
    pub default: Option<&'static str>,
}

/// Every input of the action, in the order of `action.yml`.
pub const INPUTS: [Declared; 19] = [
    Declared { name: "command", default: Some("swap") },
    Declared { name: "config", default: Some(DEFAULT_CONFIG) },
    Declared { name: "service", default: None },
    Declared { name: "model", default: None },
    Declared { name: "host", default: None },
    Declared { name: "ssh-key", default: None },
    Declared { name: "known-hosts", default: None },
    Declared { name: "environment", default: None },
    Declared { name: "swap-id", default: None },
    Declared { name: "plan-digest", default: None },
    Declared { name: "to", default: None },
    Declared { name: "rollback", default: Some("false") },
    Declared { name: "rollback-workflow", default: None },
    Declared { name: "reconcile", default: Some("false") },
    Declared { name: "report", default: None },
    Declared { name: "wait", default: Some("promoted") },
    Declared { name: "lock-wait", default: Some("0s") },
    Declared { name: "force", default: Some("false") },
    Declared { name: "github-token", default: Some("${{ github.token }}") },
];

/// Path of the configuration when none is given.
pub const DEFAULT_CONFIG: &str = "model-swap.yaml";

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
    /// The files that both came from, as the options of a terminal; empty in a workflow.
    pub ssh_options: Vec<String>,
    /// GitHub's environment for the deployment; see [`Inputs::environment_for`].
    pub environment: Option<String>,
    /// The swap that a rollback undoes, that is to be aborted, or that has failed.
    pub swap_id: Option<SwapId>,
    /// The only plan that a swap may carry out.
    pub plan_digest: Option<Held>,
    /// The revision that a rollback goes back to, or the beginning of its digest.
    pub to: Option<String>,
    /// Whether a swap that has failed is rolled back at once.
    pub rollback: bool,
    /// The workflow that is started when a swap has failed: its file's name, or its number.
    pub rollback_workflow: Option<String>,
    /// Whether GitHub's deployments are made to say what serves.
    pub reconcile: bool,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// How far the command is followed.
    pub wait: Wait,
    /// How long another command's swap is waited for.
    pub lock_wait: Duration,
    /// Whether an equal revision is swapped all the same.
    pub when: When,
    /// What `uninstall` does with a replica that is still kept warm.
    pub kept: KeptWarm,
    /// What `init` is told, where no file tells it yet; from a terminal only.
    pub untold: Untold,
    /// Token for deployments.
    pub github_token: Option<Secret>,
}

/// Inputs of which some cannot be obeyed.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit<P> {
    /// Every problem, in order.
    pub problems: Vec<P>,
    /// What could be read, with the default in place of what could not: by it the configuration is found, whose problems are
    /// to be told at once with these.
    pub read: Box<Inputs>,
}

/// What a configuration would say, for `init`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Untold {
    /// Port of sshd.
    pub ssh_port: Option<u16>,
    /// Hosts to jump through.
    pub jump: Option<String>,
    /// How nginx is called; empty: whichever run.
    pub nginx: Vec<String>,
    /// The upstream that is meant.
    pub upstream: Option<String>,
    /// The folder of state and journals.
    pub state_dir: Option<PathBuf>,
}

/// The plan that a swap is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// This one.
    To(PlanDigest),
    /// The one on the pull request that the run's commit came from.
    ToPullRequest,
}

/// How the plan of the pull request is asked for.
const FROM_PR: &str = "from-pr";

impl FromStr for Held {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        match value {
            FROM_PR => Ok(Self::ToPullRequest),
            digest => digest.parse().map(Self::To).map_err(|error: InvalidName| InvalidName {
                accepted: "what `plan` gave as its output plan-digest, like p-4f1c02a9b3d7-90d1b25c7f03a8e6; or from-pr",
                ..error
            }),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(digest) => digest.fmt(f),
            Self::ToPullRequest => f.write_str(FROM_PR),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandName {
    /// What would a configuration for this server be?
    Init,
    /// What would a swap do?
    Plan,
    /// Do it.
    Swap,
    /// Bring the retained replica back.
    Rollback,
    /// Give the swap up that is under way.
    Abort,
    /// Say that a swap has failed after all, by what was found out since it was promoted.
    Fail,
    /// Bring a swap to its end that is stuck, or whose agent died.
    Repair,
    /// What serves?
    Status,
    /// The candidate's log.
    Logs,
    /// What could a rollback go back to?
    History,
    /// Is everything there that a swap needs?
    Doctor,
    /// Remove everything of the service but what serves; from a terminal only.
    Uninstall,
}

impl CommandName {
    /// Every command that a step of a workflow may have.
    pub const ALL: [Self; 11] = [
        Self::Init,
        Self::Plan,
        Self::Swap,
        Self::Rollback,
        Self::Abort,
        Self::Fail,
        Self::Repair,
        Self::Status,
        Self::Logs,
        Self::History,
        Self::Doctor,
    ];

    /// Whether it only asks, and changes nothing.
    pub fn only_asks(self) -> bool {
        !matches!(
            self,
            Self::Swap | Self::Rollback | Self::Abort | Self::Fail | Self::Repair | Self::Uninstall
        )
    }

    /// The command as a user writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Plan => "plan",
            Self::Swap => "swap",
            Self::Rollback => "rollback",
            Self::Abort => "abort",
            Self::Fail => "fail",
            Self::Repair => "repair",
            Self::Status => "status",
            Self::Logs => "logs",
            Self::History => "history",
            Self::Doctor => "doctor",
            Self::Uninstall => "uninstall",
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
    pub fn from_env(env: &BTreeMap<String, String>) -> Result<Self, Unfit<InputProblem>> {
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
            ssh_options: Vec::new(),
            environment: reader.text("environment"),
            swap_id: reader.swap("swap-id"),
            plan_digest: reader.name("plan-digest"),
            to: reader.text("to"),
            rollback: reader.yes("rollback"),
            rollback_workflow: reader.workflow("rollback-workflow"),
            reconcile: reader.yes("reconcile"),
            report: reader.text("report").map(PathBuf::from),
            wait: reader
                .choice("wait", &[("promoted", Wait::Promoted), ("retired", Wait::Retired)])
                .unwrap_or(Wait::Promoted),
            lock_wait: reader.duration("lock-wait"),
            when: reader
                .choice("force", &[("false", When::Changed), ("true", When::Always)])
                .unwrap_or(When::Changed),
            kept: KeptWarm::Refuse,
            untold: Untold::default(),
            github_token: reader.token("github-token"),
        };
        reader.problems.extend(inputs.contradictions());
        match reader.problems {
            none if none.is_empty() => Ok(inputs),
            problems => Err(Unfit { problems, read: Box::new(inputs) }),
        }
    }

    /// The environment of the deployment: the one given, else the service's name.
    ///
    /// GitHub makes an environment that does not exist, without protection rules; a service's name at least says
    /// what is deployed, where GitHub's own default says `production` of everything.
    pub fn environment_for(&self, service: &ServiceName) -> String {
        self.environment.clone().unwrap_or_else(|| service.to_string())
    }

    /// What belongs to one command would look obeyed beside any other, and not be.
    pub fn contradictions(&self) -> Vec<InputProblem> {
        let id = self.swap_id.as_ref().map(ToString::to_string);
        let digest = self.plan_digest.as_ref().map(ToString::to_string);
        let yes = |asked: bool| asked.then(|| "true".to_owned());
        let tied: [(_, _, &[CommandName]); 6] = [
            ("swap-id", id, &[CommandName::Rollback, CommandName::Abort, CommandName::Fail]),
            ("to", self.to.clone(), &[CommandName::Rollback]),
            ("plan-digest", digest, &[CommandName::Swap]),
            ("rollback", yes(self.rollback), &[CommandName::Fail]),
            ("rollback-workflow", self.rollback_workflow.clone(), &[CommandName::Fail]),
            ("reconcile", yes(self.reconcile), &[CommandName::Status]),
        ];
        let stray = tied
            .into_iter()
            .filter(|(_, value, owners)| value.is_some() && !owners.contains(&self.command));
        let mut problems: Vec<_> = stray
            .map(|(input, value, owners)| {
                let owners = listed(&owners.iter().map(|owner| owner.as_str()).collect::<Vec<_>>());
                let accepted =
                    format!("it belongs to {owners} alone, and the command is {}", self.command);
                InputProblem { input: input.to_owned(), value, accepted, meant: None }
            })
            .collect();
        if self.command == CommandName::Fail && self.swap_id.is_none() {
            problems.push(InputProblem {
                input: "swap-id".to_owned(),
                value: None,
                accepted:
                    "the command fail needs it: the output swap-id of the swap that has failed"
                        .to_owned(),
                meant: None,
            });
        }
        problems
    }
}

#[cfg(test)]
mod tests;
