//! What the kernel programs have to say of themselves. Only in the variant of an object that is
//! built with the feature `log` and loaded when it is asked for: the other one holds none of this,
//! nor the map that it needs.

use aya_log_ebpf::{debug, warn};
use lens_common::target::MADE;

use crate::per_cpu::cpu;

/// Something found no room, for the `so_far`th time on this CPU: a kind of
/// [`lens_common::loss`].
#[inline(never)]
pub fn lost(what: u32, so_far: u64) {
    // Not each time: a full table is full for every event.
    if so_far & so_far.wrapping_sub(1) == 0 {
        warn!(
            (),
            "no room: loss {}, {} so far on CPU {}",
            what,
            so_far,
            cpu()
        );
    }
}

/// A cgroup was made or removed.
#[inline(never)]
pub fn cgroup(id: u64, what: u32) {
    if what == MADE {
        debug!((), "cgroup {} made", id);
    } else {
        debug!((), "cgroup {} removed", id);
    }
}
