//! `/metrics`: how the agent is, for Prometheus.
//!
//! What happened is counted by [`telemetry`](crate::telemetry), and all of its counters are shown
//! here. How things are is read from the [`Api`] at each scrape: [`FAMILIES`] lists those. What
//! lens measures of the host stays out: thousands of series belong to those who ask for them.

mod families;

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text},
    metrics::MetricType,
    registry::Registry,
};

use self::families::{FAMILIES, Family, Scrape};
use crate::{
    api::Api,
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
        api::{ProbeState, ProbeStatus, ProgramStatus},
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
            reductions: Vec::new(),
            map_bytes: 4096,
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
