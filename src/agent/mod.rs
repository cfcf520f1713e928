//! F4: the server's side. `session` speaks with a runner for as long as it is there; `run` works on without it.

mod abort;
pub mod aftermath;
mod answer;
mod arming;
mod bringing;
mod brought_back;
mod closing;
mod doctor;
mod ending;
mod follow;
mod install;
mod left;
mod listed;
pub mod lockdown;
mod outlook;
mod place;
mod prune;
mod put_away;
mod recover;
mod refuge;
mod rerun;
mod resume;
mod rollback;
mod run;
mod sampling;
mod shared_memory;
mod stdin;
mod stuck;
mod turn;
mod uninstall;

pub use install::install;
pub use resume::resume;
pub use run::run;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::ChildStdout;

use crate::confirmation;
use crate::executor::{self, World, confirm_route, observe, report_unseen};
use crate::host::logind::Fate;
use crate::host::{Host, SystemHost, exec, process, survey};
use crate::journal::Journal;
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::refusal::{Fault, Known, Refusal};
use crate::model::spec::SwapSpec;
use crate::model::state::StatusReport;
use crate::model::wire::{
    Asked, Command, ConfirmRequest, Frame, Hello, Request, RollbackRequest, SurveyRequest,
    SwapRequest, WIRE_VERSION, spoken,
};
use crate::service_dir::{SPEC, ServiceDir};
use crate::swap::planner::Decision;
use answer::Answers;

/// How often `status` looks again: swaps take longer than a look.
const LOOKS: usize = 3;

/// How many lines of a replica's log `logs` sends.
const LOG_LINES: usize = 1000;

/// Who may ask for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Anything: whoever can start this program could do it without it.
    Full,
    /// What root lists in this folder, one file a service: the key has a forced command.
    Listed(PathBuf),
}

/// Answers one request, read as one line from stdin, with frames on stdout.
pub async fn session(access: Access) {
    let mut answers = Answers::on_stdout();
    answers.greet();
    let served = match stdin::request().await {
        Ok(line) => serve(&line, &access, &mut answers).await,
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = served {
        answers.send(&Frame::Refused(refusal));
    }
    answers.send(&Frame::End);
}

async fn serve(line: &str, access: &Access, answers: &mut Answers) -> Result<(), Refusal> {
    let request = parse(line)?;
    if let Access::Listed(folder) = access {
        listed::check(folder, &request.command)?;
    }
    let chosen = match &request.command {
        Command::Survey(wanted) => &wanted.state_dir,
        command => &asked(command)?.spec.state_dir,
    };
    let state_dir = place::state_dir(chosen.as_deref()).map_err(Refusal::environment)?;
    answers.send(&Frame::Hello(Hello {
        v: WIRE_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state_dir: state_dir.clone(),
    }));
    if let Command::Survey(SurveyRequest { nginx, .. }) = &request.command {
        let survey = Box::new(survey::survey(nginx).await);
        answers.send(&Frame::Survey { survey });
        return Ok(());
    }
    about_service((&request.command, access), line, &state_dir, answers).await
}

/// What a command other than `init` is about.
fn asked(command: &Command) -> Result<&Asked, Refusal> {
    let nothing = || Refusal::input(Failure::new("the request is about no service"));
    command.asked().ok_or_else(nothing)
}

async fn about_service(
    (command, access): (&Command, &Access),
    line: &str,
    state_dir: &Path,
    answers: &mut Answers,
) -> Result<(), Refusal> {
    let asked = asked(command)?;
    let dir = match command {
        // Whoever only looks makes no folder.
        Command::Doctor(_) => ServiceDir::look(state_dir, &asked.spec.service),
        _ => ServiceDir::open(state_dir, &asked.spec.service).map_err(Refusal::environment)?,
    };
    match command {
        Command::Plan(wanted) => plan(&dir, wanted, answers).await,
        Command::Status(asked) => status(&dir, asked, answers).await,
        Command::History(asked) => {
            let host = SystemHost::new(asked);
            let world = observe_at_rest(&host, &dir, asked).await.map_err(|why| {
                Refusal::environment(
                    why.hint("until then `model-swap status` lists the latest swaps"),
                )
            })?;
            let report = Box::new(rollback::report(&dir, &asked.spec, &world));
            answers.send(&Frame::History { report });
            Ok(())
        }
        Command::Doctor(asked) => {
            let checkup = Box::new(doctor::checkup(&dir, asked).await);
            answers.send(&Frame::Checkup { checkup });
            Ok(())
        }
        Command::Logs(asked) => logs(place::host(&dir, asked), &dir, answers).await,
        Command::Follow { swap, since, wait, .. } => {
            follow::follow(&dir, swap, (*since, *wait), answers).await;
            Ok(())
        }
        Command::Uninstall(_) => hand_over(&dir, line, answers).await.map(drop),
        // Answered before, by the server and not by a service.
        Command::Survey(_) => Ok(()),
        Command::Abort(wanted) => abort::abort(&dir, (wanted, line), answers).await,
        Command::Confirm(ConfirmRequest { swap, nonce, .. }) => {
            confirmation::give(&dir, swap, nonce).map_err(Refusal::environment)
        }
        Command::Repair(_) => recover::hand_over_repair(&dir, line, answers).await,
        Command::Swap(SwapRequest { wait, .. })
        | Command::Rollback(RollbackRequest { wait, .. }) => {
            if let Some(swap) = begin((&dir, access), line, answers).await? {
                follow::follow(&dir, &swap, (0, *wait), answers).await;
            }
            Ok(())
        }
    }
}

/// Tells what serves, what is warm and who is at work; where nginx cannot be asked, the rest of it.
async fn status(dir: &ServiceDir, asked: &Asked, answers: &mut Answers) -> Result<(), Refusal> {
    let host = SystemHost::new(asked);
    let why = match observe_at_rest(&host, dir, asked).await {
        Ok(world) => {
            let report = Box::new(with_agent(dir, world.report(&host, dir, asked).await));
            answers.send(&Frame::Status { report });
            return Ok(());
        }
        Err(why) => why,
    };
    if let Ok(report) = report_unseen(&host, dir, asked).await {
        answers.send(&Frame::Unseen { report: Box::new(with_agent(dir, report)) });
    }
    Err(Refusal::environment(why))
}

/// Looks again if a swap was recorded while it looked: half of what was seen would be from before it.
async fn observe_at_rest(
    host: &SystemHost,
    dir: &ServiceDir,
    asked: &Asked,
) -> Result<World, Failure> {
    let mut before = dir.load()?;
    for _ in 0..LOOKS {
        let world = observe(host, dir, asked, None).await?;
        if world.seen.state == before {
            return Ok(world);
        }
        before = world.seen.state;
    }
    observe(host, dir, asked, None).await
}

/// The request in the first line of a session.
///
/// # Errors
/// If it is none, or of a version of the wire that is not spoken here.
pub fn parse(line: &str) -> Result<Request, Refusal> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        v: u32,
    }
    let wrong = |error: serde_json::Error| {
        Refusal::input(
            Failure::from_error(&error)
                .hint("the first line on stdin must be a request of model-swap's runner"),
        )
    };
    let Versioned { v } = serde_json::from_str(line).map_err(wrong)?;
    if !spoken(WIRE_VERSION).contains(&v) {
        return Err(Refusal::environment(
            Failure::new(format!(
                "this agent ({}) speaks version {WIRE_VERSION} of the wire, the runner version {v}",
                env!("CARGO_PKG_VERSION")
            ))
            .hint(
                "use the same release on both sides: where a forced command in authorized_keys names the agent, put \
                 the runner's release there",
            ),
        ));
    }
    serde_json::from_str(line).map_err(wrong)
}

