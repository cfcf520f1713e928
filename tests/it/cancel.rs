//! A job is cancelled when traffic is at the new model already: within GitHub's seconds the old one serves again, and the
//! step has said nothing that is not true. Or before its server was asked.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::PATIENCE;
use testbed::load::Load;
use testbed::relay::Relay;
use testbed::server::{Aim, ServerSpec, free_port, listeners};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::kills::{self, CUT_OVER, Facts};
use crate::runner::outcome;
use crate::step::{Step, send};
use crate::support::relayed::{relay, through, through_for};
use crate::support::{Action, NEW, OLD, Run, World, alive, until};

/// GitHub's patience with a container that it has told to end (runner, `ProcessInvoker.cs`): until SIGTERM, and then until
/// it kills.
const UNTIL_TERM: Duration = Duration::from_millis(7500);
const UNTIL_KILL: Duration = Duration::from_millis(2500);

/// How a step ends that GitHub cancels, while something else happens on the server.
async fn cancelled(step: Step, meanwhile: impl Future<Output = Result<()>>) -> Result<Run> {
    step.signal("-INT")?;
    let pid = step.pid();
    let patience = async {
        tokio::time::sleep(UNTIL_TERM).await;
        if alive(pid) {
            send("-TERM", pid)?;
            tokio::time::sleep(UNTIL_KILL).await;
        }
        if alive(pid) {
            bail!("GitHub has killed it");
        }
        // It has ended in time. What it leaves, and what else happens, may take longer.
        std::future::pending().await
    };
    let ended = async { tokio::try_join!(step.finish(), meanwhile) };
    tokio::select! {
        ended = ended => Ok(ended?.0),
        killed = patience => killed,
    }
}

/// Asserts that what a step said when it ended is so at that very moment, and that nothing is left in the end.
async fn assert_true(world: &World, run: Run, before: &Facts) -> Result<()> {
    let serves = world.serves().await?;
    let run = run.ended(6, "aborted");
    assert_eq!(serves, OLD, "{run}");
    let (a, _) = world.server.slot_ports();
    for said in ["traffic is where it was: ", "aborted: "] {
        let said = format!("{said}Qwen/Old serves from slot a, port {a}");
        assert!(run.stdout.contains(&said), "no {said:?} in\n{run}");
    }
    assert!(run.summary.contains("aborted"), "{run}");
    assert_eq!(outcome(world).await?, "aborted");
    world.run("status", NEW, &[]).await?.answered(&["aborted      Qwen/New"]);
    until("nobody is at work", || kills::agent(world).is_none()).await?;
    assert_eq!(Facts::of(world)?, *before, "{run}");
    Ok(())
}

