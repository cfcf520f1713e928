//! A throwaway GPU server for a workflow: it stands, with an old model under load, until it is told to end, and then says
//! what the clients saw.
//!
//! Its standard output is what a step hands on as its outputs, and ends once the server stands. Whoever has told it to end
//! waits for the lock on `FOLDER/running`, and reads `FOLDER/report`.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use testbed::interrupt;
use testbed::load::{Load, LoadSpec};
use testbed::server::{GpuServer, ServerSpec, free_port};
use testbed::service::{self, NAME, Settings, engine};

/// The model that serves at first.
const OLD: &str = "Qwen/Old";
/// The model that configurations ask for.
const NEW: &str = "Qwen/New";

/// When the load ends by itself: GitHub ends the job sooner.
const LONGEST_JOB: Duration = Duration::from_secs(2 * 60 * 60);

#[derive(clap::Parser)]
struct Options {
    /// Where sshd listens.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    listen: Ipv4Addr,
    /// Gets the configurations and, at the end, the report.
    folder: PathBuf,
}

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(serve(&Options::parse()))
}

async fn serve(options: &Options) -> Result<()> {
    let at = |name: &str| options.folder.join(name);
    fs::create_dir_all(&options.folder)?;
    let running = File::create(at("running"))?;
    running.lock()?;
    let server =
        GpuServer::start(ServerSpec { ssh_address: options.listen, ..Default::default() })?;
    server.start_by_hand(&engine(OLD, server.slot_ports().0)?, &[])?;
    service::until_serves(server.nginx_addr(), OLD).await?;
    let spec = LoadSpec::mixed(server.nginx_addr(), NAME);
    let load = Load::start(LoadSpec { lasts_at_most: LONGEST_JOB, ..spec });
    for (name, settings) in configurations()? {
        fs::write(at(name), settings.config(&server, NEW)?)?;
    }
    tell(&server)?;

    interrupt::interrupted().await?;
    let tally = load.stop().await;
    server.stop()?;
    fs::write(at("report"), tally.to_string())?;
    ensure!(tally.faults() == 0, "{tally}");
    Ok(())
}

/// What a workflow may ask for, by the name of its file.
fn configurations() -> Result<[(&'static str, Settings); 3]> {
    let nowhere = format!("http://127.0.0.1:{}/v1/models", free_port()?);
    let unmet = format!("{{ url: {nowhere:?}, within: 5s }}");
    let endless = "--stub-load-time 1h".to_owned();
    Ok([
        ("new.yaml", Settings::default()),
        ("unmet.yaml", Settings { verify: unmet, ..Settings::default() }),
        (
            "endless.yaml",
            Settings { flags: endless, ready: "2h".to_owned(), ..Settings::default() },
        ),
    ])
}

/// Says what a step needs, as lines of `GITHUB_OUTPUT`, and that there is no more to come.
fn tell(server: &GpuServer) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "pid={}\nnginx={}", std::process::id(), server.nginx_addr())?;
    for (name, text) in [("ssh-key", server.private_key()), ("known-hosts", server.known_hosts())] {
        writeln!(stdout, "{name}<<END\n{}\nEND", text.trim_end())?;
    }
    stdout.flush()?;
    let nobody = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nobody).context("standard output cannot be closed")
}
