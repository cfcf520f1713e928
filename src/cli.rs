//! F5: the command line. From a terminal the same inputs as the action's, as options.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};

use crate::agent::lockdown;
use crate::github::inputs::{CommandName, DEFAULT_CONFIG, Held, Inputs, Unfit, Untold};
use crate::model::failure::Failure;
use crate::model::ids::{ServiceName, SwapId};
use crate::model::target::check_jump;
use crate::model::wire::{KeptWarm, Wait, When};
use crate::runner::Surface;

/// Where root lists the services that a key with a forced command may ask about.
const SERVICES: &str = lockdown::SERVICES;

/// Where a stranger begins.
const BEGINNING: &str = "\
For the first time: `model-swap init --host USER@SERVER` looks at a server and writes model-swap.yaml, `model-swap doctor`
checks all that a swap needs, and `model-swap plan` shows what a swap would do. None of them changes what serves.";

/// What comes after `init`.
const FIRST_STEPS: &str = "\
Then: `model-swap doctor` checks what a swap needs, `model-swap plan` shows what one would do, `model-swap swap` does it.
The file is the one that --config names and must not be there yet; `--config -` prints it.";

/// How GitHub is told of anything from here; a step of a workflow has both.
const TO_GITHUB: &str =
    "To tell GitHub from a terminal, set GITHUB_TOKEN, and GITHUB_REPOSITORY to owner/name.";

/// Swaps the LLM behind a production API without dropping, cutting or truncating a request.
#[derive(Debug, Parser)]
#[command(name = "model-swap", version, arg_required_else_help = true, after_help = BEGINNING)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Look at a server and write a first configuration for it; leaves nothing there but this program.
    #[command(after_help = FIRST_STEPS)]
    Init {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// Port of the server's sshd; without it the user's own ssh configuration applies, or 22.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        ssh_port: Option<u16>,
        /// Hosts to jump through, as `[user@]host[:port]`, several with commas.
        #[arg(long, value_parser = jump)]
        jump: Option<String>,
        /// How nginx is called there, like `docker exec edge nginx`; without it every nginx that runs is looked at.
        #[arg(long, value_parser = nginx)]
        nginx: Option<Words>,
        /// The upstream that is meant, where there are several.
        #[arg(long)]
        upstream: Option<String>,
        /// The folder for state there, if it is to be another one than usual.
        #[arg(long)]
        state_dir: Option<PathBuf>,
    },
    /// Show what a swap would do; change nothing.
    Plan {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// Plan a swap even if nothing has changed.
        #[arg(long)]
        force: bool,
    },
    /// Bring a new model into service.
    Swap {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// Swap even if nothing has changed.
        #[arg(long)]
        force: bool,
        /// The only plan that may be carried out, by the digest that `plan` shows; or `from-pr`.
        #[arg(long)]
        plan_digest: Option<Held>,
        /// When to return: once the new model serves (`promoted`), or once the old one is stopped as well (`retired`).
        #[arg(long, default_value = "promoted", value_parser = wait)]
        wait: Wait,
        /// How long to wait while another command works on the service, like 15m; with 0s it ends at once with exit code 3.
        #[arg(long, default_value = "0s", value_parser = duration)]
        lock_wait: Duration,
    },
    /// Bring the previous model back: at once while it is still warm, else it is started again.
    Rollback {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// The swap to undo, by its id as `status` and `history` show it. Only one whose result serves is undone, and one that
        /// waits for its turn is given up; without this it is the one whose result serves.
        #[arg(long)]
        swap_id: Option<SwapId>,
        /// The revision to go back to, by its digest as `history` lists it, or the beginning of that; without this, what
        /// served before.
        #[arg(long)]
        to: Option<String>,
        /// When to return: once the model that comes back serves (`promoted`), or once the other is stopped too (`retired`).
        #[arg(long, default_value = "promoted", value_parser = wait)]
        wait: Wait,
        /// How long to wait while another command works on the service, like 15m; with 0s it ends at once with exit code 3.
        #[arg(long, default_value = "0s", value_parser = duration)]
        lock_wait: Duration,
    },
    /// Give up the swap that is under way, or what waits for its turn: what served before serves again.
    Abort {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// The swap that is meant, and no other; the one that is under way if not given.
        #[arg(long)]
        swap_id: Option<SwapId>,
    },
    /// Say that a swap has failed after all: its GitHub deployment becomes a failure.
    #[command(after_help = TO_GITHUB)]
    Fail {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// The swap that has failed, by its id as `status` and `history` show it.
        #[arg(long)]
        swap_id: SwapId,
        /// Roll it back as well.
        #[arg(long)]
        rollback: bool,
        /// Start this workflow of the repository, by the name of its file, to roll it back.
        #[arg(long)]
        rollback_workflow: Option<String>,
    },
    /// Bring a swap to its end that is stuck, or that nobody works on any more, and say what was found and done.
    Repair {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// How long to wait while another command works on the service, like 15m; with 0s it ends at once with exit code 3.
        #[arg(long, default_value = "0s", value_parser = duration)]
        lock_wait: Duration,
    },
    /// Show what serves, what is warm and who is at work.
    #[command(after_help = TO_GITHUB)]
    Status {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// Make GitHub's deployments say what serves.
        #[arg(long)]
        reconcile: bool,
    },
    /// Show the log of the replica that was started last.
    Logs {
        /// Options.
        #[command(flatten)]
        common: Common,
    },
    /// Show the latest swaps, and what a rollback could go back to.
    History {
        /// Options.
        #[command(flatten)]
        common: Common,
    },
    /// Check everything that a swap needs, here and on the server, and say how to mend it; changes nothing.
    Doctor {
        /// Options.
        #[command(flatten)]
        common: Common,
    },
    /// Give the server back: what serves runs on, and everything else of the service goes, records and binaries too.
    Uninstall {
        /// Options.
        #[command(flatten)]
        common: Common,
        /// Drain and stop a model that is still kept warm, instead of refusing.
        #[arg(long)]
        retire_now: bool,
    },
    /// Set this server up.
    Server {
        /// What to do.
        #[command(subcommand)]
        part: ServerPart,
    },
    /// The server's side; started by model-swap itself, or by sshd as the forced command of a key.
    #[command(hide = true)]
    Agent {
        /// Without a part: answers one request, within what the files of this folder allow.
        #[arg(long, default_value = SERVICES)]
        services: PathBuf,
        /// Which part.
        #[command(subcommand)]
        part: Option<Part>,
    },
}

