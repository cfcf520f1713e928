//! After `promote`: drain, keep warm, retire. The lease is free meanwhile, and any new command takes over.

use std::fs::File;
use std::time::Duration;

use jiff::SignedDuration;
use rustix::fs::{FlockOperation, flock};

use super::ending::docker_answers;
use super::follow;
use super::left::Left;
use super::turn::RETRY;
use crate::executor::{self, Context};
use crate::host::agent_unit::AgentUnit;
use crate::host::watch::Watch;
use crate::host::{Host, SystemHost, process};
use crate::journal::Journal;
use crate::lease::{Lease, RETIRE};
use crate::model::event::{Closing, EventKind};
use crate::model::failure::Failure;
use crate::model::ids::{SlotName, SwapId};
use crate::model::record::{RecordKind, Retained};
use crate::model::spec::OnTimeout;
use crate::model::state::{Holder, Requester};
use crate::model::step::Step;
use crate::service_dir::ServiceDir;
use crate::swap::transition::StepStatus;

/// Between two looks whether nginx and Docker answer; a boot takes seconds.
const BOOT_LOOK: Duration = Duration::from_secs(1);

/// Before a replica that could not be retired is tried again, at first: an edit or a restart is soon over.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The same at last: each try is told and recorded.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The swap that has its outcome and has left a replica warm, whose story nobody has closed.
pub(super) fn kept_by(dir: &ServiceDir) -> Result<Option<SwapId>, Failure> {
    let Some(retained) = dir.load()?.retained else { return Ok(None) };
    let folder = dir.swap(&retained.swap);
    if !Journal::has_begun(&folder) {
        return Ok(None);
    }
    let status = Journal::look(&folder)?;
    Ok((status.outcome.is_some() && !status.closed).then_some(retained.swap))
}

/// Drains, keeps warm and retires what a swap has left whose agent is gone, unless somebody else does that by now.
pub(super) async fn go_on(dir: &ServiceDir, swap: &SwapId) -> Result<(), Failure> {
    let folder = File::open(dir.swap(swap)).map_err(|error| Failure::from_error(&error))?;
    // Two that end at once both find it; a journal has one writer.
    let is_ours = flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok();
    if !is_ours || kept_by(dir)?.as_ref() != Some(swap) {
        return Ok(());
    }
    follow::take_over(&dir.swap(swap))?;
    let Some((left, _)) = Left::open(dir, swap, None).await? else { return Ok(()) };
    let cx = left.context(dir)?;
    tokio::select! {
        () = until_it_can_be_seen(&cx) => {}
        () = superseded(&cx) => {}
    }
    // Anew: of a container the engine's key can be known only once Docker answers.
    let Some((left, mut journal)) = Left::open(dir, swap, None).await? else { return Ok(()) };
    let cx = left.context(dir)?;
    let holder = Holder {
        swap: swap.clone(),
        since: cx.host.now(),
        process: process::own(),
        command: RETIRE.to_owned(),
        requester: Requester::default(),
        recovers: None,
    };
    aftermath(&cx, &mut journal, holder).await;
    Ok(())
}

/// The same, at the end of a command, where nobody else does: the agent of that swap is gone, and no unit brings one back.
pub(super) async fn go_on_alone(dir: &ServiceDir) -> Result<(), Failure> {
    let Some(swap) = kept_by(dir)?.filter(|_| !AgentUnit::of(dir.service()).is_there()) else {
        return Ok(());
    };
    // What an agent has left comes first, one that died or this one.
    if Lease::left_to_the_next(&dir.root()).is_some() {
        return Ok(());
    }
    let other = follow::at_work(&dir.swap(&swap)).filter(|agent| *agent != process::own());
    if other.is_some_and(process::alive) { Ok(()) } else { go_on(dir, &swap).await }
}

