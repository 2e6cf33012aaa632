//! Anomalies that belong together: one storm, one incident.
//!
//! They belong together when they are of one cgroup, of a cgroup and its child, or when one holds
//! what the other waits for. What has nothing to do with an open incident is one of its own, even
//! at the same time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::detector::{Anomaly, Source};
use crate::{
    base::{
        clock::Moment,
        scope::{Scope, SeriesKey},
        snapshot::{By, Snapshot},
    },
    history::Tick,
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Not normal, and nobody suffers.
    Info,
    /// Somebody waits.
    Warning,
    /// A victim lost more than half of its throughput, or a hard limit was hit.
    Critical,
}

/// Where it is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Going on.
    Open,
    /// Over.
    Closed,
    /// Asked not to be told.
    Muted,
}

/// The normal range, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Absent where a fall means nothing.
    pub low: Option<f64>,
    /// Above this is not normal.
    pub high: f64,
}

/// One series of an incident, at its worst.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentSeries {
    /// Where.
    pub scope: Scope,
    /// What.
    pub metric: Arc<str>,
    /// What would have been normal.
    pub expected: Range,
    /// The most deviating value.
    pub seen: f64,
    /// `-log10` of its tail probability.
    pub deviation: f64,
    /// The estimated onset.
    pub since: Timestamp,
    /// Whose range it is.
    pub baseline: Source,
}

/// Anomalies that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Unique for ever; sorts by time.
    pub id: Arc<str>,
    /// When it was decided, never back-dated.
    pub opened_at: Timestamp,
    /// When it came back.
    pub reopened_at: Option<Timestamp>,
    /// When it was over.
    pub closed_at: Option<Timestamp>,
    /// Where it is in its life.
    pub state: State,
    /// How bad it is.
    pub severity: Severity,
    /// What is not normal, most deviating first.
    pub series: Vec<IncidentSeries>,
    /// Ids of its insights, oldest first.
    pub insights: Vec<Arc<str>>,
}

/// What became of an incident at a tick.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// A new one.
    Opened(Arc<str>),
    /// One that had been closed.
    Reopened(Arc<str>),
    /// Over.
    Closed(Arc<str>),
}

/// Calm readings after which an incident is over, and the least time of calm.
const CALM_TICKS: u32 = 3;
const CALM: Duration = Duration::from_secs(30);
/// How long a closed incident can be reopened.
const REOPEN: Duration = Duration::from_mins(10);
/// Closed incidents kept here.
const CLOSED_KEPT: usize = 256;
/// Series of one incident; the most deviating are kept.
const SERIES_KEPT: usize = 64;
/// A cgroup belongs to an incident when it holds at least this part of what another waits for.
const LINK: f64 = 0.2;
/// What began this long after everything else in an incident is another one.
const TOGETHER: Duration = Duration::from_secs(20);
/// The host's own series wait this many intervals for a cgroup to explain them.
const HOST_WAITS: u32 = 3;

#[derive(Debug)]
struct Tracked {
    incident: Incident,
    onset: Moment,
    /// The latest onset of its series.
    latest: Moment,
    scopes: BTreeSet<Scope>,
    /// Who holds what they wait for.
    suspects: BTreeSet<Scope>,
    /// Whose suffering belongs to it.
    suffering: BTreeSet<Scope>,
    last: Moment,
    calm: u32,
}

/// The open incidents, and those that may come back.
#[derive(Debug, Default)]
pub struct Incidents {
    open: Vec<Tracked>,
    closed: VecDeque<Tracked>,
    made: u64,
}

impl Incidents {
    /// Takes in the anomalies of `tick`.
    pub fn update(&mut self, anomalies: &[Anomaly], tick: &Tick) -> Vec<Update> {
        let mut updates = Vec::new();
        let links = links(anomalies, tick);
        let mut rest = Vec::new();
        let mut touched = BTreeSet::new();
        for anomaly in anomalies {
            match self.home(anomaly, &links) {
                Some(i) => {
                    self.open[i].add(anomaly, &links, tick.at);
                    touched.insert(i);
                }
                None => rest.push(anomaly),
            }
        }
        for (i, tracked) in self.open.iter_mut().enumerate() {
            if touched.contains(&i) {
                tracked.calm = 0;
            } else if !tracked.is_out_of_sight(tick) {
                tracked.calm += 1;
            }
        }
        for group in groups(rest, &links) {
            if group.iter().all(|a| a.key.scope == Scope::Host) && !self.host_alone(&group, tick) {
                continue;
            }
            updates.push(self.start(&group, &links, tick));
        }
        self.close_calm(tick, &mut updates);
        updates
    }

