//! Where threads sleep, and for how long: their stacks when they go to sleep, the time when they run
//! again. An object of its own, loaded only while somebody asks: stacks are dear to take.
//!
//! How long a sleep will be is not known when its stack has to be taken. So it is taken of one sleep
//! in so many, as many as a CPU can bear ([`PACE_STACKS`]), which stand for the others; and always
//! where the thread's last sleep was a long one. A long sleep is charged as what it is, once: its user
//! stack may then be missing, the kernel's is the one on which it still sleeps.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};
use lens_common::{
    limits::{SLEEPERS, SLOTS},
    loss,
    profile::{LONG_NS, PACE_MOST, PACE_NS, PACE_STACKS, Pace, SleepSlot, Sleeper},
};
use lens_ebpf::{
    clock,
    countdown::is_due,
    field::read,
    loss::count,
    offsets, per_cpu, stacks,
    target::{cgroup_of, slot_of},
    task::{TaskContext, is_kernel_thread},
};

stacks!(STACK);

/// By thread id. No task storage: it may not be made under a run queue's lock on all kernels.
#[map]
static SLEEPER: HashMap<u32, Sleeper> = HashMap::with_max_entries(SLEEPERS, 0);
#[map]
static PACE: Array<Pace> = Array::with_max_entries(1, per_cpu::MAPPED);
#[map]
static SLOT: Array<SleepSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
/// When it began, by the agent.
#[map]
static BEGAN: Array<u64> = Array::with_max_entries(1, per_cpu::MAPPED);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `task_struct.__state`
    TASK_STATE,
    /// `task_struct.se.sum_exec_runtime`
    TASK_RAN,
}

/// `TASK_DEAD`
const DEAD: u32 = 0x80;

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next,
/// unsigned int prev_state)`, since 5.18.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let preempt: u64 = ctx.arg(0);
        let prev: *const u8 = ctx.arg(1);
        let next: *const u8 = ctx.arg(2);
        let state = ctx.arg::<u64>(3) as u32;
        let now = clock::now();
        let next_tid: u32 = read(next, &TASK_PID);
        if next_tid != 0
            && let Some(sleeper) = SLEEPER.get_ptr_mut(next_tid)
            && (*sleeper).since_ns != 0
        {
            ended(next, sleeper, now, true);
        }
        let prev_tid: u32 = read(prev, &TASK_PID);
        if prev_tid == 0 || preempt & 1 != 0 || state == 0 {
            return 0;
        }
        if state & DEAD != 0 {
            let _ = SLEEPER.remove(prev_tid);
        } else {
            begins(ctx.as_ptr(), prev, prev_tid, now);
        }
    }
    0
}

/// `task`, which is the current one, goes to sleep.
#[inline(always)]
unsafe fn begins(ctx: *mut c_void, task: *const u8, tid: u32, now: u64) {
    // SAFETY: `task` and `ctx` are the program's; this CPU's pace.
    unsafe {
        if is_kernel_thread(task) {
            return;
        }
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return;
        }
        let Some(sleeper) = sleeper_of(tid) else {
            count(loss::UNDER_WAY);
            return;
        };
        let Some(pace) = PACE.get_ptr_mut(per_cpu::cpu()) else {
            return;
        };
        let ran: u64 = read(task, &TASK_RAN);
        if (*sleeper).since_ns != 0 {
            // It has come unseen: some kernels do not fire the tracepoint on every switch. What it did not
            // run since then it slept, or waited.
            let ran_for = ran.wrapping_sub((*sleeper).ran_ns);
            ended(task, sleeper, now.wrapping_sub(ran_for), false);
        }
        (*sleeper).ran_ns = ran;
        let weight = weight_of(pace, now, (*sleeper).was_long != 0);
        (*sleeper).weight = weight;
        (*sleeper).cgroup = cgroup;
        if weight != 0 {
            (*sleeper).kernel = STACK.kernel(ctx).unwrap_or_default();
            (*sleeper).user = STACK.user(ctx).unwrap_or_default();
        }
        (*sleeper).since_ns = now;
    }
}

