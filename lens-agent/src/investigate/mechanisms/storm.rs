//! What the storms have in common: one cgroup does much more of something than it used to, and it
//! makes most of what the host has of it.

use super::Proposal;
use crate::{
    base::scope::Scope,
    investigate::{case::Case, category::Category, claim::Statement},
};

/// Processes started.
const FORKS: &str = "forks_per_sec";

/// A rate that rose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storm {
    pub(super) category: Category,
    /// What there is so much of.
    pub(super) metric: &'static str,
    /// The part of the host's that makes it this cgroup's storm.
    pub(super) share: f64,
    /// How much of it a process takes as it starts, with room to spare. Where starts explain it, it
    /// is they of which there are too many: then starts must be as usual.
    pub(super) of_a_start: Option<f64>,
    /// What to do.
    pub(super) advice: &'static str,
}

impl Storm {
    /// One proposal for each cgroup whose rate is an anomaly of the case.
    pub(super) fn propose(&self, case: &Case<'_>, also: &[&'static str]) -> Vec<Proposal> {
        case.anomalous(self.metric)
            .filter(|scope| **scope != Scope::Host)
            .map(|scope| self.of(case, scope, also))
            .collect()
    }

    /// Whether the processes that start may be all that is behind it.
    fn is_of_starts(&self, case: &Case<'_>, scope: &Scope) -> bool {
        let value = |metric| case.value(scope, metric).unwrap_or_default();
        self.of_a_start
            .is_some_and(|each| value(self.metric) < each * value(FORKS))
    }

    fn of(&self, case: &Case<'_>, scope: &Scope, also: &[&'static str]) -> Proposal {
        let metric = self.metric;
        let starts = self.is_of_starts(case, scope).then(|| Statement::Normal {
            scope: scope.clone(),
            metric: FORKS,
        });
        let rose = |metric| Statement::Rose {
            scope: scope.clone(),
            metric,
        };
        Proposal {
            category: self.category,
            culprit: Some(scope.clone()),
            victims: Vec::new(),
            required: [
                rose(metric),
                Statement::Share {
                    scope: scope.clone(),
                    metric,
                    least: self.share,
                },
            ]
            .into_iter()
            .chain(starts)
            .collect(),
            supporting: also.iter().map(|metric| rose(metric)).collect(),
            next_steps: vec![self.advice.replace("{}", scope.as_str())],
        }
    }
}
