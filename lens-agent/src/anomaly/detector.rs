//! Which series are outside their baselines, each with a streak of its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::baseline::{Baseline, ENOUGH, Expected};
use crate::{
    base::{
        clock::Moment,
        metric::{Bad, Metric},
        scope::{Scope, SeriesKey},
    },
    history::Tick,
};

/// When a series trusts itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a series is watched before its own baseline judges it.
    pub learn: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            learn: Duration::from_mins(10),
        }
    }
}

/// Series at the most, in all and of one target.
const SERIES_MAX: usize = 16_000;
const SERIES_PER_TARGET: usize = 128;
/// Readings in a row beyond the range before it is an anomaly.
const STREAK: u32 = 2;
/// The same while the baseline is borrowed.
const STREAK_BORROWED: u32 = 3;
/// Borrowed from siblings: this many times their range.
const SIBLINGS: f64 = 2.0;
/// A level that has stood this long is the new normal.
const RELEARN: Duration = Duration::from_mins(10);
/// Series of scopes that are gone are forgotten after this.
const FORGET: Duration = Duration::from_mins(10);

/// Where a range came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The series' own past.
    Own,
    /// Its earlier life under the same name, its siblings, or a physical limit.
    Borrowed,
}

/// One series outside its baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Anomaly {
    /// Which.
    pub key: SeriesKey,
    /// What would have been normal.
    pub expected: Expected,
    /// What was seen.
    pub seen: f64,
    /// `-log10` of its tail probability.
    pub deviation: f64,
    /// The estimated onset.
    pub since: Moment,
    /// Whose range it is.
    pub source: Source,
    /// Whether somebody suffers by it.
    pub suffering: bool,
}

#[derive(Debug)]
struct Series {
    metric: &'static Metric,
    born: Moment,
    seen_at: Moment,
    baseline: Baseline,
    /// Readings in a row beyond the range, and when the first of them began.
    streak: u32,
    since: Option<Moment>,
}

/// Learns and judges.
#[derive(Debug)]
pub struct Detector {
    config: Config,
    metrics: HashMap<&'static str, &'static Metric>,
    series: BTreeMap<SeriesKey, Series>,
    /// What series of the same name did in an earlier life.
    former: BTreeMap<SeriesKey, Expected>,
    refused: u64,
}

/// A baseline as it is kept over restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Which series.
    pub key: SeriesKey,
    /// Its range.
    pub expected: Expected,
    /// When.
    pub at: Timestamp,
}

/// What is normal for whom.
pub trait Ranges: std::fmt::Debug {
    /// The definition of a metric.
    fn metric(&self, name: &str) -> Option<&'static Metric>;
    /// What is normal for `metric` in `scope`, and whose range that is.
    fn expected(&self, scope: &Scope, metric: &str, now: Moment) -> Option<(Expected, Source)>;
}

/// The ranges of one moment, for an investigation that goes on while the detector learns.
#[derive(Clone, Debug)]
pub struct Frozen {
    metrics: HashMap<&'static str, &'static Metric>,
    ranges: BTreeMap<SeriesKey, (Expected, Source)>,
}

impl Ranges for Frozen {
    fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.metrics.get(name).copied()
    }

    fn expected(&self, scope: &Scope, metric: &str, _: Moment) -> Option<(Expected, Source)> {
        let key = SeriesKey {
            scope: scope.clone(),
            metric: metric.into(),
        };
        self.ranges.get(&key).copied()
    }
}

impl Ranges for Detector {
    fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.metrics.get(name).copied()
    }

    fn expected(&self, scope: &Scope, metric: &str, now: Moment) -> Option<(Expected, Source)> {
        let key = SeriesKey {
            scope: scope.clone(),
            metric: metric.into(),
        };
        let series = self.series.get(&key)?;
        self.range(&key, series, now)
    }
}

