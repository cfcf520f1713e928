//! Orchestrators: each runs containers by this Engine, and another one in place of any that somebody else has stopped.

use super::Container;

/// Who runs a container by the Engine and watches over it.
#[derive(Debug, PartialEq, Eq)]
pub struct Orchestrator {
    /// Its name.
    pub name: &'static str,
    /// The label that all its containers have.
    label: &'static str,
    /// The label that says what it calls what it runs there.
    called: &'static str,
    /// How it is told to run that no more.
    pub ends: &'static str,
}

const ORCHESTRATORS: [Orchestrator; 4] = [
    Orchestrator {
        name: "Docker Swarm",
        label: "com.docker.swarm.task.id",
        called: "com.docker.swarm.service.name",
        ends: "docker service rm",
    },
    Orchestrator {
        name: "Nomad",
        label: "com.hashicorp.nomad.alloc_id",
        called: "com.hashicorp.nomad.alloc_id",
        ends: "nomad job stop, of the job of that allocation",
    },
    Orchestrator {
        name: "Kubernetes",
        label: "io.kubernetes.pod.name",
        called: "io.kubernetes.pod.name",
        ends: "kubectl delete, of what makes that pod",
    },
    Orchestrator {
        name: "Amazon ECS",
        label: "com.amazonaws.ecs.task-arn",
        called: "com.amazonaws.ecs.task-arn",
        ends: "aws ecs delete-service, of the service of that task",
    },
];

impl Container {
    /// Whose it is, and what it is called there, if an orchestrator runs it.
    pub fn orchestrator(&self) -> Option<(&'static Orchestrator, &str)> {
        let whose = ORCHESTRATORS.iter().find(|whose| self.label(whose.label).is_some())?;
        let called = self.label(whose.called).or_else(|| self.label(whose.label))?;
        Some((whose, called))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_by(labels: &serde_json::Value) -> Option<(&'static str, String)> {
        let text = serde_json::json!({
            "Id": "aa", "Name": "/llm", "Path": "vllm", "Args": [], "NetworkSettings": {},
            "State": { "Running": true, "Pid": 1, "ExitCode": 0 },
            "HostConfig": { "RestartPolicy": { "Name": "" } }, "Config": { "Labels": labels },
        });
        let container: Container = serde_json::from_value(text).unwrap();
        container.orchestrator().map(|(whose, called)| (whose.name, called.to_owned()))
    }

    #[test]
    fn who_starts_another_in_its_place_is_known_by_its_label() {
        let swarm = serde_json::json!({ "com.docker.swarm.task.id": "x1", "com.docker.swarm.service.name": "llm_vllm" });
        assert_eq!(run_by(&swarm), Some(("Docker Swarm", "llm_vllm".to_owned())));
        for (label, name) in [
            ("com.docker.swarm.task.id", "Docker Swarm"),
            ("com.hashicorp.nomad.alloc_id", "Nomad"),
            ("io.kubernetes.pod.name", "Kubernetes"),
            ("com.amazonaws.ecs.task-arn", "Amazon ECS"),
        ] {
            assert_eq!(run_by(&serde_json::json!({ label: "x1" })), Some((name, "x1".to_owned())));
        }
        let composed = serde_json::json!({ "com.docker.compose.project": "llm", "team": "llm" });
        assert_eq!((run_by(&composed), run_by(&serde_json::Value::Null)), (None, None));
    }
}
