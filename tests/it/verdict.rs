//! What is found out of a swap after its end: that it has failed, or what its deployment should say.

use anyhow::{Context, Result};
use serde_json::json;
use testbed::github::{Deployment, FakeGitHub, Fault, Operation, Times};

use crate::step::{Step, until};
use crate::support::{Action, NEW, OLD, Run, World, binary};

const NEWER: &str = "Qwen/Newer";

/// Says that a swap has failed, from a step that has the server's key or from one that has not.
fn fail(world: &World, github: &FakeGitHub, swap: &str, key: Key) -> Result<Action> {
    let action = match key {
        Key::Given => world.action("fail", NEW, &[])?,
        Key::Missing => {
            Action::new(&binary(), &world.config(NEW))?.with_inputs(&[("command", "fail")])
        }
    };
    Ok(action.on_github(github).with_inputs(&[("swap-id", swap)]))
}

#[derive(Clone, Copy)]
enum Key {
    Given,
    Missing,
}

async fn swap(world: &World, github: &FakeGitHub, model: &str) -> Result<Run> {
    Step::run(world.action("swap", model, &[])?.on_github(github)).await
}

fn deployment(github: &FakeGitHub, swap: &str) -> Result<Deployment> {
    let mut all = github.deployments().into_iter();
    all.find(|deployment| deployment.payload["swap_id"] == swap).context(format!("{github}"))
}

fn states(github: &FakeGitHub, swap: &str) -> Result<Vec<String>> {
    let statuses = deployment(github, swap)?.statuses;
    Ok(statuses.into_iter().map(|status| status.state).collect())
}

/// What the last status of a swap's deployment says.
fn last_said(github: &FakeGitHub, swap: &str) -> Result<String> {
    let last = deployment(github, swap)?.statuses.pop();
    Ok(last.context("a status")?.description)
}

/// How often a workflow was started.
fn dispatches(github: &FakeGitHub) -> usize {
    github.requests().iter().filter(|request| request.path.ends_with("/dispatches")).count()
}

/// How many requests have changed something at GitHub.
fn changes(github: &FakeGitHub) -> usize {
    github.requests().iter().filter(|request| request.method != "GET").count()
}

