//! Walking a wait back over the intervals of its CPU: who held it meanwhile.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use lens_common::{
    holder::{BY_KERNEL, BY_QUOTA, BY_UNATTRIBUTED},
    limits::{LONG_WAIT_NS, PAIR_PROBES, PAIRS, RUNS, SHORT_WAIT_SAMPLE},
    loss,
    sched::{Ring, Run, Runs, SchedSlot, Throttled},
};
use lens_ebpf::{flat, loss::count, per_cpu, places, sample};

use crate::{ring::newest_of, state::PAIR, throttling::overlap};

/// Who waited.
#[derive(Clone, Copy)]
pub(crate) struct Victim {
    pub(crate) cgroup: u64,
    pub(crate) stats: *mut SchedSlot,
    /// The throttlings of its group, or NULL.
    pub(crate) throttled: *const Throttled,
}

/// A wait that is being walked back.
pub(crate) struct Walk {
    of: Victim,
    ring: *const Ring,
    /// The interval looked at.
    run: Run,
    /// Index of the one before it.
    i: u64,
    queued: u64,
    /// From here on all is booked.
    upto: u64,
    /// An interval between that one and those of the ring, or NULL.
    between: *const Run,
    /// All bits set: this wait stands for itself; none: for the sample.
    exact: u64,
    kernel: u64,
    quota: u64,
}

/// Books the `wait` that ends with the interval `newest` on the ring's CPU. `back` is 1 if
/// `newest` is the ring's own newest, 0 if it comes after it.
#[inline(always)]
pub(crate) unsafe fn walk(of: Victim, runs: *const Runs, back: u64, newest: Run, wait: u64) {
    // SAFETY: the ring's index is masked; the pointers are those of the caller.
    unsafe {
        let queued = newest.end.wrapping_sub(wait);
        let mut ring = &raw const (*runs).near;
        let mut i = (*ring).head.wrapping_sub(back) & (RUNS as u64 - 1);
        let before = *(*ring).runs.as_ptr().add(i as usize);
        let known = before.end != 0 && before.end <= newest.end;
        if known && before.end <= queued && of.throttled.is_null() {
            // Most waits are behind one interval.
            let mut stolen = 0;
            // Nothing was, mostly, and dividing is dear.
            if newest.end.wrapping_sub(before.end) != newest.task_end.wrapping_sub(before.task_end)
            {
                stolen = self::stolen(newest, before, wait);
            }
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
            let one_in = match sample::one_in() {
                0 => u64::from(SHORT_WAIT_SAMPLE),
                one_in => one_in,
            };
            if u64::from(bpf_get_prandom_u32()) & one_in.wrapping_sub(1) != 0 {
                return;
            }
            exact = 0;
        }
        let mut between = core::ptr::null();
        let oldest = ((*ring).head + 1) & (RUNS as u64 - 1);
        if (*(*ring).runs.as_ptr().add(oldest as usize)).end > queued {
            // Longer ago than that. The newest interval is not in there yet.
            if back == 0 {
                between = newest_of(ring.cast_mut()).cast_const();
            }
            ring = &raw const (*runs).far;
            i = (*ring).head & (RUNS as u64 - 1);
        }
        let mut walk = Walk {
            of,
            ring,
            run: newest,
            i: i + 1,
            queued,
            upto: newest.end,
            between,
            exact,
            kernel: 0,
            quota: 0,
        };
        walk_far(&mut walk);
    }
}

/// Books what is behind several intervals, or known to none.
#[inline(never)]
pub(crate) unsafe fn walk_far(walk: &mut Walk) {
    // SAFETY: the callback is given this very walk, whose pointers are those of a caller.
    unsafe {
        if !walk.between.is_null() {
            let between = *walk.between;
            take(walk, between);
        }
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

/// How much of the part `ran` of the interval `run` interrupts and a hypervisor took, if they took
/// evenly of all of it: it may be much longer than what is of interest.
#[inline(always)]
pub(crate) fn stolen(run: Run, before: Run, ran: u64) -> u64 {
    let whole = run.end.wrapping_sub(before.end);
    let on_cpu = run.task_end.wrapping_sub(before.task_end);
    let stolen = flat::positive(whole.wrapping_sub(on_cpu));
    // In parts of 2^16, so that nothing below three days overflows.
    let share = (stolen << 16).checked_div(whole).unwrap_or_default();
    flat::min(ran.wrapping_mul(share) >> 16, ran)
}

/// A few intervals further back, as many as are worth a call. The verifier looks at this once,
/// however long the ring is.
pub(crate) unsafe extern "C" fn further(_: u64, walk: *mut Walk) -> i64 {
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
pub(crate) unsafe fn take(walk: &mut Walk, before: Run) {
    // SAFETY: the pointers are those of a walk.
    unsafe {
        let from = flat::max(walk.queued, before.end);
        let mut ran = walk.upto.wrapping_sub(from);
        if !walk.of.throttled.is_null() {
            let held = flat::min(overlap(walk.of.throttled, from, walk.upto), ran);
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

/// [`book`], where it is not worth a copy of its own.
#[inline(never)]
pub(crate) unsafe fn book_rarely(
    victim: u64,
    stats: *mut SchedSlot,
    by: u64,
    exact: u64,
    sampled: u64,
) {
    // SAFETY: the caller's.
    unsafe { book(victim, stats, by, exact, sampled) }
}

/// Adds to the pair (victim, by).
#[inline(always)]
pub(crate) unsafe fn book(victim: u64, stats: *mut SchedSlot, by: u64, exact: u64, sampled: u64) {
    let mixed = (victim as u32).wrapping_mul(0x9E37_79B1) ^ (by as u32).wrapping_mul(0x85EB_CA6B);
    let block = places::block(per_cpu::cpu(), PAIRS, mixed);
    let mut k = 0;
    while k < PAIR_PROBES {
        if let Some(pair) = PAIR.get_ptr_mut(block.at(k)) {
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
