//! `init`: a first configuration from a look at the server, with which a swap works.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Output;

use anyhow::{Context, Result, ensure};
use model_swap::config::{self, Overrides};
use serde_json::json;
use testbed::built;
use testbed::end;
use testbed::guest::{GPUS, GuestSpec, SLOTS};
use testbed::server::{GpuServer, Ports, ServerSpec, default_upstream_file};

use crate::commands::Terminal;
use crate::step::Step;
use crate::support::docked::Docked;
use crate::support::guest::{on_guest, on_guest_of};
use crate::support::{NAME, NEW, OLD, World, engine};

/// The places of what a file lacks.
fn lacks(text: &str) -> Vec<String> {
    let read = config::load(text, "f", &Overrides::default());
    let problems = read.err().map(|problems| problems.list).unwrap_or_default();
    problems.iter().map(|problem| problem.place.to_string()).collect()
}

/// Exit code and words of a command at a terminal, with more variables.
pub(crate) async fn says(
    terminal: &Terminal,
    words: &[&str],
    env: &[(&str, &str)],
) -> Result<(Option<i32>, String)> {
    let mut command = terminal.command(&crate::support::binary());
    command.args(words).envs(env.iter().copied());
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || end::run(&mut command)).await??;
    let said = [stdout, stderr].concat();
    Ok((status.code(), String::from_utf8(said)?))
}

/// Looks at a throwaway server, as a person does whose folder has its key.
pub(crate) async fn init(
    world: &World,
    terminal: &Terminal,
    more: &[&str],
) -> Result<(Option<i32>, String)> {
    let server = &world.server;
    let nginx = server.nginx_command().join(" ");
    let (port, state) = (server.ssh_port().to_string(), server.state_dir().display().to_string());
    let words = ["init", "--host", server.ssh_host(), "--ssh-port", &port];
    let access = ["--state-dir", &state, "--ssh-key", "key", "--known-hosts", "hosts"];
    let own = ["--nginx", nginx.as_str()];
    let own = if more.contains(&"--nginx") { &[][..] } else { &own[..] };
    says(terminal, &[&words[..], &access, own, more].concat(), &[]).await
}

/// The file with the setting that the testbed needs to know its own: its mark in the environment of what is started.
fn marked(world: &World, text: &str) -> String {
    let (mark, scratch) = world.server.mark();
    text.replacen("\nreplica:\n", &format!("\nreplica:\n  env: {{ {mark}: {scratch:?} }}\n"), 1)
}

pub(crate) const ACCESS: [&str; 4] = ["--ssh-key", "key", "--known-hosts", "hosts"];

