//! Who stops to find memory, who takes it meanwhile, and who is killed for want of it: the reader
//! of the reclaim object.

mod oom;
mod takers;

use std::{collections::BTreeMap, fmt};

use aya::maps::{MapData, RingBuf};
use lens_common::{
    limits::OOM_BYTES,
    reclaim::{Background, COMPACTION, DIRECT, KSWAPD, LIMIT, OomEvent, ReclaimSlot},
};
use serde::{Deserialize, Serialize};

pub use self::oom::{HitLimit, OomKill, Shortage};
use self::takers::Takers;
use super::{
    Holder, KernelReading, KernelTypes, ObjectError, Probe, ProbeError, Setup,
    lengths::{Lengths, Waits},
    mapped::Mapped,
    memory::resident_pages,
    object::{Losses, Object, Plan, bytes},
    records::drain,
    slots::{Slots, add, counted_as},
    targets::{Targets, cgroup_constants},
};

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReclaimCounters {
    /// Reclaim because the host was short.
    pub direct: Waits,
    /// Reclaim because it, or a cgroup above it, was at its limit.
    pub limit: Waits,
    /// Compaction, to have a big page.
    pub compaction: Waits,
    /// Pages that reclaim brought.
    pub pages: u64,
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
    fn waits(&mut self, kind: u64) -> Option<&mut Waits> {
        match usize::try_from(kind).ok()? {
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
        for (kind, stalls) in (0..).zip(sum.stalls) {
            counters.pages += stalls.pages;
            if let Some(waits) = counters.waits(kind) {
                waits.ended = stalls.n;
                waits.ns = stalls.ns;
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
    lengths: Lengths,
    background: Mapped<Background>,
    ooms: RingBuf<MapData>,
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
        plan.per_cpu("BACKGROUND", 1);
        Lengths::plan(&mut plan);
        Slots::<ReclaimSlot>::plan(&mut plan);
        let mut object = plan.load()?;
        let ooms = object.take_map("OOMS")?;
        let mut missing = attach(&mut object, types, tells_victim);
        if !tells_limit {
            let why = "this kernel does not tell how full a cgroup is";
            missing.push(("reclaim.oom_limit", why.to_owned()));
        }
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: Slots::of(&object)?,
            lengths: Lengths::of("reclaim", &mut object)?,
            background: object.mapped("BACKGROUND", 1)?,
            object,
            ooms,
            takers: Takers::default(),
            missing,
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
        for (id, kind, ns) in self.lengths.under_way()? {
            if id == 0 {
                if kind == KSWAPD as u64 {
                    into.background.kswapd_ns += ns;
                } else {
                    into.background.compaction_ns += ns;
                }
                continue;
            }
            let id = counted_as(&into.cgroups, id);
            let counters = into.cgroups.entry(id).or_default();
            if let Some(waits) = counters.waits(kind) {
                waits.add_under_way(ns);
            }
        }
        Ok(())
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
        let mut reading = ReclaimReading {
            cgroups: self.slots.counters(targets),
            ..ReclaimReading::default()
        };
        let cgroups = &mut reading.cgroups;
        let fill = self.lengths.add_ended(targets, |id, kind, add| {
            if let Some(waits) = cgroups.get_mut(&id).and_then(|c| c.waits(kind)) {
                add(waits);
            }
        });
        into.tables.insert("reclaim.lengths".to_owned(), fill);
        reading.background = self.background();
        self.add_under_way(&mut reading)?;
        let kills = drain::<OomEvent>(&mut self.ooms, OOM_BYTES);
        reading.killed = kills.iter().map(OomKill::from).collect();
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

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        self.lengths.forget();
        Ok(())
    }
}
