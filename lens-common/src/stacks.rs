//! Stacks, and where something was seen: of page faults, of CPU time, of sleeps.

use crate::plain;

/// Return addresses that are kept of a stack, the innermost first: as many as the kernel takes, where
/// `kernel.perf_event_max_stack` is as it comes.
pub const FRAMES: usize = 127;

/// A stack; zeros behind its outermost frame.
pub type Stack = [u64; FRAMES];

/// A place: a process in a cgroup, and where in its code and in the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The cgroup's id.
    pub cgroup: u64,
    /// The process, in the initial namespace.
    pub tgid: u64,
    /// `mm_struct.start_stack`, which is drawn anew with every program that is begun: by it the
    /// address space is known again. 0 of the kernel's own threads.
    pub space: u64,
    /// The user stack's key in the map of stacks; 0 if there is none.
    pub user: u64,
    /// The kernel stack's; 0 if there is none.
    pub kernel: u64,
}

/// What was seen at a place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// How often.
    pub times: u64,
    /// Time, where it is measured.
    pub ns: u64,
    /// `comm` of the process.
    pub comm: [u64; 2],
}

plain!(Place: 40, Seen: 32);
