//! nginx that cannot, will not or only seems to load the change: traffic stays where it was, and nginx's words are shown.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::load::http::get;
use testbed::load::{Load, LoadSpec};
use testbed::server::{Ports, ServerSpec, default_upstream_file, free_port, listeners};

use crate::runner;
use crate::support::{NAME, NEW, OLD, Run, World};

/// `nobody` of Debian; any user but root would do.
const NOBODY: u32 = 65534;

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_starts() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let Ports { a, .. } = world.server.ports();
    let good = fs::read_to_string(world.server.nginx_config())?;
    let server = format!("server 127.0.0.1:{a};");
    let stranger = free_port()?;
    let direct =
        good.replace("proxy_pass http://llm;", &format!("proxy_pass http://127.0.0.1:{a};"));
    let (head, location) = direct.split_once("}\n").context("no upstream block")?;
    ensure!(head.starts_with("upstream llm"));
    let paste = format!("upstream llm {{\n{:18}server 127.0.0.1:{a};", "");
    let missing = world.server.scratch().join("gone/access.log");
    let cases: [(&str, String, Vec<String>); 7] = [
        (
            "a broken file",
            format!("{good}bogus on;\n"),
            vec!["unknown directive \"bogus\"".to_owned()],
        ),
        (
            "a log in a folder that is not there",
            good.replacen("server {", &format!("server {{ access_log {};", missing.display()), 1),
            vec![format!("open() \"{}\" failed (2: No such file or directory)", missing.display())],
        ),
        (
            "an upstream of another name",
            good.replace("llm", "lmm"),
            vec!["nginx has no upstream `llm`".to_owned(), "did you mean `lmm`?".to_owned()],
        ),
        (
            "a location that goes straight to the model",
            location.to_owned(),
            vec![
                "nginx has no upstream `llm`".to_owned(),
                paste,
                "proxy_pass http://llm;".to_owned(),
            ],
        ),
        (
            "two active servers",
            good.replace(&server, &format!("{server} server 127.0.0.1:{stranger};")),
            vec!["upstream `llm` has 2 active `server` lines".to_owned()],
        ),
        (
            "a server that is no slot",
            good.replace(&server, &format!("server 127.0.0.1:{stranger};")),
            vec![format!("points at port {stranger}, which is no slot's (slots: a: {a}")],
        ),
        (
            "no active server",
            good.replace(&server, &format!("server 127.0.0.1:{a} backup;")),
            vec!["no servers in upstream".to_owned()],
        ),
    ];
    for (what, text, words) in cases {
        ensure!(text != good, "{what}: nothing was changed");
        fs::write(world.server.nginx_config(), &text)?;
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        for command in ["plan", "swap"] {
            world.run(command, NEW, &[]).await?.refused(3, &words);
        }
        assert_eq!(fs::read_to_string(world.server.nginx_config())?, text, "{what}");
        assert_eq!((world.told().as_str(), world.serves().await?.as_str()), ("", OLD), "{what}");
    }
    fs::write(world.server.nginx_config(), &good)?;
    Untouched { file: good.into_bytes(), load }.hold_for(&world).await
}

#[tokio::test]
async fn an_nginx_that_is_not_found_running_is_refused() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let file = fs::read(world.server.nginx_config())?;
    let pid_file = world.server.scratch().join("run/nginx.pid");
    let master = world.server.nginx_master()?;
    let hint = "nginx masters run with pid";
    for (written, problem) in [
        (None, "nginx.pid holds no pid".to_owned()),
        (
            Some(world.old.innocent),
            format!("nginx.pid names process {}, which is no running nginx", world.old.innocent),
        ),
    ] {
        match written {
            None => fs::remove_file(&pid_file)?,
            Some(pid) => fs::write(&pid_file, pid.to_string())?,
        }
        for command in ["plan", "swap"] {
            let run = world.run(command, NEW, &[]).await?.refused(3, &[&problem, hint]);
            assert!(run.stdout.contains(&master.to_string()), "{run}");
        }
    }
    fs::write(&pid_file, master.to_string())?;
    Untouched { file, load }.hold_for(&world).await
}

