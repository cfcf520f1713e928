//! Pull requests that were merged.

use serde_json::{Value, json};

use super::state::{Page, page};

/// A pull request as GitHub lists it, every field in its form: made from the schema of GitHub's description.
const SAMPLE: &str = include_str!("../../fixtures/pull-request.json");

/// All merged pull requests.
#[derive(Default)]
pub(super) struct Pulls {
    /// `owner/name`, number and the commit that it was merged as.
    all: Vec<(String, u64, String)>,
}

impl Pulls {
    pub(super) fn merge(&mut self, repository: &str, number: u64, commit: &str) {
        self.all.push((repository.to_owned(), number, commit.to_owned()));
    }

    /// Those of a commit, and one that holds it and was never merged.
    pub(super) fn list(&self, repository: &str, commit: &str, query: &[(String, String)]) -> Page {
        let own = self.all.iter().filter(|(own, _, merge)| own == repository && merge == commit);
        let merged = own.map(|(_, number, commit)| show(*number, json!(commit)));
        page(std::iter::once(show(1, Value::Null)).chain(merged), query)
    }
}

fn show(number: u64, merged_as: Value) -> Value {
    let mut shown: Value = serde_json::from_str(SAMPLE).unwrap_or_default();
    shown["number"] = json!(number);
    let is_merged = merged_as.is_string();
    shown["merged_at"] = if is_merged { json!("2026-01-01T00:00:00Z") } else { Value::Null };
    shown["merge_commit_sha"] = merged_as;
    shown
}
