//! Who waits for a CPU, who sleeps, and who ran meanwhile.
//!
//! Nearly all of it is one program at `sched_switch`. A wait is read there from the kernel's own
//! book-keeping: `rq->clock - next->sched_info.last_queued`, which needs no program at wakeups.
//! Each CPU keeps the last intervals in which tasks of one cgroup ran; when a task that waited
//! comes on, they are walked back to the moment it was queued, and every interval is booked as
//! (victim, whoever ran). Blaming only the task that ran last would be wrong, not approximate.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

mod ring;
mod stalls;
mod state;
mod throttling;
mod waiting;
mod walk;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use lens_common::{
    hist::{BUCKETS, bucket},
    holder::{BY_IDLE, BY_KERNEL, BY_UNATTRIBUTED},
    limits::{SLOTS, STALL_NS},
    loss,
    sched::{INTERRUPTIBLE, OTHER_STATE, OUTSIDE, Run, Runs, SchedSlot, TaskRec, UNINTERRUPTIBLE},
    target::OTHER_SLOT,
};
use lens_ebpf::{
    atomic, clock,
    field::read,
    flat,
    loss::count,
    per_cpu,
    target::{TASK_CGROUPS, cgroup_of, slot_of},
    task::is_kernel_thread,
};

use crate::{
    ring::{newest_of, ran},
    stalls::stalled,
    state::{
        CFS_RQ_THROTTLED_NS, HAS_SCHED_INFO, HAS_THROTTLED, MAY_ALLOCATE, Now, RUN, SLOT, TASK,
        TASK_ARRIVALS, TASK_CFS_RQ, TASK_CPU, TASK_LAST_ARRIVAL, TASK_LAST_QUEUED, TASK_PID,
        TASK_RUN_DELAY, now_at,
    },
    throttling::{holes_of, note_growth, throttled, throttled_since},
    walk::{Victim, book_rarely, walk},
};

/// `TASK_INTERRUPTIBLE`, `TASK_UNINTERRUPTIBLE`, `TASK_NOLOAD`
const STATE_S: u32 = 1;
pub(crate) const STATE_D: u32 = 2;
pub(crate) const STATE_NOLOAD: u32 = 0x400;
/// [`TaskRec::state`] of a task that lost the CPU, and of one that has come onto it since.
///
/// [`TaskRec::state`]: lens_common::sched::TaskRec::state
const RUNNABLE: u32 = 0;
const CAME: u32 = u32::MAX;

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next,
/// unsigned int prev_state)`, since 5.18.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let preempt: u64 = ctx.arg(0);
        let prev: *const u8 = ctx.arg(1);
        let next: *const u8 = ctx.arg(2);
        let prev_state: u64 = ctx.arg(3);
        let prev_pid: u32 = read(prev, &TASK_PID);
        let next_pid: u32 = read(next, &TASK_PID);
        let now = now_at(if next_pid != 0 { next } else { prev });
        let cpu = per_cpu::cpu();
        let Some(runs) = RUN.get_ptr_mut(cpu) else {
            return 0;
        };
        if (*runs).tid != u64::from(prev_pid) && (*runs).running != 0 {
            came_unseen(prev, prev_pid, runs, &now);
        }
        let mut next_rec = core::ptr::null_mut();
        let mut next_cgroup = BY_IDLE;
        let mut next_slot = OUTSIDE;
        let mut next_is = BY_IDLE;
        if next_pid != 0 {
            next_rec = TASK.get(next, false);
            (next_cgroup, next_slot) = cgroup_and_slot(next, next_rec, (*runs).epoch as u32);
            next_is = holder(next, next_cgroup);
        }
        ran(runs, now, next_is);
        (*runs).tid = u64::from(next_pid);
        if prev_pid != 0 {
            // The state is the task's own; preempted on its way to sleep, it goes on waiting.
            leave(
                prev,
                preempt & 1 != 0 || prev_state as u32 == 0,
                prev_state as u32,
                runs,
                now,
            );
        }
        if next_slot != OUTSIDE
            && let Some(stats) = SLOT.get_ptr_mut(cpu * SLOTS + next_slot)
        {
            begin(stats);
            come(
                next,
                next_rec,
                next_cgroup,
                cpu,
                next_slot,
                stats,
                runs,
                now,
            );
            end(stats);
        }
    }
    0
}

