//! The machine goes down and comes back, in order or not, at every stage of a swap. Nobody asks for anything afterwards: the
//! service answers through nginx, and systemd's agent brings the story to its end.

use anyhow::{Context, Result};
use jiff::Timestamp;
use testbed::guest::{GuestSpec, INCUMBENT, Runtime, SLOTS, UPSTREAM_FILE};
use testbed::load::{Kind, Load, LoadSpec};

use crate::doctor::mark;
use crate::step::Step;
use crate::support::guest::{GuestWorld, on_guest, on_guest_of, until};
use crate::support::scene::{Kept, Scene};
use crate::support::{NAME, NEW, OLD};

/// How the machine goes down.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// `systemctl reboot`.
    Reboot,
    /// SIGKILL for its PID 1, and on again.
    PowerLoss,
}

impl Outage {
    async fn strike(self, world: &mut GuestWorld) -> Result<()> {
        match self {
            Self::Reboot => world.guest.reboot().await,
            Self::PowerLoss => {
                world.guest.power_loss().await?;
                world.guest.power_on().await
            }
        }
    }
}

async fn serves_cleanly(world: &GuestWorld, model: &str) -> Result<()> {
    world.until_serves(model).await?;
    world.load().await?.stop().await.assert_clean();
    world.until_serves(model).await
}

/// Runs a test on a machine whose old model answers slowly, so that a stream of it lasts.
fn on_slow(runtime: Runtime, test: impl AsyncFnOnce(&mut GuestWorld) -> Result<()>) -> Result<()> {
    let slow = Some((OLD.to_owned(), "--stub-token-delay 5ms".to_owned()));
    let held = ("/usr/local/bin/systemctl".to_owned(), 0o755, HELD.to_owned());
    let spec = GuestSpec { runtime, incumbent: slow, files: vec![held], ..GuestSpec::bare() };
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        test(world).await
    })
}

/// The old one is retired.
async fn with_the_new_model(world: &mut GuestWorld, outage: Outage) -> Result<()> {
    world.until_through().await?;
    outage.strike(world).await?;
    serves_cleanly(world, NEW).await?;
    assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "it was retired");
    assert_eq!(world.old().await?, Kept::Stopped);
    assert_eq!(world.ours().await?, [('b', Kept::Boots)]);
    Ok(())
}

#[test]
fn what_serves_comes_back_with_the_machine() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        Outage::PowerLoss.strike(world).await?;
        serves_cleanly(world, OLD).await?;
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        with_the_new_model(world, Outage::Reboot).await.context("rebooted")?;
        with_the_new_model(world, Outage::PowerLoss).await.context("power lost")
    })
}

