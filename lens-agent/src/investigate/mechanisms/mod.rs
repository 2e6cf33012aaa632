//! How things go wrong, one small file each.
//!
//! A mechanism proposes: "this, because of whom, if these statements hold". Code then checks the
//! statements; a mechanism never decides by itself. Signals are who waits, for what, and because
//! of whom; names of programs play no part.

mod cpu_contention;
mod cpu_saturation;
mod cpu_throttling;
mod crash_loop;
mod memory_leak;
mod page_fault_storm;
mod process_churn;
mod storm;
mod syscall_storm;

use std::fmt::Debug;

use super::{case::Case, category::Category, claim::Statement};
use crate::base::scope::Scope;

/// One way in which things go wrong.
pub trait Mechanism: Debug + Sync {
    /// What it explains.
    fn category(&self) -> Category;
    /// What could be behind the case; empty when nothing speaks for this mechanism.
    fn propose(&self, case: &Case<'_>) -> Vec<Proposal>;
}

/// Every mechanism.
pub const REGISTRY: &[&dyn Mechanism] = &[
    &cpu_contention::CpuContention,
    &cpu_throttling::CpuThrottling,
    &cpu_saturation::CpuSaturation,
    &syscall_storm::SyscallStorm,
    &memory_leak::MemoryLeak,
    &page_fault_storm::PageFaultStorm,
    &process_churn::ProcessChurn,
    &crash_loop::CrashLoop,
];

/// An explanation to be checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// What it is.
    pub category: Category,
    /// Whose behaviour or limit must change; `None` when nobody is to blame.
    pub culprit: Option<Scope>,
    /// Who suffers by it.
    pub victims: Vec<Scope>,
    /// All of these must hold.
    pub required: Vec<Statement>,
    /// Each of these that holds makes it more credible.
    pub supporting: Vec<Statement>,
    /// What to do.
    pub next_steps: Vec<String>,
}

#[cfg(test)]
mod tests;
