//! What an investigation has before it.

use std::sync::Arc;

use crate::{
    anomaly::{Incident, Ranges, Source},
    base::{
        clock::Moment,
        metric::{Bad, Metric},
        scope::Scope,
        snapshot::By,
    },
    history::Tick,
};

/// Ticks before the onset without which there is no "before".
const ENOUGH: usize = 3;
/// What was seen before the onset may be exceeded by this factor before it counts as a change.
const HEADROOM: f64 = 1.25;

/// An incident, and all that was seen around it.
#[derive(Debug)]
pub struct Case<'a> {
    /// The incident.
    pub incident: &'a Incident,
    /// When it began, as far as is known.
    pub onset: Moment,
    /// The newest snapshots.
    pub newest: &'a Tick,
    before: Vec<&'a Tick>,
    since: Vec<&'a Tick>,
    ranges: &'a dyn Ranges,
}

/// What is normal for a series, from which side it can be bad.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// A value above is not.
    pub high: f64,
    /// A value below is not.
    pub low: f64,
    /// In the middle.
    pub median: f64,
    /// Whose range it is.
    pub source: Source,
}

impl<'a> Case<'a> {
    /// `ticks` are the recent ones, oldest first; `None` if there are none.
    pub fn new(
        incident: &'a Incident,
        onset: Moment,
        ticks: &'a [Arc<Tick>],
        ranges: &'a dyn Ranges,
    ) -> Option<Self> {
        let newest = ticks.last()?;
        let (before, since): (Vec<&Tick>, Vec<&Tick>) =
            ticks.iter().map(|t| &**t).partition(|t| t.at <= onset);
        Some(Self {
            incident,
            onset,
            newest,
            before,
            since,
            ranges,
        })
    }

    /// The number now.
    pub fn value(&self, scope: &Scope, metric: &str) -> Option<f64> {
        self.newest.value(scope, metric)
    }

    /// The definition of a metric.
    pub fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.ranges.metric(name)
    }

    /// Scopes with an anomaly in this incident, `metric` only.
    pub fn anomalous<'c>(&'c self, metric: &'c str) -> impl Iterator<Item = &'c Scope> {
        let of_metric = self
            .incident
            .series
            .iter()
            .filter(move |s| &*s.metric == metric);
        of_metric.map(|s| &s.scope)
    }

    /// Cgroups of the incident, each once.
    pub fn cgroups(&self) -> Vec<&Scope> {
        let mut found: Vec<&Scope> = Vec::new();
        for series in &self.incident.series {
            if series.scope != Scope::Host && !found.contains(&&series.scope) {
                found.push(&series.scope);
            }
        }
        found
    }

    /// The onset of `metric` in `scope`, if it is an anomaly of this incident.
    pub fn onset_of(&self, scope: &Scope, metric: &str) -> Option<jiff::Timestamp> {
        let series = self.incident.series.iter();
        series
            .filter(|s| s.scope == *scope && &*s.metric == metric)
            .map(|s| s.since)
            .min()
    }

    /// Values of a series (or of one pair of it) before the onset, oldest first.
    pub fn before(&self, scope: &Scope, metric: &str, by: Option<&By>) -> Vec<f64> {
        values(&self.before, scope, metric, by)
    }

    /// Values since the onset, oldest first.
    pub fn since(&self, scope: &Scope, metric: &str) -> Vec<f64> {
        values(&self.since, scope, metric, None)
    }

    /// Whether anything was seen before the onset.
    pub fn has_before(&self) -> bool {
        !self.before.is_empty()
    }

    /// Whether the cgroup was there before the onset.
    pub fn was_there(&self, scope: &Scope) -> bool {
        self.before.len() >= ENOUGH && self.before.iter().all(|t| t.scopes.contains_key(scope))
    }

    /// What is normal: the series' own baseline; else what was seen before the onset; else, for a
    /// cgroup that was not there before, nothing at all; else what the detector borrows.
    pub fn normal(&self, scope: &Scope, metric: &str) -> Option<Normal> {
        let definition = self.metric(metric)?;
        let judged = self.ranges.expected(scope, metric, self.newest.at);
        if let Some((expected, Source::Own)) = judged
            && definition.bad != Bad::Never
        {
            let (high, low, median) = (expected.high, expected.low, expected.median);
            return Some(Normal {
                high,
                low,
                median,
                source: Source::Own,
            });
        }
        let mut values = self.before(scope, metric, None);
        if values.len() >= ENOUGH {
            values.sort_by(f64::total_cmp);
            let (least, most) = (values[0], values[values.len() - 1]);
            return Some(Normal {
                high: (most * HEADROOM).max(most + definition.floor),
                low: (least / HEADROOM).min(least - definition.floor),
                median: values[values.len() / 2],
                source: Source::Own,
            });
        }
        if !self.before.is_empty() && !self.before.iter().any(|t| t.scopes.contains_key(scope)) {
            let high = definition.floor;
            return Some(Normal {
                high,
                low: f64::MIN,
                median: 0.0,
                source: Source::Borrowed,
            });
        }
        let (expected, source) = judged?;
        let (high, low, median) = (expected.high, expected.low, expected.median);
        Some(Normal {
            high,
            low,
            median,
            source,
        })
    }

    /// Whether the number now is above what is normal.
    pub fn rose(&self, scope: &Scope, metric: &str) -> bool {
        let value = self.value(scope, metric);
        matches!((value, self.normal(scope, metric)), (Some(v), Some(n)) if v > n.high)
    }

    /// The most there was before the onset, with a quarter more; `None` if nothing was seen.
    pub fn most_before(&self, scope: &Scope, metric: &str) -> Option<f64> {
        let before = self.before(scope, metric, None);
        before
            .into_iter()
            .max_by(f64::total_cmp)
            .map(|most| most * HEADROOM)
    }

    /// Whether there is more than before the onset.
    pub fn grew(&self, scope: &Scope, metric: &str) -> bool {
        let (now, most) = (self.value(scope, metric), self.most_before(scope, metric));
        matches!((now, most), (Some(now), Some(most)) if now > most)
    }

    /// Which cgroups caused `metric` in `scope`, largest part first.
    pub fn causers(&self, scope: &Scope, metric: &'a str) -> Vec<(Arc<str>, f64)> {
        let pairs = self.newest.pairs(scope, metric);
        pairs
            .filter_map(|p| match &p.by {
                By::Cgroup(path) => Some((path.clone(), p.value)),
                _ => None,
            })
            .collect()
    }
}

fn values(ticks: &[&Tick], scope: &Scope, metric: &str, by: Option<&By>) -> Vec<f64> {
    ticks
        .iter()
        .filter_map(|t| match by {
            None => t.value(scope, metric),
            Some(by) => t.pair(scope, metric, by),
        })
        .collect()
}
