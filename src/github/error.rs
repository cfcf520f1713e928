//! What GitHub did not do, and what mends that.

use std::error::Error;
use std::time::Duration;

use crate::model::failure::Hint;

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
        /// What the token has to be allowed.
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

    /// Whether the same may be done some time later, with nothing mended here.
    pub fn may_pass(&self) -> bool {
        self.is_ambiguous() || matches!(self, Self::RateLimited { .. })
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
                "give the job `permissions: {permission}` (a pull request from a fork never gets more than `read`)"
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
