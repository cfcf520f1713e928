//! A fake GitHub API: the deployment, comment and dispatch calls of one GitHub, with state, held to GitHub's own description.
//!
//! Each request and each of its own answers is checked against `fixtures/github-openapi.json` and `fixtures/github.graphql`, so that neither a caller
//! nor this fake can invent an API. It runs in a thread of its own: it answers also while a test blocks.

mod comments;
mod contract;
mod graphql;
mod operation;
mod pulls;
mod server;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

pub use self::comments::{Comment, WORKFLOW};
use self::contract::Contract;
pub use self::operation::Operation;
use self::server::{Serving, World};
pub use self::state::{Deployment, Status};
use crate::server::free_listener;

/// What a fake GitHub does instead of its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this HTTP status and the message GitHub has for it; nothing is done.
    Status(u16),
    /// Never answers; nothing is done.
    Hang,
    /// Closes the connection without an answer; nothing is done.
    Cut,
    /// Refuses for the limit of an hour, which is used up for this many more seconds; nothing is done.
    RateLimit(u64),
    /// Refuses for a secondary limit, to be tried again after this many seconds; nothing is done.
    SecondaryLimit(u64),
    /// Refuses in these words; nothing is done.
    Refusal(Refusal),
    /// Sends the caller elsewhere with this HTTP status; nothing is done.
    Redirect(u16, String),
    /// What stands before GitHub answers with this HTTP status and a page of HTML; nothing is done. No description has it.
    Page(u16),
    /// Does what was asked and closes the connection without an answer: who blindly asks again, asks twice.
    LostAnswer,
    /// Does what was asked and never answers.
    LateHang,
    /// Does what was asked and answers with this HTTP status all the same.
    LateStatus(u16),
}

/// An answer that refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What GitHub says.
    pub message: &'static str,
    /// Header fields that say more.
    pub headers: Vec<(&'static str, String)>,
}

/// For how many matching requests a fault holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// For the next ones, then no more.
    Next(u32),
    /// Until [`FakeGitHub::heal`].
    Always,
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// HTTP method, upper case.
    pub method: String,
    /// Path without the query, with `/api/v3` if the caller put it there.
    pub path: String,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// The body; `None` if there was none, or none in JSON.
    pub body: Option<Value>,
    /// Header `x-github-api-version`.
    pub api_version: Option<String>,
    /// HTTP status of the answer; `None` if it got none.
    pub answer: Option<u16>,
}

/// A running fake. Dropping it ends it, and panics over what GitHub would not have.
pub struct FakeGitHub {
    port: u16,
    world: Arc<Mutex<World>>,
    serving: Option<Serving>,
}

impl FakeGitHub {
    /// Starts one on a free port of 127.0.0.1, without deployments.
    ///
    /// # Errors
    /// If the fixture is not what it should be or no port can be had.
    pub fn start() -> anyhow::Result<Self> {
        let listener = free_listener()?;
        let port = listener.local_addr()?.port();
        let world = World::new(format!("http://127.0.0.1:{port}"), Contract::shared()?);
        let world = Arc::new(Mutex::new(world));
        let serving = Some(Serving::start(listener, Arc::clone(&world))?);
        Ok(Self { port, world, serving })
    }

    /// Base of the API as on github.com, `http://127.0.0.1:port`, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Base of the same API as on GitHub Enterprise Server: [`Self::url`] with `/api/v3`.
    pub fn ghes_url(&self) -> String {
        format!("{}/api/v3", self.url())
    }

