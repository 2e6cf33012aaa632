//! Who runs, how many there are, and how they end.

use super::{Look, Skill, View};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, rate},
        scope::Scope,
    },
    host::scan::ProcessSummary,
    probes::lifecycle::LifecycleCounters,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Processes;

const METRICS: &[Metric] = &[
    rate(
        "cpu_ms_per_sec",
        Unit::MillisPerSec,
        Bad::High,
        300.0,
        "CPU time used; 1000 is one CPU all the time.",
    ),
    rate(
        "cpu_system_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        200.0,
        "The part of it that the kernel used on their behalf.",
    ),
    rate(
        "busiest_process_cpu_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        300.0,
        "CPU time of the process that used most.",
    ),
    gauge(
        "processes_count",
        Unit::Count,
        Bad::High,
        50.0,
        "Processes, zombies included.",
    ),
    gauge("threads_count", Unit::Count, Bad::High, 100.0, "Threads."),
    gauge(
        "zombies_count",
        Unit::Count,
        Bad::High,
        20.0,
        "Dead processes whose parent has not collected them.",
    ),
    gauge(
        "stopped_count",
        Unit::Count,
        Bad::High,
        1.0,
        "Processes that are stopped by a signal or traced.",
    ),
    rate(
        "forks_per_sec",
        Unit::PerSec,
        Bad::High,
        50.0,
        "Processes started.",
    ),
    rate(
        "execs_per_sec",
        Unit::PerSec,
        Bad::Never,
        50.0,
        "Programs started.",
    ),
    rate(
        "exits_per_sec",
        Unit::PerSec,
        Bad::Never,
        50.0,
        "Processes that ended.",
    ),
    rate(
        "failed_exits_per_sec",
        Unit::PerSec,
        Bad::Never,
        5.0,
        "Processes that ended with a status other than 0.",
    ),
    gauge(
        "crashes_count",
        Unit::Count,
        Bad::High,
        2.5,
        "Processes that a fault of their own killed (SEGV, ABRT, BUS, ILL, FPE) in the last minute.",
    )
    .never_normal(2.5),
    gauge(
        "busiest_process_age_seconds",
        Unit::Seconds,
        Bad::Never,
        0.0,
        "Age of the process that used most CPU time.",
    ),
    gauge(
        "disk_sleepers_count",
        Unit::Count,
        Bad::High,
        4.0,
        "Processes in uninterruptible sleep.",
    ),
];

impl Skill for Processes {
    fn id(&self) -> &'static str {
        "processes"
    }

    fn title(&self) -> &'static str {
        "Processes"
    }

    fn description(&self) -> &'static str {
        "Who runs, how many there are, and what CPU time they use. CPU time is the cgroup's own \
         counter where it has one, which counts processes that lived between two readings too; for \
         the root cgroup and the host it is that of /proc. Counts are from one scan over /proc: a \
         process that lives for a shorter time than the interval is not among them. Zombies are \
         found there too, which cgroup.procs does not list. Starts, exits and crashes are counted in \
         the kernel, however short a life was; a count of crashes is over the last minute."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["lifecycle"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let mut look = Look::default();
        let of_host = *view.scope == Scope::Host;
        if of_host {
            let (now, then) = (&view.now.host.host.stat, &view.before.host.host.stat);
            if let (Some(now), Some(then)) = (now, then) {
                let busy = now.cpu.busy_ms().saturating_sub(then.cpu.busy_ms());
                let system = now.cpu.system_ms.saturating_sub(then.cpu.system_ms);
                look.set("cpu_ms_per_sec", view.per_sec(busy as f64))
                    .set("cpu_system_ms_per_sec", view.per_sec(system as f64));
            }
        }
        let (now, then) = view.processes()?;
        if !of_host {
            cpu(view, now, then, &mut look);
        }
        let busiest = now.most_cpu.iter().max_by_key(|p| p.ran_ms);
        let uptime_ms = view.now.host.monotonic_ms;
        let age = busiest.map(|p| uptime_ms.saturating_sub(p.started_ms) as f64 / 1e3);
        let ran = busiest.and_then(|p| p.ran_ms);
        look.set(
            "busiest_process_cpu_ms_per_sec",
            ran.map(|ms| view.per_sec(ms as f64)),
        )
        .set("processes_count", now.processes as f64)
        .set("threads_count", now.threads as f64)
        .set("zombies_count", now.zombies as f64)
        .set("stopped_count", now.stopped as f64)
        .set("disk_sleepers_count", now.blocked as f64)
        .set("busiest_process_age_seconds", age);
        lives(view, &mut look);
        Some(look)
    }
}

/// How processes begin and end, as the kernel counted it.
fn lives(view: &View<'_>, look: &mut Look) {
    let readings = view
        .now
        .kernel
        .lifecycle
        .as_ref()
        .zip(view.before.kernel.lifecycle.as_ref());
    let Some((now, then)) = readings else { return };
    let mut sum = [0_u64; 4];
    let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) else {
        return;
    };
    for (_, now, then) in rows {
        let none = LifecycleCounters::default();
        let then = then.unwrap_or(&none);
        sum[0] += now.forks.saturating_sub(then.forks);
        sum[1] += now.execs.saturating_sub(then.execs);
        sum[2] += now.exits.saturating_sub(then.exits);
        sum[3] += now.failed.saturating_sub(then.failed);
    }
    let id = view.scope.path().and_then(|path| view.cgroup_id(path));
    let wanted = |of: u64| *view.scope == Scope::Host || id == Some(of);
    let crashes = view
        .now
        .abnormal
        .iter()
        .filter(|e| wanted(e.cgroup) && is_crash(e.signal));
    look.set("forks_per_sec", view.per_sec(sum[0] as f64))
        .set("execs_per_sec", view.per_sec(sum[1] as f64))
        .set("exits_per_sec", view.per_sec(sum[2] as f64))
        .set("failed_exits_per_sec", view.per_sec(sum[3] as f64))
        .set("crashes_count", crashes.count() as f64);
}

/// Signals by which a process's own fault ends it.
fn is_crash(signal: u32) -> bool {
    let signal = i32::try_from(signal).unwrap_or_default();
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS | libc::SIGILL | libc::SIGFPE
    )
}

/// The cgroup's own counter; without one, and for the root, whose counter is the host's, what the
/// processes say. One that has ended takes its time out of their sum: a sum that fell says nothing.
fn cpu(view: &View<'_>, now: &ProcessSummary, then: &ProcessSummary, look: &mut Look) {
    let own = view
        .cgroup()
        .filter(|_| view.scope.path() != Some("/"))
        .and_then(|(now, then)| {
            let (now, then) = (now.files.cpu?, then.files.cpu?);
            let system = now
                .system_us
                .zip(then.system_us)
                .map(|(n, t)| n.saturating_sub(t));
            Some((now.usage_us.saturating_sub(then.usage_us), system))
        });
    let summed = || {
        let used = |p: &ProcessSummary| p.user_ms + p.system_ms;
        let system = now.system_ms.checked_sub(then.system_ms)?;
        Some((
            1000 * used(now).checked_sub(used(then))?,
            Some(1000 * system),
        ))
    };
    let Some((used_us, system_us)) = own.or_else(summed) else {
        return;
    };
    look.set("cpu_ms_per_sec", view.per_sec(used_us as f64 / 1e3))
        .set(
            "cpu_system_ms_per_sec",
            system_us.map(|us| view.per_sec(us as f64 / 1e3)),
        );
}
