//! Where the weights of a model are on the server, as far as a specification tells. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::replica::ImageHere;
use crate::model::spec::{Runtime, SwapSpec};

/// Where a process with these variables and this home looks for a model: a path is itself, a name has a folder of its own in
/// the cache of Hugging Face's library (huggingface_hub, `constants.py` and `file_download.py`). `None`: nobody knows its home,
/// and it matters.
fn place(model: &str, env: &BTreeMap<String, String>, home: Option<&Path>) -> Option<PathBuf> {
    if model.starts_with('/') {
        return Some(model.into());
    }
    let set = |name: &str| env.get(name).map(PathBuf::from);
    let home = || set("HOME").or_else(|| home.map(Path::to_owned));
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
    let data = || set("HF_HOME").or_else(|| Some(cache()?.join("huggingface")));
    let hub = set("HF_HUB_CACHE").or_else(|| Some(data()?.join("hub")))?;
    Some(hub.join(format!("models--{}", model.replace('/', "--"))))
}

/// Where a replica looks for its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here on the server.
    Server {
        /// The path.
        path: PathBuf,
        /// Whether its container may only read it.
        read_only: bool,
    },
    /// In a volume, whose place only Docker knows.
    Volume,
    /// Here in its container, where nothing is mounted.
    Image(PathBuf),
    /// Below the home of this user of a container, which only its image knows.
    HomeOf(String),
}

/// Where a replica of the specification looks for its model, whose user has this home on the server. Of a container the image
/// says more, once it is here.
pub fn looked_for(spec: &SwapSpec, home: &Path, here: Option<&ImageHere>) -> Place {
    let replica = &spec.replica;
    if replica.runtime != Runtime::Docker {
        let path = place(&spec.model, &replica.env, Some(home)).unwrap_or_default();
        return Place::Server { path, read_only: false };
    }
    let mut env = here.map(|here| here.env.clone()).unwrap_or_default();
    env.extend(replica.env.clone());
    let user = replica.user.as_deref().or(here.map(|here| here.user.as_str())).unwrap_or_default();
    let is_root = matches!(user.split(':').next(), Some("" | "0" | "root"));
    match place(&spec.model, &env, is_root.then_some(Path::new(HOME_OF_ROOT))) {
        Some(inside) => behind(&replica.docker_options, inside),
        None => Place::HomeOf(user.to_owned()),
    }
}

/// The pinned revision that a replica loads from a cache of Hugging Face's library; `None`: none, or its command is not told of it.
pub fn cached_revision(spec: &SwapSpec) -> Option<&str> {
    let is_told = spec.replica.command.iter().any(|word| word.contains("{revision}"));
    spec.model_revision.as_deref().filter(|_| is_told && !spec.model.starts_with('/'))
}

/// What a model's folder in that cache has once any of a revision is there: what a name means, and the files of a commit. Whether
/// they are all there it does not say (huggingface_hub, `file_download.py`).
pub fn traces(folder: &Path, revision: &str) -> [PathBuf; 2] {
    ["refs", "snapshots"].map(|kind| folder.join(kind).join(revision))
}

/// Where what brings the weights puts them, with these variables and this home: the folder that the specification names, else
/// where the replica looks for them. A program on the server knows a name by its own cache.
pub fn brought_to(
    spec: &SwapSpec,
    (env, home): (&BTreeMap<String, String>, &Path),
    here: Option<&ImageHere>,
) -> PathBuf {
    let named = spec.fetch.as_ref().and_then(|fetch| fetch.folder.clone());
    named.unwrap_or_else(|| match looked_for(spec, home, here) {
        Place::Server { path, .. }
            if spec.model.starts_with('/') || spec.replica.runtime == Runtime::Docker =>
        {
            path
        }
        _ => place(&spec.model, env, Some(home)).unwrap_or_default(),
    })
}

/// The variable that has Hugging Face's library on the server bring a model by its name to where a container looks for it: what
/// the specification says of its cache is of places inside. `None` where nothing of the server is mounted there.
pub fn cache_of_a_container(spec: &SwapSpec, here: Option<&ImageHere>) -> Option<(String, String)> {
    if spec.replica.runtime != Runtime::Docker || spec.model.starts_with('/') {
        return None;
    }
    // Whether the container may write there is no matter: what brings it runs on the server.
    let Place::Server { path, .. } = looked_for(spec, Path::new(""), here) else { return None };
    Some(("HF_HUB_CACHE".to_owned(), path.parent()?.display().to_string()))
}

