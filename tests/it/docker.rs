//! What only replicas in containers have, with a real Docker Engine: the engine in them is the stub.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::built;
use testbed::docker::said;
use testbed::load::{Load, LoadSpec};
use testbed::server::{Ports, ServerSpec, default_upstream_file, free_port};
use testbed::service::{Site, until_serves};

use crate::commands::Terminal;
use crate::doctor::{NVIDIA_SMI, mark};
use crate::init::init;
use crate::step::{Step, send, until};
use crate::support::docked::{AWAY, CLIENT, COMPOSED, Docked};
use crate::support::scene::Scene;
use crate::support::{NAME, NEW, OLD, Run, World, alive};

/// The container of slot b.
const OURS: &str = "model-swap-chat.b";

/// Docker's client, where to show a whole log takes longer than anybody waits.
const LENGTHY: &str = "#!/bin/sh\ncase \"$*\" in *--tail*) ;; logs*) exec sleep 600 ;; esac\nexec /usr/bin/docker \"$@\"\n";

/// The last of many lines.
const LAST_LINE: &str = "request 399999 of a hundred bytes, which are about as many as vLLM says of one: POST /v1/completions 200 OK";

/// The log of a swap's replica, as it was kept.
fn kept_log(world: &World, swap: &str) -> Result<String> {
    let path = world.server.state_dir().join("chat/swaps").join(swap).join("replica.log");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[tokio::test]
async fn a_container_follows_a_process_and_its_values_and_ports_are_nobody_elses() -> Result<()> {
    const CANARY: &str = "canary-4711-docker";
    let mut docked = Docked::start().await?;
    docked.world.settings.retain = "0s".to_owned();
    docked.world.settings.env = format!("STUB_SECRET: {CANARY}");
    let load = docked.world.load().await?;
    let retired = [("wait", "retired")];
    let first = docked.world.run("swap", NEW, &retired).await?.ended(0, "promoted");
    assert!(!alive(docked.world.old.pid), "{first}");
    assert_eq!(docked.world.serves().await?, NEW);
    assert_eq!(docked.names()?, [OURS]);
    assert_eq!(docked.inspect(OURS, "{{.HostConfig.RestartPolicy.Name}}")?, "unless-stopped");
    let (_, b) = docked.world.server.slot_ports();
    let published = docked.inspect(OURS, "{{json .HostConfig.PortBindings}}")?;
    assert_eq!(
        published,
        format!("{{\"{b}/tcp\":[{{\"HostIp\":\"127.0.0.1\",\"HostPort\":\"{b}\"}}]}}")
    );
    assert_eq!(docked.inspect(OURS, "{{.Config.Labels.team}}")?, "llm", "docker_options");
    assert!(!docked.inspect(OURS, "{{json .Args}}")?.contains(CANARY));
    assert!(docked.inspect(OURS, "{{json .Config.Env}}")?.contains(CANARY));
    assert!(!docked.world.told().contains(CANARY));

    // The end of its output is kept when it is removed, as if it had served for weeks.
    let lines = (0..400_000).map(|number| LAST_LINE.replace("399999", &number.to_string()));
    docked.has_written(OURS, lines)?;
    docked.world.server.put_program("docker", LENGTHY)?;
    docked.world.run("swap", "Qwen/Newer", &retired).await?.ended(0, "promoted");
    assert_eq!(docked.names()?, ["model-swap-chat.a"]);
    let kept = kept_log(&docked.world, first.output("swap-id"))?;
    assert!(kept.len() <= 16 << 20, "{} bytes", kept.len());
    assert!(
        !kept.contains(NEW) && kept.contains(LAST_LINE),
        "{}",
        kept.lines().last().unwrap_or_default()
    );
    // Although that was written last.
    let logs = docked.world.run("logs", NEW, &[]).await?;
    logs.answered(&["Starting to load model Qwen/Newer"]);
    load.stop().await.assert_clean();
    Ok(())
}

/// Of containers that are gone, the last ten logs are left, and no container.
#[tokio::test]
async fn of_containers_that_are_gone_the_last_logs_stay() -> Result<()> {
    let mut docked = Docked::start().await?;
    docked.world.settings.retain = "0s".to_owned();
    let swap = async |docked: &Docked, model: &str| -> Result<String> {
        let run = docked.world.run("swap", model, &[("wait", "retired")]).await?;
        let id = run.ended(0, "promoted").output("swap-id").to_owned();
        let at_work =
            || docked.world.server.leftovers().iter().any(|line| line.contains("agent run"));
        until("its agent clears up and ends", || Ok((!at_work()).then_some(()))).await?;
        Ok(id)
    };
    let first = swap(&docked, NEW).await?;
    let second = swap(&docked, "Qwen/Newer").await?;
    assert!(kept_log(&docked.world, &first)?.contains(NEW));
    let told = stories_between(&docked.world, &first, &second)?;

    let third = swap(&docked, "Qwen/Newest").await?;
    let swaps = [&[first], told.as_slice(), &[second, third]].concat();
    let with_log: Vec<_> = swaps.iter().filter(|id| kept_log(&docked.world, id).is_ok()).collect();
    // Neither the oldest two, nor the one whose container runs: Docker has its log.
    assert_eq!(with_log, swaps[2..12].iter().collect::<Vec<_>>());
    assert_eq!(docked.names()?, [OURS]);
    Ok(())
}

/// Ten swaps more, as if each had come between two others, oldest first.
fn stories_between(world: &World, first: &str, second: &str) -> Result<Vec<String>> {
    let root = world.server.state_dir().join("chat");
    let folder = |id: &str| root.join("swaps").join(id);
    let begun = fs::metadata(folder(first).join("spec.json"))?.modified()?;
    assert!(begun < fs::metadata(folder(second).join("spec.json"))?.modified()?);
    let text = fs::read_to_string(root.join("state.json"))?;
    let mut state: serde_json::Value = serde_json::from_str(&text)?;
    let history = state["history"].as_array_mut().context("a history")?;
    let mut told = Vec::new();
    for number in 0..10_u64 {
        let id = format!("s-told-{number}");
        fs::create_dir(folder(&id))?;
        for file in fs::read_dir(folder(first))?.flatten() {
            fs::copy(file.path(), folder(&id).join(file.file_name()))?;
        }
        let spec = fs::File::open(folder(&id).join("spec.json"))?;
        spec.set_modified(begun + Duration::from_millis(number + 1))?;
        let mut past = history[0].clone();
        past["swap"] = id.as_str().into();
        history.insert(told.len() + 1, past);
        told.push(id);
    }
    fs::write(root.join("state.json"), state.to_string())?;
    Ok(told)
}

/// What nginx in a container reads: its own file, and a folder of the server's.
pub(crate) const EDGE: &str = "daemon off; worker_processes 2; pid /run/nginx.pid; error_log /run/error.log notice;
events {}
http { access_log off; client_body_temp_path /run/body; proxy_temp_path /run/proxy; fastcgi_temp_path /run/fastcgi;
    uwsgi_temp_path /run/uwsgi; scgi_temp_path /run/scgi; include /etc/nginx/conf.d/*.conf; }
";

/// Its folder is mounted from the server, and only `docker exec` reaches it.
#[tokio::test]
async fn an_nginx_in_a_container_is_asked_and_reloaded_there() -> Result<()> {
    let mut docked = Docked::start().await?;
    docked.world.settings.image = None;
    let edge = docked.world.server.scratch().join("edge");
    fs::create_dir_all(edge.join("conf.d"))?;
    fs::write(edge.join("nginx.conf"), EDGE)?;
    let file = edge.join("conf.d/llm.conf");
    let listen = free_port()?;
    let before = default_upstream_file(Ports { nginx: listen, ..docked.world.server.ports() });
    fs::write(&file, &before)?;
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].map(Path::new);
    let program = program.into_iter().find(|path| path.is_file()).context("no nginx")?;
    let image = docked.engine.image_of(program, &[])?;
    let mut run = docked.engine.docker(["run", "--detach", "--name=edge", "--network=host"]);
    run.args([
        "--tmpfs=/run",
        "--volume=/etc/passwd:/etc/passwd:ro",
        "--volume=/etc/group:/etc/group:ro",
    ]);
    said(run.arg(format!("--volume={}:/etc/nginx", edge.display())).arg(image))?;
    let nginx = ([127, 0, 0, 1], listen).into();
    until_serves(nginx, OLD).await?;

    let command = ["docker", "exec", "edge", "nginx"].map(str::to_owned).to_vec();
    let site = Site {
        nginx_config: file.clone(),
        nginx_command: Some(command),
        probe: format!("http://{nginx}/v1/models"),
        ..Site::of(&docked.world.server)?
    };
    let config = docked.world.settings.config_on(&site, NEW)?;
    let ask = async |command: &str| {
        Step::run(docked.world.action(command, NEW, &[])?.with_config(&config)?).await
    };
    // What it calls /etc/nginx is another folder here.
    let terminal = Terminal::at(&docked.world)?;
    let look = ["--config", "-", "--nginx", "docker exec edge nginx"];
    let (_, text) = init(&docked.world, &terminal, &look).await?;
    for told in [
        format!("config: {}\n", file.display()),
        r#"command: ["docker", "exec", "edge", "nginx"]"#.to_owned(),
        format!("http://{nginx}/v1/models"),
    ] {
        assert!(text.contains(&told), "no {told:?} in {text}");
    }
    let load = Load::start(LoadSpec::mixed(nginx, NAME));
    load.wait_until(|tally| tally.total() > 20).await?;
    ask("swap").await?.ended(0, "promoted");
    until_serves(nginx, NEW).await?;
    ask("rollback").await?.ended(0, "rolled-back");
    until_serves(nginx, OLD).await?;
    load.stop().await.assert_clean();
    assert_eq!(fs::read_to_string(&file)?, before);
    // The machine's own one was not meant.
    assert_eq!(docked.world.serves().await?, OLD);
    Ok(())
}

/// The next model is a container of the same image, although nobody has said so.
#[tokio::test]
async fn init_finds_the_image_of_a_model_in_a_container() -> Result<()> {
    let docked = Docked::composed(&[]).await?;
    let load = docked.world.load().await?;
    let terminal = Terminal::at(&docked.world)?;
    let (code, text) = init(&docked.world, &terminal, &["--config", "-"]).await?;
    let image = docked.inspect(COMPOSED, "{{.Config.Image}}")?;
    for told in ["runtime: docker", "Docker's container", &format!("image: {image}\n")] {
        assert!(text.contains(told), "no {told:?} in {text}");
    }
    assert!(
        code == Some(0) && text.contains(r#"command: ["{model}", "--host", "0.0.0.0""#),
        "{text}"
    );
    let text = text.replace(OLD, NEW);
    let action = |command| docked.world.action(command, NEW, &[])?.with_config(&text);
    Step::run(action("doctor")?).await?.answered(&["ready to swap"]);
    Step::run(action("swap")?).await?.ended(0, "promoted");
    assert_eq!(docked.world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn doctor_looks_at_docker_and_says_what_becomes_of_a_container_of_composes() -> Result<()> {
    let docked = Docked::composed(&[]).await?;
    docked.world.server.put_program("nvidia-smi", NVIDIA_SMI)?;
    let config = docked.world.config(NEW);
    let config = config.replacen("gpus: []", "gpus: [0]", 1).replace("gpus: []", "gpus: [1]");
    let ask =
        async || Step::run(docked.world.action("doctor", NEW, &[])?.with_config(&config)?).await;
    let run = ask().await?.answered(&[
        "Engine 2",
        "stub-engine:here is here, sha256:",
        "llm_vllm_1, of Compose's project llm: once it is drained docker stops it",
        "take the service out of the Compose file",
        "install the NVIDIA Container Toolkit",
    ]);
    for (what, expected) in [
        ("Docker", "ok"),
        ("image", "ok"),
        ("GPUs in containers", "warn"),
        ("container that serves", "warn"),
        ("runtime", "ok"),
        ("plan of a swap", "ok"),
    ] {
        assert_eq!(mark(&run, what), expected, "{what}\n{run}");
    }

    // What a container sees is judged by what of the server is mounted there.
    let weights = docked.world.server.scratch().join("models");
    fs::create_dir_all(weights.join("qwen"))?;
    let mounted = |inside: &str| {
        let label = "--label=team=llm";
        let options = format!("{label}, \"--volume={}:{inside}:ro\"", weights.display());
        config.replace(label, &options)
    };
    let row = async |config: &str, model: &str| {
        let inputs = [("model", model)];
        Step::run(docked.world.action("doctor", NEW, &inputs)?.with_config(config)?).await
    };
    let run = row(&mounted("/models"), "/models/qwen").await?;
    let there = weights.join("qwen").display().to_string();
    run.answered(&[&format!("{there} is there")]);
    let run = row(&mounted("/models"), "/models/absent").await?;
    run.refused(3, &[&format!("there is no {}/absent", weights.display())]);
    let run = row(&mounted("/root/.cache/huggingface"), NEW).await?;
    run.refused(3, &["may not bring it: it is mounted read-only", "bring the weights there"]);
    let run = row(&mounted("/elsewhere"), "/models/qwen").await?;
    let run = run.answered(&["nothing is mounted where its container looks for /models/qwen"]);
    assert_eq!(mark(&run, "model on disk"), "warn", "{run}");

    docked.world.server.put_program("docker", AWAY)?;
    let run = ask().await?.refused(3, &["start the Docker Engine: systemctl start docker"]);
    assert_eq!((mark(&run, "Docker"), mark(&run, "image")), ("fail".into(), "?".into()), "{run}");
    Ok(())
}

/// After a boot it may come up late, and starts what was kept warm.
#[tokio::test]
async fn what_an_agent_has_left_waits_for_the_engine() -> Result<()> {
    let mut docked = Docked::start().await?;
    docked.world.settings.flags = "--stub-load-time 600s".to_owned();
    let mut step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    step.kill()?;
    docked.kill_agent().await?;
    docked.world.server.put_program("docker", AWAY)?;
    let said = ["start the Docker Engine", "it is brought to its end once Docker answers"];
    for command in ["repair", "abort"] {
        Step::run(docked.world.action(command, NEW, &[])?).await?.refused(3, &said);
    }
    docked.world.server.put_program("docker", CLIENT)?;
    Step::run(docked.world.action("abort", NEW, &[])?).await?.ended(0, "aborted");
    assert!(docked.names()?.is_empty());

    docked.world.settings.flags = String::new();
    docked.world.settings.retain = "1h".to_owned();
    docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    docked.world.run("swap", "Qwen/Newer", &[]).await?.ended(0, "promoted");
    docked.kill_agent().await?;
    docked.world.server.put_program("docker", AWAY)?;
    let state = docked.world.server.state_dir().join("chat/state.json");
    let mut known: serde_json::Value = serde_json::from_str(&fs::read_to_string(&state)?)?;
    known["retained"]["until"] = known["retained"]["since"].clone();
    fs::write(&state, known.to_string())?;
    Step::run(docked.world.action("repair", NEW, &[])?).await?.ended(0, "unchanged");
    assert_eq!(docked.names()?.len(), 2);
    docked.world.server.put_program("docker", CLIENT)?;
    until("what was kept warm is gone", || {
        Ok((docked.names()? == ["model-swap-chat.a"]).then_some(()))
    })
    .await?;
    docked.world.until_serves("Qwen/Newer").await
}

/// An upgrade of its packages starts the Engine anew, and the agent that lives has a new model loading there.
#[tokio::test]
async fn a_swap_whose_engine_goes_away_while_it_loads_waits_for_it_and_has_failed() -> Result<()> {
    let mut docked = Docked::start().await?;
    docked.world.settings.flags = "--stub-load-time 600s".to_owned();
    let load = docked.world.load().await?;
    let mut step = Step::start(docked.world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    docked.engine.goes_away()?;
    step.says("waiting for what supervises it: docker cannot reach its Engine").await?;
    docked.engine.returns()?;
    let run = step.finish().await?.ended(4, "failed");
    assert!(run.stdout.contains("ended before it was ready"), "{run}");
    assert!(docked.names()?.is_empty(), "{run}");
    load.stop().await.assert_clean();
    docked.world.settings.flags = String::new();
    docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    docked.world.until_serves(NEW).await
}

/// A configuration whose containers have more options.
fn with_options(docked: &Docked, options: &str) -> String {
    let more = format!("docker_options: [--label=team=llm, {options}]");
    docked.world.config(NEW).replace("docker_options: [--label=team=llm]", &more)
}

/// Runs, and never listens.
const MUTE: &str = "#include <signal.h>\n#include <unistd.h>\nint main(void) { signal(SIGTERM, _exit); for (;;) pause(); }\n";

/// What runs and does not listen has nothing in flight: it goes when its slot is needed.
#[tokio::test]
async fn a_warm_model_that_does_not_come_up_again_makes_room_for_the_next() -> Result<()> {
    let mut docked = Docked::start().await?;
    let program = built::program("stub-engine")?;
    let programs = docked.world.server.scratch().join("programs");
    let (own, inside) = (programs.join("stub-engine"), program.parent().context("a folder")?);
    fs::create_dir(&programs)?;
    fs::copy(&program, &own)?;
    let config =
        with_options(&docked, &format!("\"--volume={}:{}\"", programs.display(), inside.display()));
    let load = docked.world.load().await?;
    let swap = docked.world.action("swap", NEW, &[])?.with_config(&config)?;
    Step::run(swap).await?.ended(0, "promoted");
    docked.world.run("swap", "Qwen/Newer", &[]).await?.ended(0, "promoted");
    docked.world.until_serves("Qwen/Newer").await?;
    // Of the second swap: the first one says so of the other slot.
    let (_, b) = docked.world.server.slot_ports();
    docked.world.until_told(&format!("nothing is in flight on port {b}")).await?;
    let source = programs.join("mute.c");
    fs::write(&source, MUTE)?;
    fs::remove_file(&own)?;
    said(Command::new("cc").arg("-o").args([&own, &source]))?;
    let process = || docked.inspect(OURS, "{{.State.Pid}}");
    let before = process()?;
    send("-KILL", before.parse()?)?;
    until("the Engine starts it again", || {
        Ok((!["0", before.as_str()].contains(&process()?.as_str())).then_some(()))
    })
    .await?;
    docked.world.settings.drain = "{ timeout: 2s }".to_owned();
    docked.world.run("swap", "Qwen/Newest", &[]).await?.ended(0, "promoted");
    docked.world.until_serves("Qwen/Newest").await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_container_whose_output_docker_does_not_keep_is_removed_all_the_same() -> Result<()> {
    // When it starts itself, the Engine starts such a container although somebody has stopped it.
    let mut docked = Docked::made(&["--restart", "on-failure"], &[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    // What brings its weights is told where it looks for them, as its image says, and its user is a number inside.
    docked.world.settings.fetch = "fetch: { command: env }".to_owned();
    let docker = |args: &[&str]| said(&mut docked.engine.docker(args));
    let made = docker(&["create", docked.world.settings.image.as_ref().context("an image")?])?;
    docker(&["commit", "--change=ENV HF_HOME=/hf", made.trim(), "stub-engine:cache"])?;
    docker(&["rm", made.trim()])?;
    docked.world.settings.image = Some("stub-engine:cache".to_owned());
    let options = "--log-driver=none, \"--volume=/tmp:/hf:ro\"";
    let config = with_options(&docked, options).replace("replica:\n", "replica:\n  user: daemon\n");
    let swap = docked.world.action("swap", NEW, &[("wait", "retired")])?.with_config(&config)?;
    let swap = Step::run(swap).await?.ended(0, "promoted");
    let folder = docked.world.server.state_dir().join("chat/swaps").join(swap.output("swap-id"));
    let told = fs::read_to_string(folder.join("fetch.log"))?;
    assert!(told.lines().any(|line| line == "HF_HUB_CACHE=/tmp/hub"), "{told}");
    assert_eq!(docked.inspect(OURS, "{{.Config.User}}")?, "1:1");
    let policy =
        docked.inspect(COMPOSED, "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}")?;
    assert_eq!(policy, "false unless-stopped");
    docked.world.settings.fetch = String::new();
    let next = docked.world.run("swap", "Qwen/Newer", &[("wait", "retired")]).await?;
    assert!(next.ended(0, "promoted").stdout.contains("what it wrote is lost: "));
    assert_eq!(docked.names()?, ["model-swap-chat.a", COMPOSED]);
    Ok(())
}

/// The Engine would start it at the next boot, beside what serves then.
#[tokio::test]
async fn a_warm_container_that_somebody_has_stopped_is_put_away_for_boots_as_well() -> Result<()> {
    let docked = Docked::composed(&[]).await?;
    docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    said(&mut docked.engine.docker(["stop", "--time=5", COMPOSED]))?;
    docked.world.run("swap", "Qwen/Newer", &[]).await?.ended(0, "promoted");
    let policy =
        docked.inspect(COMPOSED, "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}")?;
    assert_eq!(policy, "false no");
    Ok(())
}

/// As where users are a directory's: sudo names its caller, and no file here knows him.
#[tokio::test]
async fn whom_no_file_knows_may_swap_containers_and_brings_their_weights() -> Result<()> {
    let caller = [("SUDO_USER", "ldap.user"), ("SUDO_UID", "4711"), ("SUDO_GID", "4712")];
    let session_env = caller.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let spec = ServerSpec { session_env, ..ServerSpec::default() };
    let mut docked = Docked::made_on(spec, &[], &[]).await?;
    docked.world.settings.fetch = "fetch: { command: id -u, folder: /tmp }".to_owned();
    let doctor = Step::run(docked.world.action("doctor", NEW, &[])?).await?;
    doctor.answered(&[
        "to run as ldap.user",
        "ldap.user, as whom `fetch` runs, may",
        "ready to swap",
    ]);
    let state = docked.world.server.state_dir().join("chat/swaps");
    let brought_as =
        |run: &Run| fs::read_to_string(state.join(run.output("swap-id")).join("fetch.log"));
    // Never as root because the container is: its program and variables are not only root's to say.
    let run = docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(brought_as(&run)?, "4711\n");

    let names = "#!/bin/sh\n[ \"$2\" = ldap.user ] && echo 'ldap.user:*:4242:4343::/tmp:/bin/sh'\n";
    docked.world.server.put_program("getent", names)?;
    let config = docked.world.config("Qwen/Newer");
    let config = config.replace("replica:\n", "replica:\n  user: ldap.user\n");
    let action = docked.world.action("swap", "Qwen/Newer", &[])?.with_config(&config)?;
    let run = Step::run(action).await?.ended(0, "promoted");
    assert_eq!(brought_as(&run)?, "4242\n");
    assert_eq!(docked.inspect("model-swap-chat.a", "{{.Config.User}}")?, "4242:4343");

    // A scratch folder is nobody else's.
    let weights = docked.world.server.scratch().join("weights");
    let config = config.replace("folder: /tmp", &format!("folder: {}", weights.display()));
    let doctor = Step::run(docked.world.action("doctor", NEW, &[])?.with_config(&config)?).await?;
    doctor.refused(
        3,
        &[
            "ldap.user, as whom `fetch` runs, may not write to",
            "let ldap.user write there",
            "replica.user",
        ],
    );
    Ok(())
}

/// While it is warm: once it has ended it is gone.
#[tokio::test]
async fn a_container_that_docker_removes_when_it_ends_has_a_way_back() -> Result<()> {
    let docked = Docked::made(&["--rm"], &[]).await?;
    let load = docked.world.load().await?;
    docked.world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    docked.world.run("rollback", NEW, &[("wait", "retired")]).await?.ended(0, "rolled-back");
    docked.world.until_serves(OLD).await?;
    assert_eq!(docked.names()?, [COMPOSED]);
    load.stop().await.assert_clean();
    let doctor = Step::run(docked.world.action("doctor", NEW, &[])?).await?;
    doctor.answered(&["was made with --rm: once it is drained docker stops and removes it"]);
    Ok(())
}
