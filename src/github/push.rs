//! The commits that a push has brought, as its event tells them.
//!
//! Fields: GitHub's documentation, "Webhook events and payloads": `push`.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Deserialize)]
struct Payload {
    commits: Vec<Commit>,
}

#[derive(Deserialize)]
struct Commit {
    id: String,
}

/// The commits of the push that the run of these variables is for, newest first; empty for another event, and for one that
/// cannot be read: the run's own commit is known without it.
pub fn commits(env: &BTreeMap<String, String>) -> Vec<String> {
    let is_push = env.get("GITHUB_EVENT_NAME").is_some_and(|event| event == "push");
    let read = || {
        let text = std::fs::read(env.get("GITHUB_EVENT_PATH")?).ok()?;
        let payload: Payload = serde_json::from_slice(&text).ok()?;
        Some(payload.commits.into_iter().rev().map(|commit| commit.id).collect())
    };
    is_push.then(read).flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_tells_its_commits_and_other_events_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        let told = |event: &str, payload: &str| {
            std::fs::write(file.path(), payload).unwrap();
            let pairs = [("GITHUB_EVENT_NAME", event), ("GITHUB_EVENT_PATH", &path)];
            commits(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        let pushed =
            r#"{ "after": "b", "commits": [{ "id": "a", "distinct": true }, { "id": "b" }] }"#;
        assert_eq!(told("push", pushed), ["b", "a"]);
        assert_eq!(told("workflow_dispatch", pushed), [""; 0]);
        assert_eq!(told("push", "{}"), [""; 0]);
        assert_eq!(commits(&BTreeMap::new()), [""; 0]);
    }
}
