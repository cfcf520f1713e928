//! The pull request that a run is for, as the event's payload tells it.
//!
//! Fields: GitHub's documentation, "Webhook events and payloads": `pull_request`, `workflow_run`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::model::failure::Hint;

/// The event of a run that another run has started, with the repository's secrets, whoever that one was for.
const WORKFLOW_RUN: &str = "workflow_run";

/// A pull request, or what a run that follows another one is told of its.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number; `None` where the run only follows one that may have been for a pull request.
    pub number: Option<u64>,
    /// Where its commits come from.
    pub head: Head,
    /// `pull_request`, `workflow_run`, or `pull_request_target`, which has the secrets of the repository whoever asks.
    pub event: String,
}

/// Where a pull request's commits come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The repository itself: from somebody who may write to it.
    Own,
    /// Another repository; its name, where it is still there.
    Fork(String),
}

/// The event could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The run is for a pull request, or follows one that may have been, and nothing says which.
    #[error("GITHUB_EVENT_NAME is {event}, and GITHUB_EVENT_PATH is not set")]
    NoPath {
        /// The event's name.
        event: String,
    },
    /// The file cannot be read.
    #[error("cannot read the event {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none of that name.
    #[error("{} is not the event of a {event}", path.display())]
    Unknown {
        /// The event's name.
        event: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Hint for EventError {
    fn hints(&self) -> Vec<String> {
        vec!["leave GITHUB_EVENT_NAME and GITHUB_EVENT_PATH as the runner sets them".to_owned()]
    }
}

#[derive(Deserialize)]
struct Payload {
    pull_request: Body,
}

#[derive(Deserialize)]
struct Following {
    workflow_run: Followed,
    repository: Repo,
}

#[derive(Deserialize)]
struct Followed {
    head_repository: Option<Repo>,
}

#[derive(Deserialize)]
struct Body {
    number: u64,
    head: Side,
    base: Side,
}

#[derive(Deserialize)]
struct Side {
    /// `null` once a fork is deleted.
    repo: Option<Repo>,
}

#[derive(Deserialize)]
struct Repo {
    full_name: String,
}

impl PullRequest {
    /// The pull request of the run that these variables describe, or of the run that it follows; `None` for any other event.
    ///
    /// # Errors
    /// If the event is such a one and cannot be read: who asks is then not known.
    pub fn of_run(env: &BTreeMap<String, String>) -> Result<Option<Self>, EventError> {
        let get = |name: &str| env.get(name).filter(|value| !value.is_empty()).cloned();
        // Reviews and comments on a review carry the pull request as well.
        let Some(event) = get("GITHUB_EVENT_NAME")
            .filter(|event| event.starts_with("pull_request") || event == WORKFLOW_RUN)
        else {
            return Ok(None);
        };
        let Some(path) = get("GITHUB_EVENT_PATH").map(PathBuf::from) else {
            return Err(EventError::NoPath { event });
        };
        let text = std::fs::read(&path)
            .map_err(|source| EventError::Unreadable { path: path.clone(), source })?;
        let read = if event == WORKFLOW_RUN { following(&text) } else { own(&text) };
        let (number, head, base) =
            read.map_err(|source| EventError::Unknown { event: event.clone(), path, source })?;
        let head = if head.is_some() && head == base {
            Head::Own
        } else {
            Head::Fork(head.unwrap_or_else(|| "a repository that is gone".to_owned()))
        };
        Ok(Some(Self { number, head, event }))
    }

    /// Why the configuration must not be trusted with a key, if so.
    pub fn distrust(&self) -> Option<String> {
        match &self.head {
            _ if self.event == "pull_request_target" => Some(
                "pull_request_target runs with this repository's secrets for whoever opens a pull request"
                    .to_owned(),
            ),
            Head::Fork(name) if self.event == WORKFLOW_RUN => {
                Some(format!("the run that started this one was for a fork, {name}"))
            }
            Head::Fork(name) => Some(format!("the pull request comes from a fork, {name}")),
            Head::Own => None,
        }
    }
}

/// Number, and the names of both repositories, where they are still there.
type Sides = (Option<u64>, Option<String>, Option<String>);

fn own(text: &[u8]) -> serde_json::Result<Sides> {
    let Payload { pull_request: Body { number, head, base } } = serde_json::from_slice(text)?;
    let name = |side: Side| side.repo.map(|repo| repo.full_name);
    Ok((Some(number), name(head), name(base)))
}

fn following(text: &[u8]) -> serde_json::Result<Sides> {
    let Following { workflow_run, repository } = serde_json::from_slice(text)?;
    let head = workflow_run.head_repository.map(|repo| repo.full_name);
    Ok((None, head, Some(repository.full_name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(event: &str, payload: &str) -> Result<Option<PullRequest>, EventError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), payload).unwrap();
        let path = file.path().display().to_string();
        let pairs = [("GITHUB_EVENT_NAME", event), ("GITHUB_EVENT_PATH", &path)];
        let env = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        PullRequest::of_run(&env.into())
    }

    fn payload(head: &str) -> String {
        let base = r#"{"repo": {"full_name": "acme/llm"}}"#;
        format!(
            r#"{{"pull_request": {{"number": 7, "head": {{"repo": {head}}}, "base": {base}}}}}"#
        )
    }

    #[test]
    fn only_the_repositorys_own_branches_are_trusted() {
        let own = payload(r#"{"full_name": "acme/llm"}"#);
        let pull = read("pull_request", &own).unwrap().unwrap();
        assert_eq!((pull.number, &pull.head, pull.distrust()), (Some(7), &Head::Own, None));
        let why = |event: &str, head: &str| {
            read(event, &payload(head)).unwrap().unwrap().distrust().unwrap()
        };
        assert!(why("pull_request", r#"{"full_name": "eve/llm"}"#).contains("eve/llm"));
        assert!(why("pull_request", "null").contains("that is gone"));
        let target = why("pull_request_target", r#"{"full_name": "acme/llm"}"#);
        assert!(target.contains("secrets"), "{target}");
    }

    #[test]
    fn a_run_that_follows_one_for_a_fork_is_not_trusted_either() {
        let follows = |head: &str| {
            let repository = r#"{"full_name": "acme/llm"}"#;
            let event = format!(
                r#"{{"workflow_run": {{"event": "pull_request", "head_repository": {head}}}, "repository": {repository}}}"#
            );
            read("workflow_run", &event).unwrap().unwrap()
        };
        let own = follows(r#"{"full_name": "acme/llm"}"#);
        assert_eq!((own.number, own.distrust()), (None, None));
        let fork = follows(r#"{"full_name": "eve/llm"}"#).distrust().unwrap();
        assert!(fork.contains("for a fork, eve/llm"), "{fork}");
        assert!(follows("null").distrust().is_some());
        assert!(read("workflow_run", "{}").is_err());
    }

    #[test]
    fn other_events_are_no_pull_requests_and_a_broken_one_is_an_error() {
        assert_eq!(read("push", "{}").unwrap(), None);
        assert!(read("pull_request", "{}").is_err());
        let env = [("GITHUB_EVENT_NAME".to_owned(), "pull_request".to_owned())];
        assert!(PullRequest::of_run(&env.into()).is_err());
    }
}
