//! Ways to a server and to its nginx: through a bastion, as nobody in particular, on the server itself, and with a
//! neighbour who uses the same nginx and the same spare GPU.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use testbed::guest::{ENGINE, Guest, GuestSpec, Runtime, SLOTS, upstream_file};
use testbed::service::{Site, until_serves};

use crate::commands::Terminal;
use crate::init::{ACCESS, says};
use crate::step::{Step, send};
use crate::support::guest::{GuestWorld, USERS_NGINX, load_on, on_guest_of, users_nginx};
use crate::support::{NEW, OLD, Run, World, alive};

/// Another service of the same server: its own slots and file, on the same nginx.
struct Neighbour {
    nginx: SocketAddr,
    site: Site,
}

impl Neighbour {
    const UPSTREAM_FILE: &str = "/etc/nginx/conf.d/code.conf";
    const PORTS: (u16, u16) = (8003, 8004);

    async fn beside(world: &GuestWorld, gpus: [&str; 2]) -> Result<Self> {
        let guest = &world.guest;
        let file = upstream_file("code", 81, Self::PORTS.0);
        fs::write(guest.file(Self::UPSTREAM_FILE)?, file)?;
        guest.run(&["nginx", "-s", "reload"]).await?;
        guest.start_by_hand(OLD, Self::PORTS.0).await?;
        let nginx = (guest.address(), 81).into();
        until_serves(nginx, OLD).await?;
        let (a, b) = Self::PORTS;
        let slots = [(a, gpus[0].to_owned()), (b, gpus[1].to_owned())];
        let probe = "http://127.0.0.1:81/v1/models".to_owned();
        let site = Site { slots, nginx_config: Self::UPSTREAM_FILE.into(), probe, ..guest.site() };
        Ok(Self { nginx, site })
    }

    async fn swap(&self, world: &GuestWorld, model: &str, wait: &str) -> Result<Run> {
        let config = world.settings.config_on(&self.site, model)?;
        let config = config
            .replace("service: chat\n", "service: code\n")
            .replace("upstream: llm\n", "upstream: code\n");
        world
            .action("swap", model, &[("wait", wait)])?
            .with_config(&config)?
            .spawn()?
            .finish()
            .await
    }
}

#[test]
fn two_services_swap_at_once_on_one_nginx_and_never_share_a_gpu() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.settings.retain = "0s".to_owned();
        world.guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        // GPU 0 and 1 are the services' own; each has a spare one.
        let mut code = Neighbour::beside(world, ["2", "3"]).await?;
        let loads = (world.load().await?, load_on(code.nginx).await?);
        let chat = world.run("swap", NEW, &[("wait", "retired")]);
        let (first, second) = tokio::join!(chat, code.swap(world, NEW, "retired"));
        for run in [first?, second?] {
            run.ended(0, "promoted");
        }

        // Now both want GPU 0: chat's own, that is free again, is what somebody gave code as its spare one as well.
        code.site.slots[0].1 = "0".to_owned();
        let chat = world.run("swap", OLD, &[("wait", "retired")]);
        let (chat, code_run) = tokio::join!(chat, code.swap(world, OLD, "retired"));
        let (chat, code_run) = (chat?, code_run?);
        let (lost, won) =
            if chat.code == 0 { (code_run, ("chat", chat)) } else { (chat, ("code", code_run)) };
        won.1.ended(0, "promoted");
        let reason = format!("GPU 0 is reserved by service {}, slot a", won.0);
        // It has met the claim as it planned, or when it claimed itself.
        assert!([3, 4].contains(&lost.code), "{lost}");
        assert!(lost.stdout.contains(&reason), "no {reason:?} in\n{lost}");
        world.until_serves(if won.0 == "chat" { OLD } else { NEW }).await?;
        until_serves(code.nginx, if won.0 == "code" { OLD } else { NEW }).await?;
        loads.0.stop().await.assert_clean();
        loads.1.stop().await.assert_clean();
        Ok(())
    })
}

/// Nobody has started the old model of a neighbour with model-swap, and its GPU is taken all the same.
#[test]
fn the_gpu_of_an_adopted_model_is_reserved_once_its_service_has_swapped() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let code = Neighbour::beside(world, ["2", "0"]).await?;
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let reason = "GPU 0 is reserved by service chat, slot a";
        code.swap(world, NEW, "promoted").await?.refused(3, &[reason]);
        world.run("rollback", NEW, &[("wait", "retired")]).await?.ended(0, "rolled-back");
        assert_eq!(claims(&world.guest).await?, ["gpu-0", "port-8001"]);
        Ok(())
    })
}

async fn claims(guest: &Guest) -> Result<Vec<String>> {
    let listed = guest.run(&["ls", "/var/lib/model-swap/claims"]).await?;
    Ok(listed.lines().map(str::to_owned).collect())
}

