//! What an investigation says.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{category::Category, claim::Claim};
use crate::base::quality::Quality;

/// Whether a cause was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Yes.
    Cause,
    /// Nothing is wrong.
    NothingWrong,
    /// What was seen does not bear a cause.
    Inconclusive,
}

impl Verdict {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cause => "cause",
            Self::NothingWrong => "nothing_wrong",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// A cgroup, and who in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Its path.
    pub cgroup: Arc<str>,
    /// The process that stands out in it.
    pub comm: Option<String>,
    /// Its pid.
    pub pid: Option<u32>,
    /// The container's id, where the path tells.
    pub container: Option<String>,
    /// The pod's uid, where the path tells.
    pub pod: Option<String>,
    /// The systemd unit, where the path tells.
    pub unit: Option<String>,
}

/// How the incident's series belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Correlation {
    /// They happened at once.
    Temporal,
    /// One caused the other.
    Causal,
    /// They are signs of the same.
    Symptomatic,
}

/// What became of a hypothesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its claims hold.
    Supported,
    /// One of its claims does not.
    Rejected,
    /// Not decided.
    Open,
}

/// An explanation that was considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hypothesis {
    /// What it says.
    pub text: String,
    /// What became of it.
    pub status: Status,
    /// Why.
    pub why: String,
}

/// Tokens that a model took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Read.
    pub input: u64,
    /// Read from the provider's cache.
    pub cached: u64,
    /// Written.
    pub output: u64,
}

/// An answer; it never changes. A later one supersedes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Insight {
    /// Unique for ever.
    pub id: Arc<str>,
    /// Its incident.
    pub incident: Arc<str>,
    /// The earlier insight that it replaces.
    pub supersedes: Option<Arc<str>>,
    /// When the incident was opened.
    pub opened_at: Timestamp,
    /// When this was said.
    pub created_at: Timestamp,
    /// Whether a cause was found.
    pub verdict: Verdict,
    /// Which.
    pub category: Category,
    /// Two sentences for the one who is on call.
    pub summary: String,
    /// Whose behaviour or limit must change.
    pub culprit: Option<Actor>,
    /// Who was seen to suffer.
    pub victims: Vec<Actor>,
    /// How the series belong together.
    pub correlation: Option<Correlation>,
    /// What was checked and holds.
    pub claims: Vec<Claim>,
    /// What was considered.
    pub hypotheses: Vec<Hypothesis>,
    /// What to do.
    pub next_steps: Vec<String>,
    /// 0 to 1, computed, see `evidence`.
    pub confidence: f64,
    /// What was not seen.
    pub quality: Quality,
    /// Who worked it out.
    pub strategy: String,
    /// Who served the model, if one was asked.
    pub provider: Option<String>,
    /// The model, if one was asked.
    pub model: Option<String>,
    /// What it took.
    pub tokens: Tokens,
    /// What it cost.
    pub cost_usd: f64,
    /// How long it took.
    pub duration_ms: u64,
}
