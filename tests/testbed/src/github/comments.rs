//! Comments on issues and pull requests, and who wrote them.

use serde_json::{Value, json};

use super::state::{Page, page, time, user};

/// Who a workflow's own token writes as.
pub const WORKFLOW: &str = "github-actions[bot]";

/// One comment.
#[derive(Debug, Clone)]
pub struct Comment {
    /// GitHub's number for it.
    pub id: u64,
    /// `owner/name`.
    pub repository: String,
    /// Number of the issue or pull request.
    pub issue: u64,
    /// Login of who wrote it; a bot's ends with `[bot]`.
    pub author: String,
    /// Markdown.
    pub body: String,
}

/// All comments, oldest first.
pub(super) struct Comments {
    base: String,
    pub(super) all: Vec<Comment>,
}

impl Comments {
    pub(super) fn new(base: String) -> Self {
        Self { base, all: Vec::new() }
    }

    /// Adds one from a request that was found good.
    pub(super) fn add(
        &mut self,
        repository: &str,
        issue: u64,
        author: &str,
        body: &Value,
    ) -> Value {
        let comment = Comment {
            id: self.all.len() as u64 + 1,
            repository: repository.to_owned(),
            issue,
            author: author.to_owned(),
            body: body["body"].as_str().unwrap_or_default().to_owned(),
        };
        let shown = self.show(&comment);
        self.all.push(comment);
        shown
    }

    /// Changes one, whoever wrote it: whoever may write to a repository may.
    pub(super) fn update(&mut self, repository: &str, id: u64, body: &Value) -> Option<Value> {
        let comment = self
            .all
            .iter_mut()
            .find(|comment| comment.id == id && comment.repository == repository)?;
        body["body"].as_str().unwrap_or_default().clone_into(&mut comment.body);
        let comment = comment.clone();
        Some(self.show(&comment))
    }

    /// The comments of one issue, oldest first.
    pub(super) fn list(&self, repository: &str, issue: u64, query: &[(String, String)]) -> Page {
        let own = |comment: &&Comment| comment.repository == repository && comment.issue == issue;
        page(self.all.iter().filter(own).map(|comment| self.show(comment)), query)
    }

    fn show(&self, comment: &Comment) -> Value {
        let Comment { id, repository, issue, author, body } = comment;
        let url = format!("{}/repos/{repository}/issues", self.base);
        json!({
            "id": id,
            "node_id": format!("IC_{id}"),
            "url": format!("{url}/comments/{id}"),
            "html_url": format!("{}/{repository}/pull/{issue}#issuecomment-{id}", self.base),
            "issue_url": format!("{url}/{issue}"),
            "user": user(&self.base, author),
            "author_association": if author.ends_with("[bot]") { "NONE" } else { "COLLABORATOR" },
            "body": body,
            "created_at": time(*id),
            "updated_at": time(*id),
            "performed_via_github_app": null,
        })
    }
}
