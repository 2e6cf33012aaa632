//! Walks over all tasks: for waits that have not ended, and for records of tasks that were there
//! first.

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use lens_common::{loss, sched::Waiting};
use lens_ebpf::{
    field::read,
    loss::count,
    target::{cgroup_of, slot_of},
    task::TaskContext,
};

use crate::{
    state::{
        CFS_RQ_THROTTLED_NS, HAS_THROTTLED, META_SEQ, TASK, TASK_CFS_RQ, TASK_CPU,
        TASK_LAST_QUEUED, TASK_PID, now_at,
    },
    throttling::{address_of_run_queue, throttled_since},
};

/// Makes the records of tasks that were there before the programs.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn tasks(ctx: *const TaskContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `task` is NULL after the last.
    unsafe {
        let task = (*ctx).task;
        if !task.is_null() && TASK.get(task, true).is_null() {
            count(loss::TASKS);
        }
    }
    0
}

/// Writes a [`Waiting`] for each watched task that waits for a CPU: a wait that has not ended is
/// seen nowhere else.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn waiting(ctx: *const TaskContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `task` is NULL after the last.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() {
            return 0;
        }
        let queued_at: u64 = read(task, &TASK_LAST_QUEUED);
        if queued_at == 0 {
            return 0;
        }
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        let now = now_at(task);
        let (mut throttled_at, mut throttled_ns, mut address) = (0, 0, 0);
        if HAS_THROTTLED.load() != 0 {
            let cfs_rq: *const u8 = read(task, &TASK_CFS_RQ);
            throttled_ns = read(cfs_rq, &CFS_RQ_THROTTLED_NS);
            throttled_at = throttled_since(cfs_rq, now);
            address = address_of_run_queue(task).unwrap_or_default();
        }
        let record = Waiting {
            cgroup,
            queued_at,
            now: now.clock,
            task_now: now.task_clock,
            throttled_at,
            throttled_ns,
            cfs_rq: address,
            cpu: read(task, &TASK_CPU),
            tid: read(task, &TASK_PID),
        };
        let seq: *mut seq_file = read((*ctx).meta, &META_SEQ);
        bpf_seq_write(
            seq,
            (&raw const record).cast::<c_void>(),
            size_of::<Waiting>() as u32,
        );
    }
    0
}
