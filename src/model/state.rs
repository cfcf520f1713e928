//! The service's state on the server. Versioned; where nginx and this differ, nginx is right.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::ids::{Port, ProcessId, ServiceName, SlotName, SwapId};
use super::outcome::Outcome;
use super::plan::Strategy;
use super::record::Retained;
use super::replica::{Replica, Revision};

/// Version of the state's format.
pub const STATE_VERSION: u32 = 1;

/// What is known of a service between commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// [`STATE_VERSION`] of the writer.
    pub v: u32,
    /// The replica that was promoted last.
    pub serving: Option<Replica>,
    /// The swap whose result serves; `None` before the first swap and after a rollback.
    pub serving_swap: Option<SwapId>,
    /// The replica that served before, while it is still there.
    pub retained: Option<Retained>,
    /// The latest swaps, newest last, at most [`HISTORY`]; see [`ServiceState::remember`].
    pub history: Vec<Past>,
}

impl ServiceState {
    /// Takes every process out of it: those of another boot are gone, whoever has their pids now.
    pub fn forget_processes(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.main = ProcessId::GONE;
        }
        if let Some(retained) = &mut self.retained {
            retained.replica.main = ProcessId::GONE;
            retained.old_workers.clear();
        }
    }

    /// The swap or rollback that brought what serves by this record.
    pub fn brought_by(&self) -> Option<&SwapId> {
        let serves = self.serving.as_ref().map(|replica| replica.revision.digest.as_str());
        brought_by(self.serving_swap.as_ref(), &self.history, serves)
    }

    /// Adds a swap to the history. One that was stuck has one entry all the same.
    ///
    /// Beyond [`HISTORY`] the oldest goes of those that were promoted or of the others, whichever are more: a job that fails
    /// time and again takes no way back away. What brought that which serves stays.
    pub fn remember(&mut self, past: Past) {
        self.history.retain(|other| other.swap != past.swap);
        self.history.push(past);
        while self.history.len() > HISTORY {
            let promoted = |past: &Past| past.outcome == Outcome::Promoted;
            let more = 2 * self.history.iter().filter(|past| promoted(past)).count() > HISTORY;
            let brought = self.brought_by();
            let goes = |past: &Past| promoted(past) == more && Some(&past.swap) != brought;
            let oldest = self.history.iter().position(goes).unwrap_or(0);
            self.history.remove(oldest);
        }
    }
}

/// The swap or rollback that brought what serves now, by its revision's digest: the swap whose result serves, or the newest
/// rollback to that revision. `None` if nginx sends requests to something else than either left.
pub fn brought_by<'a>(
    serving_swap: Option<&SwapId>,
    history: &'a [Past],
    serves: Option<&str>,
) -> Option<&'a SwapId> {
    let is_its = |past: &Past| match past.outcome {
        Outcome::Promoted => Some(&past.swap) == serving_swap,
        _ => serving_swap.is_none(),
    };
    let is_it = |past: &&Past| {
        Some(past.revision.digest.as_str()) == serves && past.brought() && is_its(past)
    };
    history.iter().rev().find(is_it).map(|past| &past.swap)
}

/// How many swaps the history keeps.
pub const HISTORY: usize = 50;

impl Default for ServiceState {
    fn default() -> Self {
        Self {
            v: STATE_VERSION,
            serving: None,
            serving_swap: None,
            retained: None,
            history: Vec::new(),
        }
    }
}

/// One swap of the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The swap.
    pub swap: SwapId,
    /// When it concluded.
    pub at: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// What it was to bring.
    pub revision: Revision,
    /// How it was to bring it; `None` in what was written before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
}

impl Past {
    /// Whether its revision served when it was over.
    pub fn brought(&self) -> bool {
        match self.outcome {
            Outcome::Promoted => true,
            Outcome::RolledBack => self.strategy.is_none_or(Strategy::is_rollback),
            Outcome::Unchanged | Outcome::Failed | Outcome::Aborted | Outcome::Stuck => false,
        }
    }
}

