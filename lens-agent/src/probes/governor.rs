//! Keeps what the kernel programs take within a budget.
//!
//! Their cost is measured in a short window of each interval. When its average over a minute is
//! beyond the budget, the dearest probe does without something: first without timing, then it counts
//! one event in so many, and only last it is detached. A probe on which an open incident stands is not
//! detached: lens must not go blind in the storm that it is there to explain. When the
//! average has been low for a while, the last step is taken back; a step that has to be taken
//! again soon stays longer.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What a probe does without, to cost less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Nothing is timed.
    Untimed,
    /// Of what is sampled anyway, one in so many; what is counted stays exact.
    Coarse(u32),
    /// One event in so many is counted, for as many.
    Sampled(u32),
    /// Nothing is counted.
    Detached,
}

impl Reduction {
    /// One in so many, if it says that.
    pub(super) fn one_in(self) -> Option<u32> {
        match self {
            Self::Coarse(n) | Self::Sampled(n) => Some(n),
            Self::Untimed | Self::Detached => None,
        }
    }

    /// In which order kinds of them are turned to.
    fn rank(self) -> u8 {
        match self {
            Self::Untimed | Self::Coarse(_) => 0,
            Self::Sampled(_) => 1,
            Self::Detached => 2,
        }
    }
}

impl std::fmt::Display for Reduction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untimed => f.write_str("nothing timed"),
            Self::Coarse(n) => write!(f, "details of 1 in {n}"),
            Self::Sampled(n) => write!(f, "1 in {n} counted"),
            Self::Detached => f.write_str("detached"),
        }
    }
}

/// Over how long the cost is averaged.
const AVERAGE: Duration = Duration::from_mins(1);
/// How long a step is given to show what it brings, before the next one.
const SETTLE: Duration = Duration::from_secs(15);
/// A probe that takes less than this part of the cost is left alone: what it would save is not worth
/// what it would not see.
const WORTH: f64 = 0.2;
/// Below this part of the budget, for [`CALM`], a step is taken back.
const LOW: f64 = 0.5;
/// How long the cost has to be low.
const CALM: Duration = Duration::from_mins(1);
/// A step that is taken again within this time after it was taken back stays twice as long as before.
const AGAIN: Duration = Duration::from_mins(10);
/// At the longest.
const CALM_MOST: Duration = Duration::from_mins(32);

/// What one probe takes, and what it can do without.
#[derive(Clone, Debug)]
pub struct Load {
    /// The probe.
    pub probe: &'static str,
    /// CPU time, as a part of the whole host's.
    pub part: f64,
    /// How it can be made cheaper, in order.
    pub reductions: &'static [Reduction],
    /// How many of these hold.
    pub reduced: usize,
}

/// A step that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The probe.
    pub probe: &'static str,
    /// How many of its reductions hold now.
    pub to: usize,
    /// The last of them.
    pub reduction: Option<Reduction>,
    /// Whether the probe got something back.
    pub is_relief: bool,
}

/// The budget, what was taken of it lately, and what is done without.
#[derive(Debug)]
pub struct Governor {
    /// As a part of the whole host's CPU time.
    budget: f64,
    /// When, for how long, and what part of the host's CPU time was taken.
    costs: VecDeque<(Duration, Duration, f64)>,
    observed_at: Option<Duration>,
    /// The probes in the order in which steps were taken.
    taken: Vec<&'static str>,
    stepped_at: Option<Duration>,
    relieved_at: Option<Duration>,
    low_since: Option<Duration>,
    calm: Duration,
}

impl Governor {
    /// With nothing to do without. `budget` is a part of the whole host's CPU time.
    pub fn new(budget: f64) -> Self {
        Self {
            budget,
            costs: VecDeque::new(),
            observed_at: None,
            taken: Vec::new(),
            stepped_at: None,
            relieved_at: None,
            low_since: None,
            calm: CALM,
        }
    }

    /// The average over the last minute; what is not known of it counts as nothing.
    fn average(&self) -> f64 {
        let taken = self.costs.iter();
        let taken: f64 = taken.map(|(_, over, cost)| over.as_secs_f64() * cost).sum();
        taken / AVERAGE.as_secs_f64()
    }

