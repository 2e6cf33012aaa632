//! Counters by name and labels, in memory and bounded.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

/// Label sets kept for each counter; what comes after is counted as [`OTHER`].
pub const MAX_LABEL_SETS: usize = 64;

/// The value of every label of what found no room.
pub const OTHER: &str = "other";

/// The definition of a counter.
#[derive(Debug, PartialEq, Eq)]
pub struct Counter {
    /// `lens_<noun>_<unit>`. Without `_total`, which the Prometheus encoder adds.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

/// A counter with one set of labels, as it stands now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterValue {
    /// The counter's name.
    pub name: &'static str,
    /// The counter's help.
    pub help: &'static str,
    /// Name and value of each label.
    pub labels: Vec<(&'static str, String)>,
    /// Never falls while the agent runs.
    pub value: u64,
}

#[derive(Debug)]
struct Family {
    counter: &'static Counter,
    by_labels: BTreeMap<Vec<String>, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    value: u64,
    additions: u64,
}

/// The counters, each by its label values.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<BTreeMap<&'static str, Family>>);

impl Counters {
    /// Makes a counter known, so that one without labels shows 0 before its first event.
    pub(super) fn declare(&self, counter: &'static Counter) {
        let mut families = self.lock();
        let family = families
            .entry(counter.name)
            .or_insert_with(|| Family::new(counter));
        if counter.labels.is_empty() {
            family.by_labels.entry(Vec::new()).or_default();
        }
    }

    /// Adds `by`, and returns how often that was done with these labels, this time included.
    pub(super) fn add(&self, counter: &'static Counter, labels: &[&str], by: u64) -> u64 {
        let mut families = self.lock();
        let family = families
            .entry(counter.name)
            .or_insert_with(|| Family::new(counter));
        let mut key: Vec<String> = labels.iter().map(|&value| value.to_owned()).collect();
        if family.by_labels.len() >= MAX_LABEL_SETS && !family.by_labels.contains_key(&key) {
            key.fill(OTHER.to_owned());
        }
        let tally = family.by_labels.entry(key).or_default();
        tally.value = tally.value.saturating_add(by);
        tally.additions += 1;
        tally.additions
    }

    pub(super) fn total(&self, name: &str) -> u64 {
        self.lock()
            .get(name)
            .map_or(0, |family| family.by_labels.values().map(|t| t.value).sum())
    }

    pub(super) fn values(&self) -> Vec<CounterValue> {
        let families = self.lock();
        let values = families.values().flat_map(|Family { counter, by_labels }| {
            by_labels.iter().map(|(labels, tally)| CounterValue {
                name: counter.name,
                help: counter.help,
                labels: counter
                    .labels
                    .iter()
                    .copied()
                    .zip(labels.iter().cloned())
                    .collect(),
                value: tally.value,
            })
        });
        values.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Family {
    fn new(counter: &'static Counter) -> Self {
        Self {
            counter,
            by_labels: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static READS: Counter = Counter {
        name: "lens_reads",
        help: "Reads.",
        labels: &["source"],
    };

    #[test]
    fn label_sets_are_bounded() {
        let counters = Counters::default();
        for n in 0..200 {
            counters.add(&READS, &[&format!("file {n}")], 1);
        }
        counters.add(&READS, &["file 0"], 1);
        let values = counters.values();
        assert_eq!(values.len(), MAX_LABEL_SETS + 1);
        assert_eq!(counters.total(READS.name), 201);
        let value = |label: &str| {
            values
                .iter()
                .find(|v| v.labels[0].1 == label)
                .unwrap()
                .value
        };
        assert_eq!(value("file 0"), 2);
        assert_eq!(value(OTHER), 200 - 64);
    }
}