#[test]
fn a_server_behind_a_bastion_is_reached_and_both_must_be_the_known_ones() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        let bastion =
            Guest::boot(&world.lab, GuestSpec { name: "bastion".to_owned(), ..GuestSpec::bare() })
                .await?;
        let guest = &world.guest;
        // The one key opens both, and the server only to who comes from the bastion.
        let keys = "/home/deploy/.ssh/authorized_keys";
        fs::copy(guest.file(keys)?, bastion.file(keys)?)?;
        guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let from = format!("AllowUsers deploy@{}\n", bastion.address());
        fs::write(guest.file("/etc/ssh/sshd_config.d/bastion.conf")?, from)?;
        guest.run(&["systemctl", "reload", "ssh.service"]).await?;
        let direct = world.config(NEW)?;
        let config = format!("{direct}ssh: {{ jump: deploy@{} }}\n", bastion.address());
        let both = format!("{}{}", guest.known_hosts(), bastion.known_hosts());
        let ask = async |command: &str, config: &str, known: &str| {
            let action = world.action(command, NEW, &[("known-hosts", known)])?;
            Step::run(action.with_config(config)?).await
        };

        ask("status", &direct, &both).await?.refused(3, &["does not let us in"]);
        ask("doctor", &config, &both).await?.answered(&["lets us in", "ready to swap"]);
        let terminal = Terminal::with(&config, (guest.private_key(), &both))?;
        let (host, jump) = (guest.ssh_host(), format!("deploy@{}", bastion.address()));
        let words = ["init", "--host", &host, "--jump", &jump, "--config", "-"];
        let (code, text) = says(&terminal, &[&words[..], &ACCESS].concat(), &[]).await?;
        assert!(code == Some(0) && text.contains(&format!("jump: {jump:?}")), "{text}");
        let load = world.load().await?;
        ask("swap", &config, &both).await?.ended(0, "promoted");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();

        // Neither key stands in for the other's.
        let at = bastion.address();
        let unknown = format!("the host key of {at} is not among the known hosts");
        let offered = format!("with this line of known-hosts: {at} ssh-ed25519 ");
        ask("status", &config, guest.known_hosts()).await?.refused(3, &[&unknown, &offered]);
        let others = guest.known_hosts().replace(&guest.address().to_string(), &at.to_string());
        let swapped = format!("{others}{}", guest.known_hosts());
        let changed = format!("the host key of {at} is not the known one");
        ask("status", &config, &swapped).await?.refused(3, &[&changed]);
        let unknown = format!("the host key of {} is not among the known hosts", guest.address());
        ask("status", &config, bastion.known_hosts()).await?.refused(3, &[&unknown]);

        let nobody = config.replace("jump: deploy@", "jump: nobody@");
        let denied = format!("nobody@{at}: Permission denied (publickey");
        ask("status", &nobody, &both).await?.refused(3, &["does not let us in", &denied]);
        Ok(())
    })
}

/// nginx, its configuration, the engine and the state are all the user's, and there is no sudo.
#[test]
fn a_user_who_owns_everything_needs_no_root() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        let guest = &world.guest;
        fs::remove_file(guest.file("/usr/bin/sudo")?)?;
        let (nginx, site) = users_nginx(guest).await?;
        guest.start_by_hand(OLD, SLOTS.0).await?;
        until_serves(nginx, OLD).await?;
        let config = world.settings.config_on(&site, NEW)?;

        // Without root as well, init finds what is the user's, and says how this nginx is called. This model was given no GPU.
        let inputs = [("config", "first.yaml"), ("host", &guest.ssh_host())];
        let found = Step::run(world.action("init", NEW, &inputs)?).await?;
        let found = found.answered(&["left to you", "slots.a.gpus"]);
        assert!(found.summary.contains(&format!("  config: {USERS_NGINX}/llm.conf")), "{found}");
        let called = format!("\"-c\", \"{USERS_NGINX}/nginx.conf\"");
        assert!(found.summary.contains(&called), "{found}");

        let load = load_on(nginx).await?;
        let run = world.action("swap", NEW, &[])?.with_config(&config)?.spawn()?.finish().await?;
        run.ended(0, "promoted");
        until_serves(nginx, NEW).await?;
        load.stop().await.assert_clean();
        let touched =
            guest.run(&["find", "/usr/local", "/var/lib", "-name", "model-swap*"]).await?;
        assert_eq!(touched, "", "only in the user's home");
        let users = guest.run(&["ps", "-o", "user=", "-C", "vllm"]).await?;
        assert_eq!(users, "deploy\ndeploy\n", "both replicas are the user's");
        let state = guest.ssh("ls ~/.local/state/model-swap").await?;
        assert!(state.lines().any(|line| line == "chat"), "{state}");
        assert!(guest.file(ENGINE)?.exists());
        Ok(())
    })
}

/// The file that root's configuration includes is his, and nginx is root's.
#[test]
fn who_owns_the_file_and_not_nginx_becomes_root() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        let guest = &world.guest;
        guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let file = guest.site().nginx_config;
        let file = file.to_str().context("a path")?;
        guest.run(&["chown", "deploy", file]).await?;
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        world.until_serves(NEW).await?;
        assert_eq!(guest.run(&["stat", "--format=%U", file]).await?, "deploy\n");
        let state = guest.run(&["stat", "--format=%U", "/var/lib/model-swap/chat"]).await?;
        assert_eq!(state, "root\n");
        Ok(())
    })
}

