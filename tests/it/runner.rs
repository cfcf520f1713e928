//! The runner is lost, or its link, or the agent: the server goes on, and what is said afterwards is true.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::github::FakeGitHub;
use testbed::relay::Relay;

use crate::kills::frozen_at_first;
use crate::step::{Step, send, until};
use crate::support::relayed::{relay, through};
use crate::support::{Action, NAME, NEW, OLD, Run, World, alive};

/// The steps of a swap up to its outcome.
pub(crate) const STEPS: [&str; 5] =
    ["reserve_slot b", "start_replica b", "await_ready b", "cut_over a -> b", "promote b"];

/// When GitHub kills a container that was asked to end: 7.5 s after SIGINT comes SIGTERM, 2.5 s later the end (runner,
/// `ProcessInvoker.cs`).
pub(crate) const KILLED_AFTER: Duration = Duration::from_secs(10);

/// A world whose next model takes a while to load: time to stop it in.
pub(crate) async fn world() -> Result<World> {
    slow(World::start().await?)
}

/// The same, where agents can be struck.
async fn world_of_faults() -> Result<World> {
    slow(World::with_faults().await?)
}

fn slow(mut world: World) -> Result<World> {
    world.settings.flags = "--stub-load-time 3s".to_owned();
    world.settings.ready = "120s".to_owned();
    Ok(world)
}

/// Starts a step and freezes its candidate while it loads: the swap stays in `await_ready` until it is thawed.
pub(crate) async fn in_mid_swap(world: &World, action: Action) -> Result<(Step, Frozen)> {
    let mut step = Step::start(action)?;
    step.says("→ await_ready b").await?;
    let [candidate] = processes(world, NEW)[..] else { anyhow::bail!("not one candidate") };
    send("-STOP", candidate)?;
    Ok((step, Frozen(candidate)))
}

/// A process that is stopped by a signal.
pub(crate) struct Frozen(u32);

impl Frozen {
    pub(crate) fn thaw(&self) -> Result<()> {
        send("-CONT", self.0)
    }

    /// It may have been killed meanwhile.
    pub(crate) fn thaw_if_there(&self) {
        let _gone = self.thaw();
    }
}

/// The events that the server has written of its newest swap.
pub(crate) fn events(world: &World) -> Result<Vec<Value>> {
    let swaps = world.server.state_dir().join(NAME).join("swaps");
    let mut folders: Vec<_> = fs::read_dir(swaps)?.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let text = fs::read_to_string(folders.last().context("no swap")?.join("events.ndjson"))?;
    // The last line may just be being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let events: Vec<Value> = whole.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // Samples come when they come, and no log shows them.
    Ok(events.into_iter().filter(|event| event["kind"]["event"] != "sampled").collect())
}

/// Waits until the newest swap has an outcome on the server, and says which.
pub(crate) async fn outcome(world: &World) -> Result<String> {
    until("an outcome", || {
        let concluded = |event: &Value| {
            let kind = &event["kind"];
            (kind["event"] == "concluded").then(|| kind["outcome"].as_str().map(str::to_owned))?
        };
        Ok(events(world)?.iter().find_map(concluded))
    })
    .await
}

/// Process ids of what runs on the server with this in its command line.
pub(crate) fn processes(world: &World, text: &str) -> Vec<u32> {
    let all = world.server.leftovers().into_iter().filter(|line| line.contains(text));
    all.filter_map(|line| line.split_once(':')?.0.parse().ok()).collect()
}

/// The detached agent.
pub(crate) fn agent(world: &World) -> Result<Option<u32>> {
    Ok(processes(world, "model-swap agent run").first().copied())
}

/// Asserts that every step began once and was done once, in their order, and each progress line came once.
fn assert_told_once(run: &Run, events: &[Value]) {
    let mut rest = run.stdout.as_str();
    for step in STEPS {
        for line in [format!("→ {step}"), format!("✓ {step}")] {
            assert_eq!(run.stdout.matches(&line).count(), 1, "{line} in\n{run}");
            rest =
                rest.split_once(&line).unwrap_or_else(|| panic!("{line} is out of order\n{run}")).1;
        }
    }
    let until = events.iter().position(|event| event["kind"]["event"] == "concluded");
    let told = &events[..until.expect("it is concluded")];
    for text in told.iter().filter_map(|event| event["kind"]["text"].as_str()) {
        let (sent, said) = (
            told.iter().filter(|event| event["kind"]["text"] == text).count(),
            run.stdout.lines().filter(|line| line.ends_with(text)).count(),
        );
        assert_eq!(said, sent, "{text} in\n{run}");
    }
}

