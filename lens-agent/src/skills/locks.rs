//! Who waits for locks, the kernel's and its own.

use super::{Look, Skill, View};
use crate::{
    base::metric::{Bad, Metric, Unit, gauge, quantile, rate},
    probes::{CgroupFutexes, LockCounters, Waits},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Locks;

const METRICS: &[Metric] = &[
    rate(
        "kernel_lock_wait_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        500.0,
        "Time in which threads waited for locks of the kernel, summed over threads.",
    ),
    rate(
        "kernel_lock_waits_per_sec",
        Unit::PerSec,
        Bad::Never,
        5000.0,
        "Such waits that ended.",
    ),
    rate(
        "kernel_spin_wait_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        50.0,
        "The part of it in which they spun, and took CPU time.",
    ),
    quantile(
        "kernel_lock_wait_max_ms",
        Unit::Millis,
        Bad::Never,
        50.0,
        "The longest of these waits that ended, or is under way.",
    ),
    rate(
        "futex_wait_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        1000.0,
        "Time of waits at futexes that ended; idle threads wait there too.",
    ),
    rate(
        "futex_wake_to_run_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "The part of these waits in which the thread had been woken and waited for a CPU.",
    ),
    rate(
        "futex_waits_per_sec",
        Unit::PerSec,
        Bad::Never,
        5000.0,
        "Waits at futexes that ended.",
    ),
    rate(
        "futex_wakes_per_sec",
        Unit::PerSec,
        Bad::Never,
        5000.0,
        "Calls that woke somebody at a futex.",
    ),
    gauge(
        "futex_hottest_wait_percent",
        Unit::Percent,
        Bad::Never,
        20.0,
        "Of the waits at futexes that ended, those at the address where there were most.",
    ),
    gauge(
        "futex_waiters_count",
        Unit::Count,
        Bad::Never,
        20.0,
        "Threads that wait at a futex at the moment of reading.",
    ),
    gauge(
        "futex_unwoken_waiters_count",
        Unit::Count,
        Bad::Never,
        20.0,
        "Those that have waited for longer than the interval, in which nobody was woken at their address.",
    ),
    gauge(
        "futex_oldest_wait_ms",
        Unit::Millis,
        Bad::Never,
        60_000.0,
        "How long the one waits that has waited for longest; at least so long if it waited before it was watched.",
    ),
];

impl Skill for Locks {
    fn id(&self) -> &'static str {
        "locks"
    }

    fn title(&self) -> &'static str {
        "Waiting for locks"
    }

    fn description(&self) -> &'static str {
        "Who waits for locks. Waits for locks of the kernel are counted where they begin and end, by \
         kind; those of kernel threads are nobody's, and an interrupt's count for the task that it \
         interrupts. Waits at futexes, of which mutexes and condition variables of programs are \
         made, are counted by process and address when they return; who waits now is listed at each \
         reading, also who has waited since before the start. The time from a wake to running is \
         part of a wait. An idle pool of threads waits at futexes as well, for as long as it is \
         idle, and cannot be told from a deadlock by its waiting alone: both are threads that \
         nobody wakes. A thread that is joined is woken for by the kernel, and shared memory may be \
         woken at from elsewhere. Not seen: who holds a lock, futex_waitv, the 32-bit entry, and \
         locks that programs spin for."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["locks", "syscalls"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        let (now, then) = (&view.now.kernel, &view.before.kernel);
        if let Some((now, then)) = now.locks.as_ref().zip(then.locks.as_ref())
            && let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups)
        {
            let mut sum = OfKernel::default();
            rows.for_each(|(_, now, then)| sum.add(now, then));
            sum.show(view, &mut look);
        }
        if let Some((now, then)) = now.futexes.as_ref().zip(then.futexes.as_ref())
            && let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups)
        {
            let mut sum = OfFutexes {
                has_run_ns: now.has_run_ns,
                ..OfFutexes::default()
            };
            rows.for_each(|(_, now, then)| sum.add(view, now, then));
            sum.show(view, &mut look);
        }
        Some(look)
    }
}

#[derive(Default)]
struct OfKernel {
    waits: u64,
    ns: u64,
    spun_ns: u64,
    max_ns: u64,
    under_way: u64,
}

impl OfKernel {
    fn add(&mut self, now: &LockCounters, then: Option<&LockCounters>) {
        let none = LockCounters::default();
        let then = then.unwrap_or(&none);
        let grown = |now: &Waits, then: &Waits| now.ns.saturating_sub(then.ns);
        for ((_, now), (_, then)) in now.by_kind().zip(then.by_kind()) {
            self.waits += now.ended.saturating_sub(then.ended);
            self.ns += grown(now, then);
            self.max_ns = self.max_ns.max(now.max_ns);
            self.under_way += now.under_way;
        }
        let spinning = now.spinning().zip(then.spinning());
        self.spun_ns += spinning.map(|(now, then)| grown(now, then)).sum::<u64>();
    }

