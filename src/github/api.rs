//! One repository's corner of GitHub's REST API: bounded, never retried behind our back, errors that tell what to do.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderValue, USER_AGENT};
use octocrab::service::middleware::auth_header::AuthHeaderLayer;
use octocrab::service::middleware::extra_headers::ExtraHeadersLayer;
use octocrab::{AuthState, Octocrab, OctocrabBuilder};
use reqwest::Url;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

pub use super::error::ApiError;
use super::outside::{Outside, Proxies};
use super::run::Repository;
use crate::model::secret::Secret;

/// How long one request may take. GitHub itself gives up on a request after 10 s (documentation, "Troubleshooting the
/// REST API": timeouts); a deployment is answered in well under one.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(6);

/// How long one operation may take with all its requests. Beside a swap nobody waits for it; after its end there are nine at
/// most (two tries to find or make its deployment, of three each, then concluded, find what it supersedes, say so), so that GitHub
/// costs a job three minutes at the very worst, and one where it does not answer at all.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(20);

/// The pause before a request is repeated or its effect is looked for: what a list shows can lag behind.
pub const PAUSE: Duration = Duration::from_secs(1);

/// How often a request is sent on to where GitHub says that it belongs: a repository that was renamed, and one more.
const REDIRECTS: usize = 2;

/// How often a thing is asked for; asking changes nothing.
const ASK_TRIES: usize = 3;

/// What GitHub says, whatever else, where a secondary limit refuses. It need not say by a header for how long; then it is
/// to be left alone for a minute (REST documentation, "Rate limits": exceeding).
const SECONDARY: &str = "secondary rate limit";

/// How long it is left alone then.
const SECONDARY_HOLDS: u64 = 60;

/// The most of GitHub's own message that is shown, in characters: a proxy may answer with a whole page.
const MESSAGE_LIMIT: usize = 300;

/// Which API, as whom, for which repository.
#[derive(Debug, Clone)]
pub struct ApiSpec {
    /// Base address without a final slash, `https://api.github.com` or `https://HOST/api/v3`.
    pub base: String,
    /// Address of the GraphQL API, `https://api.github.com/graphql` or `https://HOST/api/graphql`.
    pub graphql: String,
    /// A token with the permission.
    pub token: Secret,
    /// What the token has to be allowed, as a workflow writes it: `deployments: write`.
    pub permission: &'static str,
    /// The repository.
    pub repository: Repository,
    /// How long things may take.
    pub bounds: Bounds,
    /// What leads there.
    pub proxies: Proxies,
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

/// The client.
#[derive(Debug, Clone)]
pub(super) struct Api {
    crab: Octocrab,
    base: String,
    graphql: String,
    root: String,
    /// Who is asked, for errors.
    pub(super) repository: String,
    permission: &'static str,
    pub(super) bounds: Bounds,
}

impl Api {
    /// Must be called within a tokio runtime.
    pub(super) fn new(spec: ApiSpec) -> Result<Self, ApiError> {
        let ApiSpec { base, graphql, token, permission, repository, bounds, proxies } = spec;
        let Repository { owner, name } = repository;
        if token.expose().is_empty() || !token.expose().bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(ApiError::Token);
        }
        let crab = client(&base, &token, &proxies)
            .map_err(|source| ApiError::Client { base: base.clone(), source })?;
        let repository = format!("{owner}/{name}");
        let root = format!("/repos/{repository}");
        Ok(Self { crab, base, graphql, root, repository, permission, bounds })
    }

    /// Asks for a list, more than once if need be.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        tried: &str,
        route: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ApiError> {
        let answer = self.ask(tried, route, &Call::Get(query)).await?;
        self.read(tried, answer)
    }

    /// Asks for what can be done without, once: it takes no time from what an operation is there for.
    pub(super) async fn get_once<T: DeserializeOwned>(
        &self,
        tried: &str,
        route: &str,
    ) -> Result<T, ApiError> {
        let answer = self.answer(tried, route, &Call::Get(&[])).await?;
        self.read(tried, answer)
    }

