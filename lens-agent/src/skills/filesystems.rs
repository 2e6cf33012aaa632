//! Who waits for file systems, and which are full or broken.

use lens_common::hist::Hist;

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::metric::{Bad, Metric, Unit, quantile, rate},
    probes::{SyncCounters, Waits},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Filesystems;

const METRICS: &[Metric] = &[
    rate(
        "sync_wait_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        200.0,
        "Time in fsync, fdatasync, msync, sync, syncfs and sync_file_range, summed over threads.",
    ),
    rate(
        "syncs_per_sec",
        Unit::PerSec,
        Bad::Never,
        200.0,
        "Such calls that returned.",
    ),
    quantile(
        "sync_p99_us",
        Unit::Micros,
        Bad::Never,
        20_000.0,
        "99th percentile of the time such a call takes.",
    ),
    quantile(
        "sync_max_ms",
        Unit::Millis,
        Bad::High,
        1000.0,
        "The longest such call that returned, or is under way.",
    ),
];

impl Skill for Filesystems {
    fn id(&self) -> &'static str {
        "filesystems"
    }

    fn title(&self) -> &'static str {
        "Waiting for file systems"
    }

    fn description(&self) -> &'static str {
        "Who waits for file systems: calls that wait until data is on its device are counted one by one, \
         with their lengths, and those under way as far as they have come."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["files", "syscalls"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        let (now, then) = (&view.now.kernel, &view.before.kernel);
        if let Some((now, then)) = now.syncs.as_ref().zip(then.syncs.as_ref())
            && let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups)
        {
            let mut sum = Change::default();
            rows.for_each(|(_, now, then)| sum.add_syncs(now, then));
            sum.show(view, &mut look);
        }
        Some(look)
    }
}

/// Waits of some kind over the interval.
#[derive(Default)]
struct Change {
    ended: u64,
    ns: u64,
    max_ns: u64,
    hist: Hist,
    under_way: u64,
}

impl Change {
    fn add_syncs(&mut self, now: &SyncCounters, then: Option<&SyncCounters>) {
        let none = SyncCounters::default();
        let then = then.unwrap_or(&none);
        for ((_, now), (_, then)) in now.by_call().zip(then.by_call()) {
            self.add(now, then);
        }
    }

    fn add(&mut self, now: &Waits, then: &Waits) {
        self.ended += now.ended.saturating_sub(then.ended);
        self.ns += now.ns.saturating_sub(then.ns);
        self.max_ns = self.max_ns.max(now.max_ns);
        self.under_way += now.under_way;
        for (sum, (now, then)) in self.hist.iter_mut().zip(now.hist.iter().zip(then.hist)) {
            *sum += now.saturating_sub(then);
        }
    }

    fn show(&self, view: &View<'_>, look: &mut Look) {
        look.set("sync_wait_ms_per_sec", view.per_sec(self.ns as f64 / 1e6))
            .set("syncs_per_sec", view.per_sec(self.ended as f64))
            .set("sync_p99_us", quantile_us(&self.hist, 0.99))
            .set("sync_max_ms", self.max_ns as f64 / 1e6);
        look.quality().censored += self.under_way;
    }
}