/// What is done on the server by its owner.
#[derive(Debug, Subcommand)]
pub enum ServerPart {
    /// Tie a key to the agent, so that it can swap and nothing else. Shows what is needed; changes nothing unless told.
    Install {
        /// The user that the workflow logs in as.
        #[arg(long)]
        user: String,
        /// The public key: the line of its .pub file.
        #[arg(long)]
        key: String,
        /// Where the server's files are, if not at /.
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// Do what is needed, as root, instead of only showing it.
        #[arg(long)]
        apply: bool,
    },
}

/// Parts of the server's side.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Answers one request from stdin.
    Session,
    /// Works on one request from stdin, detached.
    Run {
        /// Within what the files of this folder allow; without it, whatever is asked.
        #[arg(long)]
        services: Option<PathBuf>,
    },
    /// Goes on with what is unfinished or kept warm, as systemd's unit.
    Resume {
        /// The folder of state and journals.
        #[arg(long)]
        state_dir: PathBuf,
        /// The service.
        #[arg(long)]
        service: ServiceName,
    },
    /// Becomes a replica.
    Launch,
    /// Checks this binary and puts it in its place.
    Install {
        /// SHA-256 in hex.
        digest: String,
    },
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// The file with the configuration.
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Overrides the file's `service`.
    #[arg(long)]
    service: Option<ServiceName>,
    /// Overrides the file's `model`.
    #[arg(long)]
    model: Option<String>,
    /// Overrides the file's `host`: user@host or `local`.
    #[arg(long)]
    host: Option<String>,
    /// File with the private key; without it the user's own ssh configuration applies.
    #[arg(long)]
    ssh_key: Option<PathBuf>,
    /// File with the pinned host keys; without it the user's own.
    #[arg(long)]
    known_hosts: Option<PathBuf>,
    /// GitHub environment of the deployments; the service's name if not given.
    #[arg(long)]
    environment: Option<String>,
    /// Write a report of the swap, one page of HTML, to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Answer a program: one JSON object a line, an event each; warnings and errors go to standard error as well.
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Reads the words of the command line. Help, and what is wrong, is for [`clap::Error::exit`] to print.
    ///
    /// # Errors
    /// If they are no command.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(words).map_err(|mut error| {
            let stray = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(word)) if !word.starts_with('-') => word.clone(),
                _ => return error,
            };
            if error.kind() == ErrorKind::UnknownArgument {
                let tip = format!("a configuration is given as an option: --config {stray}");
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
            }
            error
        })
    }
}

impl Verb {
    /// Who its answer is for.
    pub fn surface(&self) -> Surface {
        let (Self::Init { common, .. }
        | Self::Plan { common, .. }
        | Self::Swap { common, .. }
        | Self::Rollback { common, .. }
        | Self::Abort { common, .. }
        | Self::Fail { common, .. }
        | Self::Status { common, .. }
        | Self::Logs { common }
        | Self::Doctor { common, .. }
        | Self::Repair { common, .. }
        | Self::Uninstall { common, .. }
        | Self::History { common }) = self
        else {
            return Surface::Terminal;
        };
        if common.json { Surface::Program } else { Surface::Terminal }
    }

