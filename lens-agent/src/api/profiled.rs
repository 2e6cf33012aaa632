//! The shape of a profile.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use lens_common::profile::HZ;
use serde::{Deserialize, Serialize};

use crate::{
    base::quality::Quality,
    probes::{Frame, NamedSample, ProfileKind, Profiled},
};

/// Where time went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// CPU time, or time asleep.
    pub kind: ProfileKind,
    /// How long it was looked, in milliseconds.
    pub elapsed_ms: f64,
    /// Of CPU time, samples a second of each CPU that was not idle.
    pub hz: Option<u64>,
    /// Samples, or sleeps that are charged.
    pub times: u64,
    /// Time in all, in milliseconds; of several threads at once it adds up.
    pub time_ms: f64,
    /// Whose, the most time first.
    pub cgroups: Vec<CgroupProfile>,
    /// What was not seen.
    pub quality: Quality,
}

/// The time of one cgroup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CgroupProfile {
    /// Its path.
    pub cgroup: Arc<str>,
    /// Samples, or sleeps that are charged.
    pub times: u64,
    /// Their time, in milliseconds.
    pub time_ms: f64,
    /// The part of it in the kernel.
    pub kernel_ms: f64,
    /// The part of it whose stacks do not reach to where their threads began.
    pub truncated_ms: f64,
    /// Of sleeps, how many ended, those of which no stack was taken as well.
    pub sleeps: Option<u64>,
    /// How long these were, in milliseconds.
    pub slept_ms: Option<f64>,
    /// The most time first.
    pub stacks: Vec<StackTime>,
}

/// The time of one process at one stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackTime {
    /// The process, in the initial namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Arc<str>,
    /// Samples, or sleeps that are charged.
    pub times: u64,
    /// Their time, in milliseconds.
    pub time_ms: f64,
    /// Of its cgroup's time.
    pub percent: f64,
    /// Whether what called its first frame is not known.
    pub truncated: bool,
    /// Whether the process was gone before it could be looked at.
    pub gone: bool,
    /// The outermost first.
    pub frames: Vec<Frame>,
}

/// By what stacks are one: lines of one function are.
type Key<'a> = (u32, &'a str, bool, Vec<(&'a str, bool)>);

impl From<&Profiled> for Profile {
    fn from(profiled: &Profiled) -> Self {
        let mut cgroups: BTreeMap<&Arc<str>, Vec<&NamedSample>> = BTreeMap::new();
        for sample in &profiled.samples {
            cgroups.entry(&sample.cgroup).or_default().push(sample);
        }
        let mut cgroups: Vec<CgroupProfile> = cgroups
            .into_iter()
            .map(|(cgroup, samples)| CgroupProfile::of(cgroup, &samples, profiled))
            .collect();
        cgroups.sort_by(|a, b| b.time_ms.total_cmp(&a.time_ms));
        Self {
            kind: profiled.kind,
            elapsed_ms: profiled.elapsed.as_secs_f64() * 1e3,
            hz: (profiled.kind == ProfileKind::Cpu).then_some(HZ),
            times: cgroups.iter().map(|c| c.times).sum(),
            time_ms: cgroups.iter().map(|c| c.time_ms).sum(),
            cgroups,
            quality: profiled.quality.clone(),
        }
    }
}

impl CgroupProfile {
    fn of(cgroup: &Arc<str>, samples: &[&NamedSample], profiled: &Profiled) -> Self {
        let sum = |wanted: &dyn Fn(&NamedSample) -> bool| {
            let wanted = samples.iter().filter(|sample| wanted(sample));
            ms(wanted.map(|sample| sample.ns).sum())
        };
        let time_ms = sum(&|_| true);
        let mut stacks: BTreeMap<Key<'_>, (u64, u64, &NamedSample)> = BTreeMap::new();
        for sample in samples {
            let frames = sample.stack.frames.iter();
            let names = frames.map(|f| (&*f.name, f.kernel)).collect();
            let key = (sample.tgid, &*sample.comm, sample.stack.truncated, names);
            // The first has most time: its lines are shown.
            let (times, ns, _) = stacks.entry(key).or_insert((0, 0, sample));
            *times += sample.times;
            *ns += sample.ns;
        }
        let mut stacks: Vec<_> = stacks.into_values().collect();
        stacks.sort_by_key(|(_, ns, _)| Reverse(*ns));
        let stack = |(times, ns, sample): (u64, u64, &NamedSample)| StackTime {
            pid: sample.tgid,
            comm: sample.comm.clone(),
            times,
            time_ms: ms(ns),
            percent: 100.0 * ms(ns) / time_ms.max(f64::MIN_POSITIVE),
            truncated: sample.stack.truncated,
            gone: sample.stack.gone,
            frames: sample.stack.frames.clone(),
        };
        let sleeps = profiled.sleeps.get(cgroup);
        Self {
            cgroup: cgroup.clone(),
            times: samples.iter().map(|s| s.times).sum(),
            time_ms,
            kernel_ms: sum(&|s| s.stack.frames.last().is_some_and(|f| f.kernel)),
            truncated_ms: sum(&|s| s.stack.truncated),
            sleeps: sleeps.map(|(n, _)| *n),
            slept_ms: sleeps.map(|(_, ns)| ms(*ns)),
            stacks: stacks.into_iter().map(stack).collect(),
        }
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probes::NamedStack;

    fn sample(cgroup: &str, ns: u64, names: &[(&str, u32)], truncated: bool) -> NamedSample {
        let frame = |(name, line): &(&str, u32)| Frame {
            name: (*name).into(),
            kernel: name.starts_with("sys"),
            line: Some(*line),
            ..Frame::default()
        };
        NamedSample {
            cgroup: cgroup.into(),
            tgid: 7,
            comm: "shop".into(),
            times: ns / 10_000_000,
            ns,
            stack: NamedStack {
                frames: names.iter().map(frame).collect(),
                truncated,
                gone: false,
            },
        }
    }

    #[test]
    fn lines_of_a_function_are_one_and_the_most_time_comes_first() {
        let profiled = Profiled {
            kind: ProfileKind::Cpu,
            elapsed: Duration::from_secs(2),
            samples: vec![
                sample("/shop", 300_000_000, &[("main", 1), ("cart", 2)], false),
                sample("/batch", 600_000_000, &[("main", 1)], false),
                sample("/shop", 100_000_000, &[("main", 1), ("cart", 9)], false),
                sample("/shop", 100_000_000, &[("cart", 9), ("sys_read", 0)], true),
            ],
            sleeps: BTreeMap::new(),
            quality: Quality::default(),
        };
        let profile = Profile::from(&profiled);
        assert_eq!((profile.times, profile.time_ms), (110, 1100.0));
        let [batch, shop] = &profile.cgroups[..] else {
            panic!("{profile:?}")
        };
        assert_eq!((&*batch.cgroup, &*shop.cgroup), ("/batch", "/shop"));
        assert_eq!((shop.kernel_ms, shop.truncated_ms), (100.0, 100.0));
        assert_eq!(shop.stacks.len(), 2);
        assert_eq!((shop.stacks[0].times, shop.stacks[0].percent), (40, 80.0));
        assert_eq!(shop.stacks[0].frames[1].line, Some(2));
    }
}