/// Who holds the lease, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The swap. Of a repair that waits for its turn, its own id.
    pub swap: SwapId,
    /// Since when.
    pub since: Timestamp,
    /// The agent's process on the server.
    pub process: ProcessId,
    /// `swap`, `rollback`, `abort`, `repair` or `retire`.
    pub command: String,
    /// Who asked.
    pub requester: Requester,
    /// Who held the lease before and died. As long as this is here, the holder brings that one's swap to its end, and has
    /// begun nothing of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovers: Option<Box<Holder>>,
}

impl Holder {
    /// The swap that is worked on now: a dead holder's comes first.
    pub fn works_on(&self) -> &SwapId {
        self.recovers.as_ref().map_or(&self.swap, |died| &died.swap)
    }
}

/// Who asked, as GitHub tells it; all unknown from a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Requester {
    /// `owner/name`.
    pub repository: Option<String>,
    /// Run id.
    pub run_id: Option<String>,
    /// Attempt of the run.
    pub run_attempt: Option<String>,
    /// Job id in the workflow.
    pub job: Option<String>,
    /// Step id in the job.
    pub step: Option<String>,
    /// Who started the run, or the local user.
    pub actor: Option<String>,
    /// Commit of the workflow.
    pub sha: Option<String>,
    /// Link to the run.
    pub url: Option<String>,
}

impl Requester {
    /// Whether its run was run before.
    pub fn is_rerun(&self) -> bool {
        self.run_attempt.as_deref().is_some_and(|attempt| attempt != "1")
    }
}

/// The answer of `status`: records beside what is observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The service.
    pub service: ServiceName,
    /// The port that nginx's upstream names; `None`: nginx cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nginx_port: Option<Port>,
    /// Why requests are not seen to go there: nginx may not have loaded what its file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub astray: Option<Failure>,
    /// What runs in each slot.
    pub slots: Vec<SlotReport>,
    /// Who holds the lease.
    pub holder: Option<Holder>,
    /// The agent that goes on while nobody holds the lease, and with which swap: one that is not at its end, or one that keeps
    /// something warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<(SwapId, ProcessId)>,
    /// Who waits for a turn, as long as they do first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Holder>,
    /// The step that is being done, while somebody is at work.
    #[serde(default)]
    pub step: Option<String>,
    /// The newest swap and what is found of it, if it is not at its end and nobody works on it.
    #[serde(default)]
    pub unfinished: Option<(SwapId, String)>,
    /// The swap whose result serves, if it was one.
    pub serving_swap: Option<SwapId>,
    /// Until when a warm rollback is possible.
    pub rollback_until: Option<Timestamp>,
    /// Why what was to be retired is still there although its time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overdue: Option<Failure>,
    /// The latest swaps, newest last.
    pub history: Vec<Past>,
}

impl StatusReport {
    /// The slot that traffic goes to, by nginx's file.
    pub fn serving(&self) -> Option<&SlotReport> {
        self.slots.iter().find(|slot| Some(slot.port) == self.nginx_port)
    }

    /// The digest of what serves.
    pub fn serves(&self) -> Option<&str> {
        Some(self.serving()?.revision.as_ref()?.digest.as_str())
    }

    /// The swap or rollback that brought what serves now.
    pub fn brought_by(&self) -> Option<&SwapId> {
        brought_by(self.serving_swap.as_ref(), &self.history, self.serves())
    }

    /// What took the result of a swap of the past out of service: the next one that brought something.
    pub fn ended_by(&self, past: &Past) -> Option<&Past> {
        let mut after = self.history.iter().skip_while(|other| other.swap != past.swap).skip(1);
        after.find(|other| other.brought())
    }
}

/// The answer of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// The service.
    pub service: ServiceName,
    /// The latest swaps, newest last.
    pub chapters: Vec<Chapter>,
}

/// One swap of the past, and the way back to what it brought and to what it replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chapter {
    /// The swap.
    pub past: Past,
    /// The way back to its revision.
    pub way: WayBack,
    /// What served before it, if that is known, and the way back there.
    pub previous: Option<(Revision, WayBack)>,
}