impl Detector {
    /// Knows the metrics of all skills.
    pub fn new(config: Config, metrics: impl IntoIterator<Item = &'static Metric>) -> Self {
        Self {
            config,
            metrics: metrics.into_iter().map(|m| (m.name, m)).collect(),
            series: BTreeMap::new(),
            former: BTreeMap::new(),
            refused: 0,
        }
    }

    /// Takes over ranges of earlier lives.
    pub fn remember(&mut self, kept: impl IntoIterator<Item = Kept>) {
        self.former.extend(
            kept.into_iter()
                .take(SERIES_MAX)
                .map(|k| (k.key, k.expected)),
        );
    }

    /// The ranges that are worth keeping.
    pub fn kept(&self, now: Timestamp) -> Vec<Kept> {
        let own = self.series.iter().filter_map(|(key, series)| {
            let expected = series.baseline.expected()?;
            Some(Kept {
                key: key.clone(),
                expected,
                at: now,
            })
        });
        own.collect()
    }

    /// All ranges as they are now.
    pub fn freeze(&self, now: Moment) -> Frozen {
        let of = |(key, series): (&SeriesKey, &Series)| {
            Some((key.clone(), self.range(key, series, now)?))
        };
        let ranges = self.series.iter().filter_map(of).collect();
        Frozen {
            metrics: self.metrics.clone(),
            ranges,
        }
    }

    /// How many series there are, and how many of the last tick found no room.
    pub fn size(&self) -> (usize, u64) {
        (self.series.len(), self.refused)
    }

    /// The part of the series that trust their own baselines, 0 to 1.
    pub fn learned(&self, now: Moment) -> f64 {
        if self.series.is_empty() {
            return 0.0;
        }
        let own = self.series.values().filter(|s| self.is_own(s, now)).count();
        own as f64 / self.series.len() as f64
    }

    /// Judges every series of `tick` and learns from those that are normal. Returns what is an
    /// anomaly now, whether it was one before or not.
    pub fn observe(&mut self, tick: &Tick) -> Vec<Anomaly> {
        self.admit(tick);
        let mut found = Vec::new();
        let mut learn = Vec::new();
        for (scope, snapshots) in &tick.scopes {
            // What is reckoned from a part of the events is no anomaly, and not what is normal.
            let whole = snapshots.iter().filter(|s| !s.quality.is_scaled());
            for (name, value) in whole.flat_map(|s| &s.metrics) {
                let key = SeriesKey {
                    scope: scope.clone(),
                    metric: name.clone(),
                };
                let Some(series) = self.series.get(&key) else {
                    continue;
                };
                let range = self.range(&key, series, tick.at);
                let beyond =
                    range.filter(|(expected, _)| is_beyond(series.metric, expected, *value));
                learn.push((key.clone(), *value, beyond.is_some()));
                let Some((expected, source)) = beyond else {
                    continue;
                };
                // Where a fall means nothing there is no lower end.
                let expected = match series.metric.bad {
                    Bad::High | Bad::Never => Expected {
                        low: f64::NEG_INFINITY,
                        ..expected
                    },
                    Bad::Low | Bad::Both => expected,
                };
                let needed = match source {
                    Source::Own => STREAK,
                    Source::Borrowed => STREAK_BORROWED,
                };
                if series.streak + 1 >= needed {
                    found.push(Anomaly {
                        key,
                        expected,
                        seen: *value,
                        deviation: expected.deviation(*value),
                        since: series.since.unwrap_or(before(tick)),
                        source,
                        suffering: series.metric.suffering,
                    });
                }
            }
        }
        for (key, value, beyond) in learn {
            self.note(&key, value, beyond, tick);
        }
        self.forget(tick.at);
        found
    }

    fn note(&mut self, key: &SeriesKey, value: f64, beyond: bool, tick: &Tick) {
        let Some(series) = self.series.get_mut(key) else {
            return;
        };
        series.seen_at = tick.at;
        if beyond {
            series.streak += 1;
            let since = *series.since.get_or_insert(before(tick));
            if tick.at.since(&since) < RELEARN {
                return;
            }
        } else {
            series.streak = 0;
            series.since = None;
        }
        series.baseline.learn(value, series.metric);
    }

