//! The reclaim object: tasks that stop to find memory, and processes killed for want of it.

use crate::{counters, lifecycle::COMM, plain};

/// Reclaim because the host is short: an index into [`ReclaimSlot::stalls`].
pub const DIRECT: usize = 0;
/// Reclaim because a cgroup is at its limit.
pub const LIMIT: usize = 1;
/// Compaction: moving pages together to make a big one.
pub const COMPACTION: usize = 2;
/// How many there are.
pub const KINDS: usize = 3;
/// kswapd at work, a kind of what is under way only.
pub const KSWAPD: usize = KINDS;

/// Stalls of one kind that have ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalls {
    /// How many.
    pub n: u64,
    /// Their length in all.
    pub ns: u64,
    /// Pages that they brought; 0 for compaction.
    pub pages: u64,
}

/// The counters of one target on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ReclaimSlot {
    /// By kind.
    pub stalls: [Stalls; KINDS],
    /// Times that a task was put to sleep within reclaim, to let others get on.
    pub throttled: u64,
    /// For how long, a part of the stalls.
    pub throttled_ns: u64,
}

/// What kernel threads do for everybody, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Background {
    /// Times that kswapd began to reclaim.
    pub kswapd_wakes: u64,
    /// Time until it slept again, waiting included.
    pub kswapd_ns: u64,
    /// Times that a kernel thread compacted a zone.
    pub compactions: u64,
    /// For how long.
    pub compaction_ns: u64,
}

/// Why a process was killed: not known.
pub const FOR_UNKNOWN: u32 = 0;
/// The host had no memory left, or those of its nodes that could be used.
pub const FOR_HOST: u32 = 1;
/// A cgroup was at its limit.
pub const FOR_LIMIT: u32 = 2;

/// Levels of a cgroup's path that are told.
pub const LEVELS: usize = 8;
/// Bytes of one level's name, the NUL included.
pub const NAME: usize = 128;

/// A process is killed for want of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OomEvent {
    /// When.
    pub at_ns: u64,
    /// The victim's cgroup.
    pub cgroup: u64,
    /// Its resident pages.
    pub pages: u64,
    /// The cgroup of the task that wanted memory.
    pub by_cgroup: u64,
    /// The cgroup whose limit was hit, in the hierarchy of the memory controller; 0 if none, or not
    /// known.
    pub limit_cgroup: u64,
    /// The limit in pages.
    pub limit_pages: u64,
    /// One of the `FOR_` constants.
    pub why: u32,
    /// 1 if the memory controller is a v1 one.
    pub is_v1: u32,
    /// The victim.
    pub tgid: u32,
    /// Who wanted memory.
    pub by_tgid: u32,
    /// Levels of `names` that are filled, [`LEVELS`] + 1 if there are more.
    pub levels: u32,
    /// Keeps the names aligned.
    pub reserved: u32,
    /// The victim's name.
    pub comm: [u8; COMM],
    /// The name of who wanted memory.
    pub by_comm: [u8; COMM],
    /// The path of the cgroup whose limit was hit: its own name first, the top's last.
    pub names: [[u8; NAME]; LEVELS],
}

counters!(ReclaimSlot: 24 * KINDS + 16, Background: 32);
plain!(Stalls: 24, OomEvent: 72 + 2 * COMM + NAME * LEVELS);
