//! Secrets are nowhere but where they are used.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use testbed::github::FakeGitHub;
use testbed::load::http::get;
use testbed::server::{Aim, ServerSpec, listeners};

use crate::kills::{self, CONCLUDED};
use crate::step::{LOOK_EVERY, Step, processes_with, send};
use crate::support::docked::Docked;
use crate::support::{NAME, NEW, Run, World, alive, until};

/// A part of secrets' values that no other text on the machine has.
pub(crate) fn canary(name: &str) -> String {
    format!("canary-{name}-{}", std::process::id())
}

/// Looks for texts in every argv of the machine, from now to its report.
pub(crate) struct Lookout {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<(Vec<String>, usize)>,
}

impl Lookout {
    pub(crate) fn for_texts(texts: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let looking = std::thread::spawn(move || {
            let (mut found, mut looks) = (Vec::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                found.extend(texts.iter().flat_map(|text| processes_with(text)));
                looks += 1;
                std::thread::sleep(LOOK_EVERY);
            }
            found.sort();
            found.dedup();
            (found, looks)
        });
        Self { stop, looking }
    }

    /// What was seen, and in how many looks.
    pub(crate) fn report(self) -> Result<(Vec<String>, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.join().ok().context("the lookout panicked")
    }
}

/// Every file under a folder that has this text in it, but for the agent's own program.
pub(crate) fn files_with(folder: &Path, text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)?.flatten() {
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if entry.file_type()?.is_file() && !path.ends_with("model-swap") {
                let bytes = fs::read(&path)?;
                if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_secret_is_in_no_argv_no_file_and_no_word_but_in_the_engines_environment() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 1s".to_owned();
    let github = FakeGitHub::start()?;
    // A line of the key's own text, which a pasted key would be known by.
    let key = world.server.private_key().lines().nth(2).context("a line of the key")?.to_owned();
    let canary = canary("given");
    let secrets = [&*canary, github.token(), &key];
    let config = world
        .config(NEW)
        .replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN, VLLM_API_KEY]\n");
    let step = |command: &str| -> Result<_> {
        Ok(world.action(command, NEW, &[])?.on_github(&github).with_config(&config)?.with(&[
            ("HF_TOKEN", &format!("hf_{canary}")),
            ("VLLM_API_KEY", &format!("key \"quoted\" $HOME {canary}")),
        ]))
    };
    let lookout = Lookout::for_texts(secrets.map(str::to_owned).to_vec());
    let mut runs = Vec::new();
    for command in ["plan", "swap", "status", "logs", "rollback"] {
        let action = step(command)?;
        let mut running = Step::start(action)?;
        if command == "swap" {
            running.says("→ await_ready b").await?;
            let candidates = processes_with(&format!("serve {NEW} "));
            let port = world.server.slot_ports().1.to_string();
            let own: Vec<_> = candidates.iter().filter(|line| line.contains(&port)).collect();
            let [candidate] = own[..] else { panic!("not one candidate: {candidates:?}") };
            let pid = candidate.split(' ').next().context("a pid")?;
            let environ = fs::read(format!("/proc/{pid}/environ"))?;
            let environ = String::from_utf8_lossy(&environ);
            assert!(environ.contains(&format!("HF_TOKEN=hf_{canary}\0")), "the engine has it not");
            assert!(environ.contains(&format!("VLLM_API_KEY=key \"quoted\" $HOME {canary}\0")));
            for pid in processes_with("model-swap agent run")
                .iter()
                .filter_map(|line| line.split(' ').next())
            {
                let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                assert!(
                    !String::from_utf8_lossy(&environ).contains(&canary),
                    "the agent's environment"
                );
            }
        }
        runs.push(running.finish().await?);
    }
    let (argvs, looks) = lookout.report()?;
    assert!(looks > 10, "the lookout slept");
    assert!(argvs.is_empty(), "{argvs:#?}");
    for run in &runs {
        assert!(run.code == 0, "{run}");
        let said = format!("{run}");
        for secret in secrets {
            assert!(!said.contains(secret), "{secret} is said\n{run}");
        }
    }
    let state = world.server.state_dir();
    for secret in secrets {
        assert_eq!(files_with(&state, secret)?, [""; 0], "{secret} is on the disk");
    }
    for request in github.requests() {
        let body = request.body.map(|body| body.to_string()).unwrap_or_default();
        assert!(!body.contains(&canary) && !request.path.contains(&canary), "{body}");
    }
    assert!(files_with(&state, NEW)?.iter().any(|path| path.contains(NAME)), "nothing was read");
    Ok(())
}

