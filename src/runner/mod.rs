//! F5: the runner's side, the same for a workflow step and a terminal: inputs → remote → events → render → outputs.

mod afterwards;
mod api;
mod approved;
mod cancel;
mod comment;
mod doctor;
mod fail;
mod follow;
mod init;
mod orphan;
mod page;
mod patience;
mod reconcile;
mod report;
mod request;
mod stop;
mod tint;
mod trust;
mod typed;
mod urgent;
mod verify;
mod voice;

pub use afterwards::afterwards;
pub use voice::{Surface, Voice};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{self, Config, Overrides};
use crate::github::inputs::{CommandName, Held, Inputs};
use crate::github::output::{self, Outputs};
use crate::github::pull_request::PullRequest;
use crate::github::run::WorkflowRun;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ServiceName, SwapId};
use crate::model::outcome::{Exit, Outcome};
use crate::model::state::StatusReport;
use crate::model::target::{HostAddr, Target};
use crate::model::wire::Request;
use crate::remote::agent::Install;
use crate::remote::build::Build;
use crate::remote::error::RemoteError;
use crate::remote::session::Credentials;
use crate::render::{self, Line, failure, summary};
use crate::swap::outline;
use follow::Followed;
use report::Reporter;
use typed::Typed;

/// Where GitHub's runner mounts the workspace into the container of an action, and nowhere else.
const ACTION_WORKSPACE: &str = "/github/workspace";

/// Everything a command needs to know of where it runs.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Who is spoken to.
    pub surface: Surface,
    /// What is asked for.
    pub inputs: Inputs,
    /// The workflow run, as far as there is one.
    pub run: WorkflowRun,
    /// The environment, for secrets by name.
    pub env: BTreeMap<String, String>,
}

impl Setting {
    /// The same for another command, as one that is made of several asks.
    fn asking(&self, command: CommandName) -> Self {
        let mut setting = self.clone();
        setting.inputs.command = command;
        setting
    }
}

/// Why a command went no further.
struct Stopped {
    failures: Vec<Failure>,
    exit: Exit,
}

impl Stopped {
    fn input(failures: Vec<Failure>) -> Self {
        Self { failures, exit: Exit::Input }
    }

    fn remote(error: &RemoteError) -> Self {
        let exit = if error.is_input() { Exit::Input } else { Exit::Environment };
        Self { failures: vec![error.to_failure()], exit }
    }
}

/// Runs one command to its end and says how the process should exit.
pub async fn run(setting: Setting, voice: &mut Voice) -> Exit {
    voice.typed = Typed::of(&setting.inputs);
    let ended = command(&setting, voice).await;
    if !matches!(&ended, Ok(told) if told.is_open) {
        afterwards::note_told(&setting, voice);
    }
    match ended {
        Ok(told) => told.exit,
        Err(Stopped { failures, exit }) => {
            refusal(&setting.run, &failures, voice);
            exit
        }
    }
}

/// Says what is wrong with the inputs, and with the configuration at once. Nothing else is looked at.
pub fn refuse(setting: &Setting, mut failures: Vec<Failure>, voice: &mut Voice) -> Exit {
    voice.typed = Typed::of(&setting.inputs);
    if setting.inputs.command != CommandName::Init
        && let Err(stopped) = load(setting)
    {
        failures.extend(stopped.failures);
    }
    refusal(&setting.run, &failures, voice);
    Exit::Input
}

fn refusal(run: &WorkflowRun, failures: &[Failure], voice: &mut Voice) {
    voice.refuse(failures);
    voice.say(failure::refusal(failures));
    summarise(run, &summary::of_refusal(failures), voice);
}

async fn command(setting: &Setting, voice: &mut Voice) -> Result<Told, Stopped> {
    let pull_request = trust::pull_request(setting)?;
    if setting.inputs.command == CommandName::Init {
        return init::init(setting, voice).await.map(Told::of);
    }
    let (service, told) = match load(setting) {
        Ok(config) => {
            let told = carry_out(setting, (&config, pull_request.as_ref()), voice).await;
            (Some(config.spec.service), told)
        }
        Err(stopped) => (named_service(setting), Err(stopped)),
    };
    if let (Ok(Told { status: Some(report), .. }), true) = (&told, setting.inputs.reconcile) {
        reconcile::reconcile(setting, report, voice).await?;
    }
    let commented = pull_request.filter(|_| setting.inputs.command == CommandName::Plan);
    let number = commented.and_then(|pull_request| pull_request.number);
    if let (Some(number), Some(service)) = (number, &service) {
        // A plan that has become impossible must not leave the last one standing.
        let (markdown, digest) = match &told {
            Ok(told) => (told.markdown.clone(), told.plan_digest.clone()),
            Err(stopped) => (summary::of_refusal(&stopped.failures), None),
        };
        comment::keep(setting, number, (service, digest), &markdown, voice).await;
    }
    told
}