#[tokio::test]
async fn a_killed_runner_does_not_stop_the_swap() -> Result<()> {
    let world = world().await?;
    let load = world.load().await?;
    let github = FakeGitHub::start()?;
    let action = || Ok::<_, anyhow::Error>(world.action("swap", NEW, &[])?.on_github(&github));
    let (step, candidate) = in_mid_swap(&world, action()?).await?;
    step.kill()?;
    world.run("status", NEW, &[]).await?.answered(&["at work since", "swap s-"]);
    assert_eq!(world.serves().await?, OLD);

    candidate.thaw()?;
    assert_eq!(outcome(&world).await?, "promoted");
    let (_, b) = world.server.slot_ports();
    let run = world.run("status", NEW, &[]).await?.answered(&[
        &format!("nginx sends traffic to port {b}"),
        "serving is the result of s-",
        "a warm rollback is possible until",
        "no command is at work; the agent of s-",
        "promoted     Qwen/New",
    ]);
    let row = run.stdout.lines().find(|line| line.starts_with("  b ")).context("slot b")?;
    let cells: Vec<_> = row.split_whitespace().collect();
    assert!(cells[2..4] == ["serving", "yes"] && cells.contains(&NEW), "{run}");
    assert_eq!(world.serves().await?, NEW);

    // The job is run again: its step tells what became of its swap, and GitHub hears it as well.
    let again = Step::run(action()?.with(&[("GITHUB_RUN_ATTEMPT", "2")])).await?;
    let again = again.ended(0, "promoted");
    assert_told_once(&again, &events(&world)?);
    assert_eq!((again.output("slot"), swaps(&world)), ("b", 1), "{again}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    let states: Vec<_> = deployment.statuses.iter().map(|status| &*status.state).collect();
    assert_eq!(states, ["in_progress", "success"], "{github}");
    assert_eq!(again.output("deployment-id"), deployment.id.to_string());
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_cut_link_is_made_again_and_the_story_goes_on_where_it_was() -> Result<()> {
    let world = world().await?;
    let relay = relay(&world).await?;
    let load = world.load().await?;
    let (mut step, candidate) = in_mid_swap(&world, through(&relay, &world)?).await?;
    for times in 1..=2 {
        relay.cut();
        let told = "the server goes on by itself; trying again in 1s";
        until("it is told of", || Ok((step.said().matches(told).count() == times).then_some(())))
            .await?;
        // A line of the candidate's log that nobody heard of yet.
        let seen = events(&world)?.len();
        candidate.thaw()?;
        until("progress", || Ok((events(&world)?.len() > seen).then_some(()))).await?;
        send("-STOP", candidate.0)?;
        let news = events(&world)?.last().context("an event")?["kind"]["text"].clone();
        step.says(news.as_str().context("progress")?).await?;
    }
    candidate.thaw()?;
    let run = step.finish().await?.ended(0, "promoted");
    assert_told_once(&run, &events(&world)?);
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn an_ssh_that_is_killed_is_started_again_and_the_story_goes_on_where_it_was() -> Result<()> {
    let world = world().await?;
    let load = world.load().await?;
    let (mut step, candidate) = in_mid_swap(&world, world.action("swap", NEW, &[])?).await?;
    let killed = step.ssh().context("no ssh")?;
    send("-KILL", killed)?;
    step.says("the server goes on by itself; trying again in 1s").await?;
    let ssh = until("another ssh", || Ok(step.ssh().filter(|other| *other != killed))).await?;
    let seen = events(&world)?.len();
    candidate.thaw()?;
    until("progress", || Ok((events(&world)?.len() > seen).then_some(()))).await?;
    let run = step.finish().await?.ended(0, "promoted");
    assert!(!crate::support::alive(ssh), "{run}");
    assert_told_once(&run, &events(&world)?);
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_link_whose_bytes_vanish_is_noticed_and_the_story_goes_on_where_it_was() -> Result<()> {
    let world = world().await?;
    let relay = relay(&world).await?;
    let load = world.load().await?;
    let (mut step, candidate) = in_mid_swap(&world, through(&relay, &world)?).await?;
    relay.swallow();
    candidate.thaw()?;
    // Nobody tells either side; the server needs none.
    assert_eq!(outcome(&world).await?, "promoted");
    assert!(!step.said().contains("promoted: "), "{}", step.said());
    step.says("the server goes on by itself; trying again in 1s").await?;
    let run = step.finish().await?.ended(0, "promoted");
    assert_told_once(&run, &events(&world)?);
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

/// Starts a swap and cuts the link while its agent has answered nothing and begun nothing.
pub(crate) async fn cut_before_the_answer(world: &World, relay: &Relay) -> Result<Step> {
    cut_before_its_answer((world, relay), through(relay, world)?).await
}

/// The same of any step that goes through the relay.
pub(crate) async fn cut_before_its_answer(
    (world, relay): (&World, &Relay),
    action: Action,
) -> Result<Step> {
    let (mut step, agent) = frozen_at_first(world, action).await?;
    relay.cut();
    step.says("trying again in 1s").await?;
    send("-CONT", agent)?;
    Ok(step)
}

/// How many swaps the server knows of.
pub(crate) fn swaps(world: &World) -> usize {
    fs::read_dir(world.server.state_dir().join(NAME).join("swaps")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_link_that_is_cut_before_the_answer_finds_its_swap_under_way() -> Result<()> {
    let world = world_of_faults().await?;
    let relay = relay(&world).await?;
    let mut step = cut_before_the_answer(&world, &relay).await?;
    let candidate = until("the candidate", || Ok(processes(&world, NEW).first().copied())).await?;
    send("-STOP", candidate)?;
    step.says("→ await_ready b").await?;
    send("-CONT", candidate)?;
    let run = step.finish().await?.ended(0, "promoted");
    assert_eq!(swaps(&world), 1, "{run}");
    assert_told_once(&run, &events(&world)?);
    Ok(())
}

#[tokio::test]
async fn a_link_that_is_cut_before_the_answer_finds_its_swap_done() -> Result<()> {
    let world = World::with_faults().await?;
    let relay = relay(&world).await?;
    let step = cut_before_the_answer(&world, &relay).await?;
    let run = step.finish().await?.ended(0, "promoted");
    assert_eq!(swaps(&world), 1, "{run}");
    assert_told_once(&run, &events(&world)?);
    Ok(())
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_its_link_is_down_ends_before_it_is_killed() -> Result<()> {
    let world = world().await?;
    let relay = relay(&world).await?;
    let (mut step, candidate) = in_mid_swap(&world, through(&relay, &world)?).await?;
    drop(relay);
    // The first pause that is longer than GitHub's patience.
    step.says("Connection refused; the server goes on by itself; trying again in 15s").await?;
    step.signal("-TERM")?;
    let run = tokio::time::timeout(KILLED_AFTER, step.finish()).await??;
    let run = run.refused(3, &["the swap goes on on the server"]);
    assert!(run.summary.contains("outcome not known"), "{run}");
    candidate.thaw()?;
    assert_eq!(outcome(&world).await?, "promoted");
    crate::afterwards::is_told_after(&world, &run).await
}

/// A candidate that is frozen cannot be stopped in time: traffic counts, and the rest is the server's.
#[tokio::test]
async fn a_terminated_job_gives_its_swap_up_and_leaves_the_rest_to_the_server() -> Result<()> {
    let world = world().await?;
    let github = FakeGitHub::start()?;
    let load = world.load().await?;
    let action = world.action("swap", NEW, &[])?.on_github(&github);
    let (step, candidate) = in_mid_swap(&world, action).await?;
    step.signal("-TERM")?;
    let run = step.finish().await?.ended(6, "aborted");
    assert!(run.stdout.contains("traffic is where it was: Qwen/Old serves from slot a"), "{run}");
    assert!(run.summary.contains("aborted"), "{run}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "failure", "{github}");
    assert_eq!(world.serves().await?, OLD);
    candidate.thaw_if_there();
    assert_eq!(outcome(&world).await?, "aborted");
    until("its end", || Ok(processes(&world, NEW).is_empty().then_some(()))).await?;
    world.run("status", NEW, &[]).await?.answered(&["nobody is at work", "aborted      Qwen/New"]);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_job_that_is_cancelled_before_its_swap_began_begins_none() -> Result<()> {
    let world = World::with_faults().await?;
    let (step, agent) = frozen_at_first(&world, world.action("swap", NEW, &[])?).await?;
    step.signal("-INT")?;
    crate::kills::ordered(&world).await?;
    send("-CONT", agent)?;
    let run = step.finish().await?;
    assert_eq!(run.code, 6, "{run}");
    until("the agent's end", || Ok(self::agent(&world)?.is_none().then_some(()))).await?;
    assert_eq!(world.serves().await?, OLD);
    assert!(processes(&world, NEW).is_empty(), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_job_that_is_cancelled_after_promote_leaves_what_serves() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let mut step = Step::start(world.action("swap", NEW, &[("wait", "retired")])?)?;
    step.says("promoted: ").await?;
    step.signal("-INT")?;
    let run = step.finish().await?.ended(0, "promoted");
    assert!(run.stdout.contains("the outcome stays as it is"), "{run}");
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_step_that_is_run_again_attaches_to_its_own_swap_and_another_is_refused() -> Result<()> {
    let world = world().await?;
    let github = FakeGitHub::start()?;
    let action = || Ok::<_, anyhow::Error>(world.action("swap", NEW, &[])?.on_github(&github));
    let (step, candidate) = in_mid_swap(&world, action()?).await?;
    step.kill()?;

    Step::run(action()?.with(&[("GITHUB_RUN_ID", "78")])).await?.refused(
        3,
        &[
            "ann from acme/llm works on this service: swap s-",
            "look at https://github.example.com/acme/llm/actions/runs/77/attempts/1",
        ],
    );

    let mut again = Step::start(action()?.with(&[("GITHUB_RUN_ATTEMPT", "2")]))?;
    again.says("→ await_ready b").await?;
    candidate.thaw()?;
    let run = again.finish().await?.ended(0, "promoted");
    let told = events(&world)?;
    assert_eq!(told[0]["swap"], run.output("swap-id"), "{run}");
    assert_told_once(&run, &told);
    assert_eq!(swaps(&world), 1, "one swap, whoever asks\n{run}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "success", "{github}");
    assert_eq!(run.output("deployment-id"), deployment.id.to_string());

    // Once it has ended there is nothing to attach to, and nothing new to tell; for another run nothing has to change.
    let third = Step::run(action()?.with(&[("GITHUB_RUN_ATTEMPT", "3")])).await?;
    assert_eq!(third.ended(0, "promoted").outputs, run.outputs);
    // Nor is it done once more where every attempt is forced: the old model would be gone.
    let forced = world.action("swap", NEW, &[("force", "true")])?.on_github(&github);
    let forced = Step::run(forced.with(&[("GITHUB_RUN_ATTEMPT", "4")])).await?;
    assert_eq!((forced.ended(0, "promoted").outputs, swaps(&world)), (run.outputs.clone(), 1));
    Step::run(action()?.with(&[("GITHUB_RUN_ID", "78")])).await?.ended(0, "unchanged");
    let [still] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(still.statuses.len(), deployment.statuses.len(), "{github}");
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn a_step_that_waits_for_another_is_told_whose_it_is_and_has_its_turn() -> Result<()> {
    let world = world().await?;
    let github = FakeGitHub::start()?;
    let first = world.action("swap", NEW, &[])?.on_github(&github);
    let (first, candidate) = in_mid_swap(&world, first).await?;
    let other = |inputs| {
        let action = world.action("swap", NEW, inputs)?.on_github(&github);
        Step::start(action.with(&[("GITHUB_RUN_ID", "78")]))
    };
    let mut second = other(&[("lock-wait", "10m")])?;
    second.says("waiting up to 10m for another command, at work since ").await?;
    second.says("swap s-").await?;
    second.says("https://github.example.com/acme/llm/actions/runs/77/attempts/1").await?;

    // Who is cancelled while he waits has no turn.
    for (command, force) in [("swap", "true"), ("repair", "false")] {
        let inputs = [("lock-wait", "10m"), ("force", force)];
        let mut third = Step::start(world.action(command, NEW, &inputs)?)?;
        third.says("waiting up to 10m").await?;
        third.signal("-INT")?;
        third.finish().await?.refused(6, &[command, "was aborted before it began"]);
    }
    only_what_is_meant_is_aborted(&world).await?;

    candidate.thaw()?;
    let first = first.finish().await?.ended(0, "promoted");
    let run = second.finish().await?.ended(0, "unchanged");
    assert_eq!(run.stdout.matches("waiting up to").count(), 1, "{run}");
    assert_eq!(swaps(&world), 1, "{run}");
    let over = abort(&world, first.output("swap-id")).await?.ended(0, "unchanged");
    assert!(over.stdout.contains("has ended already: promoted"), "{over}");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

async fn abort(world: &World, id: &str) -> Result<Run> {
    Step::run(world.action("abort", NEW, &[("swap-id", id)])?).await
}

/// Gives up, by its id and from elsewhere, a swap that waits while one is under way and another one waits.
async fn only_what_is_meant_is_aborted(world: &World) -> Result<()> {
    let inputs = [("lock-wait", "10m"), ("force", "true")];
    let mut fourth = Step::start(world.action("swap", NEW, &inputs)?)?;
    fourth.says("waiting up to 10m").await?;
    let said = fourth.said();
    let (_, id) = said.split_once("`model-swap abort --swap-id ").context("no id")?;
    let (id, _) = id.split_once('`').context("no end")?;
    let waits = format!("`model-swap abort --swap-id {id}` gives it up");
    let status = world.run("status", NEW, &[]).await?.answered(&["at work since", &waits]);
    assert_eq!(status.stdout.matches("waits for its turn since").count(), 2, "{status}");
    abort(world, "s-another").await?.refused(
        2,
        &["no swap s-another of service chat is under way", "is under way, swap s-", id],
    );
    let aborted = format!("swap {id} was aborted before it began");
    let given_up = abort(world, id).await?.ended(0, "aborted");
    assert!(
        given_up.stdout.contains(&aborted) && given_up.summary.contains(&aborted),
        "{given_up}"
    );
    assert_eq!(given_up.output("swap-id"), id);
    fourth.finish().await?.refused(6, &[&aborted]);
    let status = world.run("status", NEW, &[]).await?.answered(&["at work since"]);
    assert_eq!(status.stdout.matches("waits for its turn since").count(), 1, "{status}");
    Ok(())
}

#[tokio::test]
async fn where_each_agent_is_killed_that_is_told_of_and_the_next_swap_clears_up() -> Result<()> {
    let mut world = world().await?;
    let load = world.load().await?;
    let github = FakeGitHub::start()?;
    let action = world.action("swap", NEW, &[])?.on_github(&github);
    let (step, candidate) = in_mid_swap(&world, action).await?;
    send("-KILL", agent(&world)?.context("no agent")?)?;
    for deaths in 1..=3 {
        // A frozen candidate keeps the next one at its undo.
        let taken_up = || step.said().matches("taken up again").count() == deaths;
        until("the next agent", || Ok(taken_up().then_some(()))).await?;
        let next = until("its process", || agent(&world)).await?;
        send("-KILL", next)?;
        until("its death", || Ok((!alive(next)).then_some(()))).await?;
    }
    let run = step.finish().await?.refused(3, &["the agent that works on swap s-", "is gone"]);
    let told = || github.deployments().pop().context("no deployment");
    assert_eq!(told()?.state(), "error", "nobody knows how it ends: {github}");
    assert!(!run.summary.contains("Nothing was done"), "{run}");
    assert!(run.summary.contains("outcome not known") && run.summary.contains("is gone"), "{run}");
    let dead = run.output("swap-id");
    assert_eq!(world.serves().await?, OLD);
    world.run("status", NEW, &[]).await?.answered(&["nobody is at work"]);
    assert_eq!(processes(&world, NEW), [candidate.0], "the interrupted swap's candidate");

    // The one that is to clear up dies of it, and has told nobody: the next still knows.
    let step = Step::start(world.action("swap", NEW, &[])?)?;
    // It cannot be done before that: a frozen candidate does not end.
    let second = until("the agent", || agent(&world)).await?;
    send("-KILL", second)?;
    candidate.thaw()?;
    step.finish().await?.refused(3, &["the agent ended without an answer"]);

    world.settings.flags = String::new();
    let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, NEW);
    let [now] = processes(&world, NEW)[..] else { panic!("not one replica\n{run}") };
    assert_ne!(now, candidate.0, "the candidate of the interrupted swap serves");
    let status = world.action("status", NEW, &[("reconcile", "true")])?.on_github(&github);
    Step::run(status).await?.answered(&[&format!("{dead}  failed")]);
    assert_eq!(told()?.state(), "failure", "{github}");
    load.stop().await.assert_clean();
    Ok(())
}
