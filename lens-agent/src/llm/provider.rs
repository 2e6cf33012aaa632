//! One provider: attempts, deadline, cancellation, and what an answer is worth.

use std::sync::Arc;

use backon::Retryable as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Asking, Model, ModelError, Reply, Request, Tokens, action,
    config::{ConfigError, ProviderConfig, ToolMode},
    outbound::{Label, Outbound, Payload},
    retry::Policy,
    wire::{Answer, Wire},
};
use crate::telemetry::{Event, ModelOutcome};

/// A configured provider.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) name: Arc<str>,
    model: Arc<str>,
    config: ProviderConfig,
    wire: Wire,
    outbound: Arc<Outbound>,
    retries: Policy,
}

impl Provider {
    pub(super) fn new(
        config: &ProviderConfig,
        wire: Wire,
        outbound: Arc<Outbound>,
        retries: Policy,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            name: config.name.as_str().into(),
            model: config.model.as_str().into(),
            config: config.clone(),
            wire,
            outbound,
            retries,
        })
    }

    async fn ask_until(&self, request: &Request, ends: Instant) -> Result<Reply, ModelError> {
        let payload = action::payload(
            request,
            self.config.tool_mode,
            Arc::clone(&self.model),
            self.config.max_output_tokens,
        );
        (|| self.attempt(request, &payload, ends))
            .retry(self.retries.backoff())
            .sleep(tokio::time::sleep)
            .when(ModelError::may_pass)
            .adjust(|error, pause| {
                let pause = pause?.max(error.retry_after().unwrap_or_default());
                // What begins after the deadline need not be waited for.
                (Instant::now() + pause < ends).then_some(pause)
            })
            .await
    }

    async fn attempt(
        &self,
        request: &Request,
        payload: &Payload,
        ends: Instant,
    ) -> Result<Reply, ModelError> {
        let label = Label {
            provider: &self.name,
            incident: request.incident.as_deref(),
        };
        let cleared = self.outbound.pass(payload, &request.fence, label)?;
        let within = self.config.timeout.min(ends - Instant::now());
        let sending = self.wire.send(cleared, self.outbound.clock().now().wall);
        let reply = match tokio::time::timeout(within, sending).await {
            Ok(answered) => answered.and_then(|answer| self.read(answer, request, payload)),
            Err(_) => Err(ModelError::Timeout { after: within }),
        };
        let (tokens, outcome) = match &reply {
            Ok(reply) => (reply.tokens, ModelOutcome::Ok),
            Err(error) => (error.tokens(), ModelOutcome::Error),
        };
        self.outbound.telemetry().emit(Event::ModelCall {
            provider: self.name.to_string(),
            model: self.model.to_string(),
            input_tokens: tokens.input,
            output_tokens: tokens.output,
            outcome,
        });
        reply
    }

    fn read(
        &self,
        answer: Answer,
        request: &Request,
        payload: &Payload,
    ) -> Result<Reply, ModelError> {
        let Answer {
            mut text,
            mut calls,
            tokens,
            cut_off,
        } = answer;
        if self.config.tool_mode == ToolMode::Schema
            && payload.answer.is_some()
            && let Some(said) = text.take()
        {
            calls = vec![action::call(&said, request, &self.name, tokens)?];
        }
        if text.is_none() && calls.is_empty() {
            let why = if cut_off {
                "it ended at the token limit before it said anything; raise `max_output_tokens`"
            } else {
                "it is empty"
            };
            return Err(ModelError::Malformed {
                provider: Arc::clone(&self.name),
                why: why.to_owned(),
                said: String::new(),
                tokens,
            });
        }
        Ok(Reply {
            text,
            calls,
            tokens,
            cost_usd: self.cost(tokens),
            provider: Arc::clone(&self.name),
            model: Arc::clone(&self.model),
        })
    }

    /// Without the surcharge that some providers take for writing to their cache.
    fn cost(&self, tokens: Tokens) -> Option<f64> {
        let input = self.config.usd_per_million_input?;
        let output = self.config.usd_per_million_output?;
        let cached = self.config.usd_per_million_cached.unwrap_or(input);
        let fresh = tokens.input.saturating_sub(tokens.cached);
        let usd =
            fresh as f64 * input + tokens.cached as f64 * cached + tokens.output as f64 * output;
        Some(usd / 1e6)
    }
}

impl Model for Provider {
    fn ask<'a>(&'a self, request: &'a Request, cancel: CancellationToken) -> Asking<'a> {
        Box::pin(async move {
            let ends = Instant::now() + request.within;
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(ModelError::Cancelled),
                () = tokio::time::sleep_until(ends) => {
                    Err(ModelError::Timeout { after: request.within })
                }
                reply = self.ask_until(request, ends) => reply,
            }
        })
    }
}
