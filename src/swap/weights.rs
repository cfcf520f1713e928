//! Where the weights of a model are on the server, as far as a specification tells. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::spec::{Runtime, SwapSpec};

/// Where a process with these variables and this home looks for a model: a path is itself, a name has a folder of its own in
/// the cache of Hugging Face's library (huggingface_hub, `constants.py` and `file_download.py`).
pub fn place(model: &str, env: &BTreeMap<String, String>, home: &Path) -> PathBuf {
    if model.starts_with('/') {
        return model.into();
    }
    let set = |name: &str| env.get(name).map(PathBuf::from);
    let data = || set("HF_HOME").unwrap_or_else(|| home.join(".cache/huggingface"));
    let hub = set("HF_HUB_CACHE").unwrap_or_else(|| data().join("hub"));
    hub.join(format!("models--{}", model.replace('/', "--")))
}

/// Where a replica looks for its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here on the server.
    Server(PathBuf),
    /// In a volume, whose place only Docker knows.
    Volume,
    /// Here in its container, where nothing is mounted.
    Image(PathBuf),
}

/// Where a replica of the specification looks for its model, whose user has this home.
pub fn looked_for(spec: &SwapSpec, home: &Path) -> Place {
    let replica = &spec.replica;
    if replica.runtime != Runtime::Docker {
        return Place::Server(place(&spec.model, &replica.env, home));
    }
    behind(&replica.docker_options, place(&spec.model, &replica.env, Path::new(HOME_INSIDE)))
}

/// Where what brings the weights puts them, with these variables and this home: the folder that the specification names, else
/// where the replica looks for them. A program on the server knows a name by its own cache.
pub fn brought_to(spec: &SwapSpec, env: &BTreeMap<String, String>, home: &Path) -> PathBuf {
    let named = spec.fetch.as_ref().and_then(|fetch| fetch.folder.clone());
    named.unwrap_or_else(|| match looked_for(spec, home) {
        Place::Server(path)
            if spec.model.starts_with('/') || spec.replica.runtime == Runtime::Docker =>
        {
            path
        }
        _ => place(&spec.model, env, home),
    })
}

/// The variable that has Hugging Face's library on the server bring a model by its name to where a container looks for it: what
/// the specification says of its cache is of places inside. `None` where nothing of the server is mounted there.
pub fn cache_of_a_container(spec: &SwapSpec) -> Option<(String, String)> {
    if spec.replica.runtime != Runtime::Docker || spec.model.starts_with('/') {
        return None;
    }
    let Place::Server(model) = looked_for(spec, Path::new(HOME_INSIDE)) else { return None };
    Some(("HF_HUB_CACHE".to_owned(), model.parent()?.display().to_string()))
}

/// Why a container may not see what is brought, one line; `None` where it does, or nothing is brought.
pub fn unseen_in_a_container(spec: &SwapSpec) -> Option<String> {
    if spec.fetch.is_none() || spec.replica.runtime != Runtime::Docker {
        return None;
    }
    let Place::Image(inside) = looked_for(spec, Path::new(HOME_INSIDE)) else { return None };
    Some(format!(
        "fetch brings the weights to the server, and nothing of it is mounted where the container looks for them ({}): it has to \
         bring them itself within ready.timeout; mount their folder with replica.docker_options",
        inside.display()
    ))
}

/// Of root, as which the images of vLLM run.
const HOME_INSIDE: &str = "/root";

/// What these options of `docker run` have mounted where a container sees a path: by the innermost mount above it.
fn behind(options: &[String], inside: PathBuf) -> Place {
    let mounts = options.iter().filter_map(|option| mount(option));
    let above = mounts.filter(|(_, target)| inside.starts_with(target));
    let Some((source, target)) = above.max_by_key(|(_, target)| target.components().count()) else {
        return Place::Image(inside);
    };
    let rest = inside.strip_prefix(&target).unwrap_or(Path::new(""));
    match source.filter(|source| source.is_absolute()) {
        // To join nothing would put a slash behind a file.
        Some(source) if rest.as_os_str().is_empty() => Place::Server(source),
        Some(source) => Place::Server(source.join(rest)),
        None => Place::Volume,
    }
}