    /// The incident with this id, open or lately closed.
    pub fn get(&self, id: &str) -> Option<&Incident> {
        self.all().find(|i| &*i.id == id)
    }

    /// The open ones, with their estimated onsets.
    pub fn open(&self) -> impl Iterator<Item = (&Incident, Moment)> {
        self.open.iter().map(|t| (&t.incident, t.onset))
    }

    /// Open and lately closed ones.
    pub fn all(&self) -> impl Iterator<Item = &Incident> {
        self.open.iter().chain(&self.closed).map(|t| &t.incident)
    }

    /// Open incidents that were anomalous at the last tick, with their estimated onsets.
    pub fn active(&self) -> impl Iterator<Item = (&Incident, Moment)> {
        self.open
            .iter()
            .filter(|t| t.calm == 0)
            .map(|t| (&t.incident, t.onset))
    }

    /// Notes an insight, and how bad it shows the incident to be.
    pub fn add_insight(&mut self, id: &str, insight: Arc<str>, severity: Severity) {
        let tracked = self
            .open
            .iter_mut()
            .chain(&mut self.closed)
            .find(|t| &*t.incident.id == id);
        if let Some(tracked) = tracked {
            tracked.incident.insights.push(insight);
            tracked.incident.severity = tracked.incident.severity.max(severity);
        }
    }

    /// The open incident that `anomaly` belongs to: one that has this series already; one in which
    /// the same cgroup suffers already, or that holds who makes it wait; one of the same or a linked
    /// cgroup that began about when it did. Who begins to suffer in the middle of something else
    /// has a second trouble.
    fn home(&self, anomaly: &Anomaly, links: &Links) -> Option<usize> {
        let scope = &anomaly.key.scope;
        let of = |t: &Tracked| {
            let has = t
                .incident
                .series
                .iter()
                .any(|s| SeriesKey::from(s) == anomaly.key);
            let held = || t.scopes.iter().any(|s| links.held(s, scope));
            let more = || t.suffering.contains(scope) || held();
            // The host feels what its cgroups do.
            let near = || *scope == Scope::Host || t.scopes.iter().any(|s| links.between(s, scope));
            has || anomaly.suffering && more()
                || anomaly.since.since(&t.latest) <= TOGETHER && near()
        };
        self.open.iter().rposition(of)
    }

    fn host_alone(&self, group: &[&Anomaly], tick: &Tick) -> bool {
        let waited = |a: &&Anomaly| tick.at.since(&a.since) >= tick.elapsed * HOST_WAITS;
        self.open.is_empty() && group.iter().any(waited)
    }

    fn start(&mut self, group: &[&Anomaly], links: &Links, tick: &Tick) -> Update {
        let scopes: BTreeSet<Scope> = group.iter().map(|a| a.key.scope.clone()).collect();
        let suspects: BTreeSet<Scope> = scopes.iter().flat_map(|s| links.holders(s)).collect();
        let same = |t: &Tracked| t.scopes == scopes && suspects.is_subset(&t.suspects);
        let former = self
            .closed
            .iter()
            .position(|t| same(t) && tick.at.since(&t.last) <= REOPEN);
        let tracked = former.and_then(|i| self.closed.remove(i));
        let (mut tracked, reopened) = match tracked {
            Some(mut tracked) => {
                tracked.incident.reopened_at = Some(tick.at.wall);
                tracked.incident.closed_at = None;
                tracked.incident.state = State::Open;
                (tracked, true)
            }
            None => (self.fresh(tick), false),
        };
        tracked.calm = 0;
        tracked.onset = group.iter().map(|a| a.since).min().unwrap_or(tick.at);
        tracked.latest = tracked.onset;
        for anomaly in group {
            tracked.add(anomaly, links, tick.at);
        }
        let id = tracked.incident.id.clone();
        self.open.push(tracked);
        if reopened {
            Update::Reopened(id)
        } else {
            Update::Opened(id)
        }
    }