async fn plan(
    dir: &ServiceDir,
    wanted: &SwapRequest,
    answers: &mut Answers,
) -> Result<(), Refusal> {
    stuck::refuse_while_stuck(dir, &wanted.asked).await?;
    let run::Decided { asked, world, decision, .. } = run::decide(dir, wanted).await?;
    let (host, spec) = (SystemHost::new(&asked), &asked.spec);
    confirm_route(&host, spec, &world).await.map_err(Refusal::environment)?;
    match decision {
        Decision::Act(plan) => {
            let outlook = outlook::of((dir, &host, spec), &plan, &world).await;
            answers.send(&Frame::Plan { plan, outlook });
        }
        Decision::Unchanged(reason) => {
            answers.send(&unchanged(&host, &world, dir, &wanted.asked, reason).await)
        }
    }
    Ok(())
}

async fn logs(host: SystemHost, dir: &ServiceDir, answers: &mut Answers) -> Result<(), Refusal> {
    let newest = dir.swaps().into_iter().find_map(|swap| {
        let folder = dir.swap(&swap);
        let (plan, records) = (Journal::plan(&folder)?, Journal::read(&folder).ok()?);
        let replica = executor::started(&plan, &swap, &records, dir.replica_log(&swap))?;
        Some((replica, secret_names(&folder)))
    });
    let Some((replica, secrets)) = newest else {
        return Err(Refusal::input(Failure::new(format!(
            "no replica of service {} was started by model-swap yet",
            dir.service()
        ))));
    };
    let host = host.hiding_of(&replica, &secrets).await;
    for text in host.log_tail(&replica, LOG_LINES).await {
        answers.send(&Frame::Line { text });
    }
    Ok(())
}

/// Names of the variables that a swap gave its replica as secrets.
fn secret_names(folder: &Path) -> Vec<String> {
    let text = std::fs::read(folder.join(SPEC)).unwrap_or_default();
    let spec: Option<SwapSpec> = serde_json::from_slice(&text).ok();
    spec.map(|spec| spec.replica.secret_env).unwrap_or_default()
}

