//! A person's own unit whose program has another one run the model: as another user by sudo, su or runuser, in an environment of
//! conda's, or for reasons of its own.

use std::fs;

use anyhow::{Context, Result};
use testbed::guest::{ENGINE, GuestSpec, SLOTS};
use testbed::service::NAME;

use crate::doctor::mark;
use crate::support::guest::{GuestWorld, on_guest_of, until};
use crate::support::{NEW, OLD};

const UNIT: &str = "/etc/systemd/system/llm.service";

/// Has the unit run the model by this line, and waits until it does; by a script of several, which this program runs.
async fn serves_by(world: &GuestWorld, line: &str, program: Option<&str>) -> Result<()> {
    let argv = format!("{ENGINE} serve {OLD} --port {} --served-model-name {NAME}", SLOTS.0);
    let line = line.replace("MODEL", &argv);
    fs::write(world.guest.file("/opt/serve.sh")?, format!("#!/bin/sh\n{line}\n"))?;
    let program = program.unwrap_or("/bin/sh /opt/serve.sh").to_owned();
    let program = if line.contains('\n') { program } else { line };
    let text = format!(
        "[Service]\nExecStart={program}\nRestart=always\nRestartSec=100ms\n[Install]\nWantedBy=multi-user.target\n"
    );
    fs::write(world.guest.file(UNIT)?, text)?;
    world.guest.run(&["systemctl", "daemon-reload"]).await?;
    world.guest.run(&["systemctl", "enable", "--now", "llm.service"]).await?;
    world.until_serves(OLD).await
}

/// What `conda run` does: it has a script of its own run the command.
const CONDA: &str = "#!/usr/bin/perl\nexit system('/bin/sh', '/opt/serve.sh') >> 8;\n";

/// A unit may be stopped for its model where the program between them does nothing else.
#[test]
fn a_unit_that_runs_its_model_by_conda_is_stopped_as_a_unit_and_by_an_unknown_program_not_replaced()
-> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.settings.retain = "0s".to_owned();
        fs::write(world.guest.file("/usr/local/bin/launcher")?, CONDA)?;
        fs::write(world.guest.file("/usr/local/bin/conda")?, CONDA)?;
        world
            .guest
            .run(&["chmod", "+x", "/usr/local/bin/launcher", "/usr/local/bin/conda"])
            .await?;
        serves_by(world, "MODEL\nexit 1", Some("/usr/local/bin/launcher serve")).await?;
        let said = ["unit llm.service is not the model's alone", "launcher serve) as well"];
        let doctor = world.run("doctor", NEW, &[]).await?.refused(3, &said);
        assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
        world.run("swap", NEW, &[]).await?.refused(3, &said);
        // What runs it once, as cloud-init does, brings nothing back.
        let once = world.guest.file("/etc/systemd/system/llm.service.d/once.conf")?;
        fs::create_dir_all(once.parent().context("a folder")?)?;
        fs::write(&once, "[Service]\nRestart=no\n")?;
        world.guest.run(&["systemctl", "daemon-reload"]).await?;
        world.run("plan", NEW, &[]).await?.answered(&["promote"]);
        fs::remove_file(once)?;
        ends(world).await?;
        serves_by(world, "MODEL\nexit 1", Some("/usr/local/bin/conda run -n vllm serve")).await?;
        let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert_eq!(world.unit("llm.service").await?, "inactive disabled always", "{run}");
        assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "{run}");
        Ok(())
    })
}

/// As the message has it.
async fn ends(world: &GuestWorld) -> Result<()> {
    let main = world.guest.listeners(SLOTS.0).await?[0].to_string();
    world.guest.run(&["systemctl", "stop", "llm.service"]).await?;
    // It may have ended with its `su`.
    let _ended = world.guest.run(&["kill", &main]).await;
    let is_free = async || Ok(world.guest.listeners(SLOTS.0).await?.is_empty());
    until("it ends", is_free).await
}

/// It is no plain process: its unit would start it again.
#[test]
fn a_unit_that_runs_its_model_by_sudo_is_stopped_as_a_unit() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.settings.retain = "0s".to_owned();
        let line = "cd /tmp\n/usr/bin/sudo -u vllm MODEL\nexit 1";
        serves_by(world, line, None).await?;
        let load = world.load().await?;
        let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        load.stop().await.assert_clean();
        assert_eq!(world.unit("llm.service").await?, "inactive disabled always", "{run}");
        assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "{run}");
        // The way back is the unit's own.
        let run = world.run("rollback", NEW, &[("wait", "retired")]).await?;
        let run = run.ended(0, "rolled-back");
        world.until_serves(OLD).await?;
        assert_eq!(world.unit("llm.service").await?, "active enabled always", "{run}");
        Ok(())
    })
}

/// Neither would its unit end it, nor is it a plain process, which would stay ended.
#[test]
fn a_model_that_its_unit_has_put_into_a_session_is_not_replaced() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        for line in [
            "/bin/su -l vllm -s /bin/sh -c 'exec MODEL'",
            "cd /tmp\n/sbin/runuser -l vllm -s /bin/sh -c 'MODEL'\nexit 1",
            "true\nsudo -iu deploy MODEL\nexit 1",
        ] {
            serves_by(world, line, None).await?;
            let main = world.guest.listeners(SLOTS.0).await?[0];
            let group = fs::read_to_string(world.guest.file(&format!("/proc/{main}/cgroup"))?)?;
            assert!(group.contains("/session-c"), "{line}: {group}");
            let said = [
                format!("process {main} ({ENGINE} serve {OLD}"),
                "is outside of unit llm.service, which started it".to_owned(),
                "write User= in its [Service]".to_owned(),
                format!("systemctl stop llm.service; kill {main}; systemctl start llm.service"),
            ];
            let said = said.each_ref().map(String::as_str);
            let doctor = world.run("doctor", NEW, &[]).await?.refused(3, &said);
            assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
            world.run("plan", NEW, &[]).await?.refused(3, &said);
            world.run("swap", NEW, &[]).await?.refused(3, &said);
            ends(world).await?;
        }
        let drop_in = world.guest.file("/etc/systemd/system/llm.service.d/user.conf")?;
        fs::create_dir_all(drop_in.parent().context("a folder")?)?;
        fs::write(drop_in, "[Service]\nUser=vllm\n")?;
        serves_by(world, "MODEL", None).await?;
        world.run("plan", NEW, &[]).await?.answered(&["kept by the systemd unit llm.service"]);
        Ok(())
    })
}
