//! The strategy that asks a model: a coordinator that invokes operators, one a skill, each with
//! typed tools. What they conclude is checked by code like everything else; what does not hold is
//! struck out, and when the model or its provider fails, the offline insight stands.

mod callbacks;
mod conclusion;
mod coordinator;
mod notification;
mod operator;
mod purse;
mod telling;
mod tools;
mod turns;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use self::{
    conclusion::Conclusion,
    coordinator::investigate,
    notification::{Notification, Severity},
    purse::Purse,
    telling::insight,
};
use super::{category::Category, scene::Scene};
use crate::{
    base::clock::Clock,
    llm::{Model, ModelError, Tokens, budget::Refused},
    skills::Skill,
    supervise::Supervisor,
};

/// The name of this strategy.
pub const NAME: &str = "agent-loop";

/// What an investigation has to work with.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The incident.
    pub scene: Arc<Scene>,
    /// Who is asked.
    pub model: Arc<dyn Model>,
    /// What it may take.
    pub purse: Arc<Purse>,
    /// The skills that operators have.
    pub skills: &'static [&'static dyn Skill],
    /// Where operators run, each a child of its own.
    pub supervisor: Supervisor,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Ends everything.
    pub cancel: CancellationToken,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What holds of the model's conclusion; `None` if it came to none.
    pub conclusion: Option<Conclusion>,
    /// What the operators noticed.
    pub notifications: Vec<Notification>,
    /// What it took.
    pub tokens: Tokens,
    /// What it cost, where prices are configured.
    pub cost_usd: f64,
    /// Who answered.
    pub provider: Option<String>,
    /// With which model.
    pub model: Option<String>,
}

/// Why there is no conclusion.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The provider, or its answer.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A limit.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It talked and talked.
    #[error("the model came to no end")]
    NoEnd,
    /// Whoever asked has gone.
    #[error("cancelled")]
    Cancelled,
}

/// Categories as a prompt lists them.
fn categories() -> String {
    let line = |c: &Category| format!("{}: {}", c.as_str(), c.meaning().trim());
    Category::ALL
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests;
