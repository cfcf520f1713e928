//! A small world: replicas, and one nginx in front of them. Its clock is tokio's, which the tests pause.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use model_swap::host::engine::{Answer, ModelEntry, Models};
use model_swap::host::gpu::{Device, Gpus};
use model_swap::host::nginx::{Expectation, Identity, Proof, Reloaded, WorkerLeft};
use model_swap::host::process::Launch;
use model_swap::host::runtime::Boot;
use model_swap::model::failure::Failure;
use model_swap::model::ids::{Port, ProcessId};
use model_swap::model::record::UpstreamImage;
use model_swap::model::replica::{Found, Keeper, Systemd, Unit};
use model_swap::model::wire::MARKER;
use tokio::time::Instant;

use super::shutdown::Outage;
use super::slow::Reloads;

/// How long what was in flight when traffic moved away still takes.
const LINGER: Duration = Duration::from_millis(400);

/// Requests in flight on the replica that nginx points at, at any time: the world never rests.
const BUSY: u64 = 2;

/// A replica: one process.
#[derive(Debug, Clone)]
pub(crate) struct SimReplica {
    pub(crate) id: ProcessId,
    pub(crate) port: Port,
    pub(crate) argv: Vec<String>,
    /// What supervises it.
    pub(crate) keeper: Keeper,
    /// Value of `MODEL_SWAP_REPLICA`.
    pub(crate) marker: Option<String>,
    /// What it serves.
    pub(crate) root: String,
    /// When it listens; `None`: never.
    pub(crate) ready: Option<Instant>,
    /// Requests that only the test ends.
    pub(crate) stubborn: u64,
    /// Whether nginx was ever told of it.
    pub(crate) had_traffic: bool,
    /// Whether it is there and does not answer yet.
    pub(crate) loads: bool,
    /// Until when it works on what came through nginx before traffic went elsewhere.
    pub(crate) busy_until: Instant,
}

/// An nginx worker.
#[derive(Debug, Clone)]
pub(crate) struct SimWorker {
    pub(crate) id: ProcessId,
    /// The port that it sends requests to.
    pub(crate) port: Port,
    /// When it is gone; `None` while it is one of the latest, or pinned.
    pub(crate) ends: Option<Instant>,
    /// Its connections to the port, where they can be seen.
    pub(crate) connections: Option<usize>,
}

/// Everything outside of the agent and its files.
#[derive(Debug, Clone)]
pub(crate) struct SimWorld {
    pub(crate) replicas: Vec<SimReplica>,
    /// The `server` lines on disk.
    pub(crate) lines: Vec<String>,
    /// The port that nginx has loaded.
    pub(crate) loaded: Port,
    /// Whether the file says of itself that it is older than all workers.
    pub(crate) looks_old: bool,
    /// The port that nginx's own way does not lead to.
    pub(crate) walled: Option<Port>,
    /// Where a replica wants a key that nobody has.
    pub(crate) locked: Option<Port>,
    /// Where a replica listens on another address than it is asked at.
    pub(crate) elsewhere: Option<Port>,
    /// Whether a replica dies of being promoted, and nothing starts it again.
    pub(crate) frail: bool,
    /// Whether no replica answers.
    pub(crate) hangs: bool,
    /// Where a replica says nothing of how many requests it has.
    pub(crate) uncounted: Option<Port>,
    /// What becomes of a replica once requests are proven to go there; nothing unless a test says so.
    pub(crate) struck: Option<Struck>,
    /// The nginx that runs.
    pub(crate) master: ProcessId,
    pub(crate) workers: Vec<SimWorker>,
    /// How long whoever wants nginx at rest waits for that.
    pub(crate) unrest: Duration,
    /// How long a new replica loads; `None`: for ever.
    pub(crate) load_time: Option<Duration>,
    /// What a boot would start.
    pub(crate) booted: BTreeSet<Unit>,
    /// What of systemd there is.
    pub(crate) systemd: Systemd,
    /// Until when what supervises replicas does not answer.
    pub(crate) away_until: Instant,
    /// Until when nginx and its files cannot be seen.
    pub(crate) unseen_until: Instant,
    /// Connections of the workers that the next reloads leave behind for good.
    pub(crate) pinned: Option<Option<usize>>,
    /// How nginx does what it is told.
    pub(crate) reloads: Reloads,
    /// While the server is being shut down.
    pub(super) outage: Option<Outage>,
    last_pid: i32,
}