/// Why a container may not see what is brought, one line; `None` where it does, or nothing is brought.
pub fn unseen_in_a_container(spec: &SwapSpec, here: Option<&ImageHere>) -> Option<String> {
    if spec.fetch.is_none() || spec.replica.runtime != Runtime::Docker {
        return None;
    }
    match looked_for(spec, Path::new(""), here) {
        Place::Image(inside) => Some(format!(
            "fetch brings the weights to the server, and nothing of it is mounted where the container looks for them ({}): it has \
             to bring them itself within ready.timeout; mount their folder with replica.docker_options",
            inside.display()
        )),
        Place::HomeOf(user) => Some(format!(
            "fetch brings the weights to the server, and where the container looks for them is not known: {}; {SET_HF_HOME}",
            only_the_image_knows(&user)
        )),
        Place::Server { .. } | Place::Volume => None,
    }
}

/// How weights are brought before anything is reserved.
pub const ADD_FETCH: &str = "`fetch: { command: hf download {model} --revision {revision} }` brings the weights before anything is reserved";

/// How a container is told where to look.
pub const SET_HF_HOME: &str = "set HF_HOME in replica.env to a folder inside, and mount one there with --volume in replica.docker_options";

/// Why it is not known where a container looks, a fragment.
pub fn only_the_image_knows(user: &str) -> String {
    format!("it runs as user {user}, whose home only its image knows")
}

/// Of root, as which the images of vLLM run, as any that is not here yet is taken to do.
const HOME_OF_ROOT: &str = "/root";

/// What these options of `docker run` have mounted where a container sees a path: by the innermost mount above it.
fn behind(options: &[String], inside: PathBuf) -> Place {
    let mounts = options.iter().filter_map(|option| mount(option));
    let above = mounts.filter(|mount| inside.starts_with(&mount.target));
    let Some(mount) = above.max_by_key(|mount| mount.target.components().count()) else {
        return Place::Image(inside);
    };
    let rest = inside.strip_prefix(&mount.target).unwrap_or(Path::new(""));
    let Some(source) = mount.source.filter(|source| source.is_absolute()) else {
        return Place::Volume;
    };
    // To join nothing would put a slash behind a file.
    let path = if rest.as_os_str().is_empty() { source } else { source.join(rest) };
    Place::Server { path, read_only: mount.read_only }
}

/// What is mounted into a container.
struct Mount {
    source: Option<PathBuf>,
    target: PathBuf,
    read_only: bool,
}

