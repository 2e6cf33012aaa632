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

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, seq_file},
    helpers::{
        bpf_ktime_get_ns, bpf_probe_read_kernel,
        generated::{bpf_get_prandom_u32, bpf_loop, bpf_seq_write},
    },
    macros::{btf_map, btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use core::ffi::c_void;
use lens_common::{
    hist::{BUCKETS, bucket},
    limits::{
        HOLES, LONG_WAIT_NS, PAIR_PROBES, PAIRS, RUNS, SHORT_WAIT_SAMPLE, SLOTS, STRETCH_NS,
        THROTTLED,
    },
    loss,
    sched::{
        BY_IDLE, BY_KERNEL, BY_QUOTA, BY_UNATTRIBUTED, Hole, INTERRUPTIBLE, OTHER_STATE, Pair,
        Ring, Run, Runs, SchedSlot, TaskRec, Throttled, UNINTERRUPTIBLE, Waiting, place_of,
    },
};
use lens_ebpf::{
    field::read,
    flat,
    loss::count,
    near, offsets, per_cpu,
    target::{cgroup_of, slot_of},
    task::TaskStorage,
};

const _: () = assert!(BPF_F_NO_PREALLOC == 1);

#[map]
static SLOT: Array<SchedSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
#[map]
static PAIR: Array<Pair> = Array::with_max_entries(PAIRS, per_cpu::MAPPED);
#[map]
static RUN: Array<Runs> = Array::with_max_entries(1, per_cpu::MAPPED);
#[map]
static THROTTLE: Array<Throttled> = Array::with_max_entries(THROTTLED, per_cpu::MAPPED);
#[btf_map]
static TASK: TaskStorage<TaskRec> = TaskStorage::new();

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `task_struct.flags`
    TASK_FLAGS,
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
    /// `cfs_rq.throttled_clock_self`, or `throttled_clock_pelt`
    CFS_RQ_THROTTLED_AT,
    /// `rq.clock`
    RQ_CLOCK,
    /// `rq.clock_task`
    RQ_CLOCK_TASK,
    /// `bpf_iter_meta.seq`
    META_SEQ,
}

/// 1 where the kernel keeps `sched_info` and every task knows its run queue
/// (`CONFIG_SCHED_INFO`, `CONFIG_FAIR_GROUP_SCHED`); else wakeups are watched and clocks read.
#[unsafe(no_mangle)]
static HAS_SCHED_INFO: Global<u32> = Global::new(0);
/// 1 where throttled run queues tell for how long (`CONFIG_CFS_BANDWIDTH`).
#[unsafe(no_mangle)]
static HAS_THROTTLED: Global<u32> = Global::new(0);
/// 1 where the start of a throttling under way is on the run queue's clock.
#[unsafe(no_mangle)]
static HAS_THROTTLED_AT: Global<u32> = Global::new(0);

/// `PF_KTHREAD`
const KERNEL_THREAD: u32 = 0x0020_0000;
/// `TASK_INTERRUPTIBLE`, `TASK_UNINTERRUPTIBLE`, `TASK_NOLOAD`
const STATE_S: u32 = 1;
const STATE_D: u32 = 2;
const STATE_NOLOAD: u32 = 0x400;

/// What one moment on one run queue looks like.
#[derive(Clone, Copy)]
struct Now {
    clock: u64,
    task_clock: u64,
}

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
        let mut next_cgroup = BY_IDLE;
        let mut next_is = BY_IDLE;
        if next_pid != 0 {
            next_cgroup = cgroup_of(next);
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
                now,
            );
        }
        if next_pid != 0
            && let Some(slot) = near::slot_of(next_cgroup)
        {
            come(next, next_cgroup, cpu, slot, runs, now);
        }
    }
    0
}

/// Whom the time is booked to that `task` of `cgroup` runs.
#[inline(always)]
unsafe fn holder(task: *const u8, cgroup: u64) -> u64 {
    // SAFETY: `task` is a program's argument.
    let flags: u32 = unsafe { read(task, &TASK_FLAGS) };
    if flags & KERNEL_THREAD != 0 {
        BY_KERNEL
    } else {
        cgroup
    }
}

