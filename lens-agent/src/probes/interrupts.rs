//! Time in interrupts and softirqs, whom they interrupt, and timers started: the reader of the
//! interrupts object.

use std::collections::BTreeMap;

use lens_common::interrupts::{self, Handling, InterruptSlot, SOFTIRQS};
use serde::{Deserialize, Serialize};

use super::{
    KernelReading, OVER_BUDGET, Probe, ProbeError, Reduction, Setup,
    mapped::Mapped,
    object::{Losses, Object, Plan, bytes},
    sample::Sample,
    slots::Slots,
    targets::{Targets, cgroup_constants},
};

/// Names of the softirqs, by number, as `/proc/softirqs` has them.
pub const SOFTIRQ_NAMES: [&str; SOFTIRQS] = [
    "HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU",
];

/// Handlers of one kind that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handled {
    /// How often.
    pub n: u64,
    /// For how long.
    pub ns: u64,
}

/// What one CPU handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInterrupts {
    /// Handlers of interrupts; the local timer's and those between CPUs are none of them.
    pub hard: Handled,
    /// Softirqs, in the order of [`SOFTIRQ_NAMES`].
    pub soft: [Handled; SOFTIRQS],
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptCounters {
    /// Time that handlers of interrupts took while its tasks ran.
    pub hard_ns: u64,
    /// Time that softirqs took while its tasks ran; both work for anybody.
    pub soft_ns: u64,
    /// High-resolution timers started while its tasks ran, the scheduler's own ticks included.
    pub timers: u64,
}

/// What the interrupts object has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptsReading {
    /// By CPU; empty while nothing is timed.
    pub cpus: Vec<CpuInterrupts>,
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, InterruptCounters>,
}

/// The programs that time handlers.
const TIMED: [&str; 4] = [
    "irq_handler_exit",
    "irq_handler_entry",
    "softirq_exit",
    "softirq_entry",
];

/// The probe.
#[derive(Debug)]
struct Interrupts {
    object: Object,
    losses: Losses,
    slots: Slots<InterruptSlot>,
    handled: Mapped<interrupts::Interrupts>,
    handling: Mapped<Handling>,
    sample: Sample,
    /// Whether handlers are timed at present.
    is_timed: bool,
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    let types = setup.types;
    let mut plan = Plan::new("interrupts", bytes!("interrupts"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    plan.offset("TASK_PID", "task_struct", "pid")?;
    plan.per_cpu("HANDLED", 1).per_cpu("HANDLING", 1);
    Slots::<InterruptSlot>::plan(&mut plan);
    Sample::plan(&mut plan);
    let mut object = plan.load()?;
    // What begins before its beginning is seen is left out: exits first find nothing.
    for program in TIMED {
        object.attach(program, types)?;
    }
    object.attach("hrtimer_start", types)?;
    Ok(Box::new(Interrupts {
        losses: Losses::of(&object)?,
        slots: Slots::of(&object)?,
        handled: object.mapped("HANDLED", 1)?,
        handling: object.mapped("HANDLING", 1)?,
        sample: Sample::of(&object)?,
        object,
        is_timed: true,
    }))
}

impl From<InterruptSlot> for InterruptCounters {
    fn from(sum: InterruptSlot) -> Self {
        Self {
            hard_ns: sum.hard_ns,
            soft_ns: sum.soft_ns,
            timers: sum.timers,
        }
    }
}

impl From<interrupts::Handled> for Handled {
    fn from(from: interrupts::Handled) -> Self {
        Self {
            n: from.n,
            ns: from.ns,
        }
    }
}

impl Probe for Interrupts {
    fn name(&self) -> &'static str {
        "interrupts"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        if !self.is_timed {
            into.quality.miss("interrupts.times", OVER_BUDGET);
        }
        let cpus = (0..self.handled.cpus()).filter_map(|cpu| self.handled.get(cpu, 0));
        let cpus = cpus.filter(|_| self.is_timed).map(|handled| CpuInterrupts {
            hard: handled.hard.into(),
            soft: handled.soft.map(Handled::from),
        });
        into.interrupts = Some(InterruptsReading {
            cpus: cpus.collect(),
            cgroups: self.slots.counters(targets),
        });
        self.losses.tell(&mut into.quality);
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn reductions(&self) -> &'static [Reduction] {
        &[
            Reduction::Untimed,
            Reduction::Sampled(16),
            Reduction::Detached,
        ]
    }

    fn reduce(&mut self, to: usize) -> Result<(), ProbeError> {
        self.sample.set(self.reductions(), to);
        self.is_timed = to == 0;
        Ok(self.object.keep_attached(&TIMED, self.is_timed)?)
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        for cpu in 0..self.handling.cpus() {
            self.handling.set(cpu, 0, Handling::default());
        }
        Ok(())
    }
}