async fn carry_out(
    setting: &Setting,
    (config, pull_request): (&Config, Option<&PullRequest>),
    voice: &mut Voice,
) -> Result<Told, Stopped> {
    match (trust::alone(setting, &config.target, pull_request), setting.inputs.command) {
        (Some(why), _) => Ok(plan_alone(setting, config, &why, voice)),
        (None, CommandName::Fail) => fail::fail(setting, config, voice).await,
        (None, CommandName::Doctor) => doctor::doctor(setting, config, voice).await,
        (None, CommandName::Swap) => match &setting.inputs.plan_digest {
            Some(Held::ToPullRequest) => approved::swap(setting, config, voice).await,
            Some(Held::To(digest)) => approved::swap_to(digest, setting, config, voice).await,
            None => ask(setting, config, voice).await,
        },
        _ => ask(setting, config, voice).await,
    }
}

/// What a command came to, and what was said of it.
struct Told {
    exit: Exit,
    /// Whether a swap may have begun and nobody has said how it ended.
    is_open: bool,
    /// Whether its outputs name a swap.
    names_swap: bool,
    markdown: String,
    plan_digest: Option<String>,
    status: Option<StatusReport>,
}

impl Told {
    fn of(exit: Exit) -> Self {
        let markdown = String::new();
        Self { exit, is_open: false, names_swap: false, markdown, plan_digest: None, status: None }
    }
}

/// Has the server do it, or answer it.
async fn ask(setting: &Setting, config: &Config, voice: &mut Voice) -> Result<Told, Stopped> {
    let request = with_access(setting, &config.target, request::of(setting, config))?;
    let Some(swap) = request.command.begins().cloned() else {
        return converse(setting, (config, request), None, voice).await;
    };
    name_swap(setting, &swap, voice);
    let told = converse(setting, (config, request), None, voice).await;
    if !told.as_ref().is_ok_and(|told| told.is_open || told.names_swap) {
        withdraw_swap(setting, voice);
    }
    told
}

/// Leaves word of the swap that is about to be asked for, or is followed in its place: of a step that is killed neither its later stage
/// nor the rest of its workflow knows more.
fn name_swap(setting: &Setting, swap: &SwapId, voice: &mut Voice) {
    afterwards::note_swap(setting, swap, voice);
    put_out(setting, &Outputs { swap_id: Some(swap.clone()), ..Outputs::default() }, voice);
}

/// No swap has begun: a workflow has nothing to roll back.
fn withdraw_swap(setting: &Setting, voice: &mut Voice) {
    if let Some(path) = &setting.run.output
        && let Err(error) = output::withdraw_swap(path)
    {
        voice.say([Line::Warning(error.to_failure().to_string())]);
    }
}

/// The request, if there is what a connection needs to send it; or all that is missing at once.
fn with_access(
    setting: &Setting,
    target: &Target,
    request: Result<Request, Stopped>,
) -> Result<Request, Stopped> {
    let Some(missing) = trust::missing(setting, target) else { return request };
    let mut stopped = request.err().unwrap_or_else(|| Stopped::input(Vec::new()));
    stopped.failures.push(missing);
    Err(stopped)
}

