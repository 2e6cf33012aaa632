//! Where CPU time goes, always: the reader of the profile object. What is asked for, CPU time or
//! sleeps with names: [`on_demand`].

mod offcpu;
mod on_demand;

use std::collections::BTreeMap;

use lens_common::profile::{HZ, ProfileSlot};
use serde::{Deserialize, Serialize};

pub use self::on_demand::{
    NamedSample, ProfileError, ProfileKind, ProfileRequest, Profiled, profile,
};
use super::{
    KernelReading, ObjectError, Probe, ProbeError, Reduction, Setup,
    event::Event,
    object::{Losses, Object, Plan, bytes},
    sample::Sample,
    slots::Slots,
    stacks::{StackSample, Stacks},
    targets::{Targets, cgroup_constants},
};

/// Nanoseconds between two looks at a CPU; what a sample stands for.
pub const PERIOD_NS: u64 = 1_000_000_000 / HZ;
/// Stacks of each cgroup that a reading keeps, the most frequent ones.
const KEPT: usize = 16;

/// Samples of one cgroup since it became a target, each of which stands for [`PERIOD_NS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileCounters {
    /// In user code.
    pub user: u64,
    /// In the kernel, on its behalf or while an interrupt was handled.
    pub kernel: u64,
}

impl From<ProfileSlot> for ProfileCounters {
    fn from(sum: ProfileSlot) -> Self {
        Self {
            user: sum.user,
            kernel: sum.kernel,
        }
    }
}

/// What the profile object has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, ProfileCounters>,
    /// Stacks since the reading before, as addresses: of each cgroup those that were seen most often,
    /// in that order.
    pub stacks: Vec<StackSample>,
}

/// The object, as the probe and who asks for a profile have it.
#[derive(Debug)]
struct Sampler {
    object: Object,
    losses: Losses,
    slots: Slots<ProfileSlot>,
    stacks: Stacks,
    sample: Sample,
}

/// The program.
const SAMPLED: &str = "sampled";

impl Sampler {
    fn start(setup: &Setup<'_>) -> Result<Self, ObjectError> {
        let types = setup.types;
        let mut plan = Plan::new("profile", bytes!("profile"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        Stacks::plan(&mut plan)?;
        Slots::<ProfileSlot>::plan(&mut plan);
        Sample::plan(&mut plan);
        let mut object = plan.load()?;
        let stacks = Stacks::of(&mut object)?;
        object.attach_to_every(SAMPLED, Event::Clock(PERIOD_NS))?;
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: Slots::of(&object)?,
            sample: Sample::of(&object)?,
            stacks,
            object,
        })
    }
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    Ok(Box::new(Profile(Sampler::start(setup)?)))
}

/// The probe.
#[derive(Debug)]
struct Profile(Sampler);

impl Probe for Profile {
    fn name(&self) -> &'static str {
        "profile"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let sampler = &mut self.0;
        sampler.losses.tell(&mut into.quality);
        let mut kept: BTreeMap<u64, usize> = BTreeMap::new();
        let mut stacks = sampler.stacks.take()?;
        stacks.retain(|stack| {
            let n = kept.entry(stack.cgroup).or_default();
            *n += 1;
            *n <= KEPT && targets.live().contains_key(&stack.cgroup)
        });
        into.profile = Some(ProfileReading {
            cgroups: sampler.slots.counters(targets),
            stacks,
        });
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.0.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.0.object]
    }

    fn reductions(&self) -> &'static [Reduction] {
        &[Reduction::Sampled(4), Reduction::Detached]
    }

    fn reduce(&mut self, to: usize) -> Result<(), ProbeError> {
        let all = self.reductions();
        self.0.sample.set(all, to);
        // The clock beats the less often, and each beat counts for as many.
        let period = PERIOD_NS * self.0.sample.one_in(1);
        self.0.object.set_period(SAMPLED, period)?;
        Ok(())
    }
}
