//! What the agent does only when it is asked to.

use std::{fmt::Debug, pin::Pin, sync::Arc};

use super::Asked;
use crate::probes::{FunctionReading, TraceRequest};

/// Why it does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request is at fault.
    #[error("{0}")]
    Usage(String),
    /// Later perhaps.
    #[error("{0}")]
    Busy(String),
    /// Not by this agent, or not on this host.
    #[error("{0}")]
    Cannot(String),
}

/// A trace under way. Dropping it ends the trace.
pub type Tracing<'a> =
    Pin<Box<dyn Future<Output = Result<Arc<FunctionReading>, Refused>> + Send + 'a>>;

/// Who does it.
pub trait OnDemand: Debug + Send + Sync {
    /// Takes an investigation on.
    fn investigate(&self, asked: Asked) -> Result<(), Refused>;
    /// Traces a function.
    fn trace(&self, request: TraceRequest) -> Tracing<'_>;
}
