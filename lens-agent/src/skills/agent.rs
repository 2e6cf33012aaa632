//! What lens itself costs, loses and cannot see.

use super::{Look, OwnCost, Skill, View};
use crate::base::{
    metric::{Bad, Metric, Unit, gauge, rate},
    scope::Scope,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Agent;

const METRICS: &[Metric] = &[
    gauge(
        "agent_cpu_percent",
        Unit::Percent,
        Bad::Never,
        1.0,
        "CPU time of the agent, of one CPU.",
    ),
    gauge(
        "agent_kernel_cpu_percent",
        Unit::Percent,
        Bad::Never,
        1.0,
        "CPU time of its kernel programs, of one CPU.",
    ),
    rate(
        "agent_kernel_runs_per_sec",
        Unit::PerSec,
        Bad::Never,
        10_000.0,
        "Runs of its kernel programs: one an event and program.",
    ),
    gauge(
        "agent_kernel_run_ns",
        Unit::Nanos,
        Bad::Never,
        100.0,
        "What a run takes, on average over all programs.",
    ),
    gauge(
        "agent_maps_bytes",
        Unit::Bytes,
        Bad::Never,
        1e6,
        "Memory of its maps in the kernel.",
    ),
    gauge(
        "agent_reduced_probes_count",
        Unit::Count,
        Bad::Never,
        1.0,
        "Probes that do without something, to stay within the CPU budget.",
    ),
    gauge(
        "agent_rss_bytes",
        Unit::Bytes,
        Bad::Never,
        16e6,
        "Memory of the agent.",
    ),
    rate(
        "agent_lost_events_per_sec",
        Unit::PerSec,
        Bad::Never,
        1.0,
        "Events that found no room in a map.",
    ),
    gauge(
        "agent_targets_count",
        Unit::Count,
        Bad::Never,
        10.0,
        "Cgroups that are watched.",
    ),
    gauge(
        "agent_blind_spots_count",
        Unit::Count,
        Bad::Never,
        1.0,
        "Things that cannot be seen on this host.",
    ),
];

impl Skill for Agent {
    fn id(&self) -> &'static str {
        "agent"
    }

    fn title(&self) -> &'static str {
        "The agent itself"
    }

    fn description(&self) -> &'static str {
        "What lens itself costs, loses and cannot see. The cost of kernel programs is the kernel's \
         own measure of their run time, in a window before each reading; it leaves out what it takes to \
         enter and leave them. Beyond the CPU budget probes do without timing, count one event in so \
         many, and at last are detached, until it is calmer. Lost \
         events make the numbers of their map too low; blind spots are probes that the kernel \
         refused and files that could not be read."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        if *view.scope != Scope::Host {
            return None;
        }
        let (now, then) = (&view.now, &view.before);
        let lost = |sample: &super::Sample| sample.kernel.quality.lost.values().sum::<u64>();
        let blind = now.kernel.quality.missing.len() + now.host.quality.missing.len();
        let mut look = Look::default();
        look.set("agent_cpu_percent", now.own.map(|o| o.agent_cpu_percent))
            .set(
                "agent_kernel_cpu_percent",
                now.own.map(|o| o.kernel_cpu_percent),
            )
            .set(
                "agent_kernel_runs_per_sec",
                now.own.map(|o| o.kernel_runs_per_sec),
            )
            .set("agent_kernel_run_ns", now.own.and_then(run_ns))
            .set("agent_maps_bytes", now.own.map(|o| o.map_bytes as f64))
            .set(
                "agent_reduced_probes_count",
                now.own.map(|o| o.reduced_probes as f64),
            )
            .set("agent_rss_bytes", now.own.map(|o| o.rss_bytes as f64))
            .set(
                "agent_lost_events_per_sec",
                view.per_sec(lost(now).saturating_sub(lost(then)) as f64),
            )
            .set("agent_targets_count", now.kernel.targets.len() as f64)
            .set("agent_blind_spots_count", blind as f64);
        Some(look)
    }
}

/// Nanoseconds a run, if anything ran.
fn run_ns(own: OwnCost) -> Option<f64> {
    let ns_per_sec = own.kernel_cpu_percent * 1e7;
    (own.kernel_runs_per_sec > 0.0).then(|| ns_per_sec / own.kernel_runs_per_sec)
}
