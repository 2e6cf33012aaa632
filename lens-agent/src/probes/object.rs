//! Loading an object: its constants, the sizes of its maps, its programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapError, MapInfo},
    programs::{
        Iter, Program, ProgramError, UProbe,
        tp_btf::BtfTracePointLinkId,
        uprobe::{UProbeAttachLocation, UProbeScope},
    },
};
use lens_common::{limits, loss};

use super::{
    event::{Event, Events},
    kernel_types::KernelTypes,
    log::KernelLog,
    map_memory::{self, Block, MapMemory},
    mapped::{Mapped, MappedError},
    pins::Pins,
};
use crate::base::quality::Quality;

/// By how much the programs' tables are smaller; see [`map_memory::shrink`].
const SHRINK: &str = "SHRINK";

/// The object of a name in lens-ebpf/src/bin, in both variants.
macro_rules! bytes {
    ($name:literal) => {
        crate::probes::object::Variants {
            plain: aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/", $name)),
            log: aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/", $name, ".log")),
        }
    };
}
pub(super) use bytes;

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Built without the toolchain for kernel programs.
    #[error(
        "this lens was built without kernel programs; `cargo xtask setup` installs what builds them"
    )]
    Empty,
    /// A field that cannot be done without.
    #[error("this kernel's `{structure}` has no `{field}`")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The member.
        field: &'static str,
    },
    /// The kernel refused the object.
    #[error("the kernel refused object `{object}`: {why}")]
    Load {
        /// The object.
        object: &'static str,
        /// What the kernel said.
        why: String,
    },
    /// The kernel refused one program.
    #[error("the kernel refused program `{program}`: {why}")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        why: String,
    },
    /// A map cannot be read.
    #[error(transparent)]
    Map(#[from] MappedError),
}

/// The sources of an error in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    without_trace(&text)
}

/// A verifier's log runs to thousands of lines; what it objects to stands in the last ones.
fn without_trace(text: &str) -> String {
    const KEPT: usize = 4;
    // Where the kernel says no before it verifies anything, there is no log.
    let text = text.trim_end().trim_end_matches(". Verifier output:");
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= 2 * KEPT {
        return text.to_owned();
    }
    let end = lines
        .iter()
        .rposition(|l| l.starts_with("verification time"))
        .unwrap_or(lines.len());
    let from = end.saturating_sub(KEPT).max(1);
    format!("{} … {}", lines[0], lines[from..end].join(" | "))
}

/// An object as it is built: without, and with what its programs say of themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variants {
    pub(super) plain: &'static [u8],
    pub(super) log: &'static [u8],
}

/// What holds for all objects.
#[derive(Debug)]
pub struct Machine {
    /// How many CPUs the maps are made for.
    cpus: usize,
    log: Option<KernelLog>,
}

impl Machine {
    /// This one, or as if so many CPUs were possible; where `log` is given, objects are loaded that
    /// say something.
    pub(super) fn new(cpus: Option<usize>, log: Option<KernelLog>) -> std::io::Result<Self> {
        let cpus = cpus.map_or_else(possible_cpus, Ok)?;
        Ok(Self { cpus, log })
    }
}

