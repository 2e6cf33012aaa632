//! Every system call that returned, by cgroup and number, with its errors by errno; how long one in
//! so many took.
//!
//! Counted at the exit, where number and result are known without remembering anything. A call
//! that never returns (`exit`, `exit_group`) is none of these; one that returns twice counts once.
//! The path of an ordinary call is a few loads and one table place: a cgroup with a place is a
//! watched one, so the table of targets is only asked when there is none.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

mod futex;
mod sync;

use aya_ebpf::{
    Global,
    macros::{btf_map, btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use futex::FUTEX_COUNTED;
use lens_common::{
    hist::{BUCKETS, bucket},
    limits::{CALL_PROBES, CALLS, ERRNOS, SLOTS, TIMED_TASKS, TIMES},
    loss,
    syscalls::{
        COMPAT, Call, CallErrno, CallTimes, FORKS, INTERRUPTED, NUMBERS, SyscallSlot, Timed,
        TimedTasks, UNKNOWN, WAITS,
    },
    target::OTHER_SLOT,
};
use lens_ebpf::{
    atomic,
    clock::now,
    countdown::{Countdown, is_due},
    field::read,
    loss::count,
    near, offsets, per_cpu, places, sample,
    target::cgroup_of,
    task::{TaskStorage, current},
};
use sync::SYNC_COUNTED;

#[map]
static CALL: Array<Call> = Array::with_max_entries(CALLS, per_cpu::MAPPED);
#[map]
static TIME: Array<CallTimes> = Array::with_max_entries(TIMES, per_cpu::MAPPED);
#[map]
static ERRNO: Array<CallErrno> = Array::with_max_entries(ERRNOS, per_cpu::MAPPED);
#[map]
static SLOT: Array<SyscallSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);

/// Calls until the next one is timed.
#[map]
static COUNTDOWN: Array<Countdown> = Array::with_max_entries(1, per_cpu::MAPPED);
#[btf_map]
static TASK: TaskStorage<Timed> = TaskStorage::new();
/// Whether a task's record is worth looking up; by thread id, and for all CPUs, because a task may
/// come back on another.
#[map]
static TIMED: Array<TimedTasks> = Array::with_max_entries(TIMED_TASKS, 0);

offsets! {
    /// `pt_regs.orig_ax`
    REGS_ORIG_AX,
    /// `task_struct.thread_info.status`
    TASK_STATUS,
    /// `task_struct.pid`
    TASK_PID,
}

/// One call in so many is timed; 0 is none.
#[unsafe(no_mangle)]
static TIME_ONE_IN: Global<u32> = Global::new(0);

/// `TS_COMPAT`: the call came through the 32-bit entry.
const TS_COMPAT: u32 = 2;
const RT_SIGRETURN: u32 = 15;
/// `exit`, `exit_group`, by both entries.
const NO_RETURN: [u32; 4] = [60, 231, COMPAT + 1, COMPAT + 252];
/// `execve`, `execveat`, by both entries: they may return under another thread id.
const EXECS: [u32; 4] = [59, 322, COMPAT + 11, COMPAT + 358];
/// `clone`, `fork`, `vfork`, `clone3`, by both entries: they return 0 in the new task.
const FORK_CALLS: [u32; 8] = [
    56,
    57,
    58,
    435,
    COMPAT + 120,
    COMPAT + 2,
    COMPAT + 190,
    COMPAT + 435,
];
/// The smallest result that is an error: -4095.
const ERRORS: u64 = -4095_i64 as u64;

/// `sys_enter(struct pt_regs *regs, long id)`: picks the calls that are timed. Not attached where
/// neither that nor futexes nor waits for devices are wanted.
#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    if FUTEX_COUNTED.load() != 0 && ctx.arg::<u64>(1) as u32 == futex::NR {
        // SAFETY: the argument is that of the prototype above.
        unsafe { futex::enter(ctx.arg(0)) }
    }
    if SYNC_COUNTED.load() != 0 && sync::is_one(ctx.arg::<u64>(1) as u32) {
        // SAFETY: the arguments are those of the prototype above.
        unsafe { sync::enter(ctx.arg(0), ctx.arg::<u64>(1) as u32) }
    }
    if TIME_ONE_IN.load() == 0 {
        return 0;
    }
    let Some(countdown) = COUNTDOWN.get_ptr_mut(per_cpu::cpu()) else {
        return 0;
    };
    // SAFETY: this CPU's counter, then the current task's own record.
    unsafe {
        if !is_due(&raw mut (*countdown).left, TIME_ONE_IN.load()) {
            return 0;
        }
        let task = current();
        let nr = number(ctx.arg(1), read(task, &TASK_STATUS));
        if NO_RETURN.contains(&nr) || EXECS.contains(&nr) || !has_places(cgroup_of(task)) {
            return 0;
        }
        let record = TASK.get(task, true);
        if record.is_null() {
            count(loss::TASKS);
            return 0;
        }
        if let Some(group) = timed_tasks(task) {
            (*record).at = now();
            atomic::add(&raw mut (*group).n, 1);
        }
    }
    0
}

