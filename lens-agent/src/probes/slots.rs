//! The counters that an object keeps for each target, in its map `SLOT`.

use std::collections::BTreeMap;

use lens_common::{Counters, limits::SLOTS, target::OTHER_SLOT};

use super::{
    mapped::Mapped,
    object::{Object, ObjectError, Plan},
    targets::Targets,
};

/// One block of `T` a CPU, with one entry a slot.
#[derive(Debug)]
pub(super) struct Slots<T>(Mapped<T>);

impl<T: Counters> Slots<T> {
    const MAP: &str = "SLOT";

    /// Gives the object room for them.
    pub(super) fn plan(plan: &mut Plan<'_>) {
        plan.slots(Self::MAP);
    }

    /// Maps them.
    pub(super) fn of(object: &Object) -> Result<Self, ObjectError> {
        Ok(Self(object.mapped(Self::MAP, SLOTS)?))
    }

    /// What all CPUs have counted in a slot.
    pub(super) fn sum(&self, slot: u32) -> T {
        let mut sum = T::default();
        for cpu in 0..self.0.cpus() {
            if let Some(at) = self.0.get(cpu, slot as usize) {
                add(&mut sum, &at);
            }
        }
        sum
    }

    /// The sums of all targets by cgroup id, those beyond the limit last, together, as id 0.
    pub(super) fn by_target(&self, targets: &Targets) -> impl Iterator<Item = (u64, T)> {
        let own = targets.live().iter().filter(|(_, t)| t.slot != OTHER_SLOT);
        own.map(|(id, target)| (*id, target.slot))
            .chain([(0, OTHER_SLOT)])
            .map(|(id, slot)| (id, self.sum(slot)))
    }

    /// The same as the counters of a reading: every target has an entry, and id 0 if it has counted
    /// anything.
    pub(super) fn counters<C: From<T> + Default + PartialEq>(
        &self,
        targets: &Targets,
    ) -> BTreeMap<u64, C> {
        let all = self.by_target(targets).map(|(id, sum)| (id, C::from(sum)));
        all.filter(|(id, counters)| *id != 0 || *counters != C::default())
            .collect()
    }

    /// Clears the counters of a slot that changes hands.
    pub(super) fn clear(&self, slot: u32) {
        for cpu in 0..self.0.cpus() {
            self.0.set(cpu, slot as usize, T::default());
        }
    }

    /// Changes every slot on every CPU, while no program counts in them.
    pub(super) fn each(&self, change: impl Fn(&mut T)) {
        for cpu in 0..self.0.cpus() {
            for slot in 0..self.0.block() {
                if let Some(mut at) = self.0.get(cpu, slot) {
                    change(&mut at);
                    self.0.set(cpu, slot, at);
                }
            }
        }
    }
}

/// The id under which `cgroup` is counted in a reading: its own, or 0 with those beyond the limit.
pub(super) fn counted_as<C>(cgroups: &BTreeMap<u64, C>, cgroup: u64) -> u64 {
    if cgroups.contains_key(&cgroup) {
        cgroup
    } else {
        0
    }
}

/// Adds counters word by word.
pub(super) fn add<T: Counters>(sum: &mut T, more: &T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let words = size_of::<T>() / 8;
    // SAFETY: `Counters` are 64-bit words without gaps, and both outlive the slices.
    #[expect(unsafe_code, reason = "counters are words by their trait's promise")]
    let (sum, more) = unsafe {
        (
            std::slice::from_raw_parts_mut(std::ptr::from_mut(sum).cast::<u64>(), words),
            std::slice::from_raw_parts(std::ptr::from_ref(more).cast::<u64>(), words),
        )
    };
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(*more);
    }
}
