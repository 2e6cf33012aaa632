//! What is asked and what is answered, whoever serves the model.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::outbound::Fence;

/// One turn asked of a model: the whole conversation so far.
#[derive(Clone, Debug)]
pub struct Request {
    /// The incident on whose behalf it is asked; stands in the send log, and is not sent.
    pub incident: Option<String>,
    /// What the model is, and what it is to do. Our own words.
    pub system: String,
    /// The conversation, oldest first; it begins with [`Message::User`].
    pub messages: Vec<Message>,
    /// What the model may call.
    pub tools: Vec<ToolSpec>,
    /// The longest answer wanted; the provider's own `max_output_tokens` where that is less.
    pub max_output_tokens: u32,
    /// The time for this turn, over all attempts and providers.
    pub within: Duration,
    /// Marks what was not written by us. One for a conversation, so that its beginning stays the
    /// same and the provider can cache it.
    pub fence: Fence,
}

impl Request {
    /// A conversation that has not begun, with a fence of its own.
    pub fn new(system: impl Into<String>) -> Self {
        Self {
            incident: None,
            system: system.into(),
            messages: Vec::new(),
            tools: Vec::new(),
            max_output_tokens: 4096,
            within: Duration::from_mins(1),
            fence: Fence::draw(),
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    /// Ours. What it quotes from the host is wrapped by [`Fence::wrap`].
    User {
        /// The text.
        text: String,
    },
    /// The model's.
    Assistant {
        /// What it said, if anything.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// What it asked for. Each call is answered by one [`Message::ToolResult`].
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        calls: Vec<ToolCall>,
    },
    /// What came of a call. Fenced on its way out, whole: it is the host's, not ours.
    ToolResult {
        /// The call's id.
        call: String,
        /// The tool's name.
        name: String,
        /// JSON or text.
        content: String,
    },
}

impl Message {
    /// Our own words.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User { text: text.into() }
    }

    /// The answer to `call`.
    pub fn result(call: &ToolCall, content: impl Into<String>) -> Self {
        Self::ToolResult {
            call: call.id.clone(),
            name: call.name.clone(),
            content: content.into(),
        }
    }
}

/// A tool that is offered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolSpec {
    /// Letters, digits, `_` and `-`; unique in a request.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// The JSON schema of its arguments: an object.
    pub schema: Value,
}

/// A tool that the model wants called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique in a conversation.
    pub id: String,
    /// The tool; not yet known to exist.
    pub name: String,
    /// Its arguments; not yet checked against the schema.
    pub arguments: Value,
    /// What the provider wants back unchanged with the call; opaque.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub signatures: Vec<String>,
}

/// Tokens, as the provider counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Read by the model, `cached` included.
    pub input: u64,
    /// Of `input`, what the provider had in its cache.
    pub cached: u64,
    /// Written by the model, reasoning included.
    pub output: u64,
}

impl Tokens {
    /// Input and output.
    pub fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

impl std::ops::AddAssign for Tokens {
    fn add_assign(&mut self, more: Self) {
        self.input = self.input.saturating_add(more.input);
        self.cached = self.cached.saturating_add(more.cached);
        self.output = self.output.saturating_add(more.output);
    }
}

/// A model's turn: a text, calls, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// What it said.
    pub text: Option<String>,
    /// What it wants called; empty when it is done.
    pub calls: Vec<ToolCall>,
    /// What the turn took.
    pub tokens: Tokens,
    /// What the turn cost in US dollars, if the provider's prices are configured.
    pub cost_usd: Option<f64>,
    /// The configured name of the provider that answered.
    pub provider: Arc<str>,
    /// The model that answered.
    pub model: Arc<str>,
}

impl Reply {
    /// The reply as the conversation's next message.
    pub fn message(&self) -> Message {
        Message::Assistant {
            text: self.text.clone(),
            calls: self.calls.clone(),
        }
    }
}
