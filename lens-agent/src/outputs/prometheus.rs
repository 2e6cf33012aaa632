//! `/metrics`: how the agent is, for Prometheus.
//!
//! What happened is counted by [`telemetry`](crate::telemetry), and all of its counters are shown
//! here. How things are is read from the [`Api`] at each scrape: [`FAMILIES`] lists those. What
//! lens measures of the host stays out: thousands of series belong to those who ask for them.

use std::fmt;

use lens_common::limits::{MAX_TARGETS, TARGET_NAMES};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text},
    metrics::MetricType,
    registry::Registry,
};

use crate::{
    anomaly::Severity,
    api::{Api, ProbeState, ProbeStatus, ProgramStatus, Status},
    telemetry::{COUNTERS, CounterValue},
};

/// How the metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4: what everything reads.
    Prometheus,
    /// `OpenMetrics` 1.0.0: for who asks for it.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header prefers; the old format where it has no preference.
    pub fn accepted(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or("*/*");
        let quality = |wanted: &[&str]| {
            let of_range = |range: &str| {
                let mut parts = range.split(';').map(str::trim);
                let name = parts.next()?.to_ascii_lowercase();
                let q = parts.find_map(|p| p.strip_prefix("q=")?.parse::<f32>().ok());
                wanted.contains(&&*name).then(|| q.unwrap_or(1.0))
            };
            accept.split(',').filter_map(of_range).reduce(f32::max)
        };
        let open = quality(&["application/openmetrics-text"]).unwrap_or(0.0);
        let plain = quality(&["text/plain", "text/*"]).unwrap_or(0.0);
        if open > 0.0 && open >= plain {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// What the answer is declared as.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics as they are now.
pub fn metrics(api: &Api, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposed(api.clone())));
    let mut page = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut page, &registry)?,
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

/// What one scrape sees: everything is asked for once.
#[derive(Debug)]
struct Scrape {
    status: Status,
    probes: Vec<ProbeStatus>,
    open: [(Severity, usize); 3],
}

/// Puts each value of a metric, with the values of its labels.
type Read = fn(&Scrape, &mut dyn FnMut(&[&str], f64));