#[tokio::test]
async fn what_init_writes_is_checked_planned_and_swapped_with() -> Result<()> {
    let world = World::start().await?;
    let (a, _) = world.server.slot_ports();
    let terminal = Terminal::at(&world)?;
    let path = terminal.folder.path().join("model-swap.yaml");
    fs::remove_file(&path)?;
    let load = world.load().await?;
    let look = || {
        let config = world.server.nginx_config();
        anyhow::Ok((
            fs::read(&config)?,
            fs::metadata(&config)?.ino(),
            world.server.nginx_workers()?,
        ))
    };
    let before = look()?;

    let (code, said) = init(&world, &terminal, &["--config", "second.yaml", "--json"]).await?;
    let frame: serde_json::Value = serde_json::from_str(&said).context(said.clone())?;
    assert_eq!((code, &frame["frame"], &frame["left"]), (Some(0), &"written".into(), &json!([])));
    let (code, said) = init(&world, &terminal, &[]).await?;
    assert_eq!(code, Some(0), "{said}");
    let text = fs::read_to_string(&path)?;
    assert!(said.contains(&format!("it is complete: chat serves from port {a}")), "{said}\n{text}");
    assert!(said.contains("next: read it, then `model-swap doctor "), "{said}");
    assert_eq!(look()?, before, "something changed: {said}");
    let kept: Vec<_> = fs::read_dir(world.server.state_dir())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    assert_eq!(kept, ["bin"], "more than the agent was left");
    // What only the testbed's models have is named, not taken over.
    assert!(text.contains(&format!("#   {}", world.server.mark().0)), "{text}");

    // A second one finds the file.
    let (code, said) = init(&world, &terminal, &[]).await?;
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("model-swap.yaml is there already, and init overwrites nothing"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&path)?, text);
    // As it stands: what serves is what the file says.
    let (code, said) = says(&terminal, &[&["doctor"][..], &ACCESS].concat(), &[]).await?;
    assert!(code == Some(0) && said.contains("ready to swap"), "{said}\n{text}");
    let (code, printed) = init(&world, &terminal, &["--config", "-"]).await?;
    assert_eq!((code, printed.as_str()), (Some(0), text.as_str()));

    fs::write(&path, marked(&world, &text).replace(OLD, NEW))?;
    let (code, said) = says(&terminal, &[&["plan"][..], &ACCESS].concat(), &[]).await?;
    assert!(code == Some(0) && said.contains("cut_over a -> b"), "{said}");
    let (code, said) = says(&terminal, &[&["swap"][..], &ACCESS].concat(), &[]).await?;
    assert!(code == Some(0) && said.contains("promoted: Qwen/New serves from slot b"), "{said}");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_key_of_the_running_model_is_asked_for_and_shown_nowhere() -> Result<()> {
    let canary = format!("canary-{}", std::process::id());
    let world = World::begin(ServerSpec::default(), &["--api-key", &canary])?;
    let terminal = Terminal::at(&world)?;
    let key = [("VLLM_API_KEY", canary.as_str())];
    crate::support::until("the model listens", || world.old_runs().unwrap_or(false)).await?;
    let path = terminal.folder.path().join("first.yaml");

    let (code, said) = init(&world, &terminal, &["--config", "first.yaml"]).await?;
    let text = fs::read_to_string(&path)?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("it is complete"), "{said}\n{text}");
    assert!(!text.contains(&canary) && !said.contains(&canary), "{said}\n{text}");
    for told in ["--api-key is left out", "secret_env: [\"VLLM_API_KEY\"]", "secrets.VLLM_API_KEY"]
    {
        assert!(text.contains(told), "no {told:?} in {text}");
    }
    assert!(crate::secrets::files_with(&world.server.state_dir(), &canary)?.is_empty());

    fs::write(&path, marked(&world, &text).replace(OLD, NEW))?;
    let swap = [&["swap", "--config", "first.yaml"][..], &ACCESS].concat();
    let (code, said) = says(&terminal, &swap, &[]).await?;
    assert!(code == Some(2) && said.contains("VLLM_API_KEY: missing"), "{said}");
    let (code, said) = says(&terminal, &swap, &key).await?;
    assert!(code == Some(0) && said.contains("promoted: Qwen/New"), "{said}");
    assert!(!said.contains(&canary), "{said}");
    Ok(())
}

/// The usual upstream, and another one on slot b.
fn two_upstreams(ports: Ports) -> String {
    let second = format!("upstream embed {{ server 127.0.0.1:{}; }}\n", ports.b);
    second + &default_upstream_file(ports)
}