/// An object to be loaded.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    object: &'static str,
    bytes: Variants,
    types: &'a KernelTypes,
    machine: &'a Machine,
    constants: Vec<(&'static str, u32)>,
    sizes: Vec<(&'static str, u32)>,
    pins: Vec<(&'static str, PathBuf)>,
    /// What the maps are for that have a block a CPU, by name.
    blocks: BTreeMap<&'static str, Block>,
}

impl<'a> Plan<'a> {
    /// Begins with what every object has: its losses, by CPU.
    pub(super) fn new(
        object: &'static str,
        bytes: Variants,
        types: &'a KernelTypes,
        machine: &'a Machine,
    ) -> Self {
        let mut plan = Self {
            object,
            bytes,
            types,
            machine,
            constants: Vec::new(),
            sizes: Vec::new(),
            pins: Vec::new(),
            blocks: BTreeMap::new(),
        };
        plan.per_cpu("LOSS", loss::COUNTERS);
        plan
    }

    /// Sets a constant.
    pub(super) fn constant(&mut self, name: &'static str, value: u32) -> &mut Self {
        self.constants.push((name, value));
        self
    }

    /// Sets a constant to the offset of a member.
    pub(super) fn offset(
        &mut self,
        name: &'static str,
        structure: &'static str,
        field: &'static str,
    ) -> Result<&mut Self, ObjectError> {
        let offset = self
            .types
            .offset(structure, field)
            .ok_or(ObjectError::NoField { structure, field })?;
        Ok(self.constant(name, offset))
    }

    /// Gives the array `map` a block of `block` entries for each CPU.
    pub(super) fn per_cpu(&mut self, map: &'static str, block: u32) -> &mut Self {
        self.blocks_of(map, block, Block::Whole)
    }

    /// Gives the array `map` counters of each target for each CPU.
    pub(super) fn slots(&mut self, map: &'static str) -> &mut Self {
        self.blocks_of(map, limits::SLOTS, Block::Slots)
    }

    /// Gives the table `map` `places` (a power of two) for each CPU; fewer where there are very many
    /// CPUs.
    pub(super) fn places(&mut self, map: &'static str, places: u32) -> &mut Self {
        let shrink = map_memory::shrink(self.machine.cpus);
        if !self.constants.iter().any(|(name, _)| *name == SHRINK) {
            self.constant(SHRINK, shrink);
        }
        self.blocks_of(map, places >> shrink, Block::Places)
    }

    fn blocks_of(&mut self, map: &'static str, entries: u32, block: Block) -> &mut Self {
        let cpus = u32::try_from(self.machine.cpus).unwrap_or(u32::MAX);
        self.sizes.push((map, entries.saturating_mul(cpus)));
        self.blocks.insert(map, block);
        self
    }

    /// Leaves no room in `map`, which the object has and does not use.
    pub(super) fn without(&mut self, map: &'static str) -> &mut Self {
        self.sizes.push((map, 1));
        self
    }

    /// Shares `map` with other objects.
    pub(super) fn share(&mut self, map: &'static str, pins: &Pins) -> &mut Self {
        self.pins.push((map, pins.path(map)));
        self
    }

    /// Hands the object to the kernel; attaches nothing.
    pub(super) fn load(&self) -> Result<Object, ObjectError> {
        let log = self.machine.log.as_ref();
        let bytes = if log.is_some() {
            self.bytes.log
        } else {
            self.bytes.plain
        };
        if bytes.is_empty() {
            return Err(ObjectError::Empty);
        }
        let level = log.map(KernelLog::constant);
        let mut loader = EbpfLoader::new();
        // Task storage: the agent never reads that map itself.
        loader.allow_unsupported_maps();
        for (name, value) in &self.constants {
            loader.override_global(name, value, true);
        }
        if let Some((name, level)) = &level {
            loader.override_global(name, level, true);
        }
        for (name, entries) in &self.sizes {
            loader.map_max_entries(name, *entries);
        }
        for (name, path) in &self.pins {
            loader.map_pin_path(name, path.as_path());
        }
        let refused = |why| ObjectError::Load {
            object: self.object,
            why,
        };
        let mut ebpf = loader.load(bytes).map_err(|why| refused(chain(&why)))?;
        if let Some(log) = log {
            log.listen(self.object, &mut ebpf).map_err(refused)?;
        }
        Ok(Object {
            name: self.object,
            ebpf,
            cpus: self.machine.cpus,
            blocks: self.blocks.clone(),
            links: BTreeMap::new(),
            events: BTreeMap::new(),
            detached: BTreeSet::new(),
        })
    }
}

/// A loaded object; dropping it detaches its programs.
#[derive(Debug)]
pub struct Object {
    name: &'static str,
    ebpf: Ebpf,
    cpus: usize,
    /// What the maps are for that have a block a CPU, by name.
    blocks: BTreeMap<&'static str, Block>,
    /// Of the tracepoint programs that are attached.
    links: BTreeMap<&'static str, BtfTracePointLinkId>,
    /// Of the programs that run at perf events.
    events: BTreeMap<&'static str, Events>,
    /// Programs that were attached, and are not now.
    detached: BTreeSet<&'static str>,
}

/// A program at one place; dropping it takes the program away from there.
pub(super) struct Attached(
    #[expect(dead_code, reason = "it is there to be dropped")] Box<dyn Send>,
);

/// What one program costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program.
    pub program: String,
    /// How often it ran.
    pub runs: u64,
    /// How long it ran in all; 0 where the kernel's statistics are off.
    pub run_ns: u64,
    /// Instructions that the verifier looked at; `None` before 5.16.
    pub verified: Option<u32>,
}

impl Object {
    /// The object's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Attaches the `tp_btf` program `program` to the tracepoint of the same name.
    pub fn attach(
        &mut self,
        program: &'static str,
        types: &KernelTypes,
    ) -> Result<(), ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        match self.ebpf.program_mut(program) {
            Some(Program::BtfTracePoint(found)) => {
                found
                    .load(program, types.aya())
                    .map_err(|why| refused(chain(&why)))?;
                let link = found.attach().map_err(|why| refused(chain(&why)))?;
                self.links.insert(program, link);
                Ok(())
            }
            _ => Err(refused(
                "the object has no such tracepoint program".to_owned(),
            )),
        }
    }

    /// Detaches a program, which stays loaded; those that are not attached stay so.
    fn detach(&mut self, program: &'static str) -> Result<(), ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        if let Some(events) = self.events.get(program) {
            events
                .enable(false)
                .map_err(|why| refused(why.to_string()))?;
            self.detached.insert(program);
        }
        let Some(link) = self.links.remove(program) else {
            return Ok(());
        };
        if let Some(Program::BtfTracePoint(found)) = self.ebpf.program_mut(program) {
            found.detach(link).map_err(|why| refused(chain(&why)))?;
            self.detached.insert(program);
        }
        Ok(())
    }

    /// Attaches a program again that was detached.
    fn attach_again(&mut self, program: &'static str) -> Result<(), ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        if !self.detached.contains(program) {
            return Ok(());
        }
        if let Some(events) = self.events.get(program) {
            events
                .enable(true)
                .map_err(|why| refused(why.to_string()))?;
        } else if let Some(Program::BtfTracePoint(found)) = self.ebpf.program_mut(program) {
            let link = found.attach().map_err(|why| refused(chain(&why)))?;
            self.links.insert(program, link);
        }
        self.detached.remove(program);
        Ok(())
    }

    /// Has these programs attached or not, of those that once were.
    pub(super) fn keep_attached(
        &mut self,
        programs: &[&'static str],
        attached: bool,
    ) -> Result<(), ObjectError> {
        programs.iter().try_for_each(|program| {
            if attached {
                self.attach_again(program)
            } else {
                self.detach(program)
            }
        })
    }

    /// Detaches all programs but iterators.
    pub(super) fn detach_all(&mut self) -> Result<(), ObjectError> {
        let attached: Vec<_> = self
            .links
            .keys()
            .chain(self.events.keys())
            .copied()
            .collect();
        self.keep_attached(&attached, false)
    }

    /// Attaches all that were detached.
    pub(super) fn attach_all_again(&mut self) -> Result<(), ObjectError> {
        let detached: Vec<_> = self.detached.iter().copied().collect();
        self.keep_attached(&detached, true)
    }

    /// The maps of its loaded programs by id, with their memory in the kernel as the kernel reckons
    /// it. To be asked before the process is closed.
    pub(super) fn maps(&self) -> BTreeMap<u32, MapMemory> {
        let programs = self.ebpf.programs();
        let used = programs.filter_map(|(_, program)| program.info().ok()?.map_ids().ok()?);
        let memory = |id: u32| {
            let map = MapInfo::from_id(id).ok()?;
            let block = map.name_as_str().and_then(|name| self.blocks.get(name));
            let bytes = bytes_of(&map)?;
            // The rest is what any map takes, and is rounded up to pages.
            let entries = u64::from(map.value_size()) * u64::from(map.max_entries());
            let memory = MapMemory::of(block.copied(), bytes, entries, self.cpus);
            Some((id, memory))
        };
        used.flatten().filter_map(memory).collect()
    }

    /// Loads the iterator `program` over `what` (`task`, `task_file`) and pins it: each reading of the
    /// file walks anew.
    pub fn pin_iterator(
        &mut self,
        program: &'static str,
        what: &str,
        types: &KernelTypes,
        pins: &Pins,
    ) -> Result<PathBuf, ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        let Some(Program::Iter(found)) = self.ebpf.program_mut(program) else {
            return Err(refused("the object has no such iterator".to_owned()));
        };
        let iterator: &mut Iter = found;
        iterator
            .load(what, types.aya())
            .map_err(|why| refused(chain(&why)))?;
        let link = iterator.attach().map_err(|why| refused(chain(&why)))?;
        let link = iterator
            .take_link(link)
            .map_err(|why| refused(chain(&why)))?;
        let link =
            aya::programs::links::FdLink::try_from(link).map_err(|why| refused(chain(&why)))?;
        let path = pins.path(program);
        link.pin(&path).map_err(|why| refused(chain(&why)))?;
        Ok(path)
    }

    /// Runs the `perf_event` program `program` at every `event` on the CPUs that are online now.
    pub(super) fn attach_to_every(
        &mut self,
        program: &'static str,
        event: Event,
    ) -> Result<(), ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        let Some(Program::PerfEvent(found)) = self.ebpf.program_mut(program) else {
            return Err(refused("the object has no such event program".to_owned()));
        };
        found.load().map_err(|why| refused(chain(&why)))?;
        let cpus = online_cpus().map_err(|why| refused(why.to_string()))?;
        let fd = found.fd().map_err(|why| refused(chain(&why)))?;
        let events = Events::open(event, &cpus, fd.as_fd());
        let events = events.map_err(|why| refused(format!("perf_event_open: {why}")))?;
        self.events.insert(program, events);
        Ok(())
    }

    /// Has the clock of `program` beat each time so many nanoseconds have passed.
    pub(super) fn set_period(&self, program: &'static str, ns: u64) -> Result<(), ObjectError> {
        let done = self.events.get(program).map(|events| events.set_period(ns));
        done.unwrap_or(Ok(())).map_err(|why| ObjectError::Program {
            program,
            why: why.to_string(),
        })
    }

    /// A program for code, which the kernel has taken.
    pub(super) fn for_code(&mut self, program: &'static str) -> Result<&mut UProbe, ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        let Some(Program::UProbe(found)) = self.ebpf.program_mut(program) else {
            return Err(refused("the object has no such uprobe".to_owned()));
        };
        if found.fd().is_err() {
            found.load().map_err(|why| refused(chain(&why)))?;
        }
        Ok(found)
    }

    /// Puts `program` at `offset` of `file`, for whoever runs it or for one process, until the link is
    /// dropped.
    pub(super) fn attach_to_code(
        &mut self,
        program: &'static str,
        file: &Path,
        offset: u64,
        process: Option<NonZeroU32>,
    ) -> Result<Attached, ObjectError> {
        let refused = |why: String| ObjectError::Program { program, why };
        let found = self.for_code(program)?;
        let place = UProbeAttachLocation::AbsoluteOffset(offset);
        let scope = process.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        let link = found
            .attach(place, file, scope)
            .map_err(|why| refused(chain(&why)))?;
        let link = found.take_link(link).map_err(|why| refused(chain(&why)))?;
        Ok(Attached(Box::new(link)))
    }

    /// Has `program` run where the kernel's `function` begins or ends, until the link is dropped.
    pub(super) fn attach_to_kernel(
        &mut self,
        program: &'static str,
        function: &str,
        types: &KernelTypes,
    ) -> Result<Attached, ObjectError> {
        let refused = |why: ProgramError| ObjectError::Program {
            program,
            why: chain(&why),
        };
        let found = self.ebpf.program_mut(program);
        let link: Box<dyn Send> = match found {
            Some(Program::FEntry(found)) => {
                // It was loaded for another function, perhaps.
                let _ = found.unload();
                found.load(function, types.aya()).map_err(refused)?;
                let link = found.attach().map_err(refused)?;
                Box::new(found.take_link(link).map_err(refused)?)
            }
            Some(Program::FExit(found)) => {
                let _ = found.unload();
                found.load(function, types.aya()).map_err(refused)?;
                let link = found.attach().map_err(refused)?;
                Box::new(found.take_link(link).map_err(refused)?)
            }
            Some(Program::KProbe(found)) => {
                if found.fd().is_err() {
                    found.load().map_err(refused)?;
                }
                let link = found.attach(function, 0).map_err(refused)?;
                Box::new(found.take_link(link).map_err(refused)?)
            }
            _ => {
                return Err(ObjectError::Program {
                    program,
                    why: "the object has no such program".to_owned(),
                });
            }
        };
        Ok(Attached(link))
    }

    /// Maps an array of `entries` that all CPUs share.
    pub(super) fn mapped_once<T: lens_common::Plain>(
        &self,
        map: &'static str,
        entries: u32,
    ) -> Result<Mapped<T>, ObjectError> {
        Ok(Mapped::of(&self.ebpf, map, entries, 1)?)
    }

    /// Maps a table of `places` for each CPU, as [`Plan::places`] has made it.
    pub(super) fn mapped_places<T: lens_common::Plain>(
        &self,
        map: &'static str,
        places: u32,
    ) -> Result<Mapped<T>, ObjectError> {
        self.mapped(map, places >> map_memory::shrink(self.cpus))
    }

    /// Maps an array that has a block of `block` entries for each CPU.
    pub fn mapped<T: lens_common::Plain>(
        &self,
        map: &'static str,
        block: u32,
    ) -> Result<Mapped<T>, ObjectError> {
        Ok(Mapped::of(&self.ebpf, map, block, self.cpus)?)
    }

    /// Takes any other map, as what it is; it must outlive the loading of the programs that use it.
    pub(super) fn take_map<M: TryFrom<Map, Error = MapError>>(
        &mut self,
        map: &'static str,
    ) -> Result<M, ObjectError> {
        let taken = self.ebpf.take_map(map);
        let taken = taken.ok_or(ObjectError::Map(MappedError::Absent(map)))?;
        M::try_from(taken).map_err(|why| ObjectError::Load {
            object: self.name,
            why: format!("map {map}: {why}"),
        })
    }

    /// What the object's programs have cost so far.
    pub fn costs(&self) -> Vec<ProgramCost> {
        let mut costs = Vec::new();
        for (name, program) in self.ebpf.programs() {
            let Ok(info) = program.info() else { continue };
            costs.push(ProgramCost {
                program: name.to_owned(),
                runs: info.run_count(),
                run_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
                verified: info.verified_instruction_count(),
            });
        }
        costs
    }
}