    fn admit(&mut self, tick: &Tick) {
        self.refused = 0;
        for (scope, snapshots) in &tick.scopes {
            let mut of_scope = 0;
            for name in snapshots.iter().flat_map(|s| s.metrics.keys()) {
                let Some(metric) = self.metrics.get(&**name) else {
                    continue;
                };
                let key = SeriesKey {
                    scope: scope.clone(),
                    metric: name.clone(),
                };
                of_scope += 1;
                if self.series.contains_key(&key) {
                    continue;
                }
                let full = *scope != Scope::Host && of_scope > SERIES_PER_TARGET;
                if full || self.series.len() >= SERIES_MAX {
                    self.refused += 1;
                    continue;
                }
                let series = Series {
                    metric,
                    born: tick.at,
                    seen_at: tick.at,
                    baseline: Baseline::default(),
                    streak: 0,
                    since: None,
                };
                self.series.insert(key, series);
            }
        }
    }

    fn forget(&mut self, now: Moment) {
        let former = &mut self.former;
        self.series.retain(|key, series| {
            let keep = now.since(&series.seen_at) < FORGET;
            if !keep && let Some(expected) = series.baseline.expected() {
                former.insert(key.clone(), expected);
            }
            keep
        });
        while self.former.len() > SERIES_MAX {
            self.former.pop_first();
        }
    }

    fn is_own(&self, series: &Series, now: Moment) -> bool {
        now.since(&series.born) >= self.config.learn && series.baseline.expected().is_some()
    }

    fn range(&self, key: &SeriesKey, series: &Series, now: Moment) -> Option<(Expected, Source)> {
        if self.is_own(series, now) {
            return Some((series.baseline.expected()?, Source::Own));
        }
        if let Some(former) = self.former.get(key) {
            return Some((*former, Source::Borrowed));
        }
        let limit = series.metric.never_normal?;
        let siblings = self.siblings(key, now).map(|high| high * SIBLINGS);
        Some((
            Expected::up_to(siblings.unwrap_or(limit).max(limit)),
            Source::Borrowed,
        ))
    }

    /// The widest range of the series of the same name in cgroups beside this one.
    fn siblings(&self, key: &SeriesKey, now: Moment) -> Option<f64> {
        let parent = parent(key.scope.path()?)?;
        let from = SeriesKey {
            scope: Scope::cgroup(parent),
            metric: Arc::from(""),
        };
        self.series
            .range(from..)
            .take_while(|(k, _)| k.scope.path().is_some_and(|p| p.starts_with(parent)))
            .filter(|(k, s)| {
                k.metric == key.metric
                    && k.scope != key.scope
                    && k.scope.path().and_then(self::parent) == Some(parent)
                    && self.is_own(s, now)
            })
            .filter_map(|(_, s)| s.baseline.expected())
            .map(|e| e.high)
            .max_by(f64::total_cmp)
    }
}

const _: () = assert!(ENOUGH > 1);

/// The beginning of the interval that `tick` ends.
fn before(tick: &Tick) -> Moment {
    Moment {
        mono: tick.at.mono.saturating_sub(tick.elapsed),
        wall: tick.at.wall - tick.elapsed,
    }
}

fn parent(path: &str) -> Option<&str> {
    let (parent, name) = path.rsplit_once('/')?;
    (!name.is_empty()).then_some(parent)
}

fn is_beyond(metric: &Metric, expected: &Expected, value: f64) -> bool {
    let far = (value - expected.median).abs() >= metric.floor;
    let high = value > expected.high;
    let low = value < expected.low;
    far && match metric.bad {
        Bad::High => high,
        Bad::Low => low,
        Bad::Both => high || low,
        Bad::Never => false,
    }
}
