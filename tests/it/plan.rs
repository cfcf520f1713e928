//! A plan that is looked at before it is carried out: without a server, on a pull request, and held to afterwards.

use anyhow::Result;
use testbed::github::{FakeGitHub, Fault, Operation, Times, WORKFLOW};

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
    let run = Step::run(planned_nowhere()?.with_config(&wrong)?).await?;
    let run = run.refused(2, &["slots", "upstream"]);
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
    let different = format!("the model is another one: now {NEW}");
    let told =
        [&*approved, &*other, &*different, "everything else is as approved", "run `plan` again"];
    let run = run.refused(2, &told);
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
    let run = Step::run(world.action("swap", NEWER, &held)?).await?;
    let run = run.refused(2, &[&*approved, "o-", "the model is another one", "everything else is"]);
    assert_untouched(&world, &run);
    // As an earlier release made it.
    let (earlier, _) = approved.rsplit_once('-').unwrap_or_default();
    let held = [("plan-digest", earlier)];
    let run = Step::run(world.action("swap", NEWER, &held)?).await?;
    let run = run.refused(2, &[earlier, "the configuration is another one than was planned"]);
    assert_untouched(&world, &run);
    Step::run(world.action("swap", NEW, &held)?).await?.ended(0, "promoted");
    Ok(())
}

#[tokio::test]
async fn the_configuration_of_a_stranger_never_reaches_the_server() -> Result<()> {
    let world = World::start().await?;
    // Every request makes it, even `status`.
    let service = world.server.state_dir().join("chat");
    let strangers = [
        ("pull_request_target", "acme/llm", "secrets"),
        ("pull_request", "eve/llm", "eve/llm"),
        ("workflow_run", "eve/llm", "for a fork, eve/llm"),
    ];
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

/// A plan for pull request 7, without a server.
fn planned_on(github: &FakeGitHub, config: &str) -> Result<Action> {
    planned_nowhere()?
        .with_config(config)?
        .on_github(github)
        .for_pull_request("pull_request", "acme/llm")
}

#[tokio::test]
async fn a_pull_request_has_one_comment_that_says_what_the_plan_is_now() -> Result<()> {
    let github = FakeGitHub::start()?;
    // More comments than a page holds, some of which would pass for ours if nobody looked who wrote them.
    for index in 0..120 {
        github.comment(7, "ann", &format!("comment {index}"));
    }
    let lie = "<!-- model-swap plan: service=chat environment=chat digest=o-000000000000 -->\nall is well";
    github.comment(7, "eve", lie);
    let first = Step::run(planned_on(&github, NOWHERE)?).await?.answered(&["(o-"]);
    assert!(!first.stdout.contains("::warning"), "{first}");
    let ours =
        || github.comments().into_iter().filter(|c| c.author == WORKFLOW).collect::<Vec<_>>();
    let [written] = &*ours() else { panic!("{:?}\n{first}", ours()) };
    let (mark, text) = written.body.split_once('\n').unwrap_or_default();
    assert!(mark.contains(first.output("plan-digest")) && mark.contains("service=chat"), "{mark}");
    assert_eq!(text, first.summary, "comment and job summary say the same");

    let newer = NOWHERE.replace("Qwen/New", NEWER);
    let second = Step::run(planned_on(&github, &newer)?).await?.answered(&[NEWER]);
    let [changed] = &*ours() else { panic!("{:?}\n{second}", ours()) };
    assert!(changed.id == written.id && changed.body.contains(NEWER), "{changed:?}\n{second}");
    assert_eq!(github.comments()[120].body, lie, "somebody else's comment was changed");

    // Another environment has a comment of its own, and where no plan can be made any more, that replaces the last one.
    Step::run(planned_on(&github, NOWHERE)?.with_inputs(&[("environment", "eu --> @all")])).await?;
    assert_eq!(ours().len(), 2);
    let access = [("ssh-key", "no key"), ("known-hosts", "x")];
    let refused = planned_on(&github, &newer)?.with_inputs(&access);
    Step::run(refused).await?.refused(2, &["the ssh key is no private key"]);
    let first_of_ours = ours().remove(0).body;
    assert!(first_of_ours.contains("Nothing was done"), "{first_of_ours}");
    let broken = planned_on(&github, &format!("{newer}modle: x\n"))?;
    Step::run(broken).await?.refused(2, &["modle"]);
    let first_of_ours = ours().remove(0).body;
    assert!(first_of_ours.contains("modle"), "a broken file leaves a plan\n{first_of_ours}");
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn what_a_configuration_says_is_nothing_but_text_in_the_comment() -> Result<()> {
    let github = FakeGitHub::start()?;
    let hostile = "'--> @acme/all `x` <img src=y> | a\u{301}'";
    let plain = "vllm serve {model} --port {port} --api-key sk-hidden";
    let config =
        NOWHERE.replace(plain, "[vllm, '{model}', '{port}', '--x=@acme/all<b>`|$(reboot)']");
    let run = Step::run(planned_on(&github, &config)?.with_inputs(&[("model", hostile)])).await?;
    let [written] = &*github.comments() else { panic!("{run}") };
    let (_, text) = written.body.split_once('\n').unwrap_or_default();
    assert!(run.code == 0 && text.contains("acme/all"), "{run}");
    assert!(
        !text.contains(['@', '`']) && !text.contains("<img") && !text.contains("<b>"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_comment_that_cannot_be_written_is_a_warning() -> Result<()> {
    let github = FakeGitHub::start()?;
    let comments = [Operation::CreateComment, Operation::UpdateComment];
    github.fail(Fault::Status(403), &comments, Times::Always);
    let run = Step::run(planned_on(&github, NOWHERE)?).await?;
    let run = run.answered(&["::warning", "GitHub answered 403", "pull-requests: write"]);
    assert!(run.summary.contains(run.output("plan-digest")), "{run}");
    github.heal();

    let tokenless = planned_on(&github, NOWHERE)?.with_inputs(&[("github-token", "")]);
    Step::run(tokenless).await?.answered(&["::warning", "github-token is empty"]);
    assert!(github.comments().is_empty(), "{:?}", github.comments());

    // An answer that is lost makes no second comment.
    github.fail(Fault::LostAnswer, &[Operation::CreateComment], Times::Next(1));
    Step::run(planned_on(&github, NOWHERE)?).await?.answered(&["(o-"]);
    assert_eq!(github.comments().len(), 1, "{:?}", github.comments());

    // Not on a push, and not for a swap.
    let pushed = planned_nowhere()?.on_github(&github).with_inputs(&[("model", NEWER)]);
    Step::run(pushed).await?.answered(&[NEWER]);
    assert!(!github.comments()[0].body.contains(NEWER));
    Ok(())
}
