//! What is counted in the kernel, and read from there.
//!
//! A probe is one concern: its part in an object of lens-ebpf, its shared types in lens-common,
//! and its reader here. [`REGISTRY`] lists them; [`Probes`] owns those that run.

mod alike;
mod batch;
pub mod block;
mod event;
mod fault_stacks;
pub mod files;
pub mod function;
pub mod futexes;
mod glob;
pub mod governor;
pub mod heap;
mod holder;
pub mod interrupts;
mod kernel_function;
mod kernel_types;
mod keyed;
pub mod ledger;
mod lengths;
pub mod lifecycle;
pub mod locks;
mod log;
mod map_memory;
mod mapped;
pub mod memory;
mod near;
pub mod net;
mod object;
mod pins;
pub mod profile;
pub mod prologue;
pub mod reclaim;
mod records;
mod sample;
pub mod sched;
mod slots;
mod stacks;
pub mod symbols;
pub mod syncs;
mod syscall_names;
pub mod syscalls;
mod targets;
mod trap;
mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    block::{BlockCounters, BlockReading, DeviceCounters, DeviceIo, DeviceNumber},
    files::{FileCounters, FileDeviceCounters, FilesReading},
    function::{
        Ended, FunctionCalls, FunctionReading, Means, TraceError, TraceRequest, Traceable, trace,
        traceable,
    },
    futexes::{CgroupFutexes, FutexCounters, FutexReading},
    glob::{GlobError, Globs},
    governor::{Reduction, Step},
    holder::Holder,
    interrupts::{CpuInterrupts, InterruptCounters, InterruptsReading, SOFTIRQ_NAMES},
    kernel_function::KernelFunctionError,
    kernel_types::{KernelTypes, KernelTypesError},
    ledger::Measured,
    lengths::Waits,
    lifecycle::{AbnormalExit, ForkerCounters, LifecycleCounters, LifecycleReading},
    locks::{LockCounters, LocksReading},
    log::{LogLevel, LogLine},
    map_memory::MapMemory,
    memory::{MemoryCounters, MemoryReading, ResidentPages},
    net::{HeldSockets, Listener, Messages, NetCounters, NetReading},
    object::{Object, ObjectError, ProgramCost},
    profile::{
        NamedSample, ProfileCounters, ProfileError, ProfileKind, ProfileReading, ProfileRequest,
        Profiled, profile,
    },
    reclaim::{HitLimit, OomKill, ReclaimCounters, ReclaimReading, Shortage},
    sched::{Held, RunQueue, SchedCounters, SchedReading, Stall},
    stacks::StackSample,
    symbols::{Frame, NamedStack, name_stacks},
    syncs::{SyncCounters, SyncReading},
    syscall_names::{name_of_call, name_of_errno},
    syscalls::{CallCounters, CallTimes, SyscallCounters, SyscallsReading},
    targets::{TargetState, Targets, Watched},
};
use self::{
    governor::{Governor, Load},
    ledger::{Costs, Ledger},
    pins::Pins,
};
use crate::base::quality::Quality;

