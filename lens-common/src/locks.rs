//! The locks object: waits for locks of the kernel.

use crate::counters;

/// Spinlocks: an index into [`LockSlot`]'s arrays.
pub const SPINLOCK: usize = 0;
/// Spinning locks for several readers or one writer.
pub const RWLOCK: usize = 1;
/// Mutexes, from the moment on that they spin.
pub const MUTEX: usize = 2;
/// Sleeping locks for several readers or one writer, such as that of an address space.
pub const RWSEM: usize = 3;
/// The same with a count for each CPU.
pub const PERCPU_RWSEM: usize = 4;
/// Those that hand down priority; on real-time kernels most of the others too.
pub const RT: usize = 5;
/// Semaphores.
pub const SEMAPHORE: usize = 6;
/// How many there are.
pub const KINDS: usize = 7;

/// The counters of one target on one CPU, by kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LockSlot {
    /// Waits that have ended.
    pub n: [u64; KINDS],
    /// Their length in all.
    pub ns: [u64; KINDS],
}

counters!(LockSlot: 16 * KINDS);