/// How its keeper has started a replica again that died of its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Struck {
    /// It loads, behind a port that its keeper listens on.
    Loads,
    /// It answers, as what it was.
    Answers,
    /// It answers, as something else.
    IsAnother,
}

/// What the driver tells of the GPUs of both slots.
pub(super) fn gpus() -> Gpus {
    let device = |index| Device {
        index,
        uuid: format!("GPU-{index}"),
        name: "NVIDIA H200".to_owned(),
        total_mib: None,
        free_mib: None,
    };
    Gpus { devices: [0, 1].map(device).into(), ..Gpus::default() }
}

impl SimWorld {
    /// nginx points at a port where somebody started `root` by hand.
    pub(crate) fn with_incumbent(port: Port, root: &str) -> Self {
        let mut world = Self {
            replicas: Vec::new(),
            lines: vec![line(port)],
            loaded: port,
            looks_old: false,
            walled: None,
            locked: None,
            elsewhere: None,
            frail: false,
            hangs: false,
            uncounted: None,
            struck: None,
            master: ProcessId { pid: 99, start: 7 },
            workers: Vec::new(),
            unrest: Duration::ZERO,
            load_time: Some(Duration::from_millis(20)),
            booted: BTreeSet::new(),
            systemd: Systemd::Usable,
            away_until: Instant::now(),
            unseen_until: Instant::now(),
            pinned: None,
            reloads: Reloads::default(),
            outage: None,
            last_pid: 100,
        };
        let argv = ["vllm", "serve", root].map(str::to_owned).to_vec();
        world.spawn(port, argv, (Keeper::Nobody, None), Some(Instant::now()));
        world.new_worker();
        world
    }

    pub(super) fn new_process(&mut self) -> ProcessId {
        self.last_pid += 1;
        ProcessId { pid: self.last_pid, start: 7 }
    }

    pub(super) fn new_worker(&mut self) {
        let (id, port) = (self.new_process(), self.loaded);
        self.workers.push(SimWorker { id, port, ends: None, connections: Some(1) });
    }

    fn spawn(
        &mut self,
        port: Port,
        argv: Vec<String>,
        (keeper, marker): (Keeper, Option<String>),
        ready: Option<Instant>,
    ) -> ProcessId {
        let (id, root) = (self.new_process(), argv[2].clone());
        let (stubborn, loads, busy_until) = (0, false, Instant::now());
        let had_traffic = self.loaded == port;
        self.replicas.push(SimReplica {
            id,
            port,
            argv,
            keeper,
            marker,
            root,
            ready,
            stubborn,
            had_traffic,
            loads,
            busy_until,
        });
        id
    }

    /// Starts what a launch says.
    pub(crate) fn start(&mut self, launch: &Launch) -> ProcessId {
        let at = launch.argv.iter().position(|word| word == "--port").expect("a port");
        let port = Port(launch.argv[at + 1].parse().expect("a port"));
        let ready = self.load_time.map(|time| Instant::now() + time);
        // What somebody else's unit starts knows nothing of markers.
        let foreign = matches!(&launch.keeper, Keeper::Unit(unit) if !unit.is_own());
        let marker = launch.env.get(MARKER).filter(|_| !foreign).cloned();
        self.spawn(port, launch.argv.clone(), (launch.keeper.clone(), marker), ready)
    }

    /// The incumbent runs in somebody's unit, which is enabled.
    pub(crate) fn in_unit(&mut self, port: Port, name: &str) {
        let unit = Unit { name: name.to_owned(), user: None };
        self.booted.insert(unit.clone());
        self.on_mut(port).keeper = Keeper::Unit(unit);
    }

    /// Whether what supervises replicas answers.
    pub(crate) fn answers(&self) -> Result<(), Failure> {
        let is_away = Instant::now() < self.away_until;
        if is_away { Err(Failure::new("it does not answer")) } else { Ok(()) }
    }

    /// Whether nginx and its files can be seen.
    pub(crate) fn seen(&self) -> Result<(), Failure> {
        let is_unseen = Instant::now() < self.unseen_until;
        if is_unseen { Err(Failure::new("nginx cannot be seen")) } else { Ok(()) }
    }

    /// The replica that carries a marker under a keeper.
    pub(crate) fn marked(&self, keeper: &Keeper, marker: &str) -> Option<&SimReplica> {
        let foreign = matches!(keeper, Keeper::Unit(unit) if !unit.is_own());
        let marked = |replica: &&SimReplica| {
            &replica.keeper == keeper && (foreign || replica.marker.as_deref() == Some(marker))
        };
        self.replicas.iter().find(marked)
    }

