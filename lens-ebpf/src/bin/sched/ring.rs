//! The intervals in which tasks of one cgroup ran, as each CPU keeps them.

use lens_common::{
    limits::{RUNS, STRETCH_NS},
    sched::{Ring, Run, Runs},
};

use crate::state::Now;

/// Closes the interval of whoever ran until now. Neighbours of one cgroup are one interval.
#[inline(always)]
pub(crate) unsafe fn ran(runs: *mut Runs, now: Now, next: u64) {
    // SAFETY: this CPU's ring, the index masked.
    unsafe {
        let by = (*runs).running;
        (*runs).running = next;
        if by == 0 {
            return;
        }
        let near = &raw mut (*runs).near;
        let mut at = newest_of(near);
        if (*at).by != by {
            closed(runs, *at);
            at = begin(near, by);
        }
        (*at).end = now.clock;
        (*at).task_end = now.task_clock;
    }
}

/// The newest interval is `done`: it goes into the ring for longer, too.
#[inline(always)]
unsafe fn closed(runs: *mut Runs, done: Run) {
    // SAFETY: this CPU's rings, the index masked.
    unsafe {
        let before = (*runs).near.head.wrapping_sub(1) & (RUNS as u64 - 1);
        let before = (*(*runs).near.runs.as_ptr().add(before as usize)).end;
        if before == 0 {
            // Nobody knows when the first one began.
            return;
        }
        let length = done.end.wrapping_sub(before);
        let far = &raw mut (*runs).far;
        let mut at = newest_of(far);
        let mut stretch = (*runs).stretch_ns.wrapping_add(length);
        if (*at).by != done.by {
            if length >= STRETCH_NS || stretch.wrapping_sub(length) >= STRETCH_NS {
                at = begin(far, done.by);
                stretch = length;
            } else {
                // Both are below 2^22, so this is below 2^54.
                let random = (*runs)
                    .random
                    .wrapping_mul(1_664_525)
                    .wrapping_add(1_013_904_223);
                (*runs).random = random;
                if u64::from(random as u32).wrapping_mul(stretch) >> 32 < length {
                    (*at).by = done.by;
                }
            }
        }
        (*runs).stretch_ns = stretch;
        (*at).end = done.end;
        (*at).task_end = done.task_end;
    }
}

/// The newest interval.
#[inline(always)]
pub(crate) unsafe fn newest_of(ring: *mut Ring) -> *mut Run {
    // SAFETY: a ring that the caller knows, the index masked.
    unsafe {
        let i = (*ring).head & (RUNS as u64 - 1);
        (&raw mut (*ring).runs).cast::<Run>().add(i as usize)
    }
}

/// Begins an interval that is booked to `by`.
#[inline(always)]
pub(crate) unsafe fn begin(ring: *mut Ring, by: u64) -> *mut Run {
    // SAFETY: as above.
    unsafe {
        (*ring).head = ((*ring).head + 1) & (RUNS as u64 - 1);
        let at = newest_of(ring);
        (*at).by = by;
        at
    }
}
