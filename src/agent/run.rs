//! The detached agent: lease → recovery → plan → journal → steps → outcome → what comes after.

use std::path::Path;
use std::time::Duration;

use super::abort::{called_off, never_begun, not_its_turn};
use super::answer::Answers;
use super::ending::{bring_all_to_end, bring_to_end};
use super::rerun::{self, ROLLBACK, SWAP};
use super::turn::{self, NoTurn};
use super::{
    Access, aftermath, arming, barred, brought_back, confirm_route, follow, listed, parse, place,
    prune, recover, report_of_others, rollback, sampling, shared_memory, stdin, stuck, uninstall,
};
use crate::abort;
use crate::event_log::{self, EventLog};
use crate::executor::{self, Context, Wanted, World, observe};
use crate::host::process::Snapshot;
use crate::host::{Host, SystemHost, process};
use crate::journal::Journal;
use crate::lease::{Lease, LeaseError};
use crate::model::event::{Closing, EventKind};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Strategy};
use crate::model::record::RecordKind;
use crate::model::refusal::Refusal;
use crate::model::state::{Holder, Past, Requester, brought_by};
use crate::model::wire::{Asked, Command, Frame, Request, SwapRequest, When};
use crate::service_dir::{self, SPEC, ServiceDir, StateError};
use crate::swap::approval;
use crate::swap::planner::{self, Decision};
use jiff::Timestamp;

/// What is to be done, from either command.
struct Work {
    asked: Asked,
    swap: SwapId,
    requester: Requester,
    lock_wait: Duration,
    command: Command,
    access: Access,
}

/// Reads a request from stdin, answers on stdout what becomes of it, and works on it to its end.
pub async fn run(access: Access) {
    // From here on no hang-up of the ssh session reaches this process.
    let _ = rustix::process::setsid();
    let mut answers = Answers::on_stdout();
    let request = match stdin::request().await.and_then(|line| parse(&line)) {
        Ok(request) => request,
        Err(refusal) => return answers.send(&Frame::Refused(refusal)),
    };
    let asked = request.command.asked();
    let nginx = asked.map(|asked| asked.spec.nginx.config.clone());
    let dir = asked.and_then(|asked| place::service_dir(asked).ok());
    let ended = match request.command.clone() {
        Command::Abort(wanted) => recover::abort(&wanted, &mut answers).await,
        Command::Repair(wanted) => recover::repair(&wanted, &mut answers).await,
        Command::Uninstall(wanted) => {
            return refused(uninstall::uninstall(&wanted, &mut answers).await, &mut answers);
        }
        _ => match work(request, access) {
            Some(work) => act(work, &mut answers).await,
            None => return,
        },
    };
    refused(ended, &mut answers);
    answers.close();
    let (Some(dir), Some(nginx)) = (dir, nginx) else { return };
    if let Err(failure) = aftermath::go_on_alone(&dir).await {
        super::log(&failure);
    }
    prune::prune(&dir, &nginx);
}

fn refused(ended: Result<(), Refusal>, answers: &mut Answers) {
    if let Err(refusal) = ended {
        answers.send(&Frame::Refused(refusal));
    }
}

fn work(request: Request, access: Access) -> Option<Work> {
    let command = request.command.clone();
    match request.command {
        Command::Swap(wanted) => Some(Work {
            asked: wanted.asked,
            swap: wanted.swap,
            requester: wanted.requester,
            lock_wait: wanted.lock_wait,
            command,
            access,
        }),
        Command::Rollback(wanted) => Some(Work {
            asked: wanted.asked,
            swap: wanted.swap,
            requester: wanted.requester,
            lock_wait: wanted.lock_wait,
            command,
            access,
        }),
        Command::Abort(_)
        | Command::Repair(_)
        | Command::Uninstall(_)
        | Command::Confirm(_)
        | Command::Plan(_)
        | Command::Status(_)
        | Command::Logs(_)
        | Command::History(_)
        | Command::Doctor(_)
        | Command::Survey(_)
        | Command::Follow { .. } => None,
    }
}

