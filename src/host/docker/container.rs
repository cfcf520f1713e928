//! What `docker inspect` tells of a container: the Engine API's own JSON, as much of it as is needed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::REPLICA;
use crate::model::ids::Port;
use crate::model::replica::ImageHere;

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
    /// The id of its image.
    #[serde(default)]
    pub image: String,
    /// What is mounted into it.
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    #[serde(default)]
    source: PathBuf,
    destination: PathBuf,
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
    #[serde(default)]
    auto_remove: bool,
    #[serde(default)]
    ipc_mode: String,
    #[serde(default)]
    shm_size: u64,
    #[serde(default)]
    binds: Option<Vec<String>>,
    /// What `--mount` has asked for.
    #[serde(default)]
    mounts: Option<Vec<Asked>>,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A mount, as `--mount` asks for one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Asked {
    r#type: String,
    #[serde(default)]
    source: String,
    target: String,
    #[serde(default)]
    read_only: bool,
}

/// What a container may have been made with that is not taken over unasked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Others {
    pub(super) network_mode: Option<String>,
    runtime: Option<String>,
    pub(super) pid_mode: Option<String>,
    privileged: bool,
    memory: i64,
    cap_add: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    extra_hosts: Option<Vec<String>>,
    tmpfs: Option<BTreeMap<String, String>>,
    group_add: Option<Vec<String>>,
    devices: Option<Vec<Device>>,
    readonly_rootfs: bool,
    userns_mode: Option<String>,
    ulimits: Option<Vec<Ulimit>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Device {
    path_on_host: String,
    path_in_container: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ulimit {
    name: String,
    soft: i64,
    hard: i64,
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
    /// The image, as it was asked for.
    #[serde(default)]
    pub image: String,
    /// The words in front of the command; none where the program is the command's first word.
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    /// The command, the image's where nobody gave one.
    #[serde(default)]
    pub(super) cmd: Option<Vec<String>>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    working_dir: String,
    /// Its variables, those of its image too, as `NAME=value`. They hold secrets.
    #[serde(default)]
    env: Option<Vec<String>>,
    /// Seconds from the request to end to the kill, where it was made with another time than the Engine's; negative for ever.
    #[serde(default)]
    stop_timeout: Option<i64>,
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
    /// The address of this machine; empty for all of them (Podman).
    #[serde(default)]
    host_ip: String,
    host_port: String,
}

/// The addresses of this machine, as an Engine writes them, that a port is published on if 127.0.0.1 reaches it: that one, or all
/// of a family.
const REACHED_BY_LOOPBACK: [&str; 4] = ["", "0.0.0.0", "127.0.0.1", "::"];

impl Container {
    /// The port inside that 127.0.0.1 reaches by one of this machine's; `None` if none is published so. The same number on another
    /// address may be another program's.
    pub fn inside(&self, port: Port) -> Option<Port> {
        let wanted = port.to_string();
        let is_wanted = |at: &Option<Vec<Published>>| {
            at.iter().flatten().any(|published| {
                published.host_port == wanted
                    && REACHED_BY_LOOPBACK.contains(&published.host_ip.as_str())
            })
        };
        let ports = self.network_settings.ports.iter().flatten();
        ports
            .filter(|(_, at)| is_wanted(at))
            .find_map(|(name, _)| name.strip_suffix("/tcp")?.parse().ok())
            .map(Port)
    }

    /// A path in it as this machine names it; `None` if it is not mounted from here.
    pub fn outside(&self, inside: &Path) -> Option<PathBuf> {
        let below = |mount: &Mount| {
            let rest = inside.strip_prefix(&mount.destination).ok()?;
            Some(if rest.as_os_str().is_empty() {
                mount.source.clone()
            } else {
                mount.source.join(rest)
            })
        };
        self.mounts.iter().filter_map(below).next()
    }

    /// How many words of [`Container::argv`] stand in front of the command of another one that is made by
    /// [`Container::options`].
    pub fn fixed_words(&self, image: Option<&ImageHere>) -> usize {
        match self.own_entrypoint(image) {
            None => self.entrypoint().len(),
            // The option takes one word; the others are the first of the command.
            Some(own) => own.len().min(1),
        }
    }

    fn entrypoint(&self) -> &[String] {
        self.config.entrypoint.as_deref().unwrap_or_default()
    }

    /// Its words in front of the command, where they are not those of its image.
    fn own_entrypoint(&self, image: Option<&ImageHere>) -> Option<&[String]> {
        image.filter(|image| image.entrypoint != self.entrypoint()).map(|_| self.entrypoint())
    }

    /// Whom it runs as, where its image says another; a name inside, or numbers.
    pub fn own_user(&self, image: Option<&ImageHere>) -> Option<&str> {
        image.filter(|image| image.user != self.config.user).map(|_| self.config.user.as_str())
    }

    /// Options of `docker run` that another container of its kind needs: shared memory, what is mounted, and its own program.
    pub fn options(&self, image: Option<&ImageHere>) -> Vec<String> {
        /// Docker's own, 64 MiB.
        const USUAL_SHM: u64 = 64 << 20;
        let HostConfig { ipc_mode, shm_size, binds, .. } = &self.host_config;
        let mut options = Vec::new();
        if ipc_mode == "host" {
            options.push("--ipc=host".to_owned());
        } else if ![0, USUAL_SHM].contains(shm_size) {
            options.push(format!("--shm-size={shm_size}"));
        }
        options.extend(binds.iter().flatten().map(|bind| format!("--volume={bind}")));
        let mounts = self.host_config.mounts.iter().flatten();
        options.extend(mounts.map(|Asked { r#type, source, target, read_only }| {
            let source =
                if source.is_empty() { String::new() } else { format!(",source={source}") };
            let readonly = if *read_only { ",readonly" } else { "" };
            format!("--mount=type={type}{source},target={target}{readonly}")
        }));
        options.extend(
            self.own_entrypoint(image)
                .map(|words| format!("--entrypoint={}", words.first().map_or("", String::as_str))),
        );
        options
    }

    /// Options of `docker run` that it has and that another one may do without, as far as they can be told from the image's.
    pub fn other_options(&self, image: Option<&ImageHere>) -> Vec<String> {
        let it = &self.host_config.others;
        let mut options = Vec::new();
        for (name, value, usual) in [
            ("network", &it.network_mode, ["default", "bridge"].as_slice()),
            ("runtime", &it.runtime, &["runc"]),
            ("pid", &it.pid_mode, &[]),
            ("userns", &it.userns_mode, &[]),
        ] {
            let is_other = |value: &&String| !value.is_empty() && !usual.contains(&value.as_str());
            options.extend(value.iter().filter(is_other).map(|value| format!("--{name}={value}")));
        }
        options.extend(it.privileged.then(|| "--privileged".to_owned()));
        options.extend(it.readonly_rootfs.then(|| "--read-only".to_owned()));
        let folder = &self.config.working_dir;
        let is_own = image.is_some_and(|image| &image.folder != folder);
        options.extend(is_own.then(|| format!("--workdir={folder}")));
        options.extend(it.devices.iter().flatten().map(|device| {
            format!("--device={}:{}", device.path_on_host, device.path_in_container)
        }));
        options.extend((it.memory > 0).then(|| format!("--memory={}", it.memory)));
        for (name, values) in [
            ("cap-add", &it.cap_add),
            ("group-add", &it.group_add),
            ("security-opt", &it.security_opt),
            ("add-host", &it.extra_hosts),
        ] {
            options.extend(values.iter().flatten().map(|value| format!("--{name}={value}")));
        }
        options.extend(it.tmpfs.iter().flatten().map(|(path, how)| match how.as_str() {
            "" => format!("--tmpfs={path}"),
            how => format!("--tmpfs={path}:{how}"),
        }));
        let ulimits = it.ulimits.iter().flatten();
        options.extend(ulimits.map(|it| format!("--ulimit={}={}:{}", it.name, it.soft, it.hard)));
        options
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether it was started here.
    pub fn is_own(&self) -> bool {
        self.label(REPLICA).is_some()
    }

    /// The project of Compose that it belongs to (Compose specification, `com.docker.compose.project`).
    pub fn project(&self) -> Option<&str> {
        self.label("com.docker.compose.project")
    }

    /// How it is found later: by its name if it was started here, else by its id.
    pub fn known_as(&self) -> String {
        if self.is_own() { self.name.trim_start_matches('/').to_owned() } else { self.id.clone() }
    }

    /// When the Engine starts it again: `no`, `always`, `unless-stopped` or `on-failure`.
    pub fn restarts(&self) -> &str {
        match self.host_config.restart_policy.name.as_str() {
            "" => "no",
            policy => policy,
        }
    }

    /// Whether the Engine surely starts it when it starts itself. One to be started again on failure it starts only if that
    /// ended with another code than 0, stopped or not.
    pub fn starts_on_boot(&self) -> bool {
        ["always", "unless-stopped"].contains(&self.restarts())
    }

    /// Whether the Engine removes it as soon as it ends (`docker run --rm`).
    pub fn is_removed_by_docker(&self) -> bool {
        self.host_config.auto_remove
    }

    /// Its variables, those of its image too. They hold secrets.
    pub fn env(&self) -> BTreeMap<String, String> {
        let entries = self.config.env.iter().flatten().filter_map(|entry| entry.split_once('='));
        entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The time that it was made to be given from the request to end to the kill, if one that ends.
    pub fn stop_timeout(&self) -> Option<Duration> {
        self.config
            .stop_timeout
            .and_then(|seconds| seconds.try_into().ok())
            .map(Duration::from_secs)
    }

    /// Its working folder, inside.
    pub fn folder(&self) -> PathBuf {
        Path::new("/").join(&self.config.working_dir)
    }

    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        std::iter::once(self.path.clone()).chain(self.args.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(host_config: &serde_json::Value) -> Container {
        let text = serde_json::json!({
            "Id": "aa", "Name": "/llm", "Path": "vllm", "Args": [], "Config": {}, "NetworkSettings": {},
            "State": { "Running": true, "Pid": 1, "ExitCode": 0 },
            "HostConfig": host_config,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_is_mounted_is_taken_over_and_the_rest_is_named() {
        let it = container(&serde_json::json!({
            "RestartPolicy": { "Name": "" }, "IpcMode": "host", "ShmSize": 67_108_864, "Binds": ["/srv/hf:/hf"],
            "Mounts": [
                { "Type": "bind", "Source": "/models", "Target": "/m", "ReadOnly": true },
                { "Type": "tmpfs", "Target": "/t" },
            ],
            "NetworkMode": "llm_default", "Runtime": "nvidia", "Memory": 0, "CapAdd": null,
            "Ulimits": [{ "Name": "memlock", "Soft": -1, "Hard": -1 }],
        }));
        let mounts =
            ["--mount=type=bind,source=/models,target=/m,readonly", "--mount=type=tmpfs,target=/t"];
        assert_eq!(
            it.options(None),
            [&["--ipc=host", "--volume=/srv/hf:/hf"], &mounts[..]].concat()
        );
        let others = ["--network=llm_default", "--runtime=nvidia", "--ulimit=memlock=-1:-1"];
        assert_eq!(it.other_options(None), others);
        let usual = container(&serde_json::json!({
            "RestartPolicy": { "Name": "no" }, "NetworkMode": "default", "Runtime": "runc", "PidMode": "", "Ulimits": null
        }));
        assert!(usual.options(None).is_empty() && usual.other_options(None).is_empty());
    }

    #[test]
    fn a_port_of_another_address_is_not_reached_here() {
        let published = |ports: serde_json::Value| {
            let mut it = container(&serde_json::json!({ "RestartPolicy": { "Name": "" } }));
            it.network_settings =
                serde_json::from_value(serde_json::json!({ "Ports": ports })).unwrap();
            it.inside(Port(8000))
        };
        let at = |address: &str| serde_json::json!([{ "HostIp": address, "HostPort": "8000" }]);
        for address in ["", "0.0.0.0", "127.0.0.1", "::"] {
            assert_eq!(published(serde_json::json!({ "4000/tcp": at(address) })), Some(Port(4000)));
        }
        for address in ["10.0.0.5", "127.0.0.2", "::1"] {
            assert_eq!(published(serde_json::json!({ "4000/tcp": at(address) })), None);
        }
        let both = serde_json::json!({ "4000/tcp": at("10.0.0.5"), "5000/tcp": null, "6000/tcp": at("127.0.0.1") });
        assert_eq!(published(both), Some(Port(6000)));
        assert_eq!(published(serde_json::json!({ "4000/udp": at("") })), None);
    }

    #[test]
    fn what_its_image_does_not_say_is_taken_over_or_named() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let image = ImageHere {
            image: crate::model::replica::Image { id: "sha256:aa".to_owned(), pinned: None },
            user: String::new(),
            env: BTreeMap::new(),
            entrypoint: words("vllm serve"),
            folder: "/work".to_owned(),
        };
        let made = |config: serde_json::Value| {
            let host = serde_json::json!({
                "RestartPolicy": { "Name": "" }, "GroupAdd": ["video"], "ReadonlyRootfs": true,
                "Devices": [{ "PathOnHost": "/dev/x", "PathInContainer": "/dev/x" }], "UsernsMode": "host",
            });
            let config = serde_json::from_value(config).unwrap();
            Container { config, ..container(&host) }
        };
        let image = Some(&image);
        let its = serde_json::json!({ "Entrypoint": ["vllm", "serve"], "WorkingDir": "/work" });
        let it = made(its);
        assert_eq!(
            (it.fixed_words(image), it.options(image), it.own_user(image)),
            (2, vec![], None)
        );
        let rest = "--userns=host --read-only --device=/dev/x:/dev/x --group-add=video";
        assert_eq!(it.other_options(image), words(rest));
        // What it was made with is its own where its image is not known.
        assert_eq!((it.fixed_words(None), it.other_options(None)), (2, words(rest)));

        let own = serde_json::json!({ "Entrypoint": ["nice", "vllm"], "User": "1000:44", "WorkingDir": "/" });
        let it = made(own);
        assert_eq!((it.fixed_words(image), it.own_user(image)), (1, Some("1000:44")));
        assert_eq!(it.options(image), ["--entrypoint=nice"]);
        assert!(it.other_options(image).contains(&"--workdir=/".to_owned()));
        let none = made(serde_json::json!({ "Entrypoint": null, "WorkingDir": "/work" }));
        assert_eq!((none.fixed_words(image), none.options(image)), (0, words("--entrypoint=")));
    }

    #[test]
    fn a_boot_starts_what_is_always_to_run() {
        let starts = |policy: &str| {
            container(&serde_json::json!({ "RestartPolicy": { "Name": policy } })).starts_on_boot()
        };
        assert!(starts("always") && starts("unless-stopped"));
        assert!(!starts("no") && !starts("on-failure") && !starts(""));
    }
}