/// A key of several lines, of which no two are alike.
fn key_file(canary: &str) -> String {
    format!("-----BEGIN KEY-----\n{canary}-first\n{canary}-second\n-----END KEY-----")
}

/// Asserts that no word of a run has one of the texts, no request to GitHub, and no file of the server but those that keep it.
fn assert_nowhere(
    of: (&World, &FakeGitHub),
    run: &Run,
    texts: &[String],
    kept_in: &[&str],
) -> Result<()> {
    texts.iter().try_for_each(|text| assert_is_nowhere(of, run, text, kept_in))
}

fn assert_is_nowhere(
    (world, github): (&World, &FakeGitHub),
    run: &Run,
    text: &str,
    kept_in: &[&str],
) -> Result<()> {
    assert!(!run.to_string().contains(text), "{text} is said\n{run}");
    for request in github.requests() {
        let body = request.body.map(|body| body.to_string()).unwrap_or_default();
        assert!(!body.contains(text) && !request.path.contains(text), "{body}");
    }
    let files = files_with(&world.server.state_dir(), text)?;
    let is_kept = |path: &String| kept_in.iter().any(|name| path.ends_with(name));
    let others: Vec<_> = files.iter().filter(|path| !is_kept(path)).collect();
    assert!(others.is_empty() && files.len() >= kept_in.len(), "{files:?}");
    Ok(())
}

/// What a careless engine said of itself before it died is told, without its secrets.
fn is_told_of(run: &Run) {
    for line in ["environment: [", "arguments: [", "***"] {
        assert!(run.stdout.contains(line), "no {line:?} in\n{run}");
    }
}

#[tokio::test]
async fn an_engine_that_says_its_secrets_and_dies_is_told_of_without_them() -> Result<()> {
    let mut world = World::start().await?;
    let github = FakeGitHub::start()?;
    let folder = tempfile::tempdir()?;
    world.settings.flags = format!("--stub-blab-if {}", folder.path().display());
    let canaries = ["token", "lines"].map(canary);
    let [token, lines] = &canaries;
    let config =
        world.config(NEW).replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN, SSL_KEY]\n");
    let lookout = Lookout::for_texts(canaries.to_vec());
    for (command, code) in [("swap", 4), ("logs", 0), ("status", 0)] {
        let action = world.action(command, NEW, &[])?.on_github(&github).with_config(&config)?;
        let action = action.with(&[("HF_TOKEN", token), ("SSL_KEY", &key_file(lines))]);
        let run = Step::run(action).await?;
        assert_eq!(run.code, code, "{run}");
        assert_nowhere((&world, &github), &run, &canaries, &["/replica.log"])?;
        if command != "status" {
            is_told_of(&run);
        }
    }
    let (argvs, looks) = lookout.report()?;
    assert!(looks > 10 && argvs.is_empty(), "{looks} looks: {argvs:#?}");
    Ok(())
}

