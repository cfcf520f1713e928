//! The images that the Dockerfile begins with, made of Debian's packages and of this machine's Rust: no registry of images
//! is asked. Kept by the Engine from one run to the next.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use testbed::docker::{Engine, privileged, said};

pub(crate) const BASE: &str = "debian:bookworm-slim";
pub(crate) const BUILDER: &str = "rust:1-bookworm";

/// Certificates that the administrator of a machine has added to Debian's (update-ca-certificates(8)): without them the
/// build may reach no registry from behind a proxy.
const ADDED_CERTIFICATES: &str = "/usr/local/share/ca-certificates";

/// What of Rust's image a build with the cross compilers of the Dockerfile needs.
const BUILDER_DOCKERFILE: &str = "\
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev
COPY bin /usr/local/bin
COPY lib /usr/local/lib
";

/// Makes both where they are missing.
pub(crate) fn make(engine: &Engine) -> Result<()> {
    if !is_there(engine, BASE) {
        debian(engine)?;
    }
    if !is_there(engine, BUILDER) {
        let sysroot = said(Command::new("rustc").args(["--print", "sysroot"]))?;
        let folder = tempfile::tempdir()?;
        let dockerfile = folder.path().join("Dockerfile");
        fs::write(&dockerfile, format!("FROM {BASE}\n{BUILDER_DOCKERFILE}"))?;
        let mut build = engine.docker(["build", "--network", "host", "--tag", BUILDER, "--file"]);
        run(build.arg(&dockerfile).arg(sysroot.trim()))?;
    }
    Ok(())
}

fn is_there(engine: &Engine, image: &str) -> bool {
    said(&mut engine.docker(["image", "inspect", image])).is_ok()
}

fn debian(engine: &Engine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root");
    let made = (|| {
        run(privileged("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&root))?;
        if Path::new(ADDED_CERTIFICATES).is_dir() {
            let target = root.join(&ADDED_CERTIFICATES[1..]);
            run(privileged("mkdir").arg("-p").arg(&target))?;
            run(privileged("cp").args(["-rT", ADDED_CERTIFICATES]).arg(&target))?;
        }
        let mut tar = privileged("tar");
        let mut tar = tar.arg("-C").arg(&root).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
        let stream = tar.stdout.take().context("a pipe is missing")?;
        run(engine.docker(["import", "-", BASE]).stdin(stream))?;
        ensure!(tar.wait()?.success(), "tar failed");
        Ok(())
    })();
    // What root wrote there, only root removes.
    run(privileged("rm").arg("-rf").arg(&root))?;
    made
}

/// Runs a command that shows what it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
