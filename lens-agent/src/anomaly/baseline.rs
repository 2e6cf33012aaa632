//! What a series normally does.
//!
//! Centre is the median, spread the median distance from it: a storm within the window moves
//! neither. Tails are taken to be those of a Laplace distribution, because what a host counts is
//! burstier than a Gaussian: with `b = MAD / ln 2`, the chance of a value at least `d` above the
//! median is `exp(-d / b) / 2`.

use serde::{Deserialize, Serialize};

use crate::base::{metric::Metric, ring::Ring};

/// Values a series is judged by.
const WINDOW: usize = 120;
/// Values without which there is no judgement.
pub(super) const ENOUGH: usize = 8;
/// The tail probability at which a value is out of range: once in ten thousand.
const TAIL: f64 = 1e-4;
/// A spread is at least this part of the median: a series that hardly moves is not an exact one.
const LEAST_SPREAD: f64 = 0.05;
/// Of the values, this percentage at each end, but at least one, is chance: what happened once
/// while learning (the agent's own start, say) is not what is usual.
const RARE: usize = 3;
/// The largest deviation that is told apart.
const DEVIATION_MAX: f64 = 300.0;

/// The range that is normal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Below this is not.
    pub low: f64,
    /// Above this is not.
    pub high: f64,
    /// The middle.
    pub median: f64,
    /// The scale `b` of the tails.
    pub scale: f64,
}

impl Expected {
    /// From a number of values of `metric`.
    fn of(values: &mut [f64], metric: &Metric) -> Option<Self> {
        if values.len() < ENOUGH {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let rare = (values.len() * RARE / 100).max(1);
        let (least, most) = (values[rare], values[values.len() - 1 - rare]);
        let median = values[values.len() / 2];
        let mut distances: Vec<f64> = values.iter().map(|v| (v - median).abs()).collect();
        distances.sort_by(f64::total_cmp);
        let tail = (0.5 / TAIL).ln();
        let scale = (distances[distances.len() / 2] / std::f64::consts::LN_2)
            .max(LEAST_SPREAD * median.abs())
            .max(metric.floor / tail);
        Some(Self {
            // What was seen again and again while learning is normal, however far out; a fall counts
            // from half of the least.
            high: (median + scale * tail).max(most),
            low: (median - scale * tail).min(least / 2.0),
            median,
            scale,
        })
    }

    /// A range that was borrowed: only its upper end means anything.
    pub fn up_to(high: f64) -> Self {
        Self {
            low: f64::NEG_INFINITY,
            high,
            median: 0.0,
            scale: high / (0.5 / TAIL).ln(),
        }
    }

    /// `-log10` of the chance of a value as far from the median as `seen`.
    pub fn deviation(&self, seen: f64) -> f64 {
        let distance = (seen - self.median).abs();
        let deviation = distance / (self.scale.max(f64::MIN_POSITIVE) * std::f64::consts::LN_10);
        (deviation + std::f64::consts::LOG10_2).min(DEVIATION_MAX)
    }
}

/// The values behind a range, newest last.
#[derive(Clone, Debug)]
pub struct Baseline {
    values: Ring<f64>,
    expected: Option<Expected>,
    stale: u32,
}

/// Values between two computations of the range, once there are many.
const REFRESH: u32 = 8;

impl Default for Baseline {
    fn default() -> Self {
        Self {
            values: Ring::new(WINDOW),
            expected: None,
            stale: 0,
        }
    }
}

impl Baseline {
    /// Learns one value.
    pub fn learn(&mut self, value: f64, metric: &Metric) {
        self.values.push(value);
        self.stale += 1;
        if self.stale >= REFRESH || self.values.len() < WINDOW / 2 || self.expected.is_none() {
            let mut values: Vec<f64> = self.values.iter().copied().collect();
            self.expected = Expected::of(&mut values, metric);
            self.stale = 0;
        }
    }

    /// What is normal, once there are enough values.
    pub fn expected(&self) -> Option<Expected> {
        self.expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metric::{Bad, Unit, gauge};

    const METRIC: Metric = gauge("m_bytes", Unit::Bytes, Bad::Both, 10.0, "");

    fn learned(values: impl IntoIterator<Item = f64>) -> Expected {
        let mut baseline = Baseline::default();
        values.into_iter().for_each(|v| baseline.learn(v, &METRIC));
        baseline.expected().unwrap()
    }

    #[test]
    fn a_constant_has_a_range_and_what_leaves_it_deviates() {
        let zero = learned(vec![0.0; 30]);
        assert_eq!(
            (zero.median, zero.high),
            (0.0, 10.0),
            "the floor is the range of a constant"
        );
        assert!(zero.deviation(100.0) > 30.0);
        let level = learned(vec![1000.0; 30]);
        assert!(level.high > 1200.0 && level.high < 1600.0, "{level:?}");
        assert!(level.low <= 500.0);
    }

    #[test]
    fn one_spike_moves_nothing_and_what_comes_again_is_usual() {
        let mut values = vec![100.0; 40];
        values[20] = 5000.0;
        let range = learned(values.clone());
        assert_eq!(range.median, 100.0);
        assert!(range.high < 200.0, "{range:?}");
        assert!(range.deviation(5000.0) > 100.0);
        values[30] = 5000.0;
        assert_eq!(learned(values).high, 5000.0);
    }

    #[test]
    fn too_few_values_are_no_baseline() {
        let mut baseline = Baseline::default();
        (0..ENOUGH - 1).for_each(|_| baseline.learn(1.0, &METRIC));
        assert_eq!(baseline.expected(), None);
    }
}
