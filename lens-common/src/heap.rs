//! The heap object: what is allocated of the C library and not freed, for a bounded time.

use crate::plain;

/// Allocations that are remembered until they are freed.
pub const LIVE: u32 = 131_072;
/// Bytes for records; there are never more than a few.
pub const EVENT_BYTES: u32 = 4096;

/// Of one trace; the agent writes the limit and `one_in`, the programs the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Heaping {
    /// Breakpoints hit, those at returns included: what the trace costs.
    pub traps: u64,
    /// A record is written at exactly this many.
    pub trap_limit: u64,
    /// When the first one came.
    pub first_ns: u64,
    /// One address in so many is followed, a power of two; 0 is none, and nothing counts.
    pub one_in: u64,
    /// Allocations.
    pub allocs: u64,
    /// Bytes that they asked for.
    pub bytes: u64,
    /// Frees, and reallocations that free.
    pub frees: u64,
    /// Frees of addresses that are followed and were not allocated meanwhile.
    pub older_frees: u64,
}

/// A call of the allocator under way, of one thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// Where its return address lies; 0 if there is none under way.
    pub sp: u64,
    /// Bytes that it asks for.
    pub size: u64,
    /// What it will have freed when it returns.
    pub old: u64,
    /// Where it leaves the address, if it does not return it.
    pub out: u64,
}

/// An allocation that has not been freed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    /// Bytes.
    pub size: u64,
    /// The key of the stack that asked for it.
    pub user: u64,
}

/// Allocations at one place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Site {
    /// How many were made.
    pub allocs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them were freed.
    pub frees: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

plain!(Heaping: 64, Call: 32, Live: 16, Site: 32);
