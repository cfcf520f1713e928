//! The planner's tests, and the values that the tests of its neighbours share.

use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::config::{self, Overrides};
use crate::model::ids::ProcessId;
use crate::model::record::Retained;
use crate::model::step::Step;

const MINIMAL: &str = "
service: chat
host: local
model: Qwen/New
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
";

pub(crate) fn spec() -> SwapSpec {
    config::load(MINIMAL, "model-swap.yaml", &Overrides::default()).unwrap().spec
}

/// Reserve, start, ready, cut_over, promote; later drain, retire.
pub(crate) fn two_slot_plan() -> Plan {
    acts(plan_swap(&spec(), &adopted_in_a(), When::Changed))
}

fn process(pid: i32) -> ProcessId {
    ProcessId { pid, start: 100 }
}

fn found(pid: i32) -> Found {
    Found {
        main: process(pid),
        tree: vec![process(pid), process(pid + 1)],
        listeners: vec![process(pid)],
        argv: vec!["vllm".to_owned(), "serve".to_owned(), "Qwen/Old".to_owned()],
        cwd: None,
        uid: 1000,
        keeper: Keeper::Nobody,
    }
}

fn occupied(pid: i32) -> Occupant {
    Occupant {
        forwarded: false,
        found: Some(found(pid)),
        beside: BTreeSet::new(),
        ready: true,
        names: vec!["chat".to_owned()],
        model: Some("Qwen/Old".to_owned()),
        uncounted: None,
        company: None,
    }
}

fn slot(name: &str) -> SlotName {
    name.parse().unwrap()
}

/// nginx points at a, where somebody once started a model by hand; b is free.
pub(crate) fn adopted_in_a() -> Observed {
    Observed {
        state: ServiceState::default(),
        nginx_port: Port(8001),
        beside_loopback: None,
        worker_shutdown_timeout: None,
        slots: BTreeMap::from([(slot("a"), occupied(10)), (slot("b"), Occupant::default())]),
        wanted: revision::specified(&spec(), "", None, None),
        wanted_by_reference: revision::specified(&spec(), "", None, None).digest,
        secrets: String::new(),
        claimed: BTreeMap::new(),
        must_pull: false,
        image: None,
        systemd: Systemd::Absent,
        program: Ok(()),
        wanted_names: vec!["chat".to_owned()],
    }
}

fn replica(name: &str, pid: i32, revision: Revision, swap: Option<&str>) -> Replica {
    let port = spec().slots[&slot(name)].port;
    let swap = swap.map(|swap| swap.parse().unwrap());
    Replica {
        slot: slot(name),
        port,
        main: process(pid),
        revision,
        swap,
        log: None,
        keeper: Keeper::Nobody,
        invocation: None,
    }
}

/// Swap s-1 brought what is wanted into b; what was in a before is retained.
fn after_a_swap() -> Observed {
    let mut seen = adopted_in_a();
    let old = replica_in(&slot("a"), &spec(), &seen).unwrap();
    seen.slots.insert(slot("b"), occupied(20));
    seen.nginx_port = Port(8002);
    seen.state.serving = Some(replica("b", 20, seen.wanted.clone(), Some("s-1")));
    seen.state.serving_swap = Some("s-1".parse().unwrap());
    seen.state.retained = Some(Retained {
        replica: old,
        swap: "s-1".parse().unwrap(),
        since: Timestamp::UNIX_EPOCH,
        until: Timestamp::UNIX_EPOCH,
        old_workers: Vec::new(),
    });
    seen
}

pub(crate) fn acts(decision: Result<Decision, Vec<Failure>>) -> Plan {
    match decision.unwrap() {
        Decision::Act(plan) => *plan,
        Decision::Unchanged(reason) => panic!("unchanged: {reason}"),
    }
}

fn names(plan: &Plan) -> Vec<String> {
    plan.all_steps().map(|planned| planned.step.to_string()).collect()
}

