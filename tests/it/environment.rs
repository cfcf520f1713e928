//! Everything around a swap that can be wrong: each refused with exit code 3, in the words of `environment.txt`, which say how
//! to mend it, and nothing started.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result};
use jiff::Timestamp;
use model_swap::host::process;
use model_swap::lease::Lease;
use model_swap::model::state::{Holder, Requester};
use testbed::guest::{SLOTS, USER};
use testbed::server::{free_port, listeners};

use crate::doctor::NVIDIA_SMI;
use crate::ssh::new_key;
use crate::step::{Step, send, until};
use crate::support::guest::on_guest;
use crate::support::snapshot::{Snapshots, complaints};
use crate::support::{Action, NEW, OLD, World};

const TABLE: &str = include_str!("environment.txt");

/// What is said of a world, and held to the table.
struct Told<'a> {
    world: &'a World,
    rows: Snapshots,
}

impl<'a> Told<'a> {
    fn of(world: &'a World) -> Self {
        let mut rows = Snapshots::of(TABLE);
        let server = &world.server;
        let (a, b) = server.slot_ports();
        rows.name(server.scratch().display(), "SCRATCH");
        rows.name(server.ssh_host(), "USER@SERVER");
        for (port, name) in [(server.ssh_port(), "SSH"), (a, "8001"), (b, "8002")] {
            rows.name(port, name);
        }
        Self { world, rows }
    }

    /// Runs a command with a configuration of its own, and holds its refusal to a row.
    async fn by(
        &mut self,
        row: &str,
        (command, config): (&str, &str),
        inputs: &[(&str, &str)],
    ) -> Result<()> {
        let action = self.world.action(command, NEW, inputs)?.with_config(config)?;
        refused(&mut self.rows, row, action).await
    }

    async fn swap(&mut self, row: &str, config: &str) -> Result<()> {
        self.by(row, ("swap", config), &[]).await
    }
}

/// Holds a refusal, as the environment's fault, to a row.
async fn refused(rows: &mut Snapshots, row: &str, action: Action) -> Result<()> {
    let run = Step::run(action).await?.refused(3, &[]);
    assert!(run.outputs.is_empty(), "{run}");
    let said = complaints(&run);
    assert!(said.contains("    hint: "), "nothing says how to mend it\n{run}");
    rows.row(row, &said);
    Ok(())
}

#[test]
fn the_table_is_as_long_as_it_was() {
    assert!(Snapshots::of(TABLE).len() >= 22);
}

#[tokio::test]
async fn the_way_to_the_server() -> Result<()> {
    let world = World::start().await?;
    let config = world.config(NEW);
    let mut told = Told::of(&world);
    let (key, public) = new_key("")?;
    let port = world.server.ssh_port();
    // A key is named by its text, and where it is to be compared by its digest.
    let hosts = world.server.known_hosts().trim().to_owned();
    let host_key = hosts.split_whitespace().nth(2).context("a key")?;
    told.rows.name(host_key, "HOSTKEY");
    told.rows.name(fingerprint(&hosts)?, "FINGERPRINT");

    told.by("a key that does not open", ("swap", &config), &[("ssh-key", &key)]).await?;
    let elsewhere = hosts.replace("127.0.0.1", "127.0.0.2");
    told.by("no host key pinned", ("swap", &config), &[("known-hosts", &elsewhere)]).await?;
    let changed = format!("[127.0.0.1]:{port} {public}\n");
    told.by("another host key", ("swap", &config), &[("known-hosts", &changed)]).await?;
    let closed = free_port()?;
    told.rows.name(closed, "CLOSED");
    let nobody = config.replace(&port.to_string(), &closed.to_string());
    told.swap("nobody listens for ssh", &nobody).await?;
    told.rows.assert();

    // What a resolver answers differs from network to network.
    let unknown = [("host", "deploy@no-such-host.invalid")];
    let run = Step::run(world.action("swap", NEW, &unknown)?).await?;
    run.refused(3, &["is not known by that name", "hint: check host for a typing error"]);
    let state = world.server.state_dir().display().to_string();
    let file = world.server.scratch().join("ssh/login").display().to_string();
    let nowhere = config.replace(&format!("state_dir: {state}"), &format!("state_dir: {file}/x"));
    let action = world.action("swap", NEW, &[])?.with_config(&nowhere)?;
    Step::run(action).await?.refused(3, &["the agent could not be installed", "Not a directory"]);
    assert!(world.old_runs()?);
    Ok(())
}

/// As ssh-keygen shows the key of a line of known_hosts.
fn fingerprint(line: &str) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(&file, format!("{line}\n"))?;
    let output = std::process::Command::new("ssh-keygen").arg("-lf").arg(file.path()).output()?;
    let said = String::from_utf8(output.stdout)?;
    Ok(said.split(' ').nth(1).context("a fingerprint")?.to_owned())
}