async fn in_mid_load(world: &mut GuestWorld, outage: Outage) -> Result<()> {
    world.settings.flags = "--stub-load-time 600s".to_owned();
    world.settings.ready = "900s".to_owned();
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    assert!(!world.of_last_swap("journal.ndjson").await?.contains(r#""undo_started""#));
    outage.strike(world).await?;
    step.kill()?;
    serves_cleanly(world, OLD).await?;
    world.until_through().await?;
    assert!(world.guest.listeners(SLOTS.1).await?.is_empty());
    assert_eq!(world.left().await?, Vec::<String>::new());
    assert_eq!(world.ours().await?, []);
    assert!(world.of_last_swap("journal.ndjson").await?.contains(r#""concluded""#));
    world.run("status", NEW, &[]).await?.answered(&["failed       Qwen/New"]);
    Ok(())
}

#[test]
fn a_reboot_in_mid_load_ends_in_the_old_model() -> Result<()> {
    on_guest(async |world| in_mid_load(world, Outage::Reboot).await)
}

#[test]
fn a_power_loss_in_mid_load_ends_in_the_old_model() -> Result<()> {
    on_guest(async |world| in_mid_load(world, Outage::PowerLoss).await)
}

/// When it promotes, the agent has systemd read the candidate's unit again, and this `systemctl` holds it until the machine is
/// down.
const HELD: &str = r#"#!/bin/sh
case " $* " in
*" daemon-reload "*)
    while [ -e /run/hold ] && grep -q 127.0.0.1:8002 /etc/nginx/conf.d/llm.conf; do sleep 0.1; done ;;
esac
exec /usr/bin/systemctl "$@"
"#;

async fn between_cutover_and_promote(world: &mut GuestWorld, outage: Outage) -> Result<()> {
    let held_in = match world.guest.runtime() {
        Runtime::Systemd => {
            std::fs::write(world.guest.file("/run/hold")?, "")?;
            "→ promote b"
        }
        // There it has nothing to say to Docker: it waits for a word that never comes.
        Runtime::Docker => {
            let nowhere = format!("http://{}:9/v1/models", world.guest.address());
            world.settings.verify = format!("{{ url: {nowhere:?} }}");
            "→ verify b"
        }
    };
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says(held_in).await?;
    world.until_serves(NEW).await?;
    let journal = world.of_last_swap("journal.ndjson").await?;
    assert!(!journal.contains(r#""concluded""#), "it has its outcome already: {journal}");
    outage.strike(world).await?;
    step.kill()?;
    world.until_through().await?;
    serves_cleanly(world, OLD).await?;
    assert!(world.guest.listeners(SLOTS.1).await?.is_empty(), "the new model is gone");
    let journal = world.of_last_swap("journal.ndjson").await?;
    assert!(journal.contains(r#""rolled-back""#), "{journal}");
    Ok(())
}

#[test]
fn a_reboot_between_cutover_and_promote_ends_in_the_old_model() -> Result<()> {
    on_slow(Runtime::Systemd, async |world| {
        between_cutover_and_promote(world, Outage::Reboot).await
    })
}

#[test]
fn a_power_loss_between_cutover_and_promote_ends_in_the_old_model() -> Result<()> {
    on_slow(Runtime::Systemd, async |world| {
        between_cutover_and_promote(world, Outage::PowerLoss).await
    })
}

/// Holds a shutdown up for as long as a file is there.
const HOLD: &str = "[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'while [ -e /run/hold ]; do sleep 0.1; done'
TimeoutStopSec=infinity
";

/// Tells that somebody has learned of a shutdown.
const TELLING: &str = r#"#!/bin/sh
case "$*" in
is-system-running) [ "$(/usr/bin/systemctl "$@")" = stopping ] && : > /run/learned ;;
esac
exec /usr/bin/systemctl "$@"
"#;

/// Where logind knows of no session, as over an sshd without PAM, nothing ends it before the rest: it sees nginx and both models go.
#[test]
fn an_agent_that_sees_the_server_go_down_takes_that_for_no_failure() -> Result<()> {
    let mut spec = GuestSpec::serving(OLD);
    for (path, mode, text) in [
        ("/etc/pam.d/common-session", 0o644, "session required pam_unix.so\n"),
        ("/etc/systemd/system/hold.service", 0o644, HOLD),
        ("/usr/local/bin/systemctl", 0o755, TELLING),
    ] {
        spec.files.push((path.to_owned(), mode, text.to_owned()));
    }
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        let nowhere = format!("http://{}:9/v1/models", world.guest.address());
        world.settings.verify = format!("{{ url: {nowhere:?}, within: 10s }}");
        world.guest.run(&["systemctl", "start", "hold.service"]).await?;
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ verify b").await?;
        let [hold, learned] = ["hold", "learned"].map(|name| format!("/run/{name}"));
        let [hold, learned] = [world.guest.file(&hold)?, world.guest.file(&learned)?];
        std::fs::write(&hold, "")?;
        let released = async {
            until("the agent learns of it", async || Ok(learned.exists())).await?;
            Ok(std::fs::remove_file(&hold)?)
        };
        tokio::try_join!(world.guest.reboot(), released)?;
        step.kill()?;
        world.until_through().await?;
        serves_cleanly(world, OLD).await?;
        let journal = world.of_last_swap("journal.ndjson").await?;
        assert!(journal.contains(r#""rolled-back""#), "{journal}");
        assert!(!journal.contains(r#""undo_failed""#), "{journal}");
        Ok(())
    })
}

async fn within_retain(world: &mut GuestWorld, outage: Outage) -> Result<()> {
    world.settings.retain = "1h".to_owned();
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    outage.strike(world).await?;
    serves_cleanly(world, NEW).await?;
    until("the old model is there again", async || {
        Ok(!world.guest.listeners(SLOTS.0).await?.is_empty())
    })
    .await?;
    assert_eq!(world.old().await?, Kept::Boots);
    let status = world.run("status", NEW, &[]).await?;
    let row = status.stdout.lines().find(|line| line.starts_with("  a ")).context("slot a")?;
    assert!(row.contains("retained"), "{status}");
    let kept = format!("kept for a rollback, {NAME} ({OLD})");
    world.run("doctor", NEW, &[]).await?.answered(&[&kept]);
    world.settings.retain = "0s".to_owned();
    let load = world.load().await?;
    let run = world.run("rollback", NEW, &[("wait", "retired")]).await?;
    let run = run.ended(0, "rolled-back");
    assert!(!run.stdout.contains("start_replica"), "it was warm: {run}");
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    world.until_through().await
}

#[test]
fn a_reboot_within_retain_leaves_the_way_back_warm() -> Result<()> {
    on_guest(async |world| within_retain(world, Outage::Reboot).await)
}

/// Nobody listens there, and its GPU is taken: who wants the slot has it stopped first.
#[test]
fn what_is_kept_warm_is_so_while_it_loads_again_after_a_reboot() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "1h".to_owned();
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let slow = "s/^ExecStart=.*/& --stub-load-time 600s/";
        let unit = format!("/etc/systemd/system/{INCUMBENT}");
        world.guest.run(&["sed", "--in-place", slow, &unit]).await?;
        Outage::Reboot.strike(world).await?;
        serves_cleanly(world, NEW).await?;
        assert_eq!(world.unit(INCUMBENT).await?, "active enabled always");
        let status = world.run("status", NEW, &[]).await?;
        let row = status.stdout.lines().find(|line| line.starts_with("  a ")).context("slot a")?;
        let row: Vec<_> = row.split_whitespace().take(4).collect();
        assert_eq!(row, ["a", "8001", "retained", "no"], "{status}");
        let doctor = world.run("doctor", NEW, &[]).await?;
        let said =
            format!("kept for a rollback by the systemd unit {INCUMBENT}, and nobody listens");
        let doctor = doctor.answered(&[&said]);
        assert_eq!(mark(&doctor, "slot a, port 8001"), "warn", "{doctor}");

        let third = "Qwen/Third";
        let retires = format!("kept by the systemd unit {INCUMBENT}) for good");
        world.run("plan", third, &[]).await?.answered(&[&retires]);
        let run = world.run("swap", third, &[]).await?.ended(0, "promoted");
        assert_eq!(world.unit(INCUMBENT).await?, "inactive disabled always", "{run}");
        assert!(world.guest.run(&["pgrep", "--full", "serve Qwen/Old"]).await.is_err(), "{run}");
        world.until_serves(third).await
    })
}

#[test]
fn a_power_loss_within_retain_still_ends_with_the_old_model_retired() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "10s".to_owned();
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        Outage::PowerLoss.strike(world).await?;
        serves_cleanly(world, NEW).await?;
        world.until_through().await?;
        assert!(world.guest.listeners(SLOTS.0).await?.is_empty());
        assert_eq!(world.old().await?, Kept::Stopped);
        world.run("status", NEW, &[]).await?.answered(&["free"]);
        Ok(())
    })
}

/// The model that a person had started does not come back: the new one stays, and the swap is finished.
fn after_the_cutover_from_a_process(runtime: Runtime) -> Result<()> {
    on_guest_of(GuestSpec { runtime, ..GuestSpec::bare() }, async |world| {
        world.guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        let file = world.guest.file(UPSTREAM_FILE)?;
        until("nginx's file names the new model", async || {
            Ok(std::fs::read_to_string(&file)?.contains("8002"))
        })
        .await?;
        let lost_at = Timestamp::now();
        Outage::PowerLoss.strike(world).await?;
        step.kill()?;
        serves_cleanly(world, NEW).await?;
        world.until_through().await?;
        world.run("status", NEW, &[]).await?.answered(&["promoted     Qwen/New"]);
        let journal = world.of_last_swap("journal.ndjson").await?;
        let end = journal.lines().find(|line| line.contains(r#""concluded""#)).context("an end")?;
        let end: serde_json::Value = serde_json::from_str(end)?;
        let at: Timestamp = end["at"].as_str().context("a time")?.parse()?;
        assert!(at > lost_at, "the swap had its end before the power failed: {journal}");
        Ok(())
    })
}

#[test]
fn a_power_loss_after_the_cutover_from_a_process_finishes_the_swap() -> Result<()> {
    after_the_cutover_from_a_process(Runtime::Systemd)
}

#[test]
fn a_power_loss_after_the_cutover_from_a_process_to_a_container_finishes_the_swap() -> Result<()> {
    after_the_cutover_from_a_process(Runtime::Docker)
}

async fn while_draining(world: &mut GuestWorld, outage: Outage) -> Result<()> {
    world.settings.retain = "0s".to_owned();
    world.settings.drain = "{ timeout: 1h }".to_owned();
    let addr = world.guest.nginx_addr();
    let spec = LoadSpec { streams: 1, stream_tokens: 1_000_000, ..LoadSpec::none(addr, NAME) };
    let stream = Load::start(spec);
    stream.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    let mut step = Step::start(world.action("swap", NEW, &[("wait", "retired")])?)?;
    step.says("→ drain a").await?;
    assert!(!world.guest.listeners(SLOTS.0).await?.is_empty(), "it is not retired yet");
    outage.strike(world).await?;
    step.kill()?;
    drop(stream);
    serves_cleanly(world, NEW).await?;
    world.until_through().await?;
    assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "it is retired");
    serves_cleanly(world, NEW).await
}

#[test]
fn a_reboot_while_draining_ends_with_the_old_model_retired() -> Result<()> {
    on_slow(Runtime::Systemd, async |world| while_draining(world, Outage::Reboot).await)
}

#[test]
fn a_power_loss_while_draining_ends_with_the_old_model_retired() -> Result<()> {
    on_slow(Runtime::Systemd, async |world| while_draining(world, Outage::PowerLoss).await)
}

/// No way back leads from there, whatever came of it.
#[test]
fn a_power_loss_while_retiring_ends_with_the_old_model_retired() -> Result<()> {
    let stubborn = ("Qwen/Old".to_owned(), "--stub-hang-on-term".to_owned());
    let spec = GuestSpec { incumbent: Some(stubborn), ..GuestSpec::bare() };
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        world.settings.retain = "0s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[("wait", "retired")])?)?;
        step.says("→ retire a").await?;
        until("the old model is being stopped", async || {
            Ok(world.unit(INCUMBENT).await?.starts_with("deactivating"))
        })
        .await?;
        Outage::PowerLoss.strike(world).await?;
        step.kill()?;
        serves_cleanly(world, NEW).await?;
        world.until_through().await?;
        assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "it is retired");
        assert_eq!(world.unit(INCUMBENT).await?, "inactive disabled always");
        serves_cleanly(world, NEW).await
    })
}

