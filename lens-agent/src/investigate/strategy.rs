//! How an investigation runs.

use serde::{Deserialize, Serialize};

/// How an investigation runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// By code at once; where a provider is configured, by a model too.
    #[default]
    Auto,
    /// By code only.
    Offline,
    /// By code at once, and by a model; an error without a provider.
    AgentLoop,
}
