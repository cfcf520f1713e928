//! One repository's corner of GitHub's REST API: bounded, never retried behind our back, errors that tell what to do.

use std::error::Error;
use std::time::Duration;

use octocrab::Octocrab;
use octocrab::service::middleware::retry::RetryConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::run::Repository;
use crate::model::failure::Hint;
use crate::model::secret::Secret;

/// How long one request may take. GitHub itself gives up on a request after 10 s (documentation, "Troubleshooting the
/// REST API": timeouts); a deployment is answered in well under one.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(6);

/// How long one operation may take with all its requests. A swap makes three at most (create, in progress, concluded),
/// so that GitHub costs a job one minute at the very worst.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(20);

/// The pause before a request is repeated or its effect is looked for: what a list shows can lag behind.
pub const PAUSE: Duration = Duration::from_secs(1);

/// How often a list is asked for; asking changes nothing.
const GET_TRIES: usize = 3;

/// The most of GitHub's own message that is shown, in characters: a proxy may answer with a whole page.
const MESSAGE_LIMIT: usize = 300;

/// Which API, as whom, for which repository.
#[derive(Debug, Clone)]
pub struct ApiSpec {
    /// Base address without a final slash, `https://api.github.com` or `https://HOST/api/v3`.
    pub base: String,
    /// A token with the permission.
    pub token: Secret,
    /// What the token has to be allowed to write: `deployments`, `pull-requests`.
    pub permission: &'static str,
    /// The repository.
    pub repository: Repository,
    /// How long things may take.
    pub bounds: Bounds,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// One request.
    pub request: Duration,
    /// One operation with all its requests.
    pub operation: Duration,
    /// Between two requests of an operation.
    pub pause: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { request: REQUEST_LIMIT, operation: OPERATION_LIMIT, pause: PAUSE }
    }
}

/// GitHub did not do what it was asked. A warning to the user, never more.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No client can be made: the address or this machine's certificates.
    #[error("cannot set up a client for {base}")]
    Client {
        /// The base address.
        base: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The token cannot stand in a header.
    #[error("the GitHub token holds a blank or a character that no token has")]
    Token,
    /// GitHub refused.
    #[error("GitHub answered {status} when asked to {tried}: {message}")]
    Answered {
        /// What was asked.
        tried: String,
        /// HTTP status.
        status: u16,
        /// GitHub's message and the errors that it lists.
        message: String,
        /// What the token has to be allowed to write.
        permission: &'static str,
    },
    /// GitHub refused because of its rate limit: that of an hour, or a secondary one, which holds for less.
    #[error("GitHub's rate limit refused to {tried} ({status}): {message}")]
    RateLimited {
        /// What was asked.
        tried: String,
        /// HTTP status.
        status: u16,
        /// GitHub's message.
        message: String,
        /// How long it holds, where GitHub says so.
        holds: Option<Duration>,
    },
    /// No answer, or none that can be read.
    #[error("no usable answer from {base} when asked to {tried}")]
    Unanswered {
        /// The base address.
        base: String,
        /// What was asked.
        tried: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It took too long.
    #[error("{base} took longer than {} to {tried}", humantime::format_duration(*.limit))]
    Timeout {
        /// The base address.
        base: String,
        /// What was asked.
        tried: String,
        /// The bound.
        limit: Duration,
    },
}

impl ApiError {
    /// Whether the request may have had its effect all the same.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Unanswered { .. } | Self::Timeout { .. } => true,
            Self::Answered { status, .. } => *status >= 500,
            Self::Client { .. } | Self::Token | Self::RateLimited { .. } => false,
        }
    }
}

impl Hint for ApiError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Client { .. } => "check `GITHUB_API_URL` and that ca-certificates are installed".to_owned(),
            Self::Token => "check `github-token`: it must be one line without blanks".to_owned(),
            Self::Answered { status: 401, .. } => {
                "`github-token` was not accepted: leave the input out, or give a token that has not expired".to_owned()
            }
            Self::Answered { status: 403 | 404, permission, .. } => format!(
                "give the job `permissions: {permission}: write` (a pull request from a fork never gets it)"
            ),
            Self::Answered { status: 500.., .. } => "see https://www.githubstatus.com".to_owned(),
            Self::Answered { .. } => return Vec::new(),
            Self::RateLimited { holds: Some(holds), .. } => {
                format!("try again in {}", humantime::format_duration(*holds))
            }
            Self::RateLimited { holds: None, .. } => {
                "the token has asked too much of GitHub in this hour: try later".to_owned()
            }
            Self::Unanswered { base, .. } | Self::Timeout { base, .. } => {
                format!("check that the runner reaches {base}")
            }
        };
        vec![hint]
    }
}

/// The client.
#[derive(Debug, Clone)]
pub(super) struct Api {
    crab: Octocrab,
    base: String,
    root: String,
    /// Who is asked, for errors.
    pub(super) repository: String,
    permission: &'static str,
    pub(super) bounds: Bounds,
}

