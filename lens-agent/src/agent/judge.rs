//! The stage that judges: snapshots, anomalies, incidents, and the offline answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::records::{self, BASELINES, BASELINES_ID, INCIDENT};
use crate::{
    anomaly::{self, Detector, Incident, Incidents, State, Update},
    api::Api,
    base::clock::{Clock, Moment},
    history::Tick,
    investigate::{Desk, Insight, scene::Scene},
    skills::{self, Sample},
    store::Store,
    telemetry::{Event, Refusal, Telemetry},
};

/// Time between two writings of all baselines.
const KEEP_BASELINES: Duration = Duration::from_mins(1);
/// What of earlier runs is taken up again.
const REMEMBERED: u32 = 1000;

/// The stage.
#[derive(Debug)]
pub(super) struct Judge {
    api: Api,
    store: Arc<Store>,
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
    /// Where incidents go that a model is to be asked about.
    inquiries: Option<mpsc::Sender<Scene>>,
    detector: Detector,
    incidents: Incidents,
    desk: Desk,
    before: Option<Arc<Sample>>,
    ticks: u64,
    kept_at: Option<Moment>,
    /// Incidents as they were last written.
    written: BTreeMap<Arc<str>, Incident>,
}

impl Judge {
    pub(super) fn new(
        config: anomaly::Config,
        api: Api,
        store: Arc<Store>,
        telemetry: Telemetry,
        clock: Arc<dyn Clock>,
        inquiries: Option<mpsc::Sender<Scene>>,
    ) -> Self {
        let mut detector = Detector::new(config, skills::metrics());
        match records::remember(&store, REMEMBERED) {
            Ok(remembered) => {
                detector.remember(remembered.baselines);
                for (at, mut incident) in remembered.incidents {
                    if incident.state == State::Open {
                        // Nobody has watched it since.
                        incident.state = State::Closed;
                        incident.closed_at = Some(at);
                        records::put(
                            &store,
                            &telemetry,
                            (INCIDENT, &incident.id),
                            at,
                            &incident,
                            false,
                        );
                    }
                    api.put_incident(incident, at);
                }
                remembered
                    .insights
                    .into_iter()
                    .for_each(|i| api.put_insight(i));
            }
            Err(why) => telemetry.emit(Event::StoreError {
                why: why.to_string(),
            }),
        }
        Self {
            api,
            store,
            telemetry,
            clock,
            inquiries,
            detector,
            incidents: Incidents::default(),
            desk: Desk::default(),
            before: None,
            ticks: 0,
            kept_at: None,
            written: BTreeMap::new(),
        }
    }

    /// Takes in one sample.
    pub(super) fn look(&mut self, sample: &Arc<Sample>) {
        let Some(before) = self.before.replace(sample.clone()) else {
            return;
        };
        self.ticks += 1;
        let elapsed = sample.at.since(&before.at);
        let snapshots = skills::look_everywhere(self.ticks, sample, &before, skills::REGISTRY);
        let tick = Arc::new(Tick::new(self.ticks, sample.at, elapsed, snapshots));
        self.api.put_tick(tick.clone());
        let anomalies = self.detector.observe(&tick);
        for update in self.incidents.update(&anomalies, &tick) {
            self.tell(&update);
        }
        self.investigate(sample);
        self.write_incidents(sample.at);
        self.keep_baselines(sample.at);
        self.show(sample, &tick);
    }

    fn tell(&self, update: &Update) {
        let event = match update {
            Update::Opened(id) => Event::IncidentOpened { id: id.to_string() },
            Update::Reopened(id) => Event::IncidentReopened { id: id.to_string() },
            Update::Closed(id) => Event::IncidentClosed { id: id.to_string() },
        };
        self.telemetry.emit(event);
    }

    fn investigate(&mut self, sample: &Arc<Sample>) {
        let ticks = self.api.ticks();
        let now = self.clock.now();
        let mut told = Vec::new();
        for (incident, onset) in self.incidents.active() {
            let new = self
                .desk
                .look(incident, onset, &ticks, &self.detector, sample, now);
            if let Some((insight, _)) = &new
                && insight.supersedes.is_none()
                && let Some(answer) = self.desk.answer(&incident.id)
                && let Some(inquiries) = &self.inquiries
            {
                let scene = Scene {
                    incident: incident.clone(),
                    onset,
                    ticks: ticks.clone(),
                    ranges: self.detector.freeze(now),
                    sample: sample.clone(),
                    answer: answer.clone(),
                };
                // A full queue: the offline insight stands, as it does when a limit refuses.
                if inquiries.try_send(scene).is_err() {
                    self.telemetry.emit(Event::ModelRefused {
                        why: Refusal::RateLimit,
                    });
                }
            }
            told.extend(new);
        }
        for (insight, severity) in told {
            self.incidents
                .add_insight(&insight.incident, insight.id.clone(), severity);
            self.publish(insight);
        }
        let incidents = &self.incidents;
        self.desk.retain(|id| incidents.get(id).is_some());
    }

    fn publish(&self, insight: Insight) {
        records::put_insight(&self.store, &self.telemetry, &insight, |id| {
            self.api.snapshot(id)
        });
        self.telemetry.emit(Event::InsightProduced {
            id: insight.id.to_string(),
            verdict: insight.verdict.as_str().to_owned(),
            strategy: insight.strategy.clone(),
        });
        self.api.put_insight(insight);
    }

    /// Writes the incidents that have changed.
    fn write_incidents(&mut self, now: Moment) {
        for incident in self.incidents.all() {
            if self.written.get(&incident.id) == Some(incident) {
                continue;
            }
            let at = now.wall;
            records::put(
                &self.store,
                &self.telemetry,
                (INCIDENT, &incident.id),
                at,
                incident,
                false,
            );
            self.api.put_incident(incident.clone(), at);
            self.written.insert(incident.id.clone(), incident.clone());
        }
        let incidents = &self.incidents;
        self.written.retain(|id, _| incidents.get(id).is_some());
    }

    fn keep_baselines(&mut self, now: Moment) {
        if self
            .kept_at
            .is_some_and(|at| now.since(&at) < KEEP_BASELINES)
        {
            return;
        }
        self.kept_at = Some(now);
        let kept = self.detector.kept(now.wall);
        let key = (BASELINES, BASELINES_ID);
        records::put(&self.store, &self.telemetry, key, now.wall, &kept, false);
        records::retain(&self.store, &self.telemetry);
    }

    fn show(&self, sample: &Sample, tick: &Tick) {
        let (series, refused) = self.detector.size();
        let learned = self.detector.learned(sample.at);
        let history = self.api.history_size();
        let mut quality = sample.kernel.quality.clone();
        quality.merge(&sample.host.quality);
        self.api.update_status(|status| {
            status.ready = true;
            status.waiting_for = None;
            status.ticks = tick.number;
            status.series = series;
            status.series_refused = refused;
            status.learned = learned;
            status.targets = sample.kernel.targets.len();
            status.history = history;
            status.quality = quality;
        });
    }
}
