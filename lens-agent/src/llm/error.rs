//! Why a model did not answer.

use std::{sync::Arc, time::Duration};

use super::Tokens;

/// A failed request. Texts of a provider are cleaned and shortened.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The provider wants to be asked less often.
    #[error("provider `{provider}` limits the rate of requests{}", again_in(*.retry_after))]
    RateLimited {
        /// Its configured name.
        provider: Arc<str>,
        /// When it wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// The provider refused or failed, or cannot be reached.
    #[error("provider `{provider}` failed{}: {why}", with_status(*.status))]
    Provider {
        /// Its configured name.
        provider: Arc<str>,
        /// The HTTP status, if there was a response.
        status: Option<u16>,
        /// What it said, or why it cannot be reached.
        why: String,
        /// When it wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// The provider answered with what cannot be used; [`Self::repair`] helps the model mend it.
    #[error("provider `{provider}` answered with what cannot be read: {why}")]
    Malformed {
        /// Its configured name.
        provider: Arc<str>,
        /// What is wrong with the answer.
        why: String,
        /// The answer, shortened; empty when it cannot be told.
        said: String,
        /// What the answer took, as far as it is known.
        tokens: Tokens,
    },
    /// No answer in time.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The time that was allowed.
        after: Duration,
    },
    /// Whoever asked no longer wants to know.
    #[error("cancelled")]
    Cancelled,
    /// The conversation is longer than what may leave in one request; nothing was sent.
    #[error("the request has {bytes} bytes, and at most {limit} may be sent; shorten it")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// All providers were asked, and all failed.
    #[error("every provider failed: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllFailed(Vec<ModelError>),
}

impl ModelError {
    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Timeout { .. } => true,
            // 408 and 425 say so; 529 is Anthropic's "overloaded". Without a status there was no
            // connection, or it broke.
            Self::Provider { status, .. } => {
                status.is_none_or(|status| status >= 500 || matches!(status, 408 | 425))
            }
            Self::Malformed { .. }
            | Self::Cancelled
            | Self::TooLarge { .. }
            | Self::AllFailed(_) => false,
        }
    }

    /// Whether another provider may answer what this one did not.
    pub fn is_of_provider(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::Provider { .. } | Self::Timeout { .. }
        )
    }

    /// When the provider wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Provider { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    /// What the failed answer took, as far as it is known: it is paid for all the same.
    pub fn tokens(&self) -> Tokens {
        match self {
            Self::Malformed { tokens, .. } => *tokens,
            _ => Tokens::default(),
        }
    }

    /// What to tell the model so that it mends its answer.
    pub fn repair(&self) -> Option<String> {
        let Self::Malformed { why, .. } = self else {
            return None;
        };
        Some(format!(
            "Your last answer could not be used: {why}. Answer again, in the form asked for."
        ))
    }
}

fn again_in(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!(", and wants to be asked again in {after:?}")
    })
}

fn with_status(status: Option<u16>) -> String {
    status.map_or_else(String::new, |status| format!(" with status {status}"))
}
