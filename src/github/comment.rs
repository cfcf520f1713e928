//! The one comment on a pull request that says what its plan is, and is kept up to date.
//!
//! Bodies: GitHub's REST documentation, "Issue comments"; to GitHub a pull request is an issue.

use std::fmt;

use serde::Deserialize;
use serde_json::json;

use super::api::{Api, ApiError, ApiSpec};
use crate::model::digest::PlanDigest;
use crate::model::ids::ServiceName;

/// The longest comment that is sent, in characters. GitHub takes 65,536 and refuses a longer one whole.
pub const COMMENT_LIMIT: usize = 65_000;

/// Stands above a text that was cut: below, it could end up inside a fenced block.
const CUT_NOTE: &str = "> The rest of this plan was cut: the job summary has all of it.\n\n";

/// How many comments are asked for at once: the most that a page holds.
const PAGE: &str = "100";

/// What a comment is found by again: hidden in its first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The service that the plan is for.
    pub service: ServiceName,
    /// The GitHub environment it would be deployed to.
    pub environment: String,
    /// The plan, if there is one.
    pub digest: Option<String>,
}

impl Mark {
    /// The part that is the same whatever the plan is. A pull request can have plans for several services.
    fn prefix(&self) -> String {
        // Nothing in it can end the HTML comment or the field.
        let environment: String = self
            .environment
            .bytes()
            .map(|b| {
                if b.is_ascii_alphanumeric() {
                    char::from(b).to_string()
                } else {
                    format!("%{b:02x}")
                }
            })
            .collect();
        format!("<!-- model-swap plan: service={} environment={environment} ", self.service)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.as_deref().unwrap_or("none");
        write!(f, "{}digest={digest} -->", self.prefix())
    }
}

/// The comments on the pull requests of one repository.
pub struct Comments {
    api: Api,
}

impl Comments {
    /// A client; makes no request. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the token cannot stand in a header, the address is none, or the machine has no CA certificates.
    pub fn new(spec: ApiSpec) -> Result<Self, ApiError> {
        Api::new(spec).map(|api| Self { api })
    }

    /// Makes our comment on a pull request say this: changes the one that is there, or writes the first.
    ///
    /// # Errors
    /// If GitHub refuses, or does not answer within the operation's bound.
    pub async fn keep(&self, number: u64, mark: &Mark, markdown: &str) -> Result<(), ApiError> {
        let tried = format!("comment on pull request {number} of {}", self.api.repository);
        let body = fitted(&format!("{mark}\n"), markdown);
        let kept = async {
            let login = self.api.login().await?;
            let find = async || self.find(number, (mark, &login), &tried).await;
            let doubt = match find().await? {
                Some(there) => return self.update(&there, &body, &tried).await,
                None => match self.create(number, &body, &tried).await {
                    Err(error) if error.is_ambiguous() => error,
                    settled => return settled,
                },
            };
            // The comment may be there, and its answer lost: a second one would never be found again.
            tokio::time::sleep(self.api.bounds.pause).await;
            match find().await? {
                Some(there) => self.update(&there, &body, &tried).await,
                None => Err(doubt),
            }
        };
        self.api.operation(&tried, kept).await
    }

    /// The plan that our comment on a pull request says, of the same service and environment as the mark; `Ok(Err(login))`
    /// if whom the token writes as has not commented so.
    ///
    /// # Errors
    /// If GitHub refuses, or does not answer within the operation's bound.
    pub async fn read(
        &self,
        number: u64,
        mark: &Mark,
    ) -> Result<Result<Approved, String>, ApiError> {
        let tried = format!("read the plan on pull request {number} of {}", self.api.repository);
        let read = async {
            let login = self.api.login().await?;
            let found = self.find(number, (mark, &login), &tried).await?;
            Ok(found.and_then(|there| Approved::of(&mark.prefix(), &there.body?)).ok_or(login))
        };
        self.api.operation(&tried, read).await
    }

    /// Looks through all pages: a busy pull request has more comments than one holds.
    ///
    /// Anybody can copy the mark into a comment of their own; nobody can write as somebody else.
    async fn find(
        &self,
        number: u64,
        (mark, login): (&Mark, &str),
        tried: &str,
    ) -> Result<Option<Listed>, ApiError> {
        let prefix = mark.prefix();
        let route = format!("/issues/{number}/comments");
        let mut page = 1;
        loop {
            let number = page.to_string();
            let query = [("per_page", PAGE), ("page", &number)];
            let there: Vec<Listed> = self.api.get(tried, &route, &query).await?;
            let is_last = there.len().to_string() != PAGE;
            let ours = |comment: &Listed| {
                comment.body.as_ref().is_some_and(|body| body.starts_with(&prefix))
                    && comment.user.as_ref().is_some_and(|user| user.login == login)
            };
            match there.into_iter().find(ours) {
                Some(found) => return Ok(Some(found)),
                None if is_last => return Ok(None),
                None => page += 1,
            }
        }
    }