/// `sys_exit(struct pt_regs *regs, long ret)`. Also the end of a call under way when the program
/// was attached, and the first thing that a new task passes.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let weight = sample::weight();
    if weight == 0 {
        return 0;
    }
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let regs: *const u8 = ctx.arg(0);
        let result: u64 = ctx.arg(1);
        let task = current();
        let cgroup = cgroup_of(task);
        let nr = number(read(regs, &REGS_ORIG_AX), read(task, &TASK_STATUS));
        if TIME_ONE_IN.load() != 0 {
            time(task, cgroup, nr);
        }
        if FUTEX_COUNTED.load() != 0 && nr == futex::NR {
            futex::exit(regs, task, cgroup, result);
        }
        let mixed = (cgroup as u32).wrapping_mul(0x9E37_79B1) ^ nr.wrapping_mul(0x85EB_CA6B);
        if let Some(call) = place(cgroup, nr, mixed) {
            let kind = (*call).kind;
            let again = kind & FORKS & u32::from(result == 0);
            (*call).calls += weight & u64::from(again).wrapping_sub(1);
            if result >= ERRORS {
                let errno = 0_u32.wrapping_sub(result as u32);
                if errno < INTERRUPTED {
                    (*call).errors += weight;
                }
                failed(cgroup, nr, errno, mixed, weight);
            }
            if SYNC_COUNTED.load() != 0 && kind & WAITS != 0 {
                sync::exit();
            }
        } else {
            if SYNC_COUNTED.load() != 0 && sync::is_one(nr) {
                sync::exit();
            }
            without_place(cgroup, nr, result, weight);
        }
    }
    0
}

/// The number of a call as the tables know it.
#[inline(always)]
fn number(nr: u64, status: u32) -> u32 {
    let mut nr = nr as u32;
    if nr >= NUMBERS {
        // `rt_sigreturn` puts back the registers of what it interrupted, and -1 for the number.
        nr = if nr == u32::MAX {
            RT_SIGRETURN
        } else {
            UNKNOWN
        };
    }
    if status & TS_COMPAT != 0 {
        nr += COMPAT;
    }
    nr
}

/// Where calls of `nr` by `cgroup` are counted. `None`: not watched, or beyond the limit, or the
/// table is full.
#[inline(always)]
unsafe fn place(cgroup: u64, nr: u32, mixed: u32) -> Option<*mut Call> {
    let block = places::block(per_cpu::cpu(), CALLS, mixed);
    let mut free: *mut Call = core::ptr::null_mut();
    let mut k = 0;
    while k < CALL_PROBES {
        let call = CALL.get_ptr_mut(block.at(k))?;
        // SAFETY: this CPU's table.
        unsafe {
            if (*call).cgroup == cgroup && (*call).nr == nr {
                return Some(call);
            }
            if (*call).cgroup == 0 {
                free = call;
                break;
            }
        }
        k += 1;
    }
    if free.is_null() || !has_places(cgroup) {
        return None;
    }
    // SAFETY: a free place of this CPU's table; the key comes last, for the reader.
    unsafe {
        (*free).nr = nr;
        (*free).kind = if FORK_CALLS.contains(&nr) {
            FORKS
        } else if sync::is_one(nr) {
            WAITS
        } else {
            0
        };
        (*free).calls = 0;
        (*free).errors = 0;
        (*free).cgroup = cgroup;
    }
    Some(free)
}

