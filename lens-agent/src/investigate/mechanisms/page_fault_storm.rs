//! Touches and drops pages at a high rate.
//!
//! Told from growth: who grows faults too, once for each page that it keeps. Here the pages are
//! not kept: resident memory grows by a small part of what was faulted in. Told from churn: a
//! process that starts faults its pages in, so where processes start no more than usual holds,
//! unless there are more faults than their starts explain.

use super::{Mechanism, Proposal, storm::Storm};
use crate::investigate::{case::Case, category::Category, claim::Statement};

#[derive(Debug)]
pub(super) struct PageFaultStorm;

const STORM: Storm = Storm {
    category: Category::PageFaultStorm,
    metric: "page_faults_per_sec",
    share: 0.5,
    advice: "See what {} maps and unmaps in a loop; let it keep its buffers.",
};

/// A page that a fault brings in, in bytes: the smallest.
const PAGE: f64 = 4096.0;
/// Who keeps this part of what it faults in is growing.
const KEPT: f64 = 0.3;
const FORKS: &str = "forks_per_sec";
/// A process that starts faults in some hundred pages; from this many on, it does something else.
const OF_A_START: f64 = 1000.0;

impl Mechanism for PageFaultStorm {
    fn category(&self) -> Category {
        STORM.category
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        let mut proposals = STORM.propose(
            case,
            &["page_allocs_bytes_per_sec", "cpu_system_ms_per_sec"],
        );
        proposals.retain(|p| {
            let Some(scope) = &p.culprit else {
                return false;
            };
            let faulted = case.value(scope, STORM.metric).unwrap_or_default() * PAGE;
            let grown = case
                .value(scope, "rss_growth_bytes_per_sec")
                .unwrap_or_default();
            grown < KEPT * faulted
        });
        for proposal in &mut proposals {
            let Some(scope) = &proposal.culprit else {
                continue;
            };
            let faults = case.value(scope, STORM.metric).unwrap_or_default();
            if case
                .value(scope, FORKS)
                .is_some_and(|forks| faults < OF_A_START * forks)
            {
                let (scope, metric) = (scope.clone(), FORKS);
                proposal.required.push(Statement::Normal { scope, metric });
            }
        }
        proposals
    }
}
