//! A profile for a bounded time, with names: of CPU time, or of sleeps.
//!
//! What was seen is taken out every now and then, and whose address space it was is looked at then:
//! a process that ends a moment later still has names.

use std::{collections::BTreeMap, io, os::fd::BorrowedFd, sync::Arc, time::Duration};

use lens_common::profile::SleepSlot;
use serde::{Deserialize, Serialize};

use super::{PERIOD_NS, Sampler, offcpu::OffCpu};
use crate::{
    base::quality::Quality,
    probes::{
        self, GlobError, Globs, KernelTypes, KernelTypesError, ObjectError, ProbeError, Setup,
        Watched,
        object::Machine,
        pins::Pins,
        stacks::StackSample,
        symbols::{Frame, NamedStack, Symbols},
        targets::Targets,
        waiting::{now, sleep},
    },
};

/// The longest profile.
const LONGEST: Duration = Duration::from_mins(10);
/// How often what was seen is taken out: a process that lives for longer is met.
const STEP: Duration = Duration::from_millis(50);
/// Every so many of these stacks that are of no use are dropped, and processes looked at again.
const SWEEP: u32 = 10;
/// Places that are kept; others are counted as lost.
const PLACES: usize = 1 << 16;

/// Of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileKind {
    /// CPU time.
    Cpu,
    /// Time asleep, until the thread runs again.
    OffCpu,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileRequest {
    /// Of what.
    pub kind: ProfileKind,
    /// For how long.
    pub span: Duration,
    /// Whose, as patterns of cgroup paths; everybody's if empty.
    pub cgroups: Vec<String>,
}

