//! Turns of a conversation: ask, carry out the calls, give the results back, until a tool ends it.

use std::{future::Future, time::Duration};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{Failure, Purse};
use crate::llm::{Message, Model, ModelError, Reply, Request, ToolCall, ToolSpec};

/// One reply may take this long, whatever is left for the investigation.
const REPLY: Duration = Duration::from_mins(1);
/// Replies in a row that cannot be understood before it is given up.
const REPAIRS: u32 = 2;
/// Turns of one conversation, whatever the budget allows.
const TURNS: u32 = 25;

/// What a call came to.
#[derive(Debug)]
pub(super) enum Done<T> {
    /// Goes on; this is the result.
    Result(String),
    /// Ends the conversation.
    End(T),
}

/// The tools of one conversation.
pub(super) trait Toolbox {
    /// What ends it.
    type End;
    /// The tools on offer.
    fn specs(&self) -> Vec<ToolSpec>;
    /// Carries out a call. A call that makes no sense gets a result that says so.
    fn call(&mut self, call: &ToolCall) -> impl Future<Output = Done<Self::End>> + Send;
}

/// Who answered last.
#[derive(Clone, Debug, Default)]
pub(super) struct Answered {
    pub(super) provider: Option<String>,
    pub(super) model: Option<String>,
}

/// Talks until a tool ends the conversation.
pub(super) async fn converse<T: Toolbox + Send>(
    model: &dyn Model,
    purse: &Purse,
    cancel: &CancellationToken,
    mut request: Request,
    tools: &mut T,
    answered: &mut Answered,
) -> Result<T::End, Failure> {
    request.tools = tools.specs();
    let mut repairs = 0;
    for _ in 0..TURNS {
        request.within = purse.turn()?.min(REPLY);
        let reply: Reply = match model.ask(&request, cancel.clone()).await {
            Ok(reply) => reply,
            Err(ModelError::Cancelled) => return Err(Failure::Cancelled),
            Err(error) => match error.repair() {
                Some(what) if repairs < REPAIRS => {
                    repairs += 1;
                    request.messages.push(Message::user(what));
                    continue;
                }
                _ => return Err(error.into()),
            },
        };
        purse.took(&reply);
        answered.provider = Some(reply.provider.to_string());
        answered.model = Some(reply.model.to_string());
        request.messages.push(reply.message());
        if reply.calls.is_empty() {
            if repairs >= REPAIRS {
                return Err(Failure::NoEnd);
            }
            repairs += 1;
            request.messages.push(Message::user(
                "Use one of the tools; `done` ends your work.",
            ));
            continue;
        }
        repairs = 0;
        for call in &reply.calls {
            match tools.call(call).await {
                Done::Result(text) => request.messages.push(Message::result(call, text)),
                Done::End(end) => return Ok(end),
            }
        }
    }
    Err(Failure::NoEnd)
}

/// The arguments of `call`, or what is wrong with them, with the path to it.
pub(super) fn arguments<T: DeserializeOwned>(call: &ToolCall) -> Result<T, String> {
    serde_path_to_error::deserialize(&call.arguments).map_err(|why| {
        format!(
            "The arguments of {} are wrong at `{}`: {}",
            call.name,
            why.path(),
            why.inner()
        )
    })
}
