//! Waits for locks of the kernel, by cgroup and kind.
//!
//! These programs run wherever a lock is waited for, also under the lock of a run queue, and in
//! interrupts: they take no lock and no memory but what is theirs already. A task that sleeps for
//! a lock has a record in a table made beforehand; who spins stays on the CPU, which has one
//! record. An interrupt that waits while its CPU spins is not counted, and told as lost.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};
use lens_common::{
    lengths::UnderWay,
    limits::{LOCK_SLEEPERS, SLOTS},
    locks::{KINDS, LockSlot, MUTEX, PERCPU_RWSEM, RT, RWLOCK, RWSEM, SEMAPHORE, SPINLOCK},
    loss,
    target::OTHER_SLOT,
};
use lens_ebpf::{
    clock::now,
    field::read,
    lengths,
    loss::count,
    offsets, per_cpu,
    target::{cgroup_of, slot_of},
    task::{current, is_kernel_thread},
};

#[map]
static SLOT: Array<LockSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
/// Who sleeps for a lock, by thread id.
#[map]
static UNDER_WAY: HashMap<u32, UnderWay> = HashMap::with_max_entries(LOCK_SLEEPERS, 0);
/// What this CPU spins for.
#[map]
static SPINNING: Array<Spinning> = Array::with_max_entries(1, per_cpu::MAPPED);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
}

/// `LCB_F_*` of include/trace/events/lock.h.
const F_SPIN: u32 = 1;
const F_READ: u32 = 2;
const F_WRITE: u32 = 4;
const F_RT: u32 = 8;
const F_PERCPU: u32 = 16;
const F_MUTEX: u32 = 32;

/// A record older than this, in ns, is of a wait whose end was not seen.
const FORGOTTEN: u64 = 1_000_000_000;

/// On a cache line of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Spinning {
    /// The address of the lock; 0 if there is none.
    lock: u64,
    since: u64,
    cgroup: u64,
    kind: u64,
    tid: u64,
}

/// `contention_begin(void *lock, unsigned int flags)`
#[btf_tracepoint(function = "contention_begin")]
fn contention_begin(ctx: BtfTracePointContext) -> i32 {
    let lock: u64 = ctx.arg(0);
    let flags = ctx.arg::<u64>(1) as u32;
    // SAFETY: the current task is typed.
    let (cgroup, tid) = unsafe {
        let task = current();
        if is_kernel_thread(task) {
            return 0;
        }
        (cgroup_of(task), read::<u32>(task, &TASK_PID))
    };
    if slot_of(cgroup).is_none() {
        return 0;
    }
    let kind = kind_of(flags);
    if kind == SPINLOCK || kind == RWLOCK {
        spin(lock, cgroup, kind, tid);
    } else {
        sleep(lock, cgroup, kind, tid);
    }
    0
}

/// `contention_end(void *lock, int ret)`
#[btf_tracepoint(function = "contention_end")]
fn contention_end(ctx: BtfTracePointContext) -> i32 {
    let lock: u64 = ctx.arg(0);
    // SAFETY: this CPU's record, the current task's own record, and the clock.
    unsafe {
        if let Some(spinning) = SPINNING.get_ptr_mut(per_cpu::cpu())
            && (*spinning).lock == lock
        {
            let ns = now().wrapping_sub((*spinning).since);
            (*spinning).lock = 0;
            waited((*spinning).cgroup, (*spinning).kind, ns);
            return 0;
        }
        let tid: u32 = read(current(), &TASK_PID);
        let Some(sleeping) = UNDER_WAY.get_ptr(tid) else {
            return 0;
        };
        if (*sleeping).what != lock {
            return 0;
        }
        let ns = now().wrapping_sub((*sleeping).since);
        waited((*sleeping).cgroup, (*sleeping).kind, ns);
        // It was there a moment ago, and nobody else removes it.
        let _ = UNDER_WAY.remove(tid);
    }
    0
}

#[inline(always)]
fn kind_of(flags: u32) -> usize {
    if flags & F_MUTEX != 0 {
        MUTEX
    } else if flags & F_RT != 0 {
        RT
    } else if flags & F_PERCPU != 0 {
        PERCPU_RWSEM
    } else if flags & F_SPIN != 0 {
        if flags & (F_READ | F_WRITE) == 0 {
            SPINLOCK
        } else {
            RWLOCK
        }
    } else if flags & (F_READ | F_WRITE) == 0 {
        SEMAPHORE
    } else {
        RWSEM
    }
}

#[inline(always)]
fn spin(lock: u64, cgroup: u64, kind: usize, tid: u32) {
    let Some(spinning) = SPINNING.get_ptr_mut(per_cpu::cpu()) else {
        return;
    };
    // SAFETY: this CPU's record; whoever spins is not moved from it.
    unsafe {
        let now = now();
        let is_inner = (*spinning).lock != 0
            && (*spinning).lock != lock
            && (*spinning).tid == u64::from(tid)
            && now.wrapping_sub((*spinning).since) < FORGOTTEN;
        if is_inner {
            count(loss::UNDER_WAY);
            return;
        }
        (*spinning).since = now;
        (*spinning).cgroup = cgroup;
        (*spinning).kind = kind as u64;
        (*spinning).tid = u64::from(tid);
        (*spinning).lock = lock;
    }
}

#[inline(always)]
fn sleep(lock: u64, cgroup: u64, kind: usize, tid: u32) {
    if let Some(sleeping) = UNDER_WAY.get_ptr(tid) {
        // SAFETY: the current task's own record.
        if unsafe { (*sleeping).what } == lock {
            // A mutex is told again each time that its waiter goes from spinning to sleep.
            return;
        }
    }
    let sleeping = UnderWay {
        cgroup,
        since: now(),
        kind: kind as u64,
        what: lock,
    };
    if UNDER_WAY.insert(tid, sleeping, 0).is_err() {
        count(loss::UNDER_WAY);
    }
}

#[inline(always)]
fn waited(cgroup: u64, kind: u64, ns: u64) {
    let Some(slot) = slot_of(cgroup) else {
        return;
    };
    let at = kind as usize;
    if at >= KINDS {
        return;
    }
    // SAFETY: this CPU's counters; the kind is in bounds.
    unsafe {
        if let Some(counters) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) {
            *(*counters).n.as_mut_ptr().add(at) += 1;
            *(*counters).ns.as_mut_ptr().add(at) += ns;
        }
    }
    if slot != OTHER_SLOT {
        lengths::note(cgroup, kind, ns);
    }
}