/// Time of one process at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSample {
    /// The cgroup; its id in the kernel where the name is not known.
    pub cgroup: Arc<str>,
    /// The process.
    pub tgid: u32,
    /// Its name.
    pub comm: Arc<str>,
    /// Samples, or sleeps.
    pub times: u64,
    /// Nanoseconds that they stand for.
    pub ns: u64,
    /// Where.
    pub stack: NamedStack,
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profiled {
    /// Of what.
    pub kind: ProfileKind,
    /// How long it took.
    pub elapsed: Duration,
    /// The most time first.
    pub samples: Vec<NamedSample>,
    /// Of sleeps how many ended and how long they were in nanoseconds, by cgroup: all of them, also
    /// those of which no stack was taken.
    pub sleeps: BTreeMap<Arc<str>, (u64, u64)>,
    /// What was not seen.
    pub quality: Quality,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A pattern cannot be understood.
    #[error(transparent)]
    Glob(#[from] GlobError),
    /// Nobody would be seen.
    #[error("no cgroup matches `{0}`")]
    NoCgroup(String),
    /// The time is out of range.
    #[error("a profile of {0:?} is out of range: up to {LONGEST:?}")]
    Span(Duration),
    /// No BTF.
    #[error(transparent)]
    Types(#[from] KernelTypesError),
    /// The kernel refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It ran and cannot be read.
    #[error(transparent)]
    Read(#[from] ProbeError),
    /// The system refused something else.
    #[error("{what}: {why}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The answer.
        why: io::Error,
    },
}

impl ProfileError {
    /// Whether the request is at fault, not the system.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Glob(_) | Self::Span(_))
    }
}

/// Takes one, until the time is over or `stop` becomes readable or closed. Calls `attached` when it
/// has begun.
pub fn profile(
    request: &ProfileRequest,
    watched: &Watched,
    stop: BorrowedFd<'_>,
    attached: impl FnOnce(),
) -> Result<Profiled, ProfileError> {
    if request.span.is_zero() || request.span > LONGEST {
        return Err(ProfileError::Span(request.span));
    }
    let system = |what| move |why| ProfileError::System { what, why };
    let types = KernelTypes::of_running_kernel()?;
    let pins = Pins::new().map_err(system("cannot make a BPF file system to share maps in"))?;
    let machine = Machine::new(None, None).map_err(system("cannot tell the number of CPUs"))?;
    let globs = Globs::new(&request.cgroups)?;
    let targets = Targets::start(&types, &pins, &machine, watched, globs)?;
    if let Some(glob) = targets.unmatched().first() {
        return Err(ProfileError::NoCgroup(glob.clone()));
    }
    let setup = Setup {
        types: &types,
        pins: &pins,
        machine: &machine,
        watched,
        config: &probes::Config::default(),
    };
    let source = match request.kind {
        ProfileKind::Cpu => Source::Cpu(Sampler::start(&setup)?),
        ProfileKind::OffCpu => Source::OffCpu(OffCpu::start(&setup)?),
    };
    drop(types);
    probes::give_memory_back();
    let began = now();
    if let Source::OffCpu(off_cpu) = &source {
        off_cpu.begin(began);
    }
    let mut taking = Taking {
        targets,
        source,
        symbols: Symbols::with_lines(),
        places: BTreeMap::new(),
        beyond: 0,
    };
    attached();
    let end = began + request.span;
    for step in 1_u32.. {
        if now() >= end || sleep(stop, &[], end.min(now() + STEP)).map_err(system("cannot wait"))? {
            break;
        }
        let sweep = step.is_multiple_of(SWEEP);
        let taken = taking.source.take(sweep)?;
        taking.add(taken, sweep);
    }
    let last = taking.source.end()?;
    let elapsed = now().saturating_sub(began);
    taking.add(last, true);
    Ok(taking.finish(request.kind, elapsed))
}

/// Where it comes from.
enum Source {
    Cpu(Sampler),
    OffCpu(OffCpu),
}

impl Source {
    fn take(&mut self, sweep: bool) -> Result<Vec<StackSample>, ProbeError> {
        let stacks = match self {
            Self::Cpu(sampler) => &mut sampler.stacks,
            Self::OffCpu(off_cpu) => &mut off_cpu.stacks,
        };
        if sweep {
            stacks.take()
        } else {
            stacks.take_seen()
        }
    }

    fn end(&mut self) -> Result<Vec<StackSample>, ProbeError> {
        match self {
            Self::Cpu(sampler) => {
                sampler.object.detach_all()?;
                sampler.stacks.take()
            }
            Self::OffCpu(off_cpu) => off_cpu.end(),
        }
    }

    fn clear(&self, slot: u32) {
        match self {
            Self::Cpu(sampler) => sampler.slots.clear(slot),
            Self::OffCpu(off_cpu) => off_cpu.slots.clear(slot),
        }
    }

    fn losses(&self, quality: &mut Quality) {
        match self {
            Self::Cpu(sampler) => sampler.losses.tell(quality),
            Self::OffCpu(off_cpu) => off_cpu.losses.tell(quality),
        }
    }

    fn sleeps(&self, targets: &Targets) -> BTreeMap<u64, SleepSlot> {
        match self {
            Self::Cpu(_) => BTreeMap::new(),
            Self::OffCpu(off_cpu) => off_cpu.slots.by_target(targets).collect(),
        }
    }
}

/// What is known of a place beside how often it was seen.
type Key = (u64, u32, u64, Vec<u64>, Vec<u64>);

struct Taking {
    targets: Targets,
    source: Source,
    symbols: Symbols,
    places: BTreeMap<Key, StackSample>,
    /// Samples of places beyond the limit.
    beyond: u64,
}

impl Taking {
    fn add(&mut self, taken: Vec<StackSample>, sweep: bool) {
        self.targets.update();
        self.symbols.meet(&taken, sweep);
        for sample in taken {
            let key = (
                sample.cgroup,
                sample.tgid,
                sample.space,
                sample.user.clone(),
                sample.kernel.clone(),
            );
            if let Some(known) = self.places.get_mut(&key) {
                known.samples += sample.samples;
                known.ns += sample.ns;
            } else if self.places.len() < PLACES {
                self.places.insert(key, sample);
            } else {
                self.beyond += sample.samples;
            }
        }
        // Slots change hands no sooner than two sweeps later.
        if sweep {
            let source = &self.source;
            self.targets.settle(|slot| source.clear(slot));
        }
    }

    fn finish(mut self, kind: ProfileKind, elapsed: Duration) -> Profiled {
        let places: Vec<StackSample> = self.places.into_values().collect();
        let stacks = self.symbols.name(&places);
        let targets = &self.targets;
        let name = |id: u64| match targets.name_of(id) {
            Some(name) => name.clone(),
            None => id.to_string().into(),
        };
        // Different addresses may have one name.
        let mut named: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for (place, mut stack) in places.into_iter().zip(stacks) {
            if kind == ProfileKind::OffCpu {
                without_switch(&mut stack);
            }
            let key = (name(place.cgroup), place.tgid, place.comm, stack);
            let (times, ns) = named.entry(key).or_default();
            *times += place.samples;
            *ns += match kind {
                ProfileKind::Cpu => place.samples * PERIOD_NS,
                ProfileKind::OffCpu => place.ns,
            };
        }
        let mut samples: Vec<NamedSample> = named
            .into_iter()
            .map(|((cgroup, tgid, comm, stack), (times, ns))| NamedSample {
                cgroup,
                tgid,
                comm: comm.into(),
                times,
                ns,
                stack,
            })
            .collect();
        samples.sort_by_key(|sample| std::cmp::Reverse(sample.ns));
        let mut quality = Quality::default();
        self.source.losses(&mut quality);
        self.targets.quality(&mut quality);
        if self.beyond != 0 {
            quality
                .lost
                .insert("profile.places".to_owned(), self.beyond);
        }
        let mut sleeps: BTreeMap<Arc<str>, (u64, u64)> = BTreeMap::new();
        for (id, slot) in self.source.sleeps(targets) {
            if slot.sleeps != 0 {
                let cgroup = if id == 0 { "other".into() } else { name(id) };
                sleeps.insert(cgroup, (slot.sleeps, slot.ns));
            }
        }
        Profiled {
            kind,
            elapsed,
            samples,
            sleeps,
            quality,
        }
    }
}

/// Leaves out what runs between a sleep's beginning and the program that sees it.
fn without_switch(stack: &mut NamedStack) {
    let is_switch = |frame: &Frame| frame.kernel && &*frame.name == "__schedule";
    if let Some(at) = stack.frames.iter().rposition(is_switch) {
        stack.frames.truncate(at + 1);
    }
}
