//! What `docker image inspect` tells of an image: the Engine API's own JSON, as much of it as is needed here.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::replica::{Image, ImageHere};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
    #[serde(default)]
    config: Option<Config>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    user: String,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    working_dir: String,
}

/// The image that was asked for by this name.
pub(super) fn read(name: &str, said: &str) -> Result<Option<ImageHere>, serde_json::Error> {
    let found: Vec<Inspected> = serde_json::from_str(said)?;
    let pinned = |digests: Vec<String>| {
        // Of all the places that have it, the one whose name was given.
        let of_name = |pinned: &&String| pinned.split('@').next() == Some(repository(name));
        digests.iter().find(of_name).or(digests.first()).cloned()
    };
    Ok(found.into_iter().next().map(|it| {
        let Config { user, env, entrypoint, working_dir: folder } = it.config.unwrap_or_default();
        let (env, entrypoint) =
            (variables(&env.unwrap_or_default()), entrypoint.unwrap_or_default());
        let image = Image { id: it.id, pinned: it.repo_digests.and_then(pinned) };
        ImageHere { image, user, env, entrypoint, folder }
    }))
}

/// `NAME=value` each.
fn variables(entries: &[String]) -> BTreeMap<String, String> {
    let pairs = entries.iter().filter_map(|entry| entry.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A reference without its tag and its digest. A colon before the last slash is that of a port.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    let tag = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
    tag.map_or(name, |colon| &name[..colon])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pinned_where_it_was_asked_for() {
        let said = r#"[{"Id":"sha256:aa","RepoDigests":["mirror:5000/llm@sha256:d1","acme/llm@sha256:d1"],"RepoTags":[]}]"#;
        let pinned = |name| read(name, said).unwrap().and_then(|here| here.image.pinned).unwrap();
        assert_eq!(pinned("acme/llm:prod"), "acme/llm@sha256:d1");
        assert_eq!(pinned("mirror:5000/llm"), "mirror:5000/llm@sha256:d1");
        assert_eq!(pinned("acme/llm@sha256:d1"), "acme/llm@sha256:d1");
        assert_eq!(pinned("sha256:aa"), "mirror:5000/llm@sha256:d1", "any is better than none");
        let here = read("llm:here", r#"[{"Id":"sha256:bb","RepoDigests":[]}]"#).unwrap().unwrap();
        assert_eq!(here.image, Image { id: "sha256:bb".to_owned(), pinned: None });
        assert!(here.user.is_empty() && here.env.is_empty());
    }

    #[test]
    fn what_its_containers_have_is_read() {
        let said = r#"[{"Id":"sha256:aa","Config":{"User":"vllm:vllm","Env":["PATH=/bin","HF_HOME=/hf=1"],"Entrypoint":["vllm","serve"]}}]"#;
        let here = read("llm", said).unwrap().unwrap();
        assert_eq!((here.user.as_str(), here.env["HF_HOME"].as_str()), ("vllm:vllm", "/hf=1"));
        assert_eq!(
            (here.entrypoint, here.folder.as_str()),
            (vec!["vllm".into(), "serve".into()], "")
        );
    }
}