/// What is stuck is left to a person, without an agent that waits; half undone it is unfinished again.
#[test]
fn a_power_loss_in_a_repair_ends_in_the_old_model() -> Result<()> {
    on_guest(async |world| {
        let nowhere = format!("http://{}:9/v1/models", world.guest.address());
        world.settings.verify = format!("{{ url: {nowhere:?} }}");
        world.settings.flags = "--stub-hang-on-term".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ verify b").await?;
        let file = world.guest.file(UPSTREAM_FILE)?;
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, text.replace("127.0.0.1:8002;", "127.0.0.1:8001 weight=7;"))?;
        world.run("abort", NEW, &[]).await?.ended(7, "stuck");
        step.finish().await?.ended(7, "stuck");
        world.until_through().await?;

        std::fs::write(&file, &text)?;
        let mut repair = Step::start(world.action("repair", NEW, &[])?)?;
        // It does not end when it is asked to.
        repair.says("↩ undo start_replica b").await?;
        assert!(world.is_armed()?, "{}", repair.said());
        Outage::PowerLoss.strike(world).await?;
        repair.kill()?;
        world.until_through().await?;
        serves_cleanly(world, OLD).await?;
        assert_eq!(world.ours().await?, []);
        world.run("status", NEW, &[]).await?.answered(&["aborted      Qwen/New"]);
        Ok(())
    })
}