#[tokio::test]
async fn an_nginx_that_was_stopped_is_refused() -> Result<()> {
    let world = World::start().await?;
    let file = fs::read(world.server.nginx_config())?;
    let master = world.server.nginx_master()?;
    let (program, args) = world.server.nginx_command().split_first().context("no command")?;
    let stopped = std::process::Command::new(program).args(args).args(["-s", "stop"]).status()?;
    ensure!(stopped.success());
    let gone = PathBuf::from(format!("/proc/{master}/cmdline"));
    let deadline = Instant::now() + testbed::PATIENCE;
    while fs::read(&gone).is_ok_and(|title| !title.is_empty()) {
        ensure!(Instant::now() < deadline, "nginx does not stop");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for command in ["plan", "swap"] {
        world.run(command, NEW, &[]).await?.refused(3, &["nginx.pid"]);
    }
    assert!(world.old_runs()?);
    assert!(listeners(world.server.ports().b)?.is_empty());
    assert_eq!(fs::read(world.server.nginx_config())?, file);
    Ok(())
}

/// Whoever needs `status` most has an nginx that is down, or a virtual host of somebody else's that it rejects.
#[tokio::test]
async fn where_nginx_cannot_be_asked_status_tells_the_rest() -> Result<()> {
    let world = runner::world().await?;
    let config = world.server.nginx_config();
    let file = fs::read(&config)?;
    let (step, candidate) = runner::in_mid_swap(&world, world.action("swap", NEW, &[])?).await?;
    let log = world.server.scratch().join("elsewhere/access.log");
    edit(&world, &format!("server {{ listen 127.0.0.1:1; access_log {}; }}\n", log.display()))?;
    let nobody = "chat: nobody can tell where nginx sends traffic";
    let why = format!("open() \"{}\" failed (2:", log.display());
    let run = world.run("status", NEW, &[("reconcile", "true")]).await?;
    run.refused(3, &[nobody, &why, "at work since", "swap s-", "in await_ready b"]);
    fs::write(&config, file)?;
    candidate.thaw()?;
    let swap = step.finish().await?.ended(0, "promoted").output("swap-id").to_owned();

    world.server.stop_nginx()?;
    let run = world.run("status", NEW, &[]).await?;
    let serves = format!("serving is the result of {swap}");
    let run = run.refused(3, &[nobody, "nginx.pid", &serves, "promoted     Qwen/New"]);
    assert!(run.stdout.contains("retained") && !run.stdout.contains(" serving "), "{run}");
    let run = world.run("abort", NEW, &[("swap-id", &swap)]).await?;
    run.refused(3, &[&format!("swap {swap} has ended already: promoted"), "nginx.pid"]);
    world.run("fail", NEW, &[("swap-id", &swap)]).await?.refused(3, &[nobody, "nginx.pid"]);
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_that_the_test_of_nginx_misses_changes_nothing() -> Result<()> {
    let world = World::start().await?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let file = edit(&world, &format!("server {{ listen 127.0.0.1:{port}; }}\n"))?;
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[]).await?.ended(4, "failed");
    not_loaded(&run, &format!("bind() to 127.0.0.1:{port} failed (98:"));
    Untouched { file, load }.hold_for(&world).await
}

/// A master that is not root may not do what root's test of the configuration may. Where this test does not run as
/// root, test and master are of one user, and the swap is refused at the start.
#[tokio::test]
async fn a_port_that_the_user_of_nginx_may_not_have_changes_nothing() -> Result<()> {
    let (world, root) = unprivileged().await?;
    let file = edit(&world, "server { listen 127.0.0.1:88; }\n")?;
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[]).await?;
    let words = "bind() to 127.0.0.1:88 failed (13:";
    if root {
        not_loaded(&run.ended(4, "failed"), words);
    } else {
        run.refused(3, &[words]);
    }
    Untouched { file, load }.hold_for(&world).await
}

