//! A host that acts on the small world, writes down every call, and fails where it is told to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model_swap::event_log::EventReader;
use model_swap::host::engine::{Answer, Models};
use model_swap::host::fetch::Fetch;
use model_swap::host::gpu::Gpus;
use model_swap::host::nginx::{Expectation, Proof, Reloaded, UpstreamView, WorkerLeft};
use model_swap::host::process::{self, Inherited, Launch, StopOrder, Stopped};
use model_swap::host::runtime::{Boot, Started};
use model_swap::host::{Ending, Host, Unloaded};
use model_swap::model::event::EventKind;
use model_swap::model::failure::Failure;
use model_swap::model::ids::{Port, ProcessId, SlotName};
use model_swap::model::record::UpstreamImage;
use model_swap::model::replica::{Found, ImageHere, Keeper, Replica, Systemd};
use tokio::time::Instant;

use super::world::{self, SimReplica, SimWorld, line};
use super::wrong::Wrong;
pub(crate) use super::wrong::{Death, Fault};

/// Between two looks at whether a process ended, in the world's time.
const TICK: Duration = Duration::from_millis(50);

/// Verbs that change nothing and have one answer.
pub(crate) const SURE: [&str; 6] = ["now", "pause", "exited", "alive", "workers_left", "gpus"];

/// What the agent is doing, by its own event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No step.
    Outside,
    /// Doing the step.
    Act(usize),
    /// Undoing the step.
    Undo(usize),
}

/// One call of a verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) verb: &'static str,
    pub(crate) stage: Stage,
}

/// The host.
pub(crate) struct SimHost {
    pub(crate) world: RefCell<SimWorld>,
    /// The model that a replica of the specification should serve.
    pub(crate) wanted: RefCell<String>,
    calls: RefCell<Vec<Call>>,
    pub(super) faults: RefCell<Vec<Fault>>,
    struck: RefCell<Vec<Call>>,
    pub(super) watched: RefCell<Option<Watched>>,
    pub(super) may_cut: Cell<bool>,
    pub(super) may_serve_nobody: Cell<bool>,
    loaded: RefCell<Vec<Port>>,
    began: Instant,
    /// How far somebody has set the clock.
    pub(super) set_by: Cell<SignedDuration>,
    /// The lease as the last agent that died had it, and its file.
    pub(super) held: RefCell<Option<(Vec<u8>, PathBuf)>>,
}

/// The files of the swap that the agent works on.
pub(super) struct Watched {
    events: EventReader,
    stage: Stage,
    pub(super) journal: PathBuf,
}

impl SimHost {
    pub(crate) fn new(world: SimWorld) -> Self {
        Self {
            world: RefCell::new(world),
            wanted: RefCell::default(),
            calls: RefCell::default(),
            faults: RefCell::default(),
            struck: RefCell::default(),
            watched: RefCell::default(),
            may_cut: Cell::new(false),
            may_serve_nobody: Cell::new(false),
            loaded: RefCell::default(),
            began: Instant::now(),
            set_by: Cell::new(SignedDuration::ZERO),
            held: RefCell::default(),
        }
    }

    /// Follows the agent's own files from now on.
    pub(crate) fn watch(&self, folder: &Path) {
        let watched = Watched {
            events: EventReader::new(folder),
            stage: Stage::Outside,
            journal: folder.join("journal.ndjson"),
        };
        *self.watched.borrow_mut() = Some(watched);
    }

    /// Forgets the calls so far, and lets these go wrong.
    pub(crate) fn arm(&self, faults: &[Fault]) {
        self.calls.borrow_mut().clear();
        self.struck.borrow_mut().clear();
        *self.faults.borrow_mut() = faults.to_vec();
    }

    /// The specification says `on_timeout: cut`.
    pub(crate) fn allow_cuts(&self) {
        self.may_cut.set(true);
    }

    /// What nginx points at has died, and that is no fault of the agent's.
    pub(crate) fn allow_nobody(&self) {
        self.may_serve_nobody.set(true);
    }

    /// Sets the server's clock forward or back.
    pub(crate) fn set_clock(&self, by: SignedDuration) {
        self.set_by.set(by);
    }

