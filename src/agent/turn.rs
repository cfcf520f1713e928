//! A command's turn: one at a time works on a service, and the next waits for as long as it was told to.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::answer::Answers;
use super::follow;
use crate::abort;
use crate::host::process;
use crate::lease::waiting::Waiting;
use crate::lease::{Lease, LeaseError, RETIRE};
use crate::model::failure::Hint;
use crate::model::ids::SwapId;
use crate::model::state::Holder;
use crate::model::wire::Frame;
use crate::service_dir::{ServiceDir, StateError};

/// How long a command waits for a holder that retires: stopping a drained engine takes seconds.
const RETIRE_WAIT: Duration = Duration::from_secs(120);
/// Between two tries for the lease; flock tells nobody when it comes free.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// How long who has no turn any more, because its runner is gone, can still be given up by its id: a step that is cancelled orders that
/// by another session, within the ten seconds that GitHub leaves it.
const LAST_ORDERS: Duration = Duration::from_secs(10);

/// How a command comes to its turn by itself.
const WAITS: &str = "a command waits for its turn with `lock-wait: 15m` in its step, or `--lock-wait 15m` on a terminal";

/// Why a command has no turn.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoTurn {
    /// It did not have the lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// It could not be seen to wait.
    #[error(transparent)]
    State(#[from] StateError),
    /// It was given up before its turn.
    #[error("it was aborted before it began")]
    Aborted,
    /// Nobody would hear of it.
    #[error("whoever asked for it was gone before its turn")]
    Alone,
}

impl Hint for NoTurn {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Lease(error) => {
                let waits = matches!(error, LeaseError::Held { .. }).then(|| WAITS.to_owned());
                error.hints().into_iter().chain(waits).collect()
            }
            Self::State(error) => error.hints(),
            Self::Aborted | Self::Alone => Vec::new(),
        }
    }
}

/// Takes the lease as [`take_soon`]; waits for another command's for as long as `lock_wait`, and says whose it is. Until it has
/// it others see it wait as `asked`, by whose id it can be given up; what has begun under that id is for its agent to give up. Once
/// `alone` returns it has no turn any more: a runner that comes back asks again, by the same id, and waits anew.
///
/// # Errors
/// If it is held all the time, or `attaches` would follow the holder's swap; if it was given up, or is alone; or if the disk refuses.
pub(super) async fn take(
    (dir, lock_wait): (&ServiceDir, Duration),
    (asked, own): (&Holder, &impl Fn() -> Holder),
    attaches: &impl Fn(&Holder) -> Option<SwapId>,
    answers: &mut Answers,
    alone: impl Future<Output = ()>,
) -> Result<Lease, NoTurn> {
    let has_begun = dir.swap(&asked.swap).exists();
    let waiting = Waiting::enter(dir, asked)?;
    let ordered = || abort::until_ordered(dir, &asked.swap);
    let lease = tokio::select! {
        biased;
        taken = take_in_time((dir, lock_wait), (asked, own), attaches, answers) => taken?,
        _ = ordered(), if !has_begun => return Err(NoTurn::Aborted),
        () = alone => {
            let is_ordered = !has_begun && timeout(LAST_ORDERS, ordered()).await.is_ok();
            return Err(if is_ordered { NoTurn::Aborted } else { NoTurn::Alone });
        }
    };
    let is_given_up = || !has_begun && abort::ordered(dir, &asked.swap).is_some();
    // Whoever gives the order ends the wait then: either he does, and nothing begins, or it has ended here.
    if is_given_up() || (!waiting.leave() && is_given_up()) {
        return Err(NoTurn::Aborted);
    }
    Ok(lease)
}

async fn take_in_time(
    (dir, lock_wait): (&ServiceDir, Duration),
    (asked, own): (&Holder, &impl Fn() -> Holder),
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
                answers.send(&Frame::Waiting {
                    holder,
                    limit: lock_wait,
                    id: Some(asked.swap.clone()),
                });
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
    use std::future::{pending, ready};

    use super::*;
    use crate::abort::AbortOrder;
    use crate::lease::tests::holder;
    use crate::lease::waiting;

    /// A service that somebody else works on, and how a command comes to its turn that would wait for an hour.
    async fn while_held(
        alone: impl Future<Output = ()>,
        meanwhile: impl AsyncFnOnce(&ServiceDir, Lease),
    ) -> (Result<Lease, NoTurn>, Vec<Holder>) {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let held = Lease::take(&dir.root(), &holder("s-1")).unwrap();
        let (own, nobody) = (|| holder("s-2"), |_: &Holder| None);
        let (asked, mut answers) = (holder("s-2"), Answers::to_nobody());
        let hour = Duration::from_secs(3600);
        let (taken, ()) = tokio::join!(
            take((&dir, hour), (&asked, &own), &nobody, &mut answers, alone),
            meanwhile(&dir, held),
        );
        (taken, waiting::all(&dir))
    }

    #[test]
    fn who_has_no_turn_is_told_how_to_wait_for_it() {
        let held = LeaseError::Held { holder: Some(Box::new(holder("s-1"))) };
        let [.., last] = &NoTurn::from(held).hints()[..] else { panic!("no hint") };
        assert!(last.contains("`lock-wait: 15m`") && last.contains("`--lock-wait 15m`"), "{last}");
        assert_eq!(NoTurn::Aborted.hints(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_seen_and_has_his_turn() {
        let (taken, left) = while_held(pending(), async |dir, held| {
            assert_eq!(waiting::all(dir), [holder("s-2")]);
            // An order that means another one ends no wait.
            abort::order(dir, &"s-1".parse().unwrap(), &AbortOrder::default()).unwrap();
            drop(held);
        })
        .await;
        taken.unwrap();
        assert_eq!(left, []);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_given_up_by_his_id_although_the_lease_comes_free() {
        let (taken, left) = while_held(pending(), async |dir, held| {
            let id = "s-2".parse().unwrap();
            abort::order(dir, &id, &AbortOrder::default()).unwrap();
            assert_eq!(waiting::strike(dir, &id), Some(holder("s-2")));
            drop(held);
        })
        .await;
        assert!(matches!(taken, Err(NoTurn::Aborted)), "{taken:?}");
        assert_eq!(left, []);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_alone_has_no_turn_although_the_lease_comes_free() {
        let (taken, left) = while_held(ready(()), async |dir, held| {
            sleep(LAST_ORDERS / 2).await;
            drop(held);
            assert_eq!(waiting::all(dir), [holder("s-2")], "nobody could give it up");
        })
        .await;
        assert!(matches!(taken, Err(NoTurn::Alone)), "{taken:?}");
        assert_eq!(left, []);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_alone_is_given_up_by_the_order_of_the_step_that_has_left_it() {
        let (taken, _) = while_held(ready(()), async |dir, _held| {
            sleep(LAST_ORDERS / 2).await;
            abort::order(dir, &"s-2".parse().unwrap(), &AbortOrder::default()).unwrap();
        })
        .await;
        assert!(matches!(taken, Err(NoTurn::Aborted)), "{taken:?}");
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
