//! The way back after the old model was stopped: it is started again, judged and cut over to like any other.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use testbed::server::{ServerSpec, listeners};

use crate::step::Step;
use crate::support::{NEW, OLD, Run, World, alive, until};

/// The only process that listens on a port.
fn alone_on(port: u16) -> Result<u32> {
    let listeners = listeners(port)?;
    let [pid] = listeners[..] else { anyhow::bail!("not one on {port}: {listeners:?}") };
    Ok(pid)
}

fn argv(pid: u32) -> Result<Vec<String>> {
    let text = String::from_utf8(fs::read(format!("/proc/{pid}/cmdline"))?)?;
    Ok(text.trim_end_matches('\0').split('\0').map(str::to_owned).collect())
}

/// The variables that a process was started with, but for the mark of our replicas.
fn environment(pid: u32) -> Result<BTreeSet<String>> {
    let text = String::from_utf8(fs::read(format!("/proc/{pid}/environ"))?)?;
    let ours = |entry: &&str| !entry.is_empty() && !entry.starts_with("MODEL_SWAP_REPLICA=");
    Ok(text.split('\0').filter(ours).map(str::to_owned).collect())
}

async fn history(world: &World) -> Result<Run> {
    Step::run(world.action("history", NEW, &[])?).await
}

/// A swap whose old model is drained and gone.
async fn swapped(world: &World, model: &str) -> Result<Run> {
    Ok(world.run("swap", model, &[("wait", "retired")]).await?.ended(0, "promoted"))
}

