//! `make bench`: whole-process times of the same swap, side by side: the shell script that people use today over one
//! ssh, model-swap on a server that has never seen it (cold) and on one that has (warm).
//!
//! What is the same for all: the new model, healthy after the same start-up; nothing to drain; the key, the known hosts
//! and every option of ssh; the relay that makes the distance; a fresh throwaway server for each single run, which
//! somebody has logged in to once before the clock starts. Nobody reports to GitHub.

mod memory;
mod script;
mod table;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use testbed::action::{Action, Run};
use testbed::interrupt;
use testbed::relay::Relay;
use testbed::server::{GpuServer, ServerSpec};
use testbed::service::{self, Settings, engine};

use memory::Cost;
use script::Ssh;
use table::Times;

/// The model that serves before each swap.
const OLD: &str = "Qwen/Old";
/// The model that serves after it.
const NEW: &str = "Qwen/New";

/// Whole-process times of the same swap, side by side.
#[derive(Debug, Parser)]
struct Options {
    /// The binary, built as that of the action's image is.
    program: PathBuf,
    /// Timed runs of each variant at each distance; one more is made first and not counted.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How long the new model takes from its start to its first answer.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "280ms")]
    engine_start: Duration,
    /// The round trips to the server.
    #[arg(long, value_parser = humantime::parse_duration, value_delimiter = ',', default_value = "0ms,40ms")]
    round_trips: Vec<Duration>,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Connecting and logging in, for comparison: all others contain it.
    Connection,
    /// The shell script over one ssh. It stops the old model while nginx's old workers, for about 0.1 s, still take new
    /// requests for it: under load those are lost.
    Script,
    /// The same script, made to wait until the old workers are gone.
    WaitingScript,
    /// model-swap, which brings itself to the server first.
    Cold,
    /// model-swap, which is there already.
    Warm,
}

impl Variant {
    const ALL: [Self; 5] =
        [Self::Connection, Self::Script, Self::WaitingScript, Self::Cold, Self::Warm];

    fn name(self) -> &'static str {
        match self {
            Self::Connection => "ssh host true",
            Self::Script => "script over one ssh",
            Self::WaitingScript => "  that waits for nginx",
            Self::Cold => "model-swap, cold",
            Self::Warm => "model-swap, warm",
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    interrupt::run(bench(options))
}

async fn bench(options: Options) -> Result<()> {
    let program = options.program.canonicalize().context("the binary to measure")?;
    let size = std::fs::metadata(&program)?.len();
    say(&format!(
        "The same swap, {} times each after one that does not count, in turns; from the start of a process to its end.\n\
         Each run has a server of its own, where somebody has logged in once, with {OLD} on slot a.\n\
         The new model answers {} after its start; nothing is in flight; nobody reports to GitHub.\n\
         The script ends, and stops the old model, while nginx's old workers still take requests for it, for about 0.1 s:\n\
         under load it loses them. model-swap ends when new requests reach the new model alone.\n\
         model-swap has {:.1} MB ({}).",
        options.runs,
        humantime::format_duration(options.engine_start),
        table::megabytes(size),
        if cfg!(debug_assertions) { "not optimised: times mean little" } else { "release" },
    ))?;
    let mut cost = Cost::of_size(size);
    let mut columns: Vec<Times> = options.round_trips.iter().map(|_| Times::default()).collect();
    for round in 0..=options.runs {
        for (round_trip, times) in options.round_trips.iter().zip(&mut columns) {
            for variant in in_turn(round) {
                let took = Trial::set(&program, *round_trip, options.engine_start)
                    .await?
                    .run(variant, &mut cost)
                    .await
                    .with_context(|| format!("{} failed", variant.name()))?;
                if round > 0 {
                    times.add(variant, took);
                }
            }
        }
    }
    for (round_trip, times) in options.round_trips.iter().zip(&columns) {
        say(&format!("\nRound trip {} ms\n{times}", round_trip.as_millis()))?;
    }
    say(&format!("\n{cost}"))
}

/// All variants, each round beginning with another one, so that no one always follows the same.
fn in_turn(round: u32) -> impl Iterator<Item = Variant> {
    Variant::ALL
        .into_iter()
        .cycle()
        .skip(round as usize % Variant::ALL.len())
        .take(Variant::ALL.len())
}

/// One fresh server and the way to it. Dropping it ends both.
struct Trial {
    program: PathBuf,
    flags: String,
    relay: Relay,
    known_hosts: String,
    old: u32,
    server: GpuServer,
}

impl Trial {
    async fn set(program: &Path, round_trip: Duration, engine_start: Duration) -> Result<Self> {
        let server = GpuServer::start(ServerSpec::default())?;
        let ssh = SocketAddr::from((Ipv4Addr::LOCALHOST, server.ssh_port()));
        let relay = Relay::start(ssh, round_trip).await?;
        let ports = [ssh.port(), relay.address().port()].map(|port| format!("]:{port} "));
        let known_hosts = server.known_hosts().replace(&ports[0], &ports[1]);
        let (a, _) = server.slot_ports();
        let old = server.start_by_hand(&engine(OLD, a)?, &[])?.pid;
        service::until_serves(server.nginx_addr(), OLD).await?;
        let flags = format!("--stub-load-time {}ms", engine_start.as_millis());
        Ok(Self { program: program.to_owned(), flags, relay, known_hosts, old, server })
    }

    /// Performs one run and gives the time from the start of its process to its end.
    async fn run(self, variant: Variant, cost: &mut Cost) -> Result<Duration> {
        let port = self.relay.address().port();
        let ssh = Ssh::new(&self.server, port, &self.known_hosts)?;
        ssh.run("true", "").await?;
        if variant == Variant::Warm {
            let status = self.action("status")?.spawn()?.finish().await?;
            ensure!(status.code == 0, "{status}");
        }
        let (took, serves) = match variant {
            Variant::Connection => (ssh.run("true", "").await?, OLD),
            Variant::Script => (ssh.run("bash -s", &self.script("")?).await?, NEW),
            Variant::WaitingScript => {
                let wait = script::wait_for_workers(&self.server.nginx_workers()?);
                (ssh.run("bash -s", &self.script(&wait)?).await?, NEW)
            }
            Variant::Cold | Variant::Warm => {
                let action = self.action("swap")?;
                let began = Instant::now();
                let run: Run = action.spawn()?.finish().await?;
                let took = began.elapsed();
                let outcome = run.outputs.get("outcome").map(String::as_str);
                ensure!((run.code, outcome) == (0, Some("promoted")), "{run}");
                (took, NEW)
            }
        };
        // The script is done while old workers still send requests to the model that it has killed.
        service::until_serves(self.server.nginx_addr(), serves).await?;
        if matches!(variant, Variant::Cold | Variant::Warm) {
            cost.look(&self.server)?;
        }
        self.server.stop()?;
        Ok(took)
    }

    fn script(&self, wait: &str) -> Result<String> {
        let mut engine = engine(NEW, self.server.ports().b)?;
        engine.extend(self.flags.split(' ').map(str::to_owned));
        Ok(script::swap(&self.server, &engine, self.old, wait))
    }

    fn action(&self, command: &str) -> Result<Action> {
        let ssh_port = self.relay.address().port();
        let settings =
            Settings { flags: self.flags.clone(), ssh_port: Some(ssh_port), ..Settings::default() };
        let config = settings.config(&self.server, NEW)?;
        Ok(Action::new(&self.program, &config)?
            .with_access_to(&self.server)
            .with_inputs(&[("command", command), ("known-hosts", &self.known_hosts)]))
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("nobody reads the bench")
}