/// `task` is about to leave the CPU, and nobody saw it come: some kernels do not fire the
/// tracepoint on every switch. When it came, and how long it had waited, the kernel has written
/// down.
#[inline(never)]
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
        let rec = TASK.get(task, true);
        if rec.is_null() {
            count(loss::TASKS);
            return;
        }
        let arrivals: u64 = read(task, &TASK_ARRIVALS);
        if (*rec).known == 0 && arrivals != 1 {
            // Its waits from before the first look at it are not known.
            return;
        }
        let delay: u64 = read(task, &TASK_RUN_DELAY);
        let wait = flat::positive(delay.wrapping_sub((*rec).booked_delay));
        (*rec).booked_delay = delay;
        let whole = wait + (*rec).migrated_ns;
        came(stats, rec, at.clock, whole);
        (*stats).unseen += 1;
        (*stats).unseen_ns += wait;
        (*stats).wait_ns += wait;
        waited(stats, whole);
        booked(task, per_cpu::cpu(), cgroup, stats, runs, at, wait);
    }
}

/// `sched_migrate_task(struct task_struct *p, int dest_cpu)`. When a queued task is moved it has
/// just left its run queue, whose lock is held, and `p` still names that CPU: what it waited
/// there can be booked.
#[btf_tracepoint(function = "sched_migrate_task")]
fn sched_migrate_task(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above.
    unsafe {
        let task: *const u8 = ctx.arg(0);
        let mut rec = TASK.get(task, false);
        if rec.is_null() {
            let arrivals: u64 = read(task, &TASK_ARRIVALS);
            let delay: u64 = read(task, &TASK_RUN_DELAY);
            if arrivals != 0 || delay == 0 {
                return 0;
            }
            // It has never run, and waits for the first time.
            rec = TASK.get(task, true);
            if rec.is_null() {
                count(loss::TASKS);
                return 0;
            }
            (*rec).known = 1;
        }
        if (*rec).known == 0 {
            return 0;
        }
        let delay: u64 = read(task, &TASK_RUN_DELAY);
        let waited = delay.wrapping_sub((*rec).booked_delay);
        if waited == 0 || (waited as i64) < 0 {
            return 0;
        }
        (*rec).booked_delay = delay;
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
        (*rec).migrated_ns += waited;
        (*stats).wait_ns += waited;
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
        let rec = TASK.get(task, true);
        if rec.is_null() {
            count(loss::TASKS);
        } else if (*rec).queued_at == 0 {
            // Else it has been waiting for longer: woken again, or on its way to sleep.
            (*rec).queued_at = bpf_ktime_get_ns();
        }
    }
    0
}

