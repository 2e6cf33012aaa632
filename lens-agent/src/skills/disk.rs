//! Who waits for disks, and whose requests are served meanwhile.

use std::collections::BTreeMap;

use lens_common::{
    block::{READ, WRITE},
    hist::Hist,
};

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::{
        metric::{Bad, Metric, Unit, gauge, quantile, rate},
        scope::Scope,
        snapshot::By,
    },
    probes::BlockCounters,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Disk;

const WAIT: &str = "io_wait_ms_per_sec";
const OTHERS: &str = "io_wait_others_ms_per_sec";

const METRICS: &[Metric] = &[
    rate(
        WAIT,
        Unit::MillisPerSec,
        Bad::Never,
        200.0,
        "Time that requests to disks took, over all of them; 1000 is one request all the time.",
    ),
    rate(
        OTHERS,
        Unit::MillisPerSec,
        Bad::High,
        200.0,
        "The part of it in which other cgroups' requests were served.",
    )
    .suffering(800.0),
    quantile(
        "io_p99_us",
        Unit::Micros,
        Bad::Never,
        5000.0,
        "99th percentile of the time a request takes.",
    ),
    rate(
        "io_reads_per_sec",
        Unit::PerSec,
        Bad::Never,
        500.0,
        "Requests that read.",
    ),
    rate(
        "io_writes_per_sec",
        Unit::PerSec,
        Bad::Never,
        500.0,
        "Requests that write; what the kernel writes back is not among them.",
    ),
    rate(
        "io_read_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Bytes that these read.",
    ),
    rate(
        "io_written_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Bytes that these wrote.",
    ),
    rate(
        "written_back_bytes_per_sec",
        Unit::BytesPerSec,
        Bad::Never,
        16e6,
        "Bytes written back from the page cache; for a cgroup its part.",
    ),
    gauge(
        "io_queue_length_count",
        Unit::Count,
        Bad::Never,
        4.0,
        "Requests under way, on average.",
    ),
    gauge(
        "io_oldest_ms",
        Unit::Millis,
        Bad::High,
        2000.0,
        "For how long the oldest request has been under way; absent if none is.",
    ),
    rate(
        "io_errors_per_sec",
        Unit::PerSec,
        Bad::High,
        0.1,
        "Requests that failed.",
    ),
];

impl Skill for Disk {
    fn id(&self) -> &'static str {
        "disk"
    }

    fn title(&self) -> &'static str {
        "Waiting for disks"
    }

    fn description(&self) -> &'static str {
        "Who waits for block devices and whose requests are served meanwhile. Counted in the kernel: a \
         request is its maker's from when it is made to when it ends, and while it is under way the \
         time goes to whose requests the device completes, as if it worked on one after another; on a \
         device that serves many at once, whoever has most of them completed has most of the time. \
         `self` are the cgroup's own requests. What the kernel writes back from the page cache belongs \
         to who dirtied it: exactly where the io controller is on cgroup v2, else in proportion to the \
         pages that each dirtied lately. Requests under way count as far as they have come, behind \
         nobody yet. Not seen: file systems over the network, and what never leaves the page cache."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["block"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let now = view.now.kernel.block.as_ref()?;
        let then = view.before.kernel.block.as_ref()?;
        let mut sum = Change::default();
        if let Some(rows) = view.of_scope(&now.cgroups, &then.cgroups) {
            rows.for_each(|(id, now, then)| sum.add(view, id, now, then));
        }
        let mut look = sum.look(view);
        if *view.scope == Scope::Host {
            let oldest = now.devices.values().map(|d| d.oldest_ns).max();
            let grown = |of: fn(&crate::probes::DeviceCounters) -> u64| {
                let devices = now.devices.iter();
                let grown = devices.map(|(number, now)| {
                    let then = then.devices.get(number).map_or(0, of);
                    of(now).saturating_sub(then)
                });
                view.per_sec(grown.sum::<u64>() as f64)
            };
            look.set(
                "io_oldest_ms",
                oldest.filter(|ns| *ns != 0).map(|ns| ns as f64 / 1e6),
            )
            .set("io_errors_per_sec", grown(|d| d.errors))
            .set("written_back_bytes_per_sec", grown(|d| d.writeback_bytes));
        }
        Some(look)
    }
}

#[derive(Default)]
struct Change {
    wait_ns: u64,
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
    written_back_bytes: u64,
    errors: u64,
    oldest_ns: u64,
    hist: Hist,
    served: BTreeMap<By, f64>,
}

