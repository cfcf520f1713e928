//! The count of everything that happened, and a table of it for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::fault::{Fault, Mishap};

/// How many incidents a table shows; the counts have them all.
const INCIDENTS_SHOWN: usize = 20;

/// The kinds of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Short requests, one after the other on the same connection.
    Keepalive,
    /// Short requests, each on its own connection.
    Fresh,
    /// Long streams of server-sent events, each on its own connection.
    Stream,
    /// Requests whose body trickles in, each on its own connection.
    Upload,
    /// Connections that rest with half a head sent before they go on.
    Idle,
    /// An upgraded connection that stays until it is told to go.
    Websocket,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Keepalive, Self::Fresh, Self::Stream, Self::Upload, Self::Idle, Self::Websocket];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keepalive => "keepalive",
            Self::Fresh => "fresh",
            Self::Stream => "stream",
            Self::Upload => "upload",
            Self::Idle => "idle",
            Self::Websocket => "websocket",
        })
    }
}

/// One lost request.
#[derive(Debug, Clone)]
pub struct Incident {
    /// Whose request.
    pub kind: Kind,
    /// What happened to it.
    pub mishap: Mishap,
    /// When it began, since the start of the load.
    pub began: Duration,
    /// When its client noticed, since the start of the load.
    pub at: Duration,
    /// The client's address and which request on that connection; `-` if there was none.
    pub connection: String,
}

/// A time in which requests had to be lost, told by whoever broke what they needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excuse {
    /// When it broke, since the start of the load.
    pub from: Duration,
    /// When it was whole again.
    pub until: Duration,
    /// How they were lost then; in no other way.
    pub losses: &'static [Fault],
}

impl Excuse {
    /// Whether the request was under way then, and lost in such a way.
    pub fn covers(&self, incident: &Incident) -> bool {
        let was_there = incident.began <= self.until && incident.at >= self.from;
        was_there && self.losses.contains(&incident.mishap.fault)
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:8.3} s {} {}: {}",
            self.at.as_secs_f64(),
            self.kind,
            self.connection,
            self.mishap
        )
    }
}

/// The counts of a load, so far or for good.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    ok: BTreeMap<Kind, u64>,
    lost: BTreeMap<(Kind, Fault), u64>,
    in_flight: BTreeMap<Kind, u64>,
    answered_by: BTreeMap<String, u64>,
    incidents: Vec<Incident>,
}

impl Tally {
    /// Good answers.
    pub fn ok_of(&self, kind: Kind) -> u64 {
        self.ok.get(&kind).copied().unwrap_or_default()
    }

    /// Requests of a kind that were lost in a certain way.
    pub fn lost_of(&self, kind: Kind, fault: Fault) -> u64 {
        self.lost.get(&(kind, fault)).copied().unwrap_or_default()
    }

    /// Requests of any kind that were lost in a certain way.
    pub fn lost(&self, fault: Fault) -> u64 {
        Kind::ALL.iter().map(|kind| self.lost_of(*kind, fault)).sum()
    }

    /// All requests that are over.
    pub fn total(&self) -> u64 {
        self.ok.values().chain(self.lost.values()).sum()
    }

    /// All lost requests but the races of reused connections, which nginx cannot exclude.
    pub fn faults(&self) -> u64 {
        Fault::ALL
            .iter()
            .filter(|fault| **fault != Fault::ReuseRace)
            .map(|fault| self.lost(*fault))
            .sum()
    }

    /// Requests that are under way: a stream that has begun to come, an upload or an idle connection whose first bytes
    /// are sent, a websocket that was upgraded, a short request that is sent.
    pub fn in_flight(&self, kind: Kind) -> u64 {
        self.in_flight.get(&kind).copied().unwrap_or_default()
    }

    /// Good answers by a replica, told by its `system_fingerprint`.
    pub fn answered_by(&self, fingerprint: &str) -> u64 {
        self.answered_by.get(fingerprint).copied().unwrap_or_default()
    }

    /// All replicas that gave good answers, and how many.
    pub fn replicas(&self) -> &BTreeMap<String, u64> {
        &self.answered_by
    }

    /// All lost requests.
    pub fn incidents(&self) -> &[Incident] {
        &self.incidents
    }