/// Who may talk to the Engine may stop and start its containers, though their processes are root's.
#[test]
fn a_user_who_owns_nginx_and_may_use_docker_needs_no_root() -> Result<()> {
    let incumbent = Some((OLD.to_owned(), String::new()));
    let spec = GuestSpec { incumbent, runtime: Runtime::Docker, ..GuestSpec::bare() };
    on_guest_of(spec, async |world| {
        let guest = &world.guest;
        fs::remove_file(guest.file("/usr/bin/sudo")?)?;
        guest.run(&["chgrp", "deploy", "/run/docker.sock"]).await?;
        guest.run(&["chmod", "g+rw", "/run/docker.sock"]).await?;
        let (nginx, site) = users_nginx(guest).await?;
        until_serves(nginx, OLD).await?;
        world.settings.retain = "0s".to_owned();
        let config = world.settings.config_on(&site, NEW)?;
        let run = async |command: &str, inputs: &[(&str, &str)]| {
            Step::run(world.action(command, NEW, inputs)?.with_config(&config)?).await
        };
        let load = load_on(nginx).await?;
        run("swap", &[("wait", "retired")]).await?.ended(0, "promoted");
        until_serves(nginx, NEW).await?;
        run("rollback", &[("wait", "retired")]).await?.ended(0, "rolled-back");
        until_serves(nginx, OLD).await?;
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// GitHub's runner ends every process that carries its mark when a job is over. The engines and the agent that keeps one
/// of them warm are no part of the job.
#[tokio::test]
async fn on_the_server_itself_nothing_ends_with_the_job() -> Result<()> {
    const MARK: &str = "RUNNER_TRACKING_ID";
    const NO_PROXY_THERE: &str = "http://127.0.0.1:1";
    let world = World::start().await?;
    let config = world.config(NEW);
    let host = format!("host: {}\n", world.server.ssh_host());
    ensure!(config.contains(&host));
    let config = config.replace(&host, "host: local\n");
    let job = format!("github_{}", world.server.ports().ssh);
    let action = |command: &str| -> Result<_> {
        let action = world.action(command, NEW, &[])?.with_config(&config)?;
        let (mark, scratch) = world.server.mark();
        // No key: nothing is reached.
        let action = action.with_inputs(&[("ssh-key", ""), ("known-hosts", "")]);
        // What listens on loopback is asked by no proxy: by this one nobody can be.
        let proxy = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, NO_PROXY_THERE));
        Ok(action.with(&[(MARK, &job), (mark, &scratch)]).with(&proxy))
    };
    let load = world.load().await?;
    let run = action("swap")?.spawn()?.finish().await?.ended(0, "promoted");
    let marked = format!("{MARK}={job}");
    for pid in pids() {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|entry| entry == marked.as_bytes()) {
            send("-KILL", pid)?;
        }
    }
    world.until_serves(NEW).await?;
    assert!(alive(world.old.pid), "{run}");
    let agents = world.server.leftovers();
    assert!(agents.iter().any(|line| line.contains("agent run")), "{agents:?}");
    action("rollback")?.spawn()?.finish().await?.ended(0, "rolled-back");
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// From a terminal on the server, by the user who may use sudo.
#[test]
fn on_the_server_itself_the_agent_becomes_root_as_over_ssh() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        let guest = &world.guest;
        guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let host = format!("host: {}\n", guest.ssh_host());
        let config = world.config(NEW)?.replace(&host, "host: local\n");
        fs::write(guest.file("/home/deploy/model-swap.yaml")?, config)?;
        let program = guest.file("/usr/local/bin/model-swap")?;
        fs::copy(crate::support::binary(), &program).context("the binary")?;
        // As a container action, it would look into its own container.
        let inside = "mkdir -p /github/workspace && cp ~/model-swap.yaml /github/workspace && \
                      chmod -R a+rX /github";
        guest.run(&["env", "HOME=/home/deploy", "sh", "-c", inside]).await?;
        let action = "env GITHUB_ACTIONS=true GITHUB_WORKSPACE=/github/workspace INPUT_COMMAND=plan \
                      /usr/local/bin/model-swap; echo \"exit code $?\"";
        let said = guest.ssh(action).await?;
        for text in ["host is local, and the action runs in a container", "exit code 2"] {
            assert!(said.contains(text), "no {text:?} in\n{said}");
        }

        let load = world.load().await?;
        let said = guest.ssh("/usr/local/bin/model-swap swap").await?;
        assert!(said.contains("promoted"), "{said}");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();
        let state = guest.run(&["stat", "--format=%U", "/var/lib/model-swap/chat"]).await?;
        assert_eq!(state, "root\n");
        Ok(())
    })
}
