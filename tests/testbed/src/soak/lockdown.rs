//! A server whose key has a forced command: it may ask about the services that root lists, and nothing else.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::server::{GpuServer, MARK};
use crate::service::{Settings, engine};

use super::neighbour::Neighbour;

/// Ties the server's key to the agent, and lists both services as root would.
pub(super) fn lock_down(program: &Path, server: &GpuServer, neighbour: &Neighbour) -> Result<()> {
    let folder = server.scratch().join("services.d");
    fs::create_dir(&folder)?;
    let chat = Settings::default().config(server, "{model}")?;
    let code = neighbour.at.config(&chat, server.ports());
    for (name, config) in [("chat.yaml", chat), ("code.yaml", code)] {
        fs::write(folder.join(name), listing(&config)?)?;
    }
    let keys = server.scratch().join("ssh/authorized_keys");
    let key = fs::read_to_string(&keys)?;
    let forced = format!("{} agent --services {}", program.display(), folder.display());
    Ok(fs::write(&keys, format!("command=\"{forced}\",restrict {key}"))?)
}

/// What root lists of a service: what concerns the server as it stands in the configuration, and what the soak asks for.
fn listing(config: &str) -> Result<String> {
    const OF_SERVER: [&str; 9] = [
        "slots:",
        "  a:",
        "  b:",
        "state_dir:",
        "nginx:",
        "  config:",
        "  upstream:",
        "  command: [",
        "  probe:",
    ];
    let is_of_server = |line: &&str| OF_SERVER.iter().any(|start| line.starts_with(start));
    let lines: String =
        config.lines().filter(is_of_server).map(|line| format!("{line}\n")).collect();
    let command = engine("{model}", "{port}")?.join(" ");
    Ok(format!(
        "allow: [plan, swap, rollback, status, abort, repair]
models: [\"Qwen/*\"]
commands: [\"{command} *\"]
env: [{MARK}]
{lines}"
    ))
}
