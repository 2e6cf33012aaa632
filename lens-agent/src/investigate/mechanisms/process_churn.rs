//! Starts and ends processes at a high rate.
//!
//! Told from a crash loop: the processes end as they should, and many a second. Counted at fork,
//! because such processes live for a shorter time than any interval.

use super::{Mechanism, Proposal, storm::Storm};
use crate::investigate::{case::Case, category::Category};

#[derive(Debug)]
pub(super) struct ProcessChurn;

const STORM: Storm = Storm {
    category: Category::ProcessChurn,
    metric: "forks_per_sec",
    share: 0.5,
    of_a_start: None,
    advice: "See what {} starts over and over, and let one process do the work.",
};

impl Mechanism for ProcessChurn {
    fn category(&self) -> Category {
        STORM.category
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        STORM.propose(case, &["execs_per_sec", "exits_per_sec", "cpu_ms_per_sec"])
    }
}