/// The cgroup of `task` and its slot, or [`OUTSIDE`]. Its record `rec` remembers them: walking to
/// the cgroup's id and looking it up touches memory that nothing else does.
#[inline(always)]
unsafe fn cgroup_and_slot(task: *const u8, rec: *mut TaskRec, epoch: u32) -> (u64, u32) {
    // SAFETY: `task` is a program's argument, the record its own.
    unsafe {
        let set: u64 = read(task, &TASK_CGROUPS);
        if !rec.is_null() && (*rec).set == set && (*rec).epoch == epoch {
            return ((*rec).cgroup, (*rec).slot);
        }
        let cgroup = cgroup_of(task);
        let slot = slot_of(cgroup).unwrap_or(OUTSIDE);
        if !rec.is_null() {
            (*rec).cgroup = cgroup;
            (*rec).slot = slot;
            (*rec).set = set;
            (*rec).epoch = epoch;
        }
        (cgroup, slot)
    }
}

/// Whom the time is booked to that `task` of `cgroup` runs.
#[inline(always)]
unsafe fn holder(task: *const u8, cgroup: u64) -> u64 {
    // SAFETY: `task` is a program's argument.
    if unsafe { is_kernel_thread(task) } {
        BY_KERNEL
    } else {
        cgroup
    }
}

/// `task` is about to leave the CPU, and nobody saw it come: some kernels do not fire the
/// tracepoint on every switch. When it came, and how long it had waited, the kernel has written
/// down. In line: a frame of its own, with a [`Walk`] in it, would be one too many for the 512 bytes
/// that the frames of all calls may take in sum on most kernels.
///
/// [`Walk`]: walk::Walk
#[inline(always)]
unsafe fn came_unseen(task: *const u8, tid: u32, runs: *mut Runs, now: &Now) {
    // SAFETY: `task` is a program's argument, `runs` and the counters are this CPU's.
    unsafe {
        if tid == 0 {
            (*runs).running = BY_IDLE;
            return;
        }
        let cgroup = cgroup_of(task);
        let is = holder(task, cgroup);
        if HAS_SCHED_INFO.load() == 0 {
            (*runs).running = is;
            return;
        }
        let arrived: u64 = read(task, &TASK_LAST_ARRIVAL);
        if arrived <= (*newest_of(&raw mut (*runs).near)).end {
            // It was seen, under another id: the main thread's, since it executed a program.
            return;
        }
        let ran_for = now.clock.wrapping_sub(arrived);
        let at = Now {
            clock: arrived,
            task_clock: now.task_clock.wrapping_sub(ran_for),
        };
        ran(runs, at, is);
        let Some(slot) = slot_of(cgroup) else {
            return;
        };
        let Some(stats) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) else {
            return;
        };
        let rec = record_of(task);
        if rec.is_null() {
            count(loss::TASKS);
            return;
        }
        let arrivals: u64 = read(task, &TASK_ARRIVALS);
        if !is_known(rec, runs) && arrivals != 1 {
            // Its waits from before the first look at it are not known.
            return;
        }
        let delay: u64 = read(task, &TASK_RUN_DELAY);
        let wait = flat::positive(delay.wrapping_sub((*rec).queue));
        (*rec).queue = delay;
        let whole = wait + (*rec).migrated_ns;
        begin(stats);
        came(stats, rec, runs, at.clock, whole);
        (*stats).unseen += 1;
        (*stats).unseen_ns += wait;
        (*stats).wait_ns += wait;
        waited(stats, whole);
        if has_pairs(slot) {
            booked(task, per_cpu::cpu(), cgroup, stats, runs, at, wait);
        }
        end(stats);
    }
}

