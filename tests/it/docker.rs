//! Replicas in containers, with a real Docker Engine: the engine in them is the stub.

use std::fs;
use std::rc::Rc;

use anyhow::{Context, Result};
use testbed::built;
use testbed::docker::{Engine, said};
use testbed::server::{ByHand, GpuServer, ServerSpec};
use testbed::service::Container;

use crate::commands::Terminal;
use crate::init::init;
use crate::runner::agent;
use crate::step::{Step, send};
use crate::support::{NEW, OLD, World, alive, until};

/// A world whose replicas are containers; dropping it removes them before the server's processes are ended.
struct Docked {
    containers: Containers,
    world: World,
    engine: Rc<Engine>,
}

/// What was started on a server.
struct Containers {
    engine: Rc<Engine>,
    label: String,
}

impl Docked {
    /// A world with an old model that `start` has started.
    async fn with(
        start: impl FnOnce(&Engine, &GpuServer, (&str, Vec<String>)) -> Result<ByHand>,
    ) -> Result<Self> {
        let engine = Rc::new(Engine::empty()?);
        let image = engine.image_of(&built::program("stub-engine")?, &["serve"])?;
        // Another program is called docker elsewhere on some machines.
        let path = "/usr/bin:/bin:/usr/sbin:/sbin".to_owned();
        let session_env =
            vec![("DOCKER_HOST".to_owned(), engine.host()), ("PATH".to_owned(), path)];
        let spec = ServerSpec { session_env, ..ServerSpec::default() };
        let mut world =
            World::started_by(spec, |server, argv| start(&engine, server, (&image, argv))).await?;
        let (mark, scratch) = world.server.mark();
        let label = format!("{mark}={scratch}");
        world.settings.container = Some(Container { image, label: label.clone() });
        world.settings.retain = "0s".to_owned();
        let containers = Containers { engine: engine.clone(), label };
        Ok(Self { containers, world, engine })
    }

    /// A world with an old model that somebody started by hand.
    async fn start() -> Result<Self> {
        Self::with(|_, server, (_, argv)| server.start_by_hand(&argv, &[])).await
    }

    /// What docker says of a container, in a template of its own.
    fn inspect(&self, container: &str, template: &str) -> Result<String> {
        let mut inspect = self.engine.docker(["inspect", "--format", template, container]);
        Ok(said(&mut inspect)?.trim().to_owned())
    }

    /// Names of the containers, running or not, newest first.
    fn names(&self) -> Result<Vec<String>> {
        self.containers.list("{{.Names}}")
    }
}

