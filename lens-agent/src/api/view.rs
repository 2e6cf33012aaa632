//! Shapes of what the API shows beside incidents, insights and snapshots.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    base::{
        metric::Metric,
        quality::{Missing, Quality},
    },
    probes::Fill,
    skills::OwnCost,
};

/// How the agent is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether probes are attached and the first snapshot is taken.
    pub ready: bool,
    /// Why it is not.
    pub waiting_for: Option<String>,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// Time between two readings.
    pub interval_ms: u64,
    /// When the newest reading was judged.
    pub seen_at: Option<Timestamp>,
    /// Ticks so far.
    pub ticks: u64,
    /// Series that are judged.
    pub series: usize,
    /// Series of the last tick that found no room.
    pub series_refused: u64,
    /// The part of the series that trust their own baselines, 0 to 1.
    pub learned: f64,
    /// Cgroups watched.
    pub targets: usize,
    /// Ticks and bytes of the history.
    pub history: (usize, usize),
    /// How full the kernel side's tables are, by name.
    pub tables: BTreeMap<String, Fill>,
    /// What it takes.
    pub cost: OwnCost,
    /// What it cannot see.
    pub quality: Quality,
    /// What the kernel does not forbid it.
    pub not_closed: Vec<Missing>,
}

/// Whether a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// It counts.
    Attached,
    /// The kernel refused it.
    Refused,
    /// Not asked for.
    Off,
}

/// A kernel program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// CPU time that its runs have taken, in nanoseconds.
    pub run_ns: u64,
    /// Its runs a second in the last measured window.
    pub runs_per_sec: f64,
    /// Nanoseconds a run, on average in the last measured window; absent if it did not run.
    pub ns_per_run: Option<f64>,
    /// CPU time in the last measured window, as a percentage of one CPU.
    pub cpu_percent: f64,
    /// Instructions that the verifier looked at.
    pub verified_instructions: Option<u32>,
}

/// A probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// Its name.
    pub name: String,
    /// What it measures.
    pub title: String,
    /// Whether it runs.
    pub state: ProbeState,
    /// Why not.
    pub why: Option<String>,
    /// What cannot be diagnosed without it.
    pub blind: String,
    /// What it does without at present, to stay within the CPU budget.
    pub reductions: Vec<String>,
    /// Memory of its maps in the kernel.
    pub map_bytes: u64,
    /// Its programs.
    pub programs: Vec<ProgramStatus>,
}

/// A watched cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Its path.
    pub path: Arc<str>,
    /// Its id in the kernel.
    pub id: u64,
}

/// A skill, as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct SkillEntry {
    /// Its id.
    pub id: &'static str,
    /// A few words.
    pub title: &'static str,
    /// What it asks, and what it cannot see.
    pub description: &'static str,
    /// What it measures.
    pub metrics: &'static [Metric],
}
