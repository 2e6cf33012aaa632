//! Processes and threads that begin and end, by cgroup: the reader of the lifecycle object.

use std::{collections::BTreeMap, fmt};

use aya::maps::{MapData, RingBuf};
use lens_common::{
    lifecycle::{ExitEvent, Forker, KILLERS, LifecycleSlot},
    limits::{EXIT_BYTES, FORKERS},
};
use serde::{Deserialize, Serialize};

use super::{
    Fill, KernelReading, ObjectError, Probe, ProbeError, Setup,
    keyed::Strangers,
    mapped::Mapped,
    object::{Losses, Object, Plan, bytes},
    records::drain,
    slots::{Slots, counted_as},
    targets::{Targets, cgroup_constants},
};
use crate::base::text;

/// How much one process has forked. Kept for those that did so last: one that has gone from a
/// reading and is back begins at 0, and the cgroup's own counters know all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkerCounters {
    /// Its name when it last forked.
    pub comm: String,
    /// Processes it made.
    pub processes: u64,
    /// Threads it made.
    pub threads: u64,
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleCounters {
    /// Processes that its tasks made, in this cgroup or another.
    pub forks: u64,
    /// Threads that its tasks made.
    pub threads: u64,
    /// Programs started.
    pub execs: u64,
    /// Processes that ended.
    pub exits: u64,
    /// Threads that ended before their process did.
    pub thread_exits: u64,
    /// Processes that ended by themselves with a status other than 0.
    pub failed: u64,
    /// Processes that a signal ended: by SIGSEGV, by SIGABRT, by SIGBUS, SIGILL or SIGFPE, by
    /// SIGKILL, by another.
    pub killed: [u64; KILLERS],
    /// Signals that its tasks sent, to anybody.
    pub signals_sent: u64,
    /// Signals that were sent to its tasks, also by the kernel.
    pub signals: u64,
    /// Who forks, by process id.
    pub forkers: BTreeMap<u32, ForkerCounters>,
}

/// A process ended by a signal, or with a status other than 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbnormalExit {
    /// The cgroup's id.
    pub cgroup: u64,
    /// The process.
    pub tgid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its name.
    pub comm: String,
    /// Its parent's name.
    pub parent_comm: String,
    /// The status it ended with.
    pub status: u32,
    /// The signal that ended it; 0 if none.
    pub signal: u32,
    /// How long it lived.
    pub lifetime_ns: u64,
}

/// What the lifecycle object has counted, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, LifecycleCounters>,
    /// Abnormal exits since the reading before; what found no room is counted in Quality.
    pub abnormal: Vec<AbnormalExit>,
}

/// The probe.
struct Lifecycle {
    object: Object,
    losses: Losses,
    slots: Slots<LifecycleSlot>,
    forkers: Mapped<Forker>,
    exits: RingBuf<MapData>,
    strangers: Strangers,
}

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifecycle")
            .field("object", &self.object)
            .finish_non_exhaustive()
    }
}

impl From<LifecycleSlot> for LifecycleCounters {
    fn from(sum: LifecycleSlot) -> Self {
        Self {
            forks: sum.forks,
            threads: sum.threads,
            execs: sum.execs,
            exits: sum.exits,
            thread_exits: sum.thread_exits,
            failed: sum.failed,
            killed: sum.killed,
            signals_sent: sum.signals_sent,
            signals: sum.signals,
            forkers: BTreeMap::new(),
        }
    }
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    Ok(Box::new(Lifecycle::start(setup)?))
}

impl Lifecycle {
    fn start(setup: &Setup<'_>) -> Result<Self, ObjectError> {
        let types = setup.types;
        let tells = types.tracepoint_args("sched_process_exit") >= Some(2);
        let has_group_dead = tells && !setup.config.force_fallback;
        let mut plan = Plan::new("lifecycle", bytes!("lifecycle"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        for (name, field) in [
            ("TASK_PID", "pid"),
            ("TASK_TGID", "tgid"),
            ("TASK_COMM", "comm"),
            ("TASK_EXIT_CODE", "exit_code"),
            ("TASK_PARENT", "real_parent"),
            ("TASK_LEADER", "group_leader"),
            ("TASK_START", "start_time"),
            ("TASK_SIGNAL", "signal"),
        ] {
            plan.offset(name, "task_struct", field)?;
        }
        for (name, field) in [
            ("SIGNAL_LIVE", "live"),
            ("SIGNAL_THREADS", "nr_threads"),
            ("SIGNAL_FLAGS", "flags"),
            ("SIGNAL_EXIT_CODE", "group_exit_code"),
        ] {
            plan.offset(name, "signal_struct", field)?;
        }
        plan.offset("SIGINFO_CODE", "kernel_siginfo", "si_code")?;
        plan.constant("HAS_GROUP_DEAD", u32::from(has_group_dead));
        plan.places("FORKER", FORKERS);
        Slots::<LifecycleSlot>::plan(&mut plan);
        let mut object = plan.load()?;
        let exits = object.take_map("EXITS")?;
        object.attach("sched_process_fork", types)?;
        object.attach("sched_process_exec", types)?;
        object.attach("sched_process_exit", types)?;
        object.attach("signal_generate", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: Slots::of(&object)?,
            forkers: object.mapped_places("FORKER", FORKERS)?,
            object,
            exits,
            strangers: Strangers::default(),
        })
    }

    /// How full the table was.
    fn add_forkers(
        &mut self,
        targets: &Targets,
        into: &mut BTreeMap<u64, LifecycleCounters>,
    ) -> Fill {
        // One process forks on several CPUs; its name is the newest.
        let mut newest: BTreeMap<(u64, u32), u64> = BTreeMap::new();
        self.strangers.next_reading();
        self.strangers.sweep(&self.forkers, targets, |_, _, at| {
            let id = counted_as(into, at.cgroup);
            let Some(counters) = into.get_mut(&id) else {
                return;
            };
            let forker = counters.forkers.entry(at.tgid).or_default();
            forker.processes += at.processes;
            forker.threads += at.threads;
            let last = newest.entry((at.cgroup, at.tgid)).or_default();
            if at.last_ns >= *last {
                *last = at.last_ns;
                forker.comm = text::clean_bytes(&at.comm);
            }
        })
    }
}

impl Probe for Lifecycle {
    fn name(&self) -> &'static str {
        "lifecycle"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let mut cgroups = self.slots.counters(targets);
        let forkers = self.add_forkers(targets, &mut cgroups);
        into.tables.insert("lifecycle.forkers".to_owned(), forkers);
        let exits = drain::<ExitEvent>(&mut self.exits, EXIT_BYTES);
        let abnormal = exits.iter().map(AbnormalExit::from).collect();
        self.losses.tell(&mut into.quality);
        into.lifecycle = Some(LifecycleReading { cgroups, abnormal });
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }
}

impl From<&ExitEvent> for AbnormalExit {
    fn from(event: &ExitEvent) -> Self {
        Self {
            cgroup: event.cgroup,
            tgid: event.tgid,
            parent: event.parent,
            comm: text::clean_bytes(&event.comm),
            parent_comm: text::clean_bytes(&event.parent_comm),
            status: event.code >> 8 & 0xff,
            signal: event.code & 0x7f,
            lifetime_ns: event.lifetime_ns,
        }
    }
}