/// The record of `task`, made where it may be. The programs run under a run queue's lock. Since 6.4
/// task storage has memory set aside for that; before, it asks the page allocator, which may wake
/// kswapd and so want a run queue's lock itself.
#[inline(always)]
unsafe fn record_of(task: *const u8) -> *mut TaskRec {
    // SAFETY: `task` is a program's argument.
    unsafe {
        if MAY_ALLOCATE.load() == 0 {
            TASK.get(task, false)
        } else {
            TASK.get(task, true)
        }
    }
}

/// What [`TaskRec::known`] is for a task that has just been seen.
#[inline(always)]
unsafe fn known_now(runs: *const Runs) -> u32 {
    // SAFETY: this CPU's intervals.
    unsafe { (*runs).generation as u32 + 1 }
}

/// Whether `rec` tells of its task since the programs were last attached.
#[inline(always)]
pub(crate) unsafe fn is_known(rec: *const TaskRec, runs: *const Runs) -> bool {
    // SAFETY: a record of the program's, and this CPU's intervals.
    unsafe { (*rec).known == known_now(runs) }
}

/// `task_newtask(struct task_struct *task, unsigned long clone_flags)`: of every new task, before it
/// runs, and with no lock held. Attached where the other programs may not make its record.
#[btf_tracepoint(function = "task_newtask")]
fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above.
    unsafe {
        if TASK.get(ctx.arg(0), true).is_null() {
            count(loss::TASKS);
        }
    }
    0
}

/// `sched_migrate_task(struct task_struct *p, int dest_cpu)`. When a queued task is moved it has
/// just left its run queue, whose lock is held, and `p` still names that CPU: what it waited
/// there can be booked.
#[btf_tracepoint(function = "sched_migrate_task")]
fn sched_migrate_task(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above.
    unsafe {
        let task: *const u8 = ctx.arg(0);
        let Some(own) = RUN.get_ptr_mut(per_cpu::cpu()) else {
            return 0;
        };
        let mut rec = TASK.get(task, false);
        if rec.is_null() || !is_known(rec, own) {
            let arrivals: u64 = read(task, &TASK_ARRIVALS);
            let delay: u64 = read(task, &TASK_RUN_DELAY);
            if arrivals != 0 || delay == 0 {
                return 0;
            }
            // It has never run, and waits for the first time.
            rec = record_of(task);
            if rec.is_null() {
                count(loss::TASKS);
                return 0;
            }
            (*rec).queue = 0;
            (*rec).migrated_ns = 0;
            (*rec).slept_at = 0;
            (*rec).state = CAME;
            (*rec).known = known_now(own);
        }
        let delay: u64 = read(task, &TASK_RUN_DELAY);
        let waited = delay.wrapping_sub((*rec).queue);
        if waited == 0 || (waited as i64) < 0 {
            return 0;
        }
        (*rec).queue = delay;
        let cgroup = cgroup_of(task);
        let Some(slot) = slot_of(cgroup) else {
            return 0;
        };
        let Some(stats) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) else {
            return 0;
        };
        let from: u32 = read(task, &TASK_CPU);
        let Some(runs) = RUN.get_ptr_mut(from) else {
            return 0;
        };
        begin(stats);
        (*rec).migrated_ns += waited;
        (*stats).wait_ns += waited;
        if !has_pairs(slot) {
            end(stats);
            return 0;
        }
        let now = now_at(task);
        // The ring ends at the last switch; since then the one that runs there has run on.
        let newest = Run {
            by: (*runs).running,
            end: now.clock,
            task_end: now.task_clock,
        };
        let of = Victim {
            cgroup,
            stats,
            throttled: holes_of(task, from, now, waited),
        };
        walk(of, runs, 0, newest, waited);
        end(stats);
    }
    0
}

/// `sched_wakeup(struct task_struct *p)`: only attached where the kernel does not keep
/// `sched_info`.
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    queued(ctx.arg(0))
}

