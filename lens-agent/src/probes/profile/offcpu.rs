//! The reader of the offcpu object.

use std::{fs, path::PathBuf};

use lens_common::profile::{Pace, SleepSlot};

use super::super::{
    ObjectError, ProbeError, Setup,
    object::{Losses, Object, Plan, bytes},
    slots::Slots,
    stacks::{StackSample, Stacks},
    targets::cgroup_constants,
};
use crate::base::clock::{Clock as _, SystemClock};

/// The object.
#[derive(Debug)]
pub(super) struct OffCpu {
    object: Object,
    pub(super) losses: Losses,
    pub(super) slots: Slots<SleepSlot>,
    stacks: Stacks,
    asleep: PathBuf,
}

impl OffCpu {
    pub(super) fn start(setup: &Setup<'_>) -> Result<Self, ObjectError> {
        let types = setup.types;
        let mut plan = Plan::new("offcpu", bytes!("offcpu"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        plan.offset("TASK_PID", "task_struct", "pid")?;
        plan.offset("TASK_STATE", "task_struct", "__state")?;
        plan.offset("TASK_FLAGS", "task_struct", "flags")?;
        Stacks::plan(&mut plan)?;
        Slots::<SleepSlot>::plan(&mut plan);
        plan.per_cpu("PACE", 1);
        let mut object = plan.load()?;
        let stacks = Stacks::of(&mut object)?;
        let _: super::super::mapped::Mapped<Pace> = object.mapped("PACE", 1)?;
        let began = object.mapped_once::<lens_common::loss::Counter>("BEGAN", 1)?;
        let asleep = object.pin_iterator("asleep", "task", types, setup.pins)?;
        let now = u64::try_from(SystemClock.now().mono.as_nanos()).unwrap_or_default();
        began.set(0, 0, lens_common::loss::Counter(now));
        object.attach("sched_switch", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: Slots::of(&object)?,
            stacks,
            object,
            asleep,
        })
    }

    /// What has ended since the last time.
    pub(super) fn take(&mut self) -> Result<Vec<StackSample>, ProbeError> {
        self.stacks.take()
    }

    /// Ends it, and charges what is still under way.
    pub(super) fn end(&mut self) -> Result<Vec<StackSample>, ProbeError> {
        self.object.detach_all()?;
        fs::read(&self.asleep).map_err(|why| ProbeError::Read {
            probe: "offcpu",
            why: format!("sleeps under way: {why}"),
        })?;
        self.stacks.take()
    }
}
