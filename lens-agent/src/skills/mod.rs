//! Turning readings into snapshots.
//!
//! A skill is pure: it is shown two samples and does arithmetic. It does no I/O, keeps no state
//! and reads no clock; what cannot be seen is left out, never 0.

mod agent;
mod cpu;
mod disk;
mod events;
mod filesystems;
mod host;
mod locks;
mod memory;
mod network;
mod pressure;
mod processes;
mod profile;
mod reclaim;
mod scheduler;
mod sockets;
mod syscalls;
mod tracer;
mod view;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use lens_common::hist::Hist;

pub use self::view::{OwnCost, Sample, View};
use crate::base::{
    metric::Metric,
    quality::Quality,
    snapshot::{By, Item, Pair, Snapshot, SnapshotId},
};

/// One way of looking at a host or a cgroup.
pub trait Skill: Debug + Send + Sync {
    /// Its name on the command line and in snapshot ids.
    fn id(&self) -> &'static str;
    /// A few words.
    fn title(&self) -> &'static str;
    /// What it asks, where its numbers come from, and what it cannot see: its page in the
    /// documentation and the facts of its prompt.
    fn description(&self) -> &'static str;
    /// What it measures.
    fn metrics(&self) -> &'static [Metric];
    /// The probes without which it sees less.
    fn probes(&self) -> &'static [&'static str] {
        &[]
    }
    /// What it sees in the view's scope; `None` if it can see nothing there.
    fn look(&self, view: &View<'_>) -> Option<Look>;
}

/// Every skill.
pub const REGISTRY: &[&dyn Skill] = &[
    &host::Host,
    &scheduler::Scheduler,
    &processes::Processes,
    &pressure::PressureSkill,
    &syscalls::Syscalls,
    &memory::Memory,
    &reclaim::Reclaim,
    &locks::Locks,
    &profile::Profile,
    &tracer::Tracer,
    &events::Events,
    &cpu::Cpu,
    &disk::Disk,
    &filesystems::Filesystems,
    &network::Network,
    &sockets::Sockets,
    &agent::Agent,
];

/// The skill with this id.
pub fn by_id(id: &str) -> Option<&'static dyn Skill> {
    REGISTRY.iter().copied().find(|s| s.id() == id)
}

/// The probes that a metric stands on.
pub fn probes_of(metric: &str) -> &'static [&'static str] {
    let skill = REGISTRY
        .iter()
        .find(|skill| skill.metrics().iter().any(|m| m.name == metric));
    skill.map_or(&[], |skill| skill.probes())
}

/// The metrics of all skills.
pub fn metrics() -> impl Iterator<Item = &'static Metric> {
    REGISTRY.iter().flat_map(|s| s.metrics())
}

/// Pairs of one metric that a snapshot keeps.
const PAIRS_KEPT: usize = 16;
/// The same of items.
const ITEMS_KEPT: usize = 16;

/// Numbers and pairs of one skill in one scope.
#[derive(Clone, Debug, Default)]
pub struct Look {
    metrics: BTreeMap<Arc<str>, f64>,
    pairs: Vec<Pair>,
    items: Vec<Item>,
    quality: Quality,
}

impl Look {
    /// Adds a number; a missing or impossible one is left out.
    pub fn set(&mut self, metric: &'static str, value: impl Into<Option<f64>>) -> &mut Self {
        if let Some(value) = value.into().filter(|v| v.is_finite()) {
            self.metrics.insert(metric.into(), value);
        }
        self
    }

    /// Adds who caused `metric`, the largest parts.
    pub fn pairs(&mut self, metric: &'static str, parts: Vec<(By, f64)>) {
        let metric: Arc<str> = metric.into();
        let mut parts: Vec<_> = parts.into_iter().filter(|(_, v)| *v > 0.0).collect();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        if parts.len() > PAIRS_KEPT {
            let rest: f64 = parts.drain(PAIRS_KEPT - 1..).map(|(_, v)| v).sum();
            parts.push((By::Other, rest));
        }
        let pairs = parts.into_iter().map(|(by, value)| Pair {
            metric: metric.clone(),
            by,
            value,
        });
        self.pairs.extend(pairs);
    }