impl Api {
    /// Must be called within a tokio runtime.
    pub(super) fn new(spec: ApiSpec) -> Result<Self, ApiError> {
        let ApiSpec { base, token, permission, repository, bounds } = spec;
        let Repository { owner, name } = repository;
        // octocrab would panic.
        if token.expose().is_empty() || !token.expose().bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(ApiError::Token);
        }
        let crab = Octocrab::builder()
            // Its default sends a POST again on any 5xx.
            .add_retry_config(RetryConfig::None)
            .personal_token(token.expose())
            .base_uri(base.as_str())
            .and_then(|builder| builder.build())
            .map_err(|error| ApiError::Client { base: base.clone(), source: cause(error) })?;
        let repository = format!("{owner}/{name}");
        let root = format!("/repos/{repository}");
        Ok(Self { crab, base, root, repository, permission, bounds })
    }

    /// Asks for a list, more than once if need be.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        tried: &str,
        route: &str,
        query: &impl Serialize,
    ) -> Result<T, ApiError> {
        let mut tries = 1;
        loop {
            let route = format!("{}{route}", self.root);
            let asked = async || self.crab.get(route.as_str(), Some(query)).await;
            match self.settle(tried, asked).await {
                Err(error) if error.is_ambiguous() && tries < GET_TRIES => tries += 1,
                settled => return settled,
            }
            tokio::time::sleep(self.bounds.pause).await;
        }
    }

    /// Sends one request, once.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        tried: &str,
        route: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let route = format!("{}{route}", self.root);
        self.settle(tried, async || self.crab.post(route.as_str(), Some(body)).await).await
    }

    /// Sends one request, once, that is answered without a body.
    pub(super) async fn post_silent(
        &self,
        tried: &str,
        route: &str,
        body: &impl Serialize,
    ) -> Result<(), ApiError> {
        let route = format!("{}{route}", self.root);
        let asked = async || {
            let answer = self.crab._post(route.as_str(), Some(body)).await?;
            octocrab::map_github_error(answer).await.map(drop)
        };
        self.settle(tried, asked).await
    }

    /// Changes one thing; sent once.
    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        tried: &str,
        route: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let route = format!("{}{route}", self.root);
        self.settle(tried, async || self.crab.patch(route.as_str(), Some(body)).await).await
    }

    /// Holds a whole operation to its bound.
    pub(super) async fn operation<T>(
        &self,
        tried: &str,
        operation: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let limit = self.bounds.operation;
        timeout(limit, operation).await.unwrap_or_else(|_| Err(self.too_long(tried, limit)))
    }

    /// Sends a request; once more, if a rate limit refused it that is over within the operation's bound.
    async fn settle<T>(
        &self,
        tried: &str,
        request: impl AsyncFn() -> octocrab::Result<T>,
    ) -> Result<T, ApiError> {
        match self.answer(tried, request()).await {
            Err(ApiError::RateLimited { holds: Some(holds), .. })
                if holds < self.bounds.operation =>
            {
                tokio::time::sleep(holds).await;
                self.answer(tried, request()).await
            }
            settled => settled,
        }
    }

    async fn answer<T>(
        &self,
        tried: &str,
        request: impl Future<Output = octocrab::Result<T>>,
    ) -> Result<T, ApiError> {
        let limit = self.bounds.request;
        match timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(octocrab::Error::GitHub { source, .. })) => Err(self.refusal(tried, &source)),
            Ok(Err(error)) => Err(ApiError::Unanswered {
                base: self.base.clone(),
                tried: tried.to_owned(),
                source: cause(error),
            }),
            Err(_) => Err(self.too_long(tried, limit)),
        }
    }

    fn refusal(&self, tried: &str, error: &octocrab::GitHubError) -> ApiError {
        let status = error.status_code.as_u16();
        let details = error.errors.iter().flatten().map(detail);
        let message =
            std::iter::once(error.message.clone()).chain(details).collect::<Vec<_>>().join("; ");
        let message = one_line(&message, MESSAGE_LIMIT);
        let tried = tried.to_owned();
        let header = |name: &str| error.headers.as_ref().and_then(|headers| headers.get(name));
        let used_up = header("x-ratelimit-remaining").is_some_and(|left| left == "0");
        if status == 429 || (status == 403 && (used_up || header("retry-after").is_some())) {
            let number = |name| header(name)?.to_str().ok()?.parse::<u64>().ok();
            let until = || number("x-ratelimit-reset").filter(|_| used_up);
            let holds = number("retry-after").or_else(|| until().map(seconds_until));
            ApiError::RateLimited { tried, status, message, holds: holds.map(Duration::from_secs) }
        } else {
            ApiError::Answered { tried, status, message, permission: self.permission }
        }
    }

    fn too_long(&self, tried: &str, limit: Duration) -> ApiError {
        ApiError::Timeout { base: self.base.clone(), tried: tried.to_owned(), limit }
    }
}

/// From now to a moment in seconds since 1970; 0 if it is past.
fn seconds_until(moment: u64) -> u64 {
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    moment.saturating_sub(now)
}

/// One entry of `errors`: a text, or an object with `message` or with `field` and `code`.
fn detail(error: &serde_json::Value) -> String {
    let text = |name: &str| error.get(name).and_then(serde_json::Value::as_str);
    match (error.as_str(), text("message"), text("field"), text("code")) {
        (Some(text), ..) | (None, Some(text), ..) => text.to_owned(),
        (None, None, Some(field), Some(code)) => format!("{field}: {code}"),
        _ => error.to_string(),
    }
}

/// octocrab's own text repeats its source's, or is no more than the variant's name.
fn cause(error: octocrab::Error) -> Box<dyn Error + Send + Sync> {
    match error {
        octocrab::Error::Service { source, .. } | octocrab::Error::Other { source, .. } => source,
        octocrab::Error::Hyper { source, .. } => source.into(),
        octocrab::Error::Uri { source, .. } => source.into(),
        other => other.into(),
    }
}

/// A text on one line, without control characters, of at most `limit` characters; `…` stands for what was cut.
pub(super) fn one_line(text: &str, limit: usize) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    if line.chars().count() <= limit {
        return line;
    }
    let kept: String = line.chars().take(limit.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}
