//! System calls by cgroup and number: the reader of the syscalls object.

use std::collections::BTreeMap;

use lens_common::{
    files::SYNCS,
    hist::{BUCKETS, Hist},
    limits::{CALLS, ERRNOS, TIMES},
    syscalls::{Call, CallErrno, INTERRUPTED, SyscallSlot},
};
use serde::{Deserialize, Serialize};

use super::{
    Fill, KernelReading, OVER_BUDGET, Probe, ProbeError, Reduction, Setup,
    futexes::{FutexReading, Futexes},
    keyed::{Strangers, take},
    mapped::Mapped,
    near::Near,
    object::{Losses, Object, Plan, bytes},
    sample::Sample,
    slots::Slots,
    syncs::{SyncCounters, SyncReading, Syncs},
    targets::{Targets, cgroup_constants},
};

/// What can be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long one call in so many takes is measured; 0 is none. Counts are exact regardless.
    pub time_one_in: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { time_one_in: 8 }
    }
}

/// How long calls took, of those that were timed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallTimes {
    /// Calls timed.
    pub timed: u64,
    /// Their length in all; of `calls` about `ns * calls / timed`.
    pub ns: u64,
    /// The longest that ended since the reading before.
    pub max_ns: u64,
    /// Their lengths, by power of two.
    pub hist: Hist,
}

/// Calls of one number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCounters {
    /// Calls that returned; a call that returns in two tasks is one.
    pub calls: u64,
    /// Those that returned an error.
    pub errors: u64,
    /// Those that a signal interrupted: made again by the kernel, or ended with EINTR.
    pub interrupted: u64,
    /// The errors by errno; what found no room is missing here, and counted in Quality.
    pub errnos: BTreeMap<u32, u64>,
    /// How long they took.
    pub times: CallTimes,
}

/// Calls of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallCounters {
    /// Calls that returned, `other` included.
    pub calls: u64,
    /// Those that returned an error.
    pub errors: u64,
    /// Calls whose number found no room in the table.
    pub other: u64,
    /// By number; from [`lens_common::syscalls::COMPAT`] on those of the 32-bit entry.
    pub by_number: BTreeMap<u32, CallCounters>,
}

/// What the syscalls object has counted, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallsReading {
    /// One entry a target that has made calls; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, SyscallCounters>,
}

