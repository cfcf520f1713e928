//! `doctor`: everything that a swap needs, all at once, and nothing changed by looking.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use testbed::server::{ServerSpec, free_port, listeners};

use crate::step::{Step, until};
use crate::support::{NAME, NEW, OLD, Run, World};

/// What `nvidia-smi` says on a server with two GPUs: a stranger holds memory of the second.
pub(crate) const NVIDIA_SMI: &str = r#"#!/bin/sh
case "$1" in
  --query-gpu=*) echo "0, GPU-5d3a, NVIDIA H200, 143771, 142600"; echo "1, GPU-77c1, NVIDIA H200, 143771, 72000" ;;
  --query-compute-apps=*) echo "1, GPU-77c1, 71234" ;;
  -L) echo "GPU 0: NVIDIA H200 (UUID: GPU-5d3a)"; echo "GPU 1: NVIDIA H200 (UUID: GPU-77c1)" ;;
esac
"#;

/// The mark of a finding in the table.
pub(crate) fn mark(run: &Run, what: &str) -> String {
    let row = run.stdout.lines().find(|line| {
        line.strip_prefix("    ")
            .is_some_and(|row| row.get(6..).is_some_and(|row| row.starts_with(what)))
    });
    row.and_then(|row| row.split_whitespace().next()).unwrap_or_default().to_owned()
}

/// Everything on the server that a look could change.
fn look(world: &World) -> Result<(Vec<u8>, u64, [Vec<u32>; 3])> {
    let config = world.server.nginx_config();
    let (a, b) = world.server.slot_ports();
    Ok((
        fs::read(&config)?,
        fs::metadata(&config)?.ino(),
        [world.server.nginx_workers()?, listeners(a)?, listeners(b)?],
    ))
}

#[tokio::test]
async fn a_good_server_is_ready_and_is_left_as_it_was() -> Result<()> {
    let world = World::start().await?;
    let before = look(&world)?;
    let leftovers = world.server.leftovers();
    let run =
        Step::run(world.action("doctor", NEW, &[])?).await?.answered(&["its binary was brought"]);
    for what in [
        "ssh key",
        "known hosts",
        "host name",
        "ssh port",
        "ssh login",
        "agent",
        "clock",
        "privileges",
        "state folder",
        "room for state",
        "unfinished swap",
        "nginx configuration",
        "nginx running",
        "right to reload nginx",
        "upstream",
        "worker_shutdown_timeout",
        "access log",
        "slot a",
        "slot b",
        "probe through nginx",
        "engine program",
        "runtime",
        "GPUs",
        "plan of a swap",
    ] {
        assert_eq!(mark(&run, what), "ok", "{what}\n{run}");
    }
    assert!(run.summary.contains("0 failed"), "{run}");
    assert!(run.outputs.is_empty(), "{run}");
    assert_eq!(look(&world)?, before, "something changed\n{run}");
    let kept: Vec<_> = fs::read_dir(world.server.state_dir())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    assert_eq!(kept, ["bin"], "more than the agent was left");
    until("doctor leaves no process", || Ok((world.server.leftovers() == leftovers).then_some(())))
        .await?;

    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let run = world.run("doctor", NEW, &[]).await?.answered(&["its binary was there"]);
    assert!(run.stdout.contains(&format!("kept for a rollback, {NAME} ({OLD})")), "{run}");
    Ok(())
}

#[tokio::test]
async fn everything_that_is_wrong_is_said_at_once_with_how_to_mend_it() -> Result<()> {
    let lines = "worker_shutdown_timeout 5s;".to_owned();
    let world = World::on(ServerSpec { main_lines: lines, ..ServerSpec::default() }, &[]).await?;
    world.server.put_program("nvidia-smi", NVIDIA_SMI)?;
    let (a, b) = world.server.slot_ports();
    let stranger = std::net::TcpListener::bind(("127.0.0.1", b))?;
    let (file, log) = (world.server.nginx_config(), world.server.scratch().join("access.log"));
    let logs = format!("server {{ access_log {}; ", log.display());
    fs::write(&file, fs::read_to_string(&file)?.replacen("server {", &logs, 1))?;
    let before = look(&world)?;
    let program =
        world.config(NEW).lines().find(|line| line.starts_with("  command: ")).map(str::to_owned);
    let config = world
        .config(NEW)
        .replace(&format!("{a}, gpus: []"), &format!("{a}, gpus: [3]"))
        .replace(&format!("{b}, gpus: []"), &format!("{b}, gpus: [1]"))
        .replace(
            &program.unwrap_or_default(),
            "  command: no-such-engine --port {port}\n  secret_env: [HF_TOKEN]",
        );
    let run = Step::run(world.action("doctor", NEW, &[])?.with_config(&config)?).await?;
    let run = run.refused(
        3,
        &[
            "HF_TOKEN: missing",
            "there is no program \"no-such-engine\"",
            "write the full path of the program",
            "worker_shutdown_timeout is 5s, below the drain timeout",
            "there is no such GPU; nvidia-smi lists 0 (NVIDIA H200, GPU-5d3a), 1 (NVIDIA H200, GPU-77c1)",
            "correct slots.a.gpus",
            "70 GiB of 140 GiB free; also used by process 1 (69 GiB)",
            "which is no replica of this service",
            "give slot b another port",
        ],
    );
    for (what, expected) in [
        ("secrets", "fail"),
        ("slot b", "fail"),
        ("slot a", "ok"),
        ("engine program", "fail"),
        ("worker_shutdown_timeout", "fail"),
        ("GPU 3 of slot a", "fail"),
        ("GPU 1 of slot b", "warn"),
        ("plan of a swap", "?"),
        ("nginx configuration", "ok"),
        ("access log", "warn"),
        ("probe through nginx", "ok"),
    ] {
        assert_eq!(mark(&run, what), expected, "{what}\n{run}");
    }
    assert!(run.summary.contains("correct slots.a.gpus"), "{run}");
    assert_eq!(look(&world)?, before, "something changed\n{run}");
    drop(stranger);
    Ok(())
}

