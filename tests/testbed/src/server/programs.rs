//! Finds and runs the programs that make a server.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::end;

/// Debian's package for each program that is not there by itself.
const PACKAGES: [(&str, &str); 7] = [
    ("bash", "bash"),
    ("dockerd", "docker.io"),
    ("ip", "iproute2"),
    ("nginx", "nginx"),
    ("sshd", "openssh-server"),
    ("ssh-keygen", "openssh-client"),
    ("systemd-nspawn", "systemd-container"),
];

/// Absolute path of `name`, from `PATH` and the folders of system programs, which an ordinary user's `PATH` lacks.
pub(crate) fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    if let Some(found) =
        folders.filter(|folder| folder.is_absolute()).map(|f| f.join(name)).find(|p| p.is_file())
    {
        return Ok(found);
    }
    bail!(missing(name))
}

/// What to say of a program that is not there.
pub(super) fn missing(name: &str) -> String {
    match PACKAGES.iter().find(|(program, _)| *program == name) {
        Some((_, package)) => format!("{name} is not installed: apt-get install {package}"),
        None => format!("{name} is not installed"),
    }
}

/// Runs a short program to its end and returns its standard output; a failure carries its standard error.
pub(crate) fn run(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    check(Command::new(program).args(args))
}

/// As [`run`], for a command that needs more than arguments.
pub(crate) fn check(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = end::run(command).with_context(|| shown.clone())?;
    ensure!(
        output.status.success(),
        "{shown}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
