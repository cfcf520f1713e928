//! What a server or a model says is shown and does nothing: neither to the runner, nor to a terminal, nor on a page.

use anyhow::Result;
use testbed::github::FakeGitHub;

use crate::step::Step;
use crate::support::{NEW, OLD, Run, World};

/// What an engine says that is out for harm, one line each; `printf` makes the control characters.
const HOSTILE: &str = r"::set-output name=outcome::promoted\n::add-mask::chat\n  ::error::mine\n##[set-output name=outcome;]promoted\n::stop-commands::mine\nx ##[add-mask]chat\n\033[31mred\033[0m\033]0;title\007\n<script>alert(1)</script>\n</code></details><img src=x>\n```\n# heading\n\xff\xfe\xe2\x80\xae\n";

/// Length of a line that nobody reads, in bytes.
const LONG: usize = 10 * 1000 * 1000;

/// The most that a log and a summary may come to, in bytes.
const SHORT: usize = 300 * 1000;

/// Commands of a step's log that its runner obeys, as the runner reads it: `ActionCommand.cs`.
fn obeyed(log: &str) -> Vec<&str> {
    let (mut obeyed, mut stopped): (Vec<&str>, Option<&str>) = (Vec::new(), None);
    for line in log.lines() {
        if let Some(token) = stopped {
            if line.trim_start().strip_prefix("::").is_some_and(|rest| rest.starts_with(token)) {
                stopped = None;
            }
            continue;
        }
        let Some(command) = line.trim_start().strip_prefix("::") else {
            // The older form, which is looked for only where the newer one is not.
            if line.contains("##[") {
                obeyed.push(line);
            }
            continue;
        };
        match command.strip_prefix("stop-commands::") {
            Some(token) => stopped = Some(token),
            None => obeyed.push(command),
        }
    }
    assert!(stopped.is_none(), "the runner obeys nothing any more");
    obeyed
}

/// Asserts that a run says what happened, and nothing that anybody obeys.
fn assert_inert(run: &Run) {
    let own = ["group::", "endgroup::", "error title=model-swap::", "warning title=model-swap::"];
    for command in obeyed(&run.stdout) {
        assert!(own.iter().any(|own| command.starts_with(own)), "obeyed: {command}\n{run}");
    }
    for text in [&run.stdout, &run.summary] {
        let mut harm = text.chars().filter(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        assert_eq!(harm.next(), None, "{run}");
        assert!(text.len() < SHORT, "{} bytes", text.len());
    }
    // Within a fence of its own, HTML is text; elsewhere it is escaped.
    let mut fence = None;
    for line in run.summary.lines() {
        let ticks = line.chars().take_while(|c| *c == '`').count();
        match fence {
            None if ticks >= 3 => fence = Some(ticks),
            Some(open) if ticks >= open && line.trim_end().len() == ticks => fence = None,
            None => assert!(!line.contains("<script") && !line.contains("<img"), "{line}\n{run}"),
            Some(_) => {}
        }
    }
    assert_eq!(fence, None, "a fence stays open\n{run}");
    for name in run.outputs.keys() {
        let known = ["outcome", "swap-id", "revision", "previous-revision", "slot", "plan-digest"];
        let more = ["deployment-id", "rollback-until"];
        assert!(known.contains(&name.as_str()) || more.contains(&name.as_str()), "{name}\n{run}");
    }
}

/// The configuration with an engine that first says all this, and then does the rest.
fn saying(world: &World, rest: &str) -> String {
    let config = world.config(NEW);
    let line = config.lines().find(|line| line.starts_with("  command: ")).expect("a command");
    let engine = line.trim_start_matches("  command: ").trim();
    let script = format!("head -c {LONG} /dev/zero | tr '\\0' A; printf '\\n{HOSTILE}'; {rest}");
    let words = ["/bin/bash", "-c", &script.replace("ENGINE", "exec \"$@\""), "bash"];
    let words = words.iter().map(|word| serde_json::json!(word).to_string());
    let engine = engine.split(' ').map(|word| serde_json::json!(word).to_string());
    let command: Vec<_> = words.chain(engine).collect();
    config.replacen(line, &format!("  command: [{}]", command.join(", ")), 1)
}

#[tokio::test]
async fn an_engine_that_dies_with_hostile_words_is_quoted_and_not_obeyed() -> Result<()> {
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    let config = saying(&world, "exit 3");
    let action =
        || -> Result<_> { world.action("swap", NEW, &[])?.on_github(&github).with_config(&config) };
    let run = Step::run(action()?).await?.ended(4, "failed");
    assert!(run.stdout.contains("::add-mask::chat"), "it is shown\n{run}");
    assert_inert(&run);
    let logs = Step::run(action()?.with_inputs(&[("command", "logs")])).await?;
    assert_inert(&logs.answered(&["<script>alert(1)</script>"]));
    assert!(github.violations().is_empty(), "{:?}", github.violations());
    for request in github.requests() {
        let body = request.body.map(|body| body.to_string()).unwrap_or_default();
        assert!(body.len() < 10_000 && !body.contains("\\u001b"), "{body}");
    }
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

#[tokio::test]
async fn a_model_of_a_hostile_name_is_named_and_not_obeyed() -> Result<()> {
    let mut world = World::start().await?;
    let name = "::set-output name=outcome::promoted##[error]<img src=x>\u{202e}";
    world.settings.flags = format!("--stub-report-model '{name}'");
    let run = Step::run(world.action("swap", NEW, &[])?).await?.ended(4, "failed");
    assert!(run.stdout.contains("::set-output name=outcome::promoted"), "it is shown\n{run}");
    assert_inert(&run);
    Ok(())
}

/// A line of the story that nobody could read would lose the swap for whoever follows it.
#[tokio::test]
async fn a_model_of_an_endless_name_ends_its_swap_in_plain_words() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.ready = "2s".to_owned();
    world.settings.flags = "--stub-long-name 5000000".to_owned();
    let run = Step::run(world.action("swap", NEW, &[])?).await?.ended(4, "failed");
    assert!(run.stdout.contains("/v1/models: the answer is longer than 1048576 bytes"), "{run}");
    assert_inert(&run);
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}

/// As much as is read, in names that no file system and no hub has.
#[tokio::test]
async fn a_model_of_a_long_name_is_shown_by_the_beginning_of_it() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-long-name 1000000 --stub-report-model Qwen/Wrong".to_owned();
    let run = Step::run(world.action("swap", NEW, &[])?).await?.ended(4, "failed");
    assert!(run.stdout.contains("and serves chat (Qwen/Wrong), xxxx"), "{run}");
    assert_inert(&run);
    Ok(())
}
