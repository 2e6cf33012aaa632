//! The wire formats, by the crate that knows them. Nothing else in the agent names it.

use std::sync::Arc;

use genai::{
    ModelIden, ServiceTarget,
    chat::{
        self, CacheControl, ChatMessage, ChatOptions, ChatRequest, ChatResponse, ContentPart,
        JsonSpec, MessageContent, ReasoningEffort, ToolResponse,
    },
    resolver::{AuthData, Endpoint},
    webc,
};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::{
    Message, ModelError, Tokens, ToolCall,
    config::{ConfigError, Kind, ProviderConfig},
    outbound::{Cleared, Payload},
    retry,
};
use crate::base::text::clean;

/// One model of one provider.
#[derive(Debug)]
pub(super) struct Wire {
    client: genai::Client,
    kind: Kind,
    endpoint: Endpoint,
    key: SecretString,
    provider: Arc<str>,
}

/// An answer as it came.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: Option<String>,
    pub(super) calls: Vec<ToolCall>,
    pub(super) tokens: Tokens,
    /// Whether the provider says that it ended at the token limit. For words in an error only.
    pub(super) cut_off: bool,
}

/// The one client that all providers share. Makes no connection.
pub(super) fn client(providers: &[ProviderConfig]) -> Result<genai::Client, ConfigError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("lens/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(std::time::Duration::from_secs(10))
        // A redirect would carry what is sent to a host that nobody configured.
        .redirect(reqwest::redirect::Policy::none());
    let mut urls = providers.iter().map(ProviderConfig::url);
    if urls.all(|url| url.is_ok_and(|url| url.scheme() == "http")) {
        // Without it the builder fails on a host that has no CA certificates.
        builder = builder.tls_certs_only([]);
    }
    let http = builder.build().map_err(ConfigError::Certificates)?;
    genai::Client::builder()
        .with_reqwest(http)
        .build()
        .map_err(|why| ConfigError::Client(why.to_string()))
}

impl Wire {
    pub(super) fn new(
        client: genai::Client,
        config: &ProviderConfig,
        key: SecretString,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            client,
            kind: config.kind,
            endpoint: Endpoint::from_owned(config.url()?.as_str()),
            key,
            provider: config.name.as_str().into(),
        })
    }

    /// One attempt. `now` is for dates in the provider's answer.
    pub(super) async fn send(
        &self,
        cleared: Cleared,
        now: Timestamp,
    ) -> Result<Answer, ModelError> {
        let payload = cleared.into_payload();
        let target = ServiceTarget {
            endpoint: self.endpoint.clone(),
            auth: AuthData::Key(self.key.expose_secret().to_owned()),
            model: ModelIden::new(self.kind.adapter(), &*payload.model),
        };
        let options = self.options(&payload);
        let request = self.request(payload);
        match self.client.exec_chat(target, request, Some(&options)).await {
            Ok(response) => Ok(answer(response)),
            Err(error) => Err(self.failure(error, now)),
        }
    }

    fn options(&self, payload: &Payload) -> ChatOptions {
        let mut options = ChatOptions::default()
            .with_max_tokens(payload.max_output_tokens)
            // For what a malformed answer said and took.
            .with_capture_raw_body(true);
        if let Some(schema) = &payload.answer {
            options = options.with_response_format(JsonSpec::new("action", schema.clone()));
        }
        if matches!(
            self.kind,
            Kind::Openai
                | Kind::OpenaiResponses
                | Kind::OpenaiCompatible
                | Kind::Ollama
                | Kind::Openrouter
        ) {
            // A number of tokens is not part of this wire format, so that nothing is sent; but
            // with no effort given, the end of "mistral-medium" would be taken for one.
            options = options.with_reasoning_effort(ReasoningEffort::Budget(0));
        }
        options
    }

    fn request(&self, payload: Payload) -> ChatRequest {
        let mut messages: Vec<ChatMessage> = payload.messages.into_iter().map(message).collect();
        // A conversation with tools goes on, and its beginning is paid for again each turn.
        // Others cache by themselves.
        if self.kind == Kind::Anthropic
            && !payload.tools.is_empty()
            && let Some(last) = messages.pop()
        {
            messages.push(last.with_options(CacheControl::Ephemeral));
        }
        let mut request = ChatRequest::from_messages(messages).with_system(payload.system);
        if !payload.tools.is_empty() {
            request = request.with_tools(payload.tools.into_iter().map(|tool| {
                chat::Tool::new(tool.name)
                    .with_description(tool.description)
                    .with_schema(tool.schema)
            }));
        }
        request
    }

    fn failure(&self, error: genai::Error, now: Timestamp) -> ModelError {
        let provider = Arc::clone(&self.provider);
        let status = error.status().map(|status| status.as_u16());
        let retry_after = error
            .headers()
            .and_then(|headers| retry::after(headers, now));
        if status == Some(429) {
            return ModelError::RateLimited {
                provider,
                retry_after,
            };
        }
        let malformed = |why: String, said: &str, tokens| ModelError::Malformed {
            provider: Arc::clone(&self.provider),
            why: clean(&why),
            said: clean(said),
            tokens,
        };
        match error {
            genai::Error::ChatResponseGeneration {
                response_body,
                cause,
                ..
            } => malformed(cause, &response_body.to_string(), usage(&response_body)),
            genai::Error::WebModelCall { webc_error, .. }
            | genai::Error::WebAdapterCall { webc_error, .. } => match webc_error {
                webc::Error::ResponseFailedInvalidJson { body, cause } => {
                    malformed(cause, &body, Tokens::default())
                }
                webc::Error::ResponseFailedNotJson { content_type, body } => malformed(
                    format!("it is `{content_type}`, not JSON; is `base_url` right?"),
                    &body,
                    Tokens::default(),
                ),
                webc::Error::ResponseFailedStatus { body, .. } => ModelError::Provider {
                    provider,
                    status,
                    why: clean(&said_by_provider(&body)),
                    retry_after,
                },
                other => ModelError::Provider {
                    provider,
                    status,
                    why: clean(&unreachable(&other)),
                    retry_after,
                },
            },
            // The request could not be put into the provider's form.
            other => ModelError::Provider {
                provider,
                status: Some(status.unwrap_or(400)),
                why: clean(&other.to_string()),
                retry_after,
            },
        }
    }
}

