//! Draining: what the old model has begun comes to its end, unless the configuration says otherwise.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use testbed::load::http::{Connection, post};
use testbed::load::{Fault, Kind, Load, LoadSpec};
use testbed::server::{Ports, ServerSpec, default_upstream_file};
use testbed::stub_engine::StubEngine;

use crate::support::{NAME, NEW, OLD, Run, World};

/// Time for a token of an old model whose streams last for seconds.
const SLOW: [&str; 2] = ["--stub-token-delay", "20ms"];

#[tokio::test]
async fn an_upload_that_nginx_has_not_passed_on_yet_holds_an_idle_old_model() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let old = fingerprint(slot_a(&world)).await?;
    let upload = Unfinished::begin(world.server.nginx_addr(), Cut::InBody).await?;
    let running = world.action("swap", NEW, &[("wait", "retired")])?.spawn()?;
    world.until_told(", with no connection to the port").await?;
    assert!(world.old_runs()?);
    assert_eq!(upload.finish().await?, old);
    let run = running.finish().await?.ended(0, "promoted");
    said(&run, "slot a is free");
    assert!(!world.old_runs()?);
    Ok(())
}

/// As while somebody edits it.
#[tokio::test]
async fn an_old_model_is_retired_once_nginx_can_be_seen_again() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.retain = "0s".to_owned();
    let upload = Unfinished::begin(world.server.nginx_addr(), Cut::InBody).await?;
    let running = world.action("swap", NEW, &[("wait", "retired")])?.spawn()?;
    world.until_told(", with no connection to the port").await?;
    let file = world.server.nginx_config();
    let whole = std::fs::read(&file)?;
    std::fs::write(&file, [&whole[..], b"oops"].concat())?;
    upload.finish().await?;
    let run = running.finish().await?.ended(0, "promoted");
    said(&run, "kept and watched: ");
    assert!(world.old_runs()?);
    std::fs::write(&file, whole)?;
    world.until_told("\"closing\":\"retired\"").await?;
    assert!(!world.old_runs()?);
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

#[tokio::test]
async fn requests_that_go_past_nginx_hold_the_old_model() -> Result<()> {
    let mut world = World::on(ServerSpec::default(), &SLOW).await?;
    world.settings.retain = "0s".to_owned();
    // Two of different lengths, and longer than a swap takes: where this test gets no processor for a while, one that has ended is not
    // followed by the next.
    let direct = [1000, 1500].map(|stream_tokens| {
        let target = slot_a(&world);
        Load::start(LoadSpec { streams: 1, stream_tokens, ..LoadSpec::none(target, NAME) })
    });
    for load in &direct {
        load.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    }
    let running = world.action("swap", NEW, &[("wait", "retired")])?.spawn()?;
    // At the end of the line: no worker of nginx has to do with it.
    world.until_told(" in the engine\"").await?;
    assert!(world.old_runs()?);
    // The engine aborts its streams when it is told to stop: that these are whole shows that it was not.
    let [one, other] = direct;
    for tally in [tokio::join!(one.stop(), other.stop())].into_iter().flat_map(<[_; 2]>::from) {
        tally.assert_clean();
        assert!(tally.ok_of(Kind::Stream) > 0, "{tally}");
    }
    running.finish().await?.ended(0, "promoted");
    assert!(!world.old_runs()?);
    Ok(())
}

