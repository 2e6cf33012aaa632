//! Who waits for a CPU, and who ran meanwhile.

use std::collections::BTreeMap;

use lens_common::hist::Hist;

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, quantile, rate},
        snapshot::By,
    },
    probes::{Holder, SchedCounters},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Scheduler;

const WAIT: &str = "runq_wait_ms_per_sec";

const METRICS: &[Metric] = &[
    rate(
        WAIT,
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "Time runnable but not running, summed over threads.",
    ),
    rate(
        "runq_wait_others_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        100.0,
        "The part of the wait in which other cgroups or the kernel held the CPU.",
    )
    .suffering(500.0),
    rate(
        "runq_wait_quota_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        50.0,
        "The part of the wait that the cgroup's own CPU quota caused.",
    )
    .suffering(200.0),
    quantile(
        "runq_wait_p99_us",
        Unit::Micros,
        Bad::Never,
        1000.0,
        "99th percentile of waits, upper end of its power of two.",
    ),
    quantile(
        "runq_wait_max_ms",
        Unit::Millis,
        Bad::Never,
        50.0,
        "The longest wait that ended, or is under way.",
    ),
    rate(
        "runq_waits_per_sec",
        Unit::PerSec,
        Bad::Never,
        1000.0,
        "Waits that ended: times a thread came onto a CPU.",
    ),
    rate(
        "preempted_per_sec",
        Unit::PerSec,
        Bad::Never,
        1000.0,
        "Threads switched out that could have gone on.",
    ),
    rate(
        "voluntary_switches_per_sec",
        Unit::PerSec,
        Bad::High,
        20_000.0,
        "Threads that went to sleep.",
    ),
    rate(
        "sleep_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        1000.0,
        "Time asleep and interruptible, of sleeps that ended.",
    ),
    rate(
        "disk_sleep_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        300.0,
        "Time in uninterruptible sleep (state D), of sleeps that ended.",
    ),
];

impl Skill for Scheduler {
    fn id(&self) -> &'static str {
        "scheduler"
    }

    fn title(&self) -> &'static str {
        "Waiting for a CPU"
    }

    fn description(&self) -> &'static str {
        "Who waits for a CPU and who ran meanwhile. Counted in the kernel at every switch of tasks: \
         a wait is the time from being queued to running, whole even if the task was moved between \
         CPUs; waits under way count as far as they have come. Pairs say who held the CPU during \
         the waits: another cgroup, `self` (the cgroup's other threads, or its own quota), \
         `kernel`, or `idle`. The time of several waiters adds up: 50 waiters can wait 50 s a \
         second. Waits below a millisecond behind several others are sampled and scaled. Not seen: \
         why a thread sleeps."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["sched"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let now = view.now.kernel.sched.as_ref()?;
        let before = view.before.kernel.sched.as_ref()?;
        let mut sum = Change::default();
        for (id, now, then) in view.of_scope(&now.cgroups, &before.cgroups)? {
            sum.add(view, now, then, id);
        }
        Some(sum.look(view))
    }
}

/// What happened between two readings.
#[derive(Default)]
struct Change {
    waits: u64,
    wait_ns: u64,
    wait_max_ns: u64,
    preempted: u64,
    sleeps: u64,
    sleep_ns: [u64; 3],
    hist: Hist,
    held: BTreeMap<By, f64>,
    quota_ns: f64,
    waiting: u64,
}

impl Change {
    fn add(&mut self, view: &View<'_>, now: &SchedCounters, then: Option<&SchedCounters>, id: u64) {
        let none = SchedCounters::default();
        let then = then.unwrap_or(&none);
        self.waits += now.waits.saturating_sub(then.waits);
        self.wait_ns += now.wait_ns.saturating_sub(then.wait_ns);
        self.wait_max_ns = self.wait_max_ns.max(now.wait_max_ns);
        self.preempted += now.preempted.saturating_sub(then.preempted);
        self.waiting += now.waiting;
        for kind in 0..3 {
            self.sleeps += now.sleeps[kind].saturating_sub(then.sleeps[kind]);
            self.sleep_ns[kind] += now.sleep_ns[kind].saturating_sub(then.sleep_ns[kind]);
        }
        for (sum, (now, then)) in self
            .hist
            .iter_mut()
            .zip(now.wait_hist.iter().zip(then.wait_hist))
        {
            *sum += now.saturating_sub(then);
        }
        for (holder, ns) in now.row(then) {
            if holder == Some(Holder::Quota) {
                self.quota_ns += ns;
            }
            *self.held.entry(view.by(holder, id)).or_default() += ns;
        }
    }

