//! The agent is killed at an exact record of a real swap's journal, under load, and `repair` brings the swap to its end.
//!
//! The library that strikes is the test's (`testbed::server::Aim`): the binary is the one that is shipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testbed::action::{Action, Run};
use testbed::server::{Aim, listeners};

use crate::runner::{STEPS, swaps};
use crate::step::{Step, send, until};
use crate::support::{NAME, NEW, OLD, World, alive};

/// The records of a first swap, in their order: the plan, and each step begun and done; then the outcome, and each of
/// the two steps after it; then the end.
pub(crate) const PROMOTED: usize = 11;
pub(crate) const CONCLUDED: usize = PROMOTED + 1;
pub(crate) const CLOSED: usize = CONCLUDED + 5;

/// The record that announces the new model's start, and the one that it is done; the same of the old one's retirement.
pub(crate) const STARTING: usize = 4;
pub(crate) const STARTED: usize = 5;
pub(crate) const RETIRING: usize = CLOSED - 2;
pub(crate) const RETIRED: usize = CLOSED - 1;

/// The record that announces the cutover, and the one that it is done.
pub(crate) const CUTTING_OVER: usize = 8;
pub(crate) const CUT_OVER: usize = 9;

/// The record that the new model is ready.
pub(crate) const READY: usize = 7;

/// The state of a service that knows of nothing.
const NO_STATE: &str = r#"{"v":1,"serving":null,"serving_swap":null,"retained":null}"#;

/// A server on which agents can be struck; a swap's old model is retired as soon as it is drained.
pub(crate) async fn world() -> Result<World> {
    let mut world = World::with_faults().await?;
    world.settings.retain = "0s".to_owned();
    Ok(world)
}

/// What an unwound swap leaves as it was: nginx's file, claims, state but for its history, who listens in either slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    nginx: String,
    files: BTreeMap<PathBuf, String>,
    listeners: [Vec<u32>; 2],
}

impl Facts {
    pub(crate) fn of(world: &World) -> Result<Self> {
        let (a, b) = world.server.slot_ports();
        let nginx = world.server.nginx_config();
        Self::at(&world.server.state_dir(), &nginx, [listeners(a)?, listeners(b)?])
    }

    /// The same of any server, whose files are seen from here.
    pub(crate) fn at(state: &Path, nginx: &Path, listeners: [Vec<u32>; 2]) -> Result<Self> {
        let mut files = BTreeMap::new();
        for claim in fs::read_dir(state.join("claims"))?.flatten() {
            files.insert(claim.path(), fs::read_to_string(claim.path())?);
        }
        let path = state.join(NAME).join("state.json");
        // There is none before the first swap.
        let text = fs::read_to_string(&path).unwrap_or_else(|_| NO_STATE.to_owned());
        let mut known: serde_json::Value = serde_json::from_str(&text)?;
        known.as_object_mut().context("an object")?.remove("history");
        files.insert(path, known.to_string());
        Ok(Self { nginx: fs::read_to_string(nginx)?, files, listeners })
    }
}

/// The id of the newest swap.
pub(crate) fn swap(world: &World) -> Result<String> {
    Ok(newest(world)?.file_name().context("a name")?.to_string_lossy().into_owned())
}

/// The folder of the newest swap.
fn newest(world: &World) -> Result<PathBuf> {
    let swaps = world.server.state_dir().join(NAME).join("swaps");
    let folders = fs::read_dir(swaps)?.flatten().map(|entry| entry.path());
    folders.max().context("no swap")
}

/// The journal of the newest swap: its whole lines, and whether half of one follows.
pub(crate) fn journal(world: &World) -> Result<(Vec<String>, bool)> {
    Ok(records(&fs::read_to_string(newest(world)?.join("journal.ndjson"))?))
}

/// The whole lines of a journal, and whether half of one follows.
pub(crate) fn records(text: &str) -> (Vec<String>, bool) {
    let torn = !text.is_empty() && !text.ends_with('\n');
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if torn {
        lines.pop();
    }
    (lines, torn)
}

