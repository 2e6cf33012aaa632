//! How long the run queues are, and what interrupts take.

use super::{Look, Skill, View};
use crate::base::{
    metric::{Bad, Metric, Unit, gauge, rate},
    scope::Scope,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Cpu;

const METRICS: &[Metric] = &[
    gauge(
        "runq_length_count",
        Unit::Count,
        Bad::Never,
        2.0,
        "Tasks that waited for a CPU, on average, over all run queues.",
    ),
    gauge(
        "longest_runq_length_count",
        Unit::Count,
        Bad::Never,
        2.0,
        "The same of the run queue in which most waited.",
    ),
    rate(
        "irq_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        50.0,
        "Time in handlers of interrupts; for a cgroup, what they took while its tasks ran.",
    ),
    rate(
        "softirq_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "Time in softirqs; for a cgroup, what they took while its tasks ran.",
    ),
    rate(
        "busiest_irq_cpu_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "Time in interrupts and softirqs on the CPU that has most of it; 1000 is all of that CPU.",
    ),
    rate(
        "timers_started_per_sec",
        Unit::PerSec,
        Bad::Never,
        5000.0,
        "High-resolution timers started, ticks of the scheduler included.",
    ),
];

impl Skill for Cpu {
    fn id(&self) -> &'static str {
        "cpu"
    }

    fn title(&self) -> &'static str {
        "Run queues and interrupts"
    }

    fn description(&self) -> &'static str {
        "How many tasks wait for a CPU on average, and what interrupts and softirqs take. The length of \
         a run queue is the time that tasks waited in it over the time that passed: it counts every \
         wait, not just those at the moment of reading, but only of watched cgroups. Interrupts and \
         softirqs are timed one by one where they run; they work for anybody, so a cgroup's part is \
         what it lost to them, not what it caused. Not seen: the local timer's interrupt and those \
         between CPUs. Timers are counted for the task that starts them; the scheduler's own tick, up \
         to 1000 a second on a busy CPU, counts for whom it interrupts."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["sched", "interrupts"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        if *view.scope == Scope::Host && !view.now.kernel.partial {
            queues(view, &mut look);
        }
        if *view.scope == Scope::Host {
            handled(view, &mut look);
        }
        interrupted(view, &mut look);
        Some(look)
    }
}

/// The mean lengths of the run queues.
fn queues(view: &View<'_>, look: &mut Look) -> Option<()> {
    let now = &view.now.kernel.sched.as_ref()?.queues;
    let then = &view.before.kernel.sched.as_ref()?.queues;
    let grown = |(now, then): (&crate::probes::RunQueue, &crate::probes::RunQueue)| {
        view.per_sec(now.wait_ns.saturating_sub(then.wait_ns) as f64 / 1e9)
    };
    let lengths: Vec<f64> = now.iter().zip(then).map(grown).collect();
    look.set("runq_length_count", lengths.iter().sum::<f64>());
    look.set(
        "longest_runq_length_count",
        lengths.iter().copied().reduce(f64::max),
    );
    Some(())
}

/// What the CPUs handled.
fn handled(view: &View<'_>, look: &mut Look) -> Option<()> {
    let now = &view.now.kernel.interrupts.as_ref()?.cpus;
    let then = &view.before.kernel.interrupts.as_ref()?.cpus;
    if now.is_empty() || now.len() != then.len() {
        return None;
    }
    let ms_per_sec = |ns: u64| view.per_sec(ns as f64 / 1e6);
    let (mut hard, mut soft, mut busiest) = (0, 0, 0);
    for (now, then) in now.iter().zip(then) {
        let of_hard = now.hard.ns.saturating_sub(then.hard.ns);
        let pairs = now.soft.iter().zip(&then.soft);
        let of_soft = pairs.map(|(now, then)| now.ns.saturating_sub(then.ns));
        let of_soft: u64 = of_soft.sum();
        hard += of_hard;
        soft += of_soft;
        busiest = busiest.max(of_hard + of_soft);
    }
    look.set("irq_ms_per_sec", ms_per_sec(hard))
        .set("softirq_ms_per_sec", ms_per_sec(soft))
        .set("busiest_irq_cpu_ms_per_sec", ms_per_sec(busiest));
    Some(())
}

/// What the cgroups of the scope lost to handlers, and the timers they started.
fn interrupted(view: &View<'_>, look: &mut Look) -> Option<()> {
    let now = view.now.kernel.interrupts.as_ref()?;
    let then = view.before.kernel.interrupts.as_ref()?;
    let is_timed = !now.cpus.is_empty() && !then.cpus.is_empty();
    let (mut hard, mut soft, mut timers) = (0, 0, 0);
    for (_, now, then) in view.of_scope(&now.cgroups, &then.cgroups)? {
        let then = then.copied().unwrap_or_default();
        hard += now.hard_ns.saturating_sub(then.hard_ns);
        soft += now.soft_ns.saturating_sub(then.soft_ns);
        timers += now.timers.saturating_sub(then.timers);
    }
    look.set("timers_started_per_sec", view.per_sec(timers as f64));
    if is_timed && *view.scope != Scope::Host {
        look.set("irq_ms_per_sec", view.per_sec(hard as f64 / 1e6))
            .set("softirq_ms_per_sec", view.per_sec(soft as f64 / 1e6));
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        probes::{CpuInterrupts, InterruptCounters, InterruptsReading, RunQueue, SchedReading},
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn lengths_are_means_and_a_cgroup_is_told_what_it_lost() {
        let mut before = sample(Duration::from_secs(10), &[(7, "/shop")]);
        let mut now = sample(Duration::from_secs(12), &[(7, "/shop")]);
        let queues = |ms: [u64; 2]| SchedReading {
            queues: ms
                .map(|ms| RunQueue {
                    wait_ns: ms * 1_000_000,
                    waiting: 0,
                })
                .to_vec(),
            ..SchedReading::default()
        };
        before.kernel.sched = Some(queues([100, 100]));
        now.kernel.sched = Some(queues([6100, 2100]));
        let mut cpus = [CpuInterrupts::default(); 2];
        let reading = |cpus: &[CpuInterrupts], soft_ns| InterruptsReading {
            cpus: cpus.to_vec(),
            cgroups: [(
                7,
                InterruptCounters {
                    hard_ns: 0,
                    soft_ns,
                    timers: soft_ns / 10_000,
                },
            )]
            .into(),
        };
        before.kernel.interrupts = Some(reading(&cpus, 0));
        cpus[0].hard.ns = 10_000_000;
        cpus[1].soft[3].ns = 50_000_000;
        now.kernel.interrupts = Some(reading(&cpus, 20_000_000));
        let looks = look_everywhere(1, &now, &before, &[&Cpu]);
        let value = |scope: &Scope, metric| {
            let look = looks.iter().find(|s| s.scope == *scope).unwrap();
            look.value(metric, None)
        };
        let (host, shop) = (Scope::Host, Scope::cgroup("/shop"));
        assert_eq!(value(&host, "runq_length_count"), Some(4.0));
        assert_eq!(value(&host, "longest_runq_length_count"), Some(3.0));
        assert_eq!(value(&host, "irq_ms_per_sec"), Some(5.0));
        assert_eq!(value(&host, "softirq_ms_per_sec"), Some(25.0));
        assert_eq!(value(&host, "busiest_irq_cpu_ms_per_sec"), Some(25.0));
        assert_eq!(value(&shop, "softirq_ms_per_sec"), Some(10.0));
        assert_eq!(value(&shop, "timers_started_per_sec"), Some(1000.0));
        assert_eq!(value(&shop, "runq_length_count"), None);
    }
}
