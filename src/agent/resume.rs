//! The agent that systemd keeps: it waits while another one is at work, and goes on where that one ended, after a crash and
//! after a boot. Whatever it finds, it finishes or unwinds; then it removes its own unit.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::aftermath;
use super::follow;
use super::left::Left;
use super::run::remember;
use crate::executor::{self, Direction};
use crate::host::agent_unit::AgentUnit;
use crate::host::{Host, SystemHost, process};
use crate::journal::Journal;
use crate::lease::{Lease, LeaseError};
use crate::model::event::{Closing, EventKind};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ProcessId, ServiceName, SwapId};
use crate::model::record::RecordKind;
use crate::model::state::{Holder, Requester};
use crate::service_dir::ServiceDir;
use crate::swap::recovery;

/// Between two tries at what did not work; a boot takes seconds.
const RETRY: Duration = Duration::from_secs(1);

/// What is left to be done.
#[derive(Debug, PartialEq, Eq)]
enum Todo {
    Something,
    Nothing,
}

/// Goes on until nothing of a service is unfinished or kept warm.
pub async fn resume(state_dir: &Path, service: &ServiceName) {
    loop {
        match go_on(state_dir, service).await {
            Ok(Todo::Nothing) => return,
            Ok(Todo::Something) => {}
            // systemd's journal has it; whatever stands in the way may pass.
            Err(failure) => super::log(&failure),
        }
        sleep(RETRY).await;
    }
}

async fn go_on(state_dir: &Path, service: &ServiceName) -> Result<Todo, Failure> {
    let dir = ServiceDir::open(state_dir, service)?;
    until_alone(&dir).await;
    dir.forget_last_boot(&process::boot())?;
    match Lease::take_from_the_dead(&dir.root()) {
        Ok(None) => {}
        Ok(Some(lease)) => {
            bring_to_end(&dir, lease).await?;
            return Ok(Todo::Something);
        }
        Err(LeaseError::Held { .. }) => return Ok(Todo::Something),
        Err(error) => return Err(error.to_failure()),
    }
    if let Some(swap) = kept_by(&dir)? {
        keep_on(&dir, &swap).await?;
        return Ok(Todo::Something);
    }
    let _lock = dir.lock_host().await?;
    if at_work(&dir).is_some() || kept_by(&dir)?.is_some() {
        return Ok(Todo::Something);
    }
    AgentUnit::of(service).disarm().await?;
    Ok(Todo::Nothing)
}

/// Another agent of the service that lives.
fn at_work(dir: &ServiceDir) -> Option<ProcessId> {
    let own = process::own();
    let agents = dir.swaps().into_iter().filter_map(|swap| follow::at_work(&dir.swap(&swap)));
    let holder = Lease::holder(&dir.root()).map(|holder| holder.process);
    agents.chain(holder).find(|agent| *agent != own && process::alive(*agent))
}

async fn until_alone(dir: &ServiceDir) {
    while let Some(agent) = at_work(dir) {
        if process::exited(agent).await.is_err() {
            sleep(RETRY).await;
        }
    }
}

/// The swap that has its outcome and has left a replica warm, whose story nobody has closed.
fn kept_by(dir: &ServiceDir) -> Result<Option<SwapId>, Failure> {
    let Some(retained) = dir.load()?.retained else { return Ok(None) };
    let folder = dir.swap(&retained.swap);
    if !Journal::has_begun(&folder) {
        return Ok(None);
    }
    let journal = Journal::open(&folder)?;
    let status = journal.status();
    Ok((status.outcome.is_some() && !status.closed).then_some(retained.swap))
}

/// Drains, keeps warm and retires what a swap has left.
async fn keep_on(dir: &ServiceDir, swap: &SwapId) -> Result<(), Failure> {
    follow::take_over(&dir.swap(swap))?;
    let Some((left, mut journal)) = Left::open(dir, swap, None)? else {
        return Ok(());
    };
    let cx = left.context(dir)?;
    until_nginx_runs(cx.host).await;
    aftermath::aftermath(&cx, &mut journal, holder(swap)).await;
    Ok(())
}

/// Finishes or unwinds the swap of a holder that died.
async fn bring_to_end(dir: &ServiceDir, mut lease: Lease) -> Result<(), Failure> {
    let Some(swap) = lease.died.as_ref().map(|died| died.swap.clone()) else { return Ok(()) };
    if let Some((left, mut journal)) = Left::open(dir, &swap, None)? {
        let mut cx = left.context(dir)?;
        follow::take_over(&dir.swap(&swap))?;
        if journal.status().outcome.is_none() {
            cx.tell(EventKind::TakenUp { found: recovery::found(journal.status(), &cx.plan) });
        }
        if recovery::is_past_cutover(journal.status(), &cx.plan) {
            until_nginx_runs(cx.host).await;
        }
        let ended = match executor::direction(&cx, &journal).await {
            Direction::Back => executor::recover(&cx, &mut journal).await?,
            Direction::Forward => {
                cx.replicas = executor::replicas_left(&cx, &journal)?;
                Some(executor::finish(&cx, &mut journal).await?)
            }
        };
        if let Some(conclusion) = ended.as_ref().filter(|ended| ended.failure.is_some()) {
            remember(dir, &swap, conclusion.outcome, &cx.plan, cx.host.now());
        }
        let kept = dir.load()?.retained.is_some_and(|retained| retained.swap == swap);
        if ended.is_some() && !kept {
            journal.append(RecordKind::Closed, cx.host.now())?;
            cx.tell(EventKind::Closed(Closing::Nothing));
        }
    }
    lease.recovered(&holder(&swap)).map_err(|error| error.to_failure())
}

/// nginx may come up after this agent; without it nothing can be moved, drained or proven.
async fn until_nginx_runs(host: &SystemHost) {
    let mut told = false;
    while let Err(failure) = host.upstream().await {
        if !told {
            super::log(&failure);
            told = true;
        }
        sleep(RETRY).await;
    }
}

fn holder(swap: &SwapId) -> Holder {
    Holder {
        swap: swap.clone(),
        since: Timestamp::now(),
        process: process::own(),
        command: "resume".to_owned(),
        requester: Requester::default(),
    }
}