impl Change {
    fn add(&mut self, view: &View<'_>, id: u64, now: &BlockCounters, then: Option<&BlockCounters>) {
        let none = BlockCounters::default();
        let then = then.unwrap_or(&none);
        for (device, now) in &now.devices {
            let before = then.devices.get(device).cloned().unwrap_or_default();
            let grown = |now: u64, then: u64| now.saturating_sub(then);
            self.wait_ns += grown(now.wait_ns, before.wait_ns);
            self.reads += grown(now.ios[READ], before.ios[READ]);
            self.writes += grown(now.ios[WRITE], before.ios[WRITE]);
            self.read_bytes += grown(now.bytes[READ], before.bytes[READ]);
            self.written_bytes += grown(now.bytes[WRITE], before.bytes[WRITE]);
            self.written_back_bytes += grown(now.written_back_bytes, before.written_back_bytes);
            self.errors += grown(now.errors, before.errors);
            self.oldest_ns = self.oldest_ns.max(now.oldest_ns);
            for (sum, (now, then)) in self.hist.iter_mut().zip(now.hist.iter().zip(before.hist)) {
                *sum += now.saturating_sub(then);
            }
        }
        for (holder, now) in &now.served {
            let before = then.served.get(holder).copied().unwrap_or_default();
            let by = view.by(Some(*holder), id);
            *self.served.entry(by).or_default() += now.saturating_sub(before) as f64;
        }
        let other = now.other_ns.saturating_sub(then.other_ns);
        *self.served.entry(By::Unattributed).or_default() += other as f64;
    }

    fn look(&self, view: &View<'_>) -> Look {
        let ms_per_sec = |ns: f64| view.per_sec(ns / 1e6);
        let parts: Vec<_> = self
            .served
            .iter()
            .map(|(by, ns)| (by.clone(), ms_per_sec(*ns)))
            .collect();
        let of_others: Vec<_> = parts
            .iter()
            .filter(|(by, _)| matches!(by, By::Cgroup(_) | By::Kernel))
            .cloned()
            .collect();
        let others: f64 = of_others.iter().map(|(_, ms)| ms).sum();
        let per_sec = |n: u64| view.per_sec(n as f64);
        let mut look = Look::default();
        look.set(WAIT, ms_per_sec(self.wait_ns as f64))
            .set(OTHERS, others)
            .set("io_p99_us", quantile_us(&self.hist, 0.99))
            .set("io_reads_per_sec", per_sec(self.reads))
            .set("io_writes_per_sec", per_sec(self.writes))
            .set("io_read_bytes_per_sec", per_sec(self.read_bytes))
            .set("io_written_bytes_per_sec", per_sec(self.written_bytes))
            .set(
                "written_back_bytes_per_sec",
                per_sec(self.written_back_bytes),
            )
            .set(
                "io_queue_length_count",
                view.per_sec(self.wait_ns as f64 / 1e9),
            )
            .set(
                "io_oldest_ms",
                (self.oldest_ns != 0).then_some(self.oldest_ns as f64 / 1e6),
            )
            .set("io_errors_per_sec", per_sec(self.errors));
        look.pairs(WAIT, parts);
        look.pairs(OTHERS, of_others);
        look
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        probes::{BlockReading, DeviceIo, DeviceNumber, Holder},
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn a_row_sums_to_the_wait_and_names_whose_requests_were_served() {
        let targets = [(7, "/shop"), (8, "/batch")];
        let mut before = sample(Duration::from_secs(10), &targets);
        let mut now = sample(Duration::from_secs(12), &targets);
        before.kernel.block = Some(BlockReading::default());
        let ns = |ms: u64| ms * 1_000_000;
        let io = DeviceIo {
            ios: [100, 20, 0, 0],
            wait_ns: ns(1000),
            ..DeviceIo::default()
        };
        let shop = BlockCounters {
            devices: [(DeviceNumber { major: 8, minor: 0 }, io)].into(),
            served: [(Holder::Cgroup(8), ns(600)), (Holder::Cgroup(7), ns(300))].into(),
            other_ns: ns(100),
        };
        now.kernel.block = Some(BlockReading {
            cgroups: [(7, shop)].into(),
            ..BlockReading::default()
        });
        let looks = look_everywhere(1, &now, &before, &[&Disk]);
        let shop = looks
            .iter()
            .find(|s| s.scope == Scope::cgroup("/shop"))
            .unwrap();
        assert_eq!(shop.value(WAIT, None), Some(500.0));
        assert_eq!(shop.value("io_queue_length_count", None), Some(0.5));
        assert_eq!(shop.value("io_reads_per_sec", None), Some(50.0));
        let batch = By::Cgroup("/batch".into());
        assert_eq!(shop.value(OTHERS, Some(&batch)), Some(300.0));
        assert_eq!(shop.value(WAIT, Some(&By::Own)), Some(150.0));
        let row = shop.pairs.iter().filter(|p| &*p.metric == WAIT);
        assert!((row.map(|p| p.value).sum::<f64>() - 500.0).abs() < 1e-6);
    }
}