async fn act(work: Work, answers: &mut Answers) -> Result<(), Refusal> {
    let dir = place::service_dir(&work.asked).map_err(Refusal::environment)?;
    if let Command::Rollback(wanted) = &work.command
        && called_off(&dir, wanted, answers).await?
    {
        return Ok(());
    }
    let own = holder(&work, Timestamp::now());
    let attaches = |held: &Holder| rerun::attaches_to(held, &own);
    let now = || holder(&work, Timestamp::now());
    let taken =
        turn::take((&dir, work.lock_wait), (&own, &now), &attaches, answers, stdin::ended()).await;
    dir.forget_last_boot(&process::boot())
        .map_err(|error| Refusal::environment(error.to_failure()))?;
    let mut lease = match taken {
        Ok(lease) => lease,
        Err(NoTurn::Lease(LeaseError::Held { holder: Some(held) }))
            if attaches(&held).is_some() =>
        {
            answers.send(&Frame::Accepted { swap: attaches(&held).unwrap_or(held.swap) });
            return Ok(());
        }
        // Whoever is at work has brought it to its end before.
        Err(NoTurn::Lease(LeaseError::Held { .. }))
            if event_log::is_concluded(&dir.swap(&work.swap)) =>
        {
            answers.send(&Frame::Accepted { swap: work.swap.clone() });
            return Ok(());
        }
        Err(NoTurn::Aborted) => return Err(not_its_turn(&dir, (&own.command, &own.swap))),
        Err(error) => return Err(Refusal::environment(error.to_failure())),
    };
    let first = lease.died.as_ref().map(|died| died.swap.clone());
    if let Some(died) = &first {
        let accepted = || {
            if *died == work.swap {
                answers.send(&Frame::Accepted { swap: died.clone() });
                answers.close();
            }
        };
        bring_to_end(&dir, died, (Some(&work.asked), Wanted::End), accepted)
            .await
            .map_err(Refusal::environment)?;
        lease
            .recovered(&holder(&work, Timestamp::now()))
            .map_err(|error| Refusal::environment(error.to_failure()))?;
    }
    bring_all_to_end(&dir, Some(&work.asked)).await.map_err(Refusal::environment)?;
    if dir.swap(&work.swap).exists() {
        // Asked again by a runner that had lost the first answer, or its agent: it has run already. What is kept warm this one
        // goes on with.
        follow::take_over_from_the_dead(&dir.swap(&work.swap)).map_err(Refusal::environment)?;
        answers.send(&Frame::Accepted { swap: work.swap.clone() });
        return Ok(());
    }
    if abort::ordered(&dir, &work.swap).is_some() {
        return Err(never_begun((&own.command, &own.swap), first.as_ref()));
    }
    begin(work, (&dir, &own, lease), answers).await.map_err(Refusal::unbegun)
}

/// Decides what a command does that has its turn, and does it.
async fn begin(
    mut work: Work,
    (dir, own, lease): (&ServiceDir, &Holder, Lease),
    answers: &mut Answers,
) -> Result<(), Refusal> {
    stuck::refuse_while_stuck(dir, &work.asked).await?;
    let Decided { asked, world, decision, again } = match &work.command {
        // It may have come to wait while this one did.
        Command::Rollback(wanted) if called_off(dir, wanted, answers).await? => return Ok(()),
        Command::Rollback(wanted) => {
            let decided = rollback::decide(dir, wanted, &work.access).await?;
            listed::check_revived(&work.access, wanted, &decided.asked)?;
            decided
        }
        Command::Swap(wanted) => decide(dir, wanted).await?,
        _ => return Ok(()),
    };
    work.asked = asked;
    let host = place::host(dir, &work.asked);
    let flips = match &decision {
        Decision::Act(plan) => plan.strategy == Strategy::WarmRollback,
        Decision::Unchanged(_) => matches!(work.command, Command::Rollback(_)),
    };
    if !flips {
        confirm_route(&host, &work.asked.spec, &world).await.map_err(Refusal::environment)?;
    }
    match decision {
        Decision::Unchanged(reason) => {
            let status = Box::new(report_of_others(&host, &world, dir, &work.asked).await);
            answers.send(&match rerun::has_ended(dir, &status, own) {
                Some(swap) => Frame::Accepted { swap },
                None => Frame::Unchanged { reason, status },
            });
            Ok(())
        }
        Decision::Act(plan) => {
            if let Command::Swap(wanted) = &work.command
                && let Some(approved) = wanted.approved()
            {
                approval::confirm(&work.asked.spec, (&plan, &world.seen), &approved)
                    .map_err(Refusal::input)?;
            }
            arming::arm(&host, dir).await.map_err(Refusal::environment)?;
            let mut begun =
                open(&host, dir, &work, (world, *plan)).await.map_err(Refusal::environment)?;
            begun.0.again = again;
            work_on(begun, &work, lease, answers).await;
            Ok(())
        }
    }
}

/// What a command comes to.
pub(super) struct Decided {
    /// What is asked; a cold rollback puts what the revision was started from into it.
    pub(super) asked: Asked,
    /// What was observed.
    pub(super) world: World,
    /// What is to be done.
    pub(super) decision: Decision,
    /// What the candidate is started from instead of the specification.
    pub(super) again: Option<Snapshot>,
}

/// Decides what a swap does.
///
/// # Errors
/// Every reason why it cannot be done.
pub(super) async fn decide(dir: &ServiceDir, wanted: &SwapRequest) -> Result<Decided, Refusal> {
    let asked = wanted.asked.clone();
    let host = SystemHost::new(&asked);
    let world = observe(&host, dir, &asked, wanted.requester.sha.clone())
        .await
        .map_err(Refusal::environment)?;
    let slot = planner::serving_slot(&asked.spec, world.seen.nginx_port).ok();
    let serves = slot.and_then(|slot| Some(world.replicas.get(slot)?.revision.digest.as_str()));
    let when = match rerun::has_brought(dir, (&world.seen.state, serves), &wanted.requester) {
        true => When::Changed,
        false => wanted.when,
    };
    let mut decision = planner::plan_swap(&asked.spec, &world.seen, when).map_err(barred)?;
    if let Decision::Act(plan) = &mut decision {
        let history = rollback::history(dir, &asked.spec, &world);
        plan.notes.extend(history.against(&plan.candidate.revision.digest));
        if let Some(incumbent) = &plan.incumbent
            && let Some(unit) = brought_back::look(&incumbent.keeper).await
        {
            plan.notes.push(format!("{}; {}", unit.seen(), unit.mend()));
        }
        if let Ok(inherited) = world.inherited(&host, &asked.spec) {
            plan.notes.extend(shared_memory::note(&asked.spec, &inherited).await);
        }
    }
    Ok(Decided { asked, world, decision, again: None })
}

