//! Containers that have the network or the processes of another one for their own, as `--network=container:` and `--pid=container:` give
//! them, and Compose's `network_mode: service:`.

use super::container::Others;
use super::{Container, DockerError, inspect, listed};

/// The names of those that run in the network of a container or among its processes: they lose them with it.
///
/// # Errors
/// If docker does not say.
pub async fn joining(container: &Container) -> Result<Vec<String>, DockerError> {
    let mut names = Vec::new();
    for id in listed(&[]).await? {
        let joins = |other: &Container| other.joins(container);
        let other = inspect(&id).await?.filter(joins);
        names.extend(other.map(|other| other.name.trim_start_matches('/').to_owned()));
    }
    Ok(names)
}

impl Container {
    /// Whether it has the network or the processes of another one for its own.
    fn joins(&self, other: &Self) -> bool {
        let Others { network_mode, pid_mode, .. } = &self.host_config.others;
        let modes = [network_mode, pid_mode].into_iter().flatten();
        let mut of_whom = modes.filter_map(|mode| mode.strip_prefix("container:"));
        of_whom.any(|whom| whom == other.id || whom == other.name.trim_start_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(host_config: &serde_json::Value) -> Container {
        let text = serde_json::json!({
            "Id": "aa", "Name": "/llm", "Path": "vllm", "Args": [], "Config": {}, "NetworkSettings": {},
            "State": { "Running": true, "Pid": 1, "ExitCode": 0 }, "HostConfig": host_config,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn who_lives_in_a_container_of_anothers_is_known_by_either_name() {
        let joins = |mode: &str, whom: &str| {
            let other = container(&serde_json::json!({ "RestartPolicy": { "Name": "" } }));
            container(&serde_json::json!({ "RestartPolicy": { "Name": "" }, mode: whom }))
                .joins(&other)
        };
        assert!(joins("NetworkMode", "container:aa") && joins("PidMode", "container:llm"));
        assert!(!joins("NetworkMode", "container:bb") && !joins("NetworkMode", "llm"));
    }
}
