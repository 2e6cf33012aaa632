//! Counting what found no room.

use aya_ebpf::{macros::map, maps::Array};
use lens_common::loss::COUNTERS;

use crate::per_cpu;

/// One block a CPU; the agent sizes it.
#[map]
static LOSS: Array<u64> = Array::with_max_entries(COUNTERS, per_cpu::MAPPED);

/// Counts one loss of kind `what` (a constant of [`lens_common::loss`]).
#[inline(always)]
pub fn count(what: u32) {
    if let Some(n) = LOSS.get_ptr_mut(per_cpu::index(COUNTERS, what)) {
        // SAFETY: this CPU's own counter.
        unsafe {
            *n += 1;
            #[cfg(feature = "log")]
            crate::log::lost(what, *n);
        }
    }
}
