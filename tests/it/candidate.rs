//! Candidates that are not fit to serve: traffic never notices, the slot is free again, and the message helps.

use std::fs;

use anyhow::Result;
use testbed::load::Load;
use testbed::server::{ByHand, ServerSpec, default_upstream_file, listeners};

use crate::support::{NEW, OLD, Run, World, alive, engine, until};
use crate::swap::claims;

/// What a swap must not have touched.
struct Untouched {
    file: Vec<u8>,
    workers: Vec<u32>,
    load: Load,
}

impl Untouched {
    async fn begin(world: &World) -> Result<Self> {
        Ok(Self {
            file: fs::read(world.server.nginx_config())?,
            workers: world.server.nginx_workers()?,
            load: world.load().await?,
        })
    }

    /// nginx never heard of it, the old model serves, and only `strangers` have to do with slot b.
    async fn still(self, world: &World, strangers: &[u32]) -> Result<()> {
        assert_eq!(fs::read(world.server.nginx_config())?, self.file);
        assert_eq!(world.server.nginx_workers()?, self.workers, "nginx was reloaded");
        assert_eq!(world.serves().await?, OLD);
        assert!(claims(world)?.is_empty(), "{:?}", claims(world)?);
        let mark = "MODEL_SWAP_REPLICA=";
        let replicas: Vec<_> = world
            .server
            .leftovers()
            .into_iter()
            .filter(|line| {
                let pid = line.split(':').next().unwrap_or_default();
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                String::from_utf8_lossy(&environment).contains(mark)
            })
            .collect();
        assert!(replicas.is_empty(), "left: {replicas:?}");
        assert!(strangers.iter().all(|pid| alive(*pid)), "a stranger was killed");
        // A process that another test begins has our files for a moment.
        let b = world.server.slot_ports().1;
        let nobody_else =
            || listeners(b).is_ok_and(|pids| pids.iter().all(|pid| strangers.contains(pid)));
        until("nobody else listens", nobody_else).await?;
        self.load.stop().await.assert_clean();
        Ok(())
    }
}

/// Swaps with these engine flags: it fails in `step`, in these words, and after it a good swap succeeds.
async fn fails(mut world: World, flags: &str, step: &str, says: &[&str]) -> Result<Run> {
    let untouched = Untouched::begin(&world).await?;
    world.settings.flags = flags.to_owned();
    let run = failed(world.run("swap", NEW, &[]).await?, step, says);
    untouched.still(&world, &[]).await?;
    world.settings.flags = String::new();
    world.settings.ready = "2m".to_owned();
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    Ok(run)
}

#[track_caller]
fn failed(run: Run, step: &str, says: &[&str]) -> Run {
    let run = run.ended(4, "failed");
    assert!(run.stdout.contains(&format!("✗ {step} after ")), "not in {step}:\n{run}");
    for text in says {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
        assert!(run.summary.contains("## chat: failed"), "{run}");
    }
    assert!(run.stdout.contains("Qwen/Old serves from slot a"), "where traffic is: {run}");
    assert_eq!(run.output("slot"), "a");
    run
}

#[tokio::test]
async fn one_that_never_gets_ready() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.ready = "1s".to_owned();
    let says =
        ["was not ready within 1s", "raise ready.timeout", "Starting to load model Qwen/New"];
    fails(world, "--stub-load-time 10m", "await_ready b", &says).await?;
    Ok(())
}

#[tokio::test]
async fn one_that_serves_another_model() -> Result<()> {
    let world = World::start().await?;
    let says = ["it should serve", "Qwen/New", "and serves", "Qwen/Wrong", "Check {model}"];
    fails(world, "--stub-report-model Qwen/Wrong", "await_ready b", &says).await?;
    Ok(())
}

#[tokio::test]
async fn one_whose_port_a_stranger_listens_on_is_refused() -> Result<()> {
    let world = World::start().await?;
    let (_, b) = world.server.slot_ports();
    let stranger = stranger(&world, &[])?;
    until("the stranger listens", || listeners(b).is_ok_and(|list| !list.is_empty())).await?;
    let untouched = Untouched::begin(&world).await?;
    let said = format!("port {b} of slot b is taken by process {} (", stranger.pid);
    for command in ["plan", "swap"] {
        let run = world.run(command, NEW, &[]).await?;
        let run = run.refused(
            3,
            &[&said, "which is not recorded as a replica of this service", "hint: stop it"],
        );
        assert!(run.outputs.is_empty(), "{run}");
    }
    untouched.still(&world, &[stranger.pid]).await
}

/// The port was free when it was claimed, and is somebody else's by the time that the candidate has loaded.
#[tokio::test]
async fn one_whose_port_a_stranger_takes_while_it_loads() -> Result<()> {
    let mut world = World::start().await?;
    let (_, b) = world.server.slot_ports();
    let untouched = Untouched::begin(&world).await?;
    world.settings.flags = "--stub-load-time 3s".to_owned();
    let running = world.action("swap", NEW, &[])?.spawn()?;
    loads(&world).await?;
    let stranger = std::net::TcpListener::bind(("127.0.0.1", b))?;
    let run = failed(running.finish().await?, "await_ready b", &["ended before it was ready"]);
    assert!(run.stdout.contains("Address already in use"), "{run}");
    untouched.still(&world, &[std::process::id()]).await?;
    drop(stranger);
    Ok(())
}