/// Executes what is begun, and what comes after. Every act is written down before it is done.
async fn work_on(begun: Begun<'_>, work: &Work, lease: Lease, answers: &mut Answers) {
    let (cx, mut journal) = begun;
    answers.send(&Frame::Accepted { swap: work.swap.clone() });
    answers.close();
    let executed = tokio::select! {
        biased;
        executed = executor::execute(&cx, &mut journal) => executed,
        never = sampling::sample(&cx) => match never {},
    };
    let conclusion = match executed {
        Ok(conclusion) => conclusion,
        Err(error) => {
            // Without a journal nothing more may be done; the next command recovers from what is on the disk.
            cx.tell(EventKind::Warning { text: Failure::from(error).to_string() });
            return lease.leave_to_the_next();
        }
    };
    if conclusion.failure.is_none() {
        drop(lease);
        let held = holder(work, cx.host.now());
        return tokio::select! {
            biased;
            () = aftermath::aftermath(&cx, &mut journal, held) => {}
            never = sampling::sample(&cx) => match never {},
        };
    }
    let (outcome, now) = (conclusion.outcome, cx.host.now());
    if let Err(error) = remember(cx.dir, &work.swap, outcome, &cx.plan, now) {
        // The history tells what may be rolled back; the next command writes it.
        cx.tell(EventKind::Warning { text: Failure::from(error).to_string() });
        return lease.leave_to_the_next();
    }
    drop(lease);
    drop(journal.append(RecordKind::Closed, cx.host.now()));
    cx.tell(EventKind::Closed(Closing::Nothing));
}

type Begun<'a> = (Context<'a, SystemHost>, Journal);

async fn open<'a>(
    host: &'a SystemHost,
    dir: &'a ServiceDir,
    work: &'a Work,
    (world, plan): (World, Plan),
) -> Result<Begun<'a>, Failure> {
    let folder = dir.make_swap(&work.swap)?;
    service_dir::write_json(&folder.join(SPEC), &work.asked.spec)?;
    follow::take_over(&folder)?;
    keep_incumbent((host, &world), &plan, &folder).await?;
    let journal = Journal::create(&folder, &work.swap, (&plan, &work.requester), host.now())?;
    let events =
        EventLog::open(&folder, &work.swap).map_err(|error| Failure::from_error(&error))?;
    let mut cx = Context::new((host, &work.asked, dir), work.swap.clone(), plan, events);
    let state = &world.seen.state;
    let serves = cx.plan.incumbent.as_ref().map(|side| side.revision.digest.as_str());
    let replaces = brought_by(state.serving_swap.as_ref(), &state.history, serves).cloned();
    cx.replicas = world.replicas;
    cx.tell(EventKind::Planned { plan: Box::new(cx.plan.clone()), replaces });
    Ok((cx, journal))
}

/// An adopted incumbent's argv, folder and environment: enough to start it again. Mode 0600, it holds secrets.
async fn keep_incumbent(
    (host, world): (&SystemHost, &World),
    plan: &Plan,
    folder: &Path,
) -> Result<(), Failure> {
    let replica = plan.incumbent.as_ref().and_then(|side| world.replicas.get(&side.slot));
    let Some(adopted) = replica.filter(|replica| replica.revision.is_adopted()) else {
        return Ok(());
    };
    let snapshot = host.snapshot(adopted).await?;
    Ok(service_dir::write_json(&folder.join(service_dir::INCUMBENT), &snapshot)?)
}

/// Adds a swap that did not get as far as `promote` to the history.
///
/// # Errors
/// If the disk refuses.
pub(super) fn remember(
    dir: &ServiceDir,
    swap: &SwapId,
    outcome: Outcome,
    plan: &Plan,
    at: Timestamp,
) -> Result<(), StateError> {
    let mut state = dir.load()?;
    let (swap, revision) = (swap.clone(), plan.candidate.revision.clone());
    state.remember(Past { swap, at, outcome, revision, strategy: Some(plan.strategy) });
    dir.save(&state)
}

fn holder(work: &Work, now: Timestamp) -> Holder {
    let command = match work.command {
        Command::Rollback(_) => ROLLBACK,
        _ => SWAP,
    };
    Holder {
        swap: work.swap.clone(),
        since: now,
        process: process::own(),
        command: command.to_owned(),
        requester: work.requester.clone(),
        recovers: None,
    }
}
