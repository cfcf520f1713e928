//! Docker's client is slow, outlives the agent, or finds its Engine away for a moment: with a real Engine.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use testbed::docker::said;
use testbed::load::{Kind, Load, LoadSpec};
use testbed::server::{Aim, ServerSpec};

use crate::doctor::NVIDIA_SMI;
use crate::kills::{self, CUT_OVER};
use crate::step::{Step, send, until};
use crate::support::docked::{AWAY, CLIENT, COMPOSED, Docked};
use crate::support::scene::Scene;
use crate::support::{NAME, NEW, OLD};

/// Docker's client, whose Engine is away when it is asked whose a port is, once for each file `away` beside it.
const AWAY_ONCE: &str = r#"#!/bin/sh
case "$*" in *publish=*) if rm "${0%/*}/away" 2>/dev/null; then export DOCKER_HOST=unix:///nowhere; fi ;; esac
exec /usr/bin/docker "$@"
"#;

/// Docker's client, which starts a container only once somebody writes to the pipe `go` beside it; it reads that with a
/// built-in, so that it is one process.
const HELD: &str = r#"#!/bin/sh
case "$1" in run | start) : >"${0%/*}/held"; read -r _ <"${0%/*}/go" ;; esac
exec /usr/bin/docker "$@"
"#;

/// Docker's client, which waits for the end of a container only once that is gone.
const LATE: &str = r#"#!/bin/sh
if [ "$1" = wait ]; then while /usr/bin/docker inspect "$2" >/dev/null 2>&1; do sleep 0.05; done; fi
exec /usr/bin/docker "$@"
"#;

/// A file beside the client.
fn beside(docked: &Docked, name: &str) -> PathBuf {
    docked.world.server.scratch().join("bin").join(name)
}

/// Between a cutover and its undo the new model got requests, and who listens for it only Docker can say.
#[tokio::test]
async fn a_new_model_is_drained_although_docker_was_away_when_it_was_asked() -> Result<()> {
    let spec = ServerSpec { faults: true, ..ServerSpec::default() };
    let mut docked = Docked::composed_on(spec, &[]).await?;
    docked.world.settings.flags = "--stub-token-delay 20ms".to_owned();
    docked.world.server.put_program("docker", AWAY_ONCE)?;
    docked.world.server.strike(Some(Aim::Freeze(CUT_OVER)))?;
    let step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    let (agent, _) = kills::frozen(&docked.world).await?;
    docked.world.server.strike(None)?;
    docked.world.until_serves(NEW).await?;
    let long = LoadSpec {
        streams: 1,
        stream_tokens: 200,
        ..LoadSpec::none(docked.world.server.nginx_addr(), NAME)
    };
    let load = Load::start(long);
    load.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    let abort = Step::start(docked.world.action("abort", NEW, &[])?)?;
    kills::ordered(&docked.world).await?;
    // From now on only the agent asks, once traffic is back.
    fs::write(beside(&docked, "away"), "")?;
    send("-CONT", agent)?;
    abort.finish().await?.ended(0, "aborted");
    let run = step.finish().await?.ended(6, "aborted");
    assert!(!beside(&docked, "away").exists(), "nobody asked\n{run}");
    assert_eq!(docked.names()?, [COMPOSED]);
    load.stop().await.assert_clean();
    Ok(())
}

/// The client outlives an agent that is killed, and the container would run that nobody knows.
#[tokio::test]
async fn a_container_whose_start_outlives_the_agent_is_stopped_with_its_swap() -> Result<()> {
    let docked = Docked::composed(&[]).await?;
    let go = beside(&docked, "go");
    said(std::process::Command::new("mkfifo").arg(&go))?;
    docked.world.server.put_program("docker", HELD)?;
    let step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    let held = beside(&docked, "held");
    until("the client is held", || Ok(held.exists().then_some(()))).await?;
    step.kill()?;
    docked.kill_agent().await?;

    let mut abort = Step::start(docked.world.action("abort", NEW, &[])?)?;
    abort.says("↩ undo start_replica b").await?;
    tokio::task::spawn_blocking(move || fs::write(go, "\n")).await??;
    abort.finish().await?.ended(0, "aborted");
    let gone = || docked.world.server.leftovers().iter().all(|line| !line.contains("docker run"));
    until("the client ends", || Ok(gone().then_some(()))).await?;
    assert_eq!(docked.names()?, [COMPOSED]);
    Ok(())
}

