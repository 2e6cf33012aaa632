//! Everything about one incident, held still for an investigation that takes minutes.

use std::sync::Arc;

use super::{case::Case, offline::Answer};
use crate::{
    anomaly::{Frozen, Incident},
    base::clock::Moment,
    history::Tick,
    probes::NamedSample,
    skills::Sample,
};

/// An incident as it was when the investigation began.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The incident.
    pub incident: Incident,
    /// When it began, as far as is known.
    pub onset: Moment,
    /// The recent ticks, oldest first.
    pub ticks: Vec<Arc<Tick>>,
    /// What is normal.
    pub ranges: Frozen,
    /// The readings behind the newest tick.
    pub sample: Arc<Sample>,
    /// Where CPU time went in the interval before it was looked at, the most first; filled in by who asks.
    pub stacks: Vec<NamedSample>,
    /// What code alone makes of it.
    pub answer: Answer,
    /// Why somebody asked, if it was not the agent itself.
    pub reason: Option<Arc<str>>,
}

impl Scene {
    /// The case to check statements against; `None` without a tick.
    pub fn case(&self) -> Option<Case<'_>> {
        Case::new(&self.incident, self.onset, &self.ticks, &self.ranges)
    }
}
