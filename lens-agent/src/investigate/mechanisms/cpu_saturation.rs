//! Burns CPU, and nobody waits.
//!
//! Told from contention: no other cgroup's waits rose. Told from load and from a job that was
//! started to burn CPU: a process that was there before, and did something else, has begun to use
//! a whole CPU. Eight spinners that were started to spin are somebody's business, not a fault.

use super::{Mechanism, Proposal, cpu_contention::WAIT};
use crate::{
    base::scope::Scope,
    investigate::{case::Case, category::Category, claim::Statement},
};

#[derive(Debug)]
pub(super) struct CpuSaturation;

const CPU: &str = "cpu_ms_per_sec";
/// What a process that does nothing else gets of a CPU, interrupts and switches taken off.
const WHOLE_CPU: f64 = 850.0;
/// How much longer than since the onset the process must have been there (s).
const OLDER: f64 = 3.0;

impl Mechanism for CpuSaturation {
    fn category(&self) -> Category {
        Category::CpuSaturation
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        let burning = case.anomalous(CPU).filter(|scope| **scope != Scope::Host);
        burning
            .filter(|scope| is_runaway(case, scope))
            .map(|scope| proposal(case, scope))
            .collect()
    }
}

fn is_runaway(case: &Case<'_>, scope: &Scope) -> bool {
    let busiest = case
        .value(scope, "busiest_process_cpu_ms_per_sec")
        .unwrap_or_default();
    let age = case
        .value(scope, "busiest_process_age_seconds")
        .unwrap_or_default();
    let since = case.newest.at.since(&case.onset).as_secs_f64();
    busiest >= WHOLE_CPU && age >= since + OLDER
}

fn proposal(case: &Case<'_>, scope: &Scope) -> Proposal {
    let rose = |metric| Statement::Rose {
        scope: scope.clone(),
        metric,
    };
    // Whoever else is in the incident must not be waiting for it.
    let calm = case.cgroups().into_iter().filter(|other| *other != scope);
    let mut required = vec![
        rose(CPU),
        rose("busiest_process_cpu_ms_per_sec"),
        Statement::Share {
            scope: scope.clone(),
            metric: CPU,
            least: 0.3,
        },
    ];
    required.extend(calm.map(|other| Statement::Normal {
        scope: other.clone(),
        metric: WAIT,
    }));
    Proposal {
        category: Category::CpuSaturation,
        culprit: Some(scope.clone()),
        victims: Vec::new(),
        required,
        supporting: Vec::new(),
        next_steps: vec![format!(
            "See where the busiest process of {scope} spends its time, and whether it still does its work."
        )],
    }
}
