//! What a number did not see. Travels with every reading into the insight, where it caps confidence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that cannot be seen, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Missing {
    /// The probe, host file or part of one.
    pub probe: String,
    /// The reason, for a person.
    pub why: String,
}

/// Losses, sampling and blind spots of a reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Events that found no room, by map.
    pub lost: BTreeMap<String, u64>,
    /// Probes of which only one event in `n` was measured.
    pub sampled: BTreeMap<String, u64>,
    /// What could not be seen at all.
    pub missing: Vec<Missing>,
    /// Waits that were still under way when the maps were read; counted as far as they had come.
    pub censored: u64,
}

impl Quality {
    /// Takes over what `other` missed as well.
    pub fn merge(&mut self, other: &Self) {
        for (map, n) in &other.lost {
            *self.lost.entry(map.clone()).or_default() += n;
        }
        for (probe, n) in &other.sampled {
            let mine = self.sampled.entry(probe.clone()).or_default();
            *mine = (*mine).max(*n);
        }
        for missing in &other.missing {
            if !self.missing.contains(missing) {
                self.missing.push(missing.clone());
            }
        }
        self.censored += other.censored;
    }

    /// Whether a probe counted only one event in so many, and not just took a part of its details by
    /// chance as it always does.
    pub fn is_scaled(&self) -> bool {
        self.sampled.keys().any(|name| !name.contains('.'))
    }

    /// Notes that `probe` cannot be seen.
    pub fn miss(&mut self, probe: impl Into<String>, why: impl Into<String>) {
        let missing = Missing {
            probe: probe.into(),
            why: why.into(),
        };
        if !self.missing.contains(&missing) {
            self.missing.push(missing);
        }
    }
}