/// Sends a request and says how it is answered, for as long as that takes or up to a limit.
async fn converse(
    setting: &Setting,
    (config, request): (&Config, Request),
    limit: Option<Duration>,
    voice: &mut Voice,
) -> Result<Told, Stopped> {
    let (credentials, install) = (credentials(setting), install(config)?);
    let customer = verify::Customer::of(setting, config, &request.command)?;
    let line = follow::Line { setting, target: &config.target, credentials, install, customer };
    let mut reporter = Reporter::new(setting, &config.spec.service);
    let mut followed = Followed::of(setting.inputs.command);
    let following = follow::follow(&line, request, &mut followed, (&mut *voice, &mut reporter));
    let ended = match limit {
        None => following.await,
        Some(limit) => tokio::time::timeout(limit, following).await.unwrap_or_else(|_| {
            let under_way = || {
                Failure::new("the swap is still under way: the server goes on by itself")
                    .hint("`model-swap status` tells how")
            };
            let failure = followed.unheard.take().unwrap_or_else(under_way);
            Err(Stopped { failures: vec![failure], exit: Exit::Environment })
        }),
    };
    let mut markdown = followed.markdown();
    let exit = match ended {
        Ok(()) => followed.exit(setting),
        // The swap began, and how it ends is not known: that is no refusal.
        Err(Stopped { failures, exit }) if followed.began() => {
            voice.say(failure::refusal(&failures));
            let lost = match &*markdown {
                "" => summary::of_unknown(&failures),
                _ => summary::of_loss(&failures),
            };
            markdown += &lost;
            exit
        }
        Err(Stopped { failures, exit: Exit::Aborted }) if is_abort(setting) => {
            return Ok(given_up(setting, &failures, voice));
        }
        Err(stopped) => {
            reporter.finish(voice).await;
            return Err(stopped);
        }
    };
    // GitHub may hang, and a cancelled job has seconds: what needs no network comes first.
    summarise(&setting.run, &markdown, voice);
    page::write(setting, &followed.story, voice);
    let outputs = followed.outputs();
    put_out(setting, &outputs, voice);
    let deployment_id = reporter.finish(voice).await;
    if deployment_id.is_some() {
        put_out(setting, &Outputs { deployment_id, ..Outputs::default() }, voice);
    }
    let (is_open, names_swap) = (followed.is_open(), outputs.swap_id.is_some());
    let (plan_digest, status) = (outputs.plan_digest, followed.status.take());
    Ok(Told { exit, is_open, names_swap, markdown, plan_digest, status })
}

fn is_abort(setting: &Setting) -> bool {
    setting.inputs.command == CommandName::Abort
}

/// What was to be aborted has not begun, and will not: that was asked for, and is done.
fn given_up(setting: &Setting, failures: &[Failure], voice: &mut Voice) -> Told {
    voice.put(&serde_json::json!({ "frame": "given_up", "failures": failures }));
    voice.say(failure::given_up(failures));
    let markdown = summary::of_given_up(failures);
    summarise(&setting.run, &markdown, voice);
    let swap_id = setting.inputs.swap_id.clone();
    let outputs = Outputs { outcome: Some(Outcome::Aborted), swap_id, ..Outputs::default() };
    put_out(setting, &outputs, voice);
    Told { markdown, ..Told::of(Exit::of_abort(Outcome::Aborted)) }
}

fn credentials(setting: &Setting) -> Credentials {
    Credentials {
        key: setting.inputs.ssh_key.clone(),
        known_hosts: setting.inputs.known_hosts.clone(),
    }
}

fn install(config: &Config) -> Result<Install, Stopped> {
    Ok(Install {
        build: Build::own().map_err(|error| Stopped::remote(&error))?,
        others: std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned())),
        state_dir: config.spec.state_dir.clone(),
        nginx_config: Some(config.spec.nginx.config.clone()),
    })
}

/// `plan` without the server: what the configuration alone says.
fn plan_alone(setting: &Setting, config: &Config, why: &str, voice: &mut Voice) -> Told {
    let outline = outline::outline(&config.spec);
    voice.put(&serde_json::json!({ "frame": "outline", "outline": outline, "why": why }));
    voice.say(render::outline::lines(&outline, why));
    let markdown = render::outline::markdown(&outline, why);
    summarise(&setting.run, &markdown, voice);
    let plan_digest = Some(outline.digest.to_string());
    let outputs = Outputs { plan_digest: plan_digest.clone(), ..Outputs::default() };
    put_out(setting, &outputs, voice);
    Told { markdown, plan_digest, ..Told::of(Exit::Done) }
}

/// The configuration's path on this machine.
fn config_path(setting: &Setting) -> PathBuf {
    match &setting.run.workspace {
        Some(workspace) => workspace.join(&setting.inputs.config),
        None => setting.inputs.config.clone(),
    }
}