/// A probe as it is listed, before it runs.
#[derive(Debug)]
pub struct Definition {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub title: &'static str,
    /// What cannot be diagnosed without it.
    pub blind: &'static str,
    start: fn(&Setup<'_>) -> Result<Box<dyn Probe>, ProbeError>,
}

/// Every probe, in the order in which they start.
pub const REGISTRY: &[Definition] = &[
    Definition {
        name: "sched",
        title: "run-queue waits and sleeps by cgroup, and who held the CPU meanwhile",
        blind: "who waits for a CPU and because of whom",
        start: sched::start,
    },
    Definition {
        name: "syscalls",
        title: "system calls by cgroup and number, with errors by errno and sampled latencies",
        blind: "storms of system calls and of errors, slow calls",
        start: syscalls::start,
    },
    Definition {
        name: "memory",
        title: "page faults, page allocations and resident pages by cgroup",
        blind: "page-fault storms, and who grows between two looks",
        start: memory::start,
    },
    Definition {
        name: "lifecycle",
        title: "processes and threads begun and ended by cgroup, crashes, and who forks",
        blind: "process churn, crash loops, thread leaks",
        start: lifecycle::start,
    },
    Definition {
        name: "interrupts",
        title: "time in interrupts and softirqs, whom they interrupt, and timers started",
        blind: "CPU time that goes to interrupts, storms of timers",
        start: interrupts::start,
    },
    Definition {
        name: "block",
        title: "requests to block devices by cgroup, and whose were served meanwhile",
        blind: "who waits for a disk and because of whom",
        start: block::start,
    },
    Definition {
        name: "files",
        title: "pauses of writers, page-cache misses, and commits of journals",
        blind: "who waits for writeback or a journal, who reads what is not cached",
        start: files::start,
    },
    // After `memory`, whose counts it uses.
    Definition {
        name: "reclaim",
        title: "waits for memory by cgroup, who takes it meanwhile, and processes killed for want of it",
        blind: "who waits for memory and because of whom, and which limit killed",
        start: reclaim::start,
    },
    Definition {
        name: "locks",
        title: "waits for locks by cgroup: the kernel's by kind, and futexes by address",
        blind: "lock contention, convoys and deadlocks",
        start: locks::start,
    },
    Definition {
        name: "net",
        title: "retransmits, resets, drops, failed connects and sockets by cgroup",
        blind: "lossy paths, full accept queues and receive buffers, socket leaks",
        start: net::start,
    },
    Definition {
        name: "profile",
        title: "stacks of whoever runs, 99 times a second on each CPU, by cgroup and process",
        blind: "in which functions CPU time goes",
        start: profile::start,
    },
];

/// Why a probe does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its object cannot be used.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It ran and cannot be read.
    #[error("probe {probe}: {why}")]
    Read {
        /// The probe.
        probe: &'static str,
        /// What failed.
        why: String,
    },
}

/// What a probe is started with.
#[derive(Debug)]
pub struct Setup<'a> {
    types: &'a KernelTypes,
    pins: &'a Pins,
    machine: &'a object::Machine,
    watched: &'a Watched,
    config: &'a Config,
}

/// A running probe.
pub trait Probe: Debug + Send {
    /// Its name in [`REGISTRY`].
    fn name(&self) -> &'static str;
    /// Adds what it has counted so far.
    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError>;
    /// Clears the counters of a slot that changes hands.
    fn clear(&self, slot: u32);
    /// Its objects.
    fn objects(&mut self) -> Vec<&mut Object>;
    /// How it can be made cheaper, in the order in which that is done.
    fn reductions(&self) -> &'static [Reduction] {
        &[Reduction::Detached]
    }
    /// Does with all of the first so many of [`Probe::reductions`], and no others.
    fn reduce(&mut self, _to: usize) -> Result<(), ProbeError> {
        Ok(())
    }
    /// Its programs have been away for a while, and are not back yet: what it had noted is void.
    fn forget(&mut self) -> Result<(), ProbeError> {
        Ok(())
    }
}

/// What all probes have counted, at one moment. A probe that does not run is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelReading {
    /// Whether only some cgroups are watched: then no sum over them is the host's.
    pub partial: bool,
    /// Names of the cgroups that are targets, by id.
    pub targets: BTreeMap<u64, Arc<str>>,
    /// Names of other cgroups that a number refers to.
    pub names: BTreeMap<u64, Arc<str>>,
    /// Waits for CPUs.
    pub sched: Option<SchedReading>,
    /// System calls.
    pub syscalls: Option<SyscallsReading>,
    /// Page faults, allocations, resident pages.
    pub memory: Option<MemoryReading>,
    /// Tasks begun and ended.
    pub lifecycle: Option<LifecycleReading>,
    /// Interrupts, softirqs, timers.
    pub interrupts: Option<InterruptsReading>,
    /// Requests to block devices.
    pub block: Option<BlockReading>,
    /// Waits for memory, and kills for want of it.
    pub reclaim: Option<ReclaimReading>,
    /// Waits for locks of the kernel.
    pub locks: Option<LocksReading>,
    /// Futexes.
    pub futexes: Option<FutexReading>,
    /// What is waited for at file systems, and what the page cache did not hold.
    pub files: Option<FilesReading>,
    /// Calls that wait until data is on its device.
    pub syncs: Option<SyncReading>,
    /// Sockets, and what they lose.
    pub net: Option<NetReading>,
    /// Where CPU time goes.
    pub profile: Option<ProfileReading>,
    /// A function trace that ended since the reading before.
    pub function: Option<Arc<FunctionReading>>,
    /// How full the kernel side's tables are, by name.
    pub tables: BTreeMap<String, Fill>,
    /// What was not seen.
    pub quality: Quality,
}

