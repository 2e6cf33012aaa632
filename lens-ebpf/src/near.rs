//! The slots of the cgroups that this CPU met last, for programs that run very often: looking them up
//! in the table of targets costs more than the rest of what they do.
//!
//! The agent forgets all of it at each reading, because the table may have changed. A cgroup that
//! is made is entered in the table before its first task can be moved there, so that nobody can
//! have remembered it as not watched.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{macros::map, maps::Array};
use lens_common::{
    limits,
    target::{NOT_WATCHED, Near},
};

use crate::{per_cpu, target};

#[map]
static NEAR: Array<Near> = Array::with_max_entries(limits::NEAR, per_cpu::MAPPED);

/// The slot of the cgroup with `id`, if it is watched. Only in programs that are not preempted
/// and run for the current task: what interrupts them then asks for the same cgroup.
#[inline(always)]
pub fn slot_of(id: u64) -> Option<u32> {
    let i = id as u32 & (limits::NEAR - 1);
    let near = NEAR.get_ptr_mut(per_cpu::index(limits::NEAR, i))?;
    // SAFETY: this CPU's place; the agent writes 0 for the id, and nothing else. The id is written
    // last, so that it never stands beside another one's slot.
    unsafe {
        let slot = if read_volatile(&raw const (*near).cgroup) == id {
            read_volatile(&raw const (*near).slot)
        } else {
            let slot = target::slot_of(id).map_or(NOT_WATCHED, u64::from);
            write_volatile(&raw mut (*near).slot, slot);
            write_volatile(&raw mut (*near).cgroup, id);
            slot
        };
        if slot == NOT_WATCHED {
            None
        } else {
            Some(slot as u32)
        }
    }
}