/// nginx and Docker may come up after this agent. Without nginx nothing can be drained or proven, and without its Engine no
/// container stopped, which that starts once it is up.
async fn until_it_can_be_seen(cx: &Context<'_, SystemHost>) {
    let mut told = false;
    let seen = async || {
        docker_answers(&cx.plan).await?;
        cx.host.upstream().await
    };
    while let Err(failure) = seen().await {
        if !told {
            super::log(&failure);
            told = true;
        }
        tokio::time::sleep(BOOT_LOOK).await;
    }
}

/// Performs the steps after `promote`, unless another command takes over.
pub async fn aftermath<H: Host>(cx: &Context<'_, H>, journal: &mut Journal, holder: Holder) {
    let closing = match later(cx, journal, holder).await {
        Ok(closing) => closing,
        Err(GivenUp::Superseded) => {
            Closing::Superseded { by: Lease::holder(&cx.dir.root()).map(|holder| holder.swap) }
        }
        // Whoever brings that command's swap to its end may find this one's still there, and goes on with it.
        Err(GivenUp::Uncertain) => return,
    };
    drop(journal.append(RecordKind::Closed, cx.host.now()));
    cx.tell(EventKind::Closed(closing));
}

/// Why nothing more is done with what this swap left.
enum GivenUp {
    /// Another command has taken it over.
    Superseded,
    /// Another command died in the midst of its work: until that is brought to its end, nobody knows what serves. Or the
    /// disk refused the word of what was done.
    Uncertain,
}

async fn later<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    holder: Holder,
) -> Result<Closing, GivenUp> {
    let mut closing = Closing::Nothing;
    for (index, planned) in cx.plan.all_steps().enumerate().skip(cx.plan.steps.len()) {
        let is_done = journal.status().steps[index] == StepStatus::Succeeded;
        if let Step::Retire { slot } = &planned.step {
            closing = Closing::Retired { slot: slot.clone() };
            if is_done {
                continue;
            }
            match retired(cx, journal, (index, slot), &holder).await? {
                Ok(()) => continue,
                Err(failure) => return Ok(Closing::Kept { slot: slot.clone(), failure }),
            }
        }
        // By another agent, which ended before it was through.
        if is_done {
            continue;
        }
        let failed = drained(cx, journal, index).await?;
        if let (Err(failure), Ok(Some(retained))) = (failed, mine(cx)) {
            return Ok(Closing::Kept { slot: retained.replica.slot, failure });
        }
    }
    Ok(closing)
}

/// Drains, again where another command had nginx point at the replica for a while.
async fn drained<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    index: usize,
) -> Result<Result<(), Failure>, GivenUp> {
    loop {
        let performed = tokio::select! {
            biased;
            performed = executor::perform(cx, journal, index) => performed,
            () = superseded(cx) => return Err(GivenUp::Superseded),
        };
        match performed {
            Ok(Err(_)) if another_was_at_work(cx).await? => {}
            performed => return Ok(performed.map_err(Failure::from).and_then(|done| done)),
        }
    }
}

