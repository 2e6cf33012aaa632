//! Who stops to find memory, who takes it meanwhile, and who is killed for want of it: the reader
//! of the reclaim object.

mod oom;
mod takers;

use std::{collections::BTreeMap, fmt};

use aya::maps::{HashMap, MapData, RingBuf};
use lens_common::{
    hist::{BUCKETS, Hist},
    limits::{OOM_BYTES, STALL_TIMES},
    reclaim::{
        Background, COMPACTION, DIRECT, KINDS, KSWAPD, LIMIT, OomEvent, ReclaimSlot, StallTimes,
        UNDER_WAY_CGROUP, UNDER_WAY_KIND, UNDER_WAY_SINCE, UnderWay,
    },
};
use serde::{Deserialize, Serialize};

pub use self::oom::{HitLimit, OomKill, Shortage};
use self::takers::Takers;
use super::{
    Fill, Holder, KernelReading, KernelTypes, ObjectError, Probe, ProbeError, Setup,
    keyed::{Strangers, take},
    mapped::Mapped,
    memory::resident_pages,
    object::{Losses, Object, Plan, ProgramCost, bytes},
    slots::{Slots, add},
    targets::{Targets, cgroup_constants},
    under_way::now_ns,
};

/// Stalls of one kind. One under way counts as far as it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallCounters {
    /// How many have ended.
    pub ended: u64,
    /// Their length in all, those under way included.
    pub ns: u64,
    /// Pages that they brought; 0 for compaction.
    pub pages: u64,
    /// The longest that ended since the reading before, or is under way.
    pub max_ns: u64,
    /// Lengths of those that ended, by power of two; not of the targets beyond the limit.
    pub hist: Hist,
    /// How many are under way.
    pub under_way: u64,
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReclaimCounters {
    /// Reclaim because the host was short.
    pub direct: StallCounters,
    /// Reclaim because it, or a cgroup above it, was at its limit.
    pub limit: StallCounters,
    /// Compaction, to have a big page.
    pub compaction: StallCounters,
    /// Times that its tasks were put to sleep within reclaim.
    pub throttled: u64,
    /// For how long, a part of the stalls.
    pub throttled_ns: u64,
    /// Who took memory while it reclaimed because the host was short; the row sums to that time.
    /// `None` is those who took little.
    pub row: BTreeMap<Option<Holder>, u64>,
}

/// What kernel threads did for everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackgroundCounters {
    /// Times that kswapd began to reclaim.
    pub kswapd_wakes: u64,
    /// Time until it slept again, added up over memory nodes; one under way counts as far as it has
    /// come.
    pub kswapd_ns: u64,
    /// Zones that kcompactd compacted.
    pub compactions: u64,
    /// For how long.
    pub compaction_ns: u64,
}

/// What the reclaim object has counted, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReclaimReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, ReclaimCounters>,
    /// What kernel threads did.
    pub background: BackgroundCounters,
    /// Processes killed for want of memory since the reading before; what found no room is counted
    /// in Quality.
    pub killed: Vec<OomKill>,
}

impl ReclaimCounters {
    fn stalls(&mut self, kind: usize) -> Option<&mut StallCounters> {
        match kind {
            DIRECT => Some(&mut self.direct),
            LIMIT => Some(&mut self.limit),
            COMPACTION => Some(&mut self.compaction),
            _ => None,
        }
    }
}

impl From<ReclaimSlot> for ReclaimCounters {
    fn from(sum: ReclaimSlot) -> Self {
        let mut counters = Self {
            throttled: sum.throttled,
            throttled_ns: sum.throttled_ns,
            ..Self::default()
        };
        for kind in 0..KINDS {
            if let Some(stalls) = counters.stalls(kind) {
                stalls.ended = sum.stalls[kind].n;
                stalls.ns = sum.stalls[kind].ns;
                stalls.pages = sum.stalls[kind].pages;
            }
        }
        counters
    }
}

/// The probe.
struct Reclaim {
    object: Object,
    losses: Losses,
    slots: Slots<ReclaimSlot>,
    times: Mapped<StallTimes>,
    background: Mapped<Background>,
    under_way: HashMap<MapData, u32, UnderWay>,
    ooms: RingBuf<MapData>,
    strangers: Strangers,
    takers: Takers,
    /// Parts that this kernel lacks, and why.
    missing: Vec<(&'static str, String)>,
}

impl fmt::Debug for Reclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaim")
            .field("object", &self.object)
            .finish_non_exhaustive()
    }
}

