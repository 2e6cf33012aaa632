//! Uninterruptible sleeps that are longer than a disk takes, and where in the kernel they are spent.
//!
//! A task that is about to come onto the CPU still has the stack on which it slept: that of the longest
//! is kept. Those that sleep on are found by an iterator at each reading.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{seq_file, task_struct},
    helpers::generated::{bpf_get_task_stack, bpf_seq_write},
    macros::map,
    maps::Array,
};
use lens_common::{
    lifecycle::COMM,
    limits::{STALL_NS, STALLS},
    sched::{Asleep, STALL_FRAMES, Stall},
};
use lens_ebpf::{
    field::read,
    offsets, per_cpu, places,
    target::{cgroup_of, slot_of},
    task::{TaskContext, comm_of, current},
};

use crate::{
    STATE_D, STATE_NOLOAD,
    state::{META_SEQ, RUN, TASK, TASK_PID, now_at},
};

#[map]
static STALL: Array<Stall> = Array::with_max_entries(STALLS, per_cpu::MAPPED);

offsets! {
    /// `task_struct.__state`
    TASK_STATE,
}

/// `__TASK_STOPPED`, `__TASK_TRACED`
const STOPPED: u32 = 4 | 8;
/// Bytes of a stack.
const STACK: u32 = 8 * STALL_FRAMES as u32;

/// `task` of `cgroup` comes onto the CPU after an uninterruptible sleep of `ns`.
#[inline(never)]
pub(crate) unsafe fn stalled(task: *const u8, cgroup: u64, ns: u64) {
    let Some(place) = places::of(&STALL, cgroup, 0) else {
        return;
    };
    // SAFETY: `task` is a program's argument; this CPU's place.
    unsafe {
        if ns <= (*place).ns {
            return;
        }
        (*place).ns = ns;
        (*place).tid = u64::from(read::<u32>(task, &TASK_PID));
        (*place).comm = core::mem::transmute::<[u8; COMM], [u64; 2]>(comm_of(task));
        stack_of(task, (&raw mut (*place).stack).cast());
    }
}

/// Writes the kernel stack of `task`, with zeros behind it.
#[inline(always)]
unsafe fn stack_of(task: *const u8, to: *mut u64) {
    // SAFETY: `to` has room for so many frames; the helper fills the rest with zeros, all of it if it
    // fails.
    unsafe {
        bpf_get_task_stack(
            task.cast_mut().cast::<task_struct>(),
            to.cast::<c_void>(),
            STACK,
            0,
        );
    }
}

/// Writes an [`Asleep`] for each watched task that is stopped, or has slept uninterruptibly for long.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn asleep(ctx: *const TaskContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `task` is NULL after the last.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() {
            return 0;
        }
        let state: u32 = read(task, &TASK_STATE);
        let is_stalled = state & STATE_D != 0 && state & STATE_NOLOAD == 0;
        if !is_stalled && state & STOPPED == 0 {
            return 0;
        }
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        let ns = slept_for(task);
        if is_stalled && ns < STALL_NS {
            return 0;
        }
        let mut record = Asleep {
            cgroup,
            ns,
            state,
            tid: read(task, &TASK_PID),
            comm: comm_of(task),
            stack: [0; STALL_FRAMES],
        };
        stack_of(task, (&raw mut record.stack).cast());
        let seq: *mut seq_file = read((*ctx).meta, &META_SEQ);
        bpf_seq_write(
            seq,
            (&raw const record).cast::<c_void>(),
            size_of::<Asleep>() as u32,
        );
    }
    0
}

/// How long `task` has slept; 0 if nobody saw it go to sleep.
#[inline(always)]
unsafe fn slept_for(task: *const u8) -> u64 {
    // SAFETY: `task` is the iterator's; the current task is typed.
    unsafe {
        let rec = TASK.get(task, false);
        let Some(runs) = RUN.get_ptr(per_cpu::cpu()) else {
            return 0;
        };
        if rec.is_null() || !crate::is_known(rec, runs) || (*rec).slept_at == 0 {
            return 0;
        }
        // The clock of a run queue stands still while it is idle; this one is not.
        let now = now_at(current()).clock;
        let ns = now.wrapping_sub((*rec).slept_at);
        if (ns as i64) < 0 { 0 } else { ns }
    }
}