/// `sched_wakeup_new(struct task_struct *p)`: as `sched_wakeup`.
#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    queued(ctx.arg(0))
}

fn queued(task: *const u8) -> i32 {
    // SAFETY: `task` is the programs' argument.
    unsafe {
        let rec = record_of(task);
        if rec.is_null() {
            count(loss::TASKS);
        } else if (*rec).queue == 0 {
            // Else it has been waiting for longer: woken again, or on its way to sleep.
            (*rec).queue = clock::now();
        }
    }
    0
}

/// `task` leaves the CPU: to go on waiting, or to sleep.
#[inline(always)]
unsafe fn leave(task: *const u8, runnable: bool, state: u32, runs: *const Runs, now: Now) {
    // SAFETY: `task` is a program's argument; `runs` is this CPU's.
    unsafe {
        if HAS_THROTTLED.load() != 0 {
            let cfs_rq: *const u8 = read(task, &TASK_CFS_RQ);
            let total: u64 = read(cfs_rq, &CFS_RQ_THROTTLED_NS);
            let since = throttled_since(cfs_rq, now);
            if total | since != 0 {
                let place = throttled(task, per_cpu::cpu(), total);
                if !place.is_null() {
                    // Before it is forgotten when the throttling began.
                    note_growth(place, total, now, 0);
                    (*place).last_ran = now.clock;
                    (*place).since = since;
                }
            }
        }
        let rec = record_of(task);
        if rec.is_null() {
            count(loss::TASKS);
            return;
        }
        (*rec).known = known_now(runs);
        (*rec).migrated_ns = 0;
        (*rec).slept_at = if runnable { 0 } else { now.clock };
        (*rec).state = if runnable { RUNNABLE } else { state };
        (*rec).queue = if HAS_SCHED_INFO.load() != 0 {
            read(task, &TASK_RUN_DELAY)
        } else if runnable {
            now.clock
        } else {
            0
        };
    }
}

/// `task` of a watched cgroup comes onto the CPU: its wait ends, and its sleep before that.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what the caller has at hand")]
unsafe fn come(
    task: *const u8,
    rec: *mut TaskRec,
    cgroup: u64,
    cpu: u32,
    slot: u32,
    stats: *mut SchedSlot,
    runs: *mut Runs,
    now: Now,
) {
    // SAFETY: `task` is a program's argument; `stats` and `runs` are this CPU's.
    unsafe {
        let mut since: u64 = 0;
        if HAS_SCHED_INFO.load() != 0 {
            since = read(task, &TASK_LAST_QUEUED);
        } else if !rec.is_null() {
            since = (*rec).queue;
        }
        let mut wait = now.clock.wrapping_sub(since);
        // The clocks of two CPUs may differ by a little.
        if since == 0 || (wait as i64) < 0 {
            wait = 0;
        }
        let mut whole = wait;
        if !rec.is_null() {
            let mut elsewhere = 0;
            let known = is_known(rec, runs);
            if HAS_SCHED_INFO.load() != 0 && known {
                let delay: u64 = read(task, &TASK_RUN_DELAY);
                elsewhere = flat::positive(delay.wrapping_sub((*rec).queue));
                (*rec).queue = delay + wait;
            }
            if known {
                whole += (*rec).migrated_ns + elsewhere;
            }
            if elsewhere != 0 {
                // Queued elsewhere, and moved by a way that does not pass the migration hook.
                (*stats).wait_ns += elsewhere;
                if has_pairs(slot) {
                    book_rarely(cgroup, stats, BY_UNATTRIBUTED, elsewhere, 0);
                }
            }
            let stall = came(stats, rec, runs, now.clock, whole);
            if stall >= STALL_NS {
                stalled(task, cgroup, stall);
            }
        }
        if since == 0 {
            return;
        }
        (*stats).wait_ns += wait;
        waited(stats, whole);
        if has_pairs(slot) {
            booked(task, cpu, cgroup, stats, runs, now, wait);
        }
    }
}

