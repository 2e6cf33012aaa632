//! When a group was held back by its own quota.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use lens_common::{
    limits::{HOLES, THROTTLED},
    loss,
    sched::{Hole, Throttled, place_of},
};
use lens_ebpf::{field::read, flat, loss::count};

use crate::state::{
    CFS_RQ_RQ, CFS_RQ_THROTTLE_COUNT, CFS_RQ_THROTTLED_AT, CFS_RQ_THROTTLED_NS,
    CFS_RQ_THROTTLED_PELT, HAS_THROTTLED, HAS_THROTTLED_AT, HAS_THROTTLED_PELT, Now, RQ_CLOCK_PELT,
    RQ_LOST_IDLE, TASK_CFS_RQ, THROTTLE,
};

/// The place of `task`'s run queue on `cpu`, whose throttled time is `total`; made if need be.
/// Either it is this CPU, or its run queue is locked.
#[inline(always)]
pub(crate) unsafe fn throttled(task: *const u8, cpu: u32, total: u64) -> *mut Throttled {
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

/// When the throttling of `cfs_rq` began that is under way; 0 if there is none, or the kernel does not
/// tell.
#[inline(always)]
pub(crate) unsafe fn throttled_since(cfs_rq: *const u8, now: Now) -> u64 {
    // SAFETY: `cfs_rq` is typed.
    unsafe {
        if HAS_THROTTLED_AT.load() != 0 {
            return read(cfs_rq, &CFS_RQ_THROTTLED_AT);
        }
        if HAS_THROTTLED_PELT.load() == 0 || read::<u32>(cfs_rq, &CFS_RQ_THROTTLE_COUNT) == 0 {
            return 0;
        }
        // Another clock, of which only the distance from now means something here.
        let rq: *const u8 = read(cfs_rq, &CFS_RQ_RQ);
        let pelt = read::<u64>(rq, &RQ_CLOCK_PELT).wrapping_sub(read(rq, &RQ_LOST_IDLE));
        let age = flat::positive(pelt.wrapping_sub(read(cfs_rq, &CFS_RQ_THROTTLED_PELT)));
        now.clock.wrapping_sub(age)
    }
}

/// As a number: the verifier allows no arithmetic on what it knows as a pointer.
#[inline(always)]
pub(crate) unsafe fn address_of_run_queue(task: *const u8) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(task.add(TASK_CFS_RQ.load() as usize).cast::<u64>()) }.ok()
}

pub(crate) const EMPTY: Throttled = Throttled {
    cfs_rq: 0,
    seen_ns: 0,
    last_ran: 0,
    since: 0,
    next: 0,
    under_way: Hole { from: 0, until: 0 },
    holes: [Hole { from: 0, until: 0 }; HOLES],
};

/// The sum grew to `total`: a throttling ended. Where the kernel did not tell when it began, it was
/// when the group last ran there; or when the task was queued that has waited for `wait` since, if
/// the throttling fits into that: a group without quota left is throttled as it wakes up.
#[inline(always)]
pub(crate) unsafe fn note_growth(place: *mut Throttled, total: u64, now: Now, wait: u64) {
    // SAFETY: a place in this CPU's table, or whose run queue is locked; the index is masked.
    unsafe {
        let grown = total.wrapping_sub((*place).seen_ns);
        if grown == 0 {
            return;
        }
        (*place).seen_ns = total;
        let mut from = (*place).since;
        if from == 0 {
            from = (*place).last_ran;
            if wait >= grown {
                from = flat::max(from, now.clock.wrapping_sub(wait));
            }
            if from == 0 {
                from = now.clock.wrapping_sub(grown);
            }
        }
        (*place).since = 0;
        let i = (*place).next & (HOLES as u64 - 1);
        (*place).next = i + 1;
        *(*place).holes.as_mut_ptr().add(i as usize) = Hole {
            from,
            until: flat::min(from.wrapping_add(grown), now.clock),
        };
    }
}

/// The throttlings of `task`'s group on `cpu`; NULL if its quota never bit. A task may come onto the
/// CPU while its group is throttled, to be put aside when it returns to user space: then its wait
/// was for the quota too.
#[inline(always)]
pub(crate) unsafe fn holes_of(task: *const u8, cpu: u32, now: Now, wait: u64) -> *const Throttled {
    use core::ptr::null;
    if HAS_THROTTLED.load() == 0 {
        return null();
    }
    // SAFETY: `task` is a program's argument; the index is masked.
    unsafe {
        let cfs_rq: *const u8 = read(task, &TASK_CFS_RQ);
        let total: u64 = read(cfs_rq, &CFS_RQ_THROTTLED_NS);
        let since = throttled_since(cfs_rq, now);
        if total | since == 0 {
            return null();
        }
        let place = throttled(task, cpu, total);
        if place.is_null() {
            return null();
        }
        note_growth(place, total, now, wait);
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

/// How much of `[from, until)` the throttlings cover; they do not overlap one another.
#[inline(always)]
pub(crate) unsafe fn overlap(throttled: *const Throttled, from: u64, until: u64) -> u64 {
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
