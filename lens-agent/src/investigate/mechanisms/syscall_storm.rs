//! Makes system calls at a high rate.
//!
//! Told from load: the rate left what is usual for the cgroup by far (its floor is 50,000 a
//! second, far above what a busy server makes with one CPU's worth of real work between calls), it
//! makes most of the host's calls, and the kernel's part of its CPU time rose with it.

use super::{Mechanism, Proposal, storm::Storm};
use crate::investigate::{case::Case, category::Category};

#[derive(Debug)]
pub(super) struct SyscallStorm;

const STORM: Storm = Storm {
    category: Category::SyscallStorm,
    metric: "syscalls_per_sec",
    share: 0.5,
    // Some hundred, of which most find and map libraries.
    of_a_start: Some(1000.0),
    advice: "See which call {} makes in a loop, and why it does not wait: `lens snapshot syscalls`.",
};

impl Mechanism for SyscallStorm {
    fn category(&self) -> Category {
        STORM.category
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        STORM.propose(case, &["cpu_ms_per_sec", "cpu_system_ms_per_sec"])
    }
}
