//! The function object: the calls of one function, for a bounded time.

use crate::{hist::Hist, plain};

/// Calls of one thread that are under way and whose return is waited for; deeper ones are counted
/// as calls only.
pub const DEPTH: usize = 8;

/// Cgroups with counters of their own; the others share those of id 0.
pub const CALLERS: u32 = 256;
/// Tasks that can be in a function of the kernel at once, if its calls are timed.
pub const IN_KERNEL: u32 = 4096;
/// Cgroups that can be asked for.
pub const ASKED: u32 = 4096;
/// Bytes for records; there are never more than a few.
pub const EVENT_BYTES: u32 = 4096;

/// Of one trace; the agent writes the limits, the programs the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing {
    /// Breakpoints hit, whoever hit them: what the trace costs.
    pub traps: u64,
    /// A record is written at exactly this many traps.
    pub trap_limit: u64,
    /// Calls by those who were asked for, those beyond the limit included.
    pub hits: u64,
    /// A record is written at exactly this many hits; what comes later is not counted by cgroup.
    pub hit_limit: u64,
    /// When the first trap came.
    pub first_ns: u64,
    /// Returns that were waited for and are known not to come: something jumped over them.
    pub missing: u64,
    /// Calls too deep in a recursion to be timed.
    pub deep: u64,
    /// Calls that were made within a call of the same function by the same thread.
    pub nested: u64,
}

/// The calls of one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// Calls.
    pub calls: u64,
    /// Returns that were timed.
    pub returns: u64,
    /// Their time in all.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// By time.
    pub hist: Hist,
}

/// A call under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// A place on the stack by which the call is known: where its return address lies; of the kernel's
    /// functions, perhaps where its arguments do.
    pub sp: u64,
    /// When it began.
    pub at_ns: u64,
    /// Whose it is.
    pub cgroup: u64,
}

/// The calls of one thread that are under way, the outermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stack {
    /// How many.
    pub depth: u64,
    /// Which.
    pub frames: [Frame; DEPTH],
}

/// The trap limit is reached.
pub const TRAPS: u64 = 1;
/// The hit limit is reached.
pub const HITS: u64 = 2;

/// A limit is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitEvent {
    /// [`TRAPS`] or [`HITS`].
    pub what: u64,
    /// How many it were.
    pub n: u64,
    /// When.
    pub at_ns: u64,
}

plain!(
    Tracing: 64,
    Calls: 32 + 8 * crate::hist::BUCKETS,
    Frame: 24,
    Stack: 8 + 24 * DEPTH,
    LimitEvent: 24,
);
