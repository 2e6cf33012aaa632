//! Several providers as one model: the next is asked when one fails.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Asking, Model, ModelError, Reply, Request,
    config::{self, ConfigError, ProviderConfig},
    outbound::Outbound,
    provider::Provider,
    retry::Policy,
    wire::{self, Wire},
};
use crate::telemetry::Event;

/// What is configured, in its order.
#[derive(Clone, Debug)]
pub struct Models(Vec<Arc<Provider>>);

impl Models {
    /// Checks the providers and reads their keys; `None` when there is none, and then no HTTP
    /// client is made either. Makes no connection. Doubts are
    /// [`ConfigWarning`](Event::ConfigWarning) events.
    pub fn connect(
        providers: &[ProviderConfig],
        outbound: Outbound,
    ) -> Result<Option<Self>, ConfigError> {
        Self::connect_with(providers, outbound, Policy::default())
    }

    pub(super) fn connect_with(
        providers: &[ProviderConfig],
        mut outbound: Outbound,
        retries: Policy,
    ) -> Result<Option<Self>, ConfigError> {
        config::check_all(providers)?;
        if providers.is_empty() {
            return Ok(None);
        }
        for why in providers.iter().flat_map(ProviderConfig::warnings) {
            outbound.telemetry().emit(Event::ConfigWarning {
                key: "provider".to_owned(),
                why,
            });
        }
        let client = wire::client(providers)?;
        let mut wires = Vec::new();
        for config in providers {
            let key = config.key()?;
            outbound.hide(key.clone());
            wires.push(Wire::new(client.clone(), config, key)?);
        }
        let outbound = Arc::new(outbound);
        let mut models = Vec::new();
        for (config, wire) in providers.iter().zip(wires) {
            let outbound = Arc::clone(&outbound);
            models.push(Arc::new(Provider::new(config, wire, outbound, retries)?));
        }
        Ok(Some(Self(models)))
    }

    /// Only the provider of this name, if there is one.
    pub fn only(&self, name: &str) -> Option<Self> {
        let one = self.0.iter().find(|provider| &*provider.name == name)?;
        Some(Self(vec![one.clone()]))
    }

    async fn ask_in_order(
        &self,
        request: &Request,
        cancel: CancellationToken,
    ) -> Result<Reply, ModelError> {
        let ends = Instant::now() + request.within;
        let mut failures = Vec::new();
        for (at, model) in self.0.iter().enumerate() {
            // What is left, in equal parts: one that hangs leaves time to those behind it.
            let behind = u32::try_from(self.0.len() - at).unwrap_or(u32::MAX);
            let request = Request {
                within: (ends - Instant::now()) / behind,
                ..request.clone()
            };
            match model.ask(&request, cancel.clone()).await {
                Err(error) if error.is_of_provider() => failures.push(error),
                // An answer, one that the model can mend, or what no provider would do better.
                done => return done,
            }
        }
        match failures.pop() {
            Some(only) if failures.is_empty() => Err(only),
            last => {
                failures.extend(last);
                Err(ModelError::AllFailed(failures))
            }
        }
    }
}

impl Model for Models {
    fn ask<'a>(&'a self, request: &'a Request, cancel: CancellationToken) -> Asking<'a> {
        Box::pin(self.ask_in_order(request, cancel))
    }
}