    async fn ask(&self, tried: &str, route: &str, call: &Call<'_>) -> Result<String, ApiError> {
        let mut tries = 1;
        loop {
            match self.settle(tried, route, call).await {
                Err(error) if error.is_ambiguous() && tries < ASK_TRIES => tries += 1,
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
        body: &Value,
    ) -> Result<T, ApiError> {
        let answer = self.settle(tried, route, &Call::Post(body)).await?;
        self.read(tried, answer)
    }

    /// Sends one request, once, that is answered without a body.
    pub(super) async fn post_silent(
        &self,
        tried: &str,
        route: &str,
        body: &Value,
    ) -> Result<(), ApiError> {
        self.settle(tried, route, &Call::Post(body)).await.map(drop)
    }

    /// Changes one thing; sent once.
    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        tried: &str,
        route: &str,
        body: &Value,
    ) -> Result<T, ApiError> {
        let answer = self.settle(tried, route, &Call::Patch(body)).await?;
        self.read(tried, answer)
    }

    /// The login that the token writes as. REST tells that to a person's token alone; GraphQL to that of an app as well, which
    /// a workflow's own is.
    pub(super) async fn login(&self) -> Result<String, ApiError> {
        let tried = "ask whose token this is";
        // An Enterprise Server has it beside `/api/v3`, not below.
        let (base, route) = self.graphql.rsplit_once('/').unwrap_or((&self.graphql, ""));
        let graphql = Self { base: base.to_owned(), root: String::new(), ..self.clone() };
        let query = serde_json::json!({ "query": "query { viewer { login } }" });
        // To GraphQL a question is a POST as well.
        let answer = graphql.ask(tried, &format!("/{route}"), &Call::Post(&query)).await?;
        let answer: Value = graphql.read(tried, answer)?;
        let login = answer.pointer("/data/viewer/login").and_then(Value::as_str);
        login.map(str::to_owned).ok_or_else(|| {
            let errors = answer.get("errors").and_then(Value::as_array).into_iter().flatten();
            let message = errors.map(detail).collect::<Vec<_>>().join("; ");
            let message = one_line(&message, MESSAGE_LIMIT);
            ApiError::Answered {
                tried: tried.to_owned(),
                status: 200,
                message,
                permission: self.permission,
            }
        })
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
    async fn settle(&self, tried: &str, route: &str, call: &Call<'_>) -> Result<String, ApiError> {
        let operation = self.bounds.operation;
        match self.answer(tried, route, call).await {
            Err(ApiError::RateLimited { holds: Some(holds), .. }) if holds < operation => {
                tokio::time::sleep(holds).await;
                self.answer(tried, route, call).await
            }
            settled => settled,
        }
    }

    async fn answer(&self, tried: &str, route: &str, call: &Call<'_>) -> Result<String, ApiError> {
        let limit = self.bounds.request;
        match timeout(limit, self.exchange(route, call)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(octocrab::Error::GitHub { source, .. })) => Err(self.refusal(tried, &source)),
            Ok(Err(error)) => Err(self.unanswered(tried, cause(error))),
            Err(_) => Err(self.too_long(tried, limit)),
        }
    }

    /// Sends a request to where it belongs and takes the whole answer in.
    ///
    /// A renamed repository is answered with its address (301, 307, 308). octocrab would not send a body on, and would make
    /// a GET of a POST.
    async fn exchange(&self, route: &str, call: &Call<'_>) -> octocrab::Result<String> {
        let mut url = format!("{}{}{route}", self.base, self.root);
        if let Call::Get(query) = call
            && let Ok(with_query) = Url::parse_with_params(&url, *query)
        {
            url = with_query.into();
        }
        let mut hops = 0;
        let response = loop {
            let response = match call {
                Call::Get(_) => self.crab._get(url.as_str()).await?,
                Call::Post(body) => self.crab._post(url.as_str(), Some(body)).await?,
                Call::Patch(body) => self.crab._patch(url.as_str(), Some(body)).await?,
            };
            let there =
                response.status().is_redirection().then(|| response.headers().get("location"));
            match there.flatten().and_then(|to| self.moved(&url, to.to_str().ok()?)) {
                Some(next) if hops < REDIRECTS => url = next,
                _ => break octocrab::map_github_error(response).await?,
            }
            hops += 1;
        };
        self.crab.body_to_string(response).await
    }

    /// Where a redirect leads, if that is the same API: the token is for nobody else.
    fn moved(&self, from: &str, to: &str) -> Option<String> {
        let from = Url::parse(from).ok()?;
        let to = from.join(to).ok()?;
        (to.origin() == from.origin()).then(|| to.into())
    }

    fn read<T: DeserializeOwned>(&self, tried: &str, answer: String) -> Result<T, ApiError> {
        serde_json::from_str(&answer).map_err(|error| self.unanswered(tried, error.into()))
    }

    fn unanswered(&self, tried: &str, source: Box<dyn Error + Send + Sync>) -> ApiError {
        ApiError::Unanswered { base: self.base.clone(), tried: tried.to_owned(), source }
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
        let secondary = message.to_lowercase().contains(SECONDARY);
        let limited = used_up || secondary || header("retry-after").is_some();
        if status == 429 || (status == 403 && limited) {
            let number = |name| header(name)?.to_str().ok()?.parse::<u64>().ok();
            let until = || number("x-ratelimit-reset").filter(|_| used_up);
            let holds = number("retry-after").or_else(|| until().map(seconds_until));
            let holds = holds.or(secondary.then_some(SECONDARY_HOLDS));
            ApiError::RateLimited { tried, status, message, holds: holds.map(Duration::from_secs) }
        } else {
            ApiError::Answered { tried, status, message, permission: self.permission }
        }
    }

    fn too_long(&self, tried: &str, limit: Duration) -> ApiError {
        ApiError::Timeout { base: self.base.clone(), tried: tried.to_owned(), limit }
    }
}

/// A client that follows no redirect and sends nothing twice.
fn client(
    base: &str,
    token: &Secret,
    proxies: &Proxies,
) -> Result<Octocrab, Box<dyn Error + Send + Sync>> {
    let origin: Uri = Url::parse(base)?.origin().ascii_serialization().parse()?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose()))?;
    bearer.set_sensitive(true);
    // GitHub refuses a caller without a name.
    let name = Arc::new(vec![(USER_AGENT, HeaderValue::from_static("model-swap"))]);
    let built = OctocrabBuilder::new_empty()
        .with_service(Outside::new(proxies)?)
        .with_layer(&ExtraHeadersLayer::new(name))
        .with_layer(&AuthHeaderLayer::new(Some(bearer), origin.clone(), origin))
        .with_auth(AuthState::None)
        .build();
    Ok(built.unwrap_or_else(|never| match never {}))
}

/// One request, but for its address.
enum Call<'a> {
    /// Asks; the query is encoded.
    Get(&'a [(&'a str, &'a str)]),
    /// Makes something.
    Post(&'a Value),
    /// Changes something.
    Patch(&'a Value),
}

/// From now to a moment in seconds since 1970; 0 if it is past.
fn seconds_until(moment: u64) -> u64 {
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    moment.saturating_sub(now)
}

/// One entry of `errors`: a text, or an object with `message` or with `field` and `code`.
fn detail(error: &Value) -> String {
    let text = |name: &str| error.get(name).and_then(Value::as_str);
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

#[cfg(test)]
mod tests;
