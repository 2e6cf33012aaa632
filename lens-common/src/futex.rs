//! The part of the syscalls object that knows futexes: who waits, at which address, and who wakes.

use crate::{place, plain};

/// Waits and wakes at one address by one process, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Futex {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// Address and process in one word, see [`key`].
    pub key: u64,
    /// Waits that have ended.
    pub waits: u64,
    /// Their length in all.
    pub ns: u64,
    /// Those that ended because their time was over.
    pub timeouts: u64,
    /// Calls that woke somebody.
    pub wakes: u64,
    /// The part of `ns` in which the task waited for a CPU: nearly all of that comes after the wake.
    pub run_ns: u64,
}

/// A task that waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FutexWaiter {
    /// Its cgroup's id.
    pub cgroup: u64,
    /// See [`key`].
    pub key: u64,
    /// Since when; 0 if it waited before it was watched.
    pub since: u64,
    /// The thread.
    pub tid: u64,
}

/// What stands for an address in a process: bits that an address has in common with its neighbours
/// make room for the process.
#[expect(clippy::inline_always, reason = "a call costs a BPF program more")]
#[inline(always)]
#[must_use]
pub const fn key(address: u64, tgid: u32) -> u64 {
    (address & ADDRESS) | (tgid as u64) << TGID_SHIFT
}

/// User addresses have 47 bits, of which 42 are kept beside a process id's 22.
const TGID_SHIFT: u32 = 42;
const ADDRESS: u64 = (1 << TGID_SHIFT) - 1;

/// The process of a key.
#[must_use]
pub const fn tgid_of(key: u64) -> u32 {
    (key >> TGID_SHIFT) as u32
}

/// The lower bits of the address of a key.
#[must_use]
pub const fn address_of(key: u64) -> u64 {
    key & ADDRESS
}

place!(Futex: 56, crate::limits::FUTEXES);
plain!(FutexWaiter: 32);
