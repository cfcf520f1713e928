use jiff::Timestamp;

use super::*;
use crate::lease::tests::holder;
use crate::model::outcome::Outcome;
use crate::model::record::{JOURNAL_VERSION, Record, RecordKind, Retained};
use crate::model::replica::{Replica, Revision};
use crate::model::state::{Past, ServiceState};
use crate::swap::planner::tests::two_slot_plan;

/// The files of a swap that a cold rollback, `logs` or a recovery reads.
const FILES: [&str; 5] =
    ["journal.ndjson", "spec.json", "incumbent.json", "events.ndjson", "replica.log"];

struct Server {
    _folder: tempfile::TempDir,
    dir: ServiceDir,
    next: u64,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        Self { _folder: folder, dir, next: 0 }
    }

    /// A swap with all its files, younger than those before it.
    fn swap(&mut self, id: &str, outcome: Option<Outcome>) -> SwapId {
        let swap: SwapId = id.parse().unwrap();
        let folder = self.dir.make_swap(&swap).unwrap();
        for file in FILES {
            fs::write(folder.join(file), "x").unwrap();
        }
        let (plan, requester) = (Box::new(two_slot_plan()), Box::default());
        let planned = RecordKind::Planned { swap: swap.clone(), plan, requester };
        let kinds = [Some(planned), outcome.map(|outcome| RecordKind::Concluded { outcome })];
        let lines: String = kinds
            .into_iter()
            .flatten()
            .map(|kind| Record { v: JOURNAL_VERSION, at: Timestamp::UNIX_EPOCH, kind })
            .map(|record| serde_json::to_string(&record).unwrap() + "\n")
            .collect();
        fs::write(folder.join("journal.ndjson"), lines).unwrap();
        self.next += 1;
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(self.next);
        fs::File::open(folder.join("spec.json")).unwrap().set_modified(made).unwrap();
        swap
    }

    /// nginx's file, a link as in `sites-enabled`.
    fn nginx(&self) -> PathBuf {
        self.dir.state_dir().join("enabled/llm.conf")
    }

    fn prune(&self) {
        prune(&self.dir, &self.nginx());
    }

    fn holds(&self, swap: &SwapId) -> Vec<&str> {
        let folder = self.dir.swap(swap);
        FILES.into_iter().filter(|file| folder.join(file).exists()).collect()
    }
}

fn past(swap: &SwapId) -> Past {
    let revision =
        Revision { digest: "r-1".to_owned(), model: "m".to_owned(), git_sha: None, image: None };
    let (at, outcome) = (Timestamp::UNIX_EPOCH, Outcome::Promoted);
    Past { swap: swap.clone(), at, outcome, revision, strategy: None }
}

fn replica(swap: &SwapId) -> Replica {
    serde_json::from_value(serde_json::json!({
        "slot": "a", "port": 8001, "main": { "pid": 1, "start": 1 }, "swap": swap,
        "revision": { "digest": "r-1", "model": "m", "git_sha": null }, "log": null,
    }))
    .unwrap()
}

#[test]
fn of_a_log_that_nobody_writes_any_more_the_end_stays() {
    const LONG: u64 = process::KEPT + 5_000;
    let mut server = Server::new();
    let done = Some(Outcome::Promoted);
    let ids = ["s-gone", "s-serves", "s-unfinished"];
    let [gone, serves, unfinished] =
        ids.map(|id| server.swap(id, done.filter(|_| id != "s-unfinished")));
    let state = ServiceState {
        history: [&gone, &serves].map(past).into(),
        serving: Some(replica(&serves)),
        ..ServiceState::default()
    };
    server.dir.save(&state).unwrap();
    let line = "0123456789".repeat(10) + "\n";
    let text = line.repeat(usize::try_from(LONG).unwrap() / line.len() + 1);
    let logs = [&gone, &serves, &unfinished].map(|swap| {
        let logs = [server.dir.replica_log(swap), server.dir.fetch_log(swap)];
        for log in &logs {
            fs::write(log, &text).unwrap();
        }
        logs
    });
    server.prune();
    let is_whole = logs.map(|logs| {
        logs.map(|log| {
            let found = fs::read_to_string(log).unwrap();
            assert!(found.starts_with(&line) && found.ends_with(&line));
            found == text
        })
    });
    assert_eq!(is_whole, [[false, false], [true, false], [true, true]]);
}