#[tokio::test]
async fn what_fails_after_its_promotion_is_marked_once_and_rolled_back_where_that_is_asked_for()
-> Result<()> {
    let mut world = World::start().await?;
    let github = FakeGitHub::start()?;
    let promoted = swap(&world, &github, NEW).await?.ended(0, "promoted");
    let first = promoted.output("swap-id");

    let marked = Step::run(fail(&world, &github, first, Key::Missing)?).await?;
    let marked = marked.ended(0, "unchanged").answered(&["is a failure now"]);
    assert_eq!(states(&github, first)?, ["in_progress", "success", "failure"]);
    let said = last_said(&github, first)?;
    assert_eq!(said, format!("{first} has failed since it was promoted"));
    assert_eq!(marked.output("deployment-id"), promoted.output("deployment-id"));
    assert_eq!(world.serves().await?, NEW, "marking moves nothing");

    // The same event again, and with it whatever else it would have started.
    let before = changes(&github);
    let again = fail(&world, &github, first, Key::Missing)?;
    let again = again.with_inputs(&[("rollback-workflow", "on-failure.yml")]);
    Step::run(again).await?.ended(0, "unchanged").answered(&["is failure already"]);
    assert_eq!(changes(&github), before, "{:?}", github.requests());

    let back = || -> Result<Action> {
        Ok(fail(&world, &github, first, Key::Given)?.with_inputs(&[("rollback", "true")]))
    };
    // Cancelled while GitHub is asked, what would come after that does not begin.
    let asked = github.requests().len();
    github.fail(Fault::Hang, &[Operation::ListDeployments], Times::Always);
    let cancelled = Step::start(back()?)?;
    until("GitHub is asked", || Ok((github.requests().len() > asked).then_some(()))).await?;
    cancelled.signal("-INT")?;
    cancelled.finish().await?.refused(3, &["stopped by a signal before anything was rolled back"]);
    github.heal();
    assert_eq!(world.serves().await?, NEW);

    let back = Step::run(back()?).await?.ended(0, "rolled-back");
    assert_eq!(world.serves().await?, OLD);
    assert_eq!(states(&github, back.output("swap-id"))?, ["in_progress", "success"]);
    assert_eq!(states(&github, first)?, ["in_progress", "success", "failure"]);

    // The job is run again: its step tells of the rollback that it has done.
    let before = changes(&github);
    let again = fail(&world, &github, first, Key::Given)?.with_inputs(&[("rollback", "true")]);
    let again = Step::run(again.with(&[("GITHUB_RUN_ATTEMPT", "2")])).await?;
    assert_eq!(again.ended(0, "rolled-back").outputs, back.outputs);
    assert_eq!(changes(&github), before, "{:?}", github.requests());

    // Neither the swap that serves no more nor the rollback itself can fail, whoever says so and however often.
    let before = changes(&github);
    for gone in [first, back.output("swap-id")] {
        let late = fail(&world, &github, gone, Key::Given)?.with_inputs(&[("rollback", "true")]);
        let late = Step::run(late).await?.ended(0, "unchanged");
        late.answered(&["is not what serves now"]);
    }
    world.settings.flags = "--stub-load-time 30s --stub-die-after 50ms".to_owned();
    let failed = swap(&world, &github, NEWER).await?.ended(4, "failed");
    let made = changes(&github) - before;
    let never = fail(&world, &github, failed.output("swap-id"), Key::Given)?;
    let never = never.with_inputs(&[("rollback", "true")]);
    Step::run(never).await?.ended(0, "unchanged").answered(&["is not what serves now"]);
    let keyless = fail(&world, &github, failed.output("swap-id"), Key::Missing)?;
    Step::run(keyless).await?.ended(0, "unchanged").answered(&["is failure already"]);
    assert_eq!(changes(&github) - before, made, "{:?}", github.requests());
    assert_eq!(world.serves().await?, OLD);
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn a_workflow_is_started_for_a_swap_that_has_failed_and_a_step_that_could_not_is_run_again()
-> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    let promoted = swap(&world, &github, NEW).await?.ended(0, "promoted");
    let swap = promoted.output("swap-id");
    let failed = || -> Result<Action> {
        let inputs = [("rollback-workflow", "on-failure.yml")];
        Ok(fail(&world, &github, swap, Key::Given)?.with_inputs(&inputs))
    };
    github.fail(Fault::Status(403), &[Operation::DispatchWorkflow], Times::Next(1));
    let refused = Step::run(failed()?).await?;
    refused.refused(3, &["start the workflow on-failure.yml", "permissions: actions: write"]);
    assert_eq!(states(&github, swap)?, ["in_progress", "success"], "half of it is done");

    let marked = Step::run(failed()?).await?.ended(0, "unchanged");
    marked.answered(&["is a failure now; workflow on-failure.yml is started on main"]);
    let dispatched = github.requests().into_iter().rev().find(|r| r.path.ends_with("/dispatches"));
    let dispatched = dispatched.context("no dispatch")?;
    let inputs = json!({ "swap-id": swap, "environment": "chat" });
    assert_eq!(dispatched.body, Some(json!({ "ref": "main", "inputs": inputs })));
    assert!(dispatched.path.ends_with("/actions/workflows/on-failure.yml/dispatches"));
    assert_eq!(states(&github, swap)?, ["in_progress", "success", "failure"]);

    let elsewhere = failed()?.with_inputs(&[("environment", "production")]);
    let said = format!("there is no deployment of swap {swap} to production");
    Step::run(elsewhere).await?.refused(2, &[&said, "input environment"]);
    let keyless = fail(&world, &github, swap, Key::Missing)?.with_inputs(&[("rollback", "true")]);
    Step::run(keyless).await?.refused(2, &["rollback is true, and the input ssh-key is empty"]);
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

/// Where GitHub did not answer when the swap ended, its deployment is left in another state than `success`, or is not there.
#[tokio::test]
async fn what_has_failed_is_rolled_back_whatever_github_has_heard_of_it() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    github.fail(Fault::Status(500), &[Operation::CreateStatus], Times::Always);
    let promoted = swap(&world, &github, NEW).await?.ended(0, "promoted");
    github.heal();
    let (swap, id) = (promoted.output("swap-id"), promoted.output("deployment-id").parse()?);
    assert_eq!(deployment(&github, swap)?.state(), "pending");
    let on_failure = |key| -> Result<Action> {
        let inputs = [("rollback-workflow", "on-failure.yml")];
        Ok(fail(&world, &github, swap, key)?.with_inputs(&inputs))
    };
    for (before, key, marked, started) in [
        ("pending", Key::Missing, true, 1),
        ("in_progress", Key::Missing, true, 1),
        ("in_progress", Key::Given, true, 1),
        // It may be stuck. The workflow that is started asks the server.
        ("error", Key::Missing, false, 1),
        ("error", Key::Given, true, 1),
        // Somebody else's swap in this environment can have closed it, but only the server knows that.
        ("inactive", Key::Missing, false, 0),
        ("inactive", Key::Given, true, 1),
        ("failure", Key::Given, false, 0),
    ] {
        if deployment(&github, swap)?.state() != before {
            github.set_state(id, before);
        }
        let (posted, dispatched) = (states(&github, swap)?.len(), dispatches(&github));
        let run = Step::run(on_failure(key)?).await?.ended(0, "unchanged");
        let expected = if marked { "failure" } else { before };
        assert_eq!(deployment(&github, swap)?.state(), expected, "{before}\n{run}");
        assert_eq!(states(&github, swap)?.len() - posted, usize::from(marked), "{before}\n{run}");
        assert_eq!(dispatches(&github) - dispatched, started, "{before}\n{run}");
        // A swap that failed by itself can have been left in any of these.
        let said = match key {
            Key::Given => "has failed since it was promoted",
            Key::Missing => "is said to have failed; the server was not asked",
        };
        assert!(!marked || last_said(&github, swap)?.ends_with(said), "{before}\n{run}");
    }
    github.set_state(id, "error");
    let alone = Step::run(fail(&world, &github, swap, Key::Missing)?).await?;
    alone.refused(3, &["is error, and stays so", "the server knows whether it serves"]);

    // GitHub has never heard of it.
    let other = on_failure(Key::Given)?.with_inputs(&[("environment", "elsewhere")]);
    let dispatched = dispatches(&github);
    let said =
        format!("no deployment of swap {swap} to elsewhere; workflow on-failure.yml is started");
    Step::run(other).await?.refused(2, &[&said, "`rollback: true`"]);
    assert_eq!(dispatches(&github) - dispatched, 1);
    assert_eq!(world.serves().await?, NEW, "nothing of this moves anything");
    Ok(())
}