/// What `memlock` of fdinfo says of a map: bytes.
fn bytes_of(map: &MapInfo) -> Option<u64> {
    let map = map.fd().ok()?;
    let fd = map.as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line?.trim().parse().ok()
}

/// The losses of one object, by CPU.
#[derive(Debug)]
pub(super) struct Losses {
    object: &'static str,
    counters: Mapped<loss::Counter>,
}

impl Losses {
    /// Maps the object's loss counters.
    pub(super) fn of(object: &Object) -> Result<Self, ObjectError> {
        let counters = object.mapped("LOSS", loss::COUNTERS)?;
        Ok(Self {
            object: object.name,
            counters,
        })
    }

    /// Losses of kind `what` so far, over all CPUs.
    pub(super) fn count(&self, what: u32) -> u64 {
        (0..self.counters.cpus())
            .filter_map(|cpu| self.counters.get(cpu, what as usize))
            .map(|n| n.0)
            .sum()
    }

    /// Tells of all losses so far, by `object.map`; of those that are not 0.
    pub(super) fn tell(&self, quality: &mut Quality) {
        for (what, name) in loss::NAMES {
            let n = self.count(*what);
            if n != 0 {
                quality.lost.insert(format!("{}.{name}", self.object), n);
            }
        }
    }
}

/// How many CPUs the kernel's per-CPU blocks are made for.
fn possible_cpus() -> std::io::Result<usize> {
    aya::util::nr_cpus().map_err(in_file)
}