#[tokio::test]
async fn a_websocket_past_the_deadline_keeps_the_old_model_until_it_closes() -> Result<()> {
    let mut world = with_websockets().await?;
    world.settings.drain = "{ timeout: 10s, on_timeout: keep }".to_owned();
    world.settings.retain = "0s".to_owned();
    let mut socket = Websocket::open(world.server.nginx_addr(), "/v1/realtime").await?;
    let workers = world.server.nginx_workers()?;
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    let left = said(&run, "kept and watched: the replica in slot a is not drained");
    let named =
        |pid: &&u32| left.contains(&format!("nginx worker {pid} with 1 connection to the port"));
    assert_eq!(workers.iter().filter(named).count(), 1, "{workers:?} in {left}");
    assert!(world.old_runs()?);
    socket.echo().await?;
    assert!(!world.told().contains("\"event\":\"closed\""), "{}", world.told());
    drop(socket);
    world.until_told("\"closing\":\"retired\"").await?;
    assert!(!world.old_runs()?);
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_drain_that_may_fail_names_what_is_left_and_lets_the_old_model_run() -> Result<()> {
    let mut world = with_websockets().await?;
    world.settings.drain = "{ timeout: 10s, on_timeout: fail }".to_owned();
    world.settings.retain = "0s".to_owned();
    let mut socket = Websocket::open(world.server.nginx_addr(), "/v1/realtime").await?;
    let load = world.load().await?;
    // The swap is done and stays done; that somebody has to look is what the code says.
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(7, "promoted");
    let left = said(&run, "the replica on slot a still runs: the replica in slot a is not drained");
    assert!(left.contains("with 1 connection to the port"), "{left}");
    assert!(world.old_runs()?);
    socket.echo().await?;
    assert_eq!(world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_drain_that_may_cut_cuts_what_is_left_and_nothing_else() -> Result<()> {
    let spec = ServerSpec { upstream_file: Box::new(websocket_file), ..ServerSpec::default() };
    let mut world = World::on(spec, &SLOW).await?;
    world.settings.drain = "{ timeout: 10s, on_timeout: cut }".to_owned();
    world.settings.retain = "0s".to_owned();
    let addr = world.server.nginx_addr();
    let pinned =
        LoadSpec { websockets: 1, streams: 1, stream_tokens: 2000, ..LoadSpec::none(addr, NAME) };
    let pinned = Load::start(pinned);
    pinned
        .wait_until(|tally| {
            tally.in_flight(Kind::Websocket) == 1 && tally.in_flight(Kind::Stream) == 1
        })
        .await?;
    let load = Load::start(LoadSpec { stream_tokens: 20, ..LoadSpec::mixed(addr, NAME) });
    load.wait_until(|tally| tally.total() > 20).await?;
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    let cut = said(&run, "cutting what is left: 1 request in the engine, nginx worker");
    let connections = cut.matches("with 1 connection to the port").count()
        + 2 * cut.matches("with 2 connections to the port").count();
    assert_eq!(connections, 2, "{cut}");
    assert!(!world.old_runs()?);
    pinned.wait_until(|tally| tally.faults() == 2).await?;
    let tally = pinned.stop().await;
    assert_eq!(tally.lost_of(Kind::Websocket, Fault::Truncated), 1, "{tally}");
    assert_eq!(tally.lost_of(Kind::Stream, Fault::Truncated), 1, "{tally}");
    assert_eq!(tally.faults(), 2, "{tally}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_worker_pinned_for_another_backend_holds_the_old_model() -> Result<()> {
    let (mut world, _other) = with_another_backend().await?;
    world.settings.drain = "{ timeout: 2s }".to_owned();
    world.settings.retain = "0s".to_owned();
    let mut socket = Websocket::open(world.server.nginx_addr(), "/other/v1/realtime").await?;
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    let left = said(&run, "kept and watched: the replica in slot a is not drained: nginx worker");
    assert!(left.contains(", with no connection to the port"), "{left}");
    assert!(world.old_runs()?);
    socket.echo().await?;
    drop(socket);
    world.until_told("\"closing\":\"retired\"").await?;
    assert!(!world.old_runs()?);
    Ok(())
}

#[tokio::test]
async fn a_worker_pinned_for_another_backend_can_be_ignored() -> Result<()> {
    let (mut world, _other) = with_another_backend().await?;
    world.settings.pinned_workers = "{ ignore_after: 3s }".to_owned();
    world.settings.retain = "0s".to_owned();
    let mut socket = Websocket::open(world.server.nginx_addr(), "/other/v1/realtime").await?;
    let workers = world.server.nginx_workers()?;
    let load = world.load().await?;
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    said(&run, "slot a is free");
    assert!(!world.old_runs()?);
    // It was ignored, not ended.
    socket.echo().await?;
    let left = world.server.nginx_workers()?.into_iter().filter(|pid| workers.contains(pid));
    assert!(left.count() > 0, "{workers:?}");
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_pinned_worker_with_a_connection_to_the_old_model_is_never_ignored() -> Result<()> {
    let mut world = with_websockets().await?;
    world.settings.pinned_workers = "{ ignore_after: 1s }".to_owned();
    world.settings.drain = "{ timeout: 3s }".to_owned();
    world.settings.retain = "0s".to_owned();
    let mut socket = Websocket::open(world.server.nginx_addr(), "/v1/realtime").await?;
    let run = world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
    let left = said(&run, "kept and watched: the replica in slot a is not drained: nginx worker");
    assert!(left.contains("with 1 connection to the port"), "{left}");
    assert!(world.old_runs()?);
    socket.echo().await?;
    Ok(())
}

#[tokio::test]
async fn an_nginx_that_cuts_streams_before_the_drain_ends_is_refused() -> Result<()> {
    let spec = ServerSpec {
        main_lines: "worker_shutdown_timeout 59s;".to_owned(),
        ..ServerSpec::default()
    };
    let world = World::on(spec, &[]).await?;
    let load = world.load().await?;
    let (file, workers) =
        (std::fs::read(world.server.nginx_config())?, world.server.nginx_workers()?);
    for command in ["plan", "swap"] {
        let run = world.run(command, NEW, &[]).await?;
        run.refused(
            3,
            &[
                "worker_shutdown_timeout is 59s, below the drain timeout of 1m",
                "lower drain.timeout to 59s",
            ],
        );
    }
    assert_eq!(std::fs::read(world.server.nginx_config())?, file);
    assert_eq!(world.server.nginx_workers()?, workers, "nginx was not reloaded");
    assert!(testbed::server::listeners(world.server.ports().b)?.is_empty());
    assert_eq!((world.serves().await?.as_str(), world.told().as_str()), (OLD, ""));
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn an_nginx_that_waits_as_long_as_the_drain_is_fine() -> Result<()> {
    let spec = ServerSpec {
        main_lines: "worker_shutdown_timeout 1m;".to_owned(),
        ..ServerSpec::default()
    };
    let world = World::on(spec, &[]).await?;
    world.run("plan", NEW, &[]).await?.refused(0, &["cut_over"]);
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    assert_eq!(world.serves().await?, NEW);
    Ok(())
}

/// The only line of a run's log with this text.
fn said<'a>(run: &'a Run, text: &str) -> &'a str {
    let lines: Vec<_> = run.stdout.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(lines.len(), 1, "lines with {text:?} in\n{run}");
    lines[0]
}

fn slot_a(world: &World) -> SocketAddr {
    ([127, 0, 0, 1], world.server.ports().a).into()
}

/// What tells the answers of the replica on an address from all others'.
pub(crate) async fn fingerprint(addr: SocketAddr) -> Result<String> {
    let ask = serde_json::json!({ "model": NAME, "prompt": "1", "max_tokens": 1 });
    fingerprint_in(&post(addr, "/v1/completions", &ask).await?.body)
}

fn fingerprint_in(body: &[u8]) -> Result<String> {
    let body: serde_json::Value = serde_json::from_slice(body)?;
    Ok(body["system_fingerprint"].as_str().context("no fingerprint")?.to_owned())
}

/// An nginx that passes websockets on to the service.
async fn with_websockets() -> Result<World> {
    let spec = ServerSpec { upstream_file: Box::new(websocket_file), ..ServerSpec::default() };
    World::on(spec, &[]).await
}

fn websocket_file(ports: Ports) -> String {
    with_upgrade(ports, "/v1/realtime", "http://llm")
}

/// An nginx that also serves something that is not ours, under `/other`.
async fn with_another_backend() -> Result<(World, StubEngine)> {
    let other = StubEngine::serving("Another/Model", &[]).await?;
    let target = format!("http://{}/", other.address());
    let file = move |ports| with_upgrade(ports, "/other/", &target);
    let spec = ServerSpec { upstream_file: Box::new(file), ..ServerSpec::default() };
    Ok((World::on(spec, &[]).await?, other))
}

fn with_upgrade(ports: Ports, location: &str, target: &str) -> String {
    let upgrade = format!(
        "location {location} {{ proxy_pass {target}; proxy_http_version 1.1; \
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }}\n    location / {{"
    );
    default_upstream_file(ports).replacen("location / {", &upgrade, 1)
}

/// A websocket through nginx to an engine that echoes.
struct Websocket(Connection);

impl Websocket {
    async fn open(addr: SocketAddr, path: &str) -> Result<Self> {
        let mut connection = Connection::open(addr).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        connection.send(head.as_bytes()).await;
        let answer = connection.answer(|_| {}).await?;
        ensure!(answer.status == 101, "{path} answered {}: {}", answer.status, answer.text());
        let mut socket = Self(connection);
        socket.echo().await?;
        Ok(socket)
    }

    /// Shows that whoever is at the other end still is.
    async fn echo(&mut self) -> Result<()> {
        self.0.send(b"ping").await;
        ensure!(self.0.raw(4).await? == b"ping");
        Ok(())
    }
}

/// Where a request rests half sent.
pub(crate) enum Cut {
    InHead,
    InBody,
}

/// A request of which nginx has a part.
pub(crate) struct Unfinished {
    connection: Connection,
    rest: Vec<u8>,
}

impl Unfinished {
    pub(crate) async fn begin(addr: SocketAddr, cut: Cut) -> Result<Self> {
        let body =
            serde_json::json!({ "model": NAME, "prompt": "tell me a story", "max_tokens": 2 })
                .to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let at = match cut {
            Cut::InHead => head.len() / 2,
            Cut::InBody => head.len() + body.len() / 2,
        };
        let request = head + &body;
        let (part, rest) = request.as_bytes().split_at(at);
        let mut connection = Connection::open(addr).await?;
        connection.send(part).await;
        Ok(Self { connection, rest: rest.to_vec() })
    }

    /// Sends the rest, and tells who answered.
    pub(crate) async fn finish(mut self) -> Result<String> {
        self.connection.send(&self.rest).await;
        let answer = self.connection.answer(|_| {}).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        fingerprint_in(&answer.body)
    }
}