/// Whoever waits writes nothing, and what its journal needs has room since it began.
#[tokio::test]
async fn an_order_to_abort_needs_no_byte_of_a_full_disk() -> Result<()> {
    let mut world = kills::world().await?;
    world.settings.flags = "--stub-load-time 600s".to_owned();
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready").await?;
    let agent = kills::agent(&world).context("no agent")?;
    send("-STOP", agent)?;
    world.server.strike(Some(Aim::Full(1)))?;
    let abort = Step::start(world.action("abort", NEW, &[])?)?;
    kills::ordered(&world).await?;
    world.server.strike(None)?;
    send("-CONT", agent)?;
    abort.finish().await?.ended(0, "aborted");
    let run = step.finish().await?.ended(6, "aborted");
    assert!(run.stdout.contains("somebody asked to abort"), "{run}");
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_nginx_is_moved_ends_on_the_old_model() -> Result<()> {
    let world = kills::world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let load = world.load().await?;
    world.server.strike(Some(Aim::Freeze(CUT_OVER)))?;
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    let (agent, _) = kills::frozen(&world).await?;
    world.server.strike(None)?;
    world.until_serves(NEW).await?;
    let goes_on = async {
        kills::ordered(&world).await?;
        send("-CONT", agent)
    };
    let run = cancelled(step, goes_on).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_connects_has_begun_nothing() -> Result<()> {
    let world = World::start().await?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let relay = Relay::start(silent.local_addr()?, Duration::ZERO).await?;
    for command in ["swap", "repair"] {
        let step = Step::start(through_for(command, &relay, &world)?)?;
        let (_link, _) = timeout(PATIENCE, silent.accept()).await??;
        let run = cancelled(step, async { Ok(()) }).await?;
        let begun = format!("no {command} has begun");
        let run = run.refused(6, &["stopped by a signal before the server was asked", &begun]);
        assert!(run.summary.contains("Nothing was done") && run.outputs.is_empty(), "{run}");
    }
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

/// A swap under load whose traffic is at the new model, and which waits for customers who never come; and how all was before.
async fn awaits_customers() -> Result<(World, Facts, Load, Step)> {
    let (world, before, load) = without_customers(kills::world().await?).await?;
    let step = at_the_new_model(&world, world.action("swap", NEW, &[])?).await?;
    Ok((world, before, load, step))
}

/// A world under load in which a swap waits for customers who never come; and how all is before.
async fn without_customers(mut world: World) -> Result<(World, Facts, Load)> {
    let url = format!("http://127.0.0.1:{}/v1/models", free_port()?);
    world.settings.verify = format!("{{ url: {url:?}, within: 10m }}");
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let load = world.load().await?;
    Ok((world, before, load))
}

/// A swap there, once traffic is at the new model.
async fn at_the_new_model(world: &World, action: Action) -> Result<Step> {
    let mut step = Step::start(action)?;
    step.says("not as expected yet: ").await?;
    world.until_serves(NEW).await?;
    Ok(step)
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_customers_are_awaited_ends_on_the_old_model() -> Result<()> {
    let (world, before, load, step) = awaits_customers().await?;
    let run = cancelled(step, async { Ok(()) }).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// Why a job is cancelled as often as not: the new model takes requests and answers none.
#[tokio::test]
async fn a_job_whose_new_model_hangs_is_cancelled_in_time() -> Result<()> {
    let (world, before, load, step) = awaits_customers().await?;
    let [candidate] = listeners(world.server.slot_ports().1)?[..] else { bail!("no new model") };
    send("-STOP", candidate)?;
    let run = cancelled(step, async { Ok(()) }).await;
    // What it has taken it answers before it is stopped.
    send("-CONT", candidate)?;
    assert_true(&world, run?, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// As where a firewall between has forgotten the connection: nobody is told, and another one gets through.
#[tokio::test]
async fn a_job_that_is_cancelled_on_a_dead_link_ends_on_the_old_model() -> Result<()> {
    let (world, before, load) = without_customers(kills::world().await?).await?;
    let relay = relay(&world).await?;
    let step = at_the_new_model(&world, through(&relay, &world)?).await?;
    relay.swallow();
    let run = cancelled(step, async { Ok(()) }).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// What is followed takes the only session that a connection may have there.
#[tokio::test]
async fn a_job_that_is_cancelled_is_heard_by_an_sshd_that_lets_one_session_pass() -> Result<()> {
    let spec = ServerSpec {
        faults: true,
        ssh_lines: "MaxSessions 1\n".to_owned(),
        ..ServerSpec::default()
    };
    let (world, before, load) = without_customers(World::on(spec, &[]).await?).await?;
    let step = at_the_new_model(&world, world.action("swap", NEW, &[])?).await?;
    let run = cancelled(step, async { Ok(()) }).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// The way is open again once it has turned one more away: the order.
fn comes_back(relay: &Relay) -> impl Future<Output = Result<()>> {
    let earlier = relay.turned_away();
    async move {
        until("the order is turned away", || relay.turned_away() > earlier).await?;
        relay.open();
        Ok(())
    }
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_its_link_is_down_asks_again_when_that_is_back() -> Result<()>
{
    let (world, before, load) = without_customers(kills::world().await?).await?;
    let relay = relay(&world).await?;
    let mut step = at_the_new_model(&world, through(&relay, &world)?).await?;
    relay.shut();
    relay.cut();
    // The first pause that is long enough for nobody else to come by.
    step.says("the server goes on by itself; trying again in 5s").await?;
    let run = cancelled(step, comes_back(&relay)).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// The link at hand never tells that it is dead, and the sshd has too many connections when the first other one is made.
#[tokio::test]
async fn a_job_that_is_cancelled_on_a_dead_link_asks_again_where_it_is_turned_away() -> Result<()> {
    let (world, before, load) = without_customers(kills::world().await?).await?;
    let relay = relay(&world).await?;
    let step = at_the_new_model(&world, through(&relay, &world)?).await?;
    relay.swallow();
    relay.shut();
    let run = cancelled(step, comes_back(&relay)).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_job_whose_link_breaks_while_its_order_is_obeyed_asks_how_that_ended() -> Result<()> {
    let world = kills::world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    let load = world.load().await?;
    world.server.strike(Some(Aim::Freeze(CUT_OVER)))?;
    let relay = relay(&world).await?;
    let step = Step::start(through(&relay, &world)?)?;
    let (agent, _) = kills::frozen(&world).await?;
    world.server.strike(Some(Aim::FreezeAtEachEvent))?;
    // The first that is told after the order, and so by the answer to it.
    let hears = step.has_said("✓ cut_over a -> b");
    let breaks = async {
        kills::ordered(&world).await?;
        send("-CONT", agent)?;
        until("the answer is heard", hears).await?;
        relay.shut();
        relay.cut();
        comes_back(&relay).await?;
        world.server.strike(None)?;
        kills::frozen(&world).await?;
        send("-CONT", agent)
    };
    let run = cancelled(step, breaks).await?;
    assert_true(&world, run, &before).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_job_whose_order_was_heard_before_its_link_went_down_does_not_say_that_it_was_not()
-> Result<()> {
    let world = kills::world().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let before = Facts::of(&world)?;
    world.server.strike(Some(Aim::Freeze(CUT_OVER)))?;
    let relay = relay(&world).await?;
    let step = Step::start(through(&relay, &world)?)?;
    let (agent, _) = kills::frozen(&world).await?;
    world.server.strike(None)?;
    let goes_down = async {
        kills::ordered(&world).await?;
        relay.shut();
        relay.cut();
        Ok(())
    };
    let run = cancelled(step, goes_down).await?;
    run.refused(3, &["the server did not say in time whether the swap is aborted"]);
    send("-CONT", agent)?;
    until("nobody is at work", || kills::agent(&world).is_none()).await?;
    assert_eq!((world.serves().await?.as_str(), outcome(&world).await?.as_str()), (OLD, "aborted"));
    assert_eq!(Facts::of(&world)?, before);
    Ok(())
}

/// It comes to nothing by itself, and traffic is back already: whoever gives it up then and is heard by nobody knows no outcome.
#[tokio::test]
async fn a_job_whose_order_nobody_heard_does_not_call_a_failed_swap_aborted() -> Result<()> {
    let mut world = World::start().await?;
    let url = format!("http://127.0.0.1:{}/v1/models", free_port()?);
    world.settings.verify = format!("{{ url: {url:?}, within: 1s }}");
    // It is not stopped for half a minute, and its swap is without an outcome for so long.
    world.settings.flags = "--stub-hang-on-term".to_owned();
    let relay = relay(&world).await?;
    let mut step = Step::start(through(&relay, &world)?)?;
    step.says("traffic is where it was: ").await?;
    relay.shut();
    relay.cut();
    step.says("the server goes on by itself; trying again in 5s").await?;
    let run = cancelled(step, async { Ok(()) }).await?;
    run.refused(3, &["the server could not be asked to abort: the swap goes on on the server"]);
    until("nobody is at work", || kills::agent(&world).is_none()).await?;
    assert_eq!(
        (world.serves().await?.as_str(), outcome(&world).await?.as_str()),
        (OLD, "rolled-back")
    );
    Ok(())
}