    async fn create(&self, number: u64, body: &str, tried: &str) -> Result<(), ApiError> {
        let route = format!("/issues/{number}/comments");
        let _made: Made = self.api.post(tried, &route, &json!({ "body": body })).await?;
        Ok(())
    }

    async fn update(&self, there: &Listed, body: &str, tried: &str) -> Result<(), ApiError> {
        // Each change of a comment is kept in its history.
        if there.body.as_deref() == Some(body) {
            return Ok(());
        }
        let route = format!("/issues/comments/{}", there.id);
        let _made: Made = self.api.patch(tried, &route, &json!({ "body": body })).await?;
        Ok(())
    }
}

/// A plan as a comment has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// Its digest; `None` where there was no plan when the comment was written.
    pub digest: Option<PlanDigest>,
    /// Its text, in Markdown; its beginning where the comment could not hold all.
    pub markdown: String,
    /// Whether its end is missing.
    pub is_cut: bool,
}

impl Approved {
    /// Whether it is anything but to leave all as it is.
    pub fn changes(&self) -> bool {
        !self.digest.as_ref().is_some_and(PlanDigest::is_unchanged)
    }

    fn of(prefix: &str, body: &str) -> Option<Self> {
        let (mark, markdown) = body.split_once('\n')?;
        let digest = mark.strip_prefix(prefix)?.strip_prefix("digest=")?.strip_suffix(" -->")?;
        let rest = markdown.strip_prefix(CUT_NOTE);
        let (markdown, is_cut) = (rest.unwrap_or(markdown).to_owned(), rest.is_some());
        Some(Self { digest: digest.parse().ok(), markdown, is_cut })
    }
}

/// Mark and text, cut to what GitHub takes, at the end of a line.
fn fitted(mark: &str, markdown: &str) -> String {
    let room = COMMENT_LIMIT.saturating_sub(mark.chars().count());
    if markdown.chars().count() <= room {
        return format!("{mark}{markdown}");
    }
    let kept: String =
        markdown.chars().take(room.saturating_sub(CUT_NOTE.chars().count())).collect();
    let end = kept.rfind('\n').map_or(0, |newline| newline + 1);
    format!("{mark}{CUT_NOTE}{}", &kept[..end])
}

/// Only what is needed is read: Enterprise Servers differ in the rest.
#[derive(Deserialize)]
struct Listed {
    id: u64,
    body: Option<String>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct User {
    login: String,
}

#[derive(Deserialize)]
struct Made {
    #[serde(rename = "id")]
    _id: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(environment: &str) -> Mark {
        let service = "chat".parse().unwrap();
        Mark { service, environment: environment.to_owned(), digest: Some("p-1".to_owned()) }
    }

    #[test]
    fn a_mark_is_hidden_whatever_the_environment_is_called() {
        let plain = "<!-- model-swap plan: service=chat environment=production digest=p-1 -->";
        assert_eq!(mark("production").to_string(), plain);
        let hostile = mark("x --> <b>@acme\n").to_string();
        assert_eq!(hostile.matches("-->").count(), 1, "{hostile}");
        assert!(hostile.ends_with(" -->") && !hostile.contains(['@', '\n']), "{hostile}");
        assert_ne!(mark("a").prefix(), mark("ab").prefix());
        assert!(!mark("ab").to_string().starts_with(&mark("a").prefix()));
    }

    #[test]
    fn a_comment_never_exceeds_what_github_takes() {
        assert_eq!(fitted("m\n", "short\n"), "m\nshort\n");
        let body = fitted("m\n", &"é line\n".repeat(COMMENT_LIMIT));
        assert!(body.chars().count() <= COMMENT_LIMIT, "{}", body.chars().count());
        assert!(body.chars().count() > COMMENT_LIMIT - 20, "{}", body.chars().count());
        assert!(body.starts_with("m\n> The rest of this plan was cut") && body.ends_with("line\n"));
        let (text, mark) = ("é line\n".repeat(COMMENT_LIMIT), mark("a"));
        let read =
            |text: &str| Approved::of(&mark.prefix(), &fitted(&format!("{mark}\n"), text)).unwrap();
        let (whole, cut) = (read("short\n"), read(&text));
        assert_eq!((&*whole.markdown, whole.is_cut), ("short\n", false));
        assert!(cut.is_cut && text.starts_with(&cut.markdown), "the note is none of the plan");
        assert_eq!(fitted("m\n", &"x".repeat(COMMENT_LIMIT)), format!("m\n{CUT_NOTE}"));
    }
}
