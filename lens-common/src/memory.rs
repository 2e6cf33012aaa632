//! The memory object: page faults, page allocations, and resident pages.

use crate::{counters, plain};

/// Kinds of resident pages, as the kernel numbers them: indexes into [`MemorySlot::rss`].
pub const FILE: usize = 0;
/// Anonymous pages.
pub const ANON: usize = 1;
/// Anonymous pages that are swapped out.
pub const SWAP: usize = 2;
/// Shared memory and tmpfs.
pub const SHMEM: usize = 3;
/// How many there are.
pub const KINDS: usize = 4;

/// The counters of one target on one CPU. Each field is written by one program only: one may
/// interrupt another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySlot {
    /// Page faults of user code.
    pub user_faults: u64,
    /// Page faults of the kernel on a task's behalf: a system call that reads or writes its memory.
    pub kernel_faults: u64,
    /// Faults that had to wait for a disk.
    pub major_faults: u64,
    /// Allocations by the kernel's page allocator while a task of the target ran.
    pub allocs: u64,
    /// Pages of these.
    pub alloc_pages: u64,
    /// Allocations that failed.
    pub failed_allocs: u64,
    /// Resident pages by kind; the sum over all CPUs counts, one of them may be negative.
    pub rss: [i64; KINDS],
}

/// What is known of one address space; the key is the address of its `mm_struct`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// The cgroup that its pages count for.
    pub cgroup: u64,
    /// Its resident pages when they last changed, by kind.
    pub seen: [i64; KINDS],
}

counters!(MemorySlot: 48 + 8 * KINDS);
plain!(Space: 8 + 8 * KINDS);
