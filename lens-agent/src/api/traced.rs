//! The shape of a function trace.

use std::path::PathBuf;

use lens_common::hist::Hist;
use serde::{Deserialize, Serialize};

use crate::{
    base::quality::Quality,
    probes::{Ended, FunctionCalls, FunctionReading, Means, prologue::Place},
    skills::quantile_us,
};

/// The calls of a function over a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// The program or library; none of a function of the kernel.
    pub file: Option<PathBuf>,
    /// The symbol.
    pub function: String,
    /// By what its calls were seen.
    pub by: Means,
    /// The instruction that was trapped, in a file.
    pub place: Option<Place>,
    /// What a hit costs whoever calls, in nanoseconds: trap and program, measured before the trace.
    pub hit_ns: Option<u64>,
    /// The same of all hits, in milliseconds.
    pub cost_ms: Option<f64>,
    /// The same as a percentage of one CPU's time.
    pub cost_percent: Option<f64>,
    /// Whether calls were timed, too.
    pub timed: bool,
    /// The time, in milliseconds.
    pub elapsed_ms: f64,
    /// What ended it.
    pub ended: Ended,
    /// Calls in all.
    pub calls: u64,
    /// The same, a second.
    pub calls_per_sec: f64,
    /// Calls after the last that counts.
    pub overshoot: u64,
    /// Traps in all, also of those whose calls do not count.
    pub traps: u64,
    /// Who called, most calls first.
    pub cgroups: Vec<Caller>,
    /// Calls that were made within another one.
    pub nested: u64,
    /// Of them, those too deep to be timed.
    pub too_deep: u64,
    /// Returns that were jumped over.
    pub missing_returns: u64,
    /// Calls that were under way at the end.
    pub under_way: u64,
    /// What was not seen.
    pub quality: Quality,
}

/// The calls of one cgroup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Caller {
    /// Its path.
    pub cgroup: String,
    /// Its calls.
    pub calls: u64,
    /// The same, a second.
    pub calls_per_sec: f64,
    /// Calls that were timed.
    pub returns: u64,
    /// Their time on average, in microseconds, as all that follow.
    pub mean_us: Option<f64>,
    /// Half of them took no longer.
    pub p50_us: Option<f64>,
    /// Of a hundred, 99 took no longer.
    pub p99_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
    /// How many took how long.
    pub histogram: Vec<Bar>,
}

/// Calls that took from `from_us` up to, not including, `to_us`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// The lower end, in microseconds.
    pub from_us: f64,
    /// The upper end.
    pub to_us: f64,
    /// How many.
    pub calls: u64,
}

impl From<&FunctionReading> for Traced {
    fn from(reading: &FunctionReading) -> Self {
        let mut cgroups: Vec<Caller> = reading
            .cgroups
            .iter()
            .map(|(cgroup, calls)| Caller::of(cgroup, calls, reading))
            .collect();
        cgroups.sort_by_key(|caller| std::cmp::Reverse(caller.calls));
        Self {
            file: reading.file.clone(),
            function: reading.function.clone(),
            by: reading.by,
            place: reading.place.clone(),
            hit_ns: reading.hit_ns,
            cost_ms: reading.cost().map(|cost| cost.as_secs_f64() * 1e3),
            cost_percent: reading.cost_percent(),
            timed: reading.timed,
            elapsed_ms: reading.elapsed.as_secs_f64() * 1e3,
            ended: reading.ended,
            calls: reading.calls,
            calls_per_sec: reading.per_sec(reading.calls),
            overshoot: reading.overshoot,
            traps: reading.traps,
            cgroups,
            nested: reading.nested,
            too_deep: reading.deep,
            missing_returns: reading.missing,
            under_way: reading.under_way,
            quality: reading.quality.clone(),
        }
    }
}

impl Caller {
    fn of(cgroup: &str, calls: &FunctionCalls, reading: &FunctionReading) -> Self {
        let any = calls.returns != 0;
        let max_us = calls.max_ns as f64 / 1e3;
        // A bucket's upper end may lie above the longest call.
        let quantile = |q| quantile_us(&calls.hist, q).map(|us| us.min(max_us));
        Self {
            cgroup: cgroup.to_owned(),
            calls: calls.calls,
            calls_per_sec: reading.per_sec(calls.calls),
            returns: calls.returns,
            mean_us: any.then(|| calls.total_ns as f64 / calls.returns as f64 / 1e3),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: any.then_some(max_us),
            histogram: bars(&calls.hist),
        }
    }
}

/// From the first bucket that holds calls to the last.
fn bars(hist: &Hist) -> Vec<Bar> {
    let first = hist.iter().position(|n| *n != 0).unwrap_or(hist.len());
    let last = hist.iter().rposition(|n| *n != 0).map_or(0, |at| at + 1);
    let edge = |at: usize| {
        if at == 0 {
            0.0
        } else {
            (1_u64 << at) as f64 / 1e3
        }
    };
    (first..last)
        .map(|at| Bar {
            from_us: edge(at),
            to_us: edge(at + 1),
            calls: hist[at],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_go_from_the_first_call_to_the_last() {
        let mut hist = Hist::default();
        hist[0] = 1;
        hist[2] = 3;
        let found: Vec<_> = bars(&hist)
            .iter()
            .map(|b| (b.from_us, b.to_us, b.calls))
            .collect();
        assert_eq!(
            found,
            [(0.0, 0.002, 1), (0.002, 0.004, 0), (0.004, 0.008, 3)]
        );
        assert!(bars(&Hist::default()).is_empty());
    }
}
