//! How is this machine, in twenty numbers.

use super::{Look, Skill, View};
use crate::base::{
    metric::{Bad, Metric, Unit, gauge, rate},
    scope::Scope,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Host;

const METRICS: &[Metric] = &[
    gauge(
        "cpu_busy_percent",
        Unit::Percent,
        Bad::Never,
        20.0,
        "Time in which CPUs were not idle.",
    ),
    gauge(
        "cpu_steal_percent",
        Unit::Percent,
        Bad::High,
        10.0,
        "Time in which a hypervisor ran others.",
    ),
    gauge(
        "cpu_iowait_percent",
        Unit::Percent,
        Bad::Never,
        20.0,
        "Time idle with I/O under way.",
    ),
    gauge(
        "cpu_softirq_percent",
        Unit::Percent,
        Bad::Never,
        10.0,
        "Time in softirqs.",
    ),
    gauge(
        "cpus_count",
        Unit::Count,
        Bad::Never,
        1.0,
        "CPUs that are online.",
    ),
    gauge(
        "runnable_count",
        Unit::Count,
        Bad::Never,
        4.0,
        "Tasks running or waiting for a CPU at the moment of reading.",
    ),
    gauge(
        "blocked_count",
        Unit::Count,
        Bad::High,
        4.0,
        "Tasks that wait for I/O at the moment of reading.",
    ),
    gauge(
        "load1_count",
        Unit::Count,
        Bad::Never,
        2.0,
        "Load average over a minute.",
    ),
    rate(
        "context_switches_per_sec",
        Unit::PerSec,
        Bad::Never,
        20_000.0,
        "Switches of tasks on all CPUs.",
    ),
    rate(
        "interrupts_per_sec",
        Unit::PerSec,
        Bad::Never,
        20_000.0,
        "Interrupts.",
    ),
    rate(
        "softirqs_per_sec",
        Unit::PerSec,
        Bad::Never,
        20_000.0,
        "Softirqs.",
    ),
    rate(
        "host_forks_per_sec",
        Unit::PerSec,
        Bad::Never,
        100.0,
        "Processes and threads started.",
    ),
    gauge(
        "memory_total_bytes",
        Unit::Bytes,
        Bad::Never,
        1.0,
        "Memory of the machine.",
    ),
    gauge(
        "memory_available_bytes",
        Unit::Bytes,
        Bad::Low,
        256e6,
        "Memory that can be had without swapping (MemAvailable).",
    ),
    gauge(
        "page_cache_bytes",
        Unit::Bytes,
        Bad::Never,
        256e6,
        "Page cache.",
    ),
    gauge(
        "dirty_bytes",
        Unit::Bytes,
        Bad::Never,
        256e6,
        "Pages that wait to be written.",
    ),
    gauge(
        "swap_used_bytes",
        Unit::Bytes,
        Bad::High,
        64e6,
        "Swap in use.",
    ),
    rate(
        "host_major_faults_per_sec",
        Unit::PerSec,
        Bad::Never,
        100.0,
        "Page faults that had to read.",
    ),
    rate(
        "oom_kills_per_sec",
        Unit::PerSec,
        Bad::High,
        0.0,
        "Processes killed for want of memory.",
    ),
    gauge(
        "kernel_threads_blocked_count",
        Unit::Count,
        Bad::Never,
        4.0,
        "Kernel threads in uninterruptible sleep.",
    ),
];

impl Skill for Host {
    fn id(&self) -> &'static str {
        "host"
    }

    fn title(&self) -> &'static str {
        "The machine"
    }

    fn description(&self) -> &'static str {
        "How is this machine, in twenty numbers: CPU, memory, load, from /proc/stat, meminfo, vmstat \
         and loadavg. Only the host has them. They say that something is going on, not who does it: \
         a high load or little idle time alone is nobody's fault. Instantaneous counts (runnable, \
         blocked) are one look, and one look can miss."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        if *view.scope != Scope::Host {
            return None;
        }
        let (now, then) = (&view.now.host.host, &view.before.host.host);
        let mut look = Look::default();
        if let Some((now, then)) = now.stat.as_ref().zip(then.stat.as_ref()) {
            let whole = now
                .cpu
                .total_ms()
                .saturating_sub(then.cpu.total_ms())
                .max(1) as f64;
            let part = |now: u64, then: u64| 100.0 * now.saturating_sub(then) as f64 / whole;
            let rate = |now: u64, then: u64| view.per_sec(now.saturating_sub(then) as f64);
            look.set(
                "cpu_busy_percent",
                part(now.cpu.busy_ms(), then.cpu.busy_ms()),
            )
            .set(
                "cpu_steal_percent",
                part(now.cpu.steal_ms, then.cpu.steal_ms),
            )
            .set(
                "cpu_iowait_percent",
                part(now.cpu.iowait_ms, then.cpu.iowait_ms),
            )
            .set(
                "cpu_softirq_percent",
                part(now.cpu.softirq_ms, then.cpu.softirq_ms),
            )
            .set("cpus_count", now.per_cpu.len() as f64)
            .set("runnable_count", now.running as f64)
            .set("blocked_count", now.blocked as f64)
            .set(
                "context_switches_per_sec",
                rate(now.context_switches, then.context_switches),
            )
            .set("host_forks_per_sec", rate(now.forks, then.forks));
            let both = |now: Option<u64>, then: Option<u64>| now.zip(then).map(|(n, t)| rate(n, t));
            look.set("interrupts_per_sec", both(now.interrupts, then.interrupts))
                .set("softirqs_per_sec", both(now.softirqs, then.softirqs));
        }
        look.set("load1_count", now.load.as_ref().map(|l| l.load1))
            .set(
                "kernel_threads_blocked_count",
                now.kernel_threads_blocked.map(|n| n as f64),
            );
        if let Some(memory) = &now.memory {
            let swap = memory.swap_total_bytes.zip(memory.swap_free_bytes);
            look.set("memory_total_bytes", memory.total_bytes as f64)
                .set("memory_available_bytes", memory.available_bytes as f64)
                .set("page_cache_bytes", memory.cached_bytes.map(|b| b as f64))
                .set("dirty_bytes", memory.dirty_bytes.map(|b| b as f64))
                .set(
                    "swap_used_bytes",
                    swap.map(|(all, free)| all.saturating_sub(free) as f64),
                );
        }
        if let Some((now, then)) = now.vm.as_ref().zip(then.vm.as_ref()) {
            let rate = |now: Option<u64>, then: Option<u64>| {
                now.zip(then)
                    .map(|(n, t)| view.per_sec(n.saturating_sub(t) as f64))
            };
            look.set(
                "host_major_faults_per_sec",
                rate(now.major_faults, then.major_faults),
            )
            .set("oom_kills_per_sec", rate(now.oom_kills, then.oom_kills));
        }
        Some(look)
    }
}