#[tokio::test]
async fn what_cannot_be_seen_is_left_open_in_its_form() -> Result<()> {
    let spec = ServerSpec { upstream_file: Box::new(two_upstreams), ..ServerSpec::default() };
    let server = GpuServer::start(spec)?;
    let (_, b) = server.slot_ports();
    // Nobody listens: the model of this world is gone before anybody looks.
    let old = server.start_by_hand(&engine(OLD, server.slot_ports().0)?, &[])?;
    crate::step::send("-KILL", old.pid)?;
    let world = World { server, old, settings: Default::default() };
    crate::support::until("the model is gone", || !crate::support::alive(world.old.pid)).await?;
    let terminal = Terminal::at(&world)?;
    let path = terminal.folder.path().join("first.yaml");

    let (code, said) = init(&world, &terminal, &["--config", "first.yaml"]).await?;
    let text = fs::read_to_string(&path)?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(lacks(&text), ["model", "replica.command"], "{text}");
    for told in [
        "left to you",
        "first.yaml: model: missing",
        "next: fill these in, then `model-swap doctor ",
    ] {
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    for told in [
        "upstream: embed",
        "No GPU was seen: ",
        "nginx points there, and nobody listens",
        "nobody listens there; for it: --upstream llm",
        "# ? command: vllm serve {model}",
    ] {
        assert!(text.contains(told), "no {told:?} in {text}");
    }

    // Behind the other one a model serves.
    let server = &world.server;
    let _embed = server.start_by_hand(&engine(OLD, server.slot_ports().0)?, &[])?;
    world.until_serves(OLD).await?;
    let (_, text) = init(&world, &terminal, &["--config", "-"]).await?;
    assert_eq!(lacks(&text), Vec::<String>::new(), "{text}");
    assert!(text.contains("upstream: llm") && text.contains("--upstream embed"), "{text}");
    let (_, text) = init(&world, &terminal, &["--config", "-", "--upstream", "embed"]).await?;
    assert!(text.contains(&format!("a: {{ port: {b}, gpus: [] }}")), "{text}");
    let mistyped = ["--config", "second.yaml", "--upstream", "lmm"];
    let (code, said) = init(&world, &terminal, &mistyped).await?;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nginx has no upstream `lmm`"), "{said}");
    assert!(said.contains("did you mean `llm`?"), "{said}");
    assert!(!terminal.folder.path().join("second.yaml").exists(), "{said}");
    Ok(())
}

/// The usual upstream file, behind the page that a fresh nginx of Debian's answers with.
fn welcome(ports: Ports) -> String {
    let page = "location / { return 200 'Welcome to nginx!'; }";
    let first = format!("server {{ listen 127.0.0.1:{} default_server; {page} }}\n", ports.nginx);
    first + &default_upstream_file(ports)
}

#[tokio::test]
async fn a_file_is_not_called_complete_while_nginxs_welcome_page_answers() -> Result<()> {
    let spec = ServerSpec { upstream_file: Box::new(welcome), ..ServerSpec::default() };
    let world = World::begin(spec, &[])?;
    crate::support::until("the model listens", || world.old_runs().unwrap_or(false)).await?;
    let terminal = Terminal::at(&world)?;
    let (code, said) = init(&world, &terminal, &["--config", "first.yaml"]).await?;
    let text = fs::read_to_string(terminal.folder.path().join("first.yaml"))?;
    assert_eq!((code, lacks(&text)), (Some(0), Vec::new()), "{said}\n{text}");
    let why = "does not meet the model: the answer has status 200 and names no model";
    for told in [why, "Debian's default site", "nginx.probe.host", "next: mend that, then "] {
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    assert!(!said.contains("it is complete"), "{said}");
    assert!(text.contains("# A request there did not meet the model: the answer has"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_is_refused_and_nothing_is_written() -> Result<()> {
    let world = World::start().await?;
    let terminal = Terminal::at(&world)?;
    let (code, said) = says(&terminal, &["init", "--config", "new.yaml"], &[]).await?;
    assert!(code == Some(2) && said.contains("init needs --host"), "{said}");
    let words = ["init", "--config", "new.yaml", "--host", "deploy@gpu-1:22"];
    let (code, said) = says(&terminal, &words, &[]).await?;
    assert!(code == Some(2) && said.contains("--ssh-port"), "{said}");
    let run = world
        .run("init", NEW, &[("config", "new.yaml"), ("ssh-key", ""), ("host", "ann@x")])
        .await?;
    run.refused(2, &["the input ssh-key is empty"]);
    let run = world.run("init", NEW, &[("config", "new.yaml"), ("host", "")]).await?;
    run.refused(2, &["init needs the input host"]);
    assert!(!terminal.folder.path().join("new.yaml").exists());
    Ok(())
}

/// As a step of a workflow, on a server with GPUs whose nginx is found by itself, by a user who becomes root.
#[test]
fn on_a_server_with_systemd_the_next_model_is_a_unit_too() -> Result<()> {
    // With a /tmp of its own (`PrivateTmp=`), as Fedora has it, nginx has a mount namespace and is in no container.
    let own_tmp = "/etc/systemd/system/nginx.service.d/tmp.conf";
    let own_tmp = (own_tmp.to_owned(), 0o644, "[Service]\nPrivateTmp=yes\n".to_owned());
    let spec = GuestSpec { files: vec![own_tmp], ..GuestSpec::serving(OLD) };
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        let apart = "! [ /proc/1/ns/mnt -ef /proc/$(cat /run/nginx.pid)/ns/mnt ]";
        world.guest.run(&["sh", "-c", apart]).await?;
        let load = world.load().await?;
        let host = world.guest.ssh_host();
        let inputs = [("config", "first.yaml"), ("host", host.as_str())];
        let run = Step::run(world.action("init", NEW, &inputs)?).await?;
        let run = run.answered(&["it is complete", "next: commit it, and run the command doctor"]);
        let text = run.summary.split_once("```text\n").and_then(|(_, rest)| rest.split_once("```"));
        let text = text.context("the summary has the file")?.0;
        assert_eq!(lacks(text), Vec::<String>::new(), "{text}");
        let slot = |name: &str, port, gpu| format!("  {name}: {{ port: {port}, gpus: [{gpu}] }}");
        for told in [
            "runtime: systemd",
            "the systemd unit vllm.service",
            &slot("a", SLOTS.0, GPUS[0]),
            &slot("b", SLOTS.1, GPUS[1]),
            &format!("service: {NAME}"),
            "used by the model on port 8001",
        ] {
            assert!(text.contains(told), "no {told:?} in {text}");
        }
        ensure!(
            !text.contains("\n  command: [\"nginx\""),
            "the usual nginx needs no words: {text}"
        );
        let edited = text.replace(OLD, NEW);
        let action = |command| anyhow::Ok(world.action(command, NEW, &[])?.with_config(&edited)?);
        Step::run(action("doctor")?).await?.answered(&["ready to swap"]);
        Step::run(action("swap")?).await?.ended(0, "promoted");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// As Podman's: a control group with a container's id in its name, and namespaces of its own. Docker does not know it.
#[test]
fn an_nginx_in_a_container_of_another_engine_works_once_it_is_said_how_it_is_called() -> Result<()>
{
    on_guest(async |world| {
        let guest = &world.guest;
        guest.run(&["systemctl", "disable", "--now", "nginx.service"]).await?;
        let scope = format!("--unit=libpod-{}.scope", "0123456789abcdef".repeat(4));
        let nginx = "unshare --mount --pid --fork --mount-proc nginx -g 'daemon off;'";
        let line =
            format!("systemd-run --scope --quiet {scope} {nginx} >/dev/null 2>&1 </dev/null &");
        guest.run(&["sh", "-c", &line]).await?;
        world.until_serves(OLD).await?;
        let master = guest.run(&["pgrep", "--full", "nginx: master"]).await?;
        let master = master.trim();

        let config = world.config(NEW)?;
        let terminal = Terminal::with(&config, (guest.private_key(), guest.known_hosts()))?;
        let host = guest.ssh_host();
        let words = [&["init", "--host", &host, "--config", "-"][..], &ACCESS].concat();
        let (_, text) = says(&terminal, &words, &[]).await?;
        let told = format!(
            "process {master} is in a container that Docker does not know; say with --nginx"
        );
        assert!(text.contains(&told), "no {told:?} in {text}");

        let called = format!("nsenter --target {master} --mount --pid nginx");
        let words = [&words[..], &["--nginx", &called]].concat();
        let (code, text) = says(&terminal, &words, &[]).await?;
        assert_eq!((code, lacks(&text)), (Some(0), Vec::new()), "{text}");
        let load = world.load().await?;
        let edited = text.replace(OLD, NEW);
        let action = |command| anyhow::Ok(world.action(command, NEW, &[])?.with_config(&edited)?);
        Step::run(action("doctor")?).await?.answered(&["ready to swap"]);
        Step::run(action("swap")?).await?.ended(0, "promoted");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// Of a container's processes, which are root's, only root sees the variables, and some programs clear or overwrite their own.
#[tokio::test]
async fn init_takes_the_variables_of_a_container_from_docker() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cleared = folder.path().join("cleared");
    let program = built::program("stub-engine")?;
    let script = format!("#!/bin/sh\nexec env -i {} serve \"$@\"\n", program.display());
    fs::write(&cleared, script)?;
    fs::set_permissions(&cleared, fs::Permissions::from_mode(0o755))?;
    let mount = format!("--volume={}:/cleared:ro", cleared.display());
    let programs = ["--volume=/bin/sh:/bin/sh:ro", "--volume=/usr/bin/env:/usr/bin/env:ro"];
    let own = ["--entrypoint=/cleared", "--env=HF_HUB_OFFLINE=1", &mount];
    let docked = Docked::made(&[&programs[..], &own].concat(), &[]).await?;
    let terminal = Terminal::at(&docked.world)?;
    let (code, text) = init(&docked.world, &terminal, &["--config", "-"]).await?;
    assert!(code == Some(0) && text.contains("HF_HUB_OFFLINE"), "{text}");
    Ok(())
}
