//! What a fake GitHub knows: deployments and their statuses, and how both look to callers and to people.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use super::comments::{Comments, WORKFLOW};
use super::pulls::Pulls;

/// GitHub's default and largest page (REST API, "Using pagination").
const PAGE: usize = 30;
const LARGEST_PAGE: usize = 100;

/// One deployment.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// GitHub's number for it.
    pub id: u64,
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit that was asked for.
    pub git_ref: String,
    /// Commit that the ref stands for.
    pub sha: String,
    /// As `deploy:model`.
    pub task: String,
    /// Where to.
    pub environment: String,
    /// What the caller said of it.
    pub description: Option<String>,
    /// The caller's own data: an object, or a string.
    pub payload: Value,
    /// Whether the environment goes away some day.
    pub transient: bool,
    /// Whether people use the environment directly.
    pub production: bool,
    /// Oldest first.
    pub statuses: Vec<Status>,
}

/// One status of a deployment.
#[derive(Debug, Clone)]
pub struct Status {
    /// GitHub's number for it.
    pub id: u64,
    /// As `in_progress`.
    pub state: String,
    /// What the caller said of it; may be empty.
    pub description: String,
    /// Where the log is; may be empty.
    pub log_url: String,
    /// Where the result is; may be empty.
    pub environment_url: String,
}

impl Deployment {
    /// State of the newest status; `pending` without one, as GitHub shows it.
    pub fn state(&self) -> &str {
        self.statuses.last().map_or("pending", |status| &status.state)
    }
}

impl fmt::Display for Deployment {
    /// As on GitHub's page: a line for the deployment and an indented one for each status, newest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, environment, task, git_ref, .. } = self;
        let commit = self.sha.get(..7).unwrap_or(&self.sha);
        write!(f, "{environment}  {}  #{id} {task}, {git_ref} ({commit})", self.state())?;
        if let Some(description) = &self.description {
            write!(f, ": {description}")?;
        }
        for Status { state, description, log_url, environment_url, .. } in
            self.statuses.iter().rev()
        {
            write!(f, "\n    {state:<12}{description}")?;
            for url in [log_url, environment_url].into_iter().filter(|url| !url.is_empty()) {
                write!(f, "\n                {url}")?;
            }
        }
        Ok(())
    }
}

/// All that is remembered.
pub(super) struct State {
    /// Base of the URLs in answers.
    base: String,
    /// Oldest first.
    pub(super) deployments: Vec<Deployment>,
    pub(super) comments: Comments,
    pub(super) pulls: Pulls,
    /// The newest commit of each branch that somebody has pushed to.
    pub(super) branches: BTreeMap<String, String>,
    last_id: u64,
}

/// A list as GitHub hands it out.
pub(super) struct Page {
    /// Newest first.
    pub(super) items: Vec<Value>,
    /// Whether there is another page after it.
    pub(super) more: bool,
}

impl State {
    pub(super) fn new(base: String) -> Self {
        let comments = Comments::new(base.clone());
        let (deployments, pulls, branches) = (Vec::new(), Pulls::default(), BTreeMap::new());
        Self { base, deployments, comments, pulls, branches, last_id: 0 }
    }

    /// Creates a deployment from a request that was found good, with GitHub's defaults.
    pub(super) fn create(&mut self, repository: String, body: &Value) -> Value {
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        let environment = text("environment").unwrap_or_else(|| "production".into());
        let git_ref = text("ref").unwrap_or_default();
        self.deployments.push(Deployment {
            id: next(&mut self.last_id),
            repository,
            sha: self.branches.get(&git_ref).cloned().unwrap_or_else(|| commit(&git_ref)),
            git_ref,
            task: text("task").unwrap_or_else(|| "deploy".into()),
            description: text("description"),
            payload: body.get("payload").cloned().unwrap_or_else(|| "".into()),
            transient: body["transient_environment"].as_bool().unwrap_or(false),
            production: body["production_environment"]
                .as_bool()
                .unwrap_or(environment == "production"),
            environment,
            statuses: Vec::new(),
        });
        self.deployments.last().map_or(Value::Null, |created| self.show(created))
    }

