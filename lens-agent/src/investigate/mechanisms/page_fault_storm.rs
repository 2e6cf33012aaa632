//! Touches and drops pages at a high rate.
//!
//! Told from growth: who grows faults too, once for each page that it keeps. Here the pages are
//! not kept: resident memory grows by a small part of what was faulted in. Told from churn: a
//! process that starts faults its pages in.

use super::{Mechanism, Proposal, storm::Storm};
use crate::investigate::{case::Case, category::Category};

#[derive(Debug)]
pub(super) struct PageFaultStorm;

const STORM: Storm = Storm {
    category: Category::PageFaultStorm,
    metric: "page_faults_per_sec",
    share: 0.5,
    // Some hundred pages are what it takes.
    of_a_start: Some(1000.0),
    advice: "See what {} maps and unmaps in a loop; let it keep its buffers.",
};

/// A page that a fault brings in, in bytes: the smallest.
const PAGE: f64 = 4096.0;
/// Who keeps this part of what it faults in is growing.
const KEPT: f64 = 0.3;

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
        proposals
    }
}
