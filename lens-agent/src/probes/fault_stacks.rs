//! Where page faults come from: the reader of the faultstacks object, which the memory probe loads
//! when it is asked to.

use super::{
    ObjectError, ProbeError, Setup,
    object::{Losses, Object, Plan, bytes},
    stacks::{StackSample, Stacks},
    targets::{Targets, cgroup_constants},
};
use crate::base::quality::Quality;

/// The object that takes stacks.
#[derive(Debug)]
pub(super) struct FaultStacks {
    object: Object,
    losses: Losses,
    stacks: Stacks,
    one_in: u32,
}

impl FaultStacks {
    /// Loads and attaches it.
    pub(super) fn start(setup: &Setup<'_>, one_in: u32) -> Result<Self, ObjectError> {
        // Twice the number fits.
        let one_in = one_in.min(1 << 20);
        let types = setup.types;
        let mut plan = Plan::new("faultstacks", bytes!("faultstacks"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        Stacks::plan(&mut plan)?;
        plan.constant("SAMPLE_ONE_IN", one_in)
            .per_cpu("COUNTDOWN", 1);
        let mut object = plan.load()?;
        let stacks = Stacks::of(&mut object)?;
        object.attach("page_fault_user", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            object,
            stacks,
            one_in,
        })
    }

    /// What was sampled since the last time; the most frequent first.
    pub(super) fn read(
        &mut self,
        targets: &Targets,
        quality: &mut Quality,
    ) -> Result<Vec<StackSample>, ProbeError> {
        self.losses.tell(quality);
        quality
            .sampled
            .insert("memory.fault_stacks".to_owned(), u64::from(self.one_in));
        let mut found = self.stacks.take()?;
        found.retain(|sample| targets.live().contains_key(&sample.cgroup));
        Ok(found)
    }

    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }
}