/// A metric that is read at the scrape.
struct Family {
    /// `lens_<noun>_<unit>`; the encoder adds `_total` to a counter's.
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    read: Read,
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
const FAMILIES: &[Family] = &[
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
    counter(
        "lens_program_runs",
        &["probe", "program"],
        "Kernel events that a program has handled.",
        |s, put| {
            each_program(s, |labels, program| put(labels, program.runs as f64));
        },
    ),
    counter(
        "lens_program_cpu_seconds",
        &["probe", "program"],
        "CPU time that a kernel program has taken from the tasks it measured.",
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
/// own; what comes after shares slot 0.
fn each_table(scrape: &Scrape, mut put: impl FnMut(&str, f64, f64)) {
    let targets = scrape.status.targets as f64;
    put("targets", targets, f64::from(TARGET_NAMES));
    let slots = f64::from(MAX_TARGETS);
    put("target_slots", targets.min(slots), slots);
}

fn own_cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

#[derive(Debug)]
struct Exposed(Api);

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.counted(&mut encoder)?;
        let scrape = Scrape {
            status: self.0.status(),
            probes: self.0.probes(),
            open: self.0.open_incidents(),
        };
        for family in FAMILIES {
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            let mut written = Ok(());
            (family.read)(&scrape, &mut |values, value| {
                if written.is_ok() {
                    written = family.write(&mut metric, values, value);
                }
            });
            written?;
        }
        Ok(())
    }
}

impl Exposed {
    /// The counters of the telemetry, also those that nothing was added to yet.
    fn counted(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let values = self.0.counters();
        for counter in COUNTERS {
            let kind = MetricType::Counter;
            let mut metric = encoder.encode_descriptor(counter.name, counter.help, None, kind)?;
            let own = |value: &&CounterValue| value.name == counter.name;
            for CounterValue { labels, value, .. } in values.iter().filter(own) {
                metric
                    .encode_family(labels)?
                    .encode_counter::<NoLabelSet, _, f64>(value, None)?;
            }
        }
        Ok(())
    }
}

impl Family {
    fn write(&self, metric: &mut MetricEncoder<'_>, values: &[&str], value: f64) -> fmt::Result {
        let labels: Vec<(&str, &str)> = self
            .labels
            .iter()
            .copied()
            .zip(values.iter().copied())
            .collect();
        let mut metric = metric.encode_family(&labels)?;
        match self.kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
            _ => metric.encode_gauge(&value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;
    use crate::{
        base::clock::SystemClock,
        supervise::Supervisor,
        telemetry::{Event, Telemetry},
    };

    fn api() -> (Api, Telemetry) {
        let telemetry = Telemetry::new();
        let supervisor = Supervisor::new("lens", telemetry.clone(), Arc::new(SystemClock));
        (Api::new(telemetry.clone(), supervisor), telemetry)
    }

    fn page(api: &Api) -> String {
        metrics(api, Format::Prometheus).unwrap()
    }

    #[test]
    fn metrics_are_well_named() {
        let mut names: BTreeSet<&str> = COUNTERS.iter().map(|c| c.name).collect();
        for family in FAMILIES {
            let name = family.name;
            assert!(names.insert(name), "{name} twice");
            assert!(name.starts_with("lens_"), "{name}");
            assert!(!name.ends_with("_total"), "{name}: the encoder adds it");
            assert!(family.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn every_family_is_described_before_anything_happened() {
        let (api, _) = api();
        let page = page(&api);
        for family in FAMILIES {
            assert!(page.contains(&format!("# HELP {}", family.name)), "{page}");
        }
        assert!(page.contains("# TYPE lens_incidents_opened_total counter\n"));
        assert!(page.contains("lens_incidents_opened_total 0\n"), "{page}");
        assert!(page.contains("lens_incidents_open{severity=\"critical\"} 0"));
    }

    #[test]
    fn a_probe_shows_whether_it_runs_and_what_it_costs() {
        let (api, _) = api();
        let program = ProgramStatus {
            name: "sched_switch".to_owned(),
            runs: 1000,
            run_ns: 2_500_000_000,
            runs_per_sec: 1.0,
            ns_per_run: Some(1.0),
            cpu_percent: 1.0,
            verified_instructions: None,
        };
        let probe = |name: &str, state, programs| ProbeStatus {
            name: name.to_owned(),
            title: String::new(),
            state,
            why: None,
            blind: String::new(),
            programs,
        };
        api.put_probes(vec![
            probe("sched", ProbeState::Attached, vec![program]),
            probe("block", ProbeState::Refused, Vec::new()),
        ]);
        let page = page(&api);
        let labels = "{probe=\"sched\",program=\"sched_switch\"}";
        for line in [
            "lens_probe_attached{probe=\"sched\"} 1".to_owned(),
            "lens_probe_attached{probe=\"block\"} 0".to_owned(),
            format!("lens_program_runs_total{labels} 1000"),
            format!("lens_program_cpu_seconds_total{labels} 2.5"),
        ] {
            assert!(page.contains(&line), "{line} in\n{page}");
        }
    }

    #[test]
    fn a_hostile_label_value_stays_within_its_quotes() {
        let (api, telemetry) = api();
        telemetry.emit(Event::EventsLost {
            map: "a\"} 1\nlens_forged 1\\".to_owned(),
            n: 3,
        });
        let page = page(&api);
        assert!(
            !page.lines().any(|l| l.starts_with("lens_forged")),
            "{page}"
        );
        assert!(
            page.contains(r#"lens_lost_events_total{map="a\"} 1\nlens_forged 1\\"} 3"#),
            "{page}"
        );
    }

    #[test]
    fn openmetrics_is_for_who_prefers_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,\
                          application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, wanted) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/html, */*;q=0.1"), Format::Prometheus),
            (Some(prometheus), Format::OpenMetrics),
            (
                Some("application/openmetrics-text;q=0.4, text/plain"),
                Format::Prometheus,
            ),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
            (
                Some("Application/OpenMetrics-Text; version=1.0.0"),
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), wanted, "{accept:?}");
        }
        let (api, _) = api();
        let page = metrics(&api, Format::OpenMetrics).unwrap();
        assert!(
            page.contains("# TYPE lens_incidents_opened counter\n"),
            "{page}"
        );
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}