/// Whether and how a rollback could make a revision serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WayBack {
    /// It serves.
    Serves,
    /// It is kept warm: only traffic has to move.
    Warm,
    /// It has to be started again, from what the folder of this swap holds.
    Cold(SwapId),
    /// It was rolled back by this swap: no rollback brings it back.
    RolledBack(SwapId),
    /// It never served.
    NeverServed,
    /// What it takes to start it again is not there any more.
    Lost,
}

/// One slot as observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotReport {
    /// The slot.
    pub slot: SlotName,
    /// Its port.
    pub port: Port,
    /// `serving` (nginx sends requests there), `down` (it does, and nobody listens), `candidate` and `incumbent` of a swap
    /// that has no outcome yet, `retained`, `unknown` or `free`.
    pub role: String,
    /// What runs there, where it is known.
    pub revision: Option<Revision>,
    /// Whether it answers as ready.
    pub ready: bool,
    /// Requests in flight by the engine's own count.
    pub in_flight: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(swap: &str, outcome: Outcome, digest: &str) -> Past {
        let revision = Revision {
            digest: digest.to_owned(),
            model: "m".to_owned(),
            git_sha: None,
            image: None,
        };
        Past {
            swap: swap.parse().unwrap(),
            at: Timestamp::UNIX_EPOCH,
            outcome,
            revision,
            strategy: None,
        }
    }

    fn serving(digest: &str) -> Replica {
        serde_json::from_value(serde_json::json!({
            "slot": "a", "port": 8001, "main": { "pid": 1, "start": 1 }, "swap": null, "log": null,
            "revision": { "digest": digest, "model": "m", "git_sha": null },
        }))
        .unwrap()
    }

    fn swaps(state: &ServiceState) -> Vec<&str> {
        state.history.iter().map(|past| past.swap.as_str()).collect()
    }

    fn fail(state: &mut ServiceState, times: usize) {
        for n in 0..times {
            let outcome = if n % 2 == 0 { Outcome::Failed } else { Outcome::RolledBack };
            state.remember(past(&format!("s-bad-{n}"), outcome, "r-bad"));
        }
    }

    #[test]
    fn swaps_that_come_to_nothing_take_no_way_back_away() {
        let mut state = ServiceState::default();
        for n in 0..3 {
            state.remember(past(&format!("s-{n}"), Outcome::Promoted, &format!("r-{n}")));
        }
        state.serving_swap = Some("s-2".parse().unwrap());
        state.serving = Some(serving("r-2"));
        fail(&mut state, 2 * HISTORY);
        let kept = swaps(&state);
        assert_eq!((kept.len(), &kept[..3]), (HISTORY, &["s-0", "s-1", "s-2"][..]));
        assert_eq!((kept[3], kept[HISTORY - 1]), ("s-bad-53", "s-bad-99"), "the oldest go");
    }

    #[test]
    fn the_rollback_that_brought_what_serves_stays() {
        let mut state = ServiceState::default();
        state.remember(past("s-0", Outcome::Promoted, "r-0"));
        state.remember(past("s-1", Outcome::Promoted, "r-1"));
        state.remember(past("s-back", Outcome::RolledBack, "r-0"));
        state.serving = Some(serving("r-0"));
        fail(&mut state, 2 * HISTORY);
        assert_eq!(swaps(&state)[..3], ["s-0", "s-1", "s-back"]);
    }

    #[test]
    fn of_promoted_swaps_the_latest_stay_and_half_of_the_others() {
        let mut state = ServiceState::default();
        fail(&mut state, HISTORY);
        for n in 0..HISTORY {
            state.remember(past(&format!("s-{n}"), Outcome::Promoted, "r"));
        }
        let kept = swaps(&state);
        let promoted = kept.iter().filter(|swap| !swap.contains("bad")).count();
        assert_eq!((kept.len(), promoted), (HISTORY, HISTORY / 2));
        assert_eq!(kept.last(), Some(&"s-49"));
    }
}
