//! systemd-logind that ends whatever a session leaves behind (`KillUserProcesses=yes`): agent and new model outlive the ssh
//! session all the same, or nothing is begun.

use std::fs;

use anyhow::{Context, Result};
use testbed::guest::{Guest, GuestSpec, SLOTS, USER};
use testbed::service::until_serves;

use crate::doctor::mark;
use crate::step::Step;
use crate::support::guest::{USERS_NGINX, load_on, on_guest_of, until, users_nginx};
use crate::support::{NEW, OLD};

const LOGIND: &str = "/etc/systemd/logind.conf.d/kill.conf";
const KILLS: &str = "[Login]\nKillUserProcesses=yes\n";

fn killing(spec: GuestSpec) -> GuestSpec {
    let file = (LOGIND.to_owned(), 0o644, KILLS.to_owned());
    GuestSpec { files: vec![file], ..spec }
}

/// Waits until every session is over and what was in it is gone.
async fn no_session(guest: &Guest) -> Result<()> {
    let list = ["systemctl", "list-units", "--plain", "--no-legend", "session-*.scope"];
    until("the sessions end", async || Ok(guest.run(&list).await?.is_empty())).await
}

/// The agent that the session has started, and no successor of it: what it begins has its command line for a moment.
async fn agent(guest: &Guest, user: &str) -> Result<String> {
    guest.run(&["pgrep", "--oldest", "--uid", user, "--full", "model-swap agent run"]).await
}

#[test]
fn with_sudo_agent_and_new_model_stay_in_a_scope_of_the_systems() -> Result<()> {
    on_guest_of(killing(GuestSpec::serving(OLD)), async |world| {
        world.until_serves(OLD).await?;
        let guest = &world.guest;
        // A unit would be out of the session anyway.
        let plain = |model: &str| {
            anyhow::Ok(world.config(model)?.replace("replica:\n", "replica:\n  runtime: process\n"))
        };
        let ask = async |command: &str| {
            Step::run(world.action(command, NEW, &[])?.with_config(&plain(NEW)?)?).await
        };
        let doctor = ask("doctor").await?.answered(&["a scope of the server's systemd"]);
        assert_eq!(mark(&doctor, "end of the ssh session"), "ok", "{doctor}");
        let load = world.load().await?;
        ask("swap").await?.ended(0, "promoted");
        let first = agent(guest, "root").await?;
        no_session(guest).await?;
        world.until_serves(NEW).await?;
        assert_eq!(agent(guest, "root").await?, first);
        load.stop().await.assert_clean();
        Ok(())
    })
}

