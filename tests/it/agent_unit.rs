//! The unit that brings an agent back: what that agent has of the environment, and that a boot starts it.

use std::fs;

use anyhow::Result;
use testbed::action::Action;
use testbed::guest::{GuestSpec, UPSTREAM_FILE};
use testbed::service::Site;

use crate::step::Step;
use crate::support::guest::{GuestWorld, on_guest, on_guest_of};
use crate::support::scene::Scene;
use crate::support::{NEW, OLD, binary};

const UNIT: &str = "model-swap-agent@chat.service";

/// A program of the server's that only sudo finds.
const WRAPPER: (&str, &str) =
    ("/opt/100% ours/nginx-here", "#!/bin/sh\nexec /usr/sbin/nginx \"$@\"\n");

const SUDOERS: &str = "Defaults secure_path=\"/opt/100% ours:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"
Defaults env_file=/etc/ours
";

const ENVIRONMENT: &str = "DOCKER_HOST=unix:///run/ours.sock
DOCKER_AUTH_CONFIG=canary
";

/// A swap by way of the wrapper, that waits for a word which never comes.
async fn in_verify(world: &mut GuestWorld) -> Result<Step> {
    let nowhere = format!("http://{}:9/v1/models", world.guest.address());
    world.settings.verify = format!("{{ url: {nowhere:?} }}");
    let nginx_command = Some(vec!["nginx-here".to_owned()]);
    let site = Site { nginx_command, ..world.guest.site() };
    let config = world.settings.config_on(&site, NEW)?;
    let access =
        [("ssh-key", world.guest.private_key()), ("known-hosts", world.guest.known_hosts())];
    let action = Action::new(&binary(), &config)?.with_inputs(&[("command", "swap")]);
    let mut step = Step::start(action.with_inputs(&access))?;
    step.says("→ verify b").await?;
    Ok(step)
}

#[test]
fn an_agent_that_comes_back_finds_what_the_one_before_found() -> Result<()> {
    let mut spec = GuestSpec::serving(OLD);
    spec.files = vec![
        (WRAPPER.0.to_owned(), 0o755, WRAPPER.1.to_owned()),
        ("/etc/sudoers.d/ours".to_owned(), 0o440, SUDOERS.to_owned()),
        ("/etc/ours".to_owned(), 0o644, ENVIRONMENT.to_owned()),
    ];
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        let step = in_verify(world).await?;
        let environment = world.property(UNIT, "Environment").await?;
        Scene::kill_agent(world).await?;
        world.until_through().await?;
        step.finish().await?.ended(5, "rolled-back");
        world.until_serves(OLD).await?;
        assert!(fs::read_to_string(world.guest.file(UPSTREAM_FILE)?)?.contains("127.0.0.1:8001;"));
        assert!(environment.contains("DOCKER_HOST=unix:///run/ours.sock"), "{environment}");
        assert!(!environment.contains("canary"), "{environment}");
        Ok(())
    })
}

#[test]
fn a_unit_that_no_boot_starts_any_more_is_enabled_again() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "1h".to_owned();
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        world.guest.run(&["systemctl", "disable", UNIT]).await?;
        assert_eq!(world.unit(UNIT).await?, "active disabled on-failure");
        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", "Qwen/Newer", &[])?)?;
        step.says("→ await_ready a").await?;
        assert_eq!(world.unit(UNIT).await?, "active enabled on-failure");
        world.run("abort", NEW, &[]).await?.ended(0, "aborted");
        step.finish().await?.ended(6, "aborted");
        Ok(())
    })
}
