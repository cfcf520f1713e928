//! The agent that systemd keeps: it waits while another one is at work, and goes on where that one ended, after a crash and
//! after a boot. Whatever it finds, it finishes or unwinds; then it removes its own unit.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::aftermath::{self, kept_by};
use super::closing::{close_all, unclosed};
use super::ending::{bring_to_end, left_open};
use super::{follow, prune};
use crate::executor::Wanted;
use crate::host::agent_unit::AgentUnit;
use crate::host::process;
use crate::host::watch::Watch;
use crate::lease::{Lease, LeaseError};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ProcessId, ServiceName, SwapId};
use crate::model::spec::SwapSpec;
use crate::model::state::{Holder, Requester};
use crate::service_dir::{SPEC, ServiceDir};

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
    let mut told = None;
    loop {
        match go_on(state_dir, service).await {
            Ok(Todo::Nothing) => return,
            Ok(Todo::Something) => told = None,
            // systemd's journal has it, once; whatever stands in the way may pass.
            Err(failure) => {
                if told.as_ref() != Some(&failure) {
                    super::log(&failure);
                }
                told = Some(failure);
            }
        }
        sleep(RETRY).await;
    }
}

async fn go_on(state_dir: &Path, service: &ServiceName) -> Result<Todo, Failure> {
    let unit = AgentUnit::of(service);
    let there = ServiceDir::look(state_dir, service);
    // Whoever looks after what an earlier swap keeps warm does nothing else, for as long as that is kept.
    tokio::select! {
        () = until_alone(&there, &unit) => {}
        () = until_left(&there, Lease::left_to_the_next) => {}
    }
    // The server was given back meanwhile, and nothing of ours may come back with this process.
    if !unit.is_there() {
        return Ok(Todo::Nothing);
    }
    if !there.root().is_dir() {
        unit.disarm().await?;
        return Ok(Todo::Nothing);
    }
    let dir = ServiceDir::open(state_dir, service)?;
    dir.forget_last_boot(&process::boot())?;
    if let Todo::Something = end_what_died(&dir).await? {
        return Ok(Todo::Something);
    }
    if at_work(&dir).is_some() {
        return Ok(Todo::Something);
    }
    if let Some(swap) = kept_by(&dir)? {
        tokio::select! {
            gone_on = aftermath::go_on(&dir, &swap) => gone_on?,
            // This process holds the lease itself while it retires.
            () = until_left(&dir, Lease::left_by_the_dead) => {}
        }
        return Ok(Todo::Something);
    }
    clear_up(&dir);
    let _lock = dir.lock_host().await?;
    if at_work(&dir).is_some() || kept_by(&dir)?.is_some() {
        return Ok(Todo::Something);
    }
    unit.disarm().await?;
    Ok(Todo::Nothing)
}

/// Closes what is over, and removes what nobody can need any more, as a command's agent does at its end.
fn clear_up(dir: &ServiceDir) {
    if let Some(swap) = unclosed(dir).first()
        && let Ok(_lease) = Lease::take(&dir.root(), &holder(swap))
    {
        close_all(dir);
    }
    // What was asked for last says where nginx's file is.
    let newest = dir.swaps().into_iter().find_map(|swap| {
        let text = std::fs::read(dir.swap(&swap).join(SPEC)).ok()?;
        serde_json::from_slice::<SwapSpec>(&text).ok()
    });
    if let Some(spec) = newest {
        prune::prune(dir, &spec.nginx.config);
    }
}

/// Finishes or unwinds the swap of a holder that died, or one that was left without anybody's word.
async fn end_what_died(dir: &ServiceDir) -> Result<Todo, Failure> {
    let taken = match left_open(dir) {
        Some(swap) => Lease::take(&dir.root(), &holder(&swap)).map(Some),
        None => Lease::take_from_the_dead(&dir.root(), |died| holder(&died.swap)),
    };
    let mut lease = match taken {
        Ok(Some(lease)) => lease,
        Ok(None) => return Ok(Todo::Nothing),
        Err(LeaseError::Held { .. }) => return Ok(Todo::Something),
        Err(error) => return Err(error.to_failure()),
    };
    let died = lease.died.as_ref().map(|died| died.swap.clone());
    let Some(swap) = died.clone().or_else(|| left_open(dir)) else { return Ok(Todo::Something) };
    if let Err(failure) = bring_to_end(dir, &swap, (None, Wanted::End), || {}).await {
        lease.leave_to_the_next();
        return Err(failure);
    }
    if died.is_some() {
        lease.recovered(&holder(&swap)).map_err(|error| error.to_failure())?;
    }
    Ok(Todo::Something)
}

/// Another agent of the service that lives.
fn at_work(dir: &ServiceDir) -> Option<ProcessId> {
    let own = process::own();
    let agents = dir.swaps().into_iter().filter_map(|swap| follow::at_work(&dir.swap(&swap)));
    let holder = Lease::holder(&dir.root()).map(|holder| holder.process);
    agents.chain(holder).find(|agent| *agent != own && process::alive(*agent))
}

/// Waits until nobody else is at work; no longer than its unit is there, whose removal may wait for this process to end.
async fn until_alone(dir: &ServiceDir, unit: &AgentUnit) {
    while unit.is_there()
        && let Some(agent) = at_work(dir)
    {
        tokio::select! {
            exited = process::exited(agent) => if exited.is_err() { sleep(RETRY).await },
            () = unit.removed() => {}
        }
    }
}

/// Returns once a holder of the lease has left it to the next, as `left` tells: nobody else brings his swap to its end.
async fn until_left(dir: &ServiceDir, left: fn(&Path) -> Option<Holder>) {
    let mut watch = Watch::folder(&dir.root());
    while left(&dir.root()).is_none() {
        let holder = Lease::holder(&dir.root()).map(|holder| holder.process);
        tokio::select! {
            () = watch.changed() => {}
            () = follow::gone(holder) => {}
        }
    }
}

fn holder(swap: &SwapId) -> Holder {
    Holder {
        swap: swap.clone(),
        since: Timestamp::now(),
        process: process::own(),
        command: "resume".to_owned(),
        requester: Requester::default(),
        recovers: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use crate::service_dir::write_json;
    use crate::swap::planner::tests::spec;

    #[test]
    fn what_is_over_is_closed_and_what_nobody_needs_removed_before_the_agent_ends() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let swap = aftermath::tests::left_warm(&dir);
        write_json(&dir.swap(&swap).join(SPEC), &spec()).unwrap();
        let nobodys = dir.make_swap(&"s-0".parse().unwrap()).unwrap();
        let mut state = dir.load().unwrap();
        (state.retained, state.serving_swap) = (None, Some(swap.clone()));
        dir.save(&state).unwrap();
        clear_up(&dir);
        assert!(Journal::look(&dir.swap(&swap)).unwrap().closed);
        assert!(!nobodys.exists());
        assert!(Lease::left_by_the_dead(&dir.root()).is_none(), "the lease was not given back");
    }
}