#[tokio::test]
async fn what_github_calls_active_is_made_what_serves() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    // Another service's, and the same service's on another server.
    github.deploy("chat", &json!({ "swap_id": "s-20260101-000000-elsewhere" }));
    let first = swap(&world, &github, NEW).await?.ended(0, "promoted");
    github.fail(Fault::Status(500), &[Operation::CreateStatus], Times::Always);
    let second = swap(&world, &github, NEWER).await?.ended(0, "promoted");
    github.heal();
    let [first, second] = [&first, &second].map(|run| run.output("swap-id").to_owned());
    // More than a page of the other's.
    for _ in 0..100 {
        github.deploy("chat", &json!({ "swap_id": "s-20260101-000000-elsewhere" }));
    }
    assert_eq!(states(&github, &first)?, ["in_progress", "success"], "nobody could be told");
    assert!(states(&github, &second)?.is_empty());

    let reconcile = || -> Result<Action> {
        let inputs = [("reconcile", "true")];
        Ok(world.action("status", NEWER, &inputs)?.on_github(&github))
    };
    // A question alone changes nothing.
    let before = changes(&github);
    Step::run(world.action("status", NEWER, &[])?.on_github(&github)).await?.answered(&[NEWER]);
    assert_eq!(changes(&github), before);
    let run = Step::run(reconcile()?).await?;
    run.answered(&[&format!("of {first} was success"), &format!("of {second} was pending")]);
    assert_eq!(states(&github, &first)?, ["in_progress", "success", "inactive"]);
    assert_eq!(states(&github, &second)?, ["success"]);
    let said = deployment(&github, &second)?.statuses.pop().context("a status")?.description;
    assert_eq!(said, format!("{NEWER} serves from slot a"));
    assert_eq!(states(&github, "s-20260101-000000-elsewhere")?, ["success"]);

    let before = changes(&github);
    Step::run(reconcile()?).await?.answered(&["agree with what serves"]);
    assert_eq!(changes(&github), before, "{:?}", github.requests());

    // From a terminal: it has no deployment, and what the first swap brought serves again.
    let back = Step::run(world.action("rollback", NEWER, &[])?).await?.ended(0, "rolled-back");
    Step::run(reconcile()?).await?.answered(&[&format!("of {second} was success")]);
    assert_eq!(states(&github, &second)?, ["success", "failure"]);
    let said = deployment(&github, &second)?.statuses.pop().context("a status")?.description;
    assert!(said.starts_with(&format!("rolled back by {}", back.output("swap-id"))), "{said}");
    assert_eq!(states(&github, &first)?, ["in_progress", "success", "inactive", "success"]);
    Step::run(reconcile()?).await?.answered(&["agree with what serves"]);
    github.fail(Fault::Status(404), &[Operation::ListDeployments], Times::Next(1));
    let refused = Step::run(reconcile()?).await?;
    refused.refused(3, &["GitHub answered 404", "permissions: deployments: write"]);
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn the_deployment_that_github_has_made_for_the_job_is_gone_on_with() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    // Of another run, of this one's job, and of one to another environment.
    github.begin_job("chat", 76);
    github.begin_job("chat", 77);
    github.begin_job("production", 77);
    let others = 5;
    for run in 0..others {
        github.begin_job("chat", 100 + run);
    }
    let promoted = swap(&world, &github, NEW).await?.ended(0, "promoted");
    assert_eq!(promoted.output("deployment-id"), "3", "{github}");
    let all = || {
        github.deployments().into_iter().map(|deployment| {
            deployment.statuses.into_iter().map(|status| status.state).collect::<Vec<_>>()
        })
    };
    let ours = ["in_progress", "in_progress", "success"];
    assert_eq!(all().nth(1).context("ours")?, ours, "{github}");
    let mut rest = all().enumerate().filter(|(index, _)| *index != 1);
    assert!(rest.all(|(_, states)| states == ["in_progress"]), "{github}");
    assert_eq!(all().count() as u64, 3 + others, "{github}");
    // Nothing but its link tells which swap it is of.
    let failed = fail(&world, &github, promoted.output("swap-id"), Key::Missing)?;
    Step::run(failed).await?.ended(0, "unchanged").answered(&["is a failure now"]);
    let last = || all().nth(1).and_then(|mut states| states.pop());
    assert_eq!(last().as_deref(), Some("failure"));
    // The rollback of the same job goes on with the same one, which is then not superseded by itself.
    let back = fail(&world, &github, promoted.output("swap-id"), Key::Given)?;
    let back = back.with_inputs(&[("rollback", "true")]);
    let back = Step::run(back).await?.ended(0, "rolled-back");
    assert_eq!(last().as_deref(), Some("success"), "{github}");
    // A swap from a terminal is not told: its end is found by its link as well.
    Step::run(world.action("swap", NEWER, &[])?).await?.ended(0, "promoted");
    let reconcile = world.action("status", NEWER, &[("reconcile", "true")])?.on_github(&github);
    Step::run(reconcile).await?.answered(&[&format!("of {} was success", back.output("swap-id"))]);
    assert_eq!(last().as_deref(), Some("inactive"), "{github}");
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