#[tokio::test]
async fn a_log_that_the_user_of_nginx_may_not_write_changes_nothing() -> Result<()> {
    let (world, root) = unprivileged().await?;
    let folder = world.server.scratch().join("closed");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(if root { 0o700 } else { 0 }))?;
    let log = folder.join("access.log");
    let listen = free_port()?;
    let block = format!("server {{ listen 127.0.0.1:{listen}; access_log {}; }}\n", log.display());
    let file = edit(&world, &block)?;
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[]).await?;
    let words = format!("open() \"{}\" failed (13: Permission denied)", log.display());
    if root {
        not_loaded(&run.ended(4, "failed"), &words);
    } else {
        run.refused(3, &[&words]);
    }
    Untouched { file, load }.hold_for(&world).await
}

#[tokio::test]
async fn a_file_that_breaks_while_the_candidate_loads_is_put_back() -> Result<()> {
    let mut world = World::start().await?;
    let folder = world.server.scratch().join("elsewhere");
    fs::create_dir(&folder)?;
    let log = folder.join("access.log");
    let listen = free_port()?;
    let block = format!("server {{ listen 127.0.0.1:{listen}; access_log {}; }}\n", log.display());
    let file = edit(&world, &block)?;
    let load = world.load().await?;
    let run =
        while_loading(&mut world, || Ok(fs::remove_dir_all(&folder)?)).await?.ended(4, "failed");
    failed_step(&run, "cut_over", &format!("open() \"{}\" failed (2:", log.display()));
    Untouched { file, load }.hold_for(&world).await
}

#[tokio::test]
async fn an_nginx_that_is_lost_while_the_candidate_loads_changes_nothing() -> Result<()> {
    let mut world = World::start().await?;
    let load = world.load().await?;
    let file = fs::read(world.server.nginx_config())?;
    let pid_file = world.server.scratch().join("run/nginx.pid");
    let master = fs::read(&pid_file)?;
    let run =
        while_loading(&mut world, || Ok(fs::remove_file(&pid_file)?)).await?.ended(4, "failed");
    failed_step(&run, "cut_over", "nginx.pid holds no pid");
    // It may have been stopped as well.
    let unknown = "nobody can tell where upstream llm points";
    assert!(run.stdout.contains(unknown) && run.summary.contains(unknown), "{run}");
    for said in ["traffic is where it was", "Qwen/Old serves"] {
        assert!(!run.stdout.contains(said), "{said} in\n{run}");
    }
    fs::write(&pid_file, master)?;
    Untouched { file, load }.hold_for(&world).await
}

#[tokio::test]
async fn an_upstream_that_somebody_points_elsewhere_meanwhile_is_left_alone() -> Result<()> {
    let mut world = World::start().await?;
    let load = world.load().await?;
    let Ports { a, .. } = world.server.ports();
    let (config, stranger) = (world.server.nginx_config(), free_port()?);
    let text = fs::read_to_string(&config)?;
    let edited = text.replace(&format!("127.0.0.1:{a};"), &format!("127.0.0.1:{stranger};"));
    ensure!(edited != text);
    let run =
        while_loading(&mut world, || Ok(fs::write(&config, &edited)?)).await?.ended(4, "failed");
    failed_step(&run, "cut_over", &format!("it names port {stranger}, not port {a} of slot a"));
    Untouched { file: edited.into_bytes(), load }.hold_for(&world).await
}

#[tokio::test]
async fn a_server_that_somebody_adds_meanwhile_is_left_alone() -> Result<()> {
    let mut world = World::start().await?;
    let load = world.load().await?;
    let Ports { a, .. } = world.server.ports();
    let (config, stranger) = (world.server.nginx_config(), free_port()?);
    let text = fs::read_to_string(&config)?;
    let server = format!("server 127.0.0.1:{a};");
    let edited = text.replace(&server, &format!("{server} server 127.0.0.1:{stranger};"));
    ensure!(edited != text);
    let run =
        while_loading(&mut world, || Ok(fs::write(&config, &edited)?)).await?.ended(4, "failed");
    failed_step(&run, "cut_over", "upstream `llm` has 2 active `server` lines");
    Untouched { file: edited.into_bytes(), load }.hold_for(&world).await
}