    /// The inputs that the options come to; `None` for the server's side.
    ///
    /// # Errors
    /// If files that are named cannot be read: then what was read has the options of every command alone.
    pub fn inputs(self, env: &BTreeMap<String, String>) -> Result<Option<Inputs>, Unfit<Failure>> {
        let mut inputs = match self {
            Self::Init { common, ssh_port, jump, nginx, upstream, state_dir } => {
                let nginx = nginx.unwrap_or_default().0;
                let untold = Untold { ssh_port, jump, nginx, upstream, state_dir };
                Inputs { untold, ..common.inputs(CommandName::Init)? }
            }
            Self::Plan { common, force } => {
                Inputs { when: force.into(), ..common.inputs(CommandName::Plan)? }
            }
            Self::Swap { common, force, plan_digest, wait, lock_wait } => {
                let inputs = common.inputs(CommandName::Swap)?;
                Inputs { when: force.into(), plan_digest, wait, lock_wait, ..inputs }
            }
            Self::Rollback { common, swap_id, to, wait, lock_wait } => {
                let inputs = common.inputs(CommandName::Rollback)?;
                Inputs { swap_id, to, wait, lock_wait, ..inputs }
            }
            Self::Abort { common, swap_id } => {
                Inputs { swap_id, ..common.inputs(CommandName::Abort)? }
            }
            Self::Fail { common, swap_id, rollback, rollback_workflow } => {
                let inputs = common.inputs(CommandName::Fail)?;
                Inputs { swap_id: Some(swap_id), rollback, rollback_workflow, ..inputs }
            }
            Self::Status { common, reconcile } => {
                Inputs { reconcile, ..common.inputs(CommandName::Status)? }
            }
            Self::Repair { common, lock_wait } => {
                Inputs { lock_wait, ..common.inputs(CommandName::Repair)? }
            }
            Self::Logs { common } => common.inputs(CommandName::Logs)?,
            Self::History { common } => common.inputs(CommandName::History)?,
            Self::Doctor { common } => common.inputs(CommandName::Doctor)?,
            Self::Uninstall { common, retire_now } => {
                Inputs { kept: retire_now.into(), ..common.inputs(CommandName::Uninstall)? }
            }
            Self::Agent { .. } | Self::Server { .. } => return Ok(None),
        };
        let token = env.get("GITHUB_TOKEN").filter(|token| !token.is_empty());
        inputs.github_token = token.map(|token| token.clone().into());
        Ok(Some(inputs))
    }
}

impl Common {
    fn inputs(self, command: CommandName) -> Result<Inputs, Unfit<Failure>> {
        let mut problems = Vec::new();
        let mut read = |option, path: Option<PathBuf>, how: &str| -> Option<String> {
            let path = path?;
            let failed = |error: std::io::Error| {
                let failure = Failure {
                    causes: vec![error.to_string()],
                    ..Failure::new(format!("cannot read {option} {}", path.display()))
                };
                problems.push(failure.hint(format!(
                    "give {how}; without {option} your own ssh configuration applies"
                )));
            };
            std::fs::read_to_string(&path).map_err(failed).ok()
        };
        let files = [("--ssh-key", &self.ssh_key), ("--known-hosts", &self.known_hosts)];
        let ssh_options = files
            .into_iter()
            .filter_map(|(option, file)| {
                Some([option.to_owned(), file.as_ref()?.display().to_string()])
            })
            .flatten()
            .collect();
        let inputs = Inputs {
            command,
            ssh_options,
            config: self.config,
            service: self.service,
            model: self.model,
            host: self.host,
            ssh_key: read("--ssh-key", self.ssh_key, "the file with the private key")
                .map(Into::into),
            known_hosts: read(
                "--known-hosts",
                self.known_hosts,
                "a file with lines of known_hosts",
            ),
            environment: self.environment,
            swap_id: None,
            plan_digest: None,
            to: None,
            rollback: false,
            rollback_workflow: None,
            reconcile: false,
            report: self.report,
            lock_wait: Duration::ZERO,
            wait: Wait::Promoted,
            when: When::Changed,
            kept: KeptWarm::Refuse,
            untold: Untold::default(),
            github_token: None,
        };
        match problems {
            none if none.is_empty() => Ok(inputs),
            problems => Err(Unfit { problems, read: Box::new(inputs) }),
        }
    }
}

/// A command line, split as a shell would.
#[derive(Debug, Clone, Default)]
pub struct Words(Vec<String>);

fn nginx(value: &str) -> Result<Words, String> {
    match shell_words::split(value) {
        Ok(words) if !words.is_empty() => Ok(Words(words)),
        _ => Err(format!("{value:?} is no command, like nginx or \"docker exec edge nginx\"")),
    }
}

fn jump(value: &str) -> Result<String, String> {
    check_jump(value).map(|()| value.to_owned()).map_err(|error| error.to_string())
}

fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value)
        .map_err(|_| format!("{value:?} is no duration with its unit, like 90s or 15m"))
}

fn wait(value: &str) -> Result<Wait, String> {
    match value {
        "promoted" => Ok(Wait::Promoted),
        "retired" => Ok(Wait::Retired),
        other => Err(format!("{other:?} is neither promoted nor retired")),
    }
}