impl KernelReading {
    /// Sees to it that a holder which a number refers to has a name here, if it is known.
    fn mention(&mut self, targets: &Targets, holder: Holder) {
        if let Holder::Cgroup(id) = holder
            && !targets.live().contains_key(&id)
            && let Some(name) = targets.name_of(id)
        {
            self.names.insert(id, name.clone());
        }
    }
}

/// How full a table is that each CPU has for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Places taken on the CPU where most are.
    pub used: usize,
    /// Places on each CPU.
    pub places: usize,
}

/// CPU time that the kernel programs may take, as a percentage of the whole host's, if nothing else
/// is said.
pub const CPU_BUDGET_PERCENT: f64 = 1.0;

/// Which probes to run, for whom.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Whose waiting and work is counted.
    pub globs: Globs,
    /// Only these probes; all if empty.
    pub only: Vec<String>,
    /// Not these.
    pub without: Vec<String>,
    /// Does as if the kernel kept no books of its own that a probe could rely on: to try on any
    /// kernel what runs on such a one.
    pub force_fallback: bool,
    /// Makes the maps for so many possible CPUs, not fewer than there are: to see on any machine what
    /// they would take on a large one.
    pub force_cpus: Option<usize>,
    /// CPU time that the kernel programs may take, as a percentage of the whole host's;
    /// [`CPU_BUDGET_PERCENT`] if it is not given.
    pub cpu_budget_percent: Option<f64>,
    /// How much the kernel programs say of themselves; nothing if it is not given.
    pub log: Option<LogLevel>,
    /// What is the syscalls probe's own.
    pub syscalls: syscalls::Config,
    /// What is the memory probe's own.
    pub memory: memory::Config,
}

/// A probe that was to run and does not.
#[derive(Debug)]
pub struct Refusal {
    /// The probe.
    pub probe: &'static str,
    /// Why.
    pub why: ProbeError,
}

/// The running probes and the table of their targets.
#[derive(Debug)]
pub struct Probes {
    targets: Targets,
    running: Vec<Box<dyn Probe>>,
    refused: Vec<Refusal>,
    readings: u64,
    log: Option<log::KernelLog>,
    _pins: Pins,
    ledger: Ledger,
    governor: Governor,
    /// How many of its reductions hold for a probe.
    reduced: BTreeMap<&'static str, usize>,
    /// Online CPUs.
    cpus: usize,
    /// Probes that could not be reduced or brought back, and why.
    ungoverned: BTreeMap<&'static str, String>,
}

/// Why something is absent that costs more than it may.
const OVER_BUDGET: &str = "left out for now: the kernel programs were over their CPU budget";

/// Readings between two looks at the whole cgroup tree.
const SCAN_EVERY: u64 = 10;

