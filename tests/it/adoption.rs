//! The model that a person started by hand: what is taken over from it, and what is left alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testbed::docker::said;
use testbed::server::{ByHand, ServerSpec, listeners};

use crate::doctor::mark;
use crate::support::docked::{COMPOSED, Docked};
use crate::support::{NEW, World, alive};

#[tokio::test]
async fn a_stranger_in_the_same_process_group_lives_on() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let group = |pid: u32| -> Result<String> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("a stat line")?.1;
        Ok(fields.split(' ').nth(2).context("a process group")?.to_owned())
    };
    assert_eq!(group(world.old.pid)?, group(world.old.innocent)?);
    let load = world.load().await?;
    world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    load.stop().await.assert_clean();
    assert!(!alive(world.old.pid));
    assert!(alive(world.old.innocent), "a stranger was killed");
    Ok(())
}

#[tokio::test]
async fn its_child_goes_with_it() -> Result<()> {
    let mut world = World::on(ServerSpec::default(), &["--stub-child"]).await?;
    world.settings.retain = "0s".to_owned();
    let children = world.server.children(world.old.pid);
    assert_eq!(children.len(), 1, "the engine's core process");
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    load.stop().await.assert_clean();
    assert!(!alive(world.old.pid) && !alive(children[0]), "{run}");
    assert!(run.stdout.contains("2 of its processes are gone"), "{run}");
    Ok(())
}

/// `on_timeout: cut` kills the main process too, and its child outlives that: both must be gone all the same.
#[tokio::test]
async fn its_child_goes_with_it_when_it_has_to_be_killed() -> Result<()> {
    let flags = ["--stub-child", "--stub-token-delay", "100ms"];
    let mut world = World::on(ServerSpec::default(), &flags).await?;
    world.settings.retain = "0s".to_owned();
    world.settings.drain = "{ timeout: 1s, on_timeout: cut }".to_owned();
    let child = world.server.children(world.old.pid);
    // A stream that is far longer than the drain, past nginx, so that only the engine's count knows of it.
    let mut long = testbed::load::LoadSpec::none(
        ([127, 0, 0, 1], world.server.slot_ports().0).into(),
        crate::support::NAME,
    );
    (long.streams, long.stream_tokens) = (1, 100_000);
    let long = testbed::load::Load::start(long);
    long.wait_until(|tally| tally.in_flight(testbed::load::Kind::Stream) == 1).await?;

    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    assert!(run.stdout.contains("cutting what is left: 1 request in the engine"), "{run}");
    assert!(
        run.stdout.contains("2 of its processes are gone, 2 of them had to be killed"),
        "{run}"
    );
    assert!(!alive(world.old.pid) && child.iter().all(|pid| !alive(*pid)), "{run}");
    drop(long);
    Ok(())
}

#[tokio::test]
async fn a_wrapper_that_starts_it_again_is_named_before_and_after() -> Result<()> {
    let mut world = World::started_by(ServerSpec::default(), |server, argv| {
        let wrapped = server.start_in_wrapper(&argv, &[], 1)?;
        // What must outlive the swap here is the script.
        Ok(ByHand { pid: wrapped.pid, innocent: wrapped.wrapper, log: wrapped.log })
    })
    .await?;
    world.settings.retain = "0s".to_owned();
    let wrapper = world.old.innocent;
    let load = world.load().await?;
    let plan = world.run("plan", NEW, &[]).await?;
    let note = format!("the replica in slot a was started by process {wrapper} (");
    assert!(plan.code == 0 && plan.stdout.contains(&note), "{plan}");
    assert!(plan.stdout.contains("serve.sh"), "{plan}");

    // Promoted, but what was to end did not stay away: somebody has to look.
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(7, "promoted");
    load.stop().await.assert_clean();
    assert_eq!(world.serves().await?, NEW);
    assert!(alive(wrapper) && !alive(world.old.pid), "{run}");
    let again = listeners(world.server.slot_ports().0)?;
    let started = world.server.children(wrapper);
    let [again_pid] = started[..] else { panic!("not started again: {again:?} {run}") };
    for text in [
        "the replica on slot a still runs".to_owned(),
        format!("process {wrapper} ("),
        format!("started the retired model again as process {again_pid}"),
        format!("stop that wrapper: kill {wrapper}; then kill {again_pid}"),
    ] {
        assert!(run.stdout.contains(&text), "no {text:?} in\n{run}");
        assert!(
            run.summary.contains(&text) || text.contains("the replica"),
            "no {text:?} in\n{run}"
        );
    }
    assert!(!run.stdout.contains("slot a is free"), "{run}");
    Ok(())
}

