//! A small world for tests: steady numbers, then others.

use std::{sync::Arc, time::Duration};

use super::{
    mechanisms::Mechanism,
    offline::{self, Answer},
    scene::Scene,
};
use crate::{
    anomaly::{Config, Detector, Incident, Incidents},
    base::{
        clock::{Clock as _, ManualClock, Moment},
        quality::Quality,
        scope::Scope,
        snapshot::{By, Pair, Snapshot, SnapshotId},
    },
    history::Tick,
    skills::{self, Sample},
};

const STEP: Duration = Duration::from_secs(1);
/// Ticks before and after the onset.
const BEFORE: u64 = 40;
const AFTER: u64 = 8;

/// A number over time: before the onset, and at each tick since (counted from 0).
type Over = (f64, Box<dyn Fn(u64) -> f64>);

/// The world.
#[derive(Default)]
pub(crate) struct World {
    metrics: Vec<(Scope, &'static str, Over)>,
    pairs: Vec<(Scope, &'static str, By, f64, f64)>,
    pub(crate) quality: Quality,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `metric` of `scope` is `before`, and since the onset `after`.
    pub(crate) fn set(self, scope: &str, metric: &'static str, before: f64, after: f64) -> Self {
        self.moving(scope, metric, before, move |_| after)
    }

    /// The same, with a number for each tick since the onset.
    pub(crate) fn moving(
        mut self,
        scope: &str,
        metric: &'static str,
        before: f64,
        after: impl Fn(u64) -> f64 + 'static,
    ) -> Self {
        self.metrics
            .push((scope.parse().unwrap(), metric, (before, Box::new(after))));
        self
    }

    /// `by` caused so much of `metric` in `scope`, before the onset and since.
    pub(crate) fn pair(
        mut self,
        scope: &str,
        metric: &'static str,
        by: &str,
        before: f64,
        after: f64,
    ) -> Self {
        self.pairs
            .push((scope.parse().unwrap(), metric, by.into(), before, after));
        self
    }

    fn tick(&self, number: u64, at: Moment) -> Tick {
        let since = number.checked_sub(BEFORE);
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for (scope, metric, (before, after)) in &self.metrics {
            let value = since.map_or(*before, after);
            let skill = skills::REGISTRY
                .iter()
                .find(|s| s.metrics().iter().any(|m| m.name == *metric))
                .unwrap_or_else(|| panic!("no skill has {metric}"));
            let id = SnapshotId::new(number, skill.id(), scope);
            let at_hand = snapshots.iter().position(|s| s.id == id);
            let at_hand = at_hand.unwrap_or_else(|| {
                snapshots.push(Snapshot {
                    id,
                    skill: skill.id().into(),
                    scope: scope.clone(),
                    taken_at: at.wall,
                    elapsed_ms: 1000,
                    metrics: std::collections::BTreeMap::new(),
                    pairs: Vec::new(),
                    items: Vec::new(),
                    quality: self.quality.clone(),
                });
                snapshots.len() - 1
            });
            let snapshot = &mut snapshots[at_hand];
            snapshot.metrics.insert((*metric).into(), value);
            for (of, name, by, before, after) in &self.pairs {
                if of == scope && name == metric {
                    let value = if since.is_some() { *after } else { *before };
                    let pair = Pair {
                        metric: (*name).into(),
                        by: by.clone(),
                        value,
                    };
                    snapshot.pairs.push(pair);
                }
            }
        }
        Tick::new(number, at, STEP, snapshots)
    }

    /// Lives through the world; the incident that came of it, if any, with all that was seen.
    pub(crate) fn live(&self) -> Option<Scene> {
        let clock = ManualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let config = Config { learn: STEP * 20 };
        let mut detector = Detector::new(config, skills::metrics());
        let mut incidents = Incidents::default();
        let mut ticks = Vec::new();
        for number in 0..BEFORE + AFTER {
            clock.advance(STEP);
            let tick = Arc::new(self.tick(number, clock.now()));
            let anomalies = detector.observe(&tick);
            incidents.update(&anomalies, &tick);
            ticks.push(tick);
        }
        let (incident, onset): (Incident, Moment) = incidents
            .active()
            .next()
            .map(|(i, onset)| (i.clone(), onset))?;
        let sample: Sample = skills::empty_sample(clock.now());
        let scene = Scene {
            incident,
            onset,
            ranges: detector.freeze(clock.now()),
            ticks,
            sample: Arc::new(sample),
            stacks: Vec::new(),
            answer: Answer::nothing(),
            reason: None,
        };
        let answer = offline::investigate(&scene.case()?, None);
        Some(Scene { answer, ..scene })
    }

    /// What one mechanism makes of it.
    pub(crate) fn ask(&self, mechanism: &dyn Mechanism) -> Option<Answer> {
        let scene = self.live()?;
        Some(offline::investigate_with(
            &[mechanism],
            &scene.case()?,
            None,
        ))
    }
}
