//! From ticks to incidents and the answers that code has to them, tick by tick.

use std::sync::Arc;

use super::{desk::Desk, insight::Insight, scene::Scene};
use crate::{
    anomaly::{Detector, Incidents, Severity, Update},
    base::clock::Moment,
    history::Tick,
    skills::Sample,
};

/// What has been learned, what is going on, and what has been said about it.
#[derive(Debug)]
pub struct Triage {
    detector: Detector,
    incidents: Incidents,
    desk: Desk,
}

impl Triage {
    /// With nothing going on.
    pub fn new(detector: Detector) -> Self {
        Self {
            detector,
            incidents: Incidents::default(),
            desk: Desk::default(),
        }
    }

    /// Judges `tick`: what became of which incident.
    pub fn observe(&mut self, tick: &Tick) -> Vec<Update> {
        let anomalies = self.detector.observe(tick);
        self.incidents.update(&anomalies, tick)
    }

    /// Answers that are new after the last of `ticks`, oldest first.
    pub fn answer(&mut self, ticks: &[Arc<Tick>], sample: &Sample, now: Moment) -> Vec<Insight> {
        let mut told = Vec::new();
        for (incident, onset) in self.incidents.active() {
            let new = self
                .desk
                .look(incident, onset, ticks, &self.detector, sample, now);
            told.extend(new);
        }
        let incidents = &self.incidents;
        self.desk.retain(|id| incidents.get(id).is_some());
        for (insight, severity) in &told {
            self.incidents
                .add_insight(&insight.incident, insight.id.clone(), *severity);
        }
        told.into_iter().map(|(insight, _)| insight).collect()
    }

    /// Takes in what a model made of an incident: the newest insight of it from now on.
    pub fn hear(&mut self, insight: &mut Insight) {
        self.desk.heard(insight);
        let id = insight.id.clone();
        self.incidents
            .add_insight(&insight.incident, id, Severity::Info);
    }

    /// An open incident that has been looked at, held still for a longer investigation.
    pub fn scene(
        &self,
        incident: &str,
        ticks: &[Arc<Tick>],
        sample: &Arc<Sample>,
        reason: Option<Arc<str>>,
    ) -> Option<Scene> {
        let (incident, onset) = self.incidents.open().find(|(i, _)| &*i.id == incident)?;
        let answer = self.desk.answer(&incident.id)?;
        Some(Scene {
            incident: incident.clone(),
            onset,
            ticks: self.desk.ticks(&incident.id, onset, ticks),
            ranges: self.detector.freeze(sample.at),
            sample: sample.clone(),
            stacks: Vec::new(),
            answer: answer.clone(),
            reason,
        })
    }

    /// What is going on, and what was lately.
    pub fn incidents(&self) -> &Incidents {
        &self.incidents
    }

    /// What is normal.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }
}
