//! What the simulated host judges at every call, whatever a test is about: no replica is stopped with requests in flight or
//! while nginx points at it, nothing is done before its record, nginx never points at nothing, and a boot would start what
//! it points at.

use model_swap::host::Ending;
use model_swap::model::record::{Record, RecordKind};
use model_swap::model::replica::Keeper;

use super::host::{SimHost, Stage};
use super::world::SimReplica;
use super::wrong::is_full;

impl SimHost {
    /// Between any two calls nginx points at a replica that is ready.
    pub(super) fn judge_upstream(&self, verb: &str) {
        let world = self.world.borrow();
        let loaded = world.loaded;
        let may_be_down = self.may_serve_nobody.get() || world.outage.is_some();
        let served = world.on(loaded).is_some() || may_be_down;
        assert!(served, "after {verb}, nobody serves on {loaded}: {world:#?}");
    }

    /// Whenever the power fails, a boot starts what nginx points at then. Nobody promises that of a plain process.
    pub(super) fn judge_boot(&self, verb: &str) {
        let world = self.world.borrow();
        let Some(replica) = world.after_boot() else { return };
        let promised = matches!(replica.keeper, Keeper::Unit(_));
        assert!(
            !promised || world.is_booted(&replica.keeper),
            "after {verb}, a boot would not start what nginx points at: {world:#?}"
        );
    }

    /// No act before its record.
    pub(super) fn judge_record(&self, verb: &str) {
        let stage = self.stage();
        let watched = self.watched.borrow();
        let watched = watched.as_ref().unwrap_or_else(|| panic!("{verb} outside of a swap"));
        let text = std::fs::read_to_string(&watched.journal).expect("a journal");
        let last: Record =
            serde_json::from_str(text.lines().last().expect("a record")).expect("a record");
        let announced = match (stage, &last.kind) {
            (Stage::Act(now), RecordKind::Started { step, .. })
            | (Stage::Undo(now), RecordKind::UndoStarted { step }) => now == *step,
            // A full disk takes no event any more: the record alone tells.
            (_, RecordKind::Started { .. } | RecordKind::UndoStarted { .. }) => is_full(),
            _ => false,
        };
        assert!(announced, "{verb} in {stage:?}, and the last record is {:?}", last.kind);
    }

    /// Nobody is stopped who has requests, or may get some.
    pub(super) fn judge_stop(&self, replica: &SimReplica, how: Ending) {
        let world = self.world.borrow();
        let in_flight = world.in_flight(replica);
        assert_ne!(world.loaded, replica.port, "stopped what nginx points at: {replica:?}");
        let may_cut = self.may_cut.get();
        let cut = how == Ending::Cut && may_cut;
        // A worker may have the body of a request that it has not sent yet.
        let told = world.workers_of(replica.port);
        assert!(
            told.is_empty() || may_cut,
            "stopped while {told:?} may send it requests: {replica:?}"
        );
        // What it has then went past nginx, and may never end.
        let is_unknown = !replica.had_traffic;
        assert!(
            in_flight == 0 || cut || is_unknown,
            "stopped with {in_flight} requests in flight: {replica:?}"
        );
    }
}
