//! The syscalls object: every call that returned, its errors, and the latency of some.

use crate::{counters, files::SYNCS, hist::BUCKETS, of_cgroup, plain};

/// Numbers below this are calls; every number beyond is taken for [`UNKNOWN`], so that a program
/// that makes numbers up fills no table.
pub const NUMBERS: u32 = 1024;
/// A number that no call has.
pub const UNKNOWN: u32 = NUMBERS - 1;
/// Added to the number of a call made through the 32-bit entry, whose numbers are others.
pub const COMPAT: u32 = NUMBERS;

/// From here on an errno is the kernel's word to itself: the call was interrupted, and is made
/// again or ends with EINTR.
pub const INTERRUPTED: u32 = 512;

/// A call that returns 0 a second time, in the new task.
pub const FORKS: u32 = 1;
/// A call that waits until data is on its device: one of [`crate::files::SYNC_CALLS`].
pub const WAITS: u32 = 2;

/// Calls of one number by one cgroup, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The call's number.
    pub nr: u32,
    /// [`FORKS`], [`WAITS`] or 0.
    pub kind: u32,
    /// Calls that returned.
    pub calls: u64,
    /// Those that returned an error.
    pub errors: u64,
}

/// How long calls took, of those that were timed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CallTimes {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The call's number.
    pub nr: u64,
    /// Calls timed.
    pub timed: u64,
    /// Their length in all.
    pub ns: u64,
    /// The longest; the agent sets it back when it reads.
    pub max_ns: u64,
    /// Their lengths.
    pub hist: [u32; BUCKETS],
}

/// Calls that returned one errno.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CallErrno {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The call's number.
    pub nr: u32,
    /// The errno, [`INTERRUPTED`] and beyond included.
    pub errno: u32,
    /// How many.
    pub n: u64,
}

/// What is not in the table of [`Call`]s: calls that found no room there, and in slot 0 all calls
/// of the targets beyond the limit. And sums over futexes and calls that wait for a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SyscallSlot {
    /// Calls that returned.
    pub calls: u64,
    /// Those that returned an error.
    pub errors: u64,
    /// Waits at futexes that have ended, of all targets.
    pub futex_waits: u64,
    /// Their length in all.
    pub futex_ns: u64,
    /// The part of it in which they waited for a CPU.
    pub futex_run_ns: u64,
    /// Calls that woke somebody who waited so.
    pub futex_wakes: u64,
    /// Calls that returned and waited until data was on its device, by kind of [`crate::files`].
    pub syncs: [u64; SYNCS],
    /// Their length in all.
    pub sync_ns: [u64; SYNCS],
}

/// What is kept of each task.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    /// When the call under way began; 0 if it is not timed.
    pub at: u64,
    /// When it began to wait at a futex; 0 if it does not.
    pub futex_at: u64,
    /// `sched_info.run_delay` then.
    pub futex_delay: u64,
}

/// How many tasks of one group are in a timed call, on a cache line of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TimedTasks {
    /// How many.
    pub n: u64,
    /// Keeps other groups away.
    pub apart: [u64; 7],
}

plain!(
    Call: 32,
    CallTimes: 40 + 4 * BUCKETS,
    CallErrno: 24,
    Timed: 24,
    TimedTasks: 64,
);
counters!(SyscallSlot: 48 + 16 * SYNCS);
of_cgroup!(Call, CallTimes, CallErrno);
