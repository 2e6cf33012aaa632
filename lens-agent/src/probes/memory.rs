//! Page faults, page allocations and resident pages by cgroup: the reader of the memory object,
//! and of the one that takes stacks of page faults when it is asked to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use aya::maps::{HashMap, MapData};
use lens_common::memory::{ANON, FILE, KINDS, MemorySlot, SHMEM, SWAP};
use serde::{Deserialize, Serialize};

use super::{
    KernelReading, KernelTypes, Probe, ProbeError, Reduction, Setup,
    event::Event,
    fault_stacks::FaultStacks,
    keyed::empty,
    near::Near,
    object::{Losses, Object, Plan, bytes},
    sample::Sample,
    slots::Slots,
    stacks::StackSample,
    targets::{Targets, cgroup_constants},
};

/// What can be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of one page fault in so many the user stack is kept; 0 is none, and costs nothing.
    pub fault_stack_one_in: u32,
}

/// Resident pages of all address spaces together: shared ones count in each. Of each address space
/// every CPU's last few (32, or twice the number of CPUs) may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidentPages {
    /// Of files.
    pub file: i64,
    /// Anonymous.
    pub anon: i64,
    /// Anonymous and swapped out.
    pub swap: i64,
    /// Of shared memory and tmpfs.
    pub shmem: i64,
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCounters {
    /// Page faults of user code; those that ended with a signal too.
    pub user_faults: u64,
    /// Page faults of the kernel on behalf of user code.
    pub kernel_faults: u64,
    /// Those that had to wait for a disk; minor faults are all others.
    pub major_faults: Option<u64>,
    /// Allocations by the kernel's page allocator while its tasks ran.
    pub allocs: u64,
    /// Pages of these.
    pub alloc_pages: u64,
    /// Allocations that failed.
    pub failed_allocs: u64,
    /// Resident pages; not of the targets beyond the limit.
    pub resident: Option<ResidentPages>,
}

impl MemoryCounters {
    /// Page faults that did not wait for a disk.
    pub fn minor_faults(&self) -> Option<u64> {
        let all = self.user_faults + self.kernel_faults;
        Some(all.saturating_sub(self.major_faults?))
    }
}

/// What the memory object has counted, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, MemoryCounters>,
    /// Stacks of page faults since the last reading, if they are asked for; the most frequent first.
    pub fault_stacks: Vec<StackSample>,
}

