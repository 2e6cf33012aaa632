//! Who held what somebody waited for, as a number that stands for it in the kernel's tables: a
//! cgroup's id, or one of these words.

/// Nobody: the resource was idle.
pub const BY_IDLE: u64 = u64::MAX;
/// Kernel threads, interrupts, a hypervisor.
pub const BY_KERNEL: u64 = u64::MAX - 1;
/// The victim's own quota.
pub const BY_QUOTA: u64 = u64::MAX - 2;
/// Not known: longer ago than is remembered, or by somebody who is not seen.
pub const BY_UNATTRIBUTED: u64 = u64::MAX - 3;
