//! The stage that judges: snapshots, anomalies, incidents, and the offline answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    inquire::Inquiry,
    needed::Needed,
    records::{self, ALL, BASELINES, INCIDENT, PROBES, TARGETS},
};
use crate::{
    anomaly::{self, Detector, Incident, State, Update},
    api::{Api, Asked},
    base::clock::{Clock, Moment},
    history::Tick,
    investigate::{Insight, Strategy, Triage},
    skills::{self, Sample},
    store::Store,
    telemetry::{Event, Refusal, Telemetry},
};

/// Time between two writings of all baselines, probes and targets.
const KEEP: Duration = Duration::from_mins(1);
/// What of earlier runs is taken up again.
const REMEMBERED: u32 = 1000;

/// Tenths of seconds since 1970: ids of snapshots stay unique over restarts, because there are no
/// more than five ticks a second.
fn first_tick(at: Moment) -> u64 {
    u64::try_from(at.wall.as_millisecond() / 100).unwrap_or_default()
}

/// Investigations beyond the judge's own.
#[derive(Debug)]
pub(super) struct Demands {
    /// Those that somebody asks for.
    pub(super) asks: crossbeam_channel::Receiver<Asked>,
    /// Where incidents go that a model is to be asked about.
    pub(super) inquiries: Option<mpsc::Sender<Inquiry>>,
    /// Where it is said which probes are needed.
    pub(super) needed: Needed,
}

/// The stage.
#[derive(Debug)]
pub(super) struct Judge {
    api: Api,
    store: Arc<Store>,
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
    demands: Demands,
    /// Investigations that were asked for and have not begun.
    asked: Vec<Asked>,
    triage: Triage,
    before: Option<Arc<Sample>>,
    /// The number that the first tick follows.
    first: Option<u64>,
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
        demands: Demands,
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
            demands,
            asked: Vec::new(),
            triage: Triage::new(detector),
            before: None,
            first: None,
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
        let number = *self.first.get_or_insert_with(|| first_tick(sample.at)) + self.ticks;
        let elapsed = sample.at.since(&before.at);
        let snapshots = skills::look_everywhere(number, sample, &before, skills::REGISTRY);
        let tick = Arc::new(Tick::new(number, sample.at, elapsed, snapshots));
        self.api.put_tick(tick.clone());
        for update in self.triage.observe(&tick) {
            self.tell(&update);
        }
        self.demands.needed.set(self.triage.incidents());
        self.investigate(sample);
        self.investigate_what_was_asked(sample);
        self.write_incidents(sample.at);
        self.keep_sometimes(sample.at);
        self.show(sample);
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
        for insight in self.triage.answer(&ticks, sample, self.clock.now()) {
            let (incident, is_first) = (insight.incident.clone(), insight.supersedes.is_none());
            self.publish(insight);
            let Some(inquiries) = self.demands.inquiries.as_ref().filter(|_| is_first) else {
                continue;
            };
            let scene = self.triage.scene(&incident, &ticks, sample, None);
            let inquiry = Inquiry {
                scenes: scene.into_iter().collect(),
                asked: None,
            };
            // A full queue: the offline insight stands, as it does when a limit refuses.
            if inquiries.try_send(inquiry).is_err() {
                self.telemetry.emit(Event::ModelRefused {
                    why: Refusal::RateLimit,
                });
            }
        }
    }

    /// Begins what somebody asked for, once every incident that goes on has its first answer.
    fn investigate_what_was_asked(&mut self, sample: &Arc<Sample>) {
        self.asked.extend(self.demands.asks.try_iter());
        let incidents = self.triage.incidents();
        if self.asked.is_empty() || incidents.active().any(|(i, _)| i.insights.is_empty()) {
            return;
        }
        let mut open: Vec<&Incident> = incidents.open().map(|(incident, _)| incident).collect();
        open.sort_by_key(|incident| std::cmp::Reverse(incident.severity));
        let open: Vec<Arc<str>> = open.iter().map(|incident| incident.id.clone()).collect();
        let ticks = self.api.ticks();
        for mut asked in self.asked.drain(..) {
            asked.incidents.clone_from(&open);
            let by_model = asked.request.strategy != Strategy::Offline && !open.is_empty();
            let Some(inquiries) = self.demands.inquiries.as_ref().filter(|_| by_model) else {
                // Its answers are those of this very tick.
                asked.end();
                continue;
            };
            let reason = asked.request.reason.clone();
            let scene = |id: &Arc<str>| self.triage.scene(id, &ticks, sample, reason.clone());
            let inquiry = Inquiry {
                scenes: open.iter().filter_map(scene).collect(),
                asked: Some(asked),
            };
            if let Err(refused) = inquiries.try_send(inquiry)
                && let Some(mut asked) = refused.into_inner().asked
            {
                let why = "too many incidents wait for a model already".to_owned();
                asked.troubles.push(why);
                asked.end();
            }
        }
    }

    /// Takes in what a model made of an incident.
    pub(super) fn hear(&mut self, mut insight: Insight) {
        self.triage.hear(&mut insight);
        self.publish(insight);
        self.write_incidents(self.clock.now());
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
        for incident in self.triage.incidents().all() {
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
        let incidents = self.triage.incidents();
        self.written.retain(|id, _| incidents.get(id).is_some());
    }

    /// Writes what is read again after a restart, or by who asks while no agent runs.
    fn keep_sometimes(&mut self, now: Moment) {
        if self.kept_at.is_none_or(|at| now.since(&at) >= KEEP) {
            self.kept_at = Some(now);
            self.keep(now);
        }
    }

    /// The same, whenever it was done last.
    pub(super) fn keep(&self, now: Moment) {
        let kept = self.triage.detector().kept(now.wall);
        let (store, telemetry) = (&*self.store, &self.telemetry);
        records::put(store, telemetry, (BASELINES, ALL), now.wall, &kept, false);
        let (probes, targets) = (self.api.probes(), self.api.targets());
        records::put(store, telemetry, (PROBES, ALL), now.wall, &probes, false);
        records::put(store, telemetry, (TARGETS, ALL), now.wall, &targets, false);
        records::retain(&self.store, &self.telemetry);
    }

    fn show(&self, sample: &Sample) {
        let (series, refused) = self.triage.detector().size();
        let learned = self.triage.detector().learned(sample.at);
        let history = self.api.history_size();
        let mut quality = sample.kernel.quality.clone();
        quality.merge(&sample.host.quality);
        self.api.update_status(|status| {
            status.ready = true;
            status.waiting_for = None;
            status.ticks = self.ticks;
            status.seen_at = Some(sample.at.wall);
            status.series = series;
            status.series_refused = refused;
            status.learned = learned;
            status.targets = sample.kernel.targets.len();
            status.history = history;
            status.tables.clone_from(&sample.kernel.tables);
            status.quality = quality;
        });
    }
}