    /// Decides whether a boot starts what a keeper keeps.
    pub(crate) fn on_boot(&mut self, keeper: &Keeper, boot: Boot) {
        if let Keeper::Unit(unit) = keeper {
            match boot {
                Boot::Starts => self.booted.insert(unit.clone()),
                Boot::Leaves => self.booted.remove(unit),
            };
        }
    }

    /// Whether a boot would start what a keeper keeps.
    pub(crate) fn is_booted(&self, keeper: &Keeper) -> bool {
        matches!(keeper, Keeper::Unit(unit) if self.booted.contains(unit))
    }

    /// The replica that nginx would point at after a boot: its file counts then.
    pub(crate) fn after_boot(&self) -> Option<&SimReplica> {
        self.on(self.named())
    }

    /// The replica that listens on a port.
    pub(crate) fn on(&self, port: Port) -> Option<&SimReplica> {
        self.replicas.iter().find(|replica| replica.port == port && replica.listens())
    }

    /// How whoever is on a port answers at the address where replicas are asked.
    pub(super) fn answer_on(&self, port: Port) -> Answer {
        match self.on(port) {
            None => Answer::Refused,
            Some(_) if self.elsewhere == Some(port) => Answer::Refused,
            Some(replica) if self.hangs || replica.loads => Answer::Unwell("it hangs".to_owned()),
            Some(_) if self.locked == Some(port) => Answer::Locked,
            Some(replica) => Answer::Ready(Models {
                entries: vec![ModelEntry {
                    id: "chat".to_owned(),
                    root: Some(replica.root.clone()),
                    max_model_len: None,
                }],
            }),
        }
    }

    /// The same, to be changed.
    pub(crate) fn on_mut(&mut self, port: Port) -> &mut SimReplica {
        self.replicas.iter_mut().find(|replica| replica.port == port).expect("a replica there")
    }

    /// Requests in flight on a replica.
    pub(crate) fn in_flight(&self, replica: &SimReplica) -> u64 {
        let busy = self.loaded == replica.port || Instant::now() < replica.busy_until;
        replica.stubborn + if busy { BUSY } else { 0 }
    }

    /// Whether a process is there.
    pub(crate) fn alive(&self, process: ProcessId) -> bool {
        self.replicas.iter().any(|replica| replica.id == process)
            || self.workers.iter().any(|worker| worker.id == process && worker.is_there())
    }

    pub(crate) fn found(&self, port: Port) -> Option<Found> {
        self.on(port).map(|replica| Found {
            main: replica.id,
            tree: vec![replica.id],
            listeners: vec![replica.id],
            argv: replica.argv.clone(),
            cwd: Some(PathBuf::from("/srv")),
            uid: 1000,
            keeper: replica.keeper.clone(),
        })
    }

    /// Writes lines.
    pub(crate) fn write(&mut self, from: &[String], to: &[String]) -> Result<(), Failure> {
        if self.lines != from && self.lines != to {
            return Err(Failure::new("somebody else changed the upstream"));
        }
        self.lines = to.to_vec();
        Ok(())
    }

    /// nginx has loaded a port, and leaves the old workers to finish.
    pub(super) fn take(&mut self, told: Port) -> Reloaded {
        let (now, old_port) = (Instant::now(), self.loaded);
        self.loaded = told;
        self.replicas.iter_mut().filter(|it| it.port == told).for_each(|it| it.had_traffic = true);
        if self.loaded != old_port {
            for replica in self.replicas.iter_mut().filter(|replica| replica.port == old_port) {
                replica.busy_until = now + LINGER;
            }
        }
        self.workers.retain(SimWorker::is_there);
        let old_workers = self.workers.iter().map(|worker| worker.id).collect();
        let pinned = self.pinned;
        for worker in self.workers.iter_mut().filter(|worker| worker.is_latest()) {
            match pinned {
                // Never reached: the test ends it.
                Some(connections) => {
                    worker.connections = connections;
                    worker.ends = Some(now + Duration::from_secs(1_000_000));
                }
                None => worker.ends = Some(now + LINGER),
            }
        }
        self.new_worker();
        let new_workers = self.workers.last().map(|worker| worker.id).into_iter().collect();
        Reloaded { master: self.master, old_workers, new_workers }
    }