/// Who aborts a swap that has no agent any more may die as well.
#[test]
fn an_abort_of_what_no_agent_works_on_is_gone_on_with_by_another() -> Result<()> {
    on_guest(async |world| {
        world.settings.flags = "--stub-load-time 600s --stub-hang-on-term".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        // A person takes the unit away.
        let unit = "model-swap-agent@chat.service";
        world.guest.run(&["systemctl", "disable", "--now", unit]).await?;
        std::fs::remove_file(world.guest.file("/etc/systemd/system")?.join(unit))?;
        world.guest.run(&["systemctl", "daemon-reload"]).await?;
        step.kill()?;
        world.kill_agent().await?;
        assert!(!world.is_armed()?);

        let mut abort = Step::start(world.action("abort", NEW, &[])?)?;
        abort.says("↩ undo start_replica b").await?;
        assert!(world.is_armed()?, "{}", abort.said());
        world.guest.run(&["pkill", "-KILL", "-f", "model-swap agent run"]).await?;
        abort.finish().await?.ended(0, "aborted");
        world.until_through().await?;
        assert_eq!(world.ours().await?, []);
        world.until_serves(OLD).await
    })
}

/// One machine for all stages: its Engine comes back with it, and starts what it is to start.
fn at_every_stage(outage: Outage) -> Result<()> {
    on_slow(Runtime::Docker, async |world| {
        let settings = world.settings.clone();
        in_mid_load(world, outage).await.context("in mid-load")?;
        world.settings = settings.clone();
        between_cutover_and_promote(world, outage).await.context("after the cutover")?;
        world.settings = settings.clone();
        within_retain(world, outage).await.context("within retain")?;
        world.settings = settings;
        while_draining(world, outage).await.context("while draining")?;
        with_the_new_model(world, outage).await.context("with the new model")
    })
}

/// The Engine ends before the agent, or after it.
#[test]
fn containers_come_back_from_a_reboot_at_every_stage() -> Result<()> {
    at_every_stage(Outage::Reboot)
}

#[test]
fn containers_come_back_from_a_power_loss_at_every_stage() -> Result<()> {
    at_every_stage(Outage::PowerLoss)
}
