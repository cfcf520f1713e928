//! How long a lost connection is made again: for as long as the swap may go on without us.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::spec::SwapSpec;
use crate::model::wire::{Command, Wait};

/// Pauses before the connection is tried again: a router reboots in minutes, a network is repaired in more. The last one is
/// kept: a server that is back is found within half a minute.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

/// What a swap takes beside the waits that have bounds of their own: starting, reloading, proving, stopping, and the end of a
/// swap whose agent died.
const BESIDE: Duration = Duration::from_secs(10 * 60);

/// However late the connection is lost, it is tried for as long as this.
const AT_LEAST: Duration = Duration::from_secs(2 * 60);

/// When to try again, and when no more.
pub(super) struct Patience {
    /// When the swap is over that was asked for, by its own bounds.
    over: Instant,
    lost: Option<Instant>,
    tries: usize,
}

impl Patience {
    /// For a command that is asked now. A command that the server does not go on with by itself needs none.
    pub(super) fn of(command: &Command) -> Option<Self> {
        let (asked, wait, lock_wait) = match command {
            Command::Swap(request) => (&request.asked, request.wait, request.lock_wait),
            Command::Rollback(request) => (&request.asked, request.wait, request.lock_wait),
            Command::Abort(request) => (&request.asked, Wait::Promoted, Duration::ZERO),
            Command::Repair(request) => (&request.asked, Wait::Promoted, request.lock_wait),
            Command::Follow { asked, wait, .. } => (asked, *wait, Duration::ZERO),
            _ => return None,
        };
        let over = Instant::now() + lock_wait + own_time(&asked.spec, wait);
        Some(Self { over, lost: None, tries: 0 })
    }

    /// Something new was heard: the next loss is another one.
    pub(super) fn renew(&mut self) {
        (self.lost, self.tries) = (None, 0);
    }

    /// The pause before the next try; `None` if the swap is over by now, whatever became of it.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let lost = *self.lost.get_or_insert(now);
        let pause = PAUSES[self.tries.min(PAUSES.len() - 1)];
        self.tries += 1;
        (now < self.over.max(lost + AT_LEAST)).then_some(pause)
    }
}

/// How long a swap may take from its beginning until what is waited for.
fn own_time(spec: &SwapSpec, wait: Wait) -> Duration {
    let pull = spec.replica.image_reference().map_or(Duration::ZERO, |_| spec.pull_limit());
    let fetch = spec.fetch.as_ref().map_or(Duration::ZERO, |fetch| fetch.timeout);
    let verify = spec.verify.as_ref().map_or(Duration::ZERO, |verify| verify.within);
    // An undone candidate is drained as well.
    let until_outcome = pull + fetch + spec.ready.timeout + verify + spec.drain.timeout + BESIDE;
    match wait {
        Wait::Promoted => until_outcome,
        Wait::Retired => until_outcome + spec.drain.timeout + spec.retain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::FetchSpec;
    use crate::model::state::Requester;
    use crate::model::wire::{Asked, RepairRequest, Secrets};
    use crate::swap::planner::tests::spec;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Of a swap that may load for 20 minutes.
    fn loads() -> SwapSpec {
        let mut spec = spec();
        (spec.fetch, spec.verify) = (None, None);
        (spec.ready.timeout, spec.drain.timeout) = (20 * MINUTE, MINUTE);
        spec
    }

    /// With that swap, which is repaired.
    fn patience() -> Patience {
        let spec = loads();
        let asked = Asked { spec, secrets: Secrets::default() };
        let requester = Requester::default();
        Patience::of(&Command::Repair(RepairRequest {
            asked,
            id: None,
            lock_wait: Duration::ZERO,
            requester,
        }))
        .unwrap()
    }

    #[test]
    fn an_image_is_waited_for_as_long_as_the_server_pulls_it_and_then_the_weights() {
        let plain = own_time(&loads(), Wait::Promoted);
        let mut contained = loads();
        contained.replica.image = Some("vllm/vllm-openai:v0.11.0".to_owned());
        assert_eq!(own_time(&contained, Wait::Promoted), plain + 120 * MINUTE);
        contained.fetch =
            Some(FetchSpec { command: Vec::new(), timeout: 30 * MINUTE, folder: None, size: None });
        assert_eq!(own_time(&contained, Wait::Promoted), plain + 2 * 30 * MINUTE);
    }

    /// How long it tries, if every try is in vain.
    async fn in_vain(patience: &mut Patience) -> Duration {
        let begin = Instant::now();
        while let Some(pause) = patience.pause() {
            assert!(pause <= MINUTE / 2, "whoever is back waits for {pause:?}");
            tokio::time::sleep(pause).await;
        }
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_the_swap_outlives_is_waited_out() {
        let mut patience = patience();
        tokio::time::sleep(5 * MINUTE).await;
        let tried = in_vain(&mut patience).await;
        let over = 20 * MINUTE + MINUTE + BESIDE;
        assert!(tried >= over - 5 * MINUTE && tried < over - 4 * MINUTE, "{tried:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_swap_that_is_heard_of_again_after_its_time_is_waited_for_anew() {
        let mut patience = patience();
        in_vain(&mut patience).await;
        assert_eq!(patience.pause(), None);
        patience.renew();
        assert_eq!(patience.pause(), Some(PAUSES[0]), "the pauses begin again");
        tokio::time::sleep(PAUSES[0]).await;
        let tried = in_vain(&mut patience).await;
        assert!(tried >= AT_LEAST - PAUSES[0] && tried < AT_LEAST + MINUTE, "{tried:?}");
    }
}