/// Returns once the newest swap's journal has its last record: nobody works on it any more.
pub(crate) async fn closed(world: &World) -> Result<()> {
    until("a closed journal", || {
        let (records, _) = journal(world)?;
        let is_closed = |last: &String| last.contains(r#""record":"closed""#);
        Ok(records.last().is_some_and(is_closed).then_some(()))
    })
    .await
}

/// The agent of a world, once it is frozen, and how many records its journal has then.
pub(crate) async fn frozen(world: &World) -> Result<(u32, usize)> {
    let agent = frozen_agent(world).await?;
    Ok((agent, journal(world)?.0.len()))
}

/// An agent that is frozen, once there is one.
async fn frozen_agent(world: &World) -> Result<u32> {
    let is_frozen = |agent: &u32| {
        let stat = fs::read_to_string(format!("/proc/{agent}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
    };
    // Another one may keep something warm.
    until("a frozen agent", || Ok(agents(world).into_iter().find(is_frozen))).await
}

/// Starts a step whose agent is frozen before it has done anything.
pub(crate) async fn frozen_at_first(world: &World, action: Action) -> Result<(Step, u32)> {
    world.server.strike(Some(Aim::FreezeStart))?;
    let step = Step::start(action)?;
    let agent = frozen_agent(world).await?;
    world.server.strike(None)?;
    assert_eq!(swaps(world), 0, "it froze elsewhere");
    Ok((step, agent))
}

/// Returns once an order to abort is on the disk: whole, not the file that is about to become one.
pub(crate) async fn ordered(world: &World) -> Result<()> {
    until("the order", || {
        let mut orders =
            fs::read_dir(world.server.state_dir().join(NAME).join("aborts"))?.flatten();
        let is_whole = |order: fs::DirEntry| order.path().extension().is_some_and(|e| e == "json");
        Ok(orders.any(is_whole).then_some(()))
    })
    .await
}

/// The detached agent, if it is there.
pub(crate) fn agent(world: &World) -> Option<u32> {
    agents(world).first().copied()
}

/// All detached agents that are there.
fn agents(world: &World) -> Vec<u32> {
    let all = world.server.leftovers().into_iter();
    let agents = all.filter(|line| line.contains("model-swap agent run"));
    agents.filter_map(|line| line.split_once(':')?.0.parse().ok()).collect()
}

async fn repair(world: &World) -> Result<Run> {
    Step::run(world.action("repair", NEW, &[])?).await
}

/// Begins a swap whose agent is killed there, and its runner just before: nobody asks for another agent.
pub(crate) async fn orphaned(world: &World, aim: Aim, action: Action) -> Result<()> {
    let (freezes, whole, half) = match aim {
        Aim::After(record) => (Aim::Freeze(record), record, false),
        Aim::Within(record) => (Aim::FreezeWithin(record), record - 1, true),
        _ => anyhow::bail!("that kills nobody"),
    };
    world.server.strike(Some(freezes))?;
    let step = Step::start(action)?;
    let (agent, _) = frozen(world).await?;
    world.server.strike(None)?;
    let (lines, torn) = journal(world)?;
    assert_eq!((lines.len(), torn), (whole, half), "{aim:?} struck elsewhere\n{}", step.said());
    step.kill()?;
    send("-KILL", agent)?;
    until("the agent's death", || Ok((!alive(agent)).then_some(()))).await
}

/// The same of a swap to the next model.
async fn killed(world: &World, aim: Aim) -> Result<()> {
    orphaned(world, aim, world.action("swap", NEW, &[("wait", "retired")])?).await
}

/// Asserts that a second repair finds nothing to do and changes nothing.
async fn assert_settled(world: &World, what: &str) -> Result<()> {
    let before = (Facts::of(world)?, journal(world)?);
    repair(world).await?.ended(0, "unchanged").answered(&["no swap of service chat needs repair"]);
    assert_eq!((Facts::of(world)?, journal(world)?), before, "{what}: a second repair acted");
    Ok(())
}

/// A swap that dies before it is promoted comes to nothing, again and again on the same server.
pub(crate) async fn comes_to_nothing(world: &World, aims: &[Aim]) -> Result<()> {
    let load = world.load().await?;
    // The folder of claims is made by whoever comes first.
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(world)?;
    for &aim in aims {
        let what = format!("{aim:?}");
        killed(world, aim).await?;
        let run = repair(world).await?;
        let outcome = match aim {
            // Not one whole record: it did nothing.
            Aim::Within(1) => "unchanged",
            Aim::After(record) if record > CUTTING_OVER => "rolled-back",
            Aim::Within(record) if record > CUTTING_OVER => "rolled-back",
            _ => "failed",
        };
        let run = run.ended(0, outcome);
        assert!(
            outcome == "unchanged" || run.stdout.contains("taken up again: its agent"),
            "{run}"
        );
        assert_eq!(world.serves().await?, OLD, "{what}\n{run}");
        assert_eq!(Facts::of(world)?, before, "{what}\n{run}");
        if outcome != "unchanged" {
            closed(world).await?;
        }
        assert_settled(world, &what).await?;
    }
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn an_agent_that_is_killed_before_promote_leaves_the_world_as_it_was() -> Result<()> {
    let mut aims: Vec<_> = (1..PROMOTED).map(Aim::After).collect();
    // The record that says that a step is done, lost: it is done all the same.
    aims.extend([1, 3, 5, 7, 9, PROMOTED].map(Aim::Within));
    let (some, rest) = aims.split_at(aims.len() / 2);
    let (one, other) = tokio::try_join!(world(), world())?;
    tokio::try_join!(comes_to_nothing(&one, some), comes_to_nothing(&other, rest))?;
    Ok(())
}

/// The record that customers meet another model, which is the last of five steps; each is undone; then the outcome, and the
/// end.
const UNVERIFIED: usize = 1 + 2 * 5;
const UNWOUND: usize = UNVERIFIED + 2 * 5;

/// A world whose customers never meet the new model: every swap is rolled back.
pub(crate) async fn unmet() -> Result<World> {
    let mut world = world().await?;
    let url = format!("http://{}/v1/models", world.server.nginx_addr());
    world.settings.verify = format!("{{ url: {url:?}, expect_model: \"Qwen/Other\", within: 1s }}");
    Ok(world)
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_unwinds_leaves_the_world_as_it_was() -> Result<()> {
    // Until that is told the step brings its swap to its end by itself.
    let aims: Vec<_> = (UNVERIFIED + 1..=UNWOUND).map(Aim::After).collect();
    let (some, rest) = aims.split_at(aims.len() / 2);
    let (one, other) = tokio::try_join!(unmet(), unmet())?;
    tokio::try_join!(comes_to_nothing(&one, some), comes_to_nothing(&other, rest))?;
    Ok(())
}

/// A swap that dies when it is promoted has promoted.
pub(crate) async fn is_the_world_after(world: &World, aim: Aim) -> Result<()> {
    let load = world.load().await?;
    let what = format!("{aim:?}");
    killed(world, aim).await?;
    let has_outcome = !matches!(aim, Aim::After(PROMOTED) | Aim::Within(CONCLUDED));
    repair(world).await?.ended(0, if has_outcome { "unchanged" } else { "promoted" });
    assert_eq!(world.serves().await?, NEW, "{what}");
    // Its agent may have written the outcome down and died before it could tell.
    assert_eq!(world.told().matches(r#""event":"concluded""#).count(), 1, "{what}");
    // What its agent could not retire any more, the one does that has found it.
    closed(world).await.with_context(|| what.clone())?;
    assert!(!world.old_runs()?, "{what}");
    assert!(!world.told().contains(r#""closing":"kept""#), "{what}: {}", world.told());
    assert_settled(world, &what).await?;
    world.run("swap", "Qwen/Third", &[("wait", "retired")]).await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, "Qwen/Third", "{what}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn an_agent_that_is_killed_after_promote_has_promoted() -> Result<()> {
    let aims: Vec<_> = (PROMOTED..=CLOSED).map(Aim::After).collect();
    let some = async |aims: &[Aim]| -> Result<()> {
        for aim in aims {
            is_the_world_after(&world().await?, *aim).await.with_context(|| format!("{aim:?}"))?;
        }
        Ok(())
    };
    let half = aims.len() / 2;
    tokio::try_join!(some(&aims[..half]), some(&aims[half..]))?;
    Ok(())
}

/// Does something to a step and its runner at each record of a swap up to the last, while the agent is frozen there.
pub(crate) async fn at_each_record(
    world: &World,
    (mut step, last): (Step, usize),
    mut does: impl AsyncFnMut(Step, usize) -> Result<Step>,
) -> Result<Run> {
    for record in 1..=last {
        let (agent, records) = frozen(world).await?;
        assert_eq!(records, record, "it froze elsewhere");
        step = does(step, record).await?;
        if record == last {
            world.server.strike(None)?;
        }
        send("-CONT", agent)?;
    }
    step.finish().await
}

/// What was heard of a swap by parts is whole, and nothing of it was heard twice.
pub(crate) fn assert_whole(run: &Run) {
    for step in STEPS {
        for line in [format!("→ {step}"), format!("✓ {step}")] {
            assert_eq!(run.stdout.matches(&line).count(), 1, "{line} in\n{run}");
        }
    }
}

/// Kills the agent of a step there, and nobody else; how the step ends.
async fn bereft(world: &World, aim: Aim, action: Action) -> Result<Run> {
    world.server.strike(Some(aim))?;
    let step = Step::start(action)?;
    let (agent, _) = frozen(world).await?;
    world.server.strike(None)?;
    send("-KILL", agent)?;
    step.finish().await
}

/// The same where the step asks for another agent, once.
pub(crate) async fn bereft_at_work(world: &World, aim: Aim, action: Action) -> Result<Run> {
    let run = bereft(world, aim, action).await?;
    assert_eq!(run.stdout.matches("asking the server to bring").count(), 1, "{run}");
    Ok(run)
}

/// It has written down that all is over, and tells nobody any more.
#[tokio::test]
async fn a_step_that_waits_for_the_end_is_told_of_it_by_the_journal() -> Result<()> {
    let world = world().await?;
    let run =
        bereft(&world, Aim::Freeze(CLOSED), world.action("swap", NEW, &[("wait", "retired")])?)
            .await?;
    let run = run.ended(0, "promoted");
    assert!(run.summary.contains("Slot a is free"), "{run}");
    assert!(!run.stdout.contains("is gone"), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_step_whose_agent_is_killed_has_another_one_bring_its_swap_to_its_end() -> Result<()> {
    let world = world().await?;
    let load = world.load().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let retired = [("wait", "retired")];
    for (record, code, outcome) in [(READY, 4, "failed"), (CUT_OVER, 5, "rolled-back")] {
        let run = bereft_at_work(&world, Aim::Freeze(record), world.action("swap", NEW, &retired)?)
            .await?;
        run.ended(code, outcome);
        assert_eq!(Facts::of(&world)?, before, "{record}");
    }
    let run =
        bereft_at_work(&world, Aim::Freeze(PROMOTED), world.action("swap", NEW, &retired)?).await?;
    run.ended(0, "promoted");
    assert!(!world.old_runs()?, "it is still there");
    let run = bereft_at_work(
        &world,
        Aim::Freeze(CONCLUDED + 1),
        world.action("swap", "Qwen/Third", &retired)?,
    )
    .await?;
    run.ended(0, "promoted");
    let swap = swap(&world)?;
    let back = bereft_at_work(&world, Aim::Freeze(READY), world.action("rollback", NEW, &retired)?)
        .await?;
    let back = back.ended(4, "failed");
    assert_eq!(
        (world.serves().await?.as_str(), back.output("swap-id") > swap.as_str()),
        ("Qwen/Third", true),
        "{back}"
    );
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_swap_that_was_to_be_aborted_is_although_its_agent_is_killed() -> Result<()> {
    let world = world().await?;
    world.server.strike(Some(Aim::Freeze(READY)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (agent, _) = frozen(&world).await?;
    let abort = Step::start(world.action("abort", NEW, &[])?)?;
    ordered(&world).await?;
    world.server.strike(None)?;
    send("-KILL", agent)?;
    step.finish().await?.ended(6, "aborted");
    abort.finish().await?.ended(0, "aborted");
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}