/// Parts with their programs. The end of each stall comes first: a beginning that is noted and
/// whose end is not would stay.
const PARTS: &[(&str, &[&str])] = &[
    (
        "reclaim.direct",
        &[
            "mm_vmscan_direct_reclaim_end",
            "mm_vmscan_direct_reclaim_begin",
        ],
    ),
    (
        "reclaim.limit",
        &[
            "mm_vmscan_memcg_reclaim_end",
            "mm_vmscan_memcg_reclaim_begin",
        ],
    ),
    (
        "reclaim.compaction",
        &["mm_compaction_end", "mm_compaction_begin"],
    ),
    (
        "reclaim.kswapd",
        &["mm_vmscan_kswapd_sleep", "mm_vmscan_kswapd_wake"],
    ),
    ("reclaim.throttled", &["mm_vmscan_throttled"]),
];

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    Ok(Box::new(Reclaim::start(setup)?))
}

impl Reclaim {
    fn start(setup: &Setup<'_>) -> Result<Self, ObjectError> {
        let types = setup.types;
        let tells_victim = types.tracepoint_args("mark_victim") >= Some(2);
        let mut plan = Plan::new("reclaim", bytes!("reclaim"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        for (name, field) in [
            ("TASK_PID", "pid"),
            ("TASK_TGID", "tgid"),
            ("TASK_COMM", "comm"),
            ("TASK_FLAGS", "flags"),
            ("TASK_LEADER", "group_leader"),
            ("TASK_MM", "mm"),
        ] {
            plan.offset(name, "task_struct", field)?;
        }
        plan.constant("HAS_VICTIM_TASK", u32::from(tells_victim));
        if !resident_pages(&mut plan, types) {
            return Err(ObjectError::NoField {
                structure: "mm_struct",
                field: "rss_stat",
            });
        }
        let tells_limit = limit_constants(&mut plan, types);
        plan.per_cpu("TIME", STALL_TIMES).per_cpu("BACKGROUND", 1);
        Slots::<ReclaimSlot>::plan(&mut plan);
        let mut object = plan.load()?;
        let wrong = |why: aya::maps::MapError| ObjectError::Load {
            object: "reclaim",
            why: why.to_string(),
        };
        let ooms = RingBuf::try_from(object.take_map("OOMS")?).map_err(wrong)?;
        let under_way = HashMap::try_from(object.take_map("UNDER_WAY")?).map_err(wrong)?;
        let mut missing = attach(&mut object, types, tells_victim);
        if !tells_limit {
            let why = "this kernel does not tell how full a cgroup is";
            missing.push(("reclaim.oom_limit", why.to_owned()));
        }
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: Slots::of(&object)?,
            times: object.mapped("TIME", STALL_TIMES)?,
            background: object.mapped("BACKGROUND", 1)?,
            object,
            under_way,
            ooms,
            strangers: Strangers::default(),
            takers: Takers::default(),
            missing,
        })
    }

    /// How full the table was.
    fn add_times(&mut self, targets: &Targets, into: &mut BTreeMap<u64, ReclaimCounters>) -> Fill {
        self.strangers.next_reading();
        let table = &self.times;
        self.strangers.sweep(table, targets, |cpu, i, at| {
            let counters = into.get_mut(&at.cgroup);
            let kind = usize::try_from(at.key).unwrap_or(KINDS);
            let Some(stalls) = counters.and_then(|c| c.stalls(kind)) else {
                return;
            };
            if let Some(place) = table.at(cpu, i) {
                const MAX: usize = std::mem::offset_of!(StallTimes, max_ns);
                let longest = take(place.cast::<u64>().wrapping_add(MAX / 8));
                stalls.max_ns = stalls.max_ns.max(longest);
            }
            for bucket in 0..BUCKETS {
                stalls.hist[bucket] += at.hist[bucket];
            }
        })
    }

    /// What kernel threads have done, those at it not included.
    fn background(&self) -> BackgroundCounters {
        let mut sum = Background::default();
        for cpu in 0..self.background.cpus() {
            if let Some(at) = self.background.get(cpu, 0) {
                add(&mut sum, &at);
            }
        }
        BackgroundCounters {
            kswapd_wakes: sum.kswapd_wakes,
            kswapd_ns: sum.kswapd_ns,
            compactions: sum.compactions,
            compaction_ns: sum.compaction_ns,
        }
    }

