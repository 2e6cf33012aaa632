//! What the storms have in common: one cgroup does much more of something than it used to, and it
//! makes most of what the host has of it.

use super::Proposal;
use crate::{
    base::scope::Scope,
    investigate::{case::Case, category::Category, claim::Statement},
};

/// A rate that rose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storm {
    pub(super) category: Category,
    /// What there is so much of.
    pub(super) metric: &'static str,
    /// The part of the host's that makes it this cgroup's storm.
    pub(super) share: f64,
    /// What to do.
    pub(super) advice: &'static str,
}

impl Storm {
    /// One proposal for each cgroup whose rate is an anomaly of the case.
    pub(super) fn propose(&self, case: &Case<'_>, also: &[&'static str]) -> Vec<Proposal> {
        case.anomalous(self.metric)
            .filter(|scope| **scope != Scope::Host)
            .map(|scope| self.of(scope, also))
            .collect()
    }

    fn of(&self, scope: &Scope, also: &[&'static str]) -> Proposal {
        let metric = self.metric;
        let rose = |metric| Statement::Rose {
            scope: scope.clone(),
            metric,
        };
        Proposal {
            category: self.category,
            culprit: Some(scope.clone()),
            victims: Vec::new(),
            required: vec![
                rose(metric),
                Statement::Share {
                    scope: scope.clone(),
                    metric,
                    least: self.share,
                },
            ],
            supporting: also.iter().map(|metric| rose(metric)).collect(),
            next_steps: vec![self.advice.replace("{}", scope.as_str())],
        }
    }
}