    /// The only token that is let in; any other gets 401.
    pub fn token(&self) -> &'static str {
        server::TOKEN
    }

    /// From now on `fault` instead of an answer to `operations`. Of several faults for one operation the first that was
    /// set goes first.
    pub fn fail(&self, fault: Fault, operations: &[Operation], times: Times) {
        self.world().faults.push(server::Trap { fault, operations: operations.to_vec(), times });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.world().faults.clear();
    }

    /// Takes the fake off the network: its connections are cut, new ones refused. What it knows stays.
    pub fn down(&mut self) {
        self.serving = None;
    }

    /// Brings it back on the same port after [`Self::down`].
    ///
    /// # Errors
    /// If the port has been taken meanwhile.
    pub fn up(&mut self) -> anyhow::Result<()> {
        if self.serving.is_none() {
            self.serving =
                Some(Serving::start(server::listen(self.port)?, Arc::clone(&self.world))?);
        }
        Ok(())
    }

    /// All requests in the order of their arrival, those that met a fault included.
    pub fn requests(&self) -> Vec<Request> {
        self.world().requests.clone()
    }

    /// What was wrong with requests (answered 422, or 404 where there is no such call) or with the fake's own answers
    /// (500), whatever faults were set, since this was asked last. What nobody asks for fails the test that made it.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.world().violations)
    }

    /// All deployments with their statuses, oldest first.
    pub fn deployments(&self) -> Vec<Deployment> {
        self.world().state.deployments.clone()
    }

    /// Pull request `number` of `acme/llm` is merged as this commit.
    pub fn merge(&self, number: u64, commit: &str) {
        self.world().state.pulls.merge("acme/llm", number, commit);
    }

    /// A branch is at this commit from now on.
    pub fn push(&self, branch: &str, commit: &str) {
        self.world().state.branches.insert(branch.to_owned(), commit.to_owned());
    }

    /// From now on the token may no more than a job's `permissions:` say.
    pub fn grant(&self, permissions: BTreeMap<String, String>) {
        self.world().granted = Some(permissions);
    }

    /// From now on the token is somebody else's: who it writes as.
    pub fn write_as(&self, login: &str) {
        login.clone_into(&mut self.world().login);
    }

    /// A repository has a new name; its old one leads there.
    pub fn rename(&self, from: &str, to: &str) {
        let mut world = self.world();
        let deployments = world.state.deployments.iter_mut();
        for repository in deployments.map(|deployment| &mut deployment.repository) {
            if repository == from {
                to.clone_into(repository);
            }
        }
        world.renamed = Some((from.to_owned(), to.to_owned()));
    }

    /// A job of a run of `acme/llm` begins that names this environment: GitHub deploys by itself.
    pub fn begin_job(&self, environment: &str, run: u64) {
        let new = serde_json::json!({ "ref": "main", "environment": environment });
        let state = &mut self.world().state;
        let id = state.create("acme/llm".to_owned(), &new)["id"].as_u64().unwrap_or_default();
        let log_url = format!("https://github.example.com/acme/llm/actions/runs/{run}/job/{id}");
        let began = serde_json::json!({ "state": "in_progress", "log_url": log_url });
        state.add_status("acme/llm", id, &began);
    }

    /// Somebody else deploys to an environment of `acme/llm`, with success.
    pub fn deploy(&self, environment: &str, payload: &Value) {
        let new = serde_json::json!({
            "ref": "main", "task": "deploy:model", "environment": environment, "payload": payload,
        });
        let state = &mut self.world().state;
        let id = state.create("acme/llm".to_owned(), &new)["id"].as_u64().unwrap_or_default();
        let success = serde_json::json!({ "state": "success", "auto_inactive": false });
        state.add_status("acme/llm", id, &success);
    }

    /// Somebody else gives a deployment of `acme/llm` a state.
    pub fn set_state(&self, id: u64, state: &str) {
        let status = serde_json::json!({ "state": state, "auto_inactive": false });
        self.world().state.add_status("acme/llm", id, &status);
    }

    /// All comments, oldest first.
    pub fn comments(&self) -> Vec<Comment> {
        self.world().state.comments.all.clone()
    }

    /// Somebody comments on an issue or a pull request of `acme/llm`.
    pub fn comment(&self, issue: u64, author: &str, body: &str) {
        let body = serde_json::json!({ "body": body });
        self.world().state.comments.add("acme/llm", issue, author, &body);
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FakeGitHub {
    fn drop(&mut self) {
        self.serving = None;
        let violations = self.violations();
        let is_good = violations.is_empty() || std::thread::panicking();
        assert!(is_good, "GitHub would not have it: {violations:#?}");
    }
}

impl fmt::Display for FakeGitHub {
    /// The deployments page: all deployments, newest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deployments().iter().rev().try_for_each(|deployment| writeln!(f, "{deployment}"))
    }
}