    /// Adds what `metric` is for each of several things, the largest.
    pub fn items(&mut self, metric: &'static str, mut items: Vec<(Arc<str>, f64)>) {
        let metric: Arc<str> = metric.into();
        items.sort_by(|a, b| b.1.total_cmp(&a.1));
        items.truncate(ITEMS_KEPT);
        let items = items.into_iter().map(|(item, value)| Item {
            metric: metric.clone(),
            item,
            value,
        });
        self.items.extend(items);
    }

    /// What these numbers did not see.
    pub fn quality(&mut self) -> &mut Quality {
        &mut self.quality
    }

    fn is_empty(&self) -> bool {
        self.metrics.is_empty()
    }
}

/// The upper end, in µs, of the bucket (of ns) in which the quantile `q` lies.
pub(crate) fn quantile_us(hist: &Hist, q: f64) -> Option<f64> {
    let all: u64 = hist.iter().sum();
    let mut left = (all as f64 * q).ceil();
    for (bucket, n) in hist.iter().enumerate() {
        left -= *n as f64;
        if *n != 0 && left <= 0.0 {
            return Some(f64::from(2_u32).powi(i32::try_from(bucket + 1).ok()?) / 1e3);
        }
    }
    None
}

/// What every skill of `skills` sees in every scope of `view`'s samples.
pub fn look_everywhere(
    tick: u64,
    now: &Sample,
    before: &Sample,
    skills: &[&'static dyn Skill],
) -> Vec<Snapshot> {
    let mut snapshots = Vec::new();
    for scope in now.scopes() {
        let view = View::new(now, before, &scope);
        for skill in skills {
            if let Some(mut look) = skill.look(&view).filter(|l| !l.is_empty()) {
                for probe in skill.probes() {
                    view.kernel_quality(probe, &mut look.quality);
                }
                snapshots.push(Snapshot {
                    id: SnapshotId::new(tick, skill.id(), &scope),
                    skill: skill.id().into(),
                    scope: scope.clone(),
                    taken_at: now.at.wall,
                    elapsed_ms: u64::try_from(view.elapsed.as_millis()).unwrap_or(u64::MAX),
                    metrics: look.metrics,
                    pairs: look.pairs,
                    items: look.items,
                    quality: look.quality,
                });
            }
        }
    }
    snapshots
}

#[cfg(test)]
pub(crate) use self::view::tests::empty as empty_sample;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::base::metric::Unit;

    #[test]
    fn ids_and_metric_names_are_unique_and_documented() {
        let mut seen = BTreeSet::new();
        for skill in REGISTRY {
            assert!(seen.insert(skill.id()), "{} twice", skill.id());
            assert!(
                !skill.title().is_empty() && skill.description().len() > 100,
                "{}",
                skill.id()
            );
        }
        for metric in metrics() {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(metric.floor >= 0.0);
        }
    }

    #[test]
    fn names_carry_their_units() {
        for metric in metrics() {
            let suffix = match metric.unit {
                Unit::PerSec => "_per_sec",
                Unit::Bytes => "_bytes",
                Unit::BytesPerSec => "_bytes_per_sec",
                Unit::Millis => "_ms",
                Unit::MillisPerSec => "_ms_per_sec",
                Unit::Micros => "_us",
                Unit::Nanos => "_ns",
                Unit::Percent => "_percent",
                Unit::Ratio => "_ratio",
                Unit::Seconds => "_seconds",
                Unit::Count => continue,
            };
            assert!(
                metric.name.ends_with(suffix),
                "{} is in {:?}",
                metric.name,
                metric.unit
            );
        }
    }
}