impl Containers {
    fn list(&self, template: &str) -> Result<Vec<String>> {
        let filter = format!("label={}", self.label);
        let mut list =
            self.engine.docker(["ps", "--all", "--filter", &filter, "--format", template]);
        Ok(said(&mut list)?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for id in self.list("{{.ID}}").unwrap_or_default() {
            let _gone = said(&mut self.engine.docker(["rm", "--force", &id]));
        }
    }
}

/// The log of a swap's replica, as it was kept.
fn kept_log(world: &World, swap: &str) -> Result<String> {
    let path = world.server.state_dir().join("chat/swaps").join(swap).join("replica.log");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[tokio::test]
async fn a_container_serves_after_a_process_and_another_after_it_and_each_comes_back() -> Result<()>
{
    const CANARY: &str = "canary-4711-docker";
    let mut docked = Docked::start().await?;
    docked.world.settings.env = format!("STUB_SECRET: {CANARY}");
    let load = docked.world.load().await?;
    let retired = [("wait", "retired")];

    let first = docked.world.run("swap", NEW, &retired).await?.ended(0, "promoted");
    assert!(!alive(docked.world.old.pid), "{first}");
    assert_eq!(docked.world.serves().await?, NEW);
    assert_eq!(docked.names()?, ["model-swap-chat.b"]);
    let name = "model-swap-chat.b";
    assert_eq!(docked.inspect(name, "{{.HostConfig.RestartPolicy.Name}}")?, "unless-stopped");
    let (a, b) = docked.world.server.slot_ports();
    let published = docked.inspect(name, "{{json .HostConfig.PortBindings}}")?;
    assert_eq!(
        published,
        format!("{{\"{b}/tcp\":[{{\"HostIp\":\"127.0.0.1\",\"HostPort\":\"{b}\"}}]}}")
    );
    assert!(!docked.inspect(name, "{{json .Args}}")?.contains(CANARY));
    assert!(docked.inspect(name, "{{json .Config.Env}}")?.contains(CANARY));
    assert!(!docked.world.told().contains(CANARY));
    docked.world.run("swap", NEW, &[]).await?.ended(0, "unchanged");

    // Another container beside it, and back to the first while that is warm.
    docked.world.settings.retain = "10m".to_owned();
    let second = docked.world.run("swap", "Qwen/Newer", &[]).await?.ended(0, "promoted");
    assert_eq!(docked.world.serves().await?, "Qwen/Newer");
    let main = docked.inspect(name, "{{.State.Pid}}")?;
    docked.world.settings.retain = "0s".to_owned();
    let back = docked.world.run("rollback", NEW, &retired).await?.ended(0, "rolled-back");
    assert_eq!(docked.world.serves().await?, NEW);
    assert_eq!(docked.inspect(name, "{{.State.Pid}}")?, main, "it was warm\n{back}");
    assert_eq!(docked.names()?, [name], "the other is gone\n{back}");
    assert!(kept_log(&docked.world, second.output("swap-id"))?.contains("Qwen/Newer"));

    // And once it is gone, it is started again from what the server keeps.
    docked.world.run("swap", "Qwen/Newest", &retired).await?.ended(0, "promoted");
    assert_eq!(docked.names()?, ["model-swap-chat.a"], "port {a}");
    let again = docked.world.run("rollback", NEW, &retired).await?.ended(0, "rolled-back");
    assert_eq!(docked.world.serves().await?, NEW);
    assert_eq!(again.output("revision"), first.output("revision"));
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_container_that_dies_while_it_loads_is_removed_and_what_it_wrote_is_kept() -> Result<()> {
    let mut docked = Docked::start().await?;
    docked.world.settings.flags = "--stub-load-time 60s --stub-die-after 500ms".to_owned();
    let load = docked.world.load().await?;
    let run = docked.world.run("swap", NEW, &[]).await?.ended(4, "failed");
    assert!(run.stdout.contains("ended before it was ready"), "{run}");
    assert!(run.stdout.contains("CUDA out of memory"), "the last lines of its log\n{run}");
    assert!(docked.names()?.is_empty(), "{:?}", docked.names()?);
    assert!(kept_log(&docked.world, run.output("swap-id"))?.contains("CUDA out of memory"));
    assert_eq!(docked.world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// An old model in a container, as Compose starts one.
fn composed(
    engine: &Engine,
    server: &GpuServer,
    (image, argv): (&str, Vec<String>),
) -> Result<ByHand> {
    let (mark, scratch) = server.mark();
    let (a, _) = server.slot_ports();
    let mut run = engine.docker(["run", "--detach", "--restart", "always"]);
    run.args(["--label", "com.docker.compose.project=llm", "--name", "llm_vllm_1"]);
    run.arg(format!("--label={mark}={scratch}"));
    // Compose publishes on every address, and inside the port is another.
    run.arg(format!("--publish={a}:8000")).arg(image);
    let words = argv.iter().skip(2).map(String::as_str);
    let port = a.to_string();
    run.args(words.map(|word| match word {
        "127.0.0.1" => "0.0.0.0",
        word if word == port => "8000",
        word => word,
    }));
    said(&mut run)?;
    let pid = said(&mut engine.docker(["inspect", "-f", "{{.State.Pid}}", "llm_vllm_1"]))?;
    Ok(ByHand { pid: pid.trim().parse()?, innocent: std::process::id(), log: "/none".into() })
}

/// The next model is a container of the same image, although nobody has said so.
#[tokio::test]
async fn init_finds_the_image_of_a_model_in_a_container() -> Result<()> {
    let docked = Docked::with(composed).await?;
    let load = docked.world.load().await?;
    let terminal = Terminal::at(&docked.world)?;
    let (code, text) = init(&docked.world, &terminal, &["--config", "-"]).await?;
    let image = docked.inspect("llm_vllm_1", "{{.Config.Image}}")?;
    for told in ["runtime: docker", "Docker's container", &format!("image: {image}\n")] {
        assert!(text.contains(told), "no {told:?} in {text}");
    }
    assert!(
        code == Some(0) && text.contains(r#"command: ["{model}", "--host", "0.0.0.0""#),
        "{text}"
    );
    // The testbed's own label, by which it knows what to remove.
    let label = format!("  docker_options: [--label={}]\nnginx:", docked.containers.label);
    let text = text.replace(OLD, NEW).replacen("\nnginx:", &label, 1);
    let action = |command| docked.world.action(command, NEW, &[])?.with_config(&text);
    Step::run(action("doctor")?).await?.answered(&["ready to swap"]);
    Step::run(action("swap")?).await?.ended(0, "promoted");
    assert_eq!(docked.world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_container_of_somebody_elses_is_stopped_by_docker_and_can_be_started_again() -> Result<()>
{
    let docked = Docked::with(composed).await?;
    let load = docked.world.load().await?;
    let retired = [("wait", "retired")];
    let swap = docked.world.run("swap", NEW, &retired).await?.ended(0, "promoted");
    assert_eq!(docked.world.serves().await?, NEW);
    let state = "{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(docked.inspect("llm_vllm_1", state)?, "exited unless-stopped", "{swap}");

    let back = docked.world.run("rollback", NEW, &retired).await?.ended(0, "rolled-back");
    assert_eq!(docked.world.serves().await?, OLD);
    assert_eq!(docked.inspect("llm_vllm_1", state)?, "running unless-stopped", "{back}");
    assert_eq!(docked.names()?, ["llm_vllm_1"]);
    assert_eq!(back.output("revision"), swap.output("previous-revision"));
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_container_that_outlived_its_record_is_found_and_removed() -> Result<()> {
    let mut docked = Docked::start().await?;
    docked.world.settings.flags = "--stub-load-time 10m".to_owned();
    let load = docked.world.load().await?;
    let mut step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    send("-KILL", agent(&docked.world)?.context("no agent")?)?;
    step.finish().await?.refused(3, &["is gone"]);
    assert_eq!(docked.names()?, ["model-swap-chat.b"]);
    let container = docked.inspect("model-swap-chat.b", "{{.Id}}")?;

    docked.world.settings.flags = String::new();
    let run = docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_ne!(docked.inspect("model-swap-chat.b", "{{.Id}}")?, container, "{run}");
    until("the new one serves", || docked.names().is_ok_and(|names| names.len() == 1)).await?;
    assert_eq!(docked.world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}
