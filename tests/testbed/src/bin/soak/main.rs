//! `make soak`: lives of servers with faults at random moments, each from a seed.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::Parser;
use testbed::soak::{self, Life};
use testbed::{built, interrupt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Every so many-th seed is the life of a machine with systemd.
const MACHINES: u64 = 6;

/// Random faults against throwaway servers under load.
#[derive(Debug, Parser)]
struct Options {
    /// How many lives.
    #[arg(long, default_value_t = 20)]
    lives: u64,
    /// The first one's seed, to live it again; the others' follow. By default the clock's.
    #[arg(long)]
    seed: Option<u64>,
    /// How many at a time.
    #[arg(long, default_value_t = 2)]
    lanes: usize,
}

fn main() -> ExitCode {
    interrupt::run(soak(Options::parse()))
}

async fn soak(options: Options) -> Result<()> {
    let program = built::program("model-swap")?;
    built::program("stub-engine")?;
    let first = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        writeln!(std::io::stdout(), "no life is on a machine of its own: that takes root")?;
    }
    let mut seeds = first..first + options.lives;
    let mut lives = JoinSet::new();
    let (mut requests, mut excused, mut wrong) = (0, 0, Vec::new());
    let mut struck: BTreeMap<String, usize> = BTreeMap::new();
    let mut acts = 0;
    loop {
        while lives.len() < options.lanes.max(1)
            && let Some(seed) = seeds.next()
        {
            let program = program.clone();
            if is_root && seed.is_multiple_of(MACHINES) {
                lives.spawn(on_machine(program, seed));
            } else {
                lives.spawn(async move { soak::live(&program, seed).await });
            }
        }
        let Some(life) = lives.join_next().await else { break };
        let life: Life = life??;
        writeln!(std::io::stdout(), "{life}")?;
        requests += life.requests;
        excused += life.excused;
        acts += life.acts.len();
        life.struck.into_iter().for_each(|kind| *struck.entry(kind).or_default() += 1);
        wrong.extend((!life.problems.is_empty()).then_some(life.seed));
    }
    writeln!(
        std::io::stdout(),
        "{} lives, {acts} disturbed commands, {requests} requests, of which {excused} were lost while what they needed was gone",
        options.lives
    )?;
    let kinds: Vec<_> = struck.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
    writeln!(std::io::stdout(), "struck in time: {}", kinds.join(", "))?;
    writeln!(std::io::stdout(), "{} went wrong: {wrong:?}", wrong.len())?;
    ensure!(wrong.is_empty(), "live one of them again with: make soak N=1 SEED={}", wrong[0]);
    Ok(())
}

/// On a thread of its own, which moves into the machine's network. Should this program end before, the machine ends with it.
async fn on_machine(program: PathBuf, seed: u64) -> Result<Life> {
    let (done, told) = oneshot::channel();
    std::thread::Builder::new().spawn(move || done.send(soak::live_on_machine(&program, seed)))?;
    told.await?
}
