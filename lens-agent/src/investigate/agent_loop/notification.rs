//! What an operator tells: facts, and apart from them, what it makes of them.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::snapshot::SnapshotId;

/// How bad an operator finds it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Somebody suffers, or will.
    Warning,
    /// Somebody suffers badly.
    Critical,
}

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Unique within the investigation.
    pub id: Arc<str>,
    /// The skill whose operator sent it.
    pub operator: Arc<str>,
    /// How bad it is.
    pub severity: Severity,
    /// Fact: under which circumstances.
    pub context: String,
    /// Fact: what was seen.
    pub observation: String,
    /// Speculation: what may be behind it.
    pub hypothesis: Option<String>,
    /// What it was seen in; they exist.
    pub snapshots: Vec<SnapshotId>,
}