/// With `SO_REUSEPORT` a stranger can come to the port after the candidate and get half of its requests.
#[tokio::test]
async fn one_that_a_stranger_shares_the_port_with() -> Result<()> {
    let mut world = World::start().await?;
    let (_, b) = world.server.slot_ports();
    let untouched = Untouched::begin(&world).await?;
    world.settings.flags = "--stub-reuse-port --stub-load-time 10m".to_owned();
    let running = world.action("swap", NEW, &[])?.spawn()?;
    loads(&world).await?;
    let stranger = stranger(&world, &["--stub-reuse-port"])?;
    let shared =
        format!("port {b} of slot b is shared: process {} listens there too", stranger.pid);
    let says = [shared.as_str(), "hint: stop that process"];
    failed(running.finish().await?, "await_ready b", &says);
    untouched.still(&world, &[stranger.pid]).await
}

#[tokio::test]
async fn a_program_that_is_not_there_is_refused_before_anything_is_done() -> Result<()> {
    let world = World::start().await?;
    let untouched = Untouched::begin(&world).await?;
    let program = engine(NEW, 1)?.swap_remove(0);
    let text = world.config(NEW).replace(&program, "vlllm");
    for command in ["plan", "swap"] {
        let run = world.action(command, NEW, &[])?.with_config(&text)?.spawn()?.finish().await?;
        let run = run.refused(3, &["vlllm"]);
        assert!(run.outputs.is_empty(), "{run}");
        assert!(run.summary.contains("## Nothing was done"), "{run}");
    }
    untouched.still(&world, &[]).await
}

/// CUDA numbers GPUs by speed unless told otherwise, and `nvidia-smi` and people by their place on the PCI bus.
#[tokio::test]
async fn one_sees_the_gpus_of_its_slot_and_no_others() -> Result<()> {
    const UUID: &str = "GPU-5fd20b11-8a0e-4b4e-9d43-6c0ce5b8d7a1";
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let gpus = |model: &str, gpus: [&str; 2]| {
        let slot = |text: String, port: u16, gpus: &str| {
            text.replace(
                &format!("port: {port}, gpus: []"),
                &format!("port: {port}, gpus: [{gpus}]"),
            )
        };
        slot(slot(world.config(model), a, gpus[0]), b, gpus[1])
    };
    let cuda = |port: u16| -> Result<Vec<String>> {
        let [pid] = listeners(port)?[..] else { anyhow::bail!("nobody alone on port {port}") };
        let environ = String::from_utf8(fs::read(format!("/proc/{pid}/environ"))?)?;
        let mut cuda: Vec<_> = environ
            .split('\0')
            .filter(|entry| entry.starts_with("CUDA_"))
            .map(str::to_owned)
            .collect();
        cuda.sort();
        Ok(cuda)
    };
    let by_index = world.action("swap", NEW, &[])?.with_config(&gpus(NEW, ["0", "3, 1"]))?;
    let run = by_index.spawn()?.finish().await?.ended(0, "promoted");
    assert!(run.stdout.contains(&format!("claim port {b} and GPU 3,1")), "{run}");
    assert_eq!(cuda(b)?, ["CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=3,1"]);

    let config = gpus("Qwen/Next", [UUID, "GPU-8c5b1f7e-0000-0000-0000-000000000000"]);
    let by_uuid = world.action("swap", "Qwen/Next", &[])?.with_config(&config)?;
    by_uuid.spawn()?.finish().await?.ended(0, "promoted");
    assert_eq!(cuda(a)?, [format!("CUDA_VISIBLE_DEVICES={UUID}")]);
    Ok(())
}

/// Waits until the candidate runs, which then loads for a while.
async fn loads(world: &World) -> Result<()> {
    let candidate = || {
        let lines = world.server.leftovers();
        lines.iter().any(|line| line.contains("stub-engine serve Qwen/New"))
    };
    until("the candidate loads", candidate).await
}

/// Somebody else's engine on slot b's port.
fn stranger(world: &World, flags: &[&str]) -> Result<ByHand> {
    let mut argv = engine("Stranger/Model", world.server.slot_ports().1)?;
    argv.extend(flags.iter().map(ToString::to_string));
    world.server.start_by_hand(&argv, &[])
}

/// What listens on 127.0.0.1 alone answers here, and nginx does not reach it by the address that its file names.
#[tokio::test]
async fn where_nginx_does_not_reach_it() -> Result<()> {
    let elsewhere =
        |ports| default_upstream_file(ports).replace("server 127.0.0.1", "server 127.0.0.2");
    let spec = ServerSpec { upstream_file: Box::new(elsewhere), ..ServerSpec::default() };
    let world = World::started_by(spec, |server, mut argv| {
        argv.iter_mut()
            .filter(|word| *word == "127.0.0.1")
            .for_each(|word| "0.0.0.0".clone_into(word));
        server.start_by_hand(&argv, &[])
    })
    .await?;
    let untouched = Untouched::begin(&world).await?;
    let (_, b) = world.server.slot_ports();
    let says = [
        "nginx would not reach the replica in slot b",
        &format!("by `server 127.0.0.2:{b}`: nobody listens there"),
        "--host in replica.command",
    ];
    failed(world.run("swap", NEW, &[]).await?, "cut_over a -> b", &says);
    untouched.still(&world, &[]).await
}
