//! Enough of a process that nobody here started to start it again, in its old place or in another slot.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::inherit::{Identity, argv, environment, inherited};
use super::{ProcessError, redact, resolve};
use crate::config::command;
use crate::host::engine;
use crate::model::ids::{Port, ProcessId};
use crate::model::spec::{Engine, Slot};
use crate::swap::redact::{secrets_of_argv, secrets_of_variable};

/// argv, environment, folder and user of a process. Holds secrets: keep it in a file of mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// argv, secrets included.
    pub argv: Vec<String>,
    /// The environment as it was started with; empty where it could not be read any more.
    pub env: BTreeMap<String, String>,
    /// Working folder.
    pub cwd: PathBuf,
    /// User and groups.
    #[serde(flatten)]
    pub identity: Identity,
}

impl Snapshot {
    /// Takes the snapshot of a running process.
    ///
    /// # Errors
    /// If it is gone, or another user's.
    pub fn of(main: ProcessId) -> Result<Self, ProcessError> {
        let inherited = inherited(main)?;
        let env = match environment(main) {
            Err(ProcessError::BlankEnvironment(_)) => BTreeMap::new(),
            env => env?,
        };
        Ok(Self { argv: argv(main)?, env, cwd: inherited.cwd, identity: inherited.identity })
    }

    /// The same for a slot, if it listened on `port` before; `None` if its argv does not say on which port it listens,
    /// so that it cannot be told to listen elsewhere.
    #[must_use]
    pub fn for_slot(mut self, engine: Engine, port: Port, slot: &Slot) -> Option<Self> {
        if port != slot.port {
            self.argv = engine::on_port(engine, self.argv, slot.port)?;
            self.env.extend(command::gpu_env(&slot.gpus));
        }
        Some(self)
    }

    /// What of its argv and environment is secret, by the name or the looks of it.
    pub fn secrets(&self) -> Vec<String> {
        let of_env = self.env.iter().flat_map(|(name, value)| secrets_of_variable(name, value));
        of_env.chain(secrets_of_argv(&self.argv)).collect()
    }

    /// Whether its program can still be run.
    ///
    /// # Errors
    /// If not, naming it and where it was looked for.
    pub fn runnable(&self) -> Result<(), ProcessError> {
        let path = self.env.get("PATH").map_or("", String::as_str);
        resolve(self.argv.first().map_or("", String::as_str), path, &self.cwd).map(drop)
    }
}

impl fmt::Debug for Snapshot {
    /// Names of variables only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("argv", &redact(&self.argv))
            .field("env", &self.env.keys())
            .field("cwd", &self.cwd)
            .field("identity", &self.identity)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::Gpu;

    /// As `incumbent.json` holds it since its first version.
    const FILE: &str = r#"{
        "argv": ["/opt/vllm", "serve", "Qwen/Old", "--port", "8001"],
        "env": { "PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": "0" },
        "cwd": "/srv", "uid": 1000, "gid": 1000, "groups": [1000, 44]
    }"#;

    #[test]
    fn an_old_file_is_read_and_moved_to_another_slot() {
        let snapshot: Snapshot = serde_json::from_str(FILE).unwrap();
        assert_eq!(snapshot.identity.groups, [1000, 44]);
        let slot = |port| Slot { port: Port(port), gpus: vec![Gpu::Index(1)] };
        let same = snapshot.clone().for_slot(Engine::Vllm, Port(8001), &slot(8001)).unwrap();
        assert_eq!((&same.argv, &same.env), (&snapshot.argv, &snapshot.env));
        let moved = snapshot.clone().for_slot(Engine::Vllm, Port(8001), &slot(8002)).unwrap();
        assert_eq!(moved.argv[3..], ["--port", "8002"]);
        assert_eq!(moved.env["CUDA_VISIBLE_DEVICES"], "1");
        let silent = Snapshot { argv: vec!["./serve".to_owned()], ..snapshot };
        assert!(silent.for_slot(Engine::Vllm, Port(8001), &slot(8002)).is_none());
    }
}
