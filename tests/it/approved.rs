//! `plan-digest: from-pr`: a merge carries out the plan that was looked at on its pull request, and no other.

use anyhow::Result;
use testbed::github::{FakeGitHub, Fault, Operation, Times};

use crate::step::{Step, until};
use crate::support::{Action, NEW, OLD, World, binary, engine};

const NEWER: &str = "Qwen/Newer";

/// The commit of every run on the fake.
const COMMIT: &str = "0123456789012345678901234567890123456789";

/// Plans for pull request 7, which then is merged.
pub(crate) async fn plan(world: &World, github: &FakeGitHub, model: &str) -> Result<()> {
    let action = world.action("plan", model, &[])?.on_github(github);
    let planned = Step::run(action.for_pull_request("pull_request", "acme/llm")?).await?;
    let written = github.comments().pop().map(|comment| comment.body).unwrap_or_default();
    assert!(written.contains(planned.output("plan-digest")), "{planned}");
    github.merge(7, COMMIT);
    Ok(())
}

pub(crate) fn swap(world: &World, github: &FakeGitHub, model: &str) -> Result<Action> {
    Ok(world.action("swap", model, &[("plan-digest", "from-pr")])?.on_github(github))
}

#[tokio::test]
async fn a_merge_carries_out_what_was_looked_at_and_shows_what_is_different() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    plan(&world, &github, NEW).await?;
    // The same old model in another process is no other plan.
    crate::step::send("-9", world.old.pid)?;
    let port = world.server.slot_ports().0;
    crate::support::until("the old one is gone", || !crate::support::alive(world.old.pid)).await?;
    let _again = world.server.start_by_hand(&engine(OLD, port)?, &[])?;
    world.until_serves(OLD).await?;
    let run = Step::run(swap(&world, &github, NEW)?).await?.ended(0, "promoted");
    run.answered(&["pull request 7 has plan p-"]);

    // A plan that leaves all as it is holds as well, for as long as that is so.
    plan(&world, &github, NEW).await?;
    let same = Step::run(swap(&world, &github, NEW)?).await?.ended(0, "unchanged");
    let same = same.answered(&["on pull request 7 the plan was to leave all unchanged"]);
    assert!(!same.outputs.contains_key("plan-digest"), "{same}");
    let other = Step::run(swap(&world, &github, NEWER)?).await?;
    other.refused(2, &["What is different", "served already", "- unchanged", "+ Plan for chat"]);
    assert_eq!(world.serves().await?, NEW);

    // Another specification.
    plan(&world, &github, NEWER).await?;
    let other = Step::run(swap(&world, &github, "Qwen/Third")?).await?;
    let other = other.refused(
        2,
        &[
            "What is different from the plan on pull request 7",
            &format!("- {NEW} (r-"),
            "Qwen/Third (r-",
            "run `plan` again",
        ],
    );
    assert!(other.summary.contains("What is different") && other.summary.contains("+ "), "{other}");
    assert_eq!(world.serves().await?, NEW);

    // The digest alone, as a person copies it, shows the same, and nothing more where GitHub cannot be asked.
    let comment = github.comments().pop().map(|comment| comment.body).unwrap_or_default();
    let mark = comment.lines().next().unwrap_or_default();
    let digest = mark.split("digest=").nth(1).and_then(|rest| rest.strip_suffix(" -->"));
    let held = [("plan-digest", digest.unwrap_or_default())];
    let third =
        || Ok::<_, anyhow::Error>(world.action("swap", "Qwen/Third", &held)?.on_github(&github));
    let now = "the model is another one: now Qwen/Third";
    let shown = Step::run(third()?).await?;
    shown.refused(2, &[now, "What is different from the plan on pull request 7", "Qwen/Third (r-"]);
    github.fail(Fault::Status(403), &[Operation::Viewer], Times::Always);
    let alone = Step::run(third()?).await?.refused(2, &[now]);
    assert!(!alone.stdout.contains("What is different"), "{alone}");
    github.heal();

    // Another incumbent.
    Step::run(world.action("swap", "Qwen/Third", &[])?).await?.ended(0, "promoted");
    let stale = Step::run(swap(&world, &github, NEWER)?).await?;
    let was = format!("- {NEW} (r-");
    stale.refused(2, &["What is different", &was, "+ Qwen/Third (r-", "cut_over a -> b"]);
    assert_eq!(world.serves().await?, "Qwen/Third");
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