fn message(message: Message) -> ChatMessage {
    match message {
        Message::User { text } => ChatMessage::user(text),
        Message::Assistant { text, calls } => {
            let calls = calls.into_iter().map(|call| {
                ContentPart::ToolCall(chat::ToolCall {
                    call_id: call.id,
                    fn_name: call.name,
                    fn_arguments: call.arguments,
                    thought_signatures: Some(call.signatures).filter(|list| !list.is_empty()),
                })
            });
            let text = text.map(ContentPart::Text);
            let parts: Vec<_> = text.into_iter().chain(calls).collect();
            ChatMessage::assistant(MessageContent::from_parts(parts))
        }
        Message::ToolResult {
            call,
            name,
            content,
        } => ToolResponse::new(call, content).with_fn_name(name).into(),
    }
}

fn answer(response: ChatResponse) -> Answer {
    let count = |tokens: Option<i32>| tokens.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let usage = &response.usage;
    let cached = usage.prompt_tokens_details.as_ref();
    let tokens = Tokens {
        input: count(usage.prompt_tokens),
        cached: count(cached.and_then(|details| details.cached_tokens)),
        output: count(usage.completion_tokens),
    };
    let cut_off = response
        .stop_reason
        .as_ref()
        .is_some_and(chat::StopReason::is_max_tokens);
    let text = response.content.joined_texts();
    let calls = response.content.into_tool_calls().into_iter();
    Answer {
        text: text.filter(|text| !text.trim().is_empty()),
        calls: calls
            .map(|call| ToolCall {
                id: call.call_id,
                name: call.fn_name,
                arguments: call.fn_arguments,
                signatures: call.thought_signatures.unwrap_or_default(),
            })
            .collect(),
        tokens,
        cut_off,
    }
}

/// The tokens of an answer that could not be read, in the words of `OpenAI` or Anthropic.
fn usage(body: &Value) -> Tokens {
    let count = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| body["usage"][name].as_u64());
        found.unwrap_or(0)
    };
    Tokens {
        input: count(["prompt_tokens", "input_tokens"]),
        cached: 0,
        output: count(["completion_tokens", "output_tokens"]),
    }
}

/// Nearly all providers put the words for people into `error.message`.
fn said_by_provider(body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let words = json["error"]["message"].as_str().or(json["error"].as_str());
    words.unwrap_or(body).to_owned()
}

/// The innermost cause: the outer ones only say that a request failed, and to which URL.
fn unreachable(error: &webc::Error) -> String {
    let webc::Error::Reqwest(error) = error else {
        return error.to_string();
    };
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    format!("no connection: {cause}")
}