    /// Every call since the arming.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// The calls that went wrong since the arming.
    pub(crate) fn struck(&self) -> Vec<Call> {
        self.struck.borrow().clone()
    }

    /// Whether nginx loaded another port since the swap that is watched was begun.
    pub(crate) fn moved(&self) -> bool {
        !self.loaded.borrow().is_empty()
    }

    /// Forgets what nginx loaded: another swap begins.
    pub(crate) fn settled(&self) {
        self.loaded.borrow_mut().clear();
    }

    /// How often a verb was called since the arming.
    pub(crate) fn count(&self, verb: &str) -> usize {
        self.calls.borrow().iter().filter(|call| call.verb == verb).count()
    }

    pub(super) fn stage(&self) -> Stage {
        let mut watched = self.watched.borrow_mut();
        let Some(watched) = watched.as_mut() else { return Stage::Outside };
        for event in watched.events.read().expect("the event log can be read") {
            watched.stage = match event.kind {
                EventKind::StepStarted { index } => Stage::Act(index),
                EventKind::UndoStarted { index } => Stage::Undo(index),
                EventKind::StepSucceeded { .. }
                | EventKind::StepFailed { .. }
                | EventKind::UndoFinished { .. }
                | EventKind::UndoFailed { .. }
                | EventKind::Concluded(_) => Stage::Outside,
                _ => watched.stage,
            };
        }
        watched.stage
    }

    /// Writes a call down; what goes wrong with it, unless the agent died of it.
    fn note(&self, verb: &'static str) -> Option<Wrong> {
        let call = Call { verb, stage: self.stage() };
        let number = self.calls.borrow().len();
        self.calls.borrow_mut().push(call.clone());
        let wrong = self.faults.borrow().iter().find(|f| f.call == number).map(|f| f.wrong);
        if wrong.is_some() {
            self.struck.borrow_mut().push(call);
        }
        self.world.borrow_mut().goes_down();
        wrong.into_iter().for_each(|wrong| self.bring_about(wrong));
        if wrong == Some(Wrong::Dies) {
            self.die();
        }
        wrong
    }

    /// A verb that may fail.
    pub(super) fn call<T>(
        &self,
        verb: &'static str,
        effect: impl FnOnce(&mut SimWorld) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let wrong = self.note(verb);
        let injected = || Failure::new(format!("{verb} fails as ordered"));
        if wrong == Some(Wrong::Fails) {
            return Err(injected());
        }
        let before = self.world.borrow().loaded;
        self.world.borrow_mut().catch_up();
        let done = effect(&mut self.world.borrow_mut());
        let after = self.world.borrow().loaded;
        if before != after {
            self.loaded.borrow_mut().push(after);
        }
        self.judge_upstream(verb);
        self.judge_boot(verb);
        match wrong {
            Some(Wrong::DoesAndFails) => Err(injected()),
            Some(Wrong::DoesAndDies) => self.die(),
            _ => done,
        }
    }

    /// A verb that has an answer in any case: another one where it goes wrong.
    fn answer<T>(&self, verb: &'static str, right: impl FnOnce(&SimWorld) -> T, wrong: T) -> T {
        match self.note(verb) {
            Some(Wrong::Fails | Wrong::DoesAndFails) => wrong,
            Some(Wrong::DoesAndDies) => self.die(),
            _ => right(&self.world.borrow()),
        }
    }

    /// Returns once a process is gone, in the world's time.
    async fn gone(&self, process: ProcessId) {
        while self.world.borrow().alive(process) {
            tokio::time::sleep(TICK).await;
        }
    }
}

impl Host for SimHost {
    fn now(&self) -> Timestamp {
        self.note("now");
        let elapsed = SignedDuration::try_from(self.began.elapsed()).expect("a short test");
        Timestamp::UNIX_EPOCH + elapsed + self.set_by.get()
    }

    async fn pause(&self, time: Duration) {
        self.note("pause");
        tokio::time::sleep(time).await;
    }

    fn systemd(&self) -> Systemd {
        self.world.borrow().systemd
    }

    async fn is_going_down(&self) -> bool {
        self.world.borrow().outage.is_some()
    }

    async fn find(&self, port: Port) -> Result<Option<Found>, Failure> {
        self.call("find", |world| Ok(world.found(port)))
    }