    fn fresh(&mut self, tick: &Tick) -> Tracked {
        self.made += 1;
        let id = format!("{:x}-{}", tick.at.wall.as_millisecond(), self.made);
        Tracked {
            incident: Incident {
                id: id.into(),
                opened_at: tick.at.wall,
                reopened_at: None,
                closed_at: None,
                state: State::Open,
                severity: Severity::Info,
                series: Vec::new(),
                insights: Vec::new(),
            },
            onset: tick.at,
            latest: tick.at,
            scopes: BTreeSet::new(),
            suspects: BTreeSet::new(),
            suffering: BTreeSet::new(),
            last: tick.at,
            calm: 0,
        }
    }

    fn close_calm(&mut self, tick: &Tick, updates: &mut Vec<Update>) {
        let (closing, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|t: &Tracked| t.calm >= CALM_TICKS && tick.at.since(&t.last) >= CALM);
        self.open = open;
        for mut tracked in closing {
            tracked.incident.state = State::Closed;
            tracked.incident.closed_at = Some(tick.at.wall);
            updates.push(Update::Closed(tracked.incident.id.clone()));
            self.closed.push_front(tracked);
        }
        self.closed.truncate(CLOSED_KEPT);
    }
}

impl Tracked {
    /// Whether one of its series is only reckoned from a part of the events at present: that it is
    /// calm cannot be told.
    fn is_out_of_sight(&self, tick: &Tick) -> bool {
        let has = |snapshot: &Snapshot| {
            let mut series = self.incident.series.iter();
            series.any(|s| s.scope == snapshot.scope && snapshot.metrics.contains_key(&s.metric))
        };
        let of_scopes = tick.scopes.values().flatten();
        let mut scaled = of_scopes.filter(|s| s.quality.is_scaled());
        scaled.any(has)
    }

    fn add(&mut self, anomaly: &Anomaly, links: &Links, now: Moment) {
        self.last = now;
        self.latest = self.latest.max(anomaly.since);
        let scope = &anomaly.key.scope;
        self.scopes.insert(scope.clone());
        self.suspects.extend(links.holders(scope));
        if anomaly.suffering && *scope != Scope::Host {
            self.suffering.insert(scope.clone());
        }
        let severity = if anomaly.suffering {
            Severity::Warning
        } else {
            Severity::Info
        };
        self.incident.severity = self.incident.severity.max(severity);
        let low = anomaly.expected.low;
        let row = IncidentSeries {
            scope: anomaly.key.scope.clone(),
            metric: anomaly.key.metric.clone(),
            expected: Range {
                low: low.is_finite().then_some(low),
                high: anomaly.expected.high,
            },
            seen: anomaly.seen,
            deviation: anomaly.deviation,
            since: anomaly.since.wall,
            baseline: anomaly.source,
        };
        let series = &mut self.incident.series;
        let same = |r: &IncidentSeries| r.scope == row.scope && r.metric == row.metric;
        match series.iter_mut().find(|r| same(r)) {
            Some(known) if known.deviation < row.deviation => {
                let since = known.since;
                *known = IncidentSeries { since, ..row };
            }
            Some(_) => {}
            None => series.push(row),
        }
        series.sort_by(|a, b| b.deviation.total_cmp(&a.deviation));
        series.truncate(SERIES_KEPT);
    }
}

/// Who holds what whom waits for.
struct Links(BTreeMap<Scope, BTreeSet<Scope>>);

impl Links {
    fn between(&self, a: &Scope, b: &Scope) -> bool {
        a == b || self.held(a, b) || is_within(a, b) || is_within(b, a)
    }

    /// Whether one holds what the other waits for.
    fn held(&self, a: &Scope, b: &Scope) -> bool {
        let holds = |a, b| self.0.get(a).is_some_and(|held| held.contains(b));
        holds(a, b) || holds(b, a)
    }

