//! A command's turn: one at a time works on a service, and the next waits for as long as it was told to.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::answer::Answers;
use super::follow;
use crate::host::process;
use crate::lease::{Lease, LeaseError, RETIRE};
use crate::model::ids::SwapId;
use crate::model::state::Holder;
use crate::model::wire::Frame;
use crate::service_dir::ServiceDir;

/// How long a command waits for a holder that retires: stopping a drained engine takes seconds.
const RETIRE_WAIT: Duration = Duration::from_secs(120);
/// Between two tries for the lease; flock tells nobody when it comes free.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// Takes the lease as [`take_soon`]; waits for another command's for as long as `lock_wait`, and says whose it is.
///
/// # Errors
/// If it is held all the time, or `attaches` would follow the holder's swap; or if the disk refuses.
pub(super) async fn take(
    (dir, lock_wait): (&ServiceDir, Duration),
    own: &impl Fn() -> Holder,
    attaches: &impl Fn(&Holder) -> Option<SwapId>,
    answers: &mut Answers,
) -> Result<Lease, LeaseError> {
    let begin = Instant::now();
    let mut told = None;
    loop {
        let taken = take_soon(dir, own(), attaches).await;
        let held = match taken {
            Err(LeaseError::Held { holder }) if begin.elapsed() < lock_wait => holder,
            taken => return taken,
        };
        if let Some(holder) = held {
            if attaches(&holder).is_some() {
                return Err(LeaseError::Held { holder: Some(holder) });
            }
            if told.as_ref() != Some(&holder.swap) {
                told = Some(holder.swap.clone());
                answers.send(&Frame::Waiting { holder, limit: lock_wait });
            }
        }
        sleep(RETRY).await;
    }
}

/// Takes the lease; waits only for a holder that is retiring what an earlier swap left, or whose swap `attaches` would follow
/// once somebody works on it.
pub(super) async fn take_soon(
    dir: &ServiceDir,
    holder: Holder,
    attaches: impl Fn(&Holder) -> Option<SwapId>,
) -> Result<Lease, LeaseError> {
    let begin = Instant::now();
    // It ends by itself or begins: after what it plans, and after whatever it first brings to its end.
    let begins = |other: &Holder| {
        let works_on = |swap| follow::at_work(&dir.swap(&swap)).is_some_and(process::alive);
        attaches(other).is_some_and(|swap| !works_on(swap))
    };
    loop {
        let held = match Lease::take(&dir.root(), &holder) {
            Err(LeaseError::Held { holder }) => holder,
            taken => return taken,
        };
        // One that has just got it names itself within moments.
        let passes = held.as_deref().is_none_or(|other| other.command == RETIRE)
            && begin.elapsed() < RETIRE_WAIT;
        if !passes && !held.as_deref().is_some_and(begins) {
            return Err(LeaseError::Held { holder: held });
        }
        sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state::Requester;
    use jiff::Timestamp;

    fn holder(swap: &str) -> Holder {
        Holder {
            swap: swap.parse().unwrap(),
            since: Timestamp::UNIX_EPOCH,
            process: process::own(),
            command: "swap".to_owned(),
            requester: Requester::default(),
            recovers: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ones_own_swap_is_awaited_for_as_long_as_it_recovers_another() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        Lease::take(&dir.root(), &holder("s-1")).unwrap().leave_to_the_next();
        let mut lease = Lease::take(&dir.root(), &holder("s-2")).unwrap();
        let own = |held: &Holder| Some(held.swap.clone()).filter(|swap| swap.as_str() == "s-2");
        let again = take_soon(&dir, holder("s-2"), own);
        let goes_on = async {
            tokio::time::sleep(RETIRE_WAIT * 5).await;
            lease.recovered(&holder("s-2")).unwrap();
            tokio::time::sleep(RETIRE_WAIT / 2).await;
            let folder = dir.make_swap(&"s-2".parse().unwrap()).unwrap();
            // A follower that looks now would take it for one whose agent is gone.
            tokio::time::sleep(RETIRE_WAIT / 2).await;
            follow::take_over(&folder).unwrap();
            std::future::pending::<()>().await;
        };
        let begin = tokio::time::Instant::now();
        let taken = tokio::select! {
            taken = again => taken,
            () = goes_on => unreachable!(),
        };
        let Err(LeaseError::Held { holder: Some(held) }) = taken else { panic!("{taken:?}") };
        assert_eq!((held.swap.as_str(), held.recovers), ("s-2", None));
        assert!(begin.elapsed() >= RETIRE_WAIT * 5, "it gave up before it was followable");
        assert_eq!(follow::at_work(&dir.swap(&held.swap)), Some(process::own()));
    }
}
