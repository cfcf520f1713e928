//! The oracle against stub engines that are well, killed, stopped and draining.

use super::*;
use crate::stub_engine::StubEngine;

const DELAY: [&str; 2] = ["--stub-token-delay", "5ms"];

async fn engine(model: &str, flags: &[&str]) -> StubEngine {
    let flags = [&DELAY, ["--served-model-name", "chat"].as_slice(), flags].concat();
    StubEngine::serving(model, &flags).await.unwrap()
}

fn streams(engine: &StubEngine) -> LoadSpec {
    LoadSpec { streams: 3, stream_tokens: 1_000_000, ..LoadSpec::none(engine.address(), "chat") }
}

#[tokio::test]
async fn a_healthy_engine_is_clean() {
    let engine = engine("a", &["--api-key", "k"]).await;
    let spec = LoadSpec {
        websockets: 1,
        api_key: Some("k".to_owned()),
        ..LoadSpec::mixed(engine.address(), "chat")
    };
    let load = Load::start(spec);
    let busy = [Kind::Keepalive, Kind::Fresh, Kind::Stream, Kind::Upload, Kind::Idle];
    load.wait_until(|tally| busy.iter().all(|kind| tally.ok_of(*kind) >= 4)).await.unwrap();
    load.wait_until(|tally| tally.in_flight(Kind::Websocket) == 1).await.unwrap();
    load.close_websockets().await.unwrap();
    let tally = load.stop().await;
    tally.assert_clean();
    assert_eq!(tally.lost(Fault::ReuseRace), 0);
    assert_eq!(tally.ok_of(Kind::Websocket), 1);
    assert_eq!(tally.replicas().len(), 1);
    assert_eq!(tally.answered_by(&engine.fingerprint()), tally.total() - 1);
    assert!(Kind::ALL.iter().all(|kind| tally.in_flight(*kind) == 0));
}

#[tokio::test]
async fn stopping_lets_streams_come_to_their_end() {
    let engine = engine("a", &[]).await;
    let load = Load::start(LoadSpec { stream_tokens: 40, ..streams(&engine) });
    load.wait_until(|tally| tally.in_flight(Kind::Stream) == 3).await.unwrap();
    assert_eq!(load.streams_in_flight(), 3);
    let tally = load.stop().await;
    tally.assert_clean();
    assert!(tally.ok_of(Kind::Stream) >= 3);
}

#[tokio::test]
async fn a_killed_engine_truncates_and_then_refuses() {
    let engine = engine("a", &[]).await;
    let load = Load::start(LoadSpec { fresh: 1, websockets: 1, ..streams(&engine) });
    load.wait_until(|tally| {
        tally.in_flight(Kind::Stream) == 3 && tally.in_flight(Kind::Websocket) == 1
    })
    .await
    .unwrap();
    engine.kill().unwrap();
    load.wait_until(|tally| tally.lost_of(Kind::Stream, Fault::Truncated) == 3).await.unwrap();
    load.wait_until(|tally| tally.lost_of(Kind::Websocket, Fault::Truncated) == 1).await.unwrap();
    load.wait_until(|tally| tally.lost_of(Kind::Fresh, Fault::Refused) > 0).await.unwrap();
    let tally = load.stop().await;
    assert!(tally.faults() >= 5, "{tally}");
    assert!(
        tally.incidents().iter().any(|incident| incident.mishap.fault == Fault::Truncated),
        "{tally}"
    );
}

#[tokio::test]
async fn the_default_sigterm_is_seen_through() {
    let engine = engine("a", &[]).await;
    let plain = LoadSpec { keepalive: 2, short_tokens: 1_000_000, ..streams(&engine) };
    let load = Load::start(plain);
    load.wait_until(|tally| {
        tally.in_flight(Kind::Stream) == 3 && tally.in_flight(Kind::Keepalive) == 2
    })
    .await
    .unwrap();
    // Requests that are sent count as under way; only the engine knows when it has them.
    let running = "vllm:num_requests_running{engine=\"0\",model_name=\"chat\"} 5.0";
    let admitted = async {
        while !http::get(engine.address(), "/metrics").await.unwrap().text().contains(running) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, admitted).await.unwrap();
    engine.terminate().unwrap();
    load.wait_until(|tally| tally.lost(Fault::Aborted) == 5).await.unwrap();
    let tally = load.stop().await;
    assert_eq!(tally.lost(Fault::Truncated), 0, "{tally}");
}

#[tokio::test]
async fn a_draining_engine_finishes_streams_and_fails_the_rest() {
    let engine = engine("a", &["--shutdown-timeout", "60"]).await;
    let load = Load::start(LoadSpec { fresh: 1, stream_tokens: 100, ..streams(&engine) });
    load.wait_until(|tally| tally.in_flight(Kind::Stream) == 3).await.unwrap();
    engine.terminate().unwrap();
    load.wait_until(|tally| tally.lost_of(Kind::Fresh, Fault::ServerError) > 0).await.unwrap();
    load.wait_until(|tally| tally.ok_of(Kind::Stream) >= 3).await.unwrap();
    let tally = load.stop().await;
    assert_eq!(
        tally.lost_of(Kind::Stream, Fault::Truncated) + tally.lost(Fault::Aborted),
        0,
        "{tally}"
    );
}

#[tokio::test]
async fn a_loading_engine_refuses() {
    let engine = StubEngine::start("a", &["--stub-load-time", "1h"]).unwrap();
    let load = Load::start(LoadSpec { fresh: 1, ..LoadSpec::none(engine.address(), "a") });
    load.wait_until(|tally| tally.lost(Fault::Refused) >= 2).await.unwrap();
    assert_eq!(load.stop().await.lost(Fault::ServerError), 0);
}

#[tokio::test]
async fn replicas_of_the_same_name_are_told_apart() {
    let (a, b) = (engine("a", &[]).await, engine("b", &[]).await);
    for engine in [&a, &b] {
        let load =
            Load::start(LoadSpec { keepalive: 1, ..LoadSpec::none(engine.address(), "chat") });
        load.wait_until(|tally| tally.answered_by(&engine.fingerprint()) >= 2).await.unwrap();
        assert_eq!(load.stop().await.replicas().len(), 1);
    }
    assert_ne!(a.fingerprint(), b.fingerprint());
}