    /// Proves that requests go to the candidate; which is then struck.
    pub(crate) fn prove(&mut self, expected: &Expectation) -> Result<Proof, Failure> {
        let replica = self.on(self.loaded).filter(|r| r.port == expected.candidate);
        let told = match (&expected.identity, replica) {
            (_, None) => return Err(Failure::new("new requests go elsewhere")),
            (Some(Identity::Root(root)), Some(replica)) => *root == replica.root,
            (Some(Identity::Fingerprint { fingerprint, .. }), Some(replica)) => {
                *fingerprint == format!("vllm-{}", replica.root)
            }
            (None, Some(_)) => return Ok(Proof::Sockets { workers: 1, connections: 1 }),
        };
        assert!(told, "the proof was asked for another replica: {expected:?}");
        if let Some(struck) = self.struck.take() {
            self.strike(expected.candidate, struck);
        }
        Ok(Proof::Answers(3))
    }

    /// Its keeper is to start a replica again from now on, unless that is dead by then.
    pub(crate) fn promoted(&mut self) -> Result<(), Failure> {
        self.answers()?;
        if self.frail {
            let loaded = self.loaded;
            self.replicas.retain(|replica| replica.port != loaded);
        }
        Ok(())
    }

    /// A replica has died, and its keeper has started it again.
    fn strike(&mut self, port: Port, struck: Struck) {
        let id = self.new_process();
        let replica = self.on_mut(port);
        (replica.id, replica.loads) = (id, struck == Struck::Loads);
        if struck == Struck::IsAnother {
            "Qwen/Wrong".clone_into(&mut replica.root);
        }
    }

    /// The port that the lines on disk name.
    pub(crate) fn named(&self) -> Port {
        port_in(&self.lines[0])
    }

    /// Whether nginx has loaded these lines.
    pub(crate) fn loads(&self, lines: &[String]) -> bool {
        self.loaded == port_in(&lines[0])
    }

    /// Somebody points nginx at a port by hand, and reloads it.
    pub(crate) fn point(&mut self, port: Port) {
        self.lines = vec![line(port)];
        self.take(port);
    }

    /// Whether the lines of an image are back, and loaded as it seems.
    pub(crate) fn is_restored(&self, image: &UpstreamImage) -> bool {
        let seems_loaded = self.looks_old || self.loaded == port_in(&image.before[0]);
        self.lines == image.before && seems_loaded && !self.reloads.are_under_way()
    }

    /// Somebody restarts nginx, which reads its file as it is.
    pub(super) fn restart_nginx(&mut self) {
        self.master = self.new_process();
        self.workers.clear();
        self.loaded = self.named();
        self.new_worker();
    }

    /// The workers of a master as they are, without a reload.
    pub(crate) fn generations(&self, master: ProcessId) -> Result<Reloaded, Failure> {
        if master != self.master {
            return Err(Failure::new(format!("the nginx master (pid {}) is gone", master.pid)));
        }
        let there = self.workers.iter().filter(|worker| worker.is_there());
        let (new, old): (Vec<_>, Vec<_>) = there.partition(|worker| worker.is_latest());
        let ids = |workers: Vec<&SimWorker>| workers.iter().map(|worker| worker.id).collect();
        Ok(Reloaded { master, old_workers: ids(old), new_workers: ids(new) })
    }

    /// The workers that send requests to a port.
    pub(crate) fn workers_of(&self, port: Port) -> Vec<ProcessId> {
        let there = self.workers.iter().filter(|worker| worker.port == port && worker.is_there());
        there.map(|worker| worker.id).collect()
    }

    /// Those of `old` that are still there.
    pub(crate) fn workers_left(&self, old: &[ProcessId], port: Port) -> Vec<WorkerLeft> {
        let left = self.workers.iter().filter(|w| old.contains(&w.id) && w.is_there());
        left.map(|worker| WorkerLeft {
            process: worker.id,
            connections: if worker.port == port { worker.connections } else { Some(0) },
            shutting_down: !worker.is_latest(),
        })
        .collect()
    }

    /// Ends a process.
    pub(crate) fn kill(&mut self, process: ProcessId) {
        self.replicas.retain(|replica| replica.id != process);
        self.workers.retain(|worker| worker.id != process);
    }
}

impl SimReplica {
    pub(crate) fn listens(&self) -> bool {
        self.ready.is_some_and(|ready| ready <= Instant::now())
    }
}

impl SimWorker {
    fn is_there(&self) -> bool {
        self.ends.is_none_or(|ends| Instant::now() < ends)
    }

    fn is_latest(&self) -> bool {
        self.ends.is_none()
    }
}

/// The `server` line of a port.
pub(crate) fn line(port: Port) -> String {
    format!("server 127.0.0.1:{port}")
}

fn port_in(line: &str) -> Port {
    Port(line.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port in the line"))
}
