//! How long a lost connection is made again: for as long as the swap may go on without us.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::plan::{Plan, PlannedStep};
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
    /// Where the stream may end.
    wait: Wait,
    /// The bounds that no plan has.
    beyond: Beyond,
    lost: Option<Instant>,
    tries: usize,
}

/// What a plan does not tell.
struct Beyond {
    /// An undone candidate is drained as well, perhaps.
    drain: Duration,
    /// How long the old model stays warm.
    retain: Duration,
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
        let spec = &asked.spec;
        let over = Instant::now() + lock_wait + own_time(spec, wait);
        let beyond = Beyond { drain: spec.drain.timeout, retain: spec.retain };
        Some(Self { over, wait, beyond, lost: None, tries: 0 })
    }

    /// The plan of what is waited for, told then: it knows what has to be brought, and by which bounds. A rollback may have those
    /// of then, and an abort or a repair is about what another configuration has begun. A plan of an older agent tells none.
    pub(super) fn hear(&mut self, (plan, told): (&Plan, Instant)) {
        let is_bounded = plan.steps.iter().any(|planned| planned.limit.is_some());
        if is_bounded {
            self.over = told + self.time_of(plan);
        }
    }

    fn time_of(&self, plan: &Plan) -> Duration {
        let all = |steps: &[PlannedStep]| steps.iter().filter_map(|planned| planned.limit).sum();
        let Beyond { drain, retain } = self.beyond;
        let (until_outcome, later): (Duration, Duration) = (all(&plan.steps), all(&plan.later));
        let until_outcome = until_outcome + later.max(drain) + BESIDE;
        match self.wait {
            Wait::Promoted => until_outcome,
            Wait::Retired => until_outcome + later + retain,
        }
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

/// How long a swap may take from its beginning until what is waited for, at most: its plan is not known yet.
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
    use crate::model::spec::{FetchSpec, Runtime};
    use crate::model::state::Requester;
    use crate::model::wire::{Asked, RepairRequest, Secrets, When};
    use crate::swap::planner::tests::{acts, adopted_in_a, spec};
    use crate::swap::planner::{Observed, plan_swap};

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

    /// How much longer it is waited for from now on, in whole minutes, once this plan is told.
    fn left(command: &Command, plan: &Plan) -> u64 {
        let now = Instant::now();
        let mut patience = Patience::of(command).unwrap();
        patience.hear((plan, now));
        (patience.over - now).as_secs() / 60
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_that_is_told_is_waited_for_by_what_it_contains() {
        let mut spec = loads();
        (spec.replica.runtime, spec.replica.image) =
            (Runtime::Docker, Some("vllm/vllm-openai:v0.11.0".to_owned()));
        let planned = |spec: &SwapSpec, must_pull| {
            acts(plan_swap(spec, &Observed { must_pull, ..adopted_in_a() }, When::Changed))
        };
        let follow = |wait| {
            let asked = Asked { spec: spec.clone(), secrets: Secrets::default() };
            Command::Follow { asked, swap: "s-1".parse().unwrap(), since: 0, wait }
        };
        let here = follow(Wait::Promoted);
        // To load, to drain what is undone, and what is beside.
        assert_eq!(left(&here, &planned(&spec, false)), 20 + 1 + 10, "the image is here");
        assert_eq!(left(&here, &planned(&spec, true)), 120 + 20 + 1 + 10);
        // What somebody else's configuration, or that of then, has begun.
        let mut slower = spec.clone();
        (slower.ready.timeout, slower.drain.timeout) = (60 * MINUTE, 5 * MINUTE);
        let timeout = 240 * MINUTE;
        slower.fetch = Some(FetchSpec { command: Vec::new(), timeout, folder: None, size: None });
        let slower = planned(&slower, false);
        assert_eq!(left(&here, &slower), 240 + 60 + 5 + 10);
        let retain = spec.retain.as_secs() / 60;
        assert_eq!(left(&follow(Wait::Retired), &slower), 240 + 60 + 5 + 10 + 5 + retain);

        let mut of_older_agent = planned(&spec, false);
        of_older_agent.steps.iter_mut().for_each(|planned| planned.limit = None);
        assert_eq!(left(&here, &of_older_agent), 120 + 20 + 1 + 10, "by the configuration alone");
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