impl Probes {
    /// Loads and attaches. A probe that the kernel refuses is left out and listed in
    /// [`Probes::refused`]; without the table of targets nothing can be counted.
    pub fn start(watched: &Watched, config: &Config) -> Result<Self, StartError> {
        let cpus = object::online_cpus()
            .map_err(StartError::Cpus)?
            .len()
            .max(1);
        let types = KernelTypes::of_running_kernel()?;
        let pins = Pins::new().map_err(StartError::Pins)?;
        let log = config.log.map(log::KernelLog::new);
        let machine =
            object::Machine::new(config.force_cpus, log.clone()).map_err(StartError::Cpus)?;
        let targets = Targets::start(&types, &pins, &machine, watched, config.globs.clone())?;
        let setup = Setup {
            types: &types,
            pins: &pins,
            machine: &machine,
            watched,
            config,
        };
        let mut running = Vec::new();
        let mut refused = Vec::new();
        for definition in REGISTRY {
            if !config.wants(definition.name) {
                continue;
            }
            match (definition.start)(&setup) {
                Ok(probe) => running.push(probe),
                Err(why) => refused.push(Refusal {
                    probe: definition.name,
                    why,
                }),
            }
        }
        drop(types);
        let budget = config.cpu_budget_percent.unwrap_or(CPU_BUDGET_PERCENT) / 100.0;
        let mut probes = Self {
            targets,
            running,
            refused,
            readings: 0,
            log,
            _pins: pins,
            ledger: Ledger::default(),
            governor: Governor::new(budget),
            reduced: BTreeMap::new(),
            cpus,
            ungoverned: BTreeMap::new(),
        };
        probes.ledger.enter(TARGETS, probes.targets.object());
        for probe in &mut probes.running {
            let name = probe.name();
            for object in probe.objects() {
                probes.ledger.enter(name, object);
            }
        }
        probes.open_window();
        Ok(probes)
    }

    /// Reads everything once.
    pub fn read(&mut self) -> KernelReading {
        self.readings += 1;
        if self.ledger.is_open() {
            let costs = self.costs();
            self.ledger.close(costs);
        }
        self.targets.update();
        if self.readings.is_multiple_of(SCAN_EVERY) {
            self.targets.scan();
        }
        let mut reading = KernelReading {
            partial: !self.targets.watch_all(),
            ..KernelReading::default()
        };
        for refusal in &self.refused {
            reading.quality.miss(refusal.probe, refusal.why.to_string());
        }
        for probe in &mut self.running {
            let reduced = probe
                .reductions()
                .get(..reduced_of(&self.reduced, probe.name()));
            match reduced.and_then(<[Reduction]>::last).copied() {
                Some(Reduction::Detached) => {
                    reading.quality.miss(probe.name(), OVER_BUDGET);
                    continue;
                }
                Some(Reduction::Sampled(n)) => {
                    let sampled = &mut reading.quality.sampled;
                    sampled.insert(probe.name().to_owned(), u64::from(n));
                }
                Some(Reduction::Untimed | Reduction::Coarse(_)) | None => {}
            }
            if let Err(why) = probe.read(&self.targets, &mut reading) {
                reading.quality.miss(probe.name(), why.to_string());
            }
        }
        self.targets.quality(&mut reading.quality);
        let names = self.targets.live().iter();
        reading.targets = names
            .map(|(id, target)| (*id, target.path.clone()))
            .collect();
        let running = &self.running;
        self.targets.settle(|slot| {
            for probe in running {
                probe.clear(slot);
            }
        });
        for (probe, why) in &self.ungoverned {
            reading.quality.miss(format!("{probe}.governor"), why);
        }
        reading
    }

    /// Has the kernel count what programs cost from now until the next reading.
    pub fn open_window(&mut self) {
        if !self.ledger.is_open() {
            let costs = self.costs();
            self.ledger.open(costs);
        }
    }

    /// What programs cost in the window that the last reading closed, if one was open.
    pub fn measured(&self) -> Option<&Measured> {
        self.ledger.measured()
    }

    /// Memory of a probe's maps in the kernel, in bytes.
    pub fn map_bytes(&self, probe: &str) -> u64 {
        self.ledger.map_bytes(probe)
    }

    /// Memory of all maps in the kernel.
    pub fn map_memory(&self) -> MapMemory {
        self.ledger.map_memory()
    }

