//! Who serves a model: asked over the network, only where a provider is configured, and never
//! with more than what [`outbound`] let through.
//!
//! ```text
//! Request -> Models -> Provider -> tool_mode -> outbound -> wire -> provider
//!              |          |                      caps, fence, redaction, send log
//!              |          '- retries, deadline, cancellation
//!              '- the next provider when one fails
//! Budget: whether an investigation may ask at all
//! ```
//!
//! What the rest of the agent sees is [`Model`]; the crate that knows the wire formats is named in
//! `wire` alone. Whether a reply asks for tools is decided by its calls, never by the provider's
//! stop reason, which some leave out and others get wrong.

mod action;
pub mod budget;
pub mod config;
mod error;
mod message;
mod models;
pub mod outbound;
mod provider;
mod retry;
mod wire;

use std::{fmt::Debug, pin::Pin};

use tokio_util::sync::CancellationToken;

pub use config::{ConfigError, ProviderConfig};
pub use error::ModelError;
pub use message::{Message, Reply, Request, Tokens, ToolCall, ToolSpec};
pub use models::Models;

/// A reply under way. Dropping it ends the request.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Reply, ModelError>> + Send + 'a>>;

/// Something that answers a conversation.
pub trait Model: Debug + Send + Sync {
    /// Asks for the next turn. Ends at the latest after [`Request::within`], and at once with
    /// [`ModelError::Cancelled`] when `cancel` is.
    fn ask<'a>(&'a self, request: &'a Request, cancel: CancellationToken) -> Asking<'a>;
}

#[cfg(test)]
mod tests;