    /// Who holds what `scope` waits for.
    fn holders(&self, scope: &Scope) -> impl Iterator<Item = Scope> {
        self.0.get(scope).into_iter().flatten().cloned()
    }
}

fn is_within(inner: &Scope, outer: &Scope) -> bool {
    match (inner.path(), outer.path()) {
        (Some(inner), Some(outer)) if outer != "/" => inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.starts_with('/')),
        _ => false,
    }
}

fn links(anomalies: &[Anomaly], tick: &Tick) -> Links {
    let mut links: BTreeMap<Scope, BTreeSet<Scope>> = BTreeMap::new();
    for anomaly in anomalies.iter().filter(|a| a.suffering) {
        let scope = &anomaly.key.scope;
        for pair in tick.pairs(scope, &anomaly.key.metric) {
            if let By::Cgroup(path) = &pair.by
                && pair.value >= LINK * anomaly.seen
            {
                links
                    .entry(scope.clone())
                    .or_default()
                    .insert(Scope::Cgroup(path.clone()));
            }
        }
    }
    Links(links)
}

/// Splits what found no open incident into groups that are linked within.
fn groups<'a>(anomalies: Vec<&'a Anomaly>, links: &Links) -> Vec<Vec<&'a Anomaly>> {
    let (host, cgroups): (Vec<_>, Vec<_>) = anomalies
        .into_iter()
        .partition(|a| a.key.scope == Scope::Host);
    let mut groups: Vec<Vec<&Anomaly>> = Vec::new();
    for anomaly in cgroups {
        let scope = &anomaly.key.scope;
        let linked = |g: &Vec<&Anomaly>| g.iter().any(|a| links.shares(&a.key.scope, scope));
        let (mut near, far): (Vec<_>, Vec<_>) = groups.into_iter().partition(linked);
        groups = far;
        let mut merged = near.drain(..).flatten().collect::<Vec<_>>();
        merged.push(anomaly);
        groups.push(merged);
    }
    match groups.first_mut() {
        Some(first) => first.extend(host),
        None if !host.is_empty() => groups.push(host),
        None => {}
    }
    groups
}

impl Links {
    /// Linked directly, or by a third that holds what both wait for.
    fn shares(&self, a: &Scope, b: &Scope) -> bool {
        self.between(a, b)
            || matches!((self.0.get(a), self.0.get(b)), (Some(x), Some(y)) if !x.is_disjoint(y))
    }
}

