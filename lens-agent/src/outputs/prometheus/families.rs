//! What is read at each scrape: one entry a metric.

use lens_common::limits::{MAX_TARGETS, TARGET_NAMES};
use prometheus_client::metrics::MetricType;

use crate::{
    anomaly::Severity,
    api::{ProbeState, ProbeStatus, ProgramStatus, Status},
};

/// What one scrape sees: everything is asked for once.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) status: Status,
    pub(super) probes: Vec<ProbeStatus>,
    pub(super) open: [(Severity, usize); 3],
}

/// Puts each value of a metric, with the values of its labels.
pub(super) type Read = fn(&Scrape, &mut dyn FnMut(&[&str], f64));

/// A metric that is read at the scrape.
pub(super) struct Family {
    /// `lens_<noun>_<unit>`; the encoder adds `_total` to a counter's.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    pub(super) labels: &'static [&'static str],
    pub(super) read: Read,
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Family {
    Family {
        name,
        help,
        kind: MetricType::Gauge,
        labels,
        read,
    }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Family {
    Family {
        name,
        help,
        kind: MetricType::Counter,
        labels,
        read,
    }
}

/// What is read at the scrape. Labels take their values from closed lists: probes, programs, maps
/// and severities.
pub(super) const FAMILIES: &[Family] = &[
    gauge(
        "lens_build_info",
        &["version"],
        "Which lens this is; always 1.",
        |_, put| {
            put(&[env!("CARGO_PKG_VERSION")], 1.0);
        },
    ),
    gauge(
        "lens_start_time_seconds",
        &[],
        "When the agent started, in seconds since 1970.",
        |s, put| {
            if let Some(at) = s.status.started_at {
                put(&[], at.as_millisecond() as f64 / 1e3);
            }
        },
    ),
    gauge(
        "lens_ready",
        &[],
        "Whether probes are attached and the first snapshot is taken.",
        |s, put| {
            put(&[], truth(s.status.ready));
        },
    ),
    gauge(
        "lens_probe_attached",
        &["probe"],
        "Whether a probe counts: 1, or 0 where it was refused or is off.",
        |s, put| {
            for probe in &s.probes {
                put(&[&probe.name], truth(probe.state == ProbeState::Attached));
            }
        },
    ),
    gauge(
        "lens_probe_reduced",
        &["probe"],
        "How many things a probe does without, to stay within the CPU budget.",
        |s, put| {
            for probe in &s.probes {
                put(&[&probe.name], probe.reductions.len() as f64);
            }
        },
    ),
    gauge(
        "lens_probe_map_bytes",
        &["probe"],
        "Memory of a probe's maps in the kernel.",
        |s, put| {
            for probe in &s.probes {
                put(&[&probe.name], probe.map_bytes as f64);
            }
        },
    ),
    gauge(
        "lens_program_run_seconds",
        &["probe", "program"],
        "What a run of a kernel program takes, on average in the last measured window.",
        |s, put| {
            each_program(s, |labels, program| {
                if let Some(ns) = program.ns_per_run {
                    put(labels, ns / 1e9);
                }
            });
        },
    ),
    counter(
        "lens_program_runs",
        &["probe", "program"],
        "Kernel events that a program has handled in measured windows.",
        |s, put| {
            each_program(s, |labels, program| put(labels, program.runs as f64));
        },
    ),
    counter(
        "lens_program_cpu_seconds",
        &["probe", "program"],
        "CPU time that a kernel program has taken from the tasks it measured, in measured windows.",
        |s, put| {
            each_program(s, |labels, program| {
                put(labels, program.run_ns as f64 / 1e9);
            });
        },
    ),
    gauge(
        "lens_map_used_entries",
        &["map"],
        "Entries in use of a bounded table.",
        |s, put| {
            each_table(s, |map, used, _| put(&[map], used));
        },
    ),
    gauge(
        "lens_map_limit_entries",
        &["map"],
        "Entries that a bounded table can hold.",
        |s, put| {
            each_table(s, |map, _, limit| put(&[map], limit));
        },
    ),
    gauge(
        "lens_targets",
        &[],
        "Cgroups that are watched.",
        |s, put| {
            put(&[], s.status.targets as f64);
        },
    ),
    counter(
        "lens_ticks",
        &[],
        "Readings that were made into snapshots.",
        |s, put| {
            put(&[], s.status.ticks as f64);
        },
    ),
    gauge("lens_series", &[], "Series that are judged.", |s, put| {
        put(&[], s.status.series as f64);
    }),
    counter(
        "lens_series_refused",
        &[],
        "Series that found no room.",
        |s, put| {
            put(&[], s.status.series_refused as f64);
        },
    ),
    gauge(
        "lens_series_learned_ratio",
        &[],
        "The part of the series that trust their own baselines.",
        |s, put| {
            put(&[], s.status.learned);
        },
    ),
    gauge(
        "lens_history_ticks",
        &[],
        "Ticks that are kept in memory.",
        |s, put| {
            put(&[], s.status.history.0 as f64);
        },
    ),
    gauge(
        "lens_history_bytes",
        &[],
        "Memory that the compressed ticks take.",
        |s, put| {
            put(&[], s.status.history.1 as f64);
        },
    ),
    gauge(
        "lens_incidents_open",
        &["severity"],
        "Incidents that are going on.",
        |s, put| {
            for (severity, n) in s.open {
                put(&[word(severity)], n as f64);
            }
        },
    ),
    gauge(
        "lens_blind_spots",
        &[],
        "What could not be seen at the last reading, as a number of things.",
        |s, put| {
            put(&[], s.status.quality.missing.len() as f64);
        },
    ),
    gauge(
        "lens_doors_open",
        &[],
        "What the kernel could not be asked to forbid to the agent, as a number of things.",
        |s, put| {
            put(&[], s.status.not_closed.len() as f64);
        },
    ),
    counter(
        "lens_agent_cpu_seconds",
        &[],
        "CPU time of the agent, without its kernel programs.",
        |_, put| {
            put(&[], own_cpu_seconds());
        },
    ),
    gauge(
        "lens_agent_cpu_ratio",
        &[],
        "CPUs that the agent used over the last interval, without its kernel programs.",
        |s, put| {
            put(&[], s.status.cost.agent_cpu_percent / 100.0);
        },
    ),
    gauge(
        "lens_kernel_cpu_ratio",
        &[],
        "CPUs that the kernel programs used over the last interval.",
        |s, put| {
            put(&[], s.status.cost.kernel_cpu_percent / 100.0);
        },
    ),
    gauge(
        "lens_agent_rss_bytes",
        &[],
        "Memory of the agent.",
        |s, put| {
            put(&[], s.status.cost.rss_bytes as f64);
        },
    ),
];

fn truth(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn each_program(scrape: &Scrape, mut put: impl FnMut(&[&str], &ProgramStatus)) {
    for probe in &scrape.probes {
        for program in &probe.programs {
            put(&[&probe.name, &program.name], program);
        }
    }
}

/// Tables whose fill is known: cgroups in the kernel's table, and those that have a slot of their
/// own (what comes after shares slot 0); and those of the probes, on the CPU where they are fullest.
fn each_table(scrape: &Scrape, mut put: impl FnMut(&str, f64, f64)) {
    let targets = scrape.status.targets as f64;
    put("targets", targets, f64::from(TARGET_NAMES));
    let slots = f64::from(MAX_TARGETS);
    put("target_slots", targets.min(slots), slots);
    for (name, fill) in &scrape.status.tables {
        put(name, fill.used as f64, fill.places as f64);
    }
}

fn own_cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
