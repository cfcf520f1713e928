//! A swap that stays only on the word of a runner that has met the new model as customers do.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::http::HeaderMap;
use axum::{Json, Router, routing};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::github::FakeGitHub;
use testbed::proxy::Proxy;
use testbed::server::{ServerSpec, default_upstream_file, free_port};

use crate::afterwards::afterwards;
use crate::runner::{KILLED_AFTER, agent, outcome, swaps};
use crate::step::{Step, send, until};
use crate::support::relayed::{relay, through};
use crate::support::{NAME, NEW, OLD, World};

/// A world whose swaps are verified at a URL.
async fn world(url: &str, rest: &str) -> Result<World> {
    let mut world = World::start().await?;
    world.settings.verify = format!("{{ url: {url:?}, {rest} }}");
    Ok(world)
}

/// A certificate for loopback, of an authority that nobody trusts unless he is told to.
struct Certificate {
    folder: TempDir,
}

impl Certificate {
    fn make() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(
            folder.path().join("names"),
            "subjectAltName = IP:127.0.0.1\nbasicConstraints = critical, CA:FALSE\n",
        )?;
        const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        let authority = "-subj /CN=An-authority -addext keyUsage=critical,keyCertSign -days 2";
        for words in [
            format!("req -x509 {KEY} {authority} -keyout ca.key -out ca.pem"),
            format!("req {KEY} -subj /CN=llm -keyout key.pem -out request.pem"),
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile names -out cert.pem"
                .to_owned(),
        ] {
            let mut openssl = std::process::Command::new("openssl");
            let output = openssl.args(words.split_whitespace()).current_dir(folder.path()).output();
            let output = output.context("openssl is not installed: apt-get install openssl")?;
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "openssl {words}: {said}");
        }
        Ok(Self { folder })
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A server that customers reach over TLS, and the URL there.
    async fn world(&self, rest: &str) -> Result<(World, String)> {
        let port = free_port()?;
        let (cert, key) = (self.file("cert.pem"), self.file("key.pem"));
        let upstream_file = move |ports| {
            default_upstream_file(ports)
                + &format!(
                    "server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    location / {{ proxy_pass http://llm; }}
}}
"
                )
        };
        let upstream_file = Box::new(upstream_file);
        let mut world =
            World::on(ServerSpec { upstream_file, ..ServerSpec::default() }, &[]).await?;
        let url = format!("https://127.0.0.1:{port}/v1/models");
        world.settings.verify = format!("{{ url: {url:?}, {rest} }}");
        Ok((world, url))
    }
}

/// Where nobody answers.
fn nowhere() -> Result<String> {
    Ok(format!("http://127.0.0.1:{}/v1/models", free_port()?))
}

