//! The one way out: every payload for a provider passes `Outbound::pass`, and the code that
//! sends takes nothing else.
//!
//! In this order: secrets are taken out, what is too long is cut, marks of a fence that are not
//! the request's own are taken out and results are fenced, then bytes are counted, the event is
//! emitted and the exact text goes to the send log.

mod fence;
mod redact;

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use fence::Fence;

use super::{Message, ModelError, ToolCall, ToolSpec};
use crate::{
    base::clock::Clock,
    telemetry::{Event, Telemetry},
};
use redact::Redactor;

/// What left the host, or was about to: it is recorded before the connection is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// When.
    pub at: Timestamp,
    /// The configured name of the provider.
    pub provider: String,
    /// The model that was asked.
    pub model: String,
    /// The incident on whose behalf, if there was one.
    pub incident: Option<String>,
    /// Every text that was sent, letter by letter, as JSON. On the wire the same texts stand in
    /// the provider's envelope, which adds its own field names; keys are in HTTP headers only.
    pub bytes: String,
}

/// Where [`Sent`] goes, so that people can see it.
pub trait SendLog: std::fmt::Debug + Send + Sync {
    /// Keeps `sent`. Quick, and bounded by whoever implements it.
    fn record(&self, sent: Sent);
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The longest text of one message, tool result or system prompt; the middle of a longer one
    /// is left out.
    pub text: usize,
    /// The longest payload; a longer one isn't sent.
    pub total: usize,
}

impl Default for Caps {
    /// 32 KiB a text, and in all four times the 50,000 tokens of an investigation.
    fn default() -> Self {
        Self {
            text: 32 * 1024,
            total: 200_000,
        }
    }
}

/// The way out, with all that has to happen on it.
#[derive(Debug)]
pub struct Outbound {
    clock: Arc<dyn Clock>,
    telemetry: Telemetry,
    log: Arc<dyn SendLog>,
    caps: Caps,
    redactor: Redactor,
}

/// What is to be sent: a request in the form that its provider understands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Payload {
    pub(super) model: Arc<str>,
    pub(super) max_output_tokens: u32,
    pub(super) system: String,
    pub(super) messages: Vec<Message>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tools: Vec<ToolSpec>,
    /// The JSON schema that the answer has to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<Value>,
}

/// A payload that may leave, once: only [`Outbound::pass`] makes one.
#[derive(Debug)]
pub(super) struct Cleared(Payload);

impl Cleared {
    pub(super) fn into_payload(self) -> Payload {
        self.0
    }
}

/// On whose behalf and to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'a> {
    pub(super) provider: &'a str,
    pub(super) incident: Option<&'a str>,
}

impl Outbound {
    /// With default [`Caps`].
    pub fn new(clock: Arc<dyn Clock>, telemetry: Telemetry, log: Arc<dyn SendLog>) -> Self {
        Self {
            clock,
            telemetry,
            log,
            caps: Caps::default(),
            redactor: Redactor::default(),
        }
    }

    /// With other sizes.
    #[must_use]
    pub fn caps(self, caps: Caps) -> Self {
        Self { caps, ..self }
    }

    /// Adds a secret that never leaves in a text, whatever it looks like.
    pub(super) fn hide(&mut self, secret: SecretString) {
        self.redactor.hide(secret);
    }

    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Makes `payload` fit to leave, and records it as sent.
    pub(super) fn pass(
        &self,
        payload: &Payload,
        fence: &Fence,
        label: Label<'_>,
    ) -> Result<Cleared, ModelError> {
        let Payload {
            model,
            max_output_tokens,
            system,
            messages,
            tools,
            answer,
        } = payload;
        let system = self.plain(system);
        let clear = Payload {
            model: Arc::clone(model),
            max_output_tokens: *max_output_tokens,
            system: format!("{system}\n\n{}", fence.notice()),
            messages: messages.iter().map(|m| self.message(m, fence)).collect(),
            tools: tools.iter().map(|tool| self.tool(tool)).collect(),
            answer: answer.as_ref().map(|schema| self.value(schema)),
        };
        let bytes = serde_json::to_string(&clear).map_err(|why| ModelError::Provider {
            provider: label.provider.into(),
            status: Some(400),
            why: format!("the request is no JSON, and was not sent: {why}"),
            retry_after: None,
        })?;
        if bytes.len() > self.caps.total {
            return Err(ModelError::TooLarge {
                bytes: bytes.len(),
                limit: self.caps.total,
            });
        }
        self.telemetry.emit(Event::Sent {
            bytes: bytes.len() as u64,
        });
        self.log.record(Sent {
            at: self.clock.now().wall,
            provider: label.provider.to_owned(),
            model: model.to_string(),
            incident: label.incident.map(str::to_owned),
            bytes,
        });
        Ok(Cleared(clear))
    }