/// The CPUs that run at present.
pub(super) fn online_cpus() -> std::io::Result<Vec<u32>> {
    aya::util::online_cpus().map_err(in_file)
}

fn in_file((file, why): (&str, std::io::Error)) -> std::io::Error {
    std::io::Error::new(why.kind(), format!("{file}: {why}"))
}

const _: () = assert!(limits::SLOTS > 1);

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSymbol as _};

    use super::*;

    #[test]
    fn a_plain_object_has_nothing_of_the_log() {
        let all: [(&str, Variants); 16] = [
            ("targets", bytes!("targets")),
            ("sched", bytes!("sched")),
            ("syscalls", bytes!("syscalls")),
            ("memory", bytes!("memory")),
            ("faultstacks", bytes!("faultstacks")),
            ("lifecycle", bytes!("lifecycle")),
            ("interrupts", bytes!("interrupts")),
            ("block", bytes!("block")),
            ("files", bytes!("files")),
            ("reclaim", bytes!("reclaim")),
            ("locks", bytes!("locks")),
            ("net", bytes!("net")),
            ("function", bytes!("function")),
            ("heap", bytes!("heap")),
            ("profile", bytes!("profile")),
            ("offcpu", bytes!("offcpu")),
        ];
        let of_log = |bytes: &[u8]| {
            let elf = object::File::parse(bytes).unwrap();
            let symbols = elf
                .symbols()
                .filter_map(|s| s.name().ok().map(str::to_owned));
            symbols
                .filter(|name| name.starts_with("AYA_LOG"))
                .collect::<Vec<_>>()
        };
        for (name, variants) in all {
            if variants.plain.is_empty() {
                // Built without kernel programs.
                continue;
            }
            assert!(of_log(variants.plain).is_empty(), "{name}");
            assert_eq!(of_log(variants.log).len(), 2, "{name}");
        }
    }
}