    /// Takes in what was measured at `now`, a time since some beginning. `needed` are the probes that
    /// an open incident stands on. At most one step at a time.
    pub fn observe(
        &mut self,
        now: Duration,
        loads: &[Load],
        needed: &BTreeSet<&'static str>,
    ) -> Option<Step> {
        let cost: f64 = loads.iter().map(|load| load.part).sum();
        let over = now.saturating_sub(self.observed_at.replace(now).unwrap_or(now));
        self.costs.push_back((now, over, cost));
        while let Some((at, ..)) = self.costs.front()
            && now.saturating_sub(*at) > AVERAGE
        {
            self.costs.pop_front();
        }
        let is_low = cost < self.budget * LOW && self.average() < self.budget;
        let low_since = *self.low_since.get_or_insert(now);
        if !is_low {
            self.low_since = None;
        }
        let settled = self
            .stepped_at
            .is_none_or(|at| now.saturating_sub(at) >= SETTLE);
        if !settled {
            return None;
        }
        if self.average() > self.budget && cost > self.budget {
            return self.reduce(now, loads, cost, needed);
        }
        if is_low && now.saturating_sub(low_since) >= self.calm {
            return self.relieve(now, loads);
        }
        None
    }

    fn reduce(
        &mut self,
        now: Duration,
        loads: &[Load],
        cost: f64,
        needed: &BTreeSet<&'static str>,
    ) -> Option<Step> {
        let next = |load: &Load| load.reductions.get(load.reduced).copied();
        let possible = loads.iter().filter_map(|load| Some((load, next(load)?)));
        let (load, reduction) = possible
            .filter(|(load, next)| {
                load.part >= WORTH * cost
                    && (*next != Reduction::Detached || !needed.contains(load.probe))
            })
            .min_by(|(a, x), (b, y)| x.rank().cmp(&y.rank()).then(b.part.total_cmp(&a.part)))?;
        let to = load.reduced + 1;
        let again = self
            .relieved_at
            .is_some_and(|at| now.saturating_sub(at) < AGAIN);
        self.calm = if again {
            CALM_MOST.min(self.calm * 2)
        } else {
            CALM
        };
        self.taken.push(load.probe);
        let step = Step {
            probe: load.probe,
            to,
            reduction: Some(reduction),
            is_relief: false,
        };
        self.begin_anew(now);
        Some(step)
    }

    fn relieve(&mut self, now: Duration, loads: &[Load]) -> Option<Step> {
        let probe = self.taken.pop()?;
        self.relieved_at = Some(now);
        let load = loads.iter().find(|load| load.probe == probe)?;
        let to = load.reduced.saturating_sub(1);
        let step = Step {
            probe,
            to,
            reduction: load.reductions.get(..to)?.last().copied(),
            is_relief: true,
        };
        self.begin_anew(now);
        Some(step)
    }

