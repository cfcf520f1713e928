//! `make image`: builds the action's image with an Engine of its own, and runs the demo through it as GitHub's runner
//! does; then a step that is cancelled, one that is killed, and the stage after each; and the job of CI that tries the
//! action on itself.

mod bases;
mod ends;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use testbed::action::Action;
use testbed::docker::{Engine, said};
use testbed::workflow::Job;
use testbed::{built, interrupt};

/// What the image is called here.
pub(crate) const NAME: &str = "model-swap:built";

/// What is tried at each change.
const CI: &str = include_str!("../../../../../.github/workflows/ci.yml");

/// The largest image that a step is willing to wait for, compressed, in bytes: a runner pulls it before every job.
const LARGEST: u64 = 20_000_000;

/// Runs a program of the other kind of processor on this one (Debian: qemu-user-static).
const EMULATORS: [(&str, &str); 2] =
    [("x86_64", "/usr/bin/qemu-aarch64-static"), ("aarch64", "/usr/bin/qemu-x86_64-static")];

fn main() -> ExitCode {
    interrupt::run(all())
}

async fn all() -> Result<()> {
    let target = std::env::current_exe()?;
    let target = target.ancestors().nth(2).context("this program is in no build folder")?;
    let engine = Engine::start(&target.join("image"))?;
    bases::make(&engine)?;
    build(&engine)?;
    let size = compressed(&engine)?;
    say(format!("the image has {:.1} MB, compressed", size as f64 / 1e6))?;
    ensure!(size <= LARGEST, "that is more than {:.1} MB", LARGEST as f64 / 1e6);
    other_kind(&engine)?;

    // Demo and steps are clients of this Engine.
    let demo = built::program("demo")?;
    let mut demo = Command::new(demo);
    bases::run(demo.args(["--image", NAME]).env("DOCKER_HOST", engine.host()))?;
    ends::cancelled(&engine).await?;
    ends::killed(&engine).await?;
    on_itself(&engine).await?;
    say("the image works as GitHub's runner would run it")
}

/// Carries out the job of CI in which the action, from a container on a bridge, swaps on a server of this machine.
async fn on_itself(engine: &Engine) -> Result<()> {
    let program = built::program("model-swap")?;
    let address = engine.address().to_string();
    let job = Job::rest_of(CI, ("swap", "bridge"), &[("address", &address)], &["gpu-server"])?;
    job.carry_out(|config| Ok(Action::new(&program, config)?.on_bridge_of(engine, NAME))).await?;
    say("the job of CI that swaps on a server came to its end")
}

/// Builds the Dockerfile of this source tree.
fn build(engine: &Engine) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("no root")?;
    let mut build = engine.docker(["build", "--network", "host", "--tag", NAME]);
    for base in [format!("BASE={}", bases::BASE), format!("BUILDER={}", bases::BUILDER)] {
        build.args(["--build-arg", &base]);
    }
    bases::run(build.arg(root))
}

/// Size in bytes of what a registry would send.
fn compressed(engine: &Engine) -> Result<u64> {
    let mut save = engine.docker(["save", NAME]).stdout(Stdio::piped()).spawn()?;
    let image = save.stdout.take().context("a pipe is missing")?;
    let mut gzip = Command::new("gzip").stdin(image).stdout(Stdio::piped()).spawn()?;
    let mut packed = gzip.stdout.take().context("a pipe is missing")?;
    let size = std::io::copy(&mut packed, &mut std::io::sink())?;
    ensure!(save.wait()?.success() && gzip.wait()?.success(), "the image cannot be saved");
    Ok(size)
}

/// The build for the other kind of processor runs there, as far as an emulator can tell.
fn other_kind(engine: &Engine) -> Result<()> {
    let own = std::env::consts::ARCH;
    let emulator = EMULATORS.into_iter().find(|(kind, _)| *kind == own).map(|(_, path)| path);
    let emulator = PathBuf::from(emulator.with_context(|| format!("no image is built on {own}"))?);
    let other = if own == "x86_64" { "aarch64" } else { "x86_64" };
    let mut run = engine.docker(["run", "--rm", "--network", "none", "--entrypoint", "/emulator"]);
    run.arg("-v").arg(format!("{}:/emulator:ro", emulator.display()));
    run.args([NAME, &format!("/usr/local/bin/model-swap-{other}"), "--version"]);
    let version = said(&mut run)?;
    let ours = said(&mut engine.docker(["run", "--rm", "--network", "none", NAME, "--version"]))?;
    ensure!(version == ours, "the build for {other} says {version:?}, and ours {ours:?}");
    say(format!("the build for {other} is {}", version.trim()))
}

/// Writes a line about the image.
pub(crate) fn say(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout(), "image: {text}").context("nobody reads")
}