#[test]
fn without_root_nothing_is_begun_until_it_can_stay() -> Result<()> {
    on_guest_of(killing(GuestSpec::bare()), async |world| {
        let guest = &world.guest;
        let (nginx, site) = users_nginx(guest).await?;
        guest.start_as_user(OLD, SLOTS.0).await?;
        until_serves(nginx, OLD).await?;
        let config = world.settings.config_on(&site, NEW)?;
        let ask = async |command: &str| {
            Step::run(world.action(command, NEW, &[])?.with_config(&config)?).await
        };

        let why = "systemd-logind ends every process of deploy when the ssh session ends";
        let texts = [why, "`loginctl enable-linger deploy`", "`KillExcludeUsers=root deploy`"];
        let doctor = ask("doctor").await?.refused(3, &texts);
        assert_eq!(mark(&doctor, "end of the ssh session"), "fail", "{doctor}");
        ask("swap").await?.refused(3, &texts);
        ask("rollback").await?.refused(3, &texts);
        assert!(guest.listeners(SLOTS.1).await?.is_empty(), "something was started");

        guest.run(&["loginctl", "enable-linger", USER]).await?;
        ask("doctor").await?.answered(&["a scope of deploy's own systemd"]);
        let load = load_on(nginx).await?;
        ask("swap").await?.ended(0, "promoted");
        let first = agent(guest, USER).await?;
        no_session(guest).await?;
        until_serves(nginx, NEW).await?;
        assert_eq!(agent(guest, USER).await?, first);
        ask("rollback").await?.ended(0, "rolled-back");
        no_session(guest).await?;
        until_serves(nginx, OLD).await?;
        load.stop().await.assert_clean();

        let spared = format!("{KILLS}KillExcludeUsers=root {USER}\n");
        fs::write(guest.file(LOGIND)?, spared)?;
        guest.run(&["systemctl", "restart", "systemd-logind"]).await?;
        let doctor = ask("doctor").await?.answered(&["the agent stays"]);
        assert_eq!(mark(&doctor, "end of the ssh session"), "ok", "{doctor}");

        // The same nginx, as root has started it.
        guest.run_as_user(&format!("kill -QUIT $(cat {USERS_NGINX}/pid)")).await?;
        let pid = guest.file(&format!("{USERS_NGINX}/pid"))?;
        until("the user's nginx ends", async || Ok(!pid.exists())).await?;
        guest.run(&["/usr/sbin/nginx", "-c", &format!("{USERS_NGINX}/nginx.conf")]).await?;
        let config = config.replace("replica:\n", "replica:\n  runtime: systemd\n");
        let ask = async || Step::run(world.action("doctor", NEW, &[])?.with_config(&config)?).await;
        ask().await?.answered(&["root through sudo -n", "right to reload nginx    yes"]);
        fs::remove_file(guest.file(&format!("/etc/sudoers.d/{USER}"))?)?;
        let doctor = ask().await?;
        let texts = [
            "belongs to another user",
            "let that user own nginx",
            "and the agent, which is not root, may not use it",
        ];
        let doctor = doctor.refused(3, &texts);
        let marks = ["nginx running", "right to reload nginx", "runtime"];
        assert_eq!(marks.map(|what| mark(&doctor, what)), ["fail", "?", "fail"], "{doctor}");
        Ok(())
    })
}

/// As where people run their model as themselves, and log out.
#[test]
fn whose_shared_memory_goes_with_his_session_is_told_and_how_to_keep_it() -> Result<()> {
    const MEMORY: &str = "/dev/shm/psm_4711";
    on_guest_of(GuestSpec::bare(), async |world| {
        let guest = &world.guest;
        let (nginx, site) = users_nginx(guest).await?;
        guest.start_as_user(OLD, SLOTS.0).await?;
        until_serves(nginx, OLD).await?;
        let one = world.settings.config_on(&site, NEW)?;
        // Each slot has two GPUs.
        let two = one.replace("gpus: [0]", "gpus: [0, 2]").replace("gpus: [1]", "gpus: [1, 3]");
        let ask = async |command: &str, config: &str| {
            Step::run(world.action(command, NEW, &[])?.with_config(config)?).await
        };
        let doctor = async |config: &str| {
            Ok::<_, anyhow::Error>(mark(&ask("doctor", config).await?, "shared memory"))
        };

        // So it is.
        guest.ssh(&format!("touch {MEMORY}")).await?;
        until("the user's shared memory is removed", async || {
            Ok(guest.run(&["test", "-e", MEMORY]).await.is_err())
        })
        .await?;
        let texts =
            ["(RemoveIPC=yes): a model on several GPUs may die", "`loginctl enable-linger deploy`"];
        ask("doctor", &two).await?.answered(&texts);
        assert_eq!([doctor(&two).await?, doctor(&one).await?], ["warn", ""]);
        ask("plan", &two).await?.answered(&texts);
        let plan = ask("plan", &one).await?.answered(&["cut_over a -> b"]);
        assert!(!plan.stdout.contains("RemoveIPC"), "{plan}");

        guest.run(&["loginctl", "enable-linger", USER]).await?;
        assert_eq!(doctor(&two).await?, "ok");
        let plan = ask("plan", &two).await?.answered(&["cut_over a -> b"]);
        assert!(!plan.stdout.contains("RemoveIPC"), "{plan}");

        guest.run(&["loginctl", "disable-linger", USER]).await?;
        assert_eq!(doctor(&two).await?, "warn");
        let kept = guest.file(LOGIND)?;
        fs::create_dir_all(kept.parent().context("a folder")?)?;
        fs::write(kept, "[Login]\nRemoveIPC=no\n")?;
        guest.run(&["systemctl", "restart", "systemd-logind"]).await?;
        assert_eq!(doctor(&two).await?, "ok");
        Ok(())
    })
}