#[tokio::test]
async fn of_what_a_queue_has_merged_at_once_the_newest_plan_counts_that_changes_anything()
-> Result<()> {
    let github = FakeGitHub::start()?;
    let older = "1111111111111111111111111111111111111111";
    let pushed = [older, "2222222222222222222222222222222222222222", COMMIT];
    let swap = async || {
        let inputs = [("plan-digest", "from-pr"), ("ssh-key", "x"), ("known-hosts", "x")];
        let action = Action::new(&binary(), NOWHERE)?.on_github(&github).with_inputs(&inputs);
        Step::run(action.for_push(&pushed)?).await
    };
    github.merge(7, older);
    github.merge(8, pushed[1]);
    github.merge(9, COMMIT);
    let none = "the pull requests of this push, 9, 8, 7, have no comment by github-actions[bot]";
    swap().await?.refused(2, &[none, "with a plan of chat for chat"]);

    // Not those that touch no model, nor one whose plan was to change nothing.
    let says = |number, digest: &str| {
        let mark =
            format!("<!-- model-swap plan: service=chat environment=chat digest={digest} -->");
        github.comment(number, "github-actions[bot]", &format!("{mark}\nas it was\n"));
    };
    says(7, "o-111111111111");
    swap()
        .await?
        .refused(2, &["plan o-111111111111 on pull request 7 is of the configuration alone"]);
    says(9, "unchanged");
    swap()
        .await?
        .refused(2, &["plan o-111111111111 on pull request 7 is of the configuration alone"]);
    says(8, "o-222222222222");
    swap()
        .await?
        .refused(2, &["plan o-222222222222 on pull request 8 is of the configuration alone"]);
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}

/// A configuration whose server does not exist: whoever asks it is found out.
const NOWHERE: &str = "service: chat
host: deploy@gpu.invalid
model: Qwen/New
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --port {port}
nginx: { config: /etc/nginx/llm.conf, upstream: llm }
";

#[tokio::test]
async fn only_our_own_comment_on_the_pull_request_of_this_commit_counts() -> Result<()> {
    let github = FakeGitHub::start()?;
    let swap = || -> Result<Action> {
        let inputs = [("plan-digest", "from-pr"), ("ssh-key", "x"), ("known-hosts", "x")];
        Ok(Action::new(&binary(), NOWHERE)?.on_github(&github).with_inputs(&inputs))
    };
    let plan = |environment: &str| -> Result<Action> {
        Action::new(&binary(), NOWHERE)?
            .with_inputs(&[("command", "plan"), ("environment", environment)])
            .on_github(&github)
            .for_pull_request("pull_request", "acme/llm")
    };
    let refused = async |texts: &[&str]| -> Result<()> {
        Step::run(swap()?).await?.refused(2, texts);
        Ok(())
    };
    refused(&["no pull request was merged as commit 01234567", "swap on `push`"]).await?;
    // GitHub lists a merge late.
    let asked = github.requests().len();
    let early = Step::start(swap()?)?;
    until("it is looked for", || Ok((github.requests().len() > asked).then_some(()))).await?;
    github.merge(7, COMMIT);
    early.finish().await?.refused(2, &["pull request 7 has no comment"]);
    // A person's, and another bot's, that say the same.
    let lie =
        "<!-- model-swap plan: service=chat environment=chat digest=o-000000000000 -->\nfine\n";
    github.comment(7, "eve", lie);
    github.write_as("renovate[bot]");
    Step::run(plan("chat")?).await?.answered(&["(o-"]);
    github.write_as("github-actions[bot]");
    Step::run(plan("production")?).await?.answered(&["(o-"]);
    let missing =
        "pull request 7 has no comment by github-actions[bot] with a plan of chat for chat";
    refused(&[missing, "same `environment`", "from a fork no token"]).await?;
    // Nor is it changed: the plan for this environment gets a comment of its own.
    let before = github.comments();
    Step::run(plan("chat")?).await?.answered(&["(o-"]);
    let now = github.comments();
    assert_eq!(now.len(), before.len() + 1, "{now:?}");
    assert!(before.iter().zip(&now).all(|(one, other)| one.body == other.body), "{now:?}");
    // What no server was asked for is a plan of nothing that serves.
    let unseen = "on pull request 7 is of the configuration alone: no server was asked for it";
    refused(&["plan o-", unseen, "the secret `ssh-key`", "`plan-digest: o-"]).await?;

    // Here is no such configuration of nginx.
    let state = tempfile::tempdir()?;
    let here = format!(
        "{}\nstate_dir: {}\n",
        NOWHERE.replace("deploy@gpu.invalid", "local"),
        state.path().display()
    );
    Step::run(plan("chat")?.with_config(&here)?).await?.refused(3, &["nginx"]);
    // Whose token it is, is asked again where GitHub did not answer.
    github.fail(Fault::Status(502), &[Operation::Viewer], Times::Next(1));
    refused(&["the comment on pull request 7 says that there was no plan"]).await?;
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    Ok(())
}