#[tokio::test]
async fn the_server() -> Result<()> {
    let world = World::start().await?;
    let (a, b) = world.server.slot_ports();
    let config = world.config(NEW);
    let mut told = Told::of(&world);
    let line = config.lines().find(|line| line.starts_with("  command: ")).context("a command")?;
    let with_command = |command: &str| config.replacen(line, &format!("  command: {command}"), 1);

    let unknown = with_command("no-such-engine --port {port}");
    let unknown = unknown.replacen("env: { ", "env: { PATH: \"/usr/bin:/bin\", ", 1);
    told.swap("an engine that is not there", &unknown).await?;
    let plain = world.server.nginx_config().display().to_string();
    let text = with_command(&format!("{plain} --port {{port}}"));
    told.swap("an engine that is no program", &text).await?;
    let user = config.replace("replica:\n", "replica:\n  user: no-such-user\n");
    told.swap("a user who is not there", &user).await?;

    let stranger = TcpListener::bind(("127.0.0.1", b))?;
    told.rows.name(std::process::id(), "PID");
    told.rows.name(std::env::args().collect::<Vec<_>>().join(" "), "ARGV");
    told.swap("a port that is taken", &config).await?;
    drop(stranger);

    world.server.put_program("nvidia-smi", NVIDIA_SMI)?;
    let gpu = config.replace(&format!("{b}, gpus: []"), &format!("{b}, gpus: [7]"));
    told.by("a GPU that is not there", ("doctor", &gpu), &[]).await?;

    let state = world.server.state_dir();
    let claim = state.join(format!("claims/port-{b}"));
    fs::write(&claim, r#"{ "service": "code", "slot": "a" }"#)?;
    told.by("a port of another service", ("doctor", &config), &[]).await?;
    told.by("a port of another service at plan", ("plan", &config), &[]).await?;
    fs::remove_file(claim)?;
    // The same GPU by the name that the other service has for it.
    let claim = state.join("claims/gpu-GPU-5d3a");
    fs::write(&claim, r#"{ "service": "code", "slot": "a" }"#)?;
    let gpu = gpu.replace("[7]", "[0]");
    told.by("a GPU of another service", ("doctor", &gpu), &[]).await?;
    told.by("a GPU of another service at plan", ("plan", &gpu), &[]).await?;
    fs::remove_file(claim)?;

    let record = state.join("chat/state.json");
    fs::write(&record, "{")?;
    told.swap("a damaged state", &config).await?;
    fs::write(&record, r#"{ "v": 99 }"#)?;
    told.swap("a state of a newer version", &config).await?;
    fs::remove_file(record)?;

    let since = "2026-11-25T10:00:00Z".parse::<Timestamp>()?;
    let holder = Holder {
        swap: "s-1".parse()?,
        since,
        process: process::own(),
        command: "swap".to_owned(),
        requester: Requester { actor: Some("ann".to_owned()), ..Requester::default() },
        recovers: None,
    };
    let lease = Lease::take(&state.join("chat"), &holder)?;
    told.swap("somebody at work", &config).await?;
    drop(lease);

    told.rows.assert();
    assert!(world.old_runs()? && listeners(b)? == [0_u32; 0], "something was started");
    assert_eq!((world.serves().await?.as_str(), listeners(a)?.len()), (OLD, 1));
    Ok(())
}

/// What only root can make wrong, and what the user may not do.
#[test]
fn a_server_with_systemd() -> Result<()> {
    const STATE: &str = "/var/lib/model-swap";
    on_guest(async |world| {
        let guest = &world.guest;
        let mut rows = Snapshots::of(TABLE);
        rows.name(guest.address(), "SERVER");
        let swap = || world.action("swap", NEW, &[]);
        for (row, rule) in [
            ("a sudo that wants a password", "deploy ALL=(root) ALL"),
            ("a sudo that allows something else", "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl"),
            (
                "a sudo that wants a terminal",
                "Defaults:deploy requiretty\ndeploy ALL=(root) NOPASSWD: ALL",
            ),
        ] {
            fs::write(guest.file(&format!("/etc/sudoers.d/{USER}"))?, format!("{rule}\n"))?;
            refused(&mut rows, row, swap()?).await?;
        }
        let rule = format!("{USER} ALL=(root) NOPASSWD: ALL\n");
        fs::write(guest.file(&format!("/etc/sudoers.d/{USER}"))?, rule)?;

        guest.run(&["mkdir", "-p", STATE]).await?;
        guest.run(&["chown", USER, STATE]).await?;
        refused(&mut rows, "a state folder of somebody else", swap()?).await?;
        guest.run(&["chown", "root", STATE]).await?;

        guest.run(&["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", STATE]).await?;
        let fill = format!("dd if=/dev/zero of={STATE}/fill 2>/dev/null; df {STATE}");
        let full = guest.run(&["sh", "-c", &fill]).await?;
        assert!(full.contains("100%"), "the disk is not full: {full}");
        refused(&mut rows, "a state folder without room", swap()?).await?;
        let doctor = Step::run(world.action("doctor", NEW, &[])?).await?;
        doctor.refused(3, &["room for state", "0 MiB free in", "make room, or set state_dir"]);
        assert!(guest.listeners(SLOTS.1).await?.is_empty(), "something was started");
        world.until_serves(OLD).await?;
        rows.assert();

        guest.run(&["rm", &format!("{STATE}/fill")]).await?;
        // What somebody has mounted for reading alone, or an error on the disk has made so.
        let remount =
            async |how: &str| guest.run(&["mount", "-o", &format!("remount,{how}"), STATE]).await;
        remount("ro").await?;
        let run = Step::run(world.action("swap", NEW, &[])?).await?;
        let run =
            run.refused(3, &["cannot write ", STATE, "Read-only file system", "set state_dir"]);
        assert!(run.outputs.is_empty(), "{run}");
        assert!(guest.listeners(SLOTS.1).await?.is_empty(), "something was started");
        world.until_serves(OLD).await?;
        remount("rw").await?;
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        Ok(())
    })
}

/// The disk of systemd's own folder takes one file more from one swap to the next: the agent's unit, the new model's, what
/// changes in it when it is promoted.
#[test]
fn a_folder_of_units_without_room_for_one_more() -> Result<()> {
    const UNITS: &str = "/etc/systemd/system";
    /// Of a tmpfs: a file takes at least as much.
    const PAGE: usize = 4096;
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        let aside = format!(
            "cp -a {UNITS} /tmp/units && mount -t tmpfs -o mode=0755 tmpfs {UNITS} && cp -a /tmp/units/. {UNITS}/"
        );
        world.guest.run(&["sh", "-c", &aside]).await?;
        let used = world.guest.run(&["df", "--output=used", "--block-size=1", UNITS]).await?;
        let used: usize = used.lines().last().unwrap_or_default().trim().parse()?;
        let load = world.load().await?;
        let mut refused = 0;
        for free in 0.. {
            let size = format!("remount,size={}", used + free * PAGE);
            world.guest.run(&["mount", "-o", &size, UNITS]).await?;
            let run = Step::run(world.action("swap", NEW, &[("wait", "retired")])?).await?;
            if run.code == 0 {
                break;
            }
            assert!(run.stdout.contains("No space left on device"), "{free} pages free: {run}");
            assert!(run.stdout.contains(UNITS), "{free} pages free: {run}");
            refused += 1;
            world.until_through().await?;
            world.until_serves(OLD).await?;
            assert_eq!(world.left().await?, [""; 0], "{free} pages free: {run}");
            assert!(world.guest.listeners(SLOTS.1).await?.is_empty(), "{free} pages free: {run}");
        }
        assert!(refused > 1, "only {refused} writes were refused");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();
        Ok(())
    })
}

#[tokio::test]
async fn nginx() -> Result<()> {
    let world = World::start().await?;
    let (a, _) = world.server.slot_ports();
    let config = world.config(NEW);
    let mut told = Told::of(&world);
    let file = world.server.nginx_config();
    let good = fs::read_to_string(&file)?;
    let stranger = free_port()?;
    told.rows.name(stranger, "STRANGER");
    told.rows.name(world.server.nginx_command().join(" "), "NGINX");
    for (row, text) in [
        ("an nginx configuration that is broken", format!("{good}bogus on;\n")),
        ("an upstream that is not there", good.replace("llm", "lmm")),
        (
            "an upstream that points at no slot",
            good.replace(&format!("127.0.0.1:{a};"), &format!("127.0.0.1:{stranger};")),
        ),
    ] {
        fs::write(&file, &text)?;
        told.swap(row, &config).await?;
        assert_eq!(fs::read_to_string(&file)?, text, "the file was touched");
        fs::write(&file, &good)?;
    }
    let words = world.server.nginx_command();
    let absent = config.replace(&format!("{:?}", words[0]), "\"/opt/edge/nginx\"");
    told.swap("an nginx that is not here", &absent).await?;
    told.rows.assert();

    // Which other ones run on this machine, the tests beside this one know.
    let master = world.server.nginx_master()?;
    send("-QUIT", master)?;
    until("nginx ends", || Ok((world.server.nginx_master().is_err()).then_some(()))).await?;
    let action = world.action("swap", NEW, &[])?.with_config(&config)?;
    Step::run(action).await?.refused(3, &["no running nginx was found", "nginx.pid", "hint: "]);
    let action = world.action("doctor", NEW, &[])?.with_config(&config)?;
    let doctor = Step::run(action).await?.refused(3, &["no running nginx was found"]);
    assert!(doctor.stdout.contains("the running nginx is not known"), "{doctor}");
    assert!(world.old_runs()?);
    Ok(())
}
