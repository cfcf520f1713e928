//! The same as `kills` where the replicas are units of systemd, at the records where what is done is systemd's, or the step's
//! to follow. Nobody asks for a repair there: the agent that systemd keeps brings the swap to its end.

use anyhow::{Result, bail};
use testbed::action::Run;
use testbed::guest::{GuestSpec, SLOTS, UPSTREAM_FILE};
use testbed::server::Aim;

use crate::kills::{
    CLOSED, CONCLUDED, CUT_OVER, CUTTING_OVER, Facts, PROMOTED, RETIRED, RETIRING, STARTED,
    STARTING, records,
};
use crate::step::Step;
use crate::support::guest::{GuestWorld, on_guest_of, until};
use crate::support::scene::{Kept, Scene};
use crate::support::{NEW, OLD};

/// The record of a warm rollback that its cutover is done.
const ROLLED_OVER: usize = 5;

/// Runs a test on a machine whose agents can be struck; a swap's old model is retired as soon as it is drained.
fn on_struck(test: impl AsyncFnOnce(&mut GuestWorld) -> Result<()>) -> Result<()> {
    let spec = GuestSpec { faults: true, ..GuestSpec::serving(OLD) };
    on_guest_of(spec, async |world| {
        world.settings.retain = "0s".to_owned();
        world.until_serves(OLD).await?;
        test(world).await
    })
}

/// What an unwound swap leaves as it was.
async fn facts(world: &GuestWorld) -> Result<(Facts, Kept, Vec<(char, Kept)>)> {
    let listeners = [world.guest.listeners(SLOTS.0).await?, world.guest.listeners(SLOTS.1).await?];
    let facts = Facts::at(&world.state()?, &world.guest.file(UPSTREAM_FILE)?, listeners)?;
    Ok((facts, world.old().await?, world.ours().await?))
}

/// The agent, once it is frozen: its process there.
async fn frozen(world: &GuestWorld) -> Result<String> {
    let mut agent = String::new();
    until("a frozen agent", async || {
        let look = ["pgrep", "--runstates", "T", "--full", "model-swap agent run"];
        agent = world.guest.run(&look).await.unwrap_or_default().trim().to_owned();
        Ok(!agent.is_empty())
    })
    .await?;
    Ok(agent)
}

/// Runs a swap whose agent is killed there, as its journal shows before anybody goes on; returns when the one that systemd keeps
/// has nothing left to do.
async fn killed(world: &GuestWorld, model: &str, aim: Aim) -> Result<Run> {
    world.guest.strike(Some(aim))?;
    let step = Step::start(world.action("swap", model, &[("wait", "retired")])?)?;
    let agent = frozen(world).await?;
    world.guest.strike(None)?;
    let (lines, torn) = records(&world.of_last_swap("journal.ndjson").await?);
    let expected = match aim {
        Aim::Freeze(record) => (record, false),
        Aim::FreezeWithin(record) => (record - 1, true),
        _ => bail!("that does not freeze it there"),
    };
    assert_eq!((lines.len(), torn), expected, "{aim:?} struck elsewhere: {}", step.said());
    world.guest.run(&["kill", "-KILL", &agent]).await?;
    world.until_through().await?;
    step.finish().await
}

#[test]
fn units_of_a_swap_whose_agent_is_killed_before_promote_leave_the_world_as_it_was() -> Result<()> {
    let aims = [
        Aim::Freeze(1),
        Aim::Freeze(STARTING),
        // It runs, and no record tells of it.
        Aim::FreezeWithin(STARTED),
        Aim::Freeze(CUTTING_OVER),
        Aim::FreezeWithin(CUT_OVER),
        Aim::Freeze(CUT_OVER),
        Aim::FreezeWithin(PROMOTED),
    ];
    on_struck(async |world| {
        let load = world.load().await?;
        // The folder of claims is made by whoever comes first.
        world.run("plan", NEW, &[]).await?.answered(&[]);
        let before = facts(world).await?;
        for aim in aims {
            let run = killed(world, NEW, aim).await?;
            let run = match aim {
                // Of a swap that is not accepted yet the step knows nothing.
                Aim::Freeze(1) => run.refused(3, &["the agent ended without an answer"]),
                Aim::Freeze(record) | Aim::FreezeWithin(record) if record > CUTTING_OVER => {
                    run.ended(5, "rolled-back")
                }
                _ => run.ended(4, "failed"),
            };
            world.until_serves(OLD).await?;
            assert_eq!(facts(world).await?, before, "{aim:?}\n{run}");
        }
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// The first swap puts somebody else's unit away, each later one a unit of ours.
#[test]
fn units_of_a_swap_whose_agent_is_killed_after_promote_take_turns() -> Result<()> {
    let aims = [
        Aim::Freeze(PROMOTED),
        Aim::Freeze(CONCLUDED),
        Aim::Freeze(RETIRING),
        Aim::FreezeWithin(RETIRED),
        Aim::Freeze(CLOSED),
    ];
    on_struck(async |world| {
        let load = world.load().await?;
        for (number, aim) in aims.into_iter().enumerate() {
            let (model, slot) = (format!("{NEW}-{number}"), ['b', 'a'][number % 2]);
            let run = killed(world, &model, aim).await?.ended(0, "promoted");
            world.until_serves(&model).await?;
            assert_eq!(world.old().await?, Kept::Stopped, "{aim:?}\n{run}");
            assert_eq!(world.ours().await?, [(slot, Kept::Boots)], "{aim:?}\n{run}");
            assert_eq!(world.claimed()?, [slot], "{aim:?}\n{run}");
            // Its agent may have written the outcome down and died before it could tell.
            let told = world.of_last_swap("events.ndjson").await?;
            assert_eq!(told.matches(r#""event":"concluded""#).count(), 1, "{aim:?}\n{told}");
            assert!(!told.contains(r#""closing":"kept""#), "{aim:?}\n{told}");
            let (lines, _) = records(&world.of_last_swap("journal.ndjson").await?);
            let is_closed = lines.last().is_some_and(|it| it.contains(r#""record":"closed""#));
            assert!(is_closed, "{aim:?}\n{lines:#?}");
        }
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// Whoever keeps the old model warm does nothing else: first the swap's own agent, beside which systemd's has to act, then
/// systemd's own.
#[test]
fn a_rollback_whose_agent_is_killed_while_another_keeps_a_model_warm_is_brought_to_its_end()
-> Result<()> {
    on_struck(async |world| {
        world.settings.retain = "1h".to_owned();
        let swap = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let keeper = world.agent().await?;
        let id = swap.output("swap-id");
        let named = format!("/var/lib/model-swap/chat/swaps/{id}/agent.json");
        let before = facts(world).await?;
        for keeps in ["its own agent", "systemd's"] {
            world.guest.strike(Some(Aim::Freeze(ROLLED_OVER)))?;
            let step = Step::start(world.action("rollback", NEW, &[])?)?;
            let agent = frozen(world).await?;
            world.guest.strike(None)?;
            world.guest.run(&["kill", "-KILL", &agent]).await?;
            let run = step.finish().await?.ended(4, "failed");
            world.until_serves(NEW).await?;
            assert_eq!(facts(world).await?, before, "{keeps}\n{run}");
            if keeps == "systemd's" {
                break;
            }
            world.guest.run(&["kill", "-KILL", &keeper]).await?;
            until("systemd's agent keeps it warm", async || {
                let now = world.guest.run(&["cat", &named]).await?;
                Ok(!now.contains(&format!("\"pid\":{keeper},")))
            })
            .await?;
        }
        Ok(())
    })
}