    fn show(&self, view: &View<'_>, look: &mut Look) {
        let ms_per_sec = |ns: u64| view.per_sec(ns as f64 / 1e6);
        look.set("kernel_lock_wait_ms_per_sec", ms_per_sec(self.ns))
            .set("kernel_lock_waits_per_sec", view.per_sec(self.waits as f64))
            .set("kernel_spin_wait_ms_per_sec", ms_per_sec(self.spun_ns))
            .set("kernel_lock_wait_max_ms", self.max_ns as f64 / 1e6);
        look.quality().censored += self.under_way;
    }
}

#[derive(Default)]
struct OfFutexes {
    has_run_ns: bool,
    waits: u64,
    ns: u64,
    run_ns: u64,
    wakes: u64,
    hottest: u64,
    waiters: u64,
    unwoken: u64,
    oldest_ns: u64,
}

impl OfFutexes {
    fn add(&mut self, view: &View<'_>, now: &CgroupFutexes, then: Option<&CgroupFutexes>) {
        let none = CgroupFutexes::default();
        let then = then.unwrap_or(&none);
        self.waits += now.waits.saturating_sub(then.waits);
        self.ns += now.ns.saturating_sub(then.ns);
        self.run_ns += now.run_ns.saturating_sub(then.run_ns);
        self.wakes += now.wakes.saturating_sub(then.wakes);
        for (key, now) in &now.by_key {
            let then = then.by_key.get(key).cloned().unwrap_or_default();
            self.hottest = self.hottest.max(now.waits.saturating_sub(then.waits));
            self.waiters += now.waiters;
            self.oldest_ns = self.oldest_ns.max(now.oldest_ns);
            if now.wakes <= then.wakes && u128::from(now.oldest_ns) > view.elapsed.as_nanos() {
                // Those that came meanwhile are not among them.
                self.unwoken += now.waiters.min(then.waiters);
            }
        }
    }

    fn show(&self, view: &View<'_>, look: &mut Look) {
        let part = (self.waits != 0).then(|| 100.0 * self.hottest as f64 / self.waits as f64);
        look.set("futex_wait_ms_per_sec", view.per_sec(self.ns as f64 / 1e6))
            .set(
                "futex_wake_to_run_ms_per_sec",
                self.has_run_ns
                    .then(|| view.per_sec(self.run_ns as f64 / 1e6)),
            )
            .set("futex_waits_per_sec", view.per_sec(self.waits as f64))
            .set("futex_wakes_per_sec", view.per_sec(self.wakes as f64))
            .set("futex_hottest_wait_percent", part)
            .set("futex_waiters_count", self.waiters as f64)
            .set("futex_unwoken_waiters_count", self.unwoken as f64)
            .set("futex_oldest_wait_ms", self.oldest_ns as f64 / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::scope::Scope,
        probes::{FutexCounters, FutexReading, LocksReading},
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn waiters_whom_nobody_wakes_are_told_from_those_of_a_convoy() {
        let reading = |wakes, oldest_s: u64| {
            let stuck = FutexCounters {
                waiters: 1,
                oldest_ns: oldest_s * 1_000_000_000,
                ..FutexCounters::default()
            };
            let convoy = FutexCounters {
                waits: wakes,
                ns: wakes * 1_000_000,
                wakes,
                waiters: 3,
                oldest_ns: 1_000_000,
                ..FutexCounters::default()
            };
            let shop = CgroupFutexes {
                waits: wakes * 2,
                ns: wakes * 1_000_000,
                run_ns: wakes * 250_000,
                wakes,
                by_key: [(1, stuck.clone()), (2, stuck), (3, convoy)].into(),
            };
            Some(FutexReading {
                cgroups: [(7, shop)].into(),
                has_run_ns: true,
            })
        };
        let mut before = sample(Duration::from_secs(10), &[(7, "/shop")]);
        let mut now = sample(Duration::from_secs(12), &[(7, "/shop")]);
        before.kernel.futexes = reading(100, 8);
        now.kernel.futexes = reading(500, 10);
        before.kernel.locks = Some(LocksReading::default());
        now.kernel.locks = Some(LocksReading::default());
        let looks = look_everywhere(1, &now, &before, &[&Locks]);
        let shop = Scope::cgroup("/shop");
        let shop = looks.iter().find(|s| s.scope == shop).unwrap();
        let value = |metric| shop.value(metric, None);
        assert_eq!(value("futex_waits_per_sec"), Some(400.0));
        assert_eq!(value("futex_wait_ms_per_sec"), Some(200.0));
        assert_eq!(value("futex_wake_to_run_ms_per_sec"), Some(50.0));
        assert_eq!(value("futex_hottest_wait_percent"), Some(50.0));
        assert_eq!(value("futex_waiters_count"), Some(5.0));
        assert_eq!(value("futex_unwoken_waiters_count"), Some(2.0));
        assert_eq!(value("futex_oldest_wait_ms"), Some(10_000.0));
        // Nothing of it was counted, which is not 0.
        assert_eq!(value("kernel_lock_wait_ms_per_sec"), None);
    }
}