/// The probe.
#[derive(Debug)]
struct Syscalls {
    object: Object,
    losses: Losses,
    calls: Mapped<Call>,
    times: Mapped<lens_common::syscalls::CallTimes>,
    errnos: Mapped<CallErrno>,
    slots: Slots<SyscallSlot>,
    near: Near,
    sample: Sample,
    strangers: Strangers,
    time_one_in: u32,
    /// Whether calls are timed at present.
    is_timed: bool,
    /// Where the probe `locks` is wanted.
    futexes: Option<Futexes>,
    /// Where the probe `files` is wanted.
    syncs: Option<Syncs>,
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    let types = setup.types;
    // Beyond this a reading sees hardly any call timed; and twice the number fits.
    let time_one_in = setup.config.syscalls.time_one_in.min(1 << 20);
    let mut plan = Plan::new("syscalls", bytes!("syscalls"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    plan.offset("REGS_ORIG_AX", "pt_regs", "orig_ax")?;
    plan.offset("TASK_STATUS", "task_struct", "thread_info.status")?;
    plan.offset("TASK_PID", "task_struct", "pid")?;
    plan.constant("TIME_ONE_IN", time_one_in);
    let counts_futexes = setup.config.wants("locks");
    plan.constant("FUTEX_COUNTED", u32::from(counts_futexes));
    Futexes::plan(&mut plan, types)?;
    let counts_syncs = setup.config.wants("files");
    Syncs::plan(&mut plan, counts_syncs)?;
    plan.places("CALL", CALLS)
        .places("TIME", TIMES)
        .places("ERRNO", ERRNOS)
        .per_cpu("COUNTDOWN", 1);
    Slots::<SyscallSlot>::plan(&mut plan);
    Near::plan(&mut plan);
    Sample::plan(&mut plan);
    let mut object = plan.load()?;
    object.attach("sys_exit", types)?;
    if time_one_in != 0 || counts_futexes || counts_syncs {
        object.attach("sys_enter", types)?;
    }
    let futexes = counts_futexes.then(|| Futexes::of(&mut object, types, setup.pins));
    let syncs = counts_syncs.then(|| Syncs::of(&mut object));
    Ok(Box::new(Syscalls {
        losses: Losses::of(&object)?,
        calls: object.mapped_places("CALL", CALLS)?,
        times: object.mapped_places("TIME", TIMES)?,
        errnos: object.mapped_places("ERRNO", ERRNOS)?,
        slots: Slots::of(&object)?,
        near: Near::of(&object)?,
        sample: Sample::of(&object)?,
        object,
        strangers: Strangers::default(),
        time_one_in,
        is_timed: true,
        futexes: futexes.transpose()?,
        syncs: syncs.transpose()?,
    }))
}

impl Syscalls {
    /// How full the tables were: of calls, errors and times.
    fn add_calls(
        &mut self,
        targets: &Targets,
        into: &mut BTreeMap<u64, SyscallCounters>,
    ) -> [Fill; 3] {
        self.strangers.next_reading();
        let calls = self.strangers.sweep(&self.calls, targets, |_, _, call| {
            let counters = into.entry(call.cgroup).or_default();
            counters.calls += call.calls;
            counters.errors += call.errors;
            let by_number = counters.by_number.entry(call.nr).or_default();
            by_number.calls += call.calls;
            by_number.errors += call.errors;
        });
        let errnos = self.strangers.sweep(&self.errnos, targets, |_, _, at| {
            let counters = into.entry(at.cgroup).or_default();
            let by_number = counters.by_number.entry(at.nr).or_default();
            if at.errno < INTERRUPTED {
                *by_number.errnos.entry(at.errno).or_default() += at.n;
            } else {
                by_number.interrupted += at.n;
            }
        });
        let table = &self.times;
        let times = self.strangers.sweep(table, targets, |cpu, i, at| {
            let Ok(nr) = u32::try_from(at.nr) else { return };
            let counters = into.entry(at.cgroup).or_default();
            let times = &mut counters.by_number.entry(nr).or_default().times;
            times.timed += at.timed;
            times.ns += at.ns;
            if let Some(place) = table.at(cpu, i) {
                const MAX: usize = std::mem::offset_of!(lens_common::syscalls::CallTimes, max_ns);
                let longest = take(place.cast::<u64>().wrapping_add(MAX / 8));
                times.max_ns = times.max_ns.max(longest);
            }
            for bucket in 0..BUCKETS {
                times.hist[bucket] += u64::from(at.hist[bucket]);
            }
        });
        [calls, errnos, times]
    }
}

impl Probe for Syscalls {
    fn name(&self) -> &'static str {
        "syscalls"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let mut cgroups = BTreeMap::new();
        let fills = self.add_calls(targets, &mut cgroups);
        let names = ["syscalls.calls", "syscalls.errnos", "syscalls.times"];
        into.tables
            .extend(names.map(str::to_owned).into_iter().zip(fills));
        let mut futexes = FutexReading::default();
        let mut syncs = SyncReading::default();
        for (id, other) in self.slots.by_target(targets) {
            if id != 0 || other.syncs != [0; SYNCS] {
                syncs.cgroups.insert(id, SyncCounters::from(&other));
            }
            if other.futex_waits + other.futex_wakes != 0 {
                let sums = futexes.cgroups.entry(id).or_default();
                sums.waits = other.futex_waits;
                sums.ns = other.futex_ns;
                sums.run_ns = other.futex_run_ns;
                sums.wakes = other.futex_wakes;
            }
            if other.calls != 0 {
                let counters: &mut SyscallCounters = cgroups.entry(id).or_default();
                counters.calls += other.calls;
                counters.errors += other.errors;
                counters.other += other.calls;
            }
        }
        self.near.forget();
        if !self.is_timed && self.futexes.is_some() {
            into.quality.miss("locks.futexes", OVER_BUDGET);
        } else if let Some(part) = &mut self.futexes {
            let fill = part.read(targets, &mut futexes)?;
            into.tables.insert("syscalls.futexes".to_owned(), fill);
            into.futexes = Some(futexes);
        }
        if !self.is_timed && self.syncs.is_some() {
            into.quality.miss("files.sync", OVER_BUDGET);
        } else if let Some(part) = &mut self.syncs {
            let fill = part.read(targets, &mut syncs)?;
            into.tables.insert("syscalls.lengths".to_owned(), fill);
            into.syncs = Some(syncs);
        }
        let quality = &mut into.quality;
        self.losses.tell(quality);
        if self.time_one_in == 0 {
            quality.miss("syscalls.latency", "switched off");
        } else if !self.is_timed {
            quality.miss("syscalls.latency", OVER_BUDGET);
        } else {
            quality
                .sampled
                .insert("syscalls.latency".to_owned(), u64::from(self.time_one_in));
        }
        into.syscalls = Some(SyscallsReading { cgroups });
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
        if let Some(syncs) = self.syncs.as_mut().filter(|_| !self.is_timed) {
            syncs.forget();
        }
        self.is_timed = to == 0;
        Ok(self.object.keep_attached(&["sys_enter"], self.is_timed)?)
    }
}
