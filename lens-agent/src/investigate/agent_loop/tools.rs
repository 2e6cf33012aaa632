//! The tools' arguments, as types: their schemas are what the model is shown.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Deserialize;
use serde_json::Value;

use super::notification::Severity;
use crate::llm::ToolSpec;

/// A tool of this name whose arguments are a `T`.
pub(super) fn spec<T: JsonSchema>(name: &str, description: &str) -> ToolSpec {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let schema = Value::from(schema);
    ToolSpec {
        name: name.to_owned(),
        description: description.to_owned(),
        schema,
    }
}

/// Write down a thought; nobody else reads it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Think {
    /// The thought.
    #[expect(dead_code, reason = "for the model, which thinks better aloud")]
    pub(super) thought: String,
}

/// No arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Which snapshot to take.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeSnapshot {
    /// `host`, or a cgroup path that begins with `/`.
    pub(super) scope: String,
}

/// Which snapshots to read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GetSnapshots {
    /// `host`, or a cgroup path that begins with `/`.
    pub(super) scope: String,
    /// How many of the newest, at most 10.
    pub(super) limit: usize,
}

/// Run a script.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Execute {
    /// Luau: an expression, or statements with a `return`.
    pub(super) script: String,
}

/// Tell the coordinator.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SendNotification {
    /// How bad it is.
    pub(super) severity: Severity,
    /// Fact: under which circumstances.
    pub(super) context: String,
    /// Fact: what was seen, with numbers from snapshots.
    pub(super) observation: String,
    /// Speculation: what may be behind it.
    #[serde(default)]
    pub(super) hypothesis: Option<String>,
    /// Ids of the snapshots in which it was seen; at least one.
    pub(super) snapshot_ids: Vec<String>,
}

/// Ask operators to look.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvokeOperators {
    /// Skill ids; their operators work in parallel.
    pub(super) skills: Vec<String>,
    /// What they should find out.
    pub(super) question: String,
}

/// What the coordinator concludes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProduceInsight {
    /// Whether a cause was found.
    pub(super) verdict: Verdict,
    /// One of the categories; `none` unless the verdict is `cause`.
    pub(super) category: String,
    /// The cgroup whose behaviour or limit must change; absent when nobody is to blame.
    #[serde(default)]
    pub(super) culprit: Option<String>,
    /// Cgroups that were seen to suffer.
    #[serde(default)]
    pub(super) victims: Vec<String>,
    /// Statements for code to check. `cause` needs a change, and a pair, share, limit or order.
    pub(super) claims: Vec<ClaimArguments>,
    /// Two sentences for the engineer on call. Numbers and cgroups only from the claims.
    pub(super) summary: String,
    /// Explanations that were considered.
    #[serde(default)]
    pub(super) hypotheses: Vec<HypothesisArguments>,
}

/// Whether a cause was found.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Yes.
    Cause,
    /// Nothing is wrong.
    NothingWrong,
    /// What was seen does not bear a cause.
    Inconclusive,
}

/// An explanation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HypothesisArguments {
    /// What it says.
    pub(super) text: String,
    /// What became of it.
    pub(super) status: HypothesisStatus,
    /// Why.
    pub(super) why: String,
}

/// What became of an explanation.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum HypothesisStatus {
    /// It is the conclusion.
    Supported,
    /// It does not hold.
    Rejected,
    /// Not decided.
    Open,
}

/// A statement for code to check.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum ClaimArguments {
    /// A metric left what is normal for it at the onset.
    Change {
        /// Where.
        scope: String,
        /// What.
        metric: String,
        /// Which way.
        direction: Direction,
    },
    /// An aggressor caused at least a part of what a victim waits.
    Pair {
        /// Who waits.
        victim: String,
        /// For what.
        metric: String,
        /// Who caused it: a cgroup path, `self` or `kernel`.
        by: String,
        /// The least part, 0 to 1.
        least: f64,
    },
    /// A cgroup makes at least a part of what the host has of something.
    Share {
        /// Whose.
        scope: String,
        /// Of what.
        metric: String,
        /// The least part, 0 to 1.
        least: f64,
    },
    /// A metric has reached a part of its limit, which is another metric.
    Limit {
        /// Whose.
        scope: String,
        /// What.
        metric: String,
        /// The metric that tells the limit.
        limit: String,
        /// The least part, 0 to 1.
        least: f64,
    },
    /// One series left its range no later than another.
    Order {
        /// Scope of the earlier.
        first_scope: String,
        /// Metric of the earlier.
        first_metric: String,
        /// Scope of the later.
        then_scope: String,
        /// Metric of the later.
        then_metric: String,
    },
    /// A metric of one scope is at least so many times that of another.
    Level {
        /// Whose.
        scope: String,
        /// What.
        metric: String,
        /// The other scope.
        other: String,
        /// How many times.
        factor: f64,
    },
    /// A metric is within what is normal for it.
    Absence {
        /// Whose.
        scope: String,
        /// What.
        metric: String,
    },
}

/// Which way a metric went.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    /// Up.
    Up,
    /// Down.
    Down,
}