    /// The deployment under `id`.
    pub(super) fn find(&self, repository: &str, id: u64) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| deployment.id == id && deployment.repository == repository)
    }

    /// The deployments that every one of `query`'s filters lets pass; `none` is the description's default for "any".
    pub(super) fn list(&self, repository: &str, query: &[(String, String)]) -> Page {
        let wanted = |deployment: &&Deployment| {
            query.iter().filter(|(_, value)| value != "none").all(|(name, value)| {
                match name.as_str() {
                    "environment" => deployment.environment == *value,
                    "sha" => deployment.sha == *value,
                    "task" => deployment.task == *value,
                    "ref" => deployment.git_ref == *value,
                    _ => true,
                }
            })
        };
        let own =
            self.deployments.iter().rev().filter(|deployment| deployment.repository == repository);
        page(own.filter(wanted).map(|deployment| self.show(deployment)), query)
    }

    /// The statuses of a deployment.
    pub(super) fn statuses(&self, deployment: &Deployment, query: &[(String, String)]) -> Page {
        page(
            deployment.statuses.iter().rev().map(|status| self.show_status(deployment, status)),
            query,
        )
    }

    /// The branches that are at a commit.
    pub(super) fn branches(&self, commit: &str) -> Value {
        let at = self.branches.iter().filter(|(_, tip)| *tip == commit);
        let url = format!("{}/repos/acme/llm/commits/{commit}", self.base);
        let show = |name| json!({ "name": name, "commit": { "sha": commit, "url": url }, "protected": false });
        at.map(|(name, _)| show(name)).collect()
    }

    /// Adds a status from a request that was found good; `None` if there is no such deployment. A success makes earlier
    /// successes in the same environment inactive, except transient and production ones, unless `auto_inactive` is
    /// false (REST API, "Create a deployment status").
    pub(super) fn add_status(&mut self, repository: &str, id: u64, body: &Value) -> Option<Value> {
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let log_url =
            if body["log_url"].is_string() { text("log_url") } else { text("target_url") };
        let status = Status {
            id: next(&mut self.last_id),
            state: text("state"),
            description: text("description"),
            log_url,
            environment_url: text("environment_url"),
        };
        let own = |deployment: &&mut Deployment| {
            deployment.id == id && deployment.repository == repository
        };
        let deployment = self.deployments.iter_mut().find(own)?;
        if let Some(environment) = body["environment"].as_str() {
            environment.clone_into(&mut deployment.environment);
        }
        deployment.statuses.push(status.clone());
        if status.state == "success" && body["auto_inactive"] != false {
            let environment = deployment.environment.clone();
            self.retire_before(repository, id, &environment);
        }
        let deployment = self.find(repository, id)?;
        Some(self.show_status(deployment, &status))
    }

    /// A deployment in an answer.
    pub(super) fn show(&self, deployment: &Deployment) -> Value {
        let repository = format!("{}/repos/{}", self.base, deployment.repository);
        let url = format!("{repository}/deployments/{}", deployment.id);
        let updated = deployment.statuses.last().map_or(deployment.id, |status| status.id);
        json!({
            "id": deployment.id,
            "node_id": format!("DE_{}", deployment.id),
            "url": url,
            "sha": deployment.sha,
            "ref": deployment.git_ref,
            "task": deployment.task,
            "payload": deployment.payload,
            "original_environment": deployment.environment,
            "environment": deployment.environment,
            "description": deployment.description,
            "creator": user(&self.base, WORKFLOW),
            "created_at": time(deployment.id),
            "updated_at": time(updated),
            "statuses_url": format!("{url}/statuses"),
            "repository_url": repository,
            "transient_environment": deployment.transient,
            "production_environment": deployment.production,
            "performed_via_github_app": null,
        })
    }

    /// A status in an answer.
    pub(super) fn show_status(&self, deployment: &Deployment, status: &Status) -> Value {
        let repository = format!("{}/repos/{}", self.base, deployment.repository);
        let url = format!("{repository}/deployments/{}", deployment.id);
        json!({
            "id": status.id,
            "node_id": format!("DES_{}", status.id),
            "url": format!("{url}/statuses/{}", status.id),
            "state": status.state,
            "creator": user(&self.base, WORKFLOW),
            "description": status.description,
            "environment": deployment.environment,
            "environment_url": status.environment_url,
            "log_url": status.log_url,
            "target_url": status.log_url,
            "created_at": time(status.id),
            "updated_at": time(status.id),
            "deployment_url": url,
            "repository_url": repository,
            "performed_via_github_app": null,
        })
    }

    fn retire_before(&mut self, repository: &str, id: u64, environment: &str) {
        for earlier in &mut self.deployments {
            let same = earlier.repository == repository
                && earlier.environment == environment
                && earlier.id < id;
            if same && !earlier.transient && !earlier.production && earlier.state() == "success" {
                let (log_url, environment_url) = (String::new(), String::new());
                let id = next(&mut self.last_id);
                let (state, description) = ("inactive".into(), String::new());
                earlier.statuses.push(Status { id, state, description, log_url, environment_url });
            }
        }
    }
}

/// A user or a bot in an answer.
pub(super) fn user(base: &str, login: &str) -> Value {
    let is_bot = login.ends_with("[bot]");
    let url = format!("{base}/users/{}", login.trim_end_matches("[bot]"));
    let mut user = json!({
        "login": login,
        "id": if is_bot { 41_898_282 } else { 7 },
        "node_id": "MDM6Qm90NDE4OTgyODI=",
        "gravatar_id": "",
        "type": if is_bot { "Bot" } else { "User" },
        "site_admin": false,
        "url": url,
    });
    for name in [
        "avatar_url",
        "html_url",
        "followers_url",
        "following_url",
        "gists_url",
        "starred_url",
        "subscriptions_url",
        "organizations_url",
        "repos_url",
        "events_url",
        "received_events_url",
    ] {
        user[name] = format!("{url}/{name}").into();
    }
    user
}

fn next(last: &mut u64) -> u64 {
    *last += 1;
    *last
}

/// A ref's commit: itself if it is one, else always the same made-up one.
fn commit(git_ref: &str) -> String {
    if git_ref.len() == 40 && git_ref.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return git_ref.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    git_ref.hash(&mut hasher);
    let hash = hasher.finish();
    format!("{hash:016x}{:016x}{:08x}", !hash, hash >> 32)
}

/// The clock ticks once for each thing that is made, which is all that an order needs.
pub(super) fn time(id: u64) -> String {
    format!("2026-01-01T{:02}:{:02}:{:02}Z", id / 3600 % 24, id / 60 % 60, id % 60)
}

pub(super) fn page(all: impl Iterator<Item = Value>, query: &[(String, String)]) -> Page {
    let number = |name: &str| {
        query.iter().find(|(own, _)| own == name).and_then(|(_, value)| value.parse().ok())
    };
    let size = number("per_page").unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let before = number("page").unwrap_or(1).max(1) - 1;
    let mut rest = all.skip(before * size);
    let items = rest.by_ref().take(size).collect();
    Page { items, more: rest.next().is_some() }
}
