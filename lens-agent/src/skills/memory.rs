//! Who grows, who touches and drops pages, who is near a limit.

use super::{Look, Skill, View};
use crate::{
    base::metric::{Bad, Metric, Unit, gauge, rate},
    host::cgroup::CgroupMemory,
    probes::memory::MemoryCounters,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Memory;

const METRICS: &[Metric] = &[
    gauge(
        "rss_bytes",
        Unit::Bytes,
        Bad::High,
        64e6,
        "Resident memory of the processes; shared pages count in each.",
    ),
    rate(
        "rss_growth_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        4e6,
        "How fast it grows; negative when it shrinks.",
    ),
    gauge(
        "virtual_bytes",
        Unit::Bytes,
        Bad::Never,
        1e9,
        "Address space of the processes.",
    ),
    rate(
        "page_faults_per_sec",
        Unit::PerSec,
        Bad::High,
        20_000.0,
        "Page faults, of user and kernel mode.",
    ),
    rate(
        "major_faults_per_sec",
        Unit::PerSec,
        Bad::High,
        100.0,
        "Page faults that had to read from a disk.",
    ),
    rate(
        "page_allocs_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Memory taken from the page allocator, whatever for.",
    ),
    gauge(
        "memory_limit_percent",
        Unit::Percent,
        Bad::Never,
        5.0,
        "How much of the memory limit is in use; absent without one.",
    ),
    rate(
        "memory_limit_hits_per_sec",
        Unit::PerSec,
        Bad::High,
        0.5,
        "Times that the memory limit was hit.",
    ),
];

impl Skill for Memory {
    fn id(&self) -> &'static str {
        "memory"
    }

    fn title(&self) -> &'static str {
        "Memory"
    }

    fn description(&self) -> &'static str {
        "Who grows, who touches and drops pages, and who is near a limit. Faults and allocations are \
         counted in the kernel by cgroup; resident memory is summed over the processes of /proc, so \
         that memory which several share counts in each. Limits are those of the cgroup of the \
         memory controller, which on hybrid hosts has another path. Growth is not a leak: a cache \
         warms up, a heap goes up and down; a leak goes on."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["memory"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        if let Some((now, then)) = view.processes() {
            let grown = now.rss_bytes as f64 - then.rss_bytes as f64;
            look.set("rss_bytes", now.rss_bytes as f64)
                .set("rss_growth_bytes_per_sec", view.per_sec(grown))
                .set("virtual_bytes", now.virtual_bytes as f64);
        }
        if let Some((now, then)) = view.cgroup()
            && let Some((now, then)) = now.files.memory.as_ref().zip(then.files.memory.as_ref())
        {
            limit(view, now, then, &mut look);
        }
        let readings = view
            .now
            .kernel
            .memory
            .as_ref()
            .zip(view.before.kernel.memory.as_ref());
        if let Some((now, then)) = readings {
            let mut sum = Change::default();
            if let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) {
                rows.for_each(|(_, now, then)| sum.add(now, then));
                sum.show(view, &mut look);
            }
        }
        Some(look)
    }
}

fn limit(view: &View<'_>, now: &CgroupMemory, then: &CgroupMemory, look: &mut Look) {
    let used = now.limit_bytes.filter(|limit| *limit != 0);
    let hits = now
        .limit_hits
        .zip(then.limit_hits)
        .map(|(n, t)| n.saturating_sub(t) as f64);
    look.set(
        "memory_limit_percent",
        used.map(|limit| 100.0 * now.current_bytes as f64 / limit as f64),
    )
    .set("memory_limit_hits_per_sec", hits.map(|n| view.per_sec(n)));
}

/// Pages are 4 KiB on the one architecture that is supported.
const PAGE: f64 = 4096.0;

#[derive(Default)]
struct Change {
    faults: u64,
    major: Option<u64>,
    pages: u64,
}

impl Change {
    fn add(&mut self, now: &MemoryCounters, then: Option<&MemoryCounters>) {
        let none = MemoryCounters::default();
        let then = then.unwrap_or(&none);
        self.faults += now.user_faults.saturating_sub(then.user_faults);
        self.faults += now.kernel_faults.saturating_sub(then.kernel_faults);
        if let Some(major) = now.major_faults {
            let more = major.saturating_sub(then.major_faults.unwrap_or_default());
            self.major = Some(self.major.unwrap_or_default() + more);
        }
        self.pages += now.alloc_pages.saturating_sub(then.alloc_pages);
    }

    fn show(&self, view: &View<'_>, look: &mut Look) {
        look.set("page_faults_per_sec", view.per_sec(self.faults as f64))
            .set(
                "major_faults_per_sec",
                self.major.map(|n| view.per_sec(n as f64)),
            )
            .set(
                "page_allocs_bytes_per_sec",
                view.per_sec(self.pages as f64 * PAGE),
            );
    }
}
