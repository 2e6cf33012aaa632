//! Hits of breakpoints, counted in one place for all CPUs, and the record that is written at a limit.

use aya_ebpf::maps::RingBuf;
use lens_common::{
    function::{LimitEvent, TRAPS},
    loss,
};

use crate::{atomic, clock::now, loss::count};

/// Counts a hit in `traps`; notes when the first came, and tells of the one that reaches `limit`.
///
/// # Safety
///
/// All are words of a map's value.
#[inline(always)]
pub unsafe fn hit(events: &RingBuf, traps: *mut u64, first_ns: *mut u64, limit: *const u64) {
    // SAFETY: by the caller.
    unsafe {
        let n = atomic::add_up(traps, 1);
        if n == 1 {
            core::ptr::write_volatile(first_ns, now());
        }
        if n == core::ptr::read_volatile(limit) {
            tell(events, TRAPS, n);
        }
    }
}

/// Writes a record: so many of `what` have come.
#[inline(always)]
pub fn tell(events: &RingBuf, what: u64, n: u64) {
    let Some(mut event) = events.reserve::<LimitEvent>(0) else {
        count(loss::EVENTS);
        return;
    };
    event.write(LimitEvent {
        what,
        n,
        at_ns: now(),
    });
    event.submit(0);
}