fn refusals(decision: Result<Decision, Vec<Failure>>) -> Vec<String> {
    decision.unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_first_swap_adopts_what_serves() {
    let plan = two_slot_plan();
    assert_eq!(
        names(&plan),
        [
            "reserve_slot b",
            "start_replica b",
            "await_ready b",
            "cut_over a -> b",
            "promote b",
            "drain a",
            "retire a"
        ]
    );
    assert_eq!(plan.steps.len(), 5);
    assert!(plan.incumbent.unwrap().revision.is_adopted());
    assert_eq!(plan.steps[0].does, "claim port 8002 and GPU 1");
    assert_eq!(
        plan.steps[1].does,
        "start vllm serve Qwen/New --host 127.0.0.1 --port 8002 --served-model-name chat"
    );
}

#[test]
fn a_swap_within_retain_retires_what_holds_the_slot_first() {
    let mut seen = after_a_swap();
    let mut next = spec();
    next.model = "Qwen/Newer".to_owned();
    seen.wanted = revision::specified(&next, "", None, None);
    let plan = acts(plan_swap(&next, &seen, When::Changed));
    assert_eq!(names(&plan)[..3], ["drain a", "retire a", "reserve_slot a"]);
    assert_eq!(plan.steps.len(), 7);
    let kept = "this stops what is kept warm (Qwen/Old, until 1970-01-01 00:00:00 UTC): ";
    assert!(plan.notes.len() == 1 && plan.notes[0].starts_with(kept), "{:?}", plan.notes);
}

#[test]
fn unchanged_needs_the_revision_and_readiness_and_nginx() {
    let seen = after_a_swap();
    assert!(matches!(plan_swap(&spec(), &seen, When::Changed), Ok(Decision::Unchanged(_))));
    acts(plan_swap(&spec(), &seen, When::Always));

    let mut unready = after_a_swap();
    unready.slots.get_mut(&slot("b")).unwrap().ready = false;
    acts(plan_swap(&spec(), &unready, When::Changed));

    let mut flipped_by_hand = after_a_swap();
    flipped_by_hand.nginx_port = Port(8001);
    // What is wanted waits, warm, in b: it only has to be cut over to.
    let plan = acts(plan_swap(&spec(), &flipped_by_hand, When::Changed));
    assert_eq!(
        names(&plan),
        ["await_ready b", "cut_over a -> b", "promote b", "drain a", "retire a"]
    );
    assert_eq!(plan.notes, [""; 0], "what is warm is used");
    // Its place is its own, whoever claims it as well.
    flipped_by_hand.claimed.insert(slot("b"), Failure::new("GPU 1 is reserved by service code"));
    acts(plan_swap(&spec(), &flipped_by_hand, When::Changed));
    let refused = refusals(plan_swap(&spec(), &flipped_by_hand, When::Always));
    assert_eq!(refused, ["GPU 1 is reserved by service code"]);
}

#[test]
fn a_process_of_another_pid_is_not_the_recorded_replica() {
    let mut seen = after_a_swap();
    seen.slots.insert(slot("b"), occupied(99));
    let plan = acts(plan_swap(&spec(), &seen, When::Changed));
    assert!(plan.incumbent.unwrap().revision.is_adopted());
}

#[test]
fn a_warm_rollback_flips_and_retires_the_rolled_back() {
    let seen = after_a_swap();
    let retained = warm_replica(&spec(), &seen).unwrap();
    let plan = acts(plan_warm_rollback(&spec(), &seen, retained));
    assert_eq!(
        names(&plan),
        ["await_ready a", "cut_over b -> a", "promote a", "drain b", "retire b"]
    );
    assert_eq!(plan.candidate.revision.model, "Qwen/Old");
}

#[test]
fn what_is_gone_or_of_another_swap_is_not_warm() {
    let mut gone = after_a_swap();
    gone.slots.insert(slot("a"), Occupant::default());
    assert_eq!(warm_replica(&spec(), &gone), None);
    let mut other = after_a_swap();
    other.state.serving_swap = None;
    assert_eq!(warm_replica(&spec(), &other), None);
}

#[test]
fn a_cold_rollback_is_a_swap_to_what_served_before() {
    let mut seen = after_a_swap();
    seen.state.retained = None;
    seen.slots.insert(slot("a"), Occupant::default());
    let mut then = spec();
    then.model = "Qwen/Older".to_owned();
    seen.wanted = revision::specified(&then, "", None, None);
    let again = Again { revision: seen.wanted.clone(), argv: None, keeper: None };
    let plan = acts(plan_cold_rollback(&then, &seen, &again));
    assert_eq!(
        names(&plan),
        [
            "reserve_slot a",
            "start_replica a",
            "await_ready a",
            "cut_over b -> a",
            "promote a",
            "drain b",
            "retire b"
        ]
    );
    assert_eq!(
        (plan.strategy, plan.candidate.revision),
        (Strategy::ColdRollback, seen.wanted.clone())
    );
    assert!(plan.steps[1].does.starts_with("start vllm serve Qwen/Older "), "{:?}", plan.steps);

    // Secrets have other values now: that is another revision, and it is said.
    seen.wanted = revision::specified(&then, "other", None, None);
    let plan = acts(plan_cold_rollback(&then, &seen, &again));
    assert_eq!(plan.candidate.revision.digest, seen.wanted.digest);
    assert!(plan.notes[0].contains("values of secret_env have changed"), "{:?}", plan.notes);
}

#[test]
fn a_cold_rollback_to_an_adopted_revision_shows_its_argv_and_clears_its_slot() {
    let mut seen = after_a_swap();
    seen.slots.insert(slot("a"), Occupant::default());
    seen.worker_shutdown_timeout = Some(Duration::from_secs(30));
    let revision = revision::adopted(&["x".to_owned()], Some("Qwen/Old".to_owned()));
    let argv = ["/opt/vllm", "--hf-token", "hf_secret"].map(str::to_owned).to_vec();
    let again = Again { revision: revision.clone(), argv: Some(argv), keeper: None };
    let plan = acts(plan_cold_rollback(&spec(), &seen, &again));
    // What was retained there died: its children may be left.
    assert_eq!(names(&plan)[..3], ["retire a", "reserve_slot a", "start_replica a"]);
    assert_eq!(plan.steps[2].does, "start /opt/vllm --hf-token ***");
    assert_eq!(plan.candidate.revision, revision);
    assert!(plan.notes[0].contains("worker_shutdown_timeout"), "a warning: {:?}", plan.notes);
    seen.program = Err(Failure::new("there is no program \"/opt/vllm\""));
    seen.claimed.insert(slot("a"), Failure::new("GPU 0 is reserved by service code"));
    let refused = refusals(plan_cold_rollback(&spec(), &seen, &again));
    assert!(refused[0].contains("no program") && refused[1].contains("reserved"), "{refused:?}");
}

#[test]
fn every_obstacle_is_named_at_once() {
    let mut seen = adopted_in_a();
    seen.slots.insert(slot("b"), occupied(20));
    seen.worker_shutdown_timeout = Some(Duration::from_secs(30));
    seen.program = Err(Failure::new("there is no program \"vllm\""));
    seen.slots.get_mut(&slot("a")).unwrap().found.as_mut().unwrap().keeper =
        Keeper::Unit(Unit { name: "vllm.service".to_owned(), user: None });
    let refused = refusals(plan_swap(&spec(), &seen, When::Changed));
    let expected = [
        "there is no program",
        "port 8002 of slot b is taken",
        "vllm.service",
        "worker_shutdown_timeout is 30s",
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:?}");
    for (refusal, part) in refused.iter().zip(expected) {
        assert!(refusal.contains(part), "{refusal}");
    }
}

#[test]
fn systemd_supervises_where_it_can_and_the_plan_says_where_it_does_not() {
    let (mut auto, mut seen) = (spec(), adopted_in_a());
    let kept = |seen: &Observed, spec: &SwapSpec| {
        let plan = acts(plan_swap(spec, seen, When::Changed));
        (plan.candidate.keeper, plan.notes.join("\n"))
    };
    assert_eq!(kept(&seen, &auto), (Keeper::Nobody, String::new()), "there is no systemd");

    seen.systemd = Systemd::Denied;
    let (keeper, notes) = kept(&seen, &auto);
    assert_eq!(keeper, Keeper::Nobody);
    assert!(notes.contains("the agent is not root") && notes.contains("after a reboot"), "{notes}");
    auto.replica.runtime = Runtime::Systemd;
    let refused = refusals(plan_swap(&auto, &seen, When::Changed));
    assert!(refused[0].starts_with("replica.runtime is systemd, and only root"), "{refused:?}");

    seen.systemd = Systemd::Usable;
    let unit = Unit { name: "model-swap-chat.b.service".to_owned(), user: None };
    assert_eq!(kept(&seen, &auto), (Keeper::Unit(unit), String::new()));
    auto.replica.runtime = Runtime::Process;
    let (keeper, notes) = kept(&seen, &auto);
    assert_eq!(keeper, Keeper::Nobody);
    assert!(notes.contains("as replica.runtime says"), "{notes}");
    let somebodys = Unit { name: "vllm.service".to_owned(), user: None };
    seen.slots.get_mut(&slot("a")).unwrap().found.as_mut().unwrap().keeper =
        Keeper::Unit(somebodys.clone());
    let plan = acts(plan_swap(&spec(), &seen, When::Changed));
    assert_eq!(plan.incumbent.unwrap().keeper, Keeper::Unit(somebodys));
}

#[test]
fn what_its_unit_started_again_is_still_the_recorded_replica() {
    let mut seen = after_a_swap();
    let keeper = Keeper::Unit(Unit::of_slot(&spec().service, &slot("b")));
    seen.state.serving.as_mut().unwrap().keeper = keeper.clone();
    let mut restarted = occupied(99);
    restarted.found.as_mut().unwrap().keeper = keeper;
    seen.slots.insert(slot("b"), restarted);
    assert!(matches!(plan_swap(&spec(), &seen, When::Changed), Ok(Decision::Unchanged(_))));
    assert_eq!(replica_in(&slot("b"), &spec(), &seen).unwrap().main, process(99));

    // Somebody's own unit may hold another model by now.
    let retained = &mut seen.state.retained.as_mut().unwrap().replica;
    retained.keeper = Keeper::Unit(Unit { name: "vllm.service".to_owned(), user: None });
    let mut other = occupied(98);
    let found = other.found.as_mut().unwrap();
    found.keeper = retained.keeper.clone();
    seen.slots.insert(slot("a"), other.clone());
    assert!(warm_replica(&spec(), &seen).is_some() && is_retained(&slot("a"), &seen));
    let left = seen.state.retained.clone().unwrap();
    let steps = plan_clearing(&spec(), &seen, &left).unwrap().steps;
    assert_eq!(steps[0].step, Step::Drain { slot: slot("a") }, "it has requests of its own");
    assert!(replica_in(&slot("a"), &spec(), &seen).unwrap().main == process(98));
    seen.systemd = Systemd::Usable;
    seen.wanted.digest = "r-next".to_owned();
    let steps = acts(plan_swap(&spec(), &seen, When::Changed)).steps;
    assert_eq!(steps[1].step, Step::Retire { slot: slot("a") }, "it makes room");
    other.found.as_mut().unwrap().argv.push("--other".to_owned());
    seen.slots.insert(slot("a"), other);
    assert_eq!((warm_replica(&spec(), &seen), is_retained(&slot("a"), &seen)), (None, false));
    let refused = refusals(plan_swap(&spec(), &seen, When::Changed));
    assert!(refused[0].contains("not recorded as a replica of this service"), "{refused:?}");
}

#[test]
fn what_its_keeper_brings_back_is_retired_although_it_is_away_when_that_is_planned() {
    let mut seen = after_a_swap();
    seen.slots.insert(slot("b"), Occupant::default());
    seen.wanted.digest = "r-next".to_owned();
    let retained = seen.state.retained.clone().unwrap();
    let later = |seen: &Observed| {
        let swap = acts(plan_swap(&spec(), seen, When::Changed));
        let rollback = acts(plan_warm_rollback(&spec(), seen, &retained));
        assert_eq!((&swap.incumbent, &swap.later), (&rollback.incumbent, &rollback.later));
        assert_eq!(swap.incumbent, None);
        swap.later.into_iter().map(|planned| planned.step.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(later(&seen), [""; 0], "nobody starts a plain process again");
    let unit = Unit::of_slot(&spec().service, &slot("b"));
    seen.state.serving.as_mut().unwrap().keeper = Keeper::Unit(unit);
    assert_eq!(later(&seen), ["drain b", "retire b"]);
}

#[test]
fn an_upstream_that_points_elsewhere_is_refused() {
    let mut seen = adopted_in_a();
    seen.nginx_port = Port(9000);
    let refused = refusals(plan_swap(&spec(), &seen, When::Changed));
    assert!(
        refused[0].contains("points at port 9000, which is no slot's (slots: a: 8001, b: 8002)")
    );
}

#[test]
fn an_upstream_that_does_not_name_where_containers_are_published_is_refused() {
    let mut seen = adopted_in_a();
    seen.beside_loopback = "172.17.0.1".parse().ok();
    acts(plan_swap(&spec(), &seen, When::Changed));
    let mut contained = spec();
    contained.replica.runtime = Runtime::Docker;
    let refused = refusals(plan_swap(&contained, &seen, When::Changed));
    assert!(
        refused[0].contains("names 172.17.0.1, and the ports of new containers"),
        "{refused:?}"
    );
    for option in ["--network=host", "--net=host", "--network=name=host"] {
        contained.replica.docker_options = vec!["--ipc=host".to_owned(), option.to_owned()];
        acts(plan_swap(&contained, &seen, When::Changed));
    }
    contained.replica.docker_options = vec!["--network=hosts".to_owned()];
    refusals(plan_swap(&contained, &seen, When::Changed));
}

#[test]
fn a_wrapper_and_lost_names_are_noted() {
    let mut seen = adopted_in_a();
    seen.wanted_names = vec!["other".to_owned()];
    seen.slots.get_mut(&slot("a")).unwrap().found.as_mut().unwrap().keeper =
        Keeper::Wrapper { process: process(9), command: "bash run.sh".to_owned() };
    let notes = acts(plan_swap(&spec(), &seen, When::Changed)).notes;
    assert!(notes[0].contains("process 9 (bash run.sh), which may start it again"), "{notes:?}");
    assert!(notes[1].contains("ask for chat will get 404"), "{notes:?}");
}

#[test]
fn a_pinned_commit_that_the_engine_is_not_told_is_noted() {
    let mut pinned = spec();
    pinned.model_revision = Some("5ede1c97".to_owned());
    let planned = |spec: &SwapSpec| acts(plan_swap(spec, &adopted_in_a(), When::Changed));
    let notes = planned(&pinned).notes;
    assert!(notes.len() == 1 && notes[0].contains("to 5ede1c97, and replica.command"), "{notes:?}");
    pinned.replica.command.extend(["--revision", "{revision}"].map(str::to_owned));
    let plan = planned(&pinned);
    assert!(plan.notes.is_empty(), "{plan:?}");
    assert!(plan.steps[1].does.ends_with("--revision 5ede1c97"), "{plan:?}");
    pinned.replica.command.truncate(2);
    pinned.model = "/srv/models/qwen".to_owned();
    assert!(planned(&pinned).notes.is_empty());
}

#[test]
fn the_digest_is_of_the_plan_and_not_of_pids() {
    let one = two_slot_plan();
    let mut seen = adopted_in_a();
    seen.slots.insert(slot("a"), occupied(77));
    assert_eq!(acts(plan_swap(&spec(), &seen, When::Changed)).digest, one.digest);
    let mut other = spec();
    other.model = "Qwen/Newer".to_owned();
    let mut wants_other = adopted_in_a();
    wants_other.wanted = revision::specified(&other, "", None, None);
    assert_ne!(acts(plan_swap(&other, &wants_other, When::Changed)).digest, one.digest);
}

/// Swap s-1 brought another model than is wanted now, whose revision `a` may still have from before.
fn wants_other_after_a_swap(a: &str) -> (SwapSpec, Observed) {
    let mut other = spec();
    other.model = "Qwen/Newer".to_owned();
    let mut seen = after_a_swap();
    seen.wanted = revision::specified(&other, "", None, None);
    let retained = seen.state.retained.as_mut().unwrap();
    match a {
        "other" => {}
        "wanted" => {
            retained.replica.revision = seen.wanted.clone();
            retained.replica.main = process(10);
        }
        _ => {
            seen.state.retained = None;
            seen.slots.insert(slot("a"), Occupant::default());
        }
    }
    (other, seen)
}

#[test]
fn the_digest_is_not_of_what_time_alone_takes_out_of_the_free_slot() {
    let planned = |a: &str| {
        let (spec, seen) = wants_other_after_a_swap(a);
        acts(plan_swap(&spec, &seen, When::Changed))
    };
    let [other, wanted, free] = ["other", "wanted", "free"].map(planned);
    assert_eq!(names(&other)[..2], ["drain a", "retire a"]);
    assert_eq!((&*names(&wanted)[0], &*names(&free)[0]), ("await_ready a", "reserve_slot a"));
    assert_eq!(other.digest, free.digest);
    assert_eq!(wanted.digest, free.digest);
    // What serves is no such thing.
    let (spec, mut seen) = wants_other_after_a_swap("free");
    seen.state.serving = None;
    assert_ne!(acts(plan_swap(&spec, &seen, When::Changed)).digest, free.digest);
}
