//! The link is lost, or the runner, at each event of a swap: the server goes on, and the story is whole and heard once.
//!
//! Its agent is stopped when an event is in the log (`testbed::server::Aim::FreezeAtEachEvent`), and goes on when what was to be
//! lost is lost.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ExitStatus, Stdio};

use anyhow::{Context, Result};
use model_swap::model::event::Event;
use model_swap::render::Line;
use model_swap::render::log::Log;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use testbed::github::FakeGitHub;
use testbed::relay::Relay;
use testbed::server::Aim;

use crate::commands::Terminal;
use crate::kills::{frozen, unmet, world};
use crate::runner::{agent, events, swaps};
use crate::step::{Step, send, until};
use crate::support::relayed::{access, relay, through};
use crate::support::{NAME, NEW, OLD, World, alive, binary};

/// More events than any swap here has.
const MANY: usize = 100;

/// The event with which nothing more is to come.
const LAST: &str = "closed";

/// Stops the agent of a swap that is under way at each event up to the last; says how many there were.
async fn at_each_event(
    world: &World,
    mut lose: impl AsyncFnMut(&[Value]) -> Result<()>,
) -> Result<usize> {
    for count in 1..=MANY {
        let (agent, _) = frozen(world).await?;
        let told = events(world)?;
        assert_eq!(told.len(), count, "it was stopped elsewhere: {told:#?}");
        let last = &told[count - 1]["kind"]["event"];
        lose(&told).await.with_context(|| format!("at event {count}, {last}"))?;
        let is_over = last == LAST;
        if is_over {
            world.server.strike(None)?;
        }
        send("-CONT", agent)?;
        if is_over {
            return Ok(count);
        }
    }
    anyhow::bail!("its story has no end")
}

/// A program that starts a swap through a relay and follows it: each event is a line of JSON.
struct Follower {
    child: Child,
    terminal: Terminal,
}

impl Follower {
    fn start(world: &World, relay: &Relay) -> Result<Self> {
        let (config, hosts) = access(relay, world);
        let terminal = Terminal::with(&config, (world.server.private_key(), &hosts))?;
        let at = |name: &str| terminal.folder.path().join(name);
        fs::set_permissions(at("key"), fs::Permissions::from_mode(0o600))?;
        let mut command = terminal.command(&binary());
        command
            .args([
                "swap",
                "--json",
                "--wait",
                "retired",
                "--ssh-key",
                "key",
                "--known-hosts",
                "hosts",
            ])
            .stdin(Stdio::null())
            .stdout(File::create(at("heard"))?)
            .stderr(File::create(at("errors"))?);
        Ok(Self { child: command.spawn()?, terminal })
    }

    /// What it printed so far, in this one of its files.
    fn printed(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.terminal.folder.path().join(name))?)
    }

    /// The events that it has heard so far, as they are in the log.
    fn heard(&self) -> Result<Vec<Value>> {
        let text = self.printed("heard")?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut heard = Vec::new();
        for line in whole.lines() {
            let mut frame: Value = serde_json::from_str(line)?;
            if frame["frame"] == "event" {
                frame.as_object_mut().context("an object")?.remove("frame");
                heard.push(frame);
            }
        }
        Ok(heard)
    }

    /// Cuts its link once it has heard all that was told, and waits until it has noticed.
    async fn cut(&self, relay: &Relay, told: &[Value]) -> Result<()> {
        // The first is told before the agent answers.
        if let [_, .., newest] = told {
            until("it is heard", || Ok(self.heard()?.contains(newest).then_some(()))).await?;
        }
        let noticed =
            || Ok::<_, anyhow::Error>(self.printed("errors")?.matches("trying again in ").count());
        let before = noticed()?;
        relay.cut();
        until("it is noticed", || Ok((noticed()? > before).then_some(()))).await
    }

    async fn finish(mut self) -> Result<(ExitStatus, Vec<Value>)> {
        let ended = until("its end", || Ok(self.child.try_wait()?)).await?;
        Ok((ended, self.heard()?))
    }
}

/// Swaps, and cuts the link at each event; says with which code its follower ended.
async fn cut_at_each_event(world: &World) -> Result<Option<i32>> {
    let relay = relay(world).await?;
    world.server.strike(Some(Aim::FreezeAtEachEvent))?;
    let follower = Follower::start(world, &relay)?;
    let cuts = at_each_event(world, async |told| {
        let newest = told.last().context("no event")?;
        // Whoever has heard the last one wants nothing more.
        if newest["kind"]["event"] == LAST { Ok(()) } else { follower.cut(&relay, told).await }
    })
    .await?;
    let (ended, heard) = follower.finish().await?;
    let log: Vec<Value> =
        world.told().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(heard, log, "of {cuts} events");
    Ok(ended.code())
}