    /// Adds the stalls that have not ended.
    fn add_under_way(&self, into: &mut ReclaimReading) -> Result<(), ProbeError> {
        let now = now_ns();
        for stall in &self.under_way {
            let (_, stall) = stall.map_err(|why| ProbeError::Read {
                probe: "reclaim",
                why: format!("stalls under way: {why}"),
            })?;
            let ns = now.saturating_sub(stall[UNDER_WAY_SINCE]);
            let kind = usize::try_from(stall[UNDER_WAY_KIND]).unwrap_or(usize::MAX);
            let id = stall[UNDER_WAY_CGROUP];
            if id == 0 {
                if kind == KSWAPD {
                    into.background.kswapd_ns += ns;
                } else {
                    into.background.compaction_ns += ns;
                }
                continue;
            }
            let own = into.cgroups.contains_key(&id);
            let counters = into.cgroups.entry(if own { id } else { 0 }).or_default();
            if let Some(stalls) = counters.stalls(kind) {
                stalls.ns += ns;
                stalls.max_ns = stalls.max_ns.max(ns);
                stalls.under_way += 1;
            }
        }
        Ok(())
    }

    /// What the ring holds, and at most what it can hold at once.
    fn killed(&mut self) -> Vec<OomKill> {
        let at_most = OOM_BYTES as usize / size_of::<OomEvent>();
        let mut found = Vec::new();
        while found.len() < at_most
            && let Some(record) = self.ooms.next()
        {
            found.extend(oom::parse(&record));
        }
        found
    }
}

/// Attaches what this kernel has of [`PARTS`] and of kills; what it lacks, and why.
fn attach(
    object: &mut Object,
    types: &KernelTypes,
    tells_victim: bool,
) -> Vec<(&'static str, String)> {
    let kills: &[&str] = if tells_victim {
        &["mark_victim"]
    } else {
        &["signal_generate", "mark_victim"]
    };
    let parts = PARTS.iter().copied().chain([("reclaim.oom", kills)]);
    let refused = parts.filter_map(|(part, programs)| {
        let attached: Result<(), ObjectError> = programs
            .iter()
            .try_for_each(|program| object.attach(program, types));
        Some((part, attached.err()?.to_string()))
    });
    refused.collect()
}

/// Says where a memory cgroup and its limit are found, if they can be.
fn limit_constants(plan: &mut Plan<'_>, types: &KernelTypes) -> bool {
    let subsys = types.offset("css_set", "subsys");
    let index = types.enum_value("cgroup_subsys_id", "memory_cgrp_id");
    let memory = subsys.zip(index).map(|(subsys, i)| subsys + 8 * i);
    let ancestors = types.offset("cgroup", "ancestors");
    // The address of one is taken for that of the other.
    let same = types.offset("mem_cgroup", "css") == Some(0);
    let known = [
        ("CSS_SET_MEMORY", memory),
        ("CSS_PARENT", types.offset("cgroup_subsys_state", "parent")),
        ("CGROUP_LEVEL", types.offset("cgroup", "level")),
        ("CGROUP_ROOT", types.offset("cgroup", "root")),
        ("ROOT_ID", types.offset("cgroup_root", "hierarchy_id")),
        ("KN_NAME", types.offset("kernfs_node", "name")),
        ("MEMORY_USAGE", types.offset("mem_cgroup", "memory.usage")),
        ("MEMORY_MAX", types.offset("mem_cgroup", "memory.max")),
        ("MEMSW_USAGE", types.offset("mem_cgroup", "memsw.usage")),
        ("MEMSW_MAX", types.offset("mem_cgroup", "memsw.max")),
    ];
    let has_all = same && known.iter().all(|(_, at)| at.is_some());
    for (name, at) in known {
        plan.constant(name, at.unwrap_or_default());
    }
    plan.constant("CGROUP_ANCESTORS", ancestors.unwrap_or_default());
    plan.constant("HAS_ANCESTORS", u32::from(ancestors.is_some()));
    plan.constant("HAS_LIMITS", u32::from(has_all));
    has_all
}

impl Probe for Reclaim {
    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let mut reading = ReclaimReading::default();
        for (id, sum) in self.slots.by_target(targets) {
            let counters = ReclaimCounters::from(sum);
            if id != 0 || counters != ReclaimCounters::default() {
                reading.cgroups.insert(id, counters);
            }
        }
        let times = self.add_times(targets, &mut reading.cgroups);
        into.tables.insert("reclaim.times".to_owned(), times);
        reading.background = self.background();
        self.add_under_way(&mut reading)?;
        reading.killed = self.killed();
        self.takers.share(into, &mut reading);
        let quality = &mut into.quality;
        for (part, why) in &self.missing {
            quality.miss(*part, why);
        }
        self.losses.tell(quality);
        for counters in reading.cgroups.values() {
            for holder in counters.row.keys().flatten() {
                into.mention(targets, *holder);
            }
        }
        for killed in &reading.killed {
            into.mention(targets, Holder::Cgroup(killed.by_cgroup));
        }
        into.reclaim = Some(reading);
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn costs(&self) -> Vec<ProgramCost> {
        self.object.costs()
    }
}