/// Retires the replica once its time has come, and tries again for as long as what is in the way may pass: an nginx.conf that
/// somebody edits, a Docker that is started anew.
async fn retired<H: Host>(
    cx: &Context<'_, H>,
    journal: &mut Journal,
    (index, slot): (usize, &SlotName),
    holder: &Holder,
) -> Result<Result<(), Failure>, GivenUp> {
    let mut pause = FIRST_PAUSE;
    loop {
        let failure = match its_time(cx, slot, holder).await? {
            // Held while it is stopped, so that no command builds on what is about to go.
            Ok(_lease) => match executor::perform(cx, journal, index).await {
                Ok(Ok(())) => return Ok(Ok(())),
                Ok(Err(failure)) => failure,
                // A record that the disk refused does not tell whether it was done.
                Err(_) if !matches!(mine(cx), Ok(Some(_))) => return Err(GivenUp::Uncertain),
                // Nor does this process write another one.
                Err(error) => return Ok(Err(error.into())),
            },
            Err(failure) => failure,
        };
        if another_was_at_work(cx).await? {
            continue;
        }
        if !may_pass(cx).await {
            return Ok(Err(failure));
        }
        if pause == FIRST_PAUSE {
            cx.tell(EventKind::Overdue { failure });
        }
        tokio::select! {
            () = cx.host.pause(pause) => {}
            () = superseded(cx) => return Err(GivenUp::Superseded),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether what could not be retired may be later: it is there, and nobody has nginx point at it again.
async fn may_pass<H: Host>(cx: &Context<'_, H>) -> bool {
    let replica = match mine(cx) {
        Ok(Some(retained)) => retained.replica,
        Ok(None) => return false,
        Err(_) => return true,
    };
    !cx.host.upstream().await.is_ok_and(|view| view.port == replica.port)
}

/// Waits until the retained replica's time is over and it has nothing in flight; then takes the lease, under which both
/// must still hold.
async fn its_time<H: Host>(
    cx: &Context<'_, H>,
    slot: &SlotName,
    holder: &Holder,
) -> Result<Result<Lease, Failure>, GivenUp> {
    let until = match mine(cx) {
        Ok(retained) => retained.ok_or(GivenUp::Superseded)?.until,
        Err(failure) => return Ok(Err(failure)),
    };
    // The clock may have been set since, or have lost its battery in a reboot: never longer than was asked for.
    let left = until.duration_since(cx.host.now()).min(longest(cx));
    tokio::select! {
        () = cx.host.pause(left.try_into().unwrap_or_default()) => {}
        () = superseded(cx) => return Err(GivenUp::Superseded),
    }
    let cuts = cx.spec().drain.on_timeout == OnTimeout::Cut;
    loop {
        // Without the lease: a client that goes past nginx may take its time, and nobody shall wait for it.
        if !cuts {
            tokio::select! {
                idle = executor::await_idle(cx, slot) => if let Err(failure) = idle { return Ok(Err(failure)) },
                () = superseded(cx) => return Err(GivenUp::Superseded),
            }
        }
        let lease = lease_to_retire(cx, holder.clone()).await?;
        match executor::is_idle(cx, slot).await {
            Ok(idle) if idle || cuts => return Ok(Ok(lease)),
            Ok(_) => {}
            Err(failure) => return Ok(Err(failure)),
        }
    }
}

/// Whether another command is at work, whose cutover has nginx point at the replica for as long as it is not at its end; returns once
/// none is any more.
async fn another_was_at_work<H: Host>(cx: &Context<'_, H>) -> Result<bool, GivenUp> {
    let mut watch = Watch::folder(&cx.dir.root());
    let mut was = false;
    while let Some(holder) = Lease::holder(&cx.dir.root()) {
        was = true;
        tokio::select! {
            () = watch.changed() => {}
            () = follow::gone(Some(holder.process)) => {}
        }
    }
    if Lease::left_by_the_dead(&cx.dir.root()).is_some() {
        return Err(GivenUp::Uncertain);
    }
    // Where nobody else was, this one itself has let go of it.
    if was && is_taken_over(cx) { Err(GivenUp::Superseded) } else { Ok(was) }
}

/// As long as a replica is kept warm at most.
fn longest<H: Host>(cx: &Context<'_, H>) -> SignedDuration {
    SignedDuration::try_from(cx.spec().retain).unwrap_or(SignedDuration::MAX)
}

async fn lease_to_retire<H: Host>(
    cx: &Context<'_, H>,
    mut holder: Holder,
) -> Result<Lease, GivenUp> {
    RETIRE.clone_into(&mut holder.command);
    loop {
        holder.since = cx.host.now();
        match Lease::take(&cx.dir.root(), &holder) {
            Ok(lease) if lease.died.is_some() => return Err(GivenUp::Uncertain),
            Ok(lease) if matches!(mine(cx), Ok(Some(_))) => return Ok(lease),
            Ok(lease) => drop(lease),
            Err(_) => {}
        }
        if is_taken_over(cx) {
            return Err(GivenUp::Superseded);
        }
        cx.host.pause(RETRY).await;
    }
}

/// What this swap left, while nobody has taken it over.
fn mine<H: Host>(cx: &Context<'_, H>) -> Result<Option<Retained>, Failure> {
    Ok(cx.dir.load()?.retained.filter(|retained| retained.swap == cx.swap))
}

/// Whether somebody has taken it over, for certain: a state that cannot be read for a moment says nothing of that.
fn is_taken_over<H: Host>(cx: &Context<'_, H>) -> bool {
    matches!(mine(cx), Ok(None))
}

/// Returns once what this swap left is no longer its own.
async fn superseded<H: Host>(cx: &Context<'_, H>) {
    let mut watch = Watch::folder(&cx.dir.root());
    while !is_taken_over(cx) {
        watch.changed().await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::lease::tests::holder;
    use crate::model::outcome::Outcome;
    use crate::model::record::{Done, Undo};
    use crate::model::state::Requester;
    use crate::swap::planner::tests::two_slot_plan;

    /// A swap that was promoted and has left a replica warm, and whose agent is gone.
    pub(in crate::agent) fn left_warm(dir: &ServiceDir) -> SwapId {
        let (swap, at): (SwapId, _) = ("s-1".parse().unwrap(), Timestamp::UNIX_EPOCH);
        let (folder, plan) = (dir.make_swap(&swap).unwrap(), two_slot_plan());
        let asked = (&plan, &Requester::default());
        let mut journal = Journal::create(&folder, &swap, asked, at).unwrap();
        for step in 0..plan.steps.len() {
            journal.append(RecordKind::Started { step, undo: Undo::Nothing }, at).unwrap();
            journal.append(RecordKind::Succeeded { step, done: Done::Nothing }, at).unwrap();
        }
        journal.append(RecordKind::Concluded { outcome: Outcome::Promoted }, at).unwrap();
        let replica = serde_json::from_value(serde_json::json!({
            "slot": "a", "port": 8001, "main": { "pid": 1, "start": 1 }, "swap": null,
            "revision": { "digest": "r-1", "model": "m", "git_sha": null }, "log": null,
        }));
        let (replica, old_workers) = (replica.unwrap(), Vec::new());
        let kept = Retained { replica, swap: swap.clone(), since: at, until: at, old_workers };
        let mut state = dir.load().unwrap();
        state.retained = Some(kept);
        dir.save(&state).unwrap();
        swap
    }

    #[tokio::test]
    async fn of_two_that_find_a_swap_left_warm_one_goes_on_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let swap = left_warm(&dir);
        assert_eq!(kept_by(&dir).unwrap(), Some(swap.clone()));
        let other = File::open(dir.swap(&swap)).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        go_on_alone(&dir).await.unwrap();
        assert_eq!(follow::at_work(&dir.swap(&swap)), None, "the journal has two writers");
    }

    /// Else nobody would ever retire it.
    #[tokio::test]
    async fn a_state_that_cannot_be_read_for_a_moment_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let swap = left_warm(&dir);
        let spec = serde_json::to_vec(&crate::swap::planner::tests::spec()).unwrap();
        std::fs::write(dir.swap(&swap).join(crate::service_dir::SPEC), spec).unwrap();
        let (left, _journal) = Left::open(&dir, &swap, None).await.unwrap().unwrap();
        let cx = left.context(&dir).unwrap();
        let file = dir.root().join("state.json");
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, "{").unwrap();
        let lost = std::future::poll_fn(|task| {
            std::task::Poll::Ready(std::pin::pin!(superseded(&cx)).poll(task).is_ready())
        });
        assert!(!lost.await, "it is given up");
        std::fs::write(&file, whole).unwrap();
        assert!(!is_taken_over(&cx));
        let mut state = dir.load().unwrap();
        state.retained = None;
        dir.save(&state).unwrap();
        superseded(&cx).await;
    }

    #[tokio::test]
    async fn who_has_left_the_lease_to_the_next_goes_on_with_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let swap = left_warm(&dir);
        Lease::take(&dir.root(), &holder("s-2")).unwrap().leave_to_the_next();
        go_on_alone(&dir).await.unwrap();
        assert_eq!(follow::at_work(&dir.swap(&swap)), None, "it keeps the lease for as long");
    }
}
