//! What the programs keep, and what they know of the kernel's structures.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    macros::{btf_map, map},
    maps::Array,
};
use lens_common::{
    limits::{PAIRS, SLOTS, THROTTLED},
    sched::{Pair, Runs, SchedSlot, TaskRec, Throttled},
};
use lens_ebpf::{clock, field::read, offsets, per_cpu, task::TaskStorage};

const _: () = assert!(BPF_F_NO_PREALLOC == 1);

#[map]
pub(crate) static SLOT: Array<SchedSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
#[map]
pub(crate) static PAIR: Array<Pair> = Array::with_max_entries(PAIRS, per_cpu::MAPPED);
#[map]
pub(crate) static RUN: Array<Runs> = Array::with_max_entries(1, per_cpu::MAPPED);
#[map]
pub(crate) static THROTTLE: Array<Throttled> = Array::with_max_entries(THROTTLED, per_cpu::MAPPED);
#[btf_map]
pub(crate) static TASK: TaskStorage<TaskRec> = TaskStorage::new();

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `task_struct.se.cfs_rq`
    TASK_CFS_RQ,
    /// `task_struct.sched_info.last_queued`
    TASK_LAST_QUEUED,
    /// `task_struct.sched_info.run_delay`
    TASK_RUN_DELAY,
    /// `task_struct.sched_info.last_arrival`
    TASK_LAST_ARRIVAL,
    /// `task_struct.sched_info.pcount`
    TASK_ARRIVALS,
    /// `task_struct.thread_info.cpu`
    TASK_CPU,
    /// `cfs_rq.rq`
    CFS_RQ_RQ,
    /// `cfs_rq.throttled_clock_self_time`, or `throttled_clock_pelt_time` before 6.6
    CFS_RQ_THROTTLED_NS,
    /// `cfs_rq.throttled_clock_self`
    CFS_RQ_THROTTLED_AT,
    /// `cfs_rq.throttle_count`
    CFS_RQ_THROTTLE_COUNT,
    /// `cfs_rq.throttled_clock_pelt`
    CFS_RQ_THROTTLED_PELT,
    /// `rq.clock`
    RQ_CLOCK,
    /// `rq.clock_task`
    RQ_CLOCK_TASK,
    /// `rq.clock_pelt`
    RQ_CLOCK_PELT,
    /// `rq.lost_idle_time`
    RQ_LOST_IDLE,
    /// `bpf_iter_meta.seq`
    META_SEQ,
}

/// 1 where the kernel keeps `sched_info` and every task knows its run queue
/// (`CONFIG_SCHED_INFO`, `CONFIG_FAIR_GROUP_SCHED`); else wakeups are watched and clocks read.
#[unsafe(no_mangle)]
pub(crate) static HAS_SCHED_INFO: Global<u32> = Global::new(0);
/// 1 where memory may be taken under a run queue's lock.
#[unsafe(no_mangle)]
pub(crate) static MAY_ALLOCATE: Global<u32> = Global::new(0);
/// 1 where throttled run queues tell for how long (`CONFIG_CFS_BANDWIDTH`).
#[unsafe(no_mangle)]
pub(crate) static HAS_THROTTLED: Global<u32> = Global::new(0);
/// 1 where the start of a throttling under way is on the run queue's clock.
#[unsafe(no_mangle)]
pub(crate) static HAS_THROTTLED_AT: Global<u32> = Global::new(0);

/// 1 where it is on the clock of load tracking only (before 6.6).
#[unsafe(no_mangle)]
pub(crate) static HAS_THROTTLED_PELT: Global<u32> = Global::new(0);

/// What one moment on one run queue looks like.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) clock: u64,
    pub(crate) task_clock: u64,
}

#[inline(always)]
pub(crate) unsafe fn now_at(task: *const u8) -> Now {
    if HAS_SCHED_INFO.load() == 0 {
        let clock = clock::now();
        return Now {
            clock,
            task_clock: clock,
        };
    }
    // SAFETY: offsets of pointers, then of two u64.
    unsafe {
        let cfs_rq: *const u8 = read(task, &TASK_CFS_RQ);
        let rq: *const u8 = read(cfs_rq, &CFS_RQ_RQ);
        Now {
            clock: read(rq, &RQ_CLOCK),
            task_clock: read(rq, &RQ_CLOCK_TASK),
        }
    }
}