    fn message(&self, message: &Message, fence: &Fence) -> Message {
        match message {
            Message::User { text } => {
                let pieces = self.cut(self.redactor.text(text));
                let pieces = pieces.map(|piece| fence.mend(&fence.defuse_others(&piece)));
                Message::User {
                    text: pieces.joined(),
                }
            }
            // What the model wrote may quote a mark, but never sets one.
            Message::Assistant { text, calls } => Message::Assistant {
                text: text.as_deref().map(|text| self.plain(text)),
                calls: calls.iter().map(|call| self.call(call)).collect(),
            },
            Message::ToolResult {
                call,
                name,
                content,
            } => Message::ToolResult {
                call: self.plain(call),
                name: self.plain(name),
                content: fence.wrap(&self.cut(self.redactor.text(content)).joined()),
            },
        }
    }

    fn call(&self, call: &ToolCall) -> ToolCall {
        ToolCall {
            // Made up by the model or its server. Changed alike in the call and in its result.
            id: self.plain(&call.id),
            name: self.plain(&call.name),
            arguments: self.value(&call.arguments),
            // The provider's own, and checked by it to the letter.
            signatures: call.signatures.clone(),
        }
    }

    fn tool(&self, tool: &ToolSpec) -> ToolSpec {
        ToolSpec {
            name: self.plain(&tool.name),
            description: self.plain(&tool.description),
            schema: self.value(&tool.schema),
        }
    }

    /// A text in which no mark has a place.
    fn plain(&self, text: &str) -> String {
        fence::defuse_all(&self.cut(self.redactor.text(text)).joined()).into_owned()
    }

    /// Every text in `value`, without secrets, marks and excess.
    fn value(&self, value: &Value) -> Value {
        fn walk(outbound: &Outbound, value: Value) -> Value {
            match value {
                Value::String(text) => Value::String(outbound.plain(&text)),
                Value::Array(items) => items.into_iter().map(|item| walk(outbound, item)).collect(),
                Value::Object(fields) => {
                    let field = |(name, value): (String, Value)| {
                        (outbound.plain(&name), walk(outbound, value))
                    };
                    Value::Object(fields.into_iter().map(field).collect())
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => value,
            }
        }
        walk(self, self.redactor.value(value))
    }

    /// After redaction, so that no secret is cut in two halves that no rule knows.
    fn cut(&self, text: String) -> Pieces {
        if text.len() <= self.caps.text {
            return Pieces::Whole(text);
        }
        // The beginning says what a text is, the end how it came out.
        let head = text.floor_char_boundary(self.caps.text / 3 * 2);
        let tail = text.ceil_char_boundary(text.len() - self.caps.text / 3);
        Pieces::Cut {
            head: text[..head].to_owned(),
            left_out: tail - head,
            tail: text[tail..].to_owned(),
        }
    }
}

/// A text, or what is left of one that was too long.
enum Pieces {
    Whole(String),
    Cut {
        head: String,
        left_out: usize,
        tail: String,
    },
}

impl Pieces {
    fn map(self, change: impl Fn(String) -> String) -> Self {
        match self {
            Self::Whole(text) => Self::Whole(change(text)),
            Self::Cut {
                head,
                left_out,
                tail,
            } => Self::Cut {
                head: change(head),
                left_out,
                tail: change(tail),
            },
        }
    }

    fn joined(self) -> String {
        match self {
            Self::Whole(text) => text,
            Self::Cut {
                head,
                left_out,
                tail,
            } => format!("{head}\n[{left_out} bytes left out]\n{tail}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
