//! Where the weights of a model are on the server, as far as a specification tells. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
}
