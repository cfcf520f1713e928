//! A guest with a Docker Engine: this machine's programs, as a unit of the guest's systemd. It ends and begins with the guest,
//! and what it keeps is on the guest's disk.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::files::{Seed, engine_argv};
use super::{ENGINE, Guest, SLOTS, text};
use crate::docker::{CLIENT, COMPOSED};
use crate::server::programs;

/// The image with the engine of a guest.
pub const IMAGE: &str = "stub-engine:here";

const UNIT: &str = "docker.service";
/// As Debian has it. Published ports go through its proxies, which need no rule of the firewall.
const UNIT_TEXT: &str = "[Unit]
Description=Docker Application Container Engine
After=network-online.target

[Service]
Type=notify
ExecStartPre=/usr/local/sbin/groups-for-docker
ExecStart=/usr/sbin/dockerd --host unix:///run/docker.sock --iptables=false --ip-forward=false --ip-masq=false
Delegate=yes
KillMode=process
Restart=always

[Install]
WantedBy=multi-user.target
";

/// systemd-nspawn shows control groups of version 1 read-only. The Engine insists on one kind and does without the others,
/// where it finds none of them.
const GROUPS: &str = r#"#!/bin/sh
while read -r _ at kind _; do
    case $kind:$at in
    cgroup:*/systemd) ;;
    cgroup:*/devices) mount -o remount,bind,rw "$at" || exit ;;
    cgroup:*) umount "$at" || exit ;;
    esac
done </proc/mounts
"#;

/// Where the Engine keeps what it has: its layers cannot be on a layer.
const DATA: &str = "/var/lib/docker";

/// What `systemd-nspawn` is told beside: the Engine's disk and programs, and what it may do.
pub(super) fn arguments(scratch: &Path) -> Result<Vec<String>> {
    let disk = scratch.join("docker");
    std::fs::create_dir_all(&disk)?;
    let mut argv = vec![
        format!("--bind={}:{DATA}", text(&disk)?),
        format!("--bind-ro={CLIENT}"),
        format!("--bind-ro={}:/usr/sbin/dockerd", text(&programs::find("dockerd")?)?),
        // It makes its bridge, keyrings of its containers, and filters of their devices.
        "--capability=CAP_NET_ADMIN".to_owned(),
        "--system-call-filter=add_key keyctl bpf".to_owned(),
    ];
    for name in ["docker-proxy", "docker-init", "containerd", "containerd-shim-runc-v2", "runc"] {
        argv.push(format!("--bind-ro={}", text(&programs::find(name)?)?));
    }
    Ok(argv)
}

/// Writes what has systemd start it.
pub(super) fn write(seed: &Seed) -> Result<()> {
    let unit = PathBuf::from("/etc/systemd/system").join(UNIT);
    seed.put("/usr/local/sbin/groups-for-docker", 0o755, GROUPS)?;
    seed.put(text(&unit)?, 0o644, UNIT_TEXT)?;
    let wanted = format!("/etc/systemd/system/multi-user.target.wants/{UNIT}");
    Ok(symlink(unit, seed.place(&wanted)?)?)
}

impl Guest {
    /// A command of Docker's client there; returns what it says.
    ///
    /// # Errors
    /// If it fails: with its standard error.
    pub async fn docker(&self, args: &[&str]) -> Result<String> {
        Ok(self.run(&[&["docker"], args].concat()).await?.trim().to_owned())
    }

    /// Makes [`IMAGE`].
    pub(super) async fn import_image(&self) -> Result<()> {
        let line = format!(
            "tar --create --dereference --absolute-names {ENGINE} $(ldd {ENGINE} | grep -o '/[^ ]*') |
                docker import --change 'ENTRYPOINT [\"{ENGINE}\", \"serve\"]' - {IMAGE}"
        );
        self.run(&["sh", "-c", &line]).await.map(drop)
    }

    /// Starts a model in slot a as Compose does: it publishes on every address, and inside the port is another.
    pub(super) async fn compose(&self, model: &str, flags: &str) -> Result<()> {
        let name = format!("--name={COMPOSED}");
        let publish = format!("--publish={}:8000", SLOTS.0);
        let label = "--label=com.docker.compose.project=llm";
        let mut args = vec!["run", "--detach", "--restart=always", label, &name, &publish, IMAGE];
        let argv = engine_argv(model, 8000);
        let own = argv.iter().skip(2).map(String::as_str);
        args.extend(own.map(|word| if word == "127.0.0.1" { "0.0.0.0" } else { word }));
        args.extend(flags.split_whitespace());
        self.docker(&args).await.map(drop)
    }
}