/// A job may have failed after its swap had succeeded, and GitHub says so of a deployment that it has made.
#[tokio::test]
async fn githubs_own_word_on_a_job_is_no_word_on_what_serves() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    github.begin_job("chat", 77);
    let promoted = swap(&world, &github, NEW).await?.ended(0, "promoted");
    let swap = promoted.output("swap-id");
    let last = || github.deployments()[0].statuses.last().map(|last| last.state.clone());
    github.set_state(1, "failure");
    let reconcile = async || -> Result<Run> {
        let inputs = [("reconcile", "true")];
        Step::run(world.action("status", NEW, &inputs)?.on_github(&github)).await
    };
    reconcile().await?.answered(&[&format!("deployment 1 of {swap} was failure: {NEW} serves")]);
    assert_eq!(last().as_deref(), Some("success"), "{github}");
    reconcile().await?.answered(&["agree with what serves"]);

    Step::run(fail(&world, &github, swap, Key::Missing)?).await?.answered(&["is a failure now"]);
    let before = changes(&github);
    let run = reconcile().await?;
    let run = run.answered(&[&format!("deployment 1 stays a failure: {swap} is said to have")]);
    assert!(!run.stdout.contains("agree with what serves"), "{run}");
    assert_eq!(changes(&github), before, "{:?}", github.requests());
    Ok(())
}

/// Whoever says last that a swap is rolled back says it of that swap, and not of the job that it went on with.
#[tokio::test]
async fn what_was_rolled_back_in_a_deployment_of_githubs_does_not_fail_again() -> Result<()> {
    for from_terminal in [false, true] {
        let world = World::start().await?;
        let github = FakeGitHub::start()?;
        github.begin_job("chat", 77);
        let promoted = swap(&world, &github, NEW).await?.ended(0, "promoted");
        let back = world.action("rollback", NEW, &[])?;
        if from_terminal {
            Step::run(back).await?.ended(0, "rolled-back");
            let reconcile = world.action("status", NEW, &[("reconcile", "true")])?;
            Step::run(reconcile.on_github(&github)).await?.answered(&["rolled back by s-"]);
        } else {
            let back = back.on_github(&github).with(&[("GITHUB_RUN_ID", "78")]);
            Step::run(back).await?.ended(0, "rolled-back");
        }
        assert_eq!(github.deployments()[0].state(), "failure", "{github}");
        let before = changes(&github);
        let late = fail(&world, &github, promoted.output("swap-id"), Key::Missing)?;
        let late = late.with_inputs(&[("rollback-workflow", "on-failure.yml")]);
        Step::run(late).await?.ended(0, "unchanged").answered(&["is failure already"]);
        assert_eq!(changes(&github), before, "{:?}", github.requests());
        assert!(github.violations().is_empty(), "{:?}", github.violations());
    }
    Ok(())
}