/// Whoever reads from here on may see half of a booking: a hypervisor may take the CPU for long in
/// the middle of one.
#[inline(always)]
unsafe fn begin(stats: *mut SchedSlot) {
    // SAFETY: this CPU's counters.
    unsafe { (*stats).begun += 1 }
    atomic::in_order();
}

/// The booking is whole.
#[inline(always)]
unsafe fn end(stats: *mut SchedSlot) {
    atomic::in_order();
    // SAFETY: this CPU's counters.
    unsafe { (*stats).done = (*stats).begun }
}

/// Those beyond the limit are one row, of which nobody is told who held them up: their pairs would
/// only take the places of others.
#[inline(always)]
fn has_pairs(slot: u32) -> bool {
    slot != OTHER_SLOT
}

/// Books the `wait` of `task` that ended at `now`, where the newest interval ends.
#[inline(always)]
unsafe fn booked(
    task: *const u8,
    cpu: u32,
    victim: u64,
    stats: *mut SchedSlot,
    runs: *const Runs,
    now: Now,
    wait: u64,
) {
    if wait == 0 {
        return;
    }
    // SAFETY: `task` is a program's argument; `stats` and `runs` are this CPU's.
    unsafe {
        let newest = *newest_of((&raw const (*runs).near).cast_mut());
        let of = Victim {
            cgroup: victim,
            stats,
            throttled: holes_of(task, cpu, now, wait),
        };
        walk(of, runs, 1, newest, wait);
    }
}

/// A wait ended that was `whole` long in all.
#[inline(always)]
unsafe fn waited(stats: *mut SchedSlot, whole: u64) {
    // SAFETY: this CPU's counters; the bucket is checked.
    unsafe {
        (*stats).waits += 1;
        if whole > (*stats).wait_max_ns {
            (*stats).wait_max_ns = whole;
        }
        let b = bucket(whole);
        if b < BUCKETS {
            *(*stats).wait_hist.as_mut_ptr().add(b) += 1;
        }
    }
}

/// The task of `rec` came onto the CPU at `at` after a wait that was `whole` long: it had been
/// asleep before that, or lost the CPU. How long it had slept uninterruptibly.
#[inline(always)]
unsafe fn came(
    stats: *mut SchedSlot,
    rec: *mut TaskRec,
    runs: *const Runs,
    at: u64,
    whole: u64,
) -> u64 {
    let mut uninterruptible = 0;
    // SAFETY: a record of the program's, this CPU's counters and intervals.
    unsafe {
        if is_known(rec, runs) {
            if (*rec).slept_at != 0 {
                let away = at.wrapping_sub((*rec).slept_at);
                uninterruptible = slept(stats, (*rec).state, away, whole);
            } else if (*rec).state == RUNNABLE {
                (*stats).preempted += 1;
            }
        }
        (*rec).slept_at = 0;
        (*rec).state = CAME;
        (*rec).migrated_ns = 0;
        if HAS_SCHED_INFO.load() == 0 {
            (*rec).queue = 0;
        }
    }
    uninterruptible
}

/// A sleep ended; how long it was, if it was uninterruptible.
#[inline(always)]
unsafe fn slept(stats: *mut SchedSlot, state: u32, away: u64, waited: u64) -> u64 {
    let asleep = away.wrapping_sub(waited);
    let kind = if state & STATE_D != 0 && state & STATE_NOLOAD == 0 {
        UNINTERRUPTIBLE
    } else if state & STATE_S != 0 {
        INTERRUPTIBLE
    } else {
        OTHER_STATE
    };
    // SAFETY: this CPU's counters; `kind` is below 3.
    unsafe {
        let sleeps = (*stats).sleeps.as_mut_ptr().add(kind);
        (*sleeps).n += 1;
        if (asleep as i64) > 0 {
            (*sleeps).ns += asleep;
            if kind == UNINTERRUPTIBLE {
                return asleep;
            }
        }
    }
    0
}