/// The secrets that count are those of the engine, whatever the step that asks has by then.
#[tokio::test]
async fn a_log_is_shown_without_the_secrets_of_then_by_a_step_that_has_others_or_none() -> Result<()>
{
    let world = World::start().await?;
    let github = FakeGitHub::start()?;
    let canaries = ["token", "lines"].map(canary);
    let [token, lines] = &canaries;
    let config =
        world.config(NEW).replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN, SSL_KEY]\n");
    let line = config.lines().find(|line| line.starts_with("  command: ")).context("a command")?;
    let engine = line.trim_start_matches("  command: ").trim();
    let says = r#"echo "I have $HF_TOKEN and $SSL_KEY"; echo "HF_TOKEN=$HF_TOKEN"; exec "$@""#;
    let words = ["/bin/bash", "-c", says, "bash"].into_iter().chain(engine.split(' '));
    let words: Vec<_> = words.map(|word| serde_json::json!(word).to_string()).collect();
    let config = config.replacen(line, &format!("  command: [{}]", words.join(", ")), 1);
    let action = |command: &str| -> Result<_> {
        world.action(command, NEW, &[])?.on_github(&github).with_config(&config)
    };
    let swap = action("swap")?.with(&[("HF_TOKEN", token), ("SSL_KEY", &key_file(lines))]);
    Step::run(swap).await?.ended(0, "promoted");
    for others in [&[][..], &[("HF_TOKEN", "another one"), ("SSL_KEY", "another one")]] {
        let run = Step::run(action("logs")?.with(others)).await?;
        assert_nowhere((&world, &github), &run, &canaries, &["/replica.log"])?;
        run.answered(&["I have *** and ***"]);
    }
    // Nobody can tell them any more.
    let [engine] = listeners(world.server.slot_ports().1)?[..] else { panic!("no engine") };
    send("-KILL", engine)?;
    until("the engine is gone", || !alive(engine)).await?;
    Step::run(action("logs")?).await?.answered(&["HF_TOKEN=***"]);
    Ok(())
}

#[tokio::test]
async fn an_old_model_that_says_its_secrets_and_dies_is_told_of_without_them() -> Result<()> {
    let canaries = ["word", "variable", "lines", "user"].map(canary);
    let [word, variable, lines, user] = &canaries;
    let folder = tempfile::tempdir()?;
    let blabs = folder.path().join("blabs");
    let typed = ["--download-dir".to_owned(), format!("sk-{word}")];
    let flags = ["--stub-blab-if".to_owned(), blabs.display().to_string()];
    let mut world =
        World::started_by(testbed::server::ServerSpec::default(), |server, mut argv| {
            argv.extend(typed.into_iter().chain(flags));
            let proxy = format!("http://ann:{user}@proxy.example:3128");
            let env = [("HF_TOKEN", &**variable), ("SSL_KEY", &key_file(lines)), ("PROXY", &proxy)];
            server.start_by_hand(&argv, &env)
        })
        .await?;
    world.settings.retain = "0s".to_owned();
    let github = FakeGitHub::start()?;
    let lookout = Lookout::for_texts(canaries.to_vec());
    world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    fs::write(blabs, "")?;
    // By a step that knows none of it.
    for (command, code) in [("rollback", 4), ("logs", 0), ("history", 0), ("repair", 0)] {
        let run = Step::run(world.action(command, NEW, &[])?.on_github(&github)).await?;
        assert_eq!(run.code, code, "{run}");
        assert_nowhere((&world, &github), &run, &canaries, &["/replica.log", "/incumbent.json"])?;
        if ["rollback", "logs"].contains(&command) {
            is_told_of(&run);
        }
    }
    let (argvs, looks) = lookout.report()?;
    assert!(looks > 10, "the lookout slept");
    let others = argvs.iter().filter(|line| !line.contains("/stub-engine serve "));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "in an argv but the old model's own");
    Ok(())
}

