//! The model-swap binary: runner and agent in one.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use model_swap::agent::lockdown::{self, Lockdown, Piece};
use model_swap::agent::{self, Access};
use model_swap::cli::{Cli, Part, ServerPart, Verb};
use model_swap::entry;
use model_swap::github::inputs::{InputProblem, Inputs, Unfit};
use model_swap::github::run::WorkflowRun;
use model_swap::host::process;
use model_swap::model::failure::{Failure, Hint};
use model_swap::model::outcome::Exit;
use model_swap::pid1;
use model_swap::runner::{self, Setting, Surface, Voice};

/// The name of the stage after the step; `action.yml` and the image have it too.
const AFTERWARDS: &str = "model-swap-afterwards";

fn main() -> ExitCode {
    // A container action is called without arguments: its inputs are in the environment.
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let is_action = std::env::args_os().len() == 1 && env.contains_key("GITHUB_ACTIONS");
    let verb = (!is_action)
        .then(|| Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit()).command);
    let ended = match verb {
        _ if pid1::is_first() => entry::attend().map_err(Into::into).and_then(|code| Ok(code?)),
        None if is_afterwards() => afterwards(env),
        Some(Verb::Agent { services, part: None }) => {
            entry::agent_session(Access::Listed(services))
                .map(|()| ExitCode::SUCCESS)
                .map_err(Into::into)
        }
        Some(Verb::Agent { part: Some(part), .. }) => serve(part),
        Some(Verb::Server { part: ServerPart::Install { user, key, root, apply } }) => {
            install(&Lockdown { user, key, root }, if apply { Mode::Apply } else { Mode::Show })
        }
        verb => run(verb, env),
    };
    ended.unwrap_or_else(|error| {
        // Only what is a bug comes so far: everything else has an exit of its own.
        let _ = writeln!(std::io::stderr(), "model-swap: {error:#}");
        ExitCode::from(Exit::Bug.code())
    })
}

fn run(verb: Option<Verb>, env: BTreeMap<String, String>) -> anyhow::Result<ExitCode> {
    let (surface, read) = match verb {
        None => {
            let failures = |unfit: Unfit<InputProblem>| {
                (*unfit.read, unfit.problems.iter().map(Hint::to_failure).collect())
            };
            let read = Inputs::from_env(&env);
            (Surface::Workflow, read.map_or_else(failures, |inputs| (inputs, Vec::new())))
        }
        Some(verb) => {
            let surface = verb.surface();
            let read = match verb.inputs(&env) {
                Ok(inputs) => (inputs.expect("the server's side is served elsewhere"), Vec::new()),
                Err(unfit) => (*unfit.read, unfit.problems),
            };
            (surface, read)
        }
    };
    let (inputs, failures): (Inputs, Vec<Failure>) = read;
    let mut voice = Voice::new(surface, &env);
    let run = WorkflowRun::from_env(&env);
    let setting = Setting { surface, inputs, run, env };
    let exit = match failures.is_empty() {
        true => entry::run(setting, &mut voice)?,
        false => runner::refuse(&setting, failures, &mut voice),
    };
    Ok(ExitCode::from(exit.code()))
}

/// Whether what is needed is only shown.
enum Mode {
    Show,
    Apply,
}

/// Ties a key to the agent of this server, or shows how.
fn install(lockdown: &Lockdown, mode: Mode) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    let done = lockdown.pieces().and_then(|pieces| match mode {
        Mode::Show => Ok(pieces),
        Mode::Apply => pieces.iter().try_for_each(Piece::apply).map(|()| pieces),
    });
    let pieces = match done {
        Ok(pieces) => pieces,
        Err(error) => {
            writeln!(std::io::stderr(), "error: {}", error.to_failure())?;
            for hint in error.hints() {
                writeln!(std::io::stderr(), "  hint: {hint}")?;
            }
            return Ok(ExitCode::from(Exit::Environment.code()));
        }
    };
    let (said, next) = match mode {
        Mode::Show => ("needed", "do it with --apply, as root; then"),
        Mode::Apply => ("there", "now"),
    };
    for piece in pieces {
        writeln!(out, "{said}: {piece}")?;
    }
    writeln!(
        out,
        "{next} list each service in {}/<service>.yaml: its models, revisions and commands, as docs/forced-command.md has it",
        lockdown::SERVICES
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Whether this is the stage after the step: started by another name, with the same inputs.
fn is_afterwards() -> bool {
    let name = std::env::args_os().next().map(std::path::PathBuf::from);
    name.is_some_and(|name| name.ends_with(AFTERWARDS))
}

fn afterwards(env: BTreeMap<String, String>) -> anyhow::Result<ExitCode> {
    // What is wrong with the inputs the step has said.
    let Ok(inputs) = Inputs::from_env(&env) else { return Ok(ExitCode::SUCCESS) };
    let run = WorkflowRun::from_env(&env);
    let surface = Surface::Workflow;
    let mut voice = Voice::new(surface, &env);
    let setting = Setting { surface, inputs, run, env };
    let exit = entry::afterwards(setting, &mut voice)?;
    Ok(ExitCode::from(exit.code()))
}

fn serve(part: Part) -> anyhow::Result<ExitCode> {
    match part {
        Part::Launch => return Ok(process::launch_main()),
        Part::Session => entry::agent_session(Access::Full)?,
        Part::Run { services } => {
            entry::agent_run(services.map_or(Access::Full, Access::Listed))?;
        }
        Part::Resume { state_dir, service } => entry::agent_resume(&state_dir, &service)?,
        Part::Install { digest } => {
            agent::install(&digest)?;
            writeln!(std::io::stdout(), "installed")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