/// Whether `cgroup` is a target with places in the tables, not one beyond the limit.
#[inline(always)]
fn has_places(cgroup: u64) -> bool {
    near::slot_of(cgroup).is_some_and(|slot| slot != OTHER_SLOT)
}

/// Counts a call of a target beyond the limit, or one that found the table full.
#[inline(always)]
unsafe fn without_place(cgroup: u64, nr: u32, result: u64, weight: u64) {
    let Some(slot) = near::slot_of(cgroup) else {
        return;
    };
    let Some(other) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) else {
        return;
    };
    // SAFETY: this CPU's counters.
    unsafe {
        if result == 0 && FORK_CALLS.contains(&nr) {
            return;
        }
        (*other).calls += weight;
        if result >= ERRORS && 0_u32.wrapping_sub(result as u32) < INTERRUPTED {
            (*other).errors += weight;
        }
        if slot != OTHER_SLOT {
            count(loss::CALLS);
        }
    }
}

#[inline(always)]
unsafe fn failed(cgroup: u64, nr: u32, errno: u32, mixed: u32, weight: u64) {
    let mixed = mixed.wrapping_add(errno.wrapping_mul(0xC2B2_AE35));
    let block = places::block(per_cpu::cpu(), ERRNOS, mixed);
    let mut k = 0;
    while k < CALL_PROBES {
        if let Some(place) = ERRNO.get_ptr_mut(block.at(k)) {
            // SAFETY: this CPU's table.
            unsafe {
                if (*place).cgroup == 0 {
                    // What was counted while the agent freed it is nobody's.
                    (*place).n = 0;
                    (*place).nr = nr;
                    (*place).errno = errno;
                    (*place).cgroup = cgroup;
                }
                if (*place).cgroup == cgroup && (*place).nr == nr && (*place).errno == errno {
                    (*place).n += weight;
                    return;
                }
            }
        }
        k += 1;
    }
    count(loss::ERRNOS);
}

#[inline(always)]
unsafe fn timed_tasks(task: *const u8) -> Option<*mut TimedTasks> {
    // SAFETY: `task` is the current one.
    let tid: u32 = unsafe { read(task, &TASK_PID) };
    TIMED.get_ptr_mut(tid & (TIMED_TASKS - 1))
}

/// Ends the timing of `task`'s call, if it is timed.
#[inline(always)]
unsafe fn time(task: *const u8, cgroup: u64, nr: u32) {
    // SAFETY: the current task, its own record.
    unsafe {
        let Some(group) = timed_tasks(task) else {
            return;
        };
        if (*group).n == 0 {
            return;
        }
        let record = TASK.get(task, false);
        if record.is_null() || (*record).at == 0 {
            return;
        }
        let ns = now().wrapping_sub((*record).at);
        (*record).at = 0;
        atomic::add(&raw mut (*group).n, u64::MAX);
        // It may have been moved meanwhile.
        if has_places(cgroup) {
            took(cgroup, nr, ns);
        }
    }
}

#[inline(always)]
unsafe fn took(cgroup: u64, nr: u32, ns: u64) {
    let mixed = (cgroup as u32).wrapping_mul(0x9E37_79B1) ^ nr.wrapping_mul(0x85EB_CA6B);
    let block = places::block(per_cpu::cpu(), TIMES, mixed);
    let mut k = 0;
    while k < CALL_PROBES {
        if let Some(times) = TIME.get_ptr_mut(block.at(k)) {
            // SAFETY: this CPU's table.
            unsafe {
                if (*times).cgroup == 0 {
                    (*times).nr = u64::from(nr);
                    (*times).cgroup = cgroup;
                }
                if (*times).cgroup == cgroup && (*times).nr == u64::from(nr) {
                    (*times).timed += 1;
                    (*times).ns += ns;
                    if ns > (*times).max_ns {
                        (*times).max_ns = ns;
                    }
                    let b = bucket(ns);
                    if b < BUCKETS {
                        *(*times).hist.as_mut_ptr().add(b) += 1;
                    }
                    return;
                }
            }
        }
        k += 1;
    }
    count(loss::TIMES);
}