#[tokio::test]
async fn a_changed_secret_is_a_new_revision_and_an_equal_one_is_not() -> Result<()> {
    let world = World::start().await?;
    let config = world.config(NEW).replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN]\n");
    let swap = async |token: &str| {
        let action = world.action("swap", NEW, &[])?.with_config(&config)?;
        Step::run(action.with(&[("HF_TOKEN", token)])).await
    };
    let first = swap("one").await?.ended(0, "promoted");
    swap("one").await?.ended(0, "unchanged");
    let other = swap("two").await?.ended(0, "promoted");
    assert_ne!(first.output("revision"), other.output("revision"));
    Ok(())
}

#[tokio::test]
async fn what_the_old_models_owner_typed_is_kept_private_and_shown_without_its_secrets()
-> Result<()> {
    let canary = canary("typed");
    let key = format!("sk-{canary}");
    let typed = ["--download-dir".to_owned(), format!("https://ann:{key}@example.com/")];
    let world = World::started_by(testbed::server::ServerSpec::default(), |server, mut argv| {
        argv.extend(typed);
        server.start_by_hand(&argv, &[("HF_TOKEN", &key), ("INNOCENT", &format!("x{key}"))])
    })
    .await?;
    let github = FakeGitHub::start()?;
    let incumbent = world.old.pid.to_string();
    let lookout = Lookout::for_texts(vec![canary.clone()]);
    for (command, outcome) in [
        ("plan", ""),
        ("swap", "promoted"),
        ("history", ""),
        ("status", ""),
        ("repair", "unchanged"),
    ] {
        let run = Step::run(world.action(command, NEW, &[])?.on_github(&github)).await?;
        let run = run.ended(0, outcome);
        assert!(!format!("{run}").contains(&canary), "{run}");
    }
    let (argvs, looks) = lookout.report()?;
    assert!(looks > 10, "the lookout slept");
    let others = argvs.iter().filter(|line| !line.starts_with(&format!("{incumbent} ")));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "in the argv of what we started");
    for request in github.requests() {
        let body = request.body.map(|body| body.to_string()).unwrap_or_default();
        assert!(!body.contains(&canary), "{body}");
    }
    let files = files_with(&world.server.state_dir(), &canary)?;
    assert!(files.iter().all(|path| path.ends_with("/incumbent.json")), "{files:?}");
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(fs::metadata(&files[0])?.permissions().mode() & 0o777, 0o600);
    Ok(())
}

/// Who goes on where an agent has ended asks the new model with its key, or it would have nothing but refusals to go by.
#[tokio::test]
async fn an_agent_that_is_given_no_key_has_the_one_of_the_container() -> Result<()> {
    let spec = ServerSpec { faults: true, ..ServerSpec::default() };
    let mut docked = Docked::composed_on(spec, &[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    let world = &docked.world;
    let key = canary("container");
    let config =
        world.config(NEW).replace("replica:\n", "replica:\n  secret_env: [VLLM_API_KEY]\n");
    let action = |command| -> Result<_> {
        let action = world.action(command, NEW, &[])?.with_config(&config)?;
        Ok(action.with(&[("VLLM_API_KEY", &key)]))
    };
    let lookout = Lookout::for_texts(vec![key.clone()]);
    kills::orphaned(world, Aim::After(CONCLUDED), action("swap")?).await?;
    // It is given the key for itself; it drains and retires for that swap by what is kept.
    let run = Step::run(action("repair")?).await?.answered(&[]);
    kills::closed(world).await?;
    let b = ([127, 0, 0, 1], world.server.slot_ports().1).into();
    let metrics = get(b, "/metrics").await?.text();
    let asked = |status: &str| {
        let is_of = |line: &&str| line.contains(r#"handler="/v1/models""#) && line.contains(status);
        metrics.lines().filter(is_of).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(!asked("2xx").is_empty(), "{metrics}");
    assert_eq!(asked("4xx"), [""; 0], "{run}\n{}", world.told());
    assert!(!format!("{run}{}", world.told()).contains(&key), "{run}");
    assert_eq!(files_with(&world.server.state_dir(), &key)?, [""; 0]);
    assert_eq!(lookout.report()?.0, [""; 0]);
    Ok(())
}