/// Has the detached agent bring something to its end, and relays its answer. `Some` is the swap to follow.
async fn hand_over(
    dir: &ServiceDir,
    line: &str,
    answers: &mut Answers,
) -> Result<Option<SwapId>, Refusal> {
    // What it asks was checked, and all that it does.
    detach((dir, &refuge::fate().await, &Access::Full), line, answers).await
}

/// Has the detached agent begin something that lasts, and relays its answer.
async fn begin(
    (dir, access): (&ServiceDir, &Access),
    line: &str,
    answers: &mut Answers,
) -> Result<Option<SwapId>, Refusal> {
    let fate = refuge::fate().await;
    match refuge::barred(&fate) {
        Some(failure) => Err(Refusal::environment(failure)),
        None => detach((dir, &fate, access), line, answers).await,
    }
}

/// Starts the detached agent, gives it the request and relays its answer; that of an agent which waits for its turn goes no further
/// once nobody hears it.
async fn detach(
    (dir, fate, access): (&ServiceDir, &Fate, &Access),
    line: &str,
    answers: &mut Answers,
) -> Result<Option<SwapId>, Refusal> {
    let io = |error: std::io::Error| {
        Refusal::environment(Failure::new("cannot start the agent").hint(error.to_string()))
    };
    let path = dir.root().join("agent.log");
    let unwritable = |error: std::io::Error| {
        Refusal::environment(Failure {
            causes: vec![error.to_string()],
            ..Failure::new(format!("cannot write {}", path.display()))
                .hint("let the agent write in its state folder, or set state_dir to another one")
        })
    };
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(unwritable)?;
    let words = refuge::words(fate);
    let mut arguments = ["agent", "run"].map(OsStr::new).to_vec();
    if let Access::Listed(folder) = access {
        arguments.extend([OsStr::new("--services"), folder.as_os_str()]);
    }
    let mut child = exec::detached(words, &arguments, Stdio::from(log)).map_err(io)?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Ok(None);
    };
    // The request goes through a pipe: secrets are in no argv and on no disk. By its end the agent knows that nobody hears it.
    stdin.write_all(format!("{}\n", line.trim_end()).as_bytes()).await.map_err(io)?;
    tokio::select! {
        biased;
        answered = relay(dir, stdout, answers) => answered,
        () = stdin::ended() => Ok(None),
    }
}

/// Relays a detached agent's answer up to what becomes of its request.
async fn relay(
    dir: &ServiceDir,
    stdout: ChildStdout,
    answers: &mut Answers,
) -> Result<Option<SwapId>, Refusal> {
    let unheard = |error: std::io::Error| {
        Refusal::environment(Failure::new("cannot hear the agent").hint(error.to_string()))
    };
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await.map_err(unheard)? {
        let Ok(frame) = serde_json::from_str::<Frame>(&line) else { continue };
        answers.send(&frame);
        match frame {
            Frame::Accepted { swap } => return Ok(Some(swap)),
            Frame::Unchanged { .. } | Frame::Refused { .. } | Frame::Uninstalled(_) => {
                return Ok(None);
            }
            _ => {}
        }
    }
    let failure = Failure::new("the agent ended without an answer")
        .hint(format!("{} on the server may say why", dir.root().join("agent.log").display()));
    Err(Refusal { known: Known::Left, ..Refusal::environment(failure) })
}

/// Says on stderr what stands in the way of an agent whom nobody follows; systemd's journal keeps it.
fn log(failure: &Failure) {
    // Where nobody reads it, nobody misses it.
    let _ = writeln!(std::io::stderr(), "model-swap: {failure}");
}

/// Every reason of the planner's at once.
fn barred(failures: Vec<Failure>) -> Refusal {
    Refusal::of(failures, Fault::Environment)
}

/// The answer when nothing has to change.
async fn unchanged<H: Host>(
    host: &H,
    world: &World,
    dir: &ServiceDir,
    asked: &Asked,
    reason: String,
) -> Frame {
    let status = Box::new(report_of_others(host, world, dir, asked).await);
    Frame::Unchanged { reason, status }
}

/// What serves and who is at work, beside whoever answers so: he has nothing to do.
async fn report_of_others<H: Host>(
    host: &H,
    world: &World,
    dir: &ServiceDir,
    asked: &Asked,
) -> StatusReport {
    let mut report = world.report(host, dir, asked).await;
    report.holder = report.holder.filter(|holder| holder.process != process::own());
    with_agent(dir, report)
}

/// A report with the agent that goes on while nobody holds the lease: by itself after `promote`, or because systemd keeps it.
fn with_agent(dir: &ServiceDir, report: StatusReport) -> StatusReport {
    let unfinished = report.unfinished.as_ref().map(|(swap, _)| swap.clone());
    let goes_on = |swap: SwapId| {
        let agent = follow::at_work(&dir.swap(&swap))?;
        (agent != process::own() && process::alive(agent)).then_some((swap, agent))
    };
    let is_idle = report.holder.is_none();
    let swap = unfinished.or_else(|| aftermath::kept_by(dir).ok()?).filter(|_| is_idle);
    StatusReport { agent: swap.and_then(goes_on), ..report }
}
