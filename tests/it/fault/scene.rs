//! A small world with real state, journals and event logs, and what is about to be done in it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use jiff::Timestamp;
use model_swap::config::{self, Overrides};
use model_swap::confirmation;
use model_swap::event_log::{EventLog, EventReader};
use model_swap::executor::{self, Context, Direction, Wanted, observe};
use model_swap::host::process::{Identity, Snapshot};
use model_swap::journal::{Journal, JournalError};
use model_swap::model::event::{Conclusion, EventKind};
use model_swap::model::failure::Failure;
use model_swap::model::ids::{Port, ProcessId, SlotName, SwapId};
use model_swap::model::outcome::Outcome;
use model_swap::model::plan::{Plan, Side};
use model_swap::model::record::RecordKind;
use model_swap::model::replica::{Replica, Systemd, Unit};
use model_swap::model::spec::{SwapSpec, VerifySpec};
use model_swap::model::state::{Requester, ServiceState};
use model_swap::model::wire::{Asked, Secrets, When};
use model_swap::service_dir::ServiceDir;
use model_swap::swap::planner::{self, Again, Decision};

use super::host::{Death, Fault, SimHost};
use super::world::SimWorld;

/// Between two looks of a customer, in the world's time.
const CUSTOMER_LOOKS: Duration = Duration::from_secs(1);

pub(crate) const A: Port = Port(8001);

const CONFIG: &str = "
service: chat
host: local
model: Qwen/New
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat
fetch: { command: hf download }
drain: { timeout: 60s }
ready: { timeout: 60s }
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
";

/// What is about to be done, and what the world is like before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A swap away from what somebody started by hand.
    First,
    /// The same, promoted only on the word of somebody who looks from outside.
    Verified,
    /// A swap where nobody serves.
    Lone,
    /// The same, for which somebody is to look from outside.
    LoneVerified,
    /// A warm rollback where what served has crashed, and its unit has not started it again.
    LoneRollback,
    /// A swap into the slot of a retained replica.
    IntoRetained,
    /// A warm rollback.
    Rollback,
    /// A rollback to a revision that was retired, from its specification.
    ColdRollback,
    /// A rollback to what somebody had started by hand, from its snapshot.
    ColdAdopted,
    /// A swap away from what somebody started by hand, where systemd supervises nothing.
    Plain,
    /// A swap away from somebody's own unit.
    FromUnit,
    /// A rollback to somebody's own unit, which was stopped.
    BackToUnit,
}

impl Kind {
    /// Those away from somebody.
    pub(crate) const ALL: [Self; 9] = [
        Self::First,
        Self::Verified,
        Self::IntoRetained,
        Self::Rollback,
        Self::ColdRollback,
        Self::ColdAdopted,
        Self::Plain,
        Self::FromUnit,
        Self::BackToUnit,
    ];
}

/// A world and the agent's files in it.
pub(crate) struct Scene {
    pub(crate) host: SimHost,
    pub(crate) dir: ServiceDir,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) spec: SwapSpec,
    /// What served before the first swap, where it is gone.
    first: Option<Side>,
}

/// A command that was planned.
pub(crate) struct Attempt {
    pub(crate) asked: Asked,
    pub(crate) swap: SwapId,
    pub(crate) plan: Plan,
    pub(crate) replicas: BTreeMap<SlotName, Replica>,
    again: Option<Snapshot>,
}

/// Everything that a swap that fails leaves as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) lines: Vec<String>,
    pub(crate) loaded: Port,
    /// Port, process and model of every replica.
    pub(crate) replicas: Vec<(Port, ProcessId, String)>,
    /// Files and contents.
    pub(crate) claims: BTreeMap<PathBuf, String>,
    pub(crate) state: ServiceState,
    /// What a boot would start.
    pub(crate) booted: BTreeSet<Unit>,
}

impl Facts {
    /// The same without times and folders, which differ between two runs.
    pub(crate) fn across_runs(mut self) -> Self {
        let never = Timestamp::UNIX_EPOCH;
        if let Some(retained) = &mut self.state.retained {
            (retained.since, retained.until) = (never, never);
            retained.replica.log = None;
        }
        if let Some(serving) = &mut self.state.serving {
            serving.log = None;
        }
        self.state.history.iter_mut().for_each(|past| past.at = never);
        self
    }

    /// The same without the replica in a slot that was retired, whether or not state and claims know already.
    pub(crate) fn without(mut self, port: Port) -> Self {
        self.replicas.retain(|replica| replica.0 != port);
        if self.state.retained.as_ref().is_some_and(|retained| retained.replica.port == port) {
            self.state.retained = None;
        }
        let (name, gpu) = if port == A { ("a", "gpu-0") } else { ("b", "gpu-1") };
        self.booted.retain(|unit| !unit.name.ends_with(&format!(".{name}.service")));
        self.claims
            .retain(|file, _| !file.ends_with(gpu) && !file.ends_with(format!("port-{port}")));
        self
    }
}