    /// Lost requests that nothing excuses; the races of reused connections need no excuse.
    pub fn inexcusable<'a>(&'a self, excuses: &'a [Excuse]) -> impl Iterator<Item = &'a Incident> {
        self.incidents
            .iter()
            .filter(|incident| incident.mishap.fault != Fault::ReuseRace)
            .filter(|incident| !excuses.iter().any(|excuse| excuse.covers(incident)))
    }

    /// Does nothing if no request was lost.
    ///
    /// # Panics
    /// If one was: with the table and the first few incidents.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.faults() == 0, "{} requests were lost\n{self}", self.faults());
    }

    pub(super) fn count_ok(&mut self, kind: Kind, fingerprint: Option<String>) {
        *self.ok.entry(kind).or_default() += 1;
        if let Some(fingerprint) = fingerprint {
            *self.answered_by.entry(fingerprint).or_default() += 1;
        }
    }

    pub(super) fn count_lost(&mut self, incident: Incident) {
        *self.lost.entry((incident.kind, incident.mishap.fault)).or_default() += 1;
        self.incidents.push(incident);
    }

    pub(super) fn takes_off(&mut self, kind: Kind) {
        *self.in_flight.entry(kind).or_default() += 1;
    }

    pub(super) fn lands(&mut self, kind: Kind) {
        *self.in_flight.entry(kind).or_default() -= 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<10}{:>8}", "", "ok")?;
        Fault::ALL.iter().try_for_each(|fault| write!(f, "{fault:>10}"))?;
        writeln!(f)?;
        for kind in Kind::ALL {
            write!(f, "{kind:<10}{:>8}", self.ok_of(kind))?;
            Fault::ALL
                .iter()
                .try_for_each(|fault| write!(f, "{:>10}", self.lost_of(kind, *fault)))?;
            writeln!(f)?;
        }
        writeln!(f, "{} requests, {} lost", self.total(), self.faults())?;
        for (fingerprint, count) in &self.answered_by {
            writeln!(f, "{count} answered by {fingerprint}")?;
        }
        let mut shown = self.incidents.iter().take(INCIDENTS_SHOWN);
        shown.try_for_each(|incident| writeln!(f, "{incident}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(fault: Fault) -> Incident {
        let mishap = Mishap::new(fault, "closed before any byte");
        Incident {
            kind: Kind::Keepalive,
            mishap,
            began: Duration::from_millis(1200),
            at: Duration::from_millis(1500),
            connection: "c#2".to_owned(),
        }
    }

    #[test]
    fn every_fault_counts_but_the_reuse_race() {
        let mut tally = Tally::default();
        for fault in Fault::ALL {
            tally.count_lost(incident(fault));
        }
        assert_eq!((tally.total(), tally.faults()), (10, 9));
        assert_eq!(tally.lost(Fault::ReuseRace), 1);
    }

    #[test]
    #[should_panic(expected = "1.500 s keepalive c#2: reset: closed before any byte")]
    fn says_what_was_lost_when_and_where() {
        let mut tally = Tally::default();
        tally.count_lost(incident(Fault::ResetFresh));
        tally.assert_clean();
    }

    #[test]
    fn what_was_under_way_while_a_server_was_gone_is_excused_and_nothing_else() {
        let covers = |fault, from: u64, until: u64| {
            let [from, until] = [from, until].map(Duration::from_millis);
            Excuse { from, until, losses: &Fault::OF_THE_GONE }.covers(&incident(fault))
        };
        for fault in Fault::OF_THE_GONE {
            assert!(covers(fault, 1400, 1400), "{fault}: in the midst of it");
            assert!(covers(fault, 0, 1200) && covers(fault, 1500, 2000), "{fault}: at its ends");
            assert!(!covers(fault, 0, 1199), "{fault}: all was well when it began");
            assert!(!covers(fault, 1501, 2000), "{fault}: it was lost before");
        }
        for fault in [Fault::Malformed, Fault::Aborted, Fault::NoDone, Fault::OtherStatus] {
            assert!(!covers(fault, 0, 2000), "{fault}");
        }
    }

    #[test]
    fn a_reuse_race_alone_is_clean() {
        let mut tally = Tally::default();
        tally.count_lost(incident(Fault::ReuseRace));
        tally.count_ok(Kind::Keepalive, Some("a".to_owned()));
        tally.assert_clean();
        assert_eq!(tally.answered_by("a"), 1);
    }
}
