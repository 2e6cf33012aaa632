//! Telling an object's programs how many of their events to count.

use std::mem::offset_of;

use lens_common::sample;

use super::{
    governor::Reduction,
    keyed::store,
    mapped::Mapped,
    object::{Object, ObjectError, Plan},
};

/// What was said to one object.
#[derive(Debug)]
pub(super) struct Sample {
    places: Mapped<sample::Sample>,
    one_in: u64,
}

impl Sample {
    /// Gives the object room for it.
    pub(super) fn plan(plan: &mut Plan<'_>) {
        plan.per_cpu("SAMPLING", 1);
    }

    /// Maps it.
    pub(super) fn of(object: &Object) -> Result<Self, ObjectError> {
        Ok(Self {
            places: object.mapped("SAMPLING", 1)?,
            one_in: 0,
        })
    }

    /// Has one event in as many counted as the last of the first `to` of `reductions` says.
    pub(super) fn set(&mut self, reductions: &[Reduction], to: usize) {
        let one_in = reductions.iter().take(to).rev().find_map(|r| r.one_in());
        self.one_in = one_in.map_or(0, u64::from);
        for cpu in 0..self.places.cpus() {
            if let Some(place) = self.places.at(cpu, 0) {
                const { assert!(offset_of!(sample::Sample, one_in) == 0) };
                store(place.cast(), self.one_in);
            }
        }
    }

    /// One in so many, or `usual` if nothing is said.
    pub(super) fn one_in(&self, usual: u32) -> u64 {
        if self.one_in == 0 {
            u64::from(usual)
        } else {
            self.one_in
        }
    }
}
