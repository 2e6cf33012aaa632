//! What an object's programs remember of the table of targets.

use lens_common::{limits::NEAR, target};

use super::{
    mapped::Mapped,
    object::{Object, ObjectError, Plan},
};

/// The memory of one object.
#[derive(Debug)]
pub(super) struct Near(Mapped<target::Near>);

impl Near {
    /// Gives the object room for it.
    pub(super) fn plan(plan: &mut Plan<'_>) {
        plan.per_cpu("NEAR", NEAR);
    }

    /// Maps it.
    pub(super) fn of(object: &Object) -> Result<Self, ObjectError> {
        Ok(Self(object.mapped("NEAR", NEAR)?))
    }

    /// Has the programs ask the table again: it may have changed.
    pub(super) fn forget(&self) {
        for cpu in 0..self.0.cpus() {
            for i in 0..self.0.block() {
                if let Some(place) = self.0.at(cpu, i) {
                    const { assert!(std::mem::offset_of!(target::Near, cgroup) == 0) };
                    // The id only: a program may be writing the rest.
                    super::keyed::store(place.cast(), 0);
                }
            }
        }
    }
}