    async fn listeners(&self, port: Port) -> Result<Vec<ProcessId>, Failure> {
        self.call("listeners", |world| Ok(world.on(port).map(|r| r.id).into_iter().collect()))
    }

    fn is_silent(&self, port: Port) -> bool {
        self.call("is_silent", |world| Ok(world.on(port).is_none())).unwrap_or(false)
    }

    fn addresses(&self, _: Port) -> BTreeSet<IpAddr> {
        BTreeSet::new()
    }

    fn alive(&self, process: ProcessId) -> bool {
        self.note("alive");
        self.world.borrow().alive(process)
    }

    fn tree(&self, main: ProcessId) -> Result<Vec<ProcessId>, Failure> {
        self.call("tree", |world| Ok(if world.alive(main) { vec![main] } else { Vec::new() }))
    }

    fn inherited(&self, _: Option<ProcessId>) -> Result<Inherited, Failure> {
        self.call("inherited", |_| {
            Ok(Inherited {
                identity: process::Identity { uid: 1000, gid: 1000, groups: Vec::new() },
                user: None,
                home: "/home/llm".into(),
                cwd: "/srv".into(),
                path: "/usr/bin".to_owned(),
            })
        })
    }

    fn runnable(&self, _: Option<ProcessId>) -> Result<(), Failure> {
        self.call("runnable", |_| Ok(()))
    }

    async fn image(&self) -> Result<Option<ImageHere>, Failure> {
        Ok(None)
    }

    async fn pull(&self, _: impl Fn(String)) -> Result<(), Failure> {
        Ok(())
    }

    async fn fetch(&self, _: &Fetch, told: impl Fn(String)) -> Result<String, Failure> {
        self.judge_record("fetch");
        self.call("fetch", |_| Ok(()))?;
        tokio::time::sleep(TICK).await;
        told("half of it".to_owned());
        tokio::time::sleep(TICK).await;
        Ok("all is here".to_owned())
    }

    async fn gpus(&self) -> Gpus {
        self.note("gpus");
        world::gpus()
    }

    async fn start(&self, launch: &Launch) -> Result<Started, Failure> {
        self.judge_record("start");
        let main = self.call("start", |world| {
            // systemd begins nothing any more.
            match world.outage {
                Some(_) => Err(Failure::new("it is destructive")),
                None => Ok(world.start(launch)),
            }
        })?;
        Ok(Started { main, keeper: launch.keeper.clone(), invocation: None, left_out: Vec::new() })
    }

    async fn until_runs(
        &self,
        started: &Started,
        _: Duration,
        _: impl Fn(String),
    ) -> Result<Started, Failure> {
        self.call("until_runs", |_| Ok(started.clone()))
    }

    async fn exited(&self, process: ProcessId) {
        self.note("exited");
        self.gone(process).await;
    }

    async fn answers(&self, _: &Keeper) -> Result<(), Failure> {
        self.call("answers", |world| world.answers())
    }

    async fn marked(&self, keeper: &Keeper, marker: &str) -> Result<Option<StopOrder>, Failure> {
        self.call("marked", |world| {
            world.answers()?;
            Ok(world.marked(keeper, marker).map(|replica| StopOrder {
                main: replica.id,
                tree: vec![replica.id],
                marker: replica.marker.clone(),
                grace: Duration::from_secs(30),
                keeper: keeper.clone(),
            }))
        })
    }

    async fn booted(&self, keeper: &Keeper) -> Result<bool, Failure> {
        self.call("booted", |world| Ok(world.is_booted(keeper)))
    }

    async fn on_boot(&self, keeper: &Keeper, boot: Boot) -> Result<(), Failure> {
        self.judge_record("on_boot");
        self.call("on_boot", |world| {
            world.on_boot(keeper, boot);
            Ok(())
        })
    }

    async fn promoted(&self, _: &Keeper) -> Result<(), Failure> {
        self.judge_record("promoted");
        self.call("promoted", SimWorld::promoted)
    }

    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure> {
        self.judge_record("stop");
        let ordered = |r: &&SimReplica| r.id == order.main && r.keeper == order.keeper;
        let replica = self.world.borrow().replicas.iter().find(ordered).cloned();
        if let Some(replica) = &replica {
            self.judge_stop(replica, how);
        }
        self.call("stop", |world| {
            world.on_boot(&order.keeper, Boot::Leaves);
            if let Some(replica) = &replica {
                world.kill(replica.id);
            }
            let ended = replica.map(|replica| replica.id).into_iter().collect();
            Ok(Stopped { ended, ..Stopped::default() })
        })
    }