    /// After a step: what was before it says nothing of what comes.
    fn begin_anew(&mut self, now: Duration) {
        self.stepped_at = Some(now);
        self.low_since = None;
        self.costs.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SYSCALLS: &[Reduction] = &[
        Reduction::Untimed,
        Reduction::Sampled(16),
        Reduction::Detached,
    ];
    const MEMORY: &[Reduction] = &[Reduction::Sampled(16), Reduction::Detached];

    /// What each probe takes when so many of its reductions hold.
    type Costs<'a> = &'a [(&'static str, &'static [Reduction], &'a [f64])];

    /// A governor, and what holds because of it.
    struct Governed(Governor, BTreeMap<&'static str, usize>);

    impl Governed {
        fn new() -> Self {
            Self(Governor::new(0.01), BTreeMap::new())
        }

        fn reduced(&self, probe: &str) -> usize {
            self.1.get(probe).copied().unwrap_or_default()
        }
    }

    fn run(
        governor: &mut Governed,
        secs: std::ops::Range<u64>,
        costs: Costs<'_>,
        needed: &[&'static str],
    ) -> Vec<(u64, Step)> {
        let needed = needed.iter().copied().collect();
        let mut steps = Vec::new();
        for sec in secs {
            let loads: Vec<Load> = costs
                .iter()
                .map(|(probe, reductions, parts)| Load {
                    probe,
                    part: parts[governor.reduced(probe)],
                    reductions,
                    reduced: governor.reduced(probe),
                })
                .collect();
            let step = governor
                .0
                .observe(Duration::from_secs(sec), &loads, &needed);
            if let Some(step) = step {
                governor.1.insert(step.probe, step.to);
                steps.push((sec, step));
            }
        }
        steps
    }

    #[test]
    fn within_the_budget_nothing_happens() {
        let mut governor = Governed::new();
        let quiet: Costs<'_> = &[("syscalls", SYSCALLS, &[0.009; 4])];
        assert_eq!(run(&mut governor, 0..600, quiet, &[]), []);
    }

    #[test]
    fn a_short_burst_is_averaged_away() {
        let mut governor = Governed::new();
        let quiet: Costs<'_> = &[("syscalls", SYSCALLS, &[0.001; 4])];
        let burst: Costs<'_> = &[("syscalls", SYSCALLS, &[0.1; 4])];
        assert_eq!(run(&mut governor, 0..60, quiet, &[]), []);
        assert_eq!(run(&mut governor, 60..65, burst, &[]), []);
        assert_eq!(run(&mut governor, 65..120, quiet, &[]), []);
    }

    #[test]
    fn timing_goes_first_then_events_then_the_probe() {
        let mut governor = Governed::new();
        let storm: Costs<'_> = &[
            ("syscalls", SYSCALLS, &[0.05, 0.04, 0.03, 0.0]),
            ("memory", MEMORY, &[0.06, 0.02, 0.0]),
        ];
        let steps = run(&mut governor, 0..300, storm, &[]);
        let down = steps.iter().take_while(|(_, step)| !step.is_relief);
        let order: Vec<_> = down.map(|(_, s)| (s.probe, s.reduction)).collect();
        assert_eq!(
            order,
            [
                ("syscalls", Some(Reduction::Untimed)),
                ("memory", Some(Reduction::Sampled(16))),
                ("syscalls", Some(Reduction::Sampled(16))),
                ("syscalls", Some(Reduction::Detached)),
                ("memory", Some(Reduction::Detached)),
            ],
            "timing before anything else, then the dearest"
        );
        for pair in steps.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= SETTLE.as_secs(), "{pair:?}");
        }
    }

    #[test]
    fn a_probe_that_an_incident_stands_on_is_not_detached() {
        let mut governor = Governed::new();
        let storm: Costs<'_> = &[("syscalls", SYSCALLS, &[0.05, 0.04, 0.03, 0.0])];
        let steps = run(&mut governor, 0..600, storm, &["syscalls"]);
        assert_eq!(governor.reduced("syscalls"), 2);
        assert_eq!(steps.len(), 2);
        run(&mut governor, 600..700, storm, &[]);
        assert_eq!(governor.reduced("syscalls"), 3, "once the incident is over");
    }

    #[test]
    fn it_comes_back_and_waits_longer_each_time_it_was_wrong() {
        let mut governor = Governed::new();
        let storm: Costs<'_> = &[("syscalls", SYSCALLS, &[0.05, 0.004, 0.004, 0.0])];
        let steps = run(&mut governor, 0..1200, storm, &[]);
        let reliefs: Vec<u64> = steps
            .iter()
            .filter(|(_, s)| s.is_relief)
            .map(|(at, _)| *at)
            .collect();
        assert!(reliefs.len() >= 3, "{steps:?}");
        let gaps: Vec<u64> = reliefs.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.windows(2).all(|pair| pair[1] > pair[0]), "{gaps:?}");
        let quiet: Costs<'_> = &[("syscalls", SYSCALLS, &[0.001; 4])];
        run(&mut governor, 1200..5000, quiet, &[]);
        assert_eq!(governor.reduced("syscalls"), 0);
    }
}