#[tokio::test]
async fn a_link_that_is_cut_at_each_event_is_made_again_and_each_event_is_heard_once() -> Result<()>
{
    let world = world().await?;
    let load = world.load().await?;
    assert_eq!(cut_at_each_event(&world).await?, Some(0));
    assert_eq!(world.serves().await?, NEW);
    assert!(!world.old_runs()?, "the old model is drained and gone");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_link_that_is_cut_at_each_event_of_an_unwinding_is_made_again_and_each_is_heard_once()
-> Result<()> {
    let world = unmet().await?;
    let load = world.load().await?;
    assert_eq!(cut_at_each_event(&world).await?, Some(5));
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// The lines of what was told, as a step's log has them. The plan apart, which an answer may bring as well.
fn lines(told: &[Value]) -> Result<Vec<String>> {
    let mut log = Log::default();
    let mut lines = Vec::new();
    for (count, event) in told.iter().enumerate() {
        let event: Event = serde_json::from_value(event.clone())?;
        let of_it = log.lines(&event).into_iter().filter(|_| count > 0);
        lines.extend(of_it.filter_map(|line| match line {
            Line::Text(text) => Some(text),
            _ => None,
        }));
    }
    Ok(lines)
}

/// Swaps, and kills the runner at each event, once it has heard of it; each is followed by the next, up to the end.
async fn killed_at_each_event(world: &World, code: i32, outcome: &str) -> Result<()> {
    let github = FakeGitHub::start()?;
    world.server.strike(Some(Aim::FreezeAtEachEvent))?;
    let mut attempt = 0;
    let mut start = || {
        attempt += 1;
        let action = world.action("swap", NEW, &[("wait", "retired")])?.on_github(&github);
        Step::start(action.with(&[("GITHUB_RUN_ATTEMPT", &attempt.to_string())]))
    };
    let mut step = Some(start()?);
    at_each_event(world, async |told| {
        let mut now = step.take().context("no step")?;
        let news = lines(told)?.pop();
        // Who comes after the outcome waits until the old model is gone, and is told then.
        let mut before = told.iter().rev().skip(1);
        let is_over = before.any(|event| event["kind"]["event"] == "concluded");
        if let Some(news) = &news {
            now.says(news).await?;
        }
        if !is_over {
            now.kill()?;
            now = start()?;
            // Once it follows it says all that was told before. The first event is told before the agent answers.
            if let Some(news) = &news {
                now.says(news).await?;
            }
        }
        step = Some(now);
        Ok(())
    })
    .await?;
    let run = step.context("no step")?.finish().await?.ended(code, outcome);
    let all = lines(&events(world)?)?;
    let said: Vec<&str> =
        run.stdout.lines().filter(|said| all.iter().any(|line| line == said)).collect();
    assert_eq!(said, all, "{run}");
    assert_eq!(crate::runner::swaps(world), 1, "one swap, whoever follows it");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(run.output("deployment-id"), deployment.id.to_string());
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn a_runner_that_is_killed_at_each_event_is_followed_by_the_next_to_the_end() -> Result<()> {
    let world = world().await?;
    let load = world.load().await?;
    killed_at_each_event(&world, 0, "promoted").await?;
    assert_eq!(world.serves().await?, NEW);
    assert!(!world.old_runs()?, "the old model is drained and gone");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_runner_that_is_killed_at_each_event_of_an_unwinding_is_followed_by_the_next()
-> Result<()> {
    let world = unmet().await?;
    let load = world.load().await?;
    killed_at_each_event(&world, 5, "rolled-back").await?;
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// Another command has the lease, and waits for nobody.
#[tokio::test]
async fn a_link_that_is_cut_while_its_swap_waits_has_its_turn_all_the_same() -> Result<()> {
    let world = World::start().await?;
    let relay = relay(&world).await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    let lease = File::create(world.server.state_dir().join(NAME).join("lease.json"))?;
    flock(&lease, FlockOperation::LockExclusive)?;
    let mut step = Step::start(through(&relay, &world)?.with_inputs(&[("lock-wait", "10m")]))?;
    let first = until("the agent", || agent(&world)).await?;
    let waiting = world.server.state_dir().join(NAME).join("waiting");
    let waits = || fs::read_dir(&waiting).map_or(0, Iterator::count);
    until("its wait", || Ok((waits() == 1).then_some(()))).await?;
    relay.cut();
    step.says("trying again in 1s").await?;
    until("the first one's end", || Ok((!alive(first)).then_some(()))).await?;
    until("the next one's wait", || Ok((waits() == 1).then_some(()))).await?;
    flock(&lease, FlockOperation::Unlock)?;
    let run = step.finish().await?.ended(0, "promoted");
    assert_eq!(swaps(&world), 1, "{run}");
    Ok(())
}
