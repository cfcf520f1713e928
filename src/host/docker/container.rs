//! What `docker inspect` tells of a container: the Engine API's own JSON, as much of it as is needed here.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::REPLICA;
use crate::model::ids::Port;

/// A container, as `docker inspect` tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// With a slash in front.
    pub name: String,
    /// Whether it runs, and as which process.
    pub state: ContainerState,
    /// What was asked of the Engine for it.
    pub host_config: HostConfig,
    /// What was asked of it.
    pub config: ContainerConfig,
    /// Its network.
    pub network_settings: NetworkSettings,
    /// The program that it was started with.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerState {
    /// Whether it runs.
    pub running: bool,
    /// Its first process, as the Engine's machine counts; 0 for none.
    pub pid: i32,
    /// How its first process ended, 128 and the signal's number if by one.
    pub exit_code: i32,
}

/// A container's settings that concern the Engine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    restart_policy: RestartPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: String,
}

/// A container's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// Labels.
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

/// A container's network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkSettings {
    /// By port and protocol inside, as `8000/tcp`: where it is published.
    #[serde(default)]
    ports: Option<BTreeMap<String, Option<Vec<Published>>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Published {
    host_port: String,
}

impl Container {
    /// The port inside that is published as one of this machine's; the same one if none is.
    pub fn inside(&self, port: Port) -> Port {
        let wanted = port.to_string();
        let is_wanted = |at: &Option<Vec<Published>>| {
            at.iter().flatten().any(|published| published.host_port == wanted)
        };
        let ports = self.network_settings.ports.iter().flatten();
        let inside = ports
            .filter(|(_, at)| is_wanted(at))
            .find_map(|(name, _)| name.strip_suffix("/tcp")?.parse().ok());
        inside.map_or(port, Port)
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// How it is found later: by its name if it was started here, else by its id.
    pub fn known_as(&self) -> String {
        if self.label(REPLICA).is_some() {
            self.name.trim_start_matches('/').to_owned()
        } else {
            self.id.clone()
        }
    }

    /// When the Engine starts it again: `no`, `always`, `unless-stopped` or `on-failure`.
    pub fn restarts(&self) -> &str {
        match self.host_config.restart_policy.name.as_str() {
            "" => "no",
            policy => policy,
        }
    }

    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        std::iter::once(self.path.clone()).chain(self.args.iter().cloned()).collect()
    }
}
