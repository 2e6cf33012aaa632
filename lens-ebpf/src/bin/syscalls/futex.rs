//! Futexes: how long tasks wait at an address, who wakes there, and who waits now.
//!
//! Not seen: `futex_waitv`, the calls of the 32-bit entry, and that a waiter was moved to another
//! address (requeue): it counts where it began to wait.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::{seq_file, task_struct},
    helpers::generated::{bpf_seq_write, bpf_task_pt_regs},
    macros::map,
    maps::Array,
};
use lens_common::{
    futex::{Futex, FutexWaiter, key},
    limits::{FUTEXES, SLOTS},
    loss,
    target::OTHER_SLOT,
};
use lens_ebpf::{
    clock::now,
    field::read,
    loss::count,
    near, offsets, per_cpu, places,
    target::{cgroup_of, slot_of},
    task::{TASK_MM, TASK_TGID, TaskContext, current},
};

use crate::{REGS_ORIG_AX, SLOT, TASK, TASK_PID, TASK_STATUS, TS_COMPAT};

#[map]
static FUTEX: Array<Futex> = Array::with_max_entries(FUTEXES, per_cpu::MAPPED);

offsets! {
    /// `pt_regs.di`
    REGS_DI,
    /// `pt_regs.si`
    REGS_SI,
    /// `task_struct.__state`
    TASK_STATE,
    /// `task_struct.sched_info.run_delay`
    TASK_RUN_DELAY,
    /// `bpf_iter_meta.seq`
    META_SEQ,
}

/// 1 where futexes are counted.
#[unsafe(no_mangle)]
pub(crate) static FUTEX_COUNTED: Global<u32> = Global::new(0);

/// 1 where the kernel keeps how long tasks have waited for CPUs (`CONFIG_SCHED_INFO`).
#[unsafe(no_mangle)]
static HAS_RUN_DELAY: Global<u32> = Global::new(0);

/// The call's number.
pub(crate) const NR: u32 = 202;

/// `FUTEX_WAIT`, `LOCK_PI`, `WAIT_BITSET`, `WAIT_REQUEUE_PI`, `LOCK_PI2`.
const WAITS: u64 = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13;
/// `FUTEX_WAKE`, `REQUEUE`, `CMP_REQUEUE`, `WAKE_OP`, `WAKE_BITSET`, `CMP_REQUEUE_PI`.
const WAKES: u64 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12;
const UNLOCK_PI: u64 = 7;
const OPS: u64 = 0x7f;

/// What was to be waited for had come already.
const EAGAIN: u64 = -11_i64 as u64;
const ETIMEDOUT: u64 = -110_i64 as u64;

/// Tasks that can be woken at once; what is more is an error.
const MOST: u64 = 1 << 32;

/// `TASK_INTERRUPTIBLE` and `TASK_UNINTERRUPTIBLE`
const ASLEEP: u32 = 3;

#[inline(always)]
unsafe fn op_of(regs: *const u8) -> u64 {
    // SAFETY: `regs` is typed.
    unsafe { read::<u64>(regs, &REGS_SI) & OPS }
}

#[inline(always)]
fn is_of(op: u64, ops: u64) -> bool {
    op < 64 && ops >> op & 1 != 0
}

/// The key of the address that `task` called with.
#[inline(always)]
unsafe fn key_of(regs: *const u8, task: *const u8) -> u64 {
    // SAFETY: both are typed.
    unsafe { key(read(regs, &REGS_DI), read(task, &TASK_TGID)) }
}

/// How long `task` has waited for CPUs so far; 0 where nobody knows.
#[inline(always)]
unsafe fn delay_of(task: *const u8) -> u64 {
    if HAS_RUN_DELAY.load() == 0 {
        return 0;
    }
    // SAFETY: `task` is typed.
    unsafe { read(task, &TASK_RUN_DELAY) }
}

/// The current task may begin to wait.
#[inline(always)]
pub(crate) unsafe fn enter(regs: *const u8) {
    // SAFETY: `regs` is a program's argument; the current task's own record.
    unsafe {
        let task = current();
        if !is_of(op_of(regs), WAITS) || near::slot_of(cgroup_of(task)).is_none() {
            return;
        }
        let record = TASK.get(task, true);
        if record.is_null() {
            count(loss::TASKS);
        } else {
            (*record).futex_at = now();
            (*record).futex_delay = delay_of(task);
        }
    }
}

/// The current task's call returned.
#[inline(always)]
pub(crate) unsafe fn exit(regs: *const u8, task: *const u8, cgroup: u64, result: u64) {
    // SAFETY: `regs` and `task` are typed; this CPU's counters.
    unsafe {
        let op = op_of(regs);
        let woke =
            is_of(op, WAKES) && result.wrapping_sub(1) < MOST || op == UNLOCK_PI && result == 0;
        let (mut since, mut run_ns) = (0, 0);
        if !woke {
            if !is_of(op, WAITS) {
                return;
            }
            let record = TASK.get(task, false);
            if record.is_null() {
                return;
            }
            since = (*record).futex_at;
            (*record).futex_at = 0;
            run_ns = delay_of(task).wrapping_sub((*record).futex_delay);
            if since == 0 || result == EAGAIN {
                return;
            }
        }
        let ns = if woke { 0 } else { now().wrapping_sub(since) };
        let (waits, wakes) = (u64::from(!woke), u64::from(woke));
        let Some(slot) = near::slot_of(cgroup) else {
            return;
        };
        if let Some(all) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) {
            (*all).futex_waits += waits;
            (*all).futex_ns += ns;
            (*all).futex_run_ns += run_ns;
            (*all).futex_wakes += wakes;
        }
        if slot == OTHER_SLOT {
            return;
        }
        if let Some(futex) = places::of(&FUTEX, cgroup, key_of(regs, task)) {
            (*futex).waits += waits;
            (*futex).ns += ns;
            (*futex).run_ns += run_ns;
            (*futex).timeouts += u64::from(!woke && result == ETIMEDOUT);
            (*futex).wakes += wakes;
        }
    }
}

/// Writes a [`FutexWaiter`] for each watched task that waits, also since before it was watched.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn futex_waiters(ctx: *const TaskContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `task` is NULL after the last.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() || read::<u32>(task, &TASK_STATE) & ASLEEP == 0 {
            return 0;
        }
        let mm: *const u8 = read(task, &TASK_MM);
        if mm.is_null() || read::<u32>(task, &TASK_STATUS) & TS_COMPAT != 0 {
            return 0;
        }
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        // Those of the call that it sleeps in.
        let regs = bpf_task_pt_regs(task.cast_mut().cast::<task_struct>()) as *const u8;
        if read::<u64>(regs, &REGS_ORIG_AX) != u64::from(NR) || !is_of(op_of(regs), WAITS) {
            return 0;
        }
        let record = TASK.get(task, false);
        let since = if record.is_null() {
            0
        } else {
            (*record).futex_at
        };
        let waiter = FutexWaiter {
            cgroup,
            key: key_of(regs, task),
            since,
            tid: u64::from(read::<u32>(task, &TASK_PID)),
        };
        let seq: *mut seq_file = read((*ctx).meta, &META_SEQ);
        bpf_seq_write(
            seq,
            (&raw const waiter).cast::<c_void>(),
            size_of::<FutexWaiter>() as u32,
        );
    }
    0
}
