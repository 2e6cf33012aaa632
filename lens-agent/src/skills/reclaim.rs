//! Who waits for memory, because of whom, and who is killed for want of it.

use std::collections::BTreeMap;

use super::{Look, Skill, View};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, quantile, rate},
        scope::Scope,
        snapshot::By,
    },
    probes::{Holder, OomKill, ReclaimCounters, ReclaimReading},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Reclaim;

const WAIT: &str = "reclaim_wait_ms_per_sec";
const KILLS: &str = "oom_kills_count";

const METRICS: &[Metric] = &[
    rate(
        WAIT,
        Unit::MillisPerSec,
        Bad::High,
        50.0,
        "Time in which threads searched for memory because the host was short of it.",
    )
    .suffering(300.0),
    rate(
        "memory_limit_reclaim_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        100.0,
        "Time in which threads searched for memory because a limit of their own cgroup, or of one above it, was reached.",
    )
    .suffering(500.0),
    quantile(
        "reclaim_wait_max_ms",
        Unit::Millis,
        Bad::Never,
        20.0,
        "The longest of these waits that ended, or is under way.",
    ),
    rate(
        "reclaims_per_sec",
        Unit::PerSec,
        Bad::Never,
        100.0,
        "Times that a thread had to search for memory.",
    ),
    rate(
        "reclaimed_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Memory that threads found so.",
    ),
    rate(
        "reclaim_throttled_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        50.0,
        "The part of it in which they were put to sleep, to let writing or others get on.",
    ),
    rate(
        "compaction_wait_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        100.0,
        "Time in which threads moved pages together to have a big one.",
    ),
    rate(
        "kswapd_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "Time for which the kernel's reclaiming threads were at work.",
    ),
    rate(
        "kswapd_wakes_per_sec",
        Unit::PerSec,
        Bad::Never,
        10.0,
        "Times that they began.",
    ),
    rate(
        "kcompactd_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "Time for which the kernel's compacting threads were at work.",
    ),
    rate(
        "refaults_per_sec",
        Unit::PerSec,
        Bad::Never,
        1000.0,
        "Pages that were reclaimed and then missed.",
    ),
    gauge(
        KILLS,
        Unit::Count,
        Bad::High,
        0.5,
        "Processes killed for want of memory in the last minute.",
    )
    .never_normal(0.5),
];

impl Skill for Reclaim {
    fn id(&self) -> &'static str {
        "reclaim"
    }

    fn title(&self) -> &'static str {
        "Waiting for memory"
    }

    fn description(&self) -> &'static str {
        "Who waits for memory, because of whom, and who is killed for want of it. Counted in the \
         kernel where a thread begins and ends to reclaim: because the host is short (then others \
         may be to blame), or because a cgroup is at its limit (its own, or one above it; a write \
         to memory.reclaim counts as well). Waits under way count as far as they have come. Pairs \
         of the wait for the host's memory are an estimate for each interval: it is shared out by \
         the pages that each cgroup allocated in it, `self` included; what was allocated by nobody \
         who is counted is `unattributed`. Kernel threads allocate in the name of the root cgroup. \
         Pairs of kills say who grew most in the interval of the kill. Refaults are those of the \
         memory controller's cgroup, which on hybrid hosts has another path. Reclaim of the page \
         cache is the ordinary life of a cgroup that reads more than its limit; it hurts when what \
         was dropped is missed (refaults) or threads spend their time with it. Not seen: the time \
         to read back what was dropped, which is a wait for a disk."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["reclaim"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        look.set("refaults_per_sec", refaults(view));
        let now = view.now.kernel.reclaim.as_ref();
        if let Some((now, then)) = now.zip(view.before.kernel.reclaim.as_ref()) {
            waits(view, now, then, &mut look);
            kills(view, &mut look);
        }
        Some(look)
    }
}

fn refaults(view: &View<'_>) -> Option<f64> {
    let (now, then) = if *view.scope == Scope::Host {
        let pages = |vm: &crate::host::vmstat::VmStat| {
            Some(vm.refaulted_file_pages? + vm.refaulted_anon_pages.unwrap_or_default())
        };
        let now = view.now.host.host.vm.as_ref().and_then(pages)?;
        (now, view.before.host.host.vm.as_ref().and_then(pages)?)
    } else {
        let (now, then) = view.cgroup()?;
        let now = now.files.memory.as_ref()?.refaulted_pages?;
        (now, then.files.memory.as_ref()?.refaulted_pages?)
    };
    Some(view.per_sec(now.saturating_sub(then) as f64))
}

/// Pages are 4 KiB on the one architecture that is supported.
const PAGE: f64 = 4096.0;

fn waits(view: &View<'_>, now: &ReclaimReading, then: &ReclaimReading, look: &mut Look) {
    let ms_per_sec = |ns: u64| view.per_sec(ns as f64 / 1e6);
    if let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) {
        let mut sum = Change::default();
        rows.for_each(|(id, now, then)| sum.add(view, now, then, id));
        look.set(WAIT, ms_per_sec(sum.direct_ns))
            .set("memory_limit_reclaim_ms_per_sec", ms_per_sec(sum.limit_ns))
            .set("reclaim_wait_max_ms", sum.max_ns as f64 / 1e6)
            .set("reclaims_per_sec", view.per_sec(sum.reclaims as f64))
            .set(
                "reclaimed_bytes_per_sec",
                view.per_sec(sum.pages as f64 * PAGE),
            )
            .set("reclaim_throttled_ms_per_sec", ms_per_sec(sum.throttled_ns))
            .set("compaction_wait_ms_per_sec", ms_per_sec(sum.compaction_ns));
        let row = sum.row.into_iter();
        look.pairs(WAIT, row.map(|(by, ns)| (by, ms_per_sec(ns))).collect());
        look.quality().censored = sum.under_way;
    }
    if *view.scope == Scope::Host {
        let (now, then) = (now.background, then.background);
        let wakes = now.kswapd_wakes.saturating_sub(then.kswapd_wakes);
        let kswapd = now.kswapd_ns.saturating_sub(then.kswapd_ns);
        let kcompactd = now.compaction_ns.saturating_sub(then.compaction_ns);
        look.set("kswapd_ms_per_sec", ms_per_sec(kswapd))
            .set("kswapd_wakes_per_sec", view.per_sec(wakes as f64))
            .set("kcompactd_ms_per_sec", ms_per_sec(kcompactd));
    }
}