#[tokio::test]
async fn a_swap_that_customers_meet_is_promoted() -> Result<()> {
    let mut world = World::start().await?;
    let url = format!("http://{}/v1/models", world.server.nginx_addr());
    world.settings.verify = format!("{{ url: {url:?} }}");
    let load = world.load().await?;
    let does = format!("wait until the step has met {NEW} at {url}, at most 2m, then roll back");
    world.run("plan", NEW, &[]).await?.answered(&[&does]);
    let run = Step::run(world.action("swap", NEW, &[])?).await?.ended(0, "promoted");
    assert!(run.stdout.contains("✓ verify b in "), "{run}");
    assert!(run.summary.contains("| verify&#160;b | ✓&#160;done |"), "{run}");
    for gate in [
        "| <code>health</code> | ✓ | <code>answers 200 after ",
        &format!("| <code>model</code> | ✓ | <code>chat ({NEW})</code> |"),
        "its own process ",
        "| <code>requests</code> | ✓ | <code>0 in flight, by its own count</code> |",
        "| <code>route</code> | ✓ | <code>",
        "| <code>customers</code> | ✓ | <code>http",
    ] {
        assert!(run.summary.contains(gate), "no {gate:?} in\n{run}");
    }
    assert_eq!(world.serves().await?, NEW);
    // Going back waits for nobody.
    let run = Step::run(world.action("rollback", NEW, &[])?).await?.ended(0, "rolled-back");
    assert!(!run.stdout.contains("verify"), "{run}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_swap_that_customers_do_not_meet_is_rolled_back_and_its_deployment_has_failed()
-> Result<()> {
    let mut world = World::start().await?;
    let url = format!("http://{}/v1/models", world.server.nginx_addr());
    world.settings.verify = format!("{{ url: {url:?}, expect_model: \"Qwen/Other\", within: 2s }}");
    let load = world.load().await?;
    let github = FakeGitHub::start()?;
    let action = world.action("swap", NEW, &[])?.on_github(&github);
    let run = Step::run(action).await?.ended(5, "rolled-back");
    for text in [
        &format!("not as expected yet: {url} answers as chat, {NEW}, not as Qwen/Other"),
        &format!("nobody confirmed within 2s that {url} answers as Qwen/Other"),
        "↩ traffic is where it was: Qwen/Old serves",
    ] {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
    }
    let undone = run.stdout.lines().find(|line| line.contains("↩ undone cut_over"));
    assert!(undone.is_some_and(|line| line.ends_with("what served before")), "{run}");
    assert!(run.summary.contains("| <code>verify b</code> | ✗ | <code>nobody confirmed"), "{run}");
    let [deployment] = &*github.deployments() else { panic!("not one deployment:\n{github}") };
    assert_eq!(deployment.state(), "failure", "{github}");
    assert_eq!(world.serves().await?, OLD);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_runner_that_is_killed_confirms_nothing_and_the_server_rolls_back() -> Result<()> {
    let world = world(&nowhere()?, "within: 4s").await?;
    let load = world.load().await?;
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("not as expected yet: ").await?;
    step.kill()?;
    world.until_told(r#""outcome":"rolled-back""#).await?;
    world.until_serves(OLD).await?;
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn where_the_agent_dies_meanwhile_the_step_has_traffic_brought_back() -> Result<()> {
    let world = world(&nowhere()?, "within: 10m").await?;
    let load = world.load().await?;
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("not as expected yet: ").await?;
    send("-KILL", agent(&world)?.context("no agent")?)?;
    let run = step.finish().await?.ended(5, "rolled-back");
    for text in ["asking the server to bring the swap to its end", "taken up again: its agent"] {
        assert_eq!(run.stdout.matches(text).count(), 1, "{text:?} in\n{run}");
    }
    assert_eq!((world.serves().await?.as_str(), swaps(&world)), (OLD, 1), "{run}");

    // The runner dies as well: what comes after the step has nothing but the swap's id.
    let github = FakeGitHub::start()?;
    let action = world.action("swap", NEW, &[])?;
    let path = action.env["GITHUB_STATE"].clone();
    let mut step = Step::start(action)?;
    step.says("not as expected yet: ").await?;
    let state = fs::read_to_string(path)?;
    step.kill()?;
    send("-KILL", agent(&world)?.context("no agent")?)?;
    assert_eq!(world.serves().await?, NEW);
    let (action, _program) = afterwards(&world, &github, &state)?;
    let run = Step::run(action).await?;
    // Nobody has asked for that it be given up.
    assert!(run.code == 5 && run.stdout.contains("rolled-back: "), "{run}");
    assert_eq!(fs::read_dir(world.server.state_dir().join(NAME).join("aborts"))?.count(), 0);
    assert_eq!((world.serves().await?.as_str(), swaps(&world)), (OLD, 2), "{run}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_customers_key_is_sent_there_and_nowhere_else() -> Result<()> {
    const KEY: &str = "canary-key-of-a-customer";
    // A public gateway of its own: it wants the key, and first has not heard of the new model.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}/v1/models", listener.local_addr()?);
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let asked = std::sync::Arc::new(asked);
    let answer = move |headers: HeaderMap| async move {
        let earlier = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let known = headers.get("authorization").is_some_and(|k| k == &format!("Bearer {KEY}"));
        let name = if known && earlier > 0 { "chat-v2" } else { "\u{1b}[31m::error::chat-v1" };
        Json::<Value>(json!({ "data": [{ "id": name }] }))
    };
    let gateway = Router::new().route("/v1/models", routing::get(answer));
    let gateway = tokio::spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, gateway).await
    });
    let world = world(&url, "expect_model: chat-v2, api_key_env: CUSTOMER_KEY").await?;
    let run = Step::run(world.action("swap", NEW, &[])?).await?;
    run.refused(2, &["CUSTOMER_KEY: missing"]);
    let action = world.action("swap", NEW, &[])?.with(&[("CUSTOMER_KEY", KEY)]);
    let run = Step::run(action).await?.ended(0, "promoted");
    assert!(run.stdout.contains(r"answers as \u{1b}[31m::error::chat-v1, not as chat-v2"), "{run}");
    assert!(!format!("{run}").contains(KEY), "{run}");
    let found = crate::secrets::files_with(&world.server.state_dir(), KEY)?;
    assert_eq!(found, [""; 0], "the server has it");
    gateway.abort();
    Ok(())
}

#[tokio::test]
async fn a_word_with_another_nonce_counts_for_nothing() -> Result<()> {
    let world = world(&nowhere()?, "within: 10m").await?;
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("not as expected yet: ").await?;
    assert_eq!(world.serves().await?, NEW, "it is looked at after the cutover");
    let status = world.run("status", NEW, &[]).await?;
    status.answered(&["at work since", "in verify b: wait until the step has met"]);
    let told = world.told();
    let event = told.lines().find(|line| line.contains("awaits_word")).context("no nonce")?;
    let event: Value = serde_json::from_str(event)?;
    let nonce = event["kind"]["nonce"].as_str().context("a nonce")?;
    let swap = event["swap"].as_str().context("a swap")?;
    assert!(nonce.len() == 32 && !step.said().contains(nonce), "{}", step.said());
    let confirm = |nonce: &str| crate::wire::confirm(&world, swap, nonce.to_owned());
    confirm(&"0".repeat(32)).await?;
    // Time for a word that counts, in which one that does not must do nothing.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!world.told().contains(r#""event":"concluded""#), "{}", world.told());
    confirm(nonce).await?;
    step.finish().await?.ended(0, "promoted");
    Ok(())
}

#[tokio::test]
async fn customers_are_met_over_tls_where_the_step_names_their_authority() -> Result<()> {
    let certificate = Certificate::make()?;
    let (world, _) = certificate.world("within: 2m").await?;
    let load = world.load().await?;
    let trusting =
        world.action("swap", NEW, &[])?.with(&[("SSL_CERT_FILE", &certificate.file("ca.pem"))]);
    let run = Step::run(trusting).await?.ended(0, "promoted");
    assert!(!run.stdout.contains("not as expected yet"), "{run}");
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

/// As on a self-hosted runner that reaches nothing else: customers are met, and GitHub is told, through the runner's proxy.
#[tokio::test]
async fn customers_are_met_through_the_proxy_of_the_runner() -> Result<()> {
    let certificate = Certificate::make()?;
    let (world, url) = certificate.world("within: 2m").await?;
    let place = url.trim_start_matches("https://").trim_end_matches("/v1/models").to_owned();
    let github = FakeGitHub::start()?;
    let (to_customers, to_github) = (
        Proxy::start(place.parse()?).await?,
        Proxy::start(github.url().trim_start_matches("http://").parse()?).await?,
    );
    let proxies = [&to_customers, &to_github].map(|proxy| format!("http://{}", proxy.address()));
    let action = world.action("swap", NEW, &[])?.on_github(&github).with(&[
        ("SSL_CERT_FILE", &certificate.file("ca.pem")),
        ("HTTPS_PROXY", &proxies[0]),
        ("http_proxy", &proxies[1]),
    ]);
    Step::run(action).await?.ended(0, "promoted");
    let asked = to_customers.asked();
    assert!(!asked.is_empty(), "nobody came through the proxy");
    assert!(asked.iter().all(|line| *line == format!("CONNECT {place} HTTP/1.1")), "{asked:?}");
    let (asked, origin) = (to_github.asked(), github.url());
    assert!(!asked.is_empty(), "GitHub was told without the proxy");
    assert!(asked.iter().all(|line| line.contains(&format!(" {origin}/"))), "{asked:?}");
    assert_eq!(github.deployments().len(), 1);
    Ok(())
}

/// A public gateway that names another model, until it is told to name the one that is looked for.
struct Gateway {
    meets: Arc<AtomicBool>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Gateway {
    fn meet(&self) {
        self.meets.store(true, Ordering::Relaxed);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A world whose customers go through such a gateway.
async fn behind_a_gateway() -> Result<(World, Gateway)> {
    let (meets, listener) = (Arc::new(AtomicBool::new(false)), TcpListener::bind("127.0.0.1:0")?);
    listener.set_nonblocking(true)?;
    let mut world = World::start().await?;
    world.settings.verify = format!(
        "{{ url: \"http://{}/v1/models\", expect_model: chat, within: 10m }}",
        listener.local_addr()?
    );
    let met = meets.clone();
    let gateway = Router::new().route(
        "/v1/models",
        routing::get(move || async move {
            let name = if met.load(Ordering::Relaxed) { "chat" } else { "another" };
            Json::<Value>(json!({ "data": [{ "id": name }] }))
        }),
    );
    let serving = tokio::spawn(async move {
        axum::serve(tokio::net::TcpListener::from_std(listener)?, gateway).await
    });
    Ok((world, Gateway { meets, serving }))
}

#[tokio::test]
async fn the_word_of_a_step_whose_link_is_dead_gets_through_by_another() -> Result<()> {
    let (world, gateway) = behind_a_gateway().await?;
    let relay = relay(&world).await?;
    let mut step = Step::start(through(&relay, &world)?)?;
    step.says("not as expected yet: ").await?;
    relay.swallow();
    gateway.meet();
    assert_eq!(outcome(&world).await?, "promoted");
    assert!(!step.said().contains("trying again"), "only after it was noticed: {}", step.said());
    step.finish().await?.ended(0, "promoted");
    Ok(())
}

/// What is followed takes the only session that a connection may have there.
#[tokio::test]
async fn the_word_gets_through_an_sshd_that_lets_one_session_pass() -> Result<()> {
    let spec = ServerSpec { ssh_lines: "MaxSessions 1\n".to_owned(), ..ServerSpec::default() };
    let mut world = World::on(spec, &[]).await?;
    let url = format!("http://{}/v1/models", world.server.nginx_addr());
    world.settings.verify = format!("{{ url: {url:?}, within: 30s }}");
    // Far enough away for a session that has ended here not to have ended there.
    let sshd = std::net::SocketAddr::from(([127, 0, 0, 1], world.server.ssh_port()));
    let relay = testbed::relay::Relay::start(sshd, Duration::from_millis(40)).await?;
    let run = Step::run(through(&relay, &world)?).await?.ended(0, "promoted");
    assert!(!run.stdout.contains("trying again"), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_its_word_is_under_way_does_not_wait_for_the_answer()
-> Result<()> {
    let (world, gateway) = behind_a_gateway().await?;
    let relay = relay(&world).await?;
    let mut step = Step::start(through(&relay, &world)?)?;
    step.says("not as expected yet: ").await?;
    let pipes = step.pipes()?;
    relay.shut();
    relay.swallow();
    gateway.meet();
    until("the word is sent", || Ok((step.pipes()? > pipes).then_some(()))).await?;
    step.signal("-INT")?;
    let ended = async {
        step.says("asking the server to abort the swap").await?;
        // Whoever waits no longer.
        step.signal("-INT")?;
        step.finish().await
    };
    let run = tokio::time::timeout(KILLED_AFTER, ended).await??;
    run.refused(3, &["the server did not say in time whether the swap is aborted"]);
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_the_step_does_not_trust_is_named_with_the_way_out() -> Result<()> {
    let certificate = Certificate::make()?;
    let (world, url) = certificate.world("within: 3s").await?;
    let run = Step::run(world.action("swap", NEW, &[])?).await?.ended(5, "rolled-back");
    for text in [
        &format!("not as expected yet: {url} cannot be asked: "),
        "invalid peer certificate: UnknownIssuer",
        "in the file that SSL_CERT_FILE names in the step's env",
    ] {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
    }
    assert_eq!(world.serves().await?, OLD);
    Ok(())
}
