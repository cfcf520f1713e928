//! A stub inference server that behaves as vLLM was measured to behave, misbehaviour included.
//!
//! The facts, all of vLLM 0.32 and 0.33:
//! - until the model is loaded, the port is bound but not listening: connections are refused, and there is never a 503;
//! - SIGTERM ends requests in flight at once, with status 200, truncated text, `finish_reason: "abort"` and
//!   `data: [DONE]`;
//! - with `--shutdown-timeout N` it lets them finish; meanwhile `/health` and `/v1/models` stay 200 while every new
//!   request gets a 500, and further SIGTERMs do nothing;
//! - a SIGKILL of the server leaves its engine process behind.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::serve::ListenerExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

mod answer;
mod api;
pub mod core_process;
mod engine;
mod metrics;
mod options;
mod process;

pub use options::{EngineFlags, Knobs, Options, Serve, VERSION};
pub use process::{StubEngine, binary};

use engine::{Engine, Phase};

#[cfg(test)]
mod tests;

/// uvicorn's backlog.
const BACKLOG: i32 = 2048;
/// The shards that the progress lines tell of.
const SHARDS: u32 = 4;
/// How long answers that were ended by the shutdown may take to leave: vLLM was gone within the same second.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until SIGTERM; 1 if it died while loading.
///
/// # Errors
/// If the address cannot be bound.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let options = options.into_serve();
    let mut termination = Termination::new(&options.stub)?;
    if options.stub.stub_blab_if.as_ref().is_some_and(|file| file.exists()) {
        blab();
        return Ok(ExitCode::FAILURE);
    }
    let socket = bind(&options)?;
    let core = if options.stub.stub_child { Some(core_process::spawn()?) } else { None };
    let loaded = tokio::select! {
        loaded = load(&options) => loaded,
        () = termination.requested() => return Ok(ExitCode::SUCCESS),
    };
    if !loaded {
        return Ok(ExitCode::FAILURE);
    }
    socket.listen(BACKLOG)?;
    log("INFO:     Application startup complete.");
    serve(TcpListener::from_std(socket.into())?, options, termination).await?;
    if let Some(mut core) = core {
        core.kill().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM, or nothing where it is to be ignored.
struct Termination {
    signal: Signal,
    ignored: bool,
}

impl Termination {
    fn new(knobs: &Knobs) -> anyhow::Result<Self> {
        Ok(Self { signal: signal(SignalKind::terminate())?, ignored: knobs.stub_hang_on_term })
    }

    async fn requested(&mut self) {
        if self.ignored {
            return std::future::pending().await;
        }
        self.signal.recv().await;
    }
}

/// Binds without listening, so that the port is taken and refuses connections.
fn bind(options: &Serve) -> anyhow::Result<Socket> {
    let address = SocketAddr::new(options.host, options.port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.stub.stub_reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
    Ok(socket)
}

/// Takes its time and tells of it; whether it lived to see the end.
async fn load(options: &Serve) -> bool {
    let progress = async {
        log(&format!("INFO [model.py] Starting to load model {}...", options.root()));
        for shard in 0..=SHARDS {
            let percent = 100 * shard / SHARDS;
            log(&format!(
                "Loading safetensors checkpoint shards: {percent:3}% Completed | {shard}/{SHARDS}"
            ));
            if shard < SHARDS {
                tokio::time::sleep(options.stub.stub_load_time / SHARDS).await;
            }
        }
    };
    let death = async {
        match options.stub.stub_die_after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = progress => true,
        () = death => {
            log(OUT_OF_MEMORY);
            false
        }
    }
}

/// What a careless engine says of itself: values as they are where they have several lines, the rest in its own notation.
fn blab() {
    let variables: Vec<_> = std::env::vars().collect();
    for (name, value) in variables.iter().filter(|(_, value)| value.contains('\n')) {
        log(&format!("{name}={value}"));
    }
    log(&format!("environment: {variables:?}"));
    log(&format!("arguments: {:?}", std::env::args().collect::<Vec<_>>()));
}

/// What a model that does not fit leaves on standard error.
const OUT_OF_MEMORY: &str = "\
ERROR [core.py] EngineCore failed to start.
ERROR [core.py] Traceback (most recent call last):
ERROR [core.py]   File \"/usr/lib/python3/dist-packages/vllm/v1/engine/core.py\", line 812, in run_engine_core
ERROR [core.py]     engine_core = EngineCoreProc(*args, **kwargs)
ERROR [core.py] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of \
79.10 GiB of which 1.06 GiB is free.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}";

/// Serves until the shutdown is through.
async fn serve(
    listener: TcpListener,
    options: Serve,
    mut termination: Termination,
) -> anyhow::Result<()> {
    let drain_limit = Duration::from_secs(options.shutdown_timeout);
    let engine = Arc::new(Engine::new(options));
    // Small chunks must leave at once, or the kernel would hold tokens back for the client's acknowledgement.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    let closing = engine.clone();
    let server = axum::serve(listener, api::router(engine.clone()))
        .with_graceful_shutdown(async move { closing.reached(Phase::Aborting).await });
    let server = tokio::spawn(server.into_future());

    termination.requested().await;
    if !drain_limit.is_zero() {
        log(&format!("INFO [launcher.py] Shutdown initiated (timeout={})", drain_limit.as_secs()));
        engine.enter(Phase::Draining);
        // Whatever is left after the limit is aborted below.
        let _ = tokio::time::timeout(drain_limit, engine.idle()).await;
    }
    log("INFO:     Shutting down");
    engine.enter(Phase::Aborting);
    match tokio::time::timeout(LAST_WORDS, server).await {
        Ok(ended) => Ok(ended??),
        Err(_) => Ok(()),
    }
}

/// Writes one line to standard error, as vLLM logs.
fn log(line: &str) {
    // A reader that has left must not end the server.
    let _ = writeln!(std::io::stderr(), "{line}");
}