#[inline(always)]
unsafe fn now_at(task: *const u8) -> Now {
    if HAS_SCHED_INFO.load() == 0 {
        // SAFETY: takes nothing.
        let clock = unsafe { bpf_ktime_get_ns() };
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

/// Closes the interval of whoever ran until now. Neighbours of one cgroup are one interval.
#[inline(always)]
unsafe fn ran(runs: *mut Runs, now: Now, next: u64) {
    // SAFETY: this CPU's ring, the index masked.
    unsafe {
        let by = (*runs).running;
        (*runs).running = next;
        if by == 0 {
            return;
        }
        let near = &raw mut (*runs).near;
        let mut at = newest_of(near);
        let length = now.clock.wrapping_sub((*at).end);
        if (*at).by != by {
            at = begin(near, by);
        }
        (*at).end = now.clock;
        (*at).task_end = now.task_clock;

        let far = &raw mut (*runs).far;
        let mut at = newest_of(far);
        let mut stretch = (*runs).stretch_ns.wrapping_add(length);
        if (*at).by != by {
            if length >= STRETCH_NS || stretch.wrapping_sub(length) >= STRETCH_NS {
                at = begin(far, by);
                stretch = length;
            } else {
                // Both are below 2^22, so this is below 2^54.
                let random = (*runs)
                    .random
                    .wrapping_mul(1_664_525)
                    .wrapping_add(1_013_904_223);
                (*runs).random = random;
                if u64::from(random as u32).wrapping_mul(stretch) >> 32 < length {
                    (*at).by = by;
                }
            }
        }
        (*runs).stretch_ns = stretch;
        (*at).end = now.clock;
        (*at).task_end = now.task_clock;
    }
}

/// The newest interval.
#[inline(always)]
unsafe fn newest_of(ring: *mut Ring) -> *mut Run {
    // SAFETY: a ring that the caller knows, the index masked.
    unsafe {
        let i = (*ring).head & (RUNS as u64 - 1);
        (&raw mut (*ring).runs).cast::<Run>().add(i as usize)
    }
}

/// Begins an interval that is booked to `by`.
#[inline(always)]
unsafe fn begin(ring: *mut Ring, by: u64) -> *mut Run {
    // SAFETY: as above.
    unsafe {
        (*ring).head = ((*ring).head + 1) & (RUNS as u64 - 1);
        let at = newest_of(ring);
        (*at).by = by;
        at
    }
}

/// `task` leaves the CPU: to go on waiting, or to sleep.
#[inline(always)]
unsafe fn leave(task: *const u8, runnable: bool, state: u32, now: Now) {
    // SAFETY: `task` is a program's argument.
    unsafe {
        if HAS_THROTTLED.load() != 0 {
            let cfs_rq: *const u8 = read(task, &TASK_CFS_RQ);
            let total: u64 = read(cfs_rq, &CFS_RQ_THROTTLED_NS);
            let mut since: u64 = 0;
            if HAS_THROTTLED_AT.load() != 0 {
                since = read(cfs_rq, &CFS_RQ_THROTTLED_AT);
            }
            if total | since != 0 {
                let place = throttled(task, per_cpu::cpu(), total);
                if !place.is_null() {
                    (*place).last_ran = now.clock;
                    (*place).since = since;
                }
            }
        }
        let rec = TASK.get(task, true);
        if rec.is_null() {
            count(loss::TASKS);
            return;
        }
        if HAS_SCHED_INFO.load() != 0 {
            (*rec).booked_delay = read(task, &TASK_RUN_DELAY);
        }
        (*rec).known = 1;
        (*rec).migrated_ns = 0;
        if runnable {
            (*rec).slept_at = 0;
            (*rec).queued_at = now.clock;
        } else {
            (*rec).slept_at = now.clock;
            (*rec).state = state;
            (*rec).queued_at = 0;
        }
    }
}

/// `task` of a watched cgroup comes onto the CPU: its wait ends, and its sleep before that.
#[inline(always)]
unsafe fn come(task: *const u8, cgroup: u64, cpu: u32, slot: u32, runs: *mut Runs, now: Now) {
    // SAFETY: `task` is a program's argument; `stats` and `runs` are this CPU's.
    unsafe {
        let Some(stats) = SLOT.get_ptr_mut(cpu * SLOTS + slot) else {
            return;
        };
        let rec = TASK.get(task, false);
        let mut since: u64 = 0;
        if HAS_SCHED_INFO.load() != 0 {
            since = read(task, &TASK_LAST_QUEUED);
        } else if !rec.is_null() {
            since = (*rec).queued_at;
        }
        let mut wait = now.clock.wrapping_sub(since);
        // The clocks of two CPUs may differ by a little.
        if since == 0 || (wait as i64) < 0 {
            wait = 0;
        }
        let mut whole = wait;
        if !rec.is_null() {
            let mut elsewhere = 0;
            if HAS_SCHED_INFO.load() != 0 && (*rec).known != 0 {
                let delay: u64 = read(task, &TASK_RUN_DELAY);
                elsewhere = flat::positive(delay.wrapping_sub((*rec).booked_delay));
                (*rec).booked_delay = delay + wait;
            }
            whole += (*rec).migrated_ns + elsewhere;
            if elsewhere != 0 {
                // Queued elsewhere, and moved by a way that does not pass the migration hook.
                (*stats).wait_ns += elsewhere;
                book_rarely(cgroup, stats, BY_UNATTRIBUTED, elsewhere, 0);
            }
            came(stats, rec, now.clock, whole);
        }
        if since == 0 {
            return;
        }
        (*stats).wait_ns += wait;
        waited(stats, whole);
        booked(task, cpu, cgroup, stats, runs, now, wait);
    }
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
/// asleep before that, or lost the CPU.
#[inline(always)]
unsafe fn came(stats: *mut SchedSlot, rec: *mut TaskRec, at: u64, whole: u64) {
    // SAFETY: a record of the program's, and this CPU's counters.
    unsafe {
        if (*rec).slept_at != 0 {
            slept(stats, (*rec).state, at.wrapping_sub((*rec).slept_at), whole);
            (*rec).slept_at = 0;
        } else if (*rec).known != 0 && (*rec).queued_at != 0 {
            (*stats).preempted += 1;
        }
        (*rec).queued_at = 0;
        (*rec).migrated_ns = 0;
    }
}

#[inline(always)]
unsafe fn slept(stats: *mut SchedSlot, state: u32, away: u64, waited: u64) {
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
        *(*stats).sleeps.as_mut_ptr().add(kind) += 1;
        if (asleep as i64) > 0 {
            *(*stats).sleep_ns.as_mut_ptr().add(kind) += asleep;
        }
    }
}

/// The place of `task`'s run queue on `cpu`, whose throttled time is `total`; made if need be.
/// Either it is this CPU, or its run queue is locked.
#[inline(always)]
unsafe fn throttled(task: *const u8, cpu: u32, total: u64) -> *mut Throttled {
    // SAFETY: by the caller.
    let Some(cfs_rq) = (unsafe { address_of_run_queue(task) }) else {
        return core::ptr::null_mut();
    };
    let i = place_of(cfs_rq, THROTTLED);
    let Some(place) = THROTTLE.get_ptr_mut(cpu * THROTTLED + i) else {
        return core::ptr::null_mut();
    };
    // SAFETY: this CPU's table.
    unsafe {
        if (*place).cfs_rq != cfs_rq || total < (*place).seen_ns {
            if (*place).cfs_rq != 0 && (*place).cfs_rq != cfs_rq {
                count(loss::THROTTLED);
            }
            *place = Throttled {
                cfs_rq,
                seen_ns: total,
                ..EMPTY
            };
        }
    }
    place
}

/// As a number: the verifier allows no arithmetic on what it knows as a pointer.
#[inline(always)]
unsafe fn address_of_run_queue(task: *const u8) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(task.add(TASK_CFS_RQ.load() as usize).cast::<u64>()) }.ok()
}