#[test]
fn swaps_that_nothing_names_go_and_every_way_back_stays() {
    let mut server = Server::new();
    let done = Some(Outcome::Promoted);
    let forgotten = server.swap("s-forgotten", done);
    let unfinished = server.swap("s-unfinished", None);
    let stuck = server.swap("s-stuck", Some(Outcome::Stuck));
    let at_work = server.swap("s-at-work", done);
    let retained = server.swap("s-retained", done);
    let told: Vec<_> = (0..LOGS + 3).map(|n| server.swap(&format!("s-told-{n}"), done)).collect();
    let holder = holder(at_work.as_str());
    let lease = Lease::take(&server.dir.root(), &holder).unwrap();
    let kept = Retained {
        replica: replica(&retained),
        swap: told[0].clone(),
        since: Timestamp::UNIX_EPOCH,
        until: Timestamp::UNIX_EPOCH,
        old_workers: Vec::new(),
    };
    let state = ServiceState {
        history: told.iter().map(past).collect(),
        serving: Some(replica(&told[1])),
        retained: Some(kept),
        ..ServiceState::default()
    };
    server.dir.save(&state).unwrap();

    let order = server.dir.swaps();
    server.prune();
    assert_eq!(server.holds(&forgotten), [""; 0]);
    for swap in [&unfinished, &stuck, &at_work, &retained, &told[1]] {
        assert_eq!(server.holds(swap), FILES, "{swap}");
    }
    // Of the others only the logs of the oldest are gone.
    let without: Vec<_> = told.iter().filter(|swap| server.holds(swap) == FILES[..4]).collect();
    assert_eq!(without, [&told[0], &told[2]]);
    let still: Vec<_> = order.into_iter().filter(|swap| *swap != forgotten).collect();
    assert_eq!(server.dir.swaps(), still, "what was pruned last passes for the newest");
    drop(lease);
    server.prune();
    assert_eq!(
        server.holds(&at_work),
        [""; 0],
        "its lease is given back, and the history does not name it"
    );
}

#[test]
fn what_a_crash_left_half_made_goes_after_an_hour() {
    let mut server = Server::new();
    let (swap, work) = (server.swap("s-told", Some(Outcome::Promoted)), server.swap("s-at", None));
    let told = ServiceState { history: vec![past(&swap)], ..ServiceState::default() };
    server.dir.save(&told).unwrap();
    let available = server.dir.state_dir().join("available");
    for folder in [&available, server.nginx().parent().unwrap()] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(available.join("llm.conf"), "").unwrap();
    std::os::unix::fs::symlink(available.join("llm.conf"), server.nginx()).unwrap();
    let made = |folder: PathBuf, name: &str, age: Duration| {
        let file = folder.join(name);
        fs::write(&file, "x").unwrap();
        fs::File::open(&file).unwrap().set_modified(SystemTime::now() - age).unwrap();
        file
    };
    let (old, young) = (MAKING + Duration::from_secs(60), MAKING - Duration::from_secs(60));
    let dir = &server.dir;
    let gone = [
        made(dir.root(), ".model-swap-a1", old),
        made(dir.state_dir().to_owned(), ".model-swap-a2", old),
        made(dir.aborts(), ".model-swap-a3", old),
        made(dir.claims(), ".model-swap-a4", old),
        made(dir.swap(&swap), ".model-swap-a5", old),
        made(dir.swap(&work), ".model-swap-a6", old),
        made(available.clone(), ".model-swap-a7", old),
        made(dir.confirmations(), "s-gone.json", ORDER_AGE + Duration::from_secs(60)),
    ];
    let kept = [
        made(dir.root(), ".model-swap-b1", young),
        made(dir.root(), "boot", old),
        made(dir.claims(), "port-8001", old),
        made(dir.swap(&work), ".model-swap-b2", young),
        made(available, ".llm.conf.swp", old),
        made(dir.confirmations(), "s-soon.json", old),
    ];
    server.prune();
    assert!(gone.iter().all(|file| !file.exists()), "{gone:?}");
    assert!(kept.iter().all(|file| file.exists()), "{kept:?}");
}