    /// What a probe does without at present, to stay within the budget.
    pub fn reductions(&self, probe: &str) -> &'static [Reduction] {
        let running = self.running.iter().find(|p| p.name() == probe);
        let all = running.map_or(&[][..], |p| p.reductions());
        all.get(..reduced_of(&self.reduced, probe)).unwrap_or(all)
    }

    /// Keeps the programs within their budget, by what the last window showed at `now`, a time since
    /// some beginning. `needed` are probes that an open incident stands on.
    pub fn govern(&mut self, now: Duration, needed: &BTreeSet<&'static str>) -> Option<Step> {
        let measured = self.ledger.measured()?;
        let cpus = self.cpus as f64;
        let mut loads = vec![Load {
            probe: TARGETS,
            part: measured.part(TARGETS) / cpus,
            reductions: &[],
            reduced: 0,
        }];
        loads.extend(self.running.iter().map(|probe| Load {
            probe: probe.name(),
            part: measured.part(probe.name()) / cpus,
            reductions: probe.reductions(),
            reduced: reduced_of(&self.reduced, probe.name()),
        }));
        let step = self.governor.observe(now, &loads, needed)?;
        self.reduce(step.probe, step.to);
        Some(step)
    }

    /// Has a probe do with the first `to` of its reductions, and no others. What fails is told by the
    /// next readings.
    pub fn reduce(&mut self, probe: &'static str, to: usize) {
        let from = reduced_of(&self.reduced, probe);
        let Some(running) = self.running.iter_mut().find(|p| p.name() == probe) else {
            return;
        };
        match reduce(&mut **running, from, to) {
            Ok(()) => self.ungoverned.remove(probe),
            Err(why) => self.ungoverned.insert(probe, why.to_string()),
        };
        self.reduced.insert(probe, to);
    }

    /// What the kernel programs have said since the last call.
    pub fn take_log(&self) -> Vec<LogLine> {
        self.log.iter().flat_map(log::KernelLog::take).collect()
    }

    /// The watched cgroups.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Whether each slot of the table of targets is in exactly one place. For tests.
    pub fn audit_targets(&mut self) -> Result<(), String> {
        self.targets.audit()
    }

    /// Names of the probes that run.
    pub fn running(&self) -> impl Iterator<Item = &'static str> {
        self.running.iter().map(|p| p.name())
    }

    /// What was to run and does not.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// What each probe's programs have cost in all windows so far.
    pub fn costs(&mut self) -> Costs {
        let of = |probe: &mut Box<dyn Probe>| {
            let name = probe.name();
            let objects = probe.objects().into_iter();
            (name, objects.flat_map(|object| object.costs()).collect())
        };
        let mut costs: Costs = self.running.iter_mut().map(of).collect();
        costs.insert(TARGETS, self.targets.object().costs());
        costs
    }
}

/// Has the allocator give back what is free: reading the kernel's types or symbols takes tens of
/// megabytes for a moment.
pub(crate) fn give_memory_back() {
    // SAFETY: takes a number, and touches only what nobody uses.
    #[expect(unsafe_code, reason = "no safe wrapper for malloc_trim")]
    let _ = unsafe { libc::malloc_trim(0) };
}

/// The table of targets, which is no probe, and costs something too.
const TARGETS: &str = "targets";

fn reduced_of(reduced: &BTreeMap<&'static str, usize>, probe: &str) -> usize {
    reduced.get(probe).copied().unwrap_or_default()
}

/// Has `probe`, which did with the first `from` of its reductions, do with the first `to`.
fn reduce(probe: &mut dyn Probe, from: usize, to: usize) -> Result<(), ProbeError> {
    let all = probe.reductions();
    let is_detached = |n: usize| all.get(..n).and_then(<[_]>::last) == Some(&Reduction::Detached);
    if is_detached(to) {
        for object in probe.objects() {
            object.detach_all()?;
        }
        return Ok(());
    }
    if is_detached(from) {
        probe.forget()?;
        for object in probe.objects() {
            object.attach_all_again()?;
        }
    }
    probe.reduce(to)
}

impl Config {
    fn wants(&self, probe: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|p| p == probe))
            && !self.without.iter().any(|p| p == probe)
    }
}

/// Why nothing can be counted.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No BTF.
    #[error(transparent)]
    Types(#[from] KernelTypesError),
    /// The number of CPUs is not known.
    #[error("cannot tell the number of CPUs: {0}")]
    Cpus(std::io::Error),
    /// No place to share maps.
    #[error(
        "cannot make a BPF file system to share maps in: {0}; lens needs CAP_SYS_ADMIN (run it as root)"
    )]
    Pins(std::io::Error),
    /// No table of targets.
    #[error("cannot watch cgroups: {0}")]
    Targets(#[from] ObjectError),
}
