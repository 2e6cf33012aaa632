//! The calls of one function, where somebody had it traced.

use lens_common::hist::BUCKETS;

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, quantile, rate},
        scope::Scope,
        snapshot::By,
    },
    probes::{FunctionCalls, FunctionReading},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Tracer;

const METRICS: &[Metric] = &[
    rate(
        "traced_calls_per_sec",
        Unit::PerSec,
        Bad::Never,
        1.0,
        "Calls of the traced function, over the time of the trace.",
    ),
    quantile(
        "traced_p50_us",
        Unit::Micros,
        Bad::Never,
        100.0,
        "Half of its timed calls took at most this long.",
    ),
    quantile(
        "traced_p99_us",
        Unit::Micros,
        Bad::Never,
        100.0,
        "99 of 100 took at most this long.",
    ),
    quantile(
        "traced_max_us",
        Unit::Micros,
        Bad::Never,
        1000.0,
        "The longest of them.",
    ),
    gauge(
        "trace_cost_cpu_percent",
        Unit::Percent,
        Bad::Never,
        1.0,
        "What the trace has cost the callers, of one CPU: hits by what one costs, trap and program, as \
         measured before.",
    ),
];

impl Skill for Tracer {
    fn id(&self) -> &'static str {
        "tracer"
    }

    fn title(&self) -> &'static str {
        "Function trace"
    }

    fn description(&self) -> &'static str {
        "The calls of one function, of a program or the kernel, and how long they took. Nothing is traced unless \
         somebody asks for it, and then one function for a bounded time; the numbers of a trace are \
         shown once, when it has ended. The number of calls is exact. Times include those of the \
         callees, waits, and one to two microseconds of the trace itself; quantiles are the upper \
         ends of buckets, each twice as wide as the one before. Calls that did not return before \
         the end of the trace are not timed."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let reading = view.now.kernel.function.as_ref()?;
        let mut look = Look::default();
        match view.scope {
            Scope::Host => {
                show(reading, &sum(reading), &mut look);
                let by = reading.cgroups.iter();
                let parts = by
                    .map(|(path, calls)| (By::Cgroup(path.clone()), reading.per_sec(calls.calls)))
                    .collect();
                look.pairs("traced_calls_per_sec", parts);
                look.set("trace_cost_cpu_percent", reading.cost_percent());
            }
            Scope::Cgroup(path) => show(reading, reading.cgroups.get(path)?, &mut look),
        }
        look.quality().merge(&reading.quality);
        Some(look)
    }
}

fn show(reading: &FunctionReading, calls: &FunctionCalls, look: &mut Look) {
    let longest = (calls.returns != 0).then(|| calls.max_ns as f64 / 1e3);
    let at_most = |us: f64| longest.map_or(us, |max| us.min(max));
    look.set("traced_calls_per_sec", reading.per_sec(calls.calls))
        .set("traced_p50_us", quantile_us(&calls.hist, 0.5).map(at_most))
        .set("traced_p99_us", quantile_us(&calls.hist, 0.99).map(at_most))
        .set("traced_max_us", longest);
}

fn sum(reading: &FunctionReading) -> FunctionCalls {
    let mut all = FunctionCalls {
        calls: 0,
        returns: 0,
        total_ns: 0,
        max_ns: 0,
        hist: [0; BUCKETS],
    };
    for calls in reading.cgroups.values() {
        all.calls += calls.calls;
        all.returns += calls.returns;
        all.total_ns += calls.total_ns;
        all.max_ns = all.max_ns.max(calls.max_ns);
        for (sum, n) in all.hist.iter_mut().zip(calls.hist) {
            *sum += n;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

    use super::*;
    use crate::{
        base::quality::Quality,
        probes::{
            Ended, Means,
            prologue::{Place, Stepping},
        },
        skills::view::tests::sample,
    };

    fn calls(n: u64, bucket: usize, max_ns: u64) -> FunctionCalls {
        let mut hist = [0; BUCKETS];
        hist[bucket] = n;
        FunctionCalls {
            calls: n,
            returns: n,
            total_ns: n << bucket,
            max_ns,
            hist,
        }
    }

    fn reading() -> FunctionReading {
        let cgroups: BTreeMap<Arc<str>, FunctionCalls> = [
            (Arc::from("/shop"), calls(90, 10, 1_500)),
            (Arc::from("/batch"), calls(10, 20, 2_000_000)),
        ]
        .into();
        FunctionReading {
            file: Some(PathBuf::from("/bin/shop")),
            function: "checkout".to_owned(),
            by: Means::Uprobe,
            place: Some(Place {
                offset: 0x1000,
                skipped: 0,
                instruction: "push".to_owned(),
                stepping: Stepping::Emulated,
            }),
            hit_ns: Some(1_000_000),
            timed: true,
            elapsed: Duration::from_secs(2),
            ended: Ended::Time,
            traps: 100,
            calls: 100,
            overshoot: 0,
            cgroups,
            nested: 0,
            deep: 0,
            missing: 0,
            under_way: 0,
            quality: Quality::default(),
        }
    }

    #[test]
    fn a_trace_is_shown_for_the_host_and_for_each_caller() {
        let before = sample(Duration::from_secs(10), &[(1, "/shop")]);
        let mut now = sample(Duration::from_secs(15), &[(1, "/shop")]);
        let look = |now: &crate::skills::Sample, scope: &Scope| {
            Tracer.look(&View::new(now, &before, scope))
        };
        assert!(look(&now, &Scope::Host).is_none());
        now.kernel.function = Some(Arc::new(reading()));
        let host = look(&now, &Scope::Host).unwrap();
        assert_eq!(host.metrics["traced_calls_per_sec"], 50.0);
        assert_eq!(host.metrics["traced_p50_us"], 2.048);
        assert_eq!(host.metrics["traced_p99_us"], 2000.0);
        assert_eq!(host.metrics["trace_cost_cpu_percent"], 5.0);
        assert_eq!(host.pairs.len(), 2);
        let shop = look(&now, &Scope::cgroup("/shop")).unwrap();
        assert_eq!(shop.metrics["traced_calls_per_sec"], 45.0);
        assert_eq!(shop.metrics["traced_max_us"], 1.5);
        assert!(look(&now, &Scope::cgroup("/other")).is_none());
    }
}
