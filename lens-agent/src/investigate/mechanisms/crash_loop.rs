//! Dies and is started again.
//!
//! Told from churn: what ends the processes is a fault of their own (SIGSEGV, SIGABRT, ...), more
//! than twice in a minute. One crash is not a loop.

use super::{Mechanism, Proposal, storm::Storm};
use crate::investigate::{case::Case, category::Category};

#[derive(Debug)]
pub(super) struct CrashLoop;

const STORM: Storm = Storm {
    category: Category::CrashLoop,
    metric: "crashes_count",
    share: 0.5,
    of_a_start: None,
    advice: "Look at the core dumps or the log of what crashes in {}; its supervisor starts it over and over.",
};

impl Mechanism for CrashLoop {
    fn category(&self) -> Category {
        STORM.category
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        STORM.propose(case, &["execs_per_sec"])
    }
}