const EMPTY: Throttled = Throttled {
    cfs_rq: 0,
    seen_ns: 0,
    last_ran: 0,
    since: 0,
    next: 0,
    under_way: Hole { from: 0, until: 0 },
    holes: [Hole { from: 0, until: 0 }; HOLES],
};

/// The throttlings of `task`'s group on `cpu`; NULL if its quota never bit. The sum grows when a
/// throttling ends. Where the kernel did not tell when it began, it was when the group last ran
/// there, or when this task was queued. A task may come onto the CPU while its group is throttled,
/// to be put aside when it returns to user space: then its wait was for the quota too.
#[inline(always)]
unsafe fn holes_of(task: *const u8, cpu: u32, now: Now, wait: u64) -> *const Throttled {
    use core::ptr::null;
    if HAS_THROTTLED.load() == 0 {
        return null();
    }
    // SAFETY: `task` is a program's argument; the index is masked.
    unsafe {
        let cfs_rq: *const u8 = read(task, &TASK_CFS_RQ);
        let total: u64 = read(cfs_rq, &CFS_RQ_THROTTLED_NS);
        let mut since: u64 = 0;
        if HAS_THROTTLED_AT.load() != 0 {
            since = read(cfs_rq, &CFS_RQ_THROTTLED_AT);
        }
        if total | since == 0 {
            return null();
        }
        let place = throttled(task, cpu, total);
        if place.is_null() {
            return null();
        }
        let grown = total.wrapping_sub((*place).seen_ns);
        if grown != 0 {
            (*place).seen_ns = total;
            let mut from = (*place).since;
            if from == 0 {
                from = flat::max((*place).last_ran, now.clock.wrapping_sub(wait));
            }
            (*place).since = 0;
            let i = (*place).next & (HOLES as u64 - 1);
            (*place).next = i + 1;
            *(*place).holes.as_mut_ptr().add(i as usize) = Hole {
                from,
                until: from + grown,
            };
        }
        (*place).under_way = EMPTY.under_way;
        if since != 0 {
            (*place).under_way = Hole {
                from: since,
                until: now.clock,
            };
        }
        place
    }
}