/// A model that serves customers is not told to be stopped for an error of writing.
#[tokio::test]
async fn while_what_serves_is_not_known_nothing_is_said_of_who_may_serve() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let config = world.config(NEW);
    let (upstream, program) = ("  upstream: llm\n", "  command: no-such-engine --port {port}");
    assert!(config.contains(upstream), "{config}");
    let fetch = "fetch:\n  command: no-such-fetch {model}\nreplica:\n";
    let own = config.lines().find(|line| line.starts_with("  command: ")).unwrap_or_default();
    let config = config.replace(own, program).replacen("replica:\n", fetch, 1);
    let mistyped = config.replace(upstream, "  upstream: lmm\n");
    let run = Step::run(world.action("doctor", NEW, &[])?.with_config(&mistyped)?).await?;
    let run =
        run.refused(3, &["did you mean `llm`?", "not looked at: it is not known what serves"]);
    for (what, expected) in [
        ("upstream", "fail"),
        ("slot a", "?"),
        ("slot b", "ok"),
        ("engine program", "?"),
        ("fetch program", "?"),
    ] {
        assert_eq!(mark(&run, what), expected, "{what}\n{run}");
    }
    assert!(!run.stdout.contains("stop it"), "{run}");

    // Of two slots the port that serves is neither's, and somebody listens on one.
    let stranger = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let taken = stranger.local_addr()?.port();
    let wrong = config.replace(&format!("port: {a}"), &format!("port: {taken}"));
    let run = Step::run(world.action("doctor", NEW, &[])?.with_config(&wrong)?).await?;
    let run = run.refused(3, &[&format!("slot b, port {b}")]);
    for (what, expected) in [("upstream", "fail"), ("slot a", "?"), ("engine program", "?")] {
        assert_eq!(mark(&run, what), expected, "{what}\n{run}");
    }
    assert!(!run.stdout.contains("stop it"), "{run}");
    Ok(())
}

/// As where the port is mistyped, or Debian's default site answers: the connections of others are seen to go to the model.
#[tokio::test]
async fn a_probe_that_does_not_meet_the_model_is_told_also_where_other_requests_do() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let (good, closed) = (world.config(NEW), free_port()?);
    let probe = |port: u16| format!("http://127.0.0.1:{port}/v1/models");
    let wrong = good.replace(&probe(world.server.nginx_addr().port()), &probe(closed));
    assert_ne!(good, wrong);
    let run = Step::run(world.action("doctor", NEW, &[])?.with_config(&wrong)?).await?;
    let run = run.answered(&["does not show its model: Connection refused", "correct nginx.probe"]);
    assert_eq!(mark(&run, "probe through nginx"), "warn", "{run}");
    let said = "nginx.probe does not meet the model in slot a (Connection refused";
    Step::run(world.action("plan", NEW, &[])?.with_config(&wrong)?).await?.answered(&[said]);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_reached_leaves_its_part_open() -> Result<()> {
    let world = World::start().await?;
    let config = world.config(NEW);
    let port = free_port()?;
    let closed = config.replace(&world.server.ssh_port().to_string(), &port.to_string());
    let run = Step::run(world.action("doctor", NEW, &[])?.with_config(&closed)?).await?;
    let run = run.refused(3, &["Connection refused", "check that sshd listens", "not reached"]);
    assert_eq!(
        (mark(&run, "ssh port"), mark(&run, "ssh key")),
        ("fail".into(), "ok".into()),
        "{run}"
    );
    assert_eq!(mark(&run, "known hosts"), "warn", "{run}");

    // What the step lacks is said beside what comes of it.
    for (input, text) in
        [("ssh-key", "secrets.GPU_SSH_KEY"), ("known-hosts", "vars.GPU_KNOWN_HOSTS")]
    {
        let run = Step::run(world.action("doctor", NEW, &[(input, "")])?).await?;
        let run = run.refused(3, &[&format!("the input {input} is empty"), text]);
        assert_eq!(mark(&run, "inputs"), "fail", "{run}");
    }

    // Bad input alone is the user's fault, and the rest of the way is looked at all the same.
    let run = Step::run(world.action("doctor", NEW, &[("ssh-key", "no key")])?).await?;
    let run = run.refused(2, &["the ssh key is no private key", "not reached"]);
    assert_eq!(
        (mark(&run, "ssh port"), mark(&run, "ssh login")),
        ("ok".into(), "?".into()),
        "{run}"
    );
    Ok(())
}