/// Secrets of the incumbent's environment and argv stay in one file that its owner alone can read.
#[tokio::test]
async fn its_secrets_stay_where_they_are() -> Result<()> {
    const IN_ENV: &str = "canary-4711-environment";
    const IN_ARGV: &str = "hf_canary4711argument";
    let world = World::started_by(ServerSpec::default(), |server, mut argv| {
        argv.extend(["--download-dir", IN_ARGV].map(str::to_owned));
        server.start_by_hand(&argv, &[("HF_TOKEN", IN_ENV)])
    })
    .await?;
    let load = world.load().await?;
    let swap = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let mut runs = vec![swap];
    for command in ["status", "logs", "plan", "rollback"] {
        runs.push(world.run(command, NEW, &[]).await?);
    }
    load.stop().await.assert_clean();
    let holds = |text: &[u8], canary: &str| {
        text.windows(canary.len()).any(|window| window == canary.as_bytes())
    };
    for run in &runs {
        let said = run.to_string();
        assert!(!said.contains("canary"), "{said}");
    }
    let mut holding = Vec::new();
    for path in files(&world.server.state_dir())? {
        let text = fs::read(&path)?;
        if holds(&text, IN_ENV) || holds(&text, IN_ARGV) {
            holding.push(path);
        }
    }
    let swap = world.server.state_dir().join("chat/swaps").join(runs[0].output("swap-id"));
    let incumbent = swap.join("incumbent.json");
    assert_eq!(holding, std::slice::from_ref(&incumbent));
    let text = fs::read(&incumbent)?;
    assert!(holds(&text, IN_ENV) && holds(&text, IN_ARGV), "enough to start it again");
    let mode =
        |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    assert_eq!(mode(&incumbent)?, 0o600);
    assert_eq!(mode(&swap)?, 0o700);
    Ok(())
}

/// A candidate gets what it needs to run, and nothing that was another model's.
#[tokio::test]
async fn its_environment_is_not_inherited() -> Result<()> {
    let world = World::started_by(ServerSpec::default(), |server, argv| {
        server.start_by_hand(&argv, &[("HF_TOKEN", "canary"), ("VLLM_OLD", "canary")])
    })
    .await?;
    let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let [pid] = listeners(world.server.slot_ports().1)?[..] else { panic!("nobody alone: {run}") };
    let environment = String::from_utf8(fs::read(format!("/proc/{pid}/environ"))?)?;
    assert!(!environment.contains("canary"), "{environment}");
    let old = fs::read(format!("/proc/{}/environ", world.old.pid))?;
    for name in ["PATH=", "HOME="] {
        let of = |environ: &str| {
            environ.split('\0').find(|entry| entry.starts_with(name)).map(str::to_owned)
        };
        assert_eq!(of(&environment), of(&String::from_utf8_lossy(&old)), "{environment}");
    }
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd"))?,
        fs::read_link(format!("/proc/{}/cwd", world.old.pid))?
    );
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// On the same port and GPUs, as soon as its container is stopped.
#[tokio::test]
async fn a_container_in_whose_place_an_orchestrator_starts_another_is_not_adopted() -> Result<()> {
    let task = ["com.docker.swarm.task.id=x1", "com.docker.swarm.service.name=llm_vllm"];
    let mut docked = Docked::made(&["--label", task[0], "--label", task[1]], &[]).await?;
    let said = [
        &format!(
            "container {COMPOSED} is run by Docker Swarm (llm_vllm), which starts another one"
        ),
        "--restart=unless-stopped",
        "docker service rm",
    ];
    let doctor = docked.world.run("doctor", NEW, &[]).await?.refused(3, &said);
    assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
    assert!(!doctor.stdout.contains("docker start"), "{doctor}");
    docked.world.run("swap", NEW, &[]).await?.refused(3, &said);
    docked.world.settings.image = None;
    docked.world.run("plan", NEW, &[]).await?.refused(3, &said);
    assert_eq!(docked.names()?, [COMPOSED]);
    Ok(())
}

/// Whose network it is they have no other, and its first process ends theirs.
#[tokio::test]
async fn a_container_that_others_live_in_is_not_stopped() -> Result<()> {
    let mut docked = Docked::composed(&[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    let image = docked.world.settings.image.clone().context("an image")?;
    for shared in ["--network", "--pid"] {
        let with = format!("{shared}=container:{COMPOSED}");
        let mut beside = docked.engine.docker(["run", "--detach", "--name=gateway", &with]);
        said(beside.args([image.as_str(), "Qwen/Beside", "--host", "0.0.0.0", "--port", "4000"]))?;
        let told = format!("container {COMPOSED} is not stopped alone: with it gateway would lose");
        let doctor = docked.world.run("doctor", NEW, &[]).await?;
        assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
        docked.world.run("swap", NEW, &[]).await?.refused(3, &[&told]);
        said(&mut docked.engine.docker(["rm", "--force", "gateway"]))?;
    }
    docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    docked.world.until_serves(NEW).await
}
