//! The profile object: where CPU time goes, by the clock of each CPU. The offcpu object: where
//! threads sleep, for how long.

use crate::{counters, plain};

/// Looks a second at each CPU that works. Not 100: what happens ten times a second would be seen
/// always, or never.
pub const HZ: u64 = 99;

/// The samples of one target on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileSlot {
    /// In user code.
    pub user: u64,
    /// In the kernel.
    pub kernel: u64,
}

/// The sleeps of one target on one CPU, all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SleepSlot {
    /// Sleeps that ended.
    pub sleeps: u64,
    /// Their time, until the thread ran again.
    pub ns: u64,
}

/// Sleeps of at least so long (ns) are always charged, as what they are; of shorter ones, those of
/// which a stack was taken stand for the others.
pub const LONG_NS: u64 = 1_000_000;
/// How often (ns) a CPU looks at how many sleeps begin on it, to decide of how many a stack is taken.
pub const PACE_NS: u64 = 10_000_000;
/// Stacks taken in that time, about; at two to five microseconds each this is half a percent to one of
/// the CPU.
pub const PACE_STACKS: u64 = 20;
/// Stacks that are taken in that time because a thread's last sleep was a long one, at the most.
pub const PACE_MOST: u64 = 80;

/// A thread that sleeps, or has slept.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sleeper {
    /// Since when; 0 if it does not.
    pub since_ns: u64,
    /// The cgroup in which it went to sleep.
    pub cgroup: u64,
    /// The key of its user stack, if [`Sleeper::weight`] is not 0.
    pub user: u64,
    /// The key of its kernel stack, likewise.
    pub kernel: u64,
    /// For how many sleeps it stands if it is a short one; 0 if no stack was taken.
    pub weight: u64,
    /// Whether its last sleep was a long one: 0 or 1.
    pub was_long: u64,
    /// The CPU time that it had had when it went to sleep.
    pub ran_ns: u64,
}

/// How many sleeps begin on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The beginning of this [`PACE_NS`].
    pub since_ns: u64,
    /// Sleeps since then.
    pub sleeps: u64,
    /// Stacks taken since then.
    pub taken: u64,
    /// Of one sleep in so many a stack is taken.
    pub one_in: u64,
    /// Sleeps until the next one of them.
    pub left: u64,
    /// What [`Pace::one_in`] was when that was drawn.
    pub drawn: u64,
    /// With so many taken, [`Pace::one_in`] doubles.
    pub more: u64,
    /// Nothing: each CPU's on a cache line of its own.
    pub apart: u64,
}

counters!(ProfileSlot: 16, SleepSlot: 16);
plain!(Sleeper: 56, Pace: 64);