#[test]
fn orders_that_nobody_waits_for_go_and_a_long_log_begins_anew() {
    let mut server = Server::new();
    let told = server.swap("s-told", Some(Outcome::Promoted));
    server
        .dir
        .save(&ServiceState { history: vec![past(&told)], ..ServiceState::default() })
        .unwrap();
    let order = |name: &str, age: u64| {
        let file = server.dir.aborts().join(name);
        fs::write(&file, "{}").unwrap();
        let then = SystemTime::now() - Duration::from_secs(age);
        fs::File::open(&file).unwrap().set_modified(then).unwrap();
        file
    };
    let old = order("s-gone.json", ORDER_AGE.as_secs() + 60);
    let (fresh, of_kept) =
        (order("s-soon.json", 60), order("s-told.json", ORDER_AGE.as_secs() * 9));
    let log = server.dir.root().join("agent.log");
    fs::File::create(&log).unwrap().set_len(AGENT_LOG + 1).unwrap();

    server.prune();
    assert_eq!([&old, &fresh, &of_kept].map(|file| file.exists()), [false, true, true]);
    assert!(!log.exists() && server.dir.root().join("agent.log.old").exists());
}

#[test]
fn binaries_that_work_or_start_at_boot_or_worked_last_stay() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..BINARIES + 4).map(|n| format!("{n:064x}")).collect();
    for (age, name) in names.iter().rev().enumerate() {
        let place = folder.path().join(name);
        fs::create_dir(&place).unwrap();
        fs::copy("/bin/sleep", place.join("model-swap")).unwrap();
        let then = SystemTime::now() - Duration::from_secs(1000 * (age as u64 + 1));
        fs::File::open(place).unwrap().set_modified(then).unwrap();
    }
    fs::create_dir(folder.path().join("not-ours")).unwrap();
    let [oldest, running, of_unit] = [&names[0], &names[1], &names[2]];
    let program = folder.path().join(running).join("model-swap");
    let mut child = std::process::Command::new(program).arg("60").spawn().unwrap();
    let units = format!("ExecStart={}/{of_unit}/model-swap agent run", folder.path().display());
    // The third from the end is the oldest that stays, unless this one is older and works now.
    prune_binaries(folder.path(), &names[3], &units);
    child.kill().unwrap();
    child.wait().unwrap();
    let left: Vec<&String> =
        names.iter().filter(|name| folder.path().join(name).exists()).collect();
    assert!(!left.contains(&oldest), "{left:?}");
    assert_eq!(left, [running, of_unit, &names[3], &names[5], &names[6]], "{left:?}");
    assert!(folder.path().join("not-ours").exists());
}

#[test]
fn what_a_killed_push_has_left_goes_and_what_a_living_one_writes_stays() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("0".repeat(DIGEST));
    fs::create_dir(&place).unwrap();
    let mut dead = std::process::Command::new("/bin/true").spawn().unwrap();
    dead.wait().unwrap();
    let part = |name: String, age: u64| {
        fs::write(place.join(&name), "half").unwrap();
        let then = SystemTime::now() - Duration::from_secs(age);
        fs::File::open(place.join(&name)).unwrap().set_modified(then).unwrap();
        name
    };
    let own = std::process::id();
    let killed = part(format!(".model-swap.{}", dead.id()), 0);
    let living = part(format!(".model-swap.{own}"), 60);
    let whole = part("model-swap".to_owned(), 1 << 20);
    let others = part(".model-swap.txt".to_owned(), 1 << 20);
    let left = || -> BTreeSet<String> {
        children(&place)
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let worked = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
    fs::File::open(&place).unwrap().set_modified(worked).unwrap();

    prune_binaries(folder.path(), "", "");
    assert_eq!(left(), BTreeSet::from([living.clone(), whole.clone(), others.clone()]), "{killed}");
    assert_eq!(fs::metadata(&place).unwrap().modified().unwrap(), worked);
    // A process of today has the pid of a shell that is long gone.
    part(living, BRINGING.as_secs() + 60);
    prune_binaries(folder.path(), "", "");
    assert_eq!(left(), BTreeSet::from([whole, others]));
}

#[test]
fn units_are_read_with_their_drop_ins() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("model-swap-agent@chat.service.d")).unwrap();
    fs::write(at("model-swap-agent@chat.service.d/own.conf"), "one").unwrap();
    fs::write(at("model-swap-chat.a.service"), "two").unwrap();
    fs::write(at("nginx.service"), "three").unwrap();
    let text = named_by_units(folder.path());
    assert!(text.contains("one") && text.contains("two") && !text.contains("three"), "{text}");
}
