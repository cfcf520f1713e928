//! The real nginx as a daemon, with everything it writes in scratch.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::processes::{children, parent_of, until};
use super::{GpuServer, ServerSpec, programs};

/// As many as a small server has; with one alone, a reload would never leave two of one generation to drain.
const WORKERS: usize = 2;

/// Program and arguments that name this nginx.
pub(super) fn command(program: &Path, scratch: &Path) -> Vec<String> {
    let config = scratch.join("nginx.conf");
    let words = [program.display().to_string(), "-c".into(), config.display().to_string()];
    words.into_iter().chain(["-p".into(), format!("{}/", scratch.display())]).collect()
}

/// Writes the configuration and starts the daemon; returns when its workers are there.
pub(super) fn start(server: &GpuServer, spec: &ServerSpec) -> anyhow::Result<()> {
    let scratch = server.scratch();
    fs::write(scratch.join("nginx.conf"), main_text(scratch, spec))?;
    fs::write(upstream_path(scratch), (spec.upstream_file)(server.ports()))?;
    let mut daemon = daemon(server)?;
    if let Some(uid) = spec.nginx_uid {
        daemon.uid(uid).gid(uid);
        fs::set_permissions(scratch, fs::Permissions::from_mode(0o711))?;
        for folder in ["logs", "run", "temp"] {
            chown(scratch.join(folder), Some(uid), Some(uid))?;
        }
    }
    run(&mut daemon, scratch)
}

/// Starts it on the configuration that is there; returns when its workers are there.
pub(super) fn start_again(server: &GpuServer) -> anyhow::Result<()> {
    run(&mut daemon(server)?, server.scratch())
}

/// Has the master end at once, and all workers with it; returns when it is gone.
pub(super) fn stop(server: &GpuServer) -> anyhow::Result<()> {
    let master = master(server.scratch())?;
    programs::check(daemon(server)?.args(["-s", "stop"]))?;
    until("nginx ends", || Ok(parent_of(master).is_none()))
}

fn daemon(server: &GpuServer) -> anyhow::Result<Command> {
    let (program, args) = server.nginx_command().split_first().context("nginx has no command")?;
    let mut daemon = Command::new(program);
    daemon.args(args).process_group(0);
    Ok(daemon)
}

fn run(daemon: &mut Command, scratch: &Path) -> anyhow::Result<()> {
    programs::check(daemon)?;
    // The daemon writes its pid file only after its parent, which we waited for, has ended.
    until("nginx has its workers", || {
        Ok(master(scratch).is_ok_and(|master| children(master).len() == WORKERS))
    })
    .with_context(|| fs::read_to_string(error_log(scratch)).unwrap_or_default())
}

/// Process id of the master, from the pid file.
pub(super) fn master(scratch: &Path) -> anyhow::Result<u32> {
    let path = scratch.join("run/nginx.pid");
    let text =
        fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))
}

/// The file with the upstream.
pub(super) fn upstream_path(scratch: &Path) -> PathBuf {
    scratch.join("llm.conf")
}

/// The error log.
pub(super) fn error_log(scratch: &Path) -> PathBuf {
    scratch.join("logs/error.log")
}

fn main_text(scratch: &Path, spec: &ServerSpec) -> String {
    let at = scratch.display();
    // A master that is root would hand its workers to a user who may not write in scratch. Any other master keeps
    // its own user, and would warn about this line.
    let user = if rustix::process::getuid().is_root() && spec.nginx_uid.is_none() {
        "user root root;"
    } else {
        ""
    };
    let ServerSpec { main_lines, http_lines, .. } = spec;
    format!(
        "{user}
worker_processes {WORKERS};
pid {at}/run/nginx.pid;
error_log {at}/logs/error.log notice;
{main_lines}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {at}/temp/body;
    proxy_temp_path {at}/temp/proxy;
    fastcgi_temp_path {at}/temp/fastcgi;
    uwsgi_temp_path {at}/temp/uwsgi;
    scgi_temp_path {at}/temp/scgi;
    {http_lines}
    include {at}/llm.conf;
}}
"
    )
}