impl Scene {
    /// Somebody started a model by hand in slot a.
    pub(crate) fn new() -> Self {
        // Nothing here outlives the test, so memory does: thousands of fsyncs are not waited for.
        let memory = Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder");
        let spec = config::load(CONFIG, "model-swap.yaml", &Overrides::default())
            .expect("a valid configuration")
            .spec;
        let dir = ServiceDir::open(folder.path(), &spec.service).expect("a state folder");
        // The key of all secrets' hashes, so that two runs have the same revisions.
        std::fs::write(folder.path().join("key"), [7; 32]).expect("a key");
        let host = SimHost::new(SimWorld::with_incumbent(A, "Qwen/Old"));
        Self { host, dir, folder, spec, first: None }
    }

    /// A world for a kind of command, and the command planned.
    pub(crate) async fn of(kind: Kind) -> (Self, Attempt) {
        let scene = Self::before(kind).await;
        let attempt = scene.planned(kind, "s-9").await;
        (scene, attempt)
    }

    /// A world for a kind of command.
    async fn before(kind: Kind) -> Self {
        let mut scene = Self::new();
        match kind {
            Kind::First => {}
            Kind::Plain => scene.host.world.borrow_mut().systemd = Systemd::Absent,
            Kind::FromUnit => scene.host.world.borrow_mut().in_unit(A, "vllm.service"),
            Kind::Verified => scene.spec.verify = Some(verify()),
            Kind::Lone | Kind::LoneVerified | Kind::LoneRollback => {
                if kind == Kind::LoneRollback {
                    scene.promoted("s-1", "Qwen/New").await;
                }
                scene.spec.verify = (kind == Kind::LoneVerified).then(verify);
                scene.host.allow_nobody();
                let mut world = scene.host.world.borrow_mut();
                let serving = world.on(world.loaded).expect("an incumbent").id;
                world.kill(serving);
            }
            Kind::IntoRetained => {
                // Two swaps, so that what is retained was started here and has claims of its own.
                scene.promoted("s-1", "Qwen/New").await;
                scene.promoted("s-2", "Qwen/Newer").await;
            }
            Kind::Rollback => drop(scene.promoted("s-1", "Qwen/New").await),
            Kind::ColdRollback => {
                scene.promoted("s-1", "Qwen/New").await;
                let second = scene.promoted("s-2", "Qwen/Newer").await;
                scene.retire(&second).await;
            }
            Kind::ColdAdopted | Kind::BackToUnit => {
                if kind == Kind::BackToUnit {
                    scene.host.world.borrow_mut().in_unit(A, "vllm.service");
                }
                let first = scene.promoted("s-1", "Qwen/New").await;
                scene.retire(&first).await;
                scene.first = first.plan.incumbent;
            }
        }
        scene
    }

    /// Plans a command in a world that is there for its kind.
    pub(crate) async fn planned(&self, kind: Kind, id: &str) -> Attempt {
        match kind {
            Kind::First
            | Kind::Verified
            | Kind::Lone
            | Kind::LoneVerified
            | Kind::Plain
            | Kind::FromUnit => self.swap(id, "Qwen/New").await,
            Kind::IntoRetained => self.swap(id, "Qwen/Newest").await,
            Kind::Rollback | Kind::LoneRollback => self.rollback(id).await,
            Kind::ColdRollback => self.cold_rollback(id, "Qwen/New").await,
            Kind::ColdAdopted | Kind::BackToUnit => self.cold_rollback_to_adopted(id).await,
        }
    }

    /// Plans a swap from what is observed.
    pub(crate) async fn swap(&self, id: &str, model: &str) -> Attempt {
        let mut asked = Asked { spec: self.spec.clone(), secrets: Secrets::default() };
        model.clone_into(&mut asked.spec.model);
        self.attempt(id, asked, |spec, seen| planner::plan_swap(spec, seen, When::Changed)).await
    }

    /// Plans a warm rollback from what is observed.
    pub(crate) async fn rollback(&self, id: &str) -> Attempt {
        let asked = Asked { spec: self.spec.clone(), secrets: Secrets::default() };
        let plan = |spec: &SwapSpec, seen: &planner::Observed| {
            let warm = planner::warm_replica(spec, seen).expect("a warm replica");
            planner::plan_warm_rollback(spec, seen, warm)
        };
        self.attempt(id, asked, plan).await
    }

