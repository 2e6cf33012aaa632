//! Finding and taking places in a table by cgroup and one more word.

use aya_ebpf::{Global, maps::Array};
use lens_common::{loss, place::Place};

use crate::{atomic, loss::count, per_cpu};

/// Places tried; a power of two.
const PROBES: u32 = 8;

/// Tables have so many places a CPU, shifted by this to the right: the agent sees to it that they do
/// not take gigabytes where there are hundreds of CPUs.
#[unsafe(no_mangle)]
static SHRINK: Global<u32> = Global::new(0);

/// This CPU's block of a table, as it is searched for one key.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    base: u32,
    first: u32,
    mask: u32,
}

/// The block of a table that has `places` (a power of two) where nothing is shrunk, for a key whose
/// hash is `mixed`.
#[inline(always)]
pub fn block(cpu: u32, places: u32, mixed: u32) -> Block {
    let shrink = SHRINK.load();
    let size = places >> shrink;
    Block {
        base: cpu * size,
        first: mixed >> (32 - places.trailing_zeros() + shrink),
        mask: size - 1,
    }
}

impl Block {
    /// Where the `k`-th place lies that is tried.
    #[inline(always)]
    pub fn at(self, k: u32) -> u32 {
        self.base + ((self.first ^ k) & self.mask)
    }
}

/// This CPU's place of (`cgroup`, `key`) in `table`, taken if it has none. `None`, and counted as
/// lost, if there is no room: the caller counts it elsewhere.
///
/// Safe against an interrupt that looks for a place at the same moment: whoever puts the cgroup in
/// first has it. Counters in it have to be added to atomically where both may have the same one.
#[inline(always)]
pub fn of<T: Place>(table: &Array<T>, cgroup: u64, key: u64) -> Option<*mut T> {
    let folded = (key ^ (key >> 32)) as u32;
    let mixed = (cgroup as u32).wrapping_mul(0x9E37_79B1) ^ folded.wrapping_mul(0x85EB_CA6B);
    let block = block(per_cpu::cpu(), T::PLACES, mixed);
    let mut k = 0;
    while k < PROBES {
        let place = table.get_ptr_mut(block.at(k))?;
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