/// The key of a series of an incident.
impl From<&IncidentSeries> for SeriesKey {
    fn from(series: &IncidentSeries) -> Self {
        Self {
            scope: series.scope.clone(),
            metric: series.metric.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        anomaly::Expected,
        base::{
            clock::{Clock as _, ManualClock},
            quality::Quality,
            snapshot::{Pair, Snapshot, SnapshotId},
        },
    };

    const STEP: Duration = Duration::from_secs(5);
    const WAIT: &str = "runq_wait_ms_per_sec";

    struct World {
        clock: ManualClock,
        incidents: Incidents,
        tick: u64,
    }

    impl World {
        fn new() -> Self {
            let clock = ManualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
            Self {
                clock,
                incidents: Incidents::default(),
                tick: 0,
            }
        }

        /// A tick in which each `(scope, holder)` waits because of `holder`.
        fn step(&mut self, waits: &[(&str, &str)]) -> Vec<Update> {
            self.clock.advance(STEP);
            self.tick += 1;
            let at = self.clock.now();
            let snapshots = waits
                .iter()
                .map(|(scope, by)| snapshot(self.tick, scope, by))
                .collect();
            let tick = Tick::new(self.tick, at, STEP, snapshots);
            let anomalies: Vec<_> = waits
                .iter()
                .map(|(scope, _)| anomaly(scope, at, &self.clock))
                .collect();
            self.incidents.update(&anomalies, &tick)
        }
    }

    fn snapshot(tick: u64, scope: &str, by: &str) -> Snapshot {
        let scope: Scope = scope.parse().unwrap();
        Snapshot {
            id: SnapshotId::new(tick, "scheduler", &scope),
            skill: "scheduler".into(),
            scope,
            taken_at: Timestamp::UNIX_EPOCH,
            elapsed_ms: 5000,
            metrics: [(WAIT.into(), 400.0)].into(),
            pairs: vec![Pair {
                metric: WAIT.into(),
                by: by.into(),
                value: 390.0,
            }],
            items: Vec::new(),
            quality: Quality::default(),
        }
    }

    fn anomaly(scope: &str, at: Moment, _clock: &ManualClock) -> Anomaly {
        Anomaly {
            key: SeriesKey {
                scope: scope.parse().unwrap(),
                metric: WAIT.into(),
            },
            expected: Expected::up_to(10.0),
            seen: 400.0,
            deviation: 9.0,
            since: at,
            source: Source::Own,
            suffering: true,
        }
    }

    #[test]
    fn victims_of_one_aggressor_are_one_incident_and_others_are_another() {
        let mut world = World::new();
        let updates = world.step(&[("/a", "/noisy"), ("/b", "/noisy"), ("/c", "/other")]);
        assert_eq!(updates.len(), 2, "{updates:?}");
        assert_eq!(world.incidents.open().count(), 2);
        assert!(
            world
                .step(&[("/a", "/noisy"), ("/noisy", "self")])
                .is_empty()
        );
        let first = world
            .incidents
            .open()
            .map(|(incident, _)| incident)
            .find(|i| i.series.len() == 3)
            .unwrap();
        assert_eq!(first.severity, Severity::Warning);
    }

    #[test]
    fn calm_closes_and_only_the_same_scopes_reopen() {
        let mut world = World::new();
        let opened = world.step(&[("/a", "/noisy")]);
        let Update::Opened(id) = &opened[0] else {
            panic!("{opened:?}")
        };
        let mut closed = Vec::new();
        for _ in 0..6 {
            closed.extend(world.step(&[]));
        }
        assert_eq!(
            closed,
            [Update::Closed(id.clone())],
            "after 30 s, not before"
        );
        assert_eq!(world.step(&[("/b", "/noisy")]).len(), 1);
        assert_eq!(
            world.step(&[("/b", "/noisy"), ("/a", "self")]),
            [Update::Reopened(id.clone())]
        );
    }

    #[test]
    fn the_same_victim_of_another_is_another_incident() {
        let mut world = World::new();
        let opened = world.step(&[("/a", "/noisy")]);
        for _ in 0..7 {
            world.step(&[]);
        }
        let again = world.step(&[("/a", "/other")]);
        assert!(
            matches!((&opened[0], &again[0]), (Update::Opened(a), Update::Opened(b)) if a != b),
            "{again:?}"
        );
    }

    #[test]
    fn who_begins_to_wait_in_the_middle_of_something_else_has_a_second_trouble() {
        let mut world = World::new();
        let grows = Anomaly {
            key: SeriesKey {
                scope: "/a".parse().unwrap(),
                metric: "rss_bytes".into(),
            },
            suffering: false,
            ..anomaly("/a", world.clock.now(), &world.clock)
        };
        let mut calm = |also_waits: bool| {
            world.clock.advance(STEP);
            world.tick += 1;
            let at = world.clock.now();
            let tick = Tick::new(
                world.tick,
                at,
                STEP,
                vec![snapshot(world.tick, "/a", "/noisy")],
            );
            let mut anomalies = vec![grows.clone()];
            if also_waits {
                anomalies.push(anomaly("/a", at, &world.clock));
            }
            world.incidents.update(&anomalies, &tick).len()
        };
        let opened: usize = (0..8).map(|_| calm(false)).sum();
        assert_eq!(opened, 1);
        assert_eq!(calm(true), 1, "40 s later");
        assert_eq!(calm(true), 0);
    }

    #[test]
    fn the_host_alone_waits_for_a_cgroup_that_explains_it() {
        let mut world = World::new();
        assert!(world.step(&[("host", "/noisy")]).is_empty());
        assert_eq!(world.step(&[("host", "/noisy"), ("/a", "/noisy")]).len(), 1);
        assert_eq!(world.incidents.open().count(), 1);
    }
}