#[tokio::test]
async fn a_cutover_that_nothing_proves_is_taken_back() -> Result<()> {
    // No location uses the upstream that is to change; clients are served by another one.
    let file = |ports: Ports| {
        let text = default_upstream_file(ports).replace("http://llm", "http://other");
        format!("upstream other {{ server 127.0.0.1:{}; }}\n{text}", ports.a)
    };
    let world =
        World::on(ServerSpec { upstream_file: Box::new(file), ..ServerSpec::default() }, &[])
            .await?;
    let file = fs::read(world.server.nginx_config())?;
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[]).await?.ended(5, "rolled-back");
    failed_step(&run, "cut_over", "no proof within");
    Untouched { file, load }.hold_for(&world).await
}

#[tokio::test]
async fn two_replicas_that_answer_alike_are_told_apart_by_sockets() -> Result<()> {
    let world = World::start().await?;
    let load = world.load().await?;
    let run = world.run("swap", OLD, &[]).await?.ended(0, "promoted");
    proof(&run, "connections to the candidate and none to the incumbent");
    assert_eq!(run.output("slot"), "b");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn one_model_with_other_flags_is_told_by_its_fingerprint() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--max-model-len 4096".to_owned();
    let load = world.load().await?;
    let run = world.run("swap", OLD, &[]).await?.ended(0, "promoted");
    proof(&run, "3 fresh connections in a row reached the candidate");
    let tally = load.stop().await;
    tally.assert_clean();
    assert_eq!(tally.replicas().len(), 2, "{tally}");
    Ok(())
}

