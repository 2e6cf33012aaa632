//! What is counted in the kernel, and read from there.
//!
//! A probe is one concern: its part in an object of lens-ebpf, its shared types in lens-common,
//! and its reader here. [`REGISTRY`] lists them; [`Probes`] owns those that run.

pub mod fault_stacks;
pub mod function;
pub mod futexes;
mod glob;
mod holder;
mod kernel_types;
mod keyed;
mod lengths;
pub mod lifecycle;
pub mod locks;
mod log;
mod mapped;
pub mod memory;
mod near;
mod object;
mod pins;
pub mod prologue;
pub mod reclaim;
pub mod sched;
mod slots;
mod syscall_names;
pub mod syscalls;
mod targets;

use std::{collections::BTreeMap, fmt::Debug, os::fd::OwnedFd, sync::Arc};

use serde::{Deserialize, Serialize};

use self::pins::Pins;
pub use self::{
    fault_stacks::FaultStack,
    function::{Ended, FunctionCalls, FunctionReading, TraceError, TraceRequest, trace},
    futexes::{CgroupFutexes, FutexCounters, FutexReading},
    glob::{GlobError, Globs},
    holder::Holder,
    kernel_types::{KernelTypes, KernelTypesError},
    lengths::Waits,
    lifecycle::{AbnormalExit, ForkerCounters, LifecycleCounters, LifecycleReading},
    locks::{LockCounters, LocksReading},
    log::{LogLevel, LogLine},
    memory::{MemoryCounters, MemoryReading, ResidentPages},
    object::{ObjectError, ProgramCost},
    reclaim::{HitLimit, OomKill, ReclaimCounters, ReclaimReading, Shortage},
    sched::{Held, SchedCounters, SchedReading},
    syscall_names::{name_of_call, name_of_errno},
    syscalls::{CallCounters, CallTimes, SyscallCounters, SyscallsReading},
    targets::{TargetState, Targets, Watched},
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
    /// What its programs have cost so far.
    fn costs(&self) -> Vec<ProgramCost>;
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
    /// Waits for memory, and kills for want of it.
    pub reclaim: Option<ReclaimReading>,
    /// Waits for locks of the kernel.
    pub locks: Option<LocksReading>,
    /// Futexes.
    pub futexes: Option<FutexReading>,
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
    /// The kernel counts what programs cost while this is open.
    statistics: Option<OwnedFd>,
    measured: bool,
}

/// Of so many intervals, what programs cost is counted in one. Counting costs 65 to 70 ns a run
/// (measured with empty programs on this kernel side), more than most of the programs themselves.
const MEASURE_EVERY: u64 = 12;

/// Has the kernel count what programs cost, for as long as the result lives; `None` if it refuses.
fn measure() -> Option<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).ok()
}

/// Readings between two looks at the whole cgroup tree.
const SCAN_EVERY: u64 = 10;

impl Probes {
    /// Loads and attaches. A probe that the kernel refuses is left out and listed in
    /// [`Probes::refused`]; without the table of targets nothing can be counted.
    pub fn start(watched: &Watched, config: &Config) -> Result<Self, StartError> {
        let types = KernelTypes::of_running_kernel()?;
        let pins = Pins::new().map_err(StartError::Pins)?;
        let log = config.log.map(log::KernelLog::new);
        let machine = object::Machine::new(log.clone()).map_err(StartError::Cpus)?;
        let statistics = measure();
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
        Ok(Self {
            targets,
            running,
            refused,
            readings: 0,
            log,
            _pins: pins,
            statistics,
            measured: false,
        })
    }

    /// Reads everything once.
    pub fn read(&mut self) -> KernelReading {
        self.readings += 1;
        self.measured = self.readings > 1 && self.statistics.is_some();
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
        self.statistics = if self.readings % MEASURE_EVERY == 1 {
            self.statistics.take().or_else(measure)
        } else {
            None
        };
        reading
    }

    /// Whether what programs cost was counted over the interval that the last reading ended.
    pub fn is_measured(&self) -> bool {
        self.measured
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

    /// What each probe's programs have cost in all measured intervals so far.
    pub fn costs(&self) -> Vec<(&'static str, Vec<ProgramCost>)> {
        let mut costs = vec![("targets", self.targets.object().costs())];
        costs.extend(self.running.iter().map(|p| (p.name(), p.costs())));
        costs
    }
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
