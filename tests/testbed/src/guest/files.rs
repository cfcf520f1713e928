//! What lies on a guest's disk beside Debian: its name, its keys, the service's nginx, the model and its unit.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{GuestSpec, INCUMBENT, Runtime, SLOTS, USER, docker, text};
use crate::built;
use crate::server::sshd::CHEAP;
use crate::server::{faults, programs};
use crate::service;

/// The engine's program, where people who use a virtual environment have it.
pub const ENGINE: &str = "/opt/vllm/bin/vllm";
/// The file with the service's upstream.
pub const UPSTREAM_FILE: &str = "/etc/nginx/conf.d/llm.conf";
/// The GPUs of the two slots, of the four that its `nvidia-smi` knows.
pub const GPUS: [&str; 2] = ["0", "1"];

/// The folder of what strikes agents.
pub(super) const FAULTS: &str = "/opt/faults";

/// User and group id of the first user that is made on Debian.
const USER_ID: u32 = 1000;

const LOG_FORMAT: &str = r#"log_format llm '$remote_addr [$time_iso8601] "$request" $status $body_bytes_sent'
    ' upstream=$upstream_addr upstream_status=$upstream_status time=$request_time first=$upstream_header_time';
access_log /var/log/nginx/llm.log llm;
"#;

/// Prints what `nvidia-smi` prints for four GPUs, in the formats of its documentation; a GPU is used by every engine whose
/// `CUDA_VISIBLE_DEVICES` names it.
const NVIDIA_SMI: &str = include_str!("../../fixtures/nvidia-smi");

/// Who may log in, and how the guest proves what it is.
pub(super) struct Keys {
    pub(super) private_key: String,
    pub(super) known_hosts: String,
}

/// The upper layer of a disk, before its first boot.
pub(super) struct Seed {
    at: PathBuf,
}

impl Seed {
    pub(super) fn under(at: &Path) -> Self {
        Self { at: at.to_owned() }
    }

    /// Where a path of the guest is, its folders made.
    pub(super) fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.at.join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a file has a folder")?)?;
        Ok(place)
    }

    pub(super) fn put(&self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
        let place = self.place(path)?;
        fs::write(&place, content)?;
        Ok(fs::set_permissions(&place, fs::Permissions::from_mode(mode))?)
    }

    /// Hands a path to the user who logs in.
    fn give(&self, path: &str, mode: u32) -> Result<()> {
        let place = self.place(path)?;
        chown(&place, Some(USER_ID), Some(USER_ID))?;
        Ok(fs::set_permissions(&place, fs::Permissions::from_mode(mode))?)
    }
}

/// nginx's file of a service: its upstream on a port of the guest, and a server that listens.
pub fn upstream_file(upstream: &str, listen: u16, port: u16) -> String {
    format!(
        "upstream {upstream} {{
    server 127.0.0.1:{port};
    keepalive 32;
}}
server {{
    listen {listen};
    location / {{
        proxy_pass http://{upstream};
        proxy_http_version 1.1;  proxy_set_header Connection \"\";
        proxy_buffering off;     proxy_read_timeout 600s;
    }}
}}
"
    )
}

/// argv of the engine, as its owner types it.
pub(super) fn engine_argv(model: &str, port: u16) -> Vec<String> {
    service::argv(ENGINE, model, &port.to_string())
}

/// Writes the keys where ssh on this machine finds them.
pub(super) fn keep(keys: &Keys, folder: &Path) -> Result<()> {
    let login = folder.join("login");
    fs::write(&login, &keys.private_key)?;
    fs::set_permissions(&login, fs::Permissions::from_mode(0o600))?;
    Ok(fs::write(folder.join("known"), &keys.known_hosts)?)
}

/// Writes all of it.
pub(super) fn write(seed: &Seed, spec: &GuestSpec, address: Ipv4Addr) -> Result<Keys> {
    let name = &spec.name;
    seed.put("/etc/hostname", 0o644, format!("{name}\n"))?;
    seed.put("/etc/hosts", 0o644, format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
    seed.put("/etc/resolv.conf", 0o644, "")?;
    // Without one this would be a first boot, and systemd would enable what its presets say.
    seed.put("/etc/machine-id", 0o444, machine_id()?)?;
    seed.put(
        &format!("/etc/sudoers.d/{USER}"),
        0o440,
        format!("{USER} ALL=(root) NOPASSWD: ALL\n"),
    )?;
    seed.put("/etc/ssh/sshd_config.d/cheap.conf", 0o644, CHEAP)?;
    seed.put("/etc/nginx/conf.d/log.conf", 0o644, LOG_FORMAT)?;
    seed.put(UPSTREAM_FILE, 0o644, upstream_file("llm", 80, SLOTS.0))?;
    seed.put(ENGINE, 0o755, fs::read(built::program("stub-engine")?)?)?;
    seed.put("/usr/bin/nvidia-smi", 0o755, NVIDIA_SMI)?;
    if spec.runtime == Runtime::Docker {
        docker::write(seed)?;
    } else if let Some((model, flags)) = &spec.incumbent {
        let path = format!("/etc/systemd/system/{INCUMBENT}");
        seed.put(&path, 0o644, unit(model, flags))?;
        let wanted = format!("/etc/systemd/system/multi-user.target.wants/{INCUMBENT}");
        symlink(path, seed.place(&wanted)?)?;
    }
    if spec.faults {
        let (at, state) = (Path::new(FAULTS), Path::new("/var/lib/model-swap"));
        let env = format!("{FAULTS}/env");
        seed.put(&env, 0o644, faults::environment(at, state).join("\n"))?;
        faults::make(&seed.place(FAULTS)?)?;
        // sudo takes no variable of its caller's, and these it adds.
        seed.put("/etc/sudoers.d/faults", 0o440, format!("Defaults env_file={env}\n"))?;
    }
    for (path, mode, content) in &spec.files {
        seed.put(path, *mode, content)?;
    }
    keys(seed, address)
}

/// A unit as people write it for vLLM.
fn unit(model: &str, flags: &str) -> String {
    let argv = engine_argv(model, SLOTS.0).join(" ");
    format!(
        "[Unit]
Description=vLLM serving {model}
After=network-online.target
Wants=network-online.target

[Service]
User=vllm
WorkingDirectory=/var/lib/vllm
Environment=CUDA_VISIBLE_DEVICES=0
ExecStart={argv} {flags}
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"
    )
}

fn keys(seed: &Seed, address: Ipv4Addr) -> Result<Keys> {
    let home = format!("/home/{USER}");
    let ssh = format!("{home}/.ssh");
    let host = seed.place("/etc/ssh/ssh_host_ed25519_key")?;
    keygen(&host)?;
    let outside = tempfile::tempdir()?;
    let login = outside.path().join("login");
    keygen(&login)?;
    seed.put(&format!("{ssh}/authorized_keys"), 0o600, fs::read(login.with_extension("pub"))?)?;
    for (path, mode) in [(&home, 0o755), (&ssh, 0o700), (&format!("{ssh}/authorized_keys"), 0o600)]
    {
        seed.give(path, mode)?;
    }
    let public = fs::read_to_string(host.with_extension("pub"))?;
    Ok(Keys {
        private_key: fs::read_to_string(login)?,
        known_hosts: format!("{address} {}\n", public.trim_end()),
    })
}

fn keygen(path: &Path) -> Result<()> {
    let program = programs::find("ssh-keygen")?;
    programs::run(
        &program,
        &["-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", text(path)?],
    )?;
    Ok(())
}

/// 32 hex digits and a newline (machine-id(5)).
fn machine_id() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.replace('-', ""))
}