#[tokio::test]
async fn a_probe_that_may_not_ask_leaves_the_proof_to_sockets() -> Result<()> {
    // Whoever lists models through this nginx loses the key on the way.
    let file = |ports: Ports| {
        let locked = "location /v1/models { proxy_pass http://llm; proxy_set_header Authorization \"\"; }\n    location / {";
        default_upstream_file(ports).replacen("location / {", locked, 1)
    };
    let spec = ServerSpec { upstream_file: Box::new(file), ..ServerSpec::default() };
    let key = "sk-of-this-test";
    let world = World::begin(spec, &["--api-key", key])?;
    let addr = world.server.nginx_addr();
    let slot_a = ([127, 0, 0, 1], world.server.ports().a).into();
    let deadline = Instant::now() + testbed::PATIENCE;
    while get(slot_a, "/health").await.is_err() {
        ensure!(Instant::now() < deadline, "the old model does not come up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let load =
        Load::start(LoadSpec { api_key: Some(key.to_owned()), ..LoadSpec::mixed(addr, NAME) });
    load.wait_until(|tally| tally.total() > 20).await?;
    let config =
        world.config(NEW).replace("replica:\n", "replica:\n  secret_env: [VLLM_API_KEY]\n");
    let mut action = world.action("swap", NEW, &[])?.with_config(&config)?;
    action.env.insert("VLLM_API_KEY".to_owned(), key.to_owned());
    let run = action.spawn()?.finish().await?.ended(0, "promoted");
    proof(&run, "connections to the candidate and none to the incumbent");
    assert!(!format!("{run}{}", world.told()).contains(key));
    let tally = load.stop().await;
    tally.assert_clean();
    assert_eq!(tally.replicas().len(), 2, "{tally}");
    Ok(())
}

#[tokio::test]
async fn every_other_byte_of_the_file_stays_and_a_symlink_stays_one() -> Result<()> {
    // As from an editor on Windows, with every odd thing that nginx takes.
    let file = |Ports { nginx, a, b, .. }: Ports| {
        format!(
            "# server 127.0.0.1:{a}; {{ \"\r\nupstream \"llm\"{{least_conn;\r\n\tserver   127.0.0.1:{a} weight=3  max_fails=0 ; # to {a}, not {b} ü\r\n\
             server 127.0.0.1:{b} down; server 127.0.0.1:{b} backup;\r\n  keepalive 32;}}\r\n\
             upstream other {{ server 127.0.0.1:{a}; }}\r\n\
             server {{ listen 127.0.0.1:{nginx}; location / {{ proxy_pass http://llm; proxy_http_version 1.1;\r\n\
             proxy_set_header Connection \"\"; proxy_buffering off; add_header x '}} upstream llm {{ server 127.0.0.1:{a};'; }} }}"
        )
        .replace("least_conn", "zone llm 64k")
    };
    let world =
        World::on(ServerSpec { upstream_file: Box::new(file), ..ServerSpec::default() }, &[])
            .await?;
    let (config, real) =
        (world.server.nginx_config(), world.server.scratch().join("available.conf"));
    fs::rename(&config, &real)?;
    symlink("available.conf", &config)?;
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640))?;
    let owner =
        if rustix::process::getuid().is_root() { NOBODY } else { fs::metadata(&real)?.uid() };
    chown(&real, Some(owner), None)?;
    let before = fs::read(&real)?;
    let kept = || -> Result<(u32, u32, u32)> {
        ensure!(fs::read_link(&config)? == PathBuf::from("available.conf"));
        let found = fs::metadata(&real)?;
        Ok((found.uid(), found.gid(), found.mode() & 0o7777))
    };
    let identity = kept()?;
    assert_eq!((identity.0, identity.2), (owner, 0o640));

    let load = world.load().await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let Ports { a, b, .. } = world.server.ports();
    let (from, to) =
        (format!("server   127.0.0.1:{a} weight=3"), format!("server   127.0.0.1:{b} weight=3"));
    assert_eq!(fs::read_to_string(&real)?, String::from_utf8(before.clone())?.replace(&from, &to));
    assert_eq!(kept()?, identity);

    world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
    assert_eq!(fs::read(&real)?, before);
    assert_eq!(kept()?, identity);
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

/// What holds after a swap that failed or was refused.
struct Untouched {
    /// nginx's file as the user left it.
    file: Vec<u8>,
    /// Requests all the while.
    load: Load,
}

impl Untouched {
    async fn hold_for(self, world: &World) -> Result<()> {
        assert_eq!(world.serves().await?, OLD);
        self.load.stop().await.assert_clean();
        let now = fs::read(world.server.nginx_config())?;
        assert_eq!(String::from_utf8_lossy(&now), String::from_utf8_lossy(&self.file));
        assert!(world.old_runs()?);
        assert!(listeners(world.server.ports().b)?.is_empty(), "the candidate is still there");
        let claims: Vec<_> = fs::read_dir(world.server.state_dir().join("claims"))
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(claims.is_empty(), "{claims:?}");
        Ok(())
    }
}

/// A server whose nginx is not root's, and whether this test is.
async fn unprivileged() -> Result<(World, bool)> {
    let root = rustix::process::getuid().is_root();
    let spec = ServerSpec { nginx_uid: root.then_some(NOBODY), ..ServerSpec::default() };
    Ok((World::on(spec, &[]).await?, root))
}

/// Appends to nginx's file without telling nginx. Gives the whole.
fn edit(world: &World, block: &str) -> Result<Vec<u8>> {
    let config = world.server.nginx_config();
    let text = fs::read_to_string(&config)? + block;
    fs::write(&config, &text)?;
    Ok(text.into_bytes())
}

/// A swap during whose loading something happens.
async fn while_loading(world: &mut World, happens: impl FnOnce() -> Result<()>) -> Result<Run> {
    world.settings.flags = "--stub-load-time 4s".to_owned();
    let running = world.action("swap", NEW, &[])?.spawn()?;
    world.until_told("replica.log").await?;
    happens()?;
    running.finish().await
}

/// It was the running nginx that refused, and the words are its own.
fn not_loaded(run: &Run, words: &str) {
    failed_step(
        run,
        "cut_over",
        "nginx did not load the configuration, although it had passed its test",
    );
    assert!(run.stdout.contains(words), "no {words:?} in\n{run}");
}

/// The step that failed is this one, and it says why.
fn failed_step(run: &Run, step: &str, why: &str) {
    let failed: Vec<_> = run.stdout.lines().filter(|line| line.contains('✗')).collect();
    assert_eq!(failed.len(), 1, "{run}");
    assert!(failed[0].contains(step) && run.stdout.contains(why), "no {why:?} of {step} in\n{run}");
}

/// What proved that the cutover happened.
fn proof(run: &Run, words: &str) {
    let line = run.stdout.lines().find(|line| line.contains("✓ cut_over")).unwrap_or_default();
    assert!(line.contains(words), "{words:?} is not in {line:?}\n{run}");
}