#[inline(always)]
fn sleeper_of(tid: u32) -> Option<*mut Sleeper> {
    if let Some(sleeper) = SLEEPER.get_ptr_mut(tid) {
        return Some(sleeper);
    }
    let none = Sleeper {
        since_ns: 0,
        cgroup: 0,
        user: 0,
        kernel: 0,
        weight: 0,
        was_long: 0,
        ran_ns: 0,
    };
    let _ = SLEEPER.insert(tid, none, u64::from(BPF_NOEXIST));
    SLEEPER.get_ptr_mut(tid)
}

/// For how many sleeps the stack of one that begins now stands, if it is a short one; 0 if it is not
/// taken.
#[inline(always)]
unsafe fn weight_of(pace: *mut Pace, now: u64, was_long: bool) -> u64 {
    // SAFETY: this CPU's.
    unsafe {
        let passed = now.wrapping_sub((*pace).since_ns);
        if passed >= PACE_NS {
            let sleeps = (*pace).sleeps * PACE_NS / passed;
            (*pace).one_in = 1 + sleeps / PACE_STACKS;
            (*pace).since_ns = now;
            (*pace).sleeps = 0;
            (*pace).taken = 0;
            (*pace).more = PACE_STACKS;
        }
        (*pace).sleeps += 1;
        let mut weight = 0;
        if was_long && (*pace).taken < PACE_MOST {
            weight = 1;
        } else {
            // As it was when the number of those in between was drawn.
            let drawn = (*pace).drawn.max(1);
            let one_in = (*pace).one_in as u32;
            if is_due(&raw mut (*pace).left, one_in) {
                (*pace).drawn = u64::from(one_in);
                weight = drawn;
            }
        }
        if weight != 0 {
            (*pace).taken += 1;
            if (*pace).taken >= (*pace).more {
                // There are many more of them than the time before.
                (*pace).more += PACE_STACKS;
                (*pace).one_in *= 2;
            }
        }
        weight
    }
}

/// `task` ran again at `now`; `is_asleep` if its stack is still the one on which it slept.
#[inline(always)]
unsafe fn ended(task: *const u8, sleeper: *mut Sleeper, now: u64, is_asleep: bool) {
    // SAFETY: `task` is the program's; this CPU's counters.
    unsafe {
        let ns = now.wrapping_sub((*sleeper).since_ns);
        let was = *sleeper;
        (*sleeper).since_ns = 0;
        (*sleeper).was_long = u64::from(ns >= LONG_NS);
        let Some(slot) = slot_of(was.cgroup) else {
            return;
        };
        if let Some(slot) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) {
            (*slot).sleeps += 1;
            (*slot).ns += ns;
        }
        charge(task, &was, ns, is_asleep);
    }
}

/// Charges a sleep of `ns` to where it was slept; `is_asleep` as in [`ended`].
#[inline(always)]
unsafe fn charge(task: *const u8, sleeper: &Sleeper, ns: u64, is_asleep: bool) {
    let times = if ns >= LONG_NS { 1 } else { sleeper.weight };
    if times == 0 {
        return;
    }
    // SAFETY: `task` is the program's, and sleeps or is about to run.
    unsafe {
        let (user, kernel) = if sleeper.weight != 0 {
            (sleeper.user, sleeper.kernel)
        } else if !is_asleep {
            (0, 0)
        } else {
            (0, STACK.kernel_of(task).unwrap_or_default())
        };
        let place = stacks::place(task, sleeper.cgroup, user, kernel);
        STACK.note(task, &place, times, ns * times);
    }
}

/// Charges what threads that still sleep have slept so far; those whose sleep began earlier than the
/// program, since then. To be read when that is detached.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn asleep(ctx: *const TaskContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `task` is NULL after the last.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() || is_kernel_thread(task) {
            return 0;
        }
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        let tid: u32 = read(task, &TASK_PID);
        let mut was = Sleeper {
            since_ns: 0,
            cgroup,
            user: 0,
            kernel: 0,
            weight: 0,
            was_long: 0,
            ran_ns: 0,
        };
        if let Some(sleeper) = SLEEPER.get_ptr(tid) {
            was = *sleeper;
        } else {
            let state: u32 = read(task, &TASK_STATE);
            if state != 0
                && state & DEAD == 0
                && let Some(began) = BEGAN.get_ptr(0)
            {
                was.since_ns = read_volatile(began);
            }
        }
        if was.since_ns != 0 {
            charge(task, &was, clock::now().wrapping_sub(was.since_ns), true);
        }
    }
    0
}