/// Source and target of a mount, by an option with its value in the same word.
fn mount(option: &str) -> Option<(Option<PathBuf>, PathBuf)> {
    if let Some(volume) = option.strip_prefix("--volume=") {
        let mut parts = volume.split(':').map(PathBuf::from);
        let first = parts.next()?;
        // One word alone is the target of a volume without a name.
        return Some(match parts.next() {
            Some(target) => (Some(first), target),
            None => (None, first),
        });
    }
    if let Some(target) = option.strip_prefix("--tmpfs=") {
        return Some((None, target.split(':').next()?.into()));
    }
    let fields: BTreeMap<&str, &str> = option
        .strip_prefix("--mount=")?
        .split(',')
        .filter_map(|field| field.split_once('='))
        .collect();
    let any = |names: &[&str]| names.iter().find_map(|name| fields.get(name)).map(PathBuf::from);
    Some((any(&["source", "src"]), any(&["target", "dst", "destination"])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn a_model_has_a_folder_of_its_own() {
        let place = |model, env| place(model, &env, Path::new("/home/ai")).display().to_string();
        let name = "Qwen/Qwen3-32B";
        let hub = "/home/ai/.cache/huggingface/hub/models--Qwen--Qwen3-32B";
        assert_eq!(place(name, env([])), hub);
        let data = env([("HF_HOME", "/data/hf")]);
        assert_eq!(place(name, data), "/data/hf/hub/models--Qwen--Qwen3-32B");
        let both = env([("HF_HOME", "/data/hf"), ("HF_HUB_CACHE", "/fast")]);
        assert_eq!(place(name, both.clone()), "/fast/models--Qwen--Qwen3-32B");
        assert_eq!(place("/models/qwen", both), "/models/qwen");
    }

    #[test]
    fn what_is_brought_for_a_container_goes_where_it_looks_for_it() {
        let mut spec = crate::swap::planner::tests::spec();
        let cache = |spec: &SwapSpec| cache_of_a_container(spec).map(|(_, folder)| folder);
        assert_eq!(cache(&spec), None, "a process");
        spec.replica.runtime = Runtime::Docker;
        spec.model = "Qwen/New".to_owned();
        spec.fetch = serde_json::from_value(serde_json::json!({
            "command": ["hf"], "timeout": { "secs": 1, "nanos": 0 }, "folder": null, "size": null
        }))
        .unwrap();
        assert_eq!(cache(&spec), None);
        assert!(unseen_in_a_container(&spec).unwrap().contains("/root/.cache/huggingface/hub"));
        spec.replica.docker_options = vec!["--volume=/srv/hf:/root/.cache/huggingface".to_owned()];
        assert_eq!(cache(&spec).as_deref(), Some("/srv/hf/hub"));
        assert_eq!(unseen_in_a_container(&spec), None);
        let brought = brought_to(&spec, &env([]), Path::new("/home/deploy"));
        assert_eq!(brought, Path::new("/srv/hf/hub/models--Qwen--New"));
        spec.replica.env = env([("HF_HOME", "/data")]);
        spec.replica.docker_options.push("--volume=/fast:/data".to_owned());
        assert_eq!(cache(&spec).as_deref(), Some("/fast/hub"));
    }

    #[test]
    fn what_a_container_sees_is_looked_for_where_it_is_mounted_from() {
        let options = [
            "--ipc=host",
            "--volume=/srv/models:/models:ro",
            "--volume=/fast/qwen:/models/qwen",
            "--mount=type=bind,src=/srv/hf,dst=/root/.cache/huggingface",
            "--volume=cache:/named",
            "--volume=/nameless",
            "--tmpfs=/models/tmp:size=1g",
        ];
        let options = options.map(str::to_owned);
        let server = |path: &str| Place::Server(path.into());
        let image = |path: &str| Place::Image(path.into());
        for (inside, found) in [
            ("/models/llama", server("/srv/models/llama")),
            ("/models", server("/srv/models")),
            ("/models/qwen/3", server("/fast/qwen/3")),
            ("/models/qwen", server("/fast/qwen")),
            ("/models/tmp/x", Place::Volume),
            ("/root/.cache/huggingface/hub", server("/srv/hf/hub")),
            ("/named/x", Place::Volume),
            ("/nameless/x", Place::Volume),
            ("/elsewhere", image("/elsewhere")),
            ("/modelsx", image("/modelsx")),
        ] {
            assert_eq!(behind(&options, inside.into()), found, "{inside}");
        }
        let slash = behind(&options, "/models/qwen".into());
        assert!(format!("{slash:?}").contains("/fast/qwen\""), "{slash:?}: a folder of a file");
    }
}