/// A mount, by an option with its value in the same word.
fn mount(option: &str) -> Option<Mount> {
    if let Some(volume) = option.strip_prefix("--volume=") {
        let parts: Vec<&str> = volume.split(':').collect();
        // One word alone is the target of a volume without a name.
        let (source, target) = match parts[..] {
            [target] => (None, target),
            [source, target, ..] => (Some(source.into()), target),
            [] => return None,
        };
        let read_only = parts.get(2).is_some_and(|how| how.split(',').any(|word| word == "ro"));
        return Some(Mount { source, target: target.into(), read_only });
    }
    if let Some(target) = option.strip_prefix("--tmpfs=") {
        let target = target.split(':').next()?.into();
        return Some(Mount { source: None, target, read_only: false });
    }
    // A word alone is switched on by it.
    let fields: BTreeMap<&str, &str> = option
        .strip_prefix("--mount=")?
        .split(',')
        .map(|field| field.split_once('=').unwrap_or((field, "true")))
        .collect();
    let any = |names: &[&str]| names.iter().find_map(|name| fields.get(name).copied());
    Some(Mount {
        source: any(&["source", "src"]).map(PathBuf::from),
        target: any(&["target", "dst", "destination"])?.into(),
        read_only: any(&["readonly", "ro"]).is_some_and(|how| ["true", "1"].contains(&how)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn a_model_has_a_folder_of_its_own() {
        let home = Some(Path::new("/home/ai"));
        let place = |model, env| place(model, &env, home).unwrap().display().to_string();
        let name = "Qwen/Qwen3-32B";
        let hub = "/home/ai/.cache/huggingface/hub/models--Qwen--Qwen3-32B";
        assert_eq!(place(name, env([])), hub);
        let data = env([("HF_HOME", "/data/hf")]);
        assert_eq!(place(name, data), "/data/hf/hub/models--Qwen--Qwen3-32B");
        let both = env([("HF_HOME", "/data/hf"), ("HF_HUB_CACHE", "/fast")]);
        assert_eq!(place(name, both.clone()), "/fast/models--Qwen--Qwen3-32B");
        assert_eq!(place("/models/qwen", both), "/models/qwen");
        let cache = env([("HOME", "/home/llm"), ("XDG_CACHE_HOME", "/cache")]);
        assert_eq!(place(name, cache), "/cache/huggingface/hub/models--Qwen--Qwen3-32B");
        let moved = place(name, env([("HOME", "/home/llm")]));
        assert_eq!(moved, "/home/llm/.cache/huggingface/hub/models--Qwen--Qwen3-32B");
    }

    #[test]
    fn what_is_brought_for_a_container_goes_where_it_looks_for_it() {
        let mut spec = crate::swap::planner::tests::spec();
        let cache = |spec: &SwapSpec| cache_of_a_container(spec, None).map(|(_, folder)| folder);
        let unseen_in_a_container = |spec: &SwapSpec| unseen_in_a_container(spec, None);
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
        let brought = brought_to(&spec, (&env([]), Path::new("/home/deploy")), None);
        assert_eq!(brought, Path::new("/srv/hf/hub/models--Qwen--New"));
        spec.replica.env = env([("HF_HOME", "/data")]);
        spec.replica.docker_options.push("--volume=/fast:/data".to_owned());
        assert_eq!(cache(&spec).as_deref(), Some("/fast/hub"));
    }

    #[test]
    fn an_image_says_where_its_containers_look() {
        let mut spec = crate::swap::planner::tests::spec();
        spec.replica.runtime = Runtime::Docker;
        spec.model = "Qwen/New".to_owned();
        spec.fetch = serde_json::from_value(serde_json::json!({
            "command": ["hf"], "timeout": { "secs": 1, "nanos": 0 }, "folder": null, "size": null
        }))
        .unwrap();
        let hub = |inside: &str| Place::Image(format!("{inside}/hub/models--Qwen--New").into());
        let unknown = |user: &str| Place::HomeOf(user.to_owned());
        let image = |user: &str, env| ImageHere {
            image: crate::model::replica::Image { id: "sha256:aa".to_owned(), pinned: None },
            user: user.to_owned(),
            env,
            entrypoint: Vec::new(),
            folder: String::new(),
        };
        let looked_for = |spec: &SwapSpec, here: &ImageHere| {
            (
                looked_for(spec, Path::new("/home/deploy"), Some(here)),
                cache_of_a_container(spec, Some(here)),
            )
        };
        for (user, env, place) in [
            ("", env([]), hub("/root/.cache/huggingface")),
            ("0:0", env([]), hub("/root/.cache/huggingface")),
            ("", env([("HF_HOME", "/data")]), hub("/data")),
            ("vllm", env([]), unknown("vllm")),
            ("1000:1000", env([]), unknown("1000:1000")),
            ("vllm", env([("HOME", "/home/vllm")]), hub("/home/vllm/.cache/huggingface")),
            ("vllm", env([("HF_HUB_CACHE", "/data/hub")]), hub("/data")),
        ] {
            assert_eq!(looked_for(&spec, &image(user, env)), (place, None), "{user}");
        }
        let vllm = image("vllm", env([]));
        let said = unseen_in_a_container(&spec, Some(&vllm)).unwrap();
        assert!(said.contains("user vllm, whose home only its image knows; set HF_HOME"), "{said}");
        // What the specification says goes before what the image says.
        spec.replica.user = Some("llm".to_owned());
        assert_eq!(looked_for(&spec, &image("", env([]))).0, unknown("llm"));
        spec.replica.env = env([("HF_HOME", "/own")]);
        assert_eq!(looked_for(&spec, &image("", env([("HF_HOME", "/data")]))).0, hub("/own"));
        spec.model = "/models/qwen".to_owned();
        assert_eq!(looked_for(&spec, &vllm).0, Place::Image("/models/qwen".into()));
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
            "--mount=type=bind,source=/srv/a,target=/a,readonly",
            "--mount=type=bind,source=/srv/b,target=/b,ro=false",
            "--volume=/srv/c:/c:z,ro",
        ];
        let options = options.map(str::to_owned);
        let place = |path: &str, read_only| Place::Server { path: path.into(), read_only };
        let (server, only_read) = (|path: &str| place(path, false), |path: &str| place(path, true));
        let image = |path: &str| Place::Image(path.into());
        for (inside, found) in [
            ("/models/llama", only_read("/srv/models/llama")),
            ("/models", only_read("/srv/models")),
            ("/a/x", only_read("/srv/a/x")),
            ("/b", server("/srv/b")),
            ("/c", only_read("/srv/c")),
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
