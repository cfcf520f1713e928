//! What people run today: one shell script, sent over one ssh.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::server::GpuServer;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The script that people have, without its sleep of a minute. In its place are `wait`, more lines of shell, and a wait
/// for the old model's last request; here there is none.
pub(crate) fn swap(server: &GpuServer, engine: &[String], old: u32, wait: &str) -> String {
    let (a, b) = server.slot_ports();
    let nginx = server.nginx_command().join(" ");
    let config = server.nginx_config().display().to_string();
    let log = server.scratch().join("logs/script.log").display().to_string();
    let engine = engine.join(" ");
    format!(
        "set -e
setsid nohup {engine} </dev/null >{log} 2>&1 &
until curl -sf http://127.0.0.1:{b}/health >/dev/null; do sleep 0.05; done
sed -i 's/server 127.0.0.1:{a};/server 127.0.0.1:{b};/' {config}
{nginx} -t 2>/dev/null
{nginx} -s reload
{wait}until curl -s http://127.0.0.1:{a}/metrics | grep -q '^vllm:num_requests_running.* 0\\(\\.0\\)\\?$'; do sleep 0.05; done
kill {old}
"
    )
}

/// Lines that wait until none of these processes is left.
pub(crate) fn wait_for_workers(workers: &[u32]) -> String {
    let line = |worker| format!("while kill -0 {worker} 2>/dev/null; do sleep 0.05; done\n");
    workers.iter().map(line).collect()
}

/// How to log in, with the same options as model-swap's own connection.
pub(crate) struct Ssh {
    host: String,
    port: u16,
    options: String,
    folder: TempDir,
}

impl Ssh {
    pub(crate) fn new(server: &GpuServer, port: u16, known_hosts: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = folder.path().join("key");
        fs::write(&key, server.private_key())?;
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        let known = folder.path().join("known_hosts");
        fs::write(&known, known_hosts)?;
        let options = format!(
            "BatchMode yes\nStrictHostKeyChecking yes\nUpdateHostKeys no\nControlMaster no\n\
             IdentityFile {}\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\n",
            key.display(),
            known.display()
        );
        Ok(Self { host: server.ssh_host().to_owned(), port, options, folder })
    }

    /// Runs a command with a text on its standard input, and gives the time from the start of ssh to its end.
    pub(crate) async fn run(&self, command: &str, input: &str) -> Result<Duration> {
        let config = self.folder.path().join("config");
        fs::write(&config, &self.options)?;
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(config).args(["-p", &self.port.to_string(), &self.host, command]);
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let began = Instant::now();
        let mut child = ssh.spawn().context("ssh cannot be run")?;
        let mut stdin = child.stdin.take().context("a pipe is missing")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let took = began.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command}: {}: {}", output.status, said.trim());
        Ok(took)
    }
}