    fn look(&self, view: &View<'_>) -> Look {
        let ms_per_sec = |ns: f64| view.per_sec(ns / 1e6);
        let others: f64 = self
            .held
            .iter()
            .filter(|(by, _)| matches!(by, By::Cgroup(_) | By::Kernel | By::Other))
            .map(|(_, ns)| ns)
            .sum();
        let mut look = Look::default();
        look.set(WAIT, ms_per_sec(self.wait_ns as f64))
            .set("runq_wait_others_ms_per_sec", ms_per_sec(others))
            .set("runq_wait_quota_ms_per_sec", ms_per_sec(self.quota_ns))
            .set("runq_wait_p99_us", quantile_us(&self.hist, 0.99))
            .set("runq_wait_max_ms", self.wait_max_ns as f64 / 1e6)
            .set("runq_waits_per_sec", view.per_sec(self.waits as f64))
            .set("preempted_per_sec", view.per_sec(self.preempted as f64))
            .set(
                "voluntary_switches_per_sec",
                view.per_sec(self.sleeps as f64),
            )
            .set("sleep_ms_per_sec", ms_per_sec(self.sleep_ns[0] as f64))
            .set("disk_sleep_ms_per_sec", ms_per_sec(self.sleep_ns[1] as f64));
        let parts: Vec<_> = self
            .held
            .iter()
            .map(|(by, ns)| (by.clone(), ms_per_sec(*ns)))
            .collect();
        let of_others = parts
            .iter()
            .filter(|(by, _)| matches!(by, By::Cgroup(_) | By::Kernel | By::Other))
            .cloned()
            .collect();
        look.pairs(WAIT, parts);
        look.pairs("runq_wait_others_ms_per_sec", of_others);
        look.quality().censored = self.waiting;
        look
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::scope::Scope,
        probes::{Held, SchedReading},
        skills::{look_everywhere, view::tests::sample},
    };

    fn counters(wait_ms: u64, held: &[(Holder, u64, u64)], sampled_ms: u64) -> SchedCounters {
        let ns = |ms: u64| ms * 1_000_000;
        SchedCounters {
            waits: 10,
            wait_ns: ns(wait_ms),
            sampled_ns: ns(sampled_ms),
            held: held
                .iter()
                .map(|(h, exact, sampled)| {
                    (
                        *h,
                        Held {
                            exact_ns: ns(*exact),
                            sampled_ns: ns(*sampled),
                        },
                    )
                })
                .collect(),
            ..SchedCounters::default()
        }
    }

    #[test]
    fn a_row_sums_to_the_wait_and_names_who_ran() {
        let mut before = sample(Duration::from_secs(100), &[(7, "/shop"), (8, "/batch")]);
        let mut now = sample(Duration::from_secs(102), &[(7, "/shop"), (8, "/batch")]);
        before.kernel.sched = Some(SchedReading::default());
        let held = [
            (Holder::Cgroup(8), 600, 10),
            (Holder::Cgroup(7), 100, 0),
            (Holder::Quota, 50, 0),
            (Holder::Kernel, 0, 30),
        ];
        let shop = counters(1150, &held, 400);
        now.kernel.sched = Some(SchedReading {
            cgroups: [(7, shop)].into(),
            ..SchedReading::default()
        });
        let snapshots = look_everywhere(1, &now, &before, &[&Scheduler]);
        let shop = snapshots
            .iter()
            .find(|s| s.scope == Scope::cgroup("/shop"))
            .unwrap();
        let value = |by: &By| shop.value(WAIT, Some(by)).unwrap();
        assert_eq!(shop.value(WAIT, None), Some(575.0));
        assert_eq!(
            value(&By::Cgroup("/batch".into())),
            350.0,
            "600 and a quarter of 400, in 2 s"
        );
        assert_eq!(value(&By::Kernel), 150.0);
        assert_eq!(value(&By::Own), 75.0, "siblings and quota");
        assert_eq!(shop.value("runq_wait_quota_ms_per_sec", None), Some(25.0));
        assert_eq!(shop.value("runq_wait_others_ms_per_sec", None), Some(500.0));
        let sum: f64 = shop
            .pairs
            .iter()
            .filter(|p| &*p.metric == WAIT)
            .map(|p| p.value)
            .sum();
        assert!((sum - 575.0).abs() < 1e-6);
    }
}