/// The probe.
#[derive(Debug)]
struct Memory {
    object: Object,
    losses: Losses,
    slots: Slots<MemorySlot>,
    near: Near,
    sample: Sample,
    counts_major: Result<(), String>,
    /// The iterator that takes up address spaces of new targets.
    spaces: Result<PathBuf, String>,
    /// The address spaces whose pages are counted.
    known: HashMap<MapData, u64, [u64; 1 + KINDS]>,
    /// Targets whose address spaces it has taken up.
    entered: BTreeSet<u64>,
    stacks: Option<FaultStacks>,
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    let types = setup.types;
    let mut plan = Plan::new("memory", bytes!("memory"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    plan.offset("TASK_PID", "task_struct", "pid")?;
    plan.offset("TASK_MM", "task_struct", "mm")?;
    let known = resident_constants(&mut plan, types);
    Slots::<MemorySlot>::plan(&mut plan);
    Near::plan(&mut plan);
    Sample::plan(&mut plan);
    let mut object = plan.load()?;
    object.attach("page_fault_user", types)?;
    object.attach("page_fault_kernel", types)?;
    object.attach("mm_page_alloc", types)?;
    let spaces = if known {
        object.attach("rss_stat", types)?;
        object
            .pin_iterator("spaces", "task", types, setup.pins)
            .map_err(|why| why.to_string())
    } else {
        Err("this kernel does not tell whose an address space is, or how big".to_owned())
    };
    let known_spaces = object.take_map("SPACE")?;
    let counts_major = object
        .attach_to_every("major_fault", Event::MajorFault)
        .map_err(|why| why.to_string());
    let one_in = setup.config.memory.fault_stack_one_in;
    let stacks = (one_in != 0).then(|| FaultStacks::start(setup, one_in));
    Ok(Box::new(Memory {
        losses: Losses::of(&object)?,
        slots: Slots::of(&object)?,
        near: Near::of(&object)?,
        sample: Sample::of(&object)?,
        object,
        counts_major,
        spaces,
        known: known_spaces,
        entered: BTreeSet::new(),
        stacks: stacks.transpose()?,
    }))
}

/// Says where the counts of resident pages and whose they are is found, if it can be: `owner` needs
/// `CONFIG_MEMCG`.
fn resident_constants(plan: &mut Plan<'_>, types: &KernelTypes) -> bool {
    let owner = types.offset("mm_struct", "owner");
    let users = types.offset("mm_struct", "mm_users");
    let counts = resident_pages(plan, types);
    plan.constant("MM_OWNER", owner.unwrap_or_default());
    plan.constant("MM_USERS", users.unwrap_or_default());
    let known = owner.is_some() && users.is_some() && counts;
    known && types.tracepoint_args("rss_stat").is_some_and(|n| n >= 2)
}

/// Says where an address space's counts of resident pages are found, if they can be.
pub(super) fn resident_pages(plan: &mut Plan<'_>, types: &KernelTypes) -> bool {
    // Until 6.1 one structure with an array of numbers, since 6.2 an array of structures.
    let numbers = types
        .offset("mm_struct", "rss_stat.count")
        .map(|at| (at, 8));
    let structures = || {
        let at = types.offset("mm_struct", "rss_stat")?;
        let count = types.offset("percpu_counter", "count")?;
        Some((at + count, types.size("percpu_counter")?))
    };
    plan.constant("MM_RSS_OPAQUE", u32::from(numbers.is_some()));
    let counts = numbers.or_else(structures);
    let (first, step) = counts.unwrap_or_default();
    for (kind, name) in (0..).zip(["MM_RSS_0", "MM_RSS_1", "MM_RSS_2", "MM_RSS_3"]) {
        plan.constant(name, first + kind * step);
    }
    counts.is_some()
}

impl Memory {
    /// Counts the pages of processes that were in a cgroup before it became a target.
    fn take_up_spaces(&mut self, targets: &Targets) -> Result<(), ProbeError> {
        let live: BTreeSet<u64> = targets.live().keys().copied().collect();
        if let Ok(path) = &self.spaces
            && !live.is_subset(&self.entered)
        {
            fs::read(path).map_err(|why| ProbeError::Read {
                probe: "memory",
                why: format!("address spaces: {why}"),
            })?;
        }
        self.entered = live;
        Ok(())
    }

    fn counters(&self, id: u64, sum: &MemorySlot) -> MemoryCounters {
        MemoryCounters {
            user_faults: sum.user_faults,
            kernel_faults: sum.kernel_faults,
            major_faults: self.counts_major.is_ok().then_some(sum.major_faults),
            allocs: sum.allocs,
            alloc_pages: sum.alloc_pages,
            failed_allocs: sum.failed_allocs,
            resident: (self.spaces.is_ok() && id != 0).then_some(ResidentPages {
                file: sum.rss[FILE],
                anon: sum.rss[ANON],
                swap: sum.rss[SWAP],
                shmem: sum.rss[SHMEM],
            }),
        }
    }
}

impl Probe for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        self.near.forget();
        self.take_up_spaces(targets)?;
        let mut reading = MemoryReading::default();
        for (id, sum) in self.slots.by_target(targets) {
            if id != 0 || sum.user_faults + sum.allocs != 0 {
                reading.cgroups.insert(id, self.counters(id, &sum));
            }
        }
        let quality = &mut into.quality;
        if let Err(why) = &self.counts_major {
            quality.miss("memory.major_faults", why);
        }
        if let Err(why) = &self.spaces {
            quality.miss("memory.resident", why);
        }
        self.losses.tell(quality);
        if let Some(stacks) = &mut self.stacks {
            reading.fault_stacks = stacks.read(targets, quality)?;
        }
        into.memory = Some(reading);
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        let stacks = self.stacks.as_mut().map(FaultStacks::object);
        std::iter::once(&mut self.object).chain(stacks).collect()
    }

    fn reductions(&self) -> &'static [Reduction] {
        &[Reduction::Sampled(16), Reduction::Detached]
    }

    fn reduce(&mut self, to: usize) -> Result<(), ProbeError> {
        self.sample.set(self.reductions(), to);
        Ok(())
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        // Address spaces that ended meanwhile would stay for ever.
        empty(&mut self.known);
        self.slots.each(|slot| slot.rss = [0; KINDS]);
        self.entered.clear();
        Ok(())
    }
}