/// What happened between two readings.
#[derive(Default)]
struct Change {
    direct_ns: u64,
    limit_ns: u64,
    compaction_ns: u64,
    throttled_ns: u64,
    max_ns: u64,
    reclaims: u64,
    pages: u64,
    under_way: u64,
    row: BTreeMap<By, u64>,
}

impl Change {
    fn add(
        &mut self,
        view: &View<'_>,
        now: &ReclaimCounters,
        then: Option<&ReclaimCounters>,
        id: u64,
    ) {
        let none = ReclaimCounters::default();
        let then = then.unwrap_or(&none);
        self.direct_ns += now.direct.ns.saturating_sub(then.direct.ns);
        self.limit_ns += now.limit.ns.saturating_sub(then.limit.ns);
        self.compaction_ns += now.compaction.ns.saturating_sub(then.compaction.ns);
        self.throttled_ns += now.throttled_ns.saturating_sub(then.throttled_ns);
        for (now, then) in [(&now.direct, &then.direct), (&now.limit, &then.limit)] {
            self.max_ns = self.max_ns.max(now.max_ns);
            self.reclaims += now.ended.saturating_sub(then.ended);
        }
        self.pages += now.pages.saturating_sub(then.pages);
        for stalls in [&now.direct, &now.limit, &now.compaction] {
            self.under_way += stalls.under_way;
        }
        for (holder, ns) in &now.row {
            let before = then.row.get(holder).copied().unwrap_or_default();
            *self.row.entry(view.by(*holder, id)).or_default() += ns.saturating_sub(before);
        }
    }
}

/// Kills of the scope's processes, and who grew.
fn kills(view: &View<'_>, look: &mut Look) {
    let id = view.scope.path().and_then(|path| view.cgroup_id(path));
    let is_host = *view.scope == Scope::Host;
    if is_host && view.now.kernel.partial {
        return;
    }
    let wanted = |kill: &&OomKill| is_host || id == Some(kill.cgroup);
    let mut grew: BTreeMap<By, f64> = BTreeMap::new();
    let mut kills = 0.0;
    for kill in view.now.killed.iter().filter(wanted) {
        kills += 1.0;
        let most = kill
            .grew
            .first()
            .map_or(Holder::Unattributed, |(id, _)| Holder::Cgroup(*id));
        *grew.entry(view.by(Some(most), kill.cgroup)).or_default() += 1.0;
    }
    look.set(KILLS, kills);
    look.pairs(KILLS, grew.into_iter().collect());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        probes::Waits,
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn a_wait_names_who_took_memory_and_a_kill_who_grew() {
        let targets = [(7, "/shop"), (8, "/batch")];
        let mut before = sample(Duration::from_secs(10), &targets);
        let mut now = sample(Duration::from_secs(12), &targets);
        before.kernel.reclaim = Some(ReclaimReading::default());
        let of_ns = |ns| Waits {
            ended: 4,
            ns,
            ..Waits::default()
        };
        let shop = ReclaimCounters {
            direct: of_ns(900_000_000),
            limit: of_ns(50_000_000),
            row: [
                (Some(Holder::Cgroup(8)), 600_000_000),
                (Some(Holder::Cgroup(7)), 100_000_000),
                (None, 200_000_000),
            ]
            .into(),
            ..ReclaimCounters::default()
        };
        now.kernel.reclaim = Some(ReclaimReading {
            cgroups: [(7, shop)].into(),
            ..ReclaimReading::default()
        });
        now.killed = vec![OomKill {
            cgroup: 7,
            grew: vec![(8, 1 << 30), (7, 1 << 20)],
            ..OomKill::default()
        }];
        let looks = look_everywhere(1, &now, &before, &[&Reclaim]);
        let of = |scope: &Scope| looks.iter().find(|s| s.scope == *scope).unwrap();
        let shop = of(&Scope::cgroup("/shop"));
        let batch = By::Cgroup("/batch".into());
        assert_eq!(shop.value(WAIT, None), Some(450.0));
        assert_eq!(shop.value(WAIT, Some(&batch)), Some(300.0));
        assert_eq!(shop.value(WAIT, Some(&By::Own)), Some(50.0));
        assert_eq!(shop.value(WAIT, Some(&By::Other)), Some(100.0));
        assert_eq!(
            shop.value("memory_limit_reclaim_ms_per_sec", None),
            Some(25.0)
        );
        assert_eq!(shop.value("reclaims_per_sec", None), Some(4.0));
        assert_eq!(shop.value(KILLS, None), Some(1.0));
        assert_eq!(shop.value(KILLS, Some(&batch)), Some(1.0));
        // It has not been counted, which is not 0; but nobody of it was killed.
        assert_eq!(of(&Scope::cgroup("/batch")).value(WAIT, None), None);
        assert_eq!(of(&Scope::cgroup("/batch")).value(KILLS, None), Some(0.0));
        assert_eq!(of(&Scope::Host).value(KILLS, None), Some(1.0));
    }
}