/// Who waited.
#[derive(Clone, Copy)]
struct Victim {
    cgroup: u64,
    stats: *mut SchedSlot,
    /// The throttlings of its group, or NULL.
    throttled: *const Throttled,
}

/// A wait that is being walked back.
struct Walk {
    of: Victim,
    ring: *const Ring,
    /// The interval looked at.
    run: Run,
    /// Index of the one before it.
    i: u64,
    queued: u64,
    /// From here on all is booked.
    upto: u64,
    /// All bits set: this wait stands for itself; none: for the sample.
    exact: u64,
    kernel: u64,
    quota: u64,
}

/// Books the `wait` that ends with the interval `newest` on the ring's CPU. `back` is 1 if
/// `newest` is the ring's own newest, 0 if it comes after it.
#[inline(always)]
unsafe fn walk(of: Victim, runs: *const Runs, back: u64, newest: Run, wait: u64) {
    // SAFETY: the ring's index is masked; the pointers are those of the caller.
    unsafe {
        let queued = newest.end.wrapping_sub(wait);
        let mut ring = &raw const (*runs).near;
        let mut i = (*ring).head.wrapping_sub(back) & (RUNS as u64 - 1);
        let before = *(*ring).runs.as_ptr().add(i as usize);
        let known = before.end != 0 && before.end <= newest.end;
        if known && before.end <= queued && of.throttled.is_null() {
            // Most waits are behind one interval.
            let stolen = stolen(newest, before, wait);
            book(of.cgroup, of.stats, newest.by, wait.wrapping_sub(stolen), 0);
            if stolen != 0 {
                book_rarely(of.cgroup, of.stats, BY_KERNEL, stolen, 0);
            }
            return;
        }
        let mut exact = u64::MAX;
        if known && before.end > queued && wait < LONG_WAIT_NS {
            // By chance, not by count: a count keeps step with a round robin.
            (*of.stats).sampled_ns += wait;
            if bpf_get_prandom_u32() & (SHORT_WAIT_SAMPLE - 1) != 0 {
                return;
            }
            exact = 0;
        }
        let mut run = newest;
        let oldest = ((*ring).head + 1) & (RUNS as u64 - 1);
        if (*(*ring).runs.as_ptr().add(oldest as usize)).end > queued {
            // Longer ago than that.
            ring = &raw const (*runs).far;
            i = (*ring).head.wrapping_sub(back) & (RUNS as u64 - 1);
            if back != 0 {
                run = *newest_of(ring.cast_mut());
            }
        }
        let mut walk = Walk {
            of,
            ring,
            run,
            i: i + 1,
            queued,
            upto: newest.end,
            exact,
            kernel: 0,
            quota: 0,
        };
        walk_far(&mut walk);
    }
}

/// Books what is behind several intervals, or known to none.
#[inline(never)]
unsafe fn walk_far(walk: &mut Walk) {
    // SAFETY: the callback is given this very walk, whose pointers are those of a caller.
    unsafe {
        bpf_loop(
            (RUNS / STRIDE) as u32 - 1,
            further as *mut c_void,
            (&raw mut *walk).cast::<c_void>(),
            0,
        );
        let of = walk.of;
        let forgotten = walk.upto.wrapping_sub(walk.queued);
        for (by, ns) in [
            (BY_UNATTRIBUTED, forgotten),
            (BY_QUOTA, walk.quota),
            (BY_KERNEL, walk.kernel),
        ] {
            if ns != 0 {
                book_rarely(of.cgroup, of.stats, by, ns & walk.exact, ns & !walk.exact);
            }
        }
    }
}

/// How much of the interval `run` interrupts and a hypervisor took, at most the `ran` of it that
/// is of interest.
#[inline(always)]
fn stolen(run: Run, before: Run, ran: u64) -> u64 {
    let whole = run.end.wrapping_sub(before.end);
    let on_cpu = run.task_end.wrapping_sub(before.task_end);
    flat::min(flat::positive(whole.wrapping_sub(on_cpu)), ran)
}

