//! What the agent does when it is asked to: hands on to the stages that can.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::TrySendError;

use super::{Attacher, AttacherError};
use crate::{
    api::{self, Asked, Refused, Tracing},
    config::Span,
    investigate::Strategy,
    probes::TraceRequest,
};

/// Investigations that may wait for the next reading.
pub(super) const QUEUE: usize = 4;
/// The longest trace by the running agent.
const TRACE: Duration = Duration::from_mins(5);

/// Who can do what.
#[derive(Debug)]
pub(super) struct OnDemand {
    /// Names of the providers that are asked; empty if none is.
    pub(super) providers: Vec<String>,
    /// To the judge.
    pub(super) asks: crossbeam_channel::Sender<Asked>,
    /// Traces, where it could be started.
    pub(super) attacher: Option<Arc<Attacher>>,
}

impl api::OnDemand for OnDemand {
    fn investigate(&self, asked: Asked) -> Result<(), Refused> {
        let request = &asked.request;
        if let Some(name) = &request.provider {
            if request.strategy == Strategy::Offline {
                let why = "strategy offline asks no provider; leave one of them out";
                return Err(Refused::Usage(why.to_owned()));
            }
            if !self.providers.iter().any(|known| **known == **name) {
                let known = self.providers.join(", ");
                return Err(Refused::Usage(format!(
                    "this agent asks no provider `{name}`; it asks: {}",
                    if known.is_empty() { "none" } else { &known }
                )));
            }
        }
        if request.strategy == Strategy::AgentLoop && self.providers.is_empty() {
            let why = "this agent asks no model: no [[provider]] is configured, or its strategy is offline";
            return Err(Refused::Usage(why.to_owned()));
        }
        self.asks.try_send(asked).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                Refused::Busy(format!("{QUEUE} investigations wait already; ask later"))
            }
            TrySendError::Disconnected(_) => {
                Refused::Cannot("the stage that investigates has ended".to_owned())
            }
        })
    }

    fn trace(&self, request: TraceRequest) -> Tracing<'_> {
        Box::pin(async move {
            if request.span > TRACE {
                let longest = Span(TRACE);
                let why = format!("the agent traces for at most {longest}");
                return Err(Refused::Usage(why));
            }
            let Some(attacher) = &self.attacher else {
                let why = "the child that attaches on demand could not be started";
                return Err(Refused::Cannot(why.to_owned()));
            };
            attacher.trace_until_dropped(request).await.map_err(|why| {
                let told = why.to_string();
                match why {
                    AttacherError::Refused(super::Refused { usage: true, .. }) => {
                        Refused::Usage(told)
                    }
                    AttacherError::Busy => Refused::Busy(told),
                    AttacherError::Refused(_) | AttacherError::Gone(_) => Refused::Cannot(told),
                }
            })
        })
    }
}