    /// Plans a rollback to a model that was retired.
    async fn cold_rollback(&self, id: &str, model: &str) -> Attempt {
        let mut asked = Asked { spec: self.spec.clone(), secrets: Secrets::default() };
        model.clone_into(&mut asked.spec.model);
        let plan = |spec: &SwapSpec, seen: &planner::Observed| {
            let again = Again { revision: seen.wanted.clone(), argv: None, keeper: None };
            planner::plan_cold_rollback(spec, seen, &again)
        };
        self.attempt(id, asked, plan).await
    }

    /// Plans a rollback to what served before the first swap, and was started by hand.
    async fn cold_rollback_to_adopted(&self, id: &str) -> Attempt {
        let asked = Asked { spec: self.spec.clone(), secrets: Secrets::default() };
        let incumbent = self.first.clone().expect("an incumbent");
        let argv = ["vllm", "serve", "Qwen/Old", "--port", "8001"].map(str::to_owned).to_vec();
        let snapshot = Snapshot {
            argv: argv.clone(),
            env: BTreeMap::new(),
            cwd: "/srv".into(),
            identity: Identity { uid: 1000, gid: 1000, groups: Vec::new() },
        };
        let keeper = Some(incumbent.keeper).filter(|keeper| !keeper.is_process());
        let again = Again { revision: incumbent.revision, argv: Some(argv), keeper };
        let plan = |spec: &SwapSpec, seen: &planner::Observed| {
            planner::plan_cold_rollback(spec, seen, &again)
        };
        Attempt { again: Some(snapshot), ..self.attempt(id, asked, plan).await }
    }

    /// Does what comes after a swap's `promote`.
    async fn retire(&self, attempt: &Attempt) {
        let (cx, mut journal) = self.reopen(attempt);
        for index in attempt.plan.steps.len()..attempt.plan.all_steps().count() {
            let performed = executor::perform(&cx, &mut journal, index).await;
            performed.expect("a journal").expect("it is drained and retired");
        }
    }

    async fn attempt(
        &self,
        id: &str,
        asked: Asked,
        plan: impl Fn(&SwapSpec, &planner::Observed) -> Result<Decision, Vec<Failure>>,
    ) -> Attempt {
        let world = observe(&self.host, &self.dir, &asked, None).await.expect("an observation");
        let Ok(Decision::Act(plan)) = plan(&asked.spec, &world.seen) else {
            panic!("no plan from {world:#?}")
        };
        let swap = id.parse().expect("an id");
        Attempt { asked, swap, plan: *plan, replicas: world.replicas, again: None }
    }