/// A few intervals further back, as many as are worth a call. The verifier looks at this once,
/// however long the ring is.
unsafe extern "C" fn further(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: `bpf_loop` hands over what `walk_far` gave it; the ring's index is masked.
    unsafe {
        let walk = &mut *walk;
        for _ in 0..STRIDE {
            walk.i = walk.i.wrapping_sub(1) & (RUNS as u64 - 1);
            let before = *(*walk.ring).runs.as_ptr().add(walk.i as usize);
            if before.end == 0 || before.end > walk.upto {
                return 1;
            }
            take(walk, before);
            if before.end <= walk.queued {
                return 1;
            }
        }
    }
    0
}

/// Intervals looked at in one call.
const STRIDE: usize = 4;

/// Books the interval looked at, which begins where the one `before` it ends.
#[inline(always)]
unsafe fn take(walk: &mut Walk, before: Run) {
    // SAFETY: the pointers are those of a walk.
    unsafe {
        let from = flat::max(walk.queued, before.end);
        let mut ran = walk.upto.wrapping_sub(from);
        if !walk.of.throttled.is_null() {
            let held = overlap(walk.of.throttled, from, walk.upto);
            walk.quota += held;
            ran = ran.wrapping_sub(held);
        }
        let stolen = stolen(walk.run, before, ran);
        walk.kernel += stolen;
        ran = ran.wrapping_sub(stolen);
        book(
            walk.of.cgroup,
            walk.of.stats,
            walk.run.by,
            ran & walk.exact,
            ran & !walk.exact,
        );
        walk.upto = from;
        walk.run = before;
    }
}

/// How much of `[from, until)` the throttlings cover; they do not overlap one another.
#[inline(always)]
unsafe fn overlap(throttled: *const Throttled, from: u64, until: u64) -> u64 {
    let one = |hole: Hole| {
        let begin = flat::max(hole.from, from);
        let end = flat::min(hole.until, until);
        flat::positive(end.wrapping_sub(begin))
    };
    // SAFETY: a place in the table; the index is below its length.
    unsafe {
        let mut sum = one((*throttled).under_way);
        for i in 0..HOLES {
            sum += one(*(*throttled).holes.as_ptr().add(i));
        }
        sum
    }
}

/// [`book`], where it is not worth a copy of its own.
#[inline(never)]
unsafe fn book_rarely(victim: u64, stats: *mut SchedSlot, by: u64, exact: u64, sampled: u64) {
    // SAFETY: the caller's.
    unsafe { book(victim, stats, by, exact, sampled) }
}

/// Adds to the pair (victim, by).
#[inline(always)]
unsafe fn book(victim: u64, stats: *mut SchedSlot, by: u64, exact: u64, sampled: u64) {
    let mixed = (victim as u32).wrapping_mul(0x9E37_79B1) ^ (by as u32).wrapping_mul(0x85EB_CA6B);
    let i = mixed >> (32 - PAIRS.trailing_zeros());
    let block = per_cpu::index(PAIRS, 0);
    let mut k = 0;
    while k < PAIR_PROBES {
        if let Some(pair) = PAIR.get_ptr_mut(block + ((i ^ k) & (PAIRS - 1))) {
            // SAFETY: this CPU's table.
            unsafe {
                if (*pair).victim == 0 {
                    (*pair).by = by;
                    (*pair).victim = victim;
                }
                if (*pair).victim == victim && (*pair).by == by {
                    (*pair).ns += exact;
                    (*pair).sampled_ns += sampled;
                    return;
                }
            }
        }
        k += 1;
    }
    count(loss::PAIRS);
    // SAFETY: this CPU's counters.
    unsafe {
        (*stats).other_ns += exact;
        (*stats).other_sampled_ns += sampled;
    }
}

/// `struct bpf_iter__task`: what an iterator over tasks is given.
#[repr(C)]
struct TaskContext {
    meta: *const u8,
    task: *const u8,
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
            if HAS_THROTTLED_AT.load() != 0 {
                throttled_at = read(cfs_rq, &CFS_RQ_THROTTLED_AT);
            }
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