/// It is gone at once when it is killed, and that is the end that was wanted.
#[tokio::test]
async fn a_container_that_docker_removes_may_be_cut() -> Result<()> {
    let mut docked = Docked::made(&["--rm"], &["--stub-token-delay", "20ms"]).await?;
    docked.world.settings.drain = "{ timeout: 1s, on_timeout: cut }".to_owned();
    docked.world.settings.retain = "0s".to_owned();
    docked.world.server.put_program("docker", LATE)?;
    let addr = docked.world.server.nginx_addr();
    let load =
        Load::start(LoadSpec { streams: 1, stream_tokens: 4000, ..LoadSpec::none(addr, NAME) });
    load.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    let run = docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    assert!(run.stdout.contains("cutting what is left"), "{run}");
    assert!(!docked.names()?.contains(&COMPOSED.to_owned()), "{run}");
    drop(load);
    Ok(())
}

#[tokio::test]
async fn a_rollback_says_that_docker_is_away_and_not_that_its_container_is_gone() -> Result<()> {
    let mut docked = Docked::composed(&[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    docked.world.settings.image = None;
    docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    docked.world.server.put_program("docker", AWAY)?;
    let run = docked.world.run("rollback", NEW, &[]).await?;
    let run = run.refused(3, &["docker cannot", "systemctl start docker"]);
    assert!(!run.stdout.contains("is gone"), "{run}");
    docked.world.server.put_program("docker", CLIENT)?;
    docked.world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
    docked.world.until_serves(OLD).await
}

/// Whoever has made it knows how long it takes to end.
#[tokio::test]
async fn a_container_gets_the_time_to_end_that_it_was_made_with() -> Result<()> {
    const WRITES: &str = "#!/bin/sh\ncase $1 in stop) echo \"$*\" >>\"$0.log\" ;; esac\nexec /usr/bin/docker \"$@\"\n";
    let mut docked = Docked::made(&["--stop-timeout", "4711"], &[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    docked.world.settings.flags = "--shutdown-timeout 600".to_owned();
    docked.world.server.put_program("docker", WRITES)?;
    docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    docked.world.settings.flags = String::new();
    docked.world.run("swap", "Qwen/Newer", &[("wait", "retired")]).await?.ended(0, "promoted");
    let told = fs::read_to_string(beside(&docked, "docker.log"))?;
    let times: Vec<_> = told.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(times, ["4711", "630"], "{told}");
    // From version 28 on a client warns of the long name of that option.
    assert!(told.lines().all(|line| line.starts_with("stop -t ")), "{told}");
    Ok(())
}

/// What a client says of itself, here of its own file, stands before its every answer.
#[tokio::test]
async fn a_client_that_warns_before_it_answers_is_understood() -> Result<()> {
    const WARNS: &str = "WARNING: Error loading config file";
    let mut docked = Docked::composed(&[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    fs::write(docked.client.path().join("config.json"), "{")?;
    let mut client = docked.engine.docker(["version"]);
    let warned = client.env("DOCKER_CONFIG", docked.client.path()).output()?;
    assert!(warned.status.success() && String::from_utf8(warned.stderr)?.starts_with(WARNS));

    let config = docked.world.config(NEW).replace("stub-engine:here", "stub-engine:absent");
    let doctor = Step::run(docked.world.action("doctor", NEW, &[])?.with_config(&config)?).await?;
    assert!(doctor.stdout.contains("stub-engine:absent is not here, and "), "{doctor}");

    docked.world.settings.flags = "--stub-load-time 600s".to_owned();
    let mut step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    docked.world.run("abort", NEW, &[]).await?.ended(0, "aborted");
    step.finish().await?.ended(6, "aborted");
    assert_eq!(docked.names()?, [COMPOSED]);

    docked.world.settings.flags = String::new();
    docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    let logs = docked.world.run("logs", NEW, &[]).await?;
    let logs = logs.answered(&["Starting to load model Qwen/New"]);
    assert!(!logs.stdout.contains("Error loading config file"), "{logs}");
    let back = docked.world.run("rollback", NEW, &[("wait", "retired")]).await?;
    back.ended(0, "rolled-back");
    assert_eq!(docked.names()?, [COMPOSED]);
    docked.world.until_serves(OLD).await
}

/// Docker's client, where somebody else is always the first to remove what is to be stopped or removed.
const TOO_LATE: &str = r#"#!/bin/sh
case "$1" in stop | rm) for last; do :; done; /usr/bin/docker rm --force "$last" >/dev/null ;; esac
exec /usr/bin/docker "$@"
"#;

/// As `docker system prune` does, or a person.
#[tokio::test]
async fn a_container_that_somebody_removes_while_it_is_put_away_is_gone_as_it_should_be()
-> Result<()> {
    let mut docked = Docked::composed(&[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    docked.world.server.put_program("docker", TOO_LATE)?;
    docked.world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    assert_eq!(docked.names()?, ["model-swap-chat.b"]);
    let run = docked.world.run("swap", "Qwen/Newer", &[("wait", "retired")]).await?;
    let run = run.ended(0, "promoted");
    assert!(run.stdout.contains("what it wrote is lost: "), "{run}");
    assert_eq!(docked.names()?, ["model-swap-chat.a"]);
    docked.world.run("status", NEW, &[]).await?.answered(&["free"]);

    docked.world.settings.flags = "--stub-load-time 600s".to_owned();
    let mut step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    docked.world.run("abort", NEW, &[]).await?.ended(0, "aborted");
    step.finish().await?.ended(6, "aborted");
    assert_eq!(docked.names()?, ["model-swap-chat.a"]);
    Ok(())
}

/// Docker's client, which writes beside it what the Engine was asked for with a container that it is to remove.
const WRITES_WHAT_WAS_ASKED: &str = r#"#!/bin/sh
if [ "$1" = rm ]; then
    asked='{{json .HostConfig.DeviceRequests}} {{json .HostConfig.PortBindings}}'
    /usr/bin/docker container inspect --format "$asked" "$2" >"${0%/*}/asked"
fi
exec /usr/bin/docker "$@"
"#;

/// What gives GPUs to containers is not there: the Engine says so once it has read for which it was asked.
#[tokio::test]
async fn the_gpus_of_a_slot_are_asked_of_the_engine_and_why_it_has_none_is_said() -> Result<()> {
    let docked = Docked::start().await?;
    docked.world.server.put_program("nvidia-smi", NVIDIA_SMI)?;
    docked.world.server.put_program("docker", WRITES_WHAT_WAS_ASKED)?;
    let (_, b) = docked.world.server.slot_ports();
    for (gpus, network, ids, ports) in [
        ("[1]", "", r#"["1"]"#, format!("{{\"{b}/tcp\":[")),
        // Of published ports its client would warn there, before the Engine says why it refuses.
        ("[GPU-5d3a, GPU-77c1]", ", --network=host", r#"["GPU-5d3a","GPU-77c1"]"#, "{}".to_owned()),
    ] {
        let config = docked.world.config(NEW);
        let config = config.replace(&format!("{b}, gpus: []"), &format!("{b}, gpus: {gpus}"));
        let config = config.replace("[--label=team=llm]", &format!("[--label=team=llm{network}]"));
        let run = Step::run(docked.world.action("swap", NEW, &[])?.with_config(&config)?).await?;
        let run = run.ended(4, "failed");
        for told in [
            r#"docker cannot start the container: could not select device driver "" with capabilities: [[gpu]]"#,
            "install the NVIDIA Container Toolkit, and restart the Docker Engine",
        ] {
            assert!(run.stdout.contains(told), "no {told:?} in\n{run}");
        }
        let asked = fs::read_to_string(beside(&docked, "asked"))?;
        let device = format!(
            r#"[{{"Driver":"","Count":0,"DeviceIDs":{ids},"Capabilities":[["gpu"]],"Options":{{}}}}] "#
        );
        let published = asked.strip_prefix(&device);
        assert!(published.is_some_and(|published| published.starts_with(&ports)), "{asked}");
        assert!(docked.names()?.is_empty(), "{run}");
    }
    Ok(())
}

/// What is in the server's network publishes nothing, and listens there itself.
#[tokio::test]
async fn a_container_in_the_servers_network_publishes_nothing() -> Result<()> {
    let docked = Docked::composed(&[]).await?;
    let load = docked.world.load().await?;
    let config = docked.world.config(NEW);
    let config = config.replace("[--label=team=llm]", "[--label=team=llm, --network=host]");
    let step = async |command| {
        Step::run(docked.world.action(command, NEW, &[])?.with_config(&config)?).await
    };
    step("swap").await?.ended(0, "promoted");
    docked.world.until_serves(NEW).await?;
    let bound = docked.inspect("model-swap-chat.b", "{{json .HostConfig.PortBindings}}")?;
    assert_eq!(bound, "{}");
    step("rollback").await?.ended(0, "rolled-back");
    docked.world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}
