//! Is held back by its own CPU quota.
//!
//! Told from contention: the kernel's own throttling clock covers the wait, nobody else does. The
//! culprit is the cgroup itself: its limit must change, or what it does.

use super::{Mechanism, Proposal};
use crate::{
    base::scope::Scope,
    investigate::{case::Case, category::Category, claim::Statement},
};

#[derive(Debug)]
pub(super) struct CpuThrottling;

const QUOTA: &str = "runq_wait_quota_ms_per_sec";
/// The quota's part of all waits that makes it the cause.
const LEAST: f64 = 0.4;

impl Mechanism for CpuThrottling {
    fn category(&self) -> Category {
        Category::CpuThrottling
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        let throttled = case.anomalous(QUOTA).filter(|scope| **scope != Scope::Host);
        throttled
            .map(|scope| Proposal {
                category: self.category(),
                culprit: Some(scope.clone()),
                victims: vec![scope.clone()],
                required: vec![
                    Statement::Rose { scope: scope.clone(), metric: QUOTA },
                    Statement::Part {
                        scope: scope.clone(),
                        metric: QUOTA,
                        of: "runq_wait_ms_per_sec",
                        least: LEAST,
                    },
                ],
                supporting: vec![
                    Statement::Rose {
                        scope: scope.clone(),
                        metric: "throttled_periods_percent",
                    },
                    Statement::Normal {
                        scope: scope.clone(),
                        metric: super::cpu_contention::WAIT,
                    },
                ],
                next_steps: vec![format!(
                    "Raise the CPU quota of {scope} (cpu.max, or cpu.cfs_quota_us on cgroup v1), or make it need less."
                )],
            })
            .collect()
    }
}
