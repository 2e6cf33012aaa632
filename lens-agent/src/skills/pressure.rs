//! Who is short of CPU, memory or I/O, as the kernel's own accounts say.

use super::{Look, Skill, View};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, rate},
        scope::Scope,
    },
    host::{cgroup::CpuQuota, pressure::Pressure},
};

/// The skill.
#[derive(Debug)]
pub(super) struct PressureSkill;

const METRICS: &[Metric] = &[
    rate(
        "cpu_pressure_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        200.0,
        "Time in which some thread waited for a CPU (PSI cpu some).",
    ),
    rate(
        "memory_pressure_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        100.0,
        "Time in which some thread waited for memory (PSI memory some).",
    )
    .suffering(300.0),
    rate(
        "io_pressure_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        200.0,
        "Time in which some thread waited for I/O (PSI io some).",
    )
    .suffering(800.0),
    rate(
        "throttled_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        50.0,
        "Time for which the CPU quota held the cgroup back, added up over CPUs.",
    ),
    gauge(
        "throttled_periods_percent",
        Unit::Percent,
        Bad::Never,
        10.0,
        "Of the quota's periods in which the cgroup ran, those in which it was held back.",
    ),
    gauge(
        "cpu_quota_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        0.0,
        "The CPU quota; absent without one.",
    ),
];

impl Skill for PressureSkill {
    fn id(&self) -> &'static str {
        "pressure"
    }

    fn title(&self) -> &'static str {
        "Pressure and quotas"
    }

    fn description(&self) -> &'static str {
        "Who is short of CPU, memory or I/O by the kernel's own accounts: PSI totals, and what a CPU \
         quota held back. PSI counts a cgroup's wait for its own siblings and its own quota too, so \
         a high value alone is nobody's fault. It is blind to some stalls: behind a frozen file \
         system it stays flat. Quota numbers come from the cgroup of the cpu controller, which on \
         hybrid hosts has another path; where several cgroups share it, its numbers are theirs \
         together."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        let mut set = |metric, now: &Option<Pressure>, then: &Option<Pressure>| {
            let stalled = now.as_ref().zip(then.as_ref()).map(|(now, then)| {
                let us = now.some.total_us.saturating_sub(then.some.total_us);
                view.per_sec(us as f64 / 1e3)
            });
            look.set(metric, stalled);
        };
        if *view.scope == Scope::Host {
            let (now, then) = (&view.now.host.host, &view.before.host.host);
            set(
                "cpu_pressure_ms_per_sec",
                &now.cpu_pressure,
                &then.cpu_pressure,
            );
            set(
                "memory_pressure_ms_per_sec",
                &now.memory_pressure,
                &then.memory_pressure,
            );
            set(
                "io_pressure_ms_per_sec",
                &now.io_pressure,
                &then.io_pressure,
            );
            return Some(look);
        }
        let (now, then) = view.cgroup()?;
        let (now, then) = (&now.files, &then.files);
        set(
            "cpu_pressure_ms_per_sec",
            &now.cpu_pressure,
            &then.cpu_pressure,
        );
        set(
            "memory_pressure_ms_per_sec",
            &now.memory_pressure,
            &then.memory_pressure,
        );
        set(
            "io_pressure_ms_per_sec",
            &now.io_pressure,
            &then.io_pressure,
        );
        if let Some((now, then)) = now.quota.as_ref().zip(then.quota.as_ref()) {
            quota(view, now, then, &mut look);
        }
        Some(look)
    }
}

fn quota(view: &View<'_>, now: &CpuQuota, then: &CpuQuota, look: &mut Look) {
    let throttled_us = now.throttled_us.saturating_sub(then.throttled_us);
    let periods = now.periods.saturating_sub(then.periods);
    let held = now.throttled_periods.saturating_sub(then.throttled_periods);
    let part = (periods != 0).then(|| 100.0 * held as f64 / periods as f64);
    let quota = now.quota_us.zip(now.period_us.filter(|p| *p != 0));
    look.set(
        "throttled_ms_per_sec",
        view.per_sec(throttled_us as f64 / 1e3),
    )
    .set("throttled_periods_percent", part)
    .set(
        "cpu_quota_ms_per_sec",
        quota.map(|(q, p)| 1e3 * q as f64 / p as f64),
    );
}
