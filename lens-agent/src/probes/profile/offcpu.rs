//! The reader of the offcpu object.

use std::{fs, path::PathBuf, time::Duration};

use lens_common::{loss::Counter, profile::SleepSlot};

use crate::probes::{
    ObjectError, ProbeError, Setup,
    mapped::Mapped,
    object::{Losses, Object, Plan, bytes},
    slots::Slots,
    stacks::{StackSample, Stacks},
    targets::cgroup_constants,
};

/// The object.
#[derive(Debug)]
pub(super) struct OffCpu {
    object: Object,
    pub(super) losses: Losses,
    pub(super) slots: Slots<SleepSlot>,
    pub(super) stacks: Stacks,
    asleep: PathBuf,
    began: Mapped<Counter>,
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
        plan.offset("TASK_RAN", "task_struct", "se.sum_exec_runtime")?;
        Stacks::plan(&mut plan)?;
        Slots::<SleepSlot>::plan(&mut plan);
        plan.per_cpu("PACE", 1);
        let mut object = plan.load()?;
        let stacks = Stacks::remembering(&mut object)?;
        let began = object.mapped_once("BEGAN", 1)?;
        let asleep = object.pin_iterator("asleep", "task", types, setup.pins)?;
        object.attach("sched_switch", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: Slots::of(&object)?,
            stacks,
            object,
            asleep,
            began,
        })
    }

    /// Says when it began.
    pub(super) fn begin(&self, at: Duration) {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.began.set(0, 0, Counter(at));
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
