//! Tables of places that belong to one cgroup each. A place is made by a program and freed here,
//! when its cgroup is gone for good.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use lens_common::place::OfCgroup;

use super::{Fill, mapped::Mapped, targets::Targets};

/// Cgroups that have places and were no targets at the reading before: one that is none this time
/// either is gone; one met for the first time may have been made a moment ago.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    before: BTreeSet<u64>,
    now: BTreeSet<u64>,
}

impl Strangers {
    /// A new reading begins.
    pub(super) fn next_reading(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Hands every place of a target to `take`, with where it lies, and frees those of cgroups
    /// that are gone. How full the table was.
    pub(super) fn sweep<T: OfCgroup>(
        &mut self,
        table: &Mapped<T>,
        targets: &Targets,
        mut take: impl FnMut(usize, usize, &T),
    ) -> Fill {
        let mut fill = Fill {
            used: 0,
            places: table.block(),
        };
        for cpu in 0..table.cpus() {
            let mut used = 0;
            for i in 0..table.block() {
                // Most places are free: no need to copy them.
                let id = table
                    .at(cpu, i)
                    .map(|at| word(at.cast()).load(Ordering::Relaxed));
                if matches!(id, None | Some(0)) {
                    continue;
                }
                used += 1;
                let Some(place) = table.get(cpu, i) else {
                    continue;
                };
                let cgroup = place.cgroup();
                if targets.live().contains_key(&cgroup) {
                    take(cpu, i, &place);
                } else if self.before.contains(&cgroup) {
                    free(table, cpu, i);
                } else {
                    self.now.insert(cgroup);
                }
            }
            fill.used = fill.used.max(used);
        }
        fill
    }
}

/// Empties a place; its cgroup's id goes last, because a program may take the place from then on.
pub(super) fn free<T: OfCgroup>(table: &Mapped<T>, cpu: usize, i: usize) {
    let Some(place) = table.at(cpu, i) else {
        return;
    };
    let words = place.cast::<u64>();
    for word in (0..size_of::<T>() / 8).rev() {
        store(words.wrapping_add(word), 0);
    }
}

/// Removes everything from a table of what is under way: what was noted is void.
pub(super) fn empty<K: Pod, V: Pod>(table: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = table.keys().flatten().collect();
    for key in keys {
        // Whoever was there first.
        let _ = table.remove(&key);
    }
}

/// The word at `at`, which lies in a mapping.
fn word<'a>(at: *mut u64) -> &'a AtomicU64 {
    // SAFETY: callers hand over words inside a mapping, aligned, which outlives the use; programs
    // load and store them whole.
    #[expect(unsafe_code, reason = "atomic access to shared memory")]
    unsafe {
        AtomicU64::from_ptr(at)
    }
}

/// Writes one word of mapped memory, after all that was written before it.
pub(super) fn store(at: *mut u64, value: u64) {
    word(at).store(value, Ordering::Release);
}

/// Takes the value of one word of mapped memory, and begins anew at 0.
pub(super) fn take(at: *mut u64) -> u64 {
    word(at).swap(0, Ordering::Relaxed)
}