    fn stop_grace(&self, _: &[String]) -> Duration {
        Duration::from_secs(30)
    }

    async fn restarted(&self, _: ProcessId, _: &[String]) -> Option<ProcessId> {
        None
    }

    async fn log_tail(&self, _: &Replica, _: usize) -> Vec<String> {
        vec!["the last words of the engine".to_owned()]
    }

    async fn loading(&self, _: &Replica) -> Option<String> {
        None
    }

    async fn ask(&self, port: Port) -> Answer {
        let unwell = Answer::Unwell("unwell as ordered".to_owned());
        self.answer("ask", |world| world.answer_on(port), unwell)
    }

    fn check(&self, _: &SlotName, models: &Models) -> Result<(), Failure> {
        self.call("check", |_| {
            let right = models.root() == Some(self.wanted.borrow().as_str());
            if right { Ok(()) } else { Err(Failure::new(format!("it serves {models}"))) }
        })
    }

    fn names(&self) -> Vec<String> {
        vec!["chat".to_owned()]
    }

    async fn in_flight(&self, port: Port) -> Result<u64, Failure> {
        self.call("in_flight", |world| match world.on(port) {
            Some(replica) if world.uncounted != Some(port) => Ok(world.in_flight(replica)),
            _ => Err(Failure::new(format!("cannot read http://127.0.0.1:{port}/metrics"))),
        })
    }

    async fn fingerprint(&self, port: Port, _: &str) -> Option<String> {
        self.answer("fingerprint", |world| Some(format!("vllm-{}", world.on(port)?.root)), None)
    }

    async fn upstream(&self) -> Result<UpstreamView, Failure> {
        self.call("upstream", |world| {
            world.seen().map(|()| UpstreamView {
                file: "/etc/nginx/conf.d/llm.conf".into(),
                server: world.lines[0].clone(),
                port: world.named(),
                beside_loopback: None,
                master: world.master,
                worker_shutdown_timeout: None,
                error_log: None,
            })
        })
    }

    async fn upstream_at_rest(&self) -> Result<UpstreamView, Failure> {
        self.at_rest().await;
        self.upstream().await
    }

    async fn upstream_image(&self, to: Port) -> Result<(UpstreamImage, ProcessId), Failure> {
        self.at_rest().await;
        self.call("upstream_image", |world| {
            let image = UpstreamImage {
                file: "/etc/nginx/conf.d/llm.conf".into(),
                before: world.lines.clone(),
                after: vec![line(to)],
            };
            Ok((image, world.master))
        })
    }

    async fn ask_as_nginx(&self, _: ProcessId, server: &str) -> Result<Option<Answer>, Failure> {
        self.call("ask_as_nginx", |world| {
            Ok(world.walled.filter(|port| server == line(*port)).map(|_| Answer::Refused))
        })
    }

    fn loaded(&self, master: ProcessId) -> Result<Reloaded, Failure> {
        self.call("loaded", |world| world.generations(master))
    }

    async fn load(&self, image: &UpstreamImage) -> Result<Reloaded, Unloaded> {
        self.judge_record("load");
        self.change("load", image).await
    }

    async fn restore(&self, image: &UpstreamImage) -> Result<Option<Reloaded>, Unloaded> {
        self.judge_record("restore");
        if self.world.borrow().is_restored(image) {
            return self.call("restore", |_| Ok(None)).map_err(Unloaded::Surely);
        }
        self.change("restore", &image.reversed()).await.map(Some)
    }

    async fn prove(&self, expected: &Expectation, _: &Reloaded) -> Result<Proof, Failure> {
        self.call("prove", |world| world.prove(expected))
    }

    fn workers_left(&self, old: &[ProcessId], port: Port) -> Vec<WorkerLeft> {
        self.note("workers_left");
        self.world.borrow().workers_left(old, port)
    }
}
