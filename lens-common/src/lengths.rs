//! How long waits were, by cgroup and kind; for objects whose waits are of a few kinds.

use crate::{hist::Hist, place};

/// Lengths of waits of one kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The kind.
    pub key: u64,
    /// The longest; the agent sets it back when it reads.
    pub max_ns: u64,
    /// How many of each length.
    pub hist: Hist,
}

/// A wait that has not ended, by thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UnderWay {
    /// The waiter's cgroup; 0 where nobody's wait is counted.
    pub cgroup: u64,
    /// Since when.
    pub since: u64,
    /// Its kind.
    pub kind: u64,
    /// What is waited for, where that matters.
    pub what: u64,
}

place!(Lengths: 24 + size_of::<Hist>(), crate::limits::LENGTHS);
crate::plain!(UnderWay: 32);
