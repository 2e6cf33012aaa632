//! Finding and taking places in a table by cgroup and one more word.

use aya_ebpf::maps::Array;
use lens_common::{loss, place::Place};

use crate::{atomic, loss::count, per_cpu};

/// Places tried; a power of two.
const PROBES: u32 = 8;

/// This CPU's place of (`cgroup`, `key`) in `table`, taken if it has none. `None`, and counted as
/// lost, if there is no room: the caller counts it elsewhere.
///
/// Safe against an interrupt that looks for a place at the same moment: whoever puts the cgroup in
/// first has it. Counters in it have to be added to atomically where both may have the same one.
#[inline(always)]
pub fn of<T: Place>(table: &Array<T>, cgroup: u64, key: u64) -> Option<*mut T> {
    let folded = (key ^ (key >> 32)) as u32;
    let mixed = (cgroup as u32).wrapping_mul(0x9E37_79B1) ^ folded.wrapping_mul(0x85EB_CA6B);
    let i = mixed >> (32 - T::PLACES.trailing_zeros());
    let base = per_cpu::index(T::PLACES, 0);
    let mut k = 0;
    while k < PROBES {
        let place = table.get_ptr_mut(base + ((i ^ k) & (T::PLACES - 1)))?;
        let words = place.cast::<u64>();
        // SAFETY: a place begins with its two words of key.
        unsafe {
            let mut owner = core::ptr::read_volatile(words);
            if owner == 0 {
                owner = atomic::compare_exchange(words, 0, cgroup);
                if owner == 0 {
                    core::ptr::write_volatile(words.add(1), key);
                    return Some(place);
                }
            }
            if owner == cgroup && core::ptr::read_volatile(words.add(1)) == key {
                return Some(place);
            }
        }
        k += 1;
    }
    count(loss::PLACES);
    None
}
