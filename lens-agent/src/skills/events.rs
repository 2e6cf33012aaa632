//! What should not happen at all: stuck tasks, long stalls, stopped processes; and signals.

use super::{Look, Skill, View};
use crate::base::metric::{Bad, Metric, Unit, gauge, quantile, rate};

/// The skill.
#[derive(Debug)]
pub(super) struct Events;

const METRICS: &[Metric] = &[
    gauge(
        "stalled_tasks_count",
        Unit::Count,
        Bad::Never,
        4.0,
        "Tasks that have slept uninterruptibly (state D) for more than 10 ms.",
    ),
    quantile(
        "longest_stall_ms",
        Unit::Millis,
        Bad::Never,
        200.0,
        "The longest uninterruptible sleep that ended or is under way; absent below 10 ms.",
    ),
    gauge(
        "stopped_tasks_count",
        Unit::Count,
        Bad::Never,
        1.0,
        "Tasks that are stopped by a signal, or traced.",
    ),
    rate(
        "signals_sent_per_sec",
        Unit::PerSec,
        Bad::Never,
        1000.0,
        "Signals that tasks sent, to anybody.",
    ),
    rate(
        "signals_received_per_sec",
        Unit::PerSec,
        Bad::Never,
        1000.0,
        "Signals that were sent to tasks, also by the kernel: timers, faults, terminals.",
    ),
];

impl Skill for Events {
    fn id(&self) -> &'static str {
        "events"
    }

    fn title(&self) -> &'static str {
        "What should not happen"
    }

    fn description(&self) -> &'static str {
        "Tasks that are stuck or stopped, and signals. An uninterruptible sleep (state D) waits for a disk, a file \
         system that is frozen or far away, a lock in the kernel, or a child that borrows memory; \
         more than 10 ms of it are a stall, and the kernel functions in which the longest was spent \
         are kept in the reading. Sleeps under way count as far as they have come. Stopped tasks \
         were stopped by a signal (SIGSTOP, SIGTSTP) or by a debugger. Signals count for the cgroup \
         of who sent them, unless the kernel did, and for that of who gets them. Not seen: sleeps that can be \
         interrupted, however long; those are how a service waits for work."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["sched", "lifecycle"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        stalls(view, &mut look);
        signals(view, &mut look);
        Some(look)
    }
}

fn stalls(view: &View<'_>, look: &mut Look) -> Option<()> {
    let now = view.now.kernel.sched.as_ref()?;
    let then = view.before.kernel.sched.as_ref()?;
    let (mut stalled, mut stopped, mut longest_ns) = (0, 0, None);
    for (_, now, _) in view.of_scope(&now.cgroups, &then.cgroups)? {
        stalled += now.stalled;
        stopped += now.stopped;
        longest_ns = longest_ns.max(now.longest_stall.as_ref().map(|stall| stall.ns));
    }
    look.set("stalled_tasks_count", stalled as f64)
        .set("stopped_tasks_count", stopped as f64)
        .set("longest_stall_ms", longest_ns.map(|ns| ns as f64 / 1e6));
    Some(())
}

fn signals(view: &View<'_>, look: &mut Look) -> Option<()> {
    let now = view.now.kernel.lifecycle.as_ref()?;
    let then = view.before.kernel.lifecycle.as_ref()?;
    let (mut sent, mut received) = (0, 0);
    for (_, now, then) in view.of_scope(&now.cgroups, &then.cgroups)? {
        let before = then.map_or((0, 0), |then| (then.signals_sent, then.signals));
        sent += now.signals_sent.saturating_sub(before.0);
        received += now.signals.saturating_sub(before.1);
    }
    look.set("signals_sent_per_sec", view.per_sec(sent as f64))
        .set("signals_received_per_sec", view.per_sec(received as f64));
    Some(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::scope::Scope,
        probes::{SchedCounters, SchedReading, Stall},
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn the_host_sees_the_sum_and_the_longest() {
        let targets = [(7, "/shop"), (8, "/batch")];
        let mut before = sample(Duration::from_secs(10), &targets);
        let mut now = sample(Duration::from_secs(12), &targets);
        before.kernel.sched = Some(SchedReading::default());
        let of = |stalled, ms: Option<u64>| SchedCounters {
            stalled,
            stopped: 1,
            longest_stall: ms.map(|ms| Stall {
                ns: ms * 1_000_000,
                ..Stall::default()
            }),
            ..SchedCounters::default()
        };
        now.kernel.sched = Some(SchedReading {
            cgroups: [(7, of(2, Some(300))), (8, of(1, None))].into(),
            ..SchedReading::default()
        });
        let looks = look_everywhere(1, &now, &before, &[&Events]);
        let value = |scope: &Scope, metric| {
            let look = looks.iter().find(|s| s.scope == *scope).unwrap();
            look.value(metric, None)
        };
        assert_eq!(value(&Scope::Host, "stalled_tasks_count"), Some(3.0));
        assert_eq!(value(&Scope::Host, "stopped_tasks_count"), Some(2.0));
        assert_eq!(value(&Scope::Host, "longest_stall_ms"), Some(300.0));
        let batch = Scope::cgroup("/batch");
        assert_eq!(value(&batch, "longest_stall_ms"), None, "absent, not 0");
    }
}