    /// Begins as the agent does.
    pub(crate) fn begin<'a>(&'a self, attempt: &'a Attempt) -> (Context<'a, SimHost>, Journal) {
        let folder = self.dir.make_swap(&attempt.swap).expect("a folder");
        let asked = (&attempt.plan, &Requester::default());
        let journal = Journal::create(&folder, &attempt.swap, asked, self.host_now());
        let mut cx = self.context(attempt);
        cx.replicas = attempt.replicas.clone();
        cx.again = attempt.again.clone();
        (cx, journal.expect("a journal"))
    }

    /// Goes on as the agent does that finds an unfinished swap.
    pub(crate) fn reopen<'a>(&'a self, attempt: &'a Attempt) -> (Context<'a, SimHost>, Journal) {
        let journal = Journal::open(&self.dir.swap(&attempt.swap)).expect("the journal is whole");
        (self.context(attempt), journal)
    }

    fn context<'a>(&'a self, attempt: &'a Attempt) -> Context<'a, SimHost> {
        let folder = self.dir.swap(&attempt.swap);
        attempt.asked.spec.model.clone_into(&mut self.host.wanted.borrow_mut());
        self.host.watch(&folder);
        let events = EventLog::open(&folder, &attempt.swap).expect("an event log");
        let (swap, plan) = (attempt.swap.clone(), attempt.plan.clone());
        Context::new((&self.host, &attempt.asked, &self.dir), swap, plan, events)
    }

    fn host_now(&self) -> Timestamp {
        use model_swap::host::Host;
        self.host.now()
    }

    /// Executes a plan with faults; `None` if the agent died of one.
    pub(crate) async fn execute(
        &self,
        attempt: &Attempt,
        faults: &[Fault],
    ) -> Option<Result<Conclusion, JournalError>> {
        let (cx, mut journal) = self.begin(attempt);
        self.host.settled();
        self.host.arm(faults);
        // On the heap: a test's thread has a small stack.
        let work = Box::pin(until_death(executor::execute(&cx, &mut journal)));
        tokio::select! {
            ended = work => ended,
            () = self.customer(attempt) => unreachable!("a customer has no end"),
        }
    }

    /// Somebody who gives the word whenever the swap waits for it.
    async fn customer(&self, attempt: &Attempt) {
        let mut events = EventReader::new(&self.dir.swap(&attempt.swap));
        loop {
            for event in events.read().expect("events") {
                if let EventKind::AwaitsWord { nonce } = event.kind {
                    confirmation::give(&self.dir, &attempt.swap, &nonce).expect("a disk");
                }
            }
            tokio::time::sleep(CUSTOMER_LOOKS).await;
        }
    }

    /// Recovers with faults; `None` if the agent died of one.
    pub(crate) async fn recover(
        &self,
        attempt: &Attempt,
        faults: &[Fault],
    ) -> Option<Option<Conclusion>> {
        let (cx, mut journal) = self.reopen(attempt);
        self.host.arm(faults);
        let recovered = Box::pin(until_death(executor::recover(&cx, &mut journal))).await;
        recovered.map(|recovered| recovered.expect("the journal can be written"))
    }

    /// In which direction an agent goes on that finds the swap.
    pub(crate) async fn direction(&self, attempt: &Attempt, wanted: Wanted) -> Direction {
        let (cx, journal) = self.reopen(attempt);
        self.host.arm(&[]);
        executor::direction(&cx, &journal, wanted).await
    }

    /// Finishes as the agent does that finds traffic moved and the incumbent gone; `None` if it died of a fault.
    pub(crate) async fn finish(&self, attempt: &Attempt, faults: &[Fault]) -> Option<Conclusion> {
        let (mut cx, mut journal) = self.reopen(attempt);
        cx.replicas = executor::replicas_left(&cx, &journal).expect("a disk");
        self.host.arm(faults);
        let work = Box::pin(until_death(executor::finish(&cx, &mut journal)));
        let finished = tokio::select! {
            ended = work => ended,
            () = self.customer(attempt) => unreachable!("a customer has no end"),
        };
        finished.map(|finished| finished.expect("the journal can be written"))
    }

    /// The same, and nobody gives a word.
    pub(crate) async fn finish_unconfirmed(&self, attempt: &Attempt) -> Conclusion {
        let (mut cx, mut journal) = self.reopen(attempt);
        cx.replicas = executor::replicas_left(&cx, &journal).expect("a disk");
        self.host.arm(&[]);
        Box::pin(executor::finish(&cx, &mut journal)).await.expect("the journal can be written")
    }

    /// Does what a person asks for who has mended what an undo failed of.
    pub(crate) async fn repair(&self, attempt: &Attempt) -> Option<Conclusion> {
        let (cx, mut journal) = self.reopen(attempt);
        self.host.arm(&[]);
        Box::pin(executor::repair(&cx, &mut journal)).await.expect("the journal can be written")
    }

    /// A swap that goes well.
    pub(crate) async fn promoted(&self, id: &str, model: &str) -> Attempt {
        let attempt = self.swap(id, model).await;
        let conclusion = self.execute(&attempt, &[]).await.expect("it lives").expect("a journal");
        assert_eq!(conclusion.outcome, Outcome::Promoted, "{conclusion:#?}");
        attempt
    }

    /// What a swap that fails leaves as it was.
    pub(crate) fn facts(&self) -> Facts {
        let world = self.host.world.borrow();
        let claims = std::fs::read_dir(self.folder.path().join("claims")).expect("claims");
        let claim = |entry: std::fs::DirEntry| {
            (entry.path(), std::fs::read_to_string(entry.path()).expect("a claim"))
        };
        let name = |path: PathBuf| PathBuf::from(path.file_name().expect("a name"));
        Facts {
            lines: world.lines.clone(),
            loaded: world.loaded,
            replicas: world.replicas.iter().map(|r| (r.port, r.id, r.root.clone())).collect(),
            claims: claims
                .map(|entry| claim(entry.expect("an entry")))
                .map(|(path, text)| (name(path), text))
                .collect(),
            state: self.dir.load().expect("a state"),
            booted: world.booted.clone(),
        }
    }

    /// The records of a swap after its plan.
    pub(crate) fn records(&self, attempt: &Attempt) -> Vec<RecordKind> {
        let journal = Journal::open(&self.dir.swap(&attempt.swap)).expect("the journal is whole");
        journal.records().iter().skip(1).map(|record| record.kind.clone()).collect()
    }

    /// The story of a swap.
    pub(crate) fn events(&self, attempt: &Attempt) -> Vec<EventKind> {
        let events = EventReader::new(&self.dir.swap(&attempt.swap)).read().expect("events");
        events.into_iter().map(|event| event.kind).collect()
    }
}

/// Somebody is to look from outside.
fn verify() -> VerifySpec {
    VerifySpec {
        url: "https://llm.example.com/v1/models".to_owned(),
        expect_model: "Qwen/New".to_owned(),
        within: Duration::from_secs(30),
        api_key_env: None,
    }
}

/// Drives the agent until it is done, or dies where a fault says so.
pub(crate) async fn until_death<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(payload) if payload.is::<Death>() => Poll::Ready(None),
        Err(payload) => resume_unwind(payload),
    })
    .await
}