fn load(setting: &Setting) -> Result<Config, Stopped> {
    let inputs = &setting.inputs;
    let path = config_path(setting);
    let text =
        std::fs::read_to_string(&path).map_err(|error| unreadable(setting, &path, &error))?;
    let overrides = Overrides {
        service: inputs.service.as_ref().map(ToString::to_string),
        model: inputs.model.clone(),
        host: inputs.host.clone(),
    };
    let name = inputs.config.display().to_string();
    let config = config::load(&text, &name, &overrides)
        .map_err(|problems| Stopped::input(problems.to_failures()))?;
    refuse_container(setting, &config.target)?;
    Ok(config)
}

/// The service of a configuration that cannot be used, as far as anybody can tell.
fn named_service(setting: &Setting) -> Option<ServiceName> {
    let named = || config::named_service(&std::fs::read_to_string(config_path(setting)).ok()?);
    setting.inputs.service.clone().or_else(named)
}

/// Why there is no configuration, and where it may be.
fn unreadable(setting: &Setting, path: &Path, error: &std::io::Error) -> Stopped {
    let given = setting.inputs.config.display();
    let failure = Failure {
        causes: vec![error.to_string()],
        ..Failure::new(format!("cannot read the configuration {}", path.display()))
    };
    let name = path.file_name().filter(|_| !path.is_dir()).unwrap_or("model-swap.yaml".as_ref());
    let here = std::env::current_dir().unwrap_or_default();
    // Whoever stands in a folder of the repository means the file at its top.
    let above =
        here.ancestors().skip(1).map(|folder| folder.join(name)).find(|file| file.is_file());
    let below = path.join(name);
    let hint = match (&setting.run.workspace, above) {
        _ if error.kind() == std::io::ErrorKind::InvalidData => {
            format!("{given} must be a text in UTF-8")
        }
        (None, _) if below.is_file() => format!("{given} is a folder: give the file, --config {}", below.display()),
        _ if path.is_dir() => format!("{given} is a folder: give the file"),
        (Some(_), _) => "check the repository out first (actions/checkout), and give its path as the input config".to_owned(),
        (None, Some(file)) => format!("there is one at {0}: --config {0}", file.display()),
        (None, None) => format!(
            "you are in {}: give its path with --config; where there is none yet, `model-swap init --host USER@SERVER` \
             writes one",
            here.display()
        ),
    };
    Stopped::input(vec![failure.hint(hint)])
}

/// In the action's container this machine is the container, wherever its runner is.
fn refuse_container(setting: &Setting, target: &Target) -> Result<(), Stopped> {
    let is_action = setting.run.workspace.as_deref() == Some(Path::new(ACTION_WORKSPACE));
    if target.host != HostAddr::Local || !is_action {
        return Ok(());
    }
    let failure =
        Failure::new("host is local, and the action runs in a container: neither nginx nor models are in it").hint(
            "name the server, even if the runner is on it: `host: USER@NAME`; or run the program itself, without the \
             container: `model-swap swap`",
        );
    Err(Stopped::input(vec![failure]))
}

/// Outputs: what the rest of the workflow finds afterwards.
fn put_out(setting: &Setting, outputs: &Outputs, voice: &mut Voice) {
    let outputs = match setting.inputs.command {
        CommandName::Status
        | CommandName::Logs
        | CommandName::History
        | CommandName::Doctor
        | CommandName::Init
        | CommandName::Uninstall => {
            return;
        }
        // Nothing was done that the others could tell of.
        CommandName::Plan => {
            &Outputs { plan_digest: outputs.plan_digest.clone(), ..Outputs::default() }
        }
        CommandName::Swap
        | CommandName::Rollback
        | CommandName::Abort
        | CommandName::Fail
        | CommandName::Repair => &Outputs { plan_digest: None, ..outputs.clone() },
    };
    if let Some(path) = &setting.run.output
        && let Err(error) = output::write_outputs(path, outputs)
    {
        voice.say([Line::Warning(error.to_failure().to_string())]);
    }
}

/// A failure that stops nothing, with what mends it.
fn warning(failure: &Failure) -> Line {
    let hints = failure.hints.iter().map(|hint| format!(" ({hint})")).collect::<String>();
    Line::Warning(format!("{failure}{hints}"))
}

fn summarise(run: &WorkflowRun, markdown: &str, voice: &mut Voice) {
    let Some(path) = run.step_summary.as_ref().filter(|_| !markdown.is_empty()) else {
        return;
    };
    if let Err(error) = output::append_summary(path, &voice.typed.spell(markdown)) {
        voice.say([Line::Warning(error.to_failure().to_string())]);
    }
}
