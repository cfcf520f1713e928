//! A plan that is looked at before it is carried out: without a server, on a pull request, and held to afterwards.

use anyhow::Result;

use crate::step::Step;
use crate::support::{Action, NEW, OLD, Run, World, binary};

const NEWER: &str = "Qwen/Newer";

/// A configuration whose server does not exist: whoever asks it is found out.
const NOWHERE: &str = "service: chat
host: deploy@gpu.invalid
model: Qwen/New
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --port {port} --api-key sk-hidden
nginx: { config: /etc/nginx/llm.conf, upstream: llm }
";

fn planned_nowhere() -> Result<Action> {
    Ok(Action::new(&binary(), NOWHERE)?.with_inputs(&[("command", "plan")]))
}

/// Asserts that nothing was begun for the service.
fn assert_untouched(world: &World, run: &Run) {
    let swaps = std::fs::read_dir(world.server.state_dir().join("chat/swaps"));
    assert_eq!(swaps.into_iter().flatten().count(), 0, "something was begun\n{run}");
    assert!(world.old_runs().unwrap_or(false), "{run}");
}

#[tokio::test]
async fn without_a_key_a_plan_says_what_the_configuration_alone_says() -> Result<()> {
    let run = Step::run(planned_nowhere()?).await?.answered(&[
        "Plan for chat: blue-green (o-",
        "from the configuration alone: the input ssh-key is empty",
        "slot b, port 8002, GPUs 1",
        "start vllm serve {model} --port {port}",
        "only the server can tell:",
    ]);
    let digest = run.output("plan-digest");
    assert!(run.summary.contains(digest) && run.summary.contains("Qwen/New"), "{run}");
    assert!(!run.stdout.contains("sk-hidden") && !run.summary.contains("sk-hidden"), "{run}");
    let same = Step::run(planned_nowhere()?).await?;
    assert_eq!(same.output("plan-digest"), digest);
    let other = planned_nowhere()?.with_inputs(&[("model", NEWER)]);
    assert_ne!(Step::run(other).await?.output("plan-digest"), digest);
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_without_a_server() -> Result<()> {
    let wrong = NOWHERE.replace("8002", "8001").replace("upstream: llm", "upstream: ''");
    Step::run(planned_nowhere()?.with_config(&wrong)?).await?.refused(2, &["slots", "upstream"]);
    let systemd = NOWHERE.replace("replica:\n", "replica:\n  runtime: systemd\n");
    let run = Step::run(planned_nowhere()?.with_config(&systemd)?).await?;
    let run = run.refused(3, &["systemd is not supported"]);
    assert!(!run.outputs.contains_key("plan-digest"), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_swap_carries_out_the_plan_that_was_approved_and_no_other() -> Result<()> {
    let world = World::start().await?;
    let planned = Step::run(world.action("plan", NEW, &[])?).await?;
    let approved = planned.output("plan-digest").to_owned();
    assert!(approved.starts_with("p-"), "{planned}");

    let other = Step::run(world.action("plan", NEWER, &[])?).await?;
    let other = other.output("plan-digest").to_owned();
    let run = Step::run(world.action("swap", NEW, &[("plan-digest", &other)])?).await?;
    let run = run.refused(2, &[&*approved, &*other, OLD, "run `plan` again"]);
    assert_untouched(&world, &run);

    let swap = world.action("swap", NEW, &[("plan-digest", &approved)])?;
    Step::run(swap).await?.ended(0, "promoted");

    // What serves has changed since: the same plan of the same configuration is another one now.
    let stale = Step::run(world.action("swap", NEWER, &[("plan-digest", &other)])?).await?;
    stale.refused(2, &[&*other, NEW]);
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn a_swap_can_be_held_to_a_configuration_that_was_planned_without_a_server() -> Result<()> {
    let world = World::start().await?;
    let without_key = world.action("plan", NEW, &[("ssh-key", "")])?;
    let approved = Step::run(without_key).await?.output("plan-digest").to_owned();
    let held = [("plan-digest", &*approved)];
    let run = Step::run(world.action("swap", NEWER, &held)?).await?.refused(2, &[&*approved, "o-"]);
    assert_untouched(&world, &run);
    Step::run(world.action("swap", NEW, &held)?).await?.ended(0, "promoted");
    Ok(())
}

#[tokio::test]
async fn the_configuration_of_a_stranger_never_reaches_the_server() -> Result<()> {
    let world = World::start().await?;
    // Every request makes it, even `status`.
    let service = world.server.state_dir().join("chat");
    let strangers =
        [("pull_request_target", "acme/llm", "secrets"), ("pull_request", "eve/llm", "eve/llm")];
    for (event, head, why) in strangers {
        for command in ["swap", "rollback", "status", "logs"] {
            let action = world.action(command, NEW, &[])?.for_pull_request(event, head)?;
            let run = Step::run(action).await?;
            let run = run.refused(2, &[&format!("{command} is refused"), why, "after the merge"]);
            assert!(!service.exists(), "the server was asked\n{run}");
        }
        let action = world.action("plan", NEW, &[])?.for_pull_request(event, head)?;
        let run = Step::run(action).await?.answered(&["from the configuration alone", why]);
        assert!(!service.exists(), "the server was asked\n{run}");
    }
    let own = world.action("plan", NEW, &[])?.for_pull_request("pull_request", "acme/llm")?;
    let run = Step::run(own).await?.answered(&["now   slot a", "cut_over a -> b"]);
    assert!(service.exists(), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_pull_request_that_cannot_be_known_is_not_trusted() -> Result<()> {
    let world = World::start().await?;
    let action = world.action("swap", NEW, &[])?.with(&[("GITHUB_EVENT_NAME", "pull_request")]);
    Step::run(action).await?.refused(3, &["GITHUB_EVENT_PATH is not set"]);
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}