#[tokio::test]
async fn what_was_started_by_hand_comes_back_as_it_was_and_only_once() -> Result<()> {
    const CANARY: &str = "canary-4711-cold";
    let mut world = World::started_by(ServerSpec::default(), |server, argv| {
        server.start_by_hand(&argv, &[("HF_TOKEN", CANARY), ("VLLM_OLD", "yes")])
    })
    .await?;
    world.settings.retain = "0s".to_owned();
    let (a, _) = world.server.slot_ports();
    let old = world.old.pid;
    let was = (argv(old)?, environment(old)?, fs::read_link(format!("/proc/{old}/cwd"))?);
    let load = world.load().await?;
    let swap = swapped(&world, NEW).await?;
    assert!(!alive(old));
    let told = history(&world).await?.answered(&[
        "serves now",
        "before: Qwen/Old",
        "yes: cold",
        "`model-swap rollback --to",
    ]);

    let back = world.run("rollback", NEW, &[("wait", "retired")]).await?.ended(0, "rolled-back");
    load.stop().await.assert_clean();
    assert!(back.stdout.contains("Plan for chat: cold rollback"), "{back}");
    assert!(back.stdout.contains("slot b is free: its replica is drained and gone"), "{back}");
    assert_eq!(world.serves().await?, OLD);
    assert_eq!(back.output("revision"), swap.output("previous-revision"));
    assert_eq!(back.output("slot"), "a");
    assert!(!back.outputs.contains_key("rollback-until"), "{back}");
    let again = alone_on(a)?;
    let is = (argv(again)?, environment(again)?, fs::read_link(format!("/proc/{again}/cwd"))?);
    assert_eq!(is, was);
    assert_eq!(fs::metadata(format!("/proc/{again}"))?.uid(), fs::metadata("/proc/self")?.uid());

    // The job again, and by name: the revision that was bad does not come back, and the good one is not moved.
    let bad = swap.output("revision");
    for (inputs, reason) in [
        (vec![], "was brought back by"),
        (vec![("swap-id", swap.output("swap-id"))], "is not what serves now"),
        (vec![("to", bad)], "was rolled back by"),
        (vec![("to", back.output("revision"))], "already serves"),
    ] {
        let run = world.run("rollback", NEW, &inputs).await?.ended(0, "unchanged");
        assert!(run.stdout.contains(reason), "no {reason:?} in\n{run}");
        assert_eq!(alone_on(a)?, again);
    }
    let after = history(&world).await?.answered(&["rolled-back", "no: rolled back by"]);
    for run in [told, back, after] {
        let said = run.to_string();
        assert!(!said.contains(CANARY), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn any_revision_of_the_history_comes_back_by_the_beginning_of_its_digest() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let (a, b) = world.server.slot_ports();
    let script = world.server.scratch().join("fetch.sh");
    fs::write(&script, "#!/bin/sh\necho \"$1\" >> \"$0.told\"\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let weights = world.server.scratch().join("weights");
    let fetch = |words: &str, size: &str| {
        let (script, folder) = (script.display(), weights.display());
        format!("fetch: {{ command: \"{script} {words}\", folder: {folder}, size: {size} }}")
    };
    // Of the weights this commit, and no other.
    world.settings.fetch =
        format!("model_revision: 5ede1c97\n{}", fetch("{model}@{revision}", "1MB"));
    world.settings.flags = "--max-model-len 1234 --revision {revision}".to_owned();
    let load = world.load().await?;
    let first = swapped(&world, NEW).await?;
    for planned in ["fetch.sh Qwen/New@5ede1c97", "--max-model-len 1234 --revision 5ede1c97"] {
        assert!(first.stdout.contains(planned), "no {planned:?} in\n{first}");
    }
    (world.settings.flags, world.settings.fetch) = (String::new(), fetch("next", "1MB"));
    let second = swapped(&world, "Qwen/Next").await?;
    world.until_serves("Qwen/Next").await?;
    let adopted = first.output("previous-revision").to_owned();

    let wrong = world.run("rollback", NEW, &[("to", "r-zzz")]).await?;
    wrong.refused(2, &["r-zzz", "hint: possible are", &adopted, first.output("revision")]);

    // What was started by hand in slot a, in slot b: on that port.
    let back = world.run("rollback", NEW, &[("to", &adopted[..14]), ("wait", "retired")]).await?;
    let back = back.ended(0, "rolled-back");
    world.until_serves(OLD).await?;
    assert_eq!((back.output("slot"), back.output("revision")), ("b", &*adopted));
    let words = argv(alone_on(b)?)?;
    assert!(words.contains(&b.to_string()) && !words.contains(&a.to_string()), "{words:?}");

    // And the one between, by the commands that it had then: for what they need there is room.
    world.settings.fetch = fetch("today", "900TB");
    let digest = first.output("revision");
    let back = world.run("rollback", "Qwen/Other", &[("to", &digest[2..])]).await?;
    let back = back.ended(0, "rolled-back");
    world.until_serves(NEW).await?;
    assert_eq!((back.output("slot"), back.output("revision")), ("a", digest));
    let words = argv(alone_on(a)?)?.join(" ");
    assert!(words.contains("--max-model-len 1234 --revision 5ede1c97"), "{words}");
    let told = fs::read_to_string(script.with_extension("sh.told"))?;
    assert_eq!(told, "Qwen/New@5ede1c97\nnext\nQwen/New@5ede1c97\n");
    assert_ne!(second.output("revision"), digest);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn what_brought_it_then_may_be_gone_and_todays_stands_in_if_it_brings_any_model() -> Result<()>
{
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let scratch = world.server.scratch().to_owned();
    let program = |name: &str| -> Result<String> {
        let path = scratch.join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\necho \"{name} $1\" >> '{}/told'\n", scratch.display()),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path.display().to_string())
    };
    let (then, today) = (program("then")?, program("today")?);
    let fetch = |program: &str, words: &str| format!("fetch: {{ command: \"{program} {words}\" }}");
    world.settings.fetch = fetch(&then, "{model}");
    swapped(&world, NEW).await?;
    world.settings.fetch = fetch(&today, "static");
    swapped(&world, "Qwen/Next").await?;
    world.until_serves("Qwen/Next").await?;

    fs::remove_file(&then)?;
    world.run("rollback", "Qwen/Next", &[]).await?.refused(
        3,
        &[
            "nothing brings the weights of Qwen/New",
            &format!("the fetch of then ({then} {{model}}) cannot be used again: there is no program"),
            &format!("today's ({today} static) does not stand in for it: its command does not name {{model}}"),
            "hint: write a fetch into the configuration that brings any model: with {model} in its command",
        ],
    );
    world.settings.fetch = fetch(&today, "{model}");
    let back = world.run("rollback", "Qwen/Next", &[]).await?.ended(0, "rolled-back");
    back.answered(&[&format!("today's ({today} {{model}}) brings Qwen/New in its place")]);
    world.until_serves(NEW).await?;
    let told = fs::read_to_string(scratch.join("told"))?;
    assert_eq!(told, "then Qwen/New\ntoday static\ntoday Qwen/New\n");
    Ok(())
}

#[tokio::test]
async fn a_warm_model_that_died_is_started_again() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    // Whoever kills it before it is drained cuts requests.
    world.until_told("nothing is in flight on port").await?;
    let old = Pid::from_raw(world.old.pid.cast_signed()).context("a pid")?;
    kill_process(old, Signal::KILL)?;
    until("the old model is gone", || !alive(world.old.pid)).await?;
    let back = world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
    assert!(back.stdout.contains("Plan for chat: cold rollback"), "{back}");
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn secrets_come_from_the_step_again_or_the_way_is_barred() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let config = world.config(NEW).replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN]\n");
    let token = [("HF_TOKEN", "hf_canary_first_value")];
    let load = world.load().await?;
    let first = world.action("swap", NEW, &[("wait", "retired")])?.with_config(&config)?;
    first.with(&token).spawn()?.finish().await?.ended(0, "promoted");
    let second = swapped(&world, "Qwen/Next").await?;

    let barred = world.run("rollback", NEW, &[]).await?;
    barred.refused(3, &["needs the secret HF_TOKEN", "hint: set HF_TOKEN in the step's env"]);
    assert_eq!(world.serves().await?, "Qwen/Next");

    let given = world.action("rollback", NEW, &[])?.with_config(&config)?;
    let back = given.with(&token).spawn()?.finish().await?.ended(0, "rolled-back");
    world.until_serves(NEW).await?;
    assert_eq!(back.output("revision"), second.output("previous-revision"));
    let pid = alone_on(world.server.slot_ports().1)?;
    assert!(environment(pid)?.contains("HF_TOKEN=hf_canary_first_value"));
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn what_does_not_get_ready_again_moves_nothing_and_may_be_tried_again() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let load = world.load().await?;
    let swap = swapped(&world, NEW).await?;
    let kept = world.server.state_dir().join("chat/swaps").join(swap.output("swap-id"));
    let snapshot = kept.join("incumbent.json");
    let good = fs::read_to_string(&snapshot)?;
    fs::write(&snapshot, good.replace("\"serve\"", "\"--no-such-flag\""))?;
    let failed = world.run("rollback", NEW, &[]).await?.ended(4, "failed");
    assert!(failed.stdout.contains("ended before it was ready"), "{failed}");
    assert_eq!(world.serves().await?, NEW);

    fs::write(&snapshot, good.replace("/stub-engine\"", "/no-engine\""))?;
    world.run("rollback", NEW, &[]).await?.refused(3, &["there is no program", "/no-engine"]);

    fs::write(&snapshot, &good)?;
    world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}
