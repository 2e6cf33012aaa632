//! Who waits for a CPU and who ran meanwhile, held against what the kernel itself says of the
//! same load. A load stands still while it is read, so most of it must agree exactly.

mod fallback;
mod pairs;
mod quota;
mod stalls;
mod totals;
mod under_way;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lens_agent::probes::{Config, Globs, Holder, KernelReading, Probes, SchedCounters, Watched};
use lens_tests::{
    cgroup::{Cgroup, Hierarchy},
    load::Load,
};

/// The workload program.
const LOAD: &str = env!("CARGO_BIN_EXE_load");

/// Where loads that share a CPU run: not where interrupts and the test do.
const CPU: usize = 1;

/// Probes that watch what `globs` match; everything if there are none.
fn watch(globs: &[&str]) -> Result<Probes> {
    watch_as(globs, false)
}

fn watch_as(globs: &[&str], force_fallback: bool) -> Result<Probes> {
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    let config = Config {
        globs: Globs::new(globs)?,
        only: vec!["sched".to_owned()],
        force_fallback,
        ..Config::default()
    };
    let probes = Probes::start(&watched, &config)?;
    ensure!(probes.refused().is_empty(), "{:?}", probes.refused());
    Ok(probes)
}

fn ready(cgroup: &Cgroup, arguments: &str) -> Result<Load> {
    Load::ready(LOAD, cgroup, arguments)
}

/// Lets all loads work at once; returns when all are done and sleep.
fn run(loads: &mut [&mut Load]) -> Result<()> {
    for load in &mut *loads {
        load.go()?;
    }
    for load in loads {
        load.report()?;
    }
    Ok(())
}

/// What `cgroup` has counted; nothing counted is all zero.
fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<SchedCounters> {
    let sched = reading.sched.as_ref().context("no sched reading")?;
    Ok(sched
        .cgroups
        .get(&cgroup.id()?)
        .cloned()
        .unwrap_or_default())
}

/// How far `cgroup` got between two readings.
fn between(before: &KernelReading, after: &KernelReading, cgroup: &Cgroup) -> Result<Grown> {
    let (old, new) = (of(before, cgroup)?, of(after, cgroup)?);
    ensure!(new.wait_ns >= old.wait_ns, "a counter went back");
    Ok(Grown {
        waits: new.waits - old.waits,
        wait_ns: new.wait_ns - old.wait_ns,
        sampled_ns: new.sampled_ns - old.sampled_ns,
        unseen: new.unseen - old.unseen,
        unseen_ns: new.unseen_ns - old.unseen_ns,
        preempted: new.preempted - old.preempted,
        parts: new.row(&old).into_iter().collect(),
        now: new,
    })
}

/// The growth of one cgroup's counters.
#[derive(Clone, Debug)]
struct Grown {
    waits: u64,
    wait_ns: u64,
    sampled_ns: u64,
    unseen: u64,
    unseen_ns: u64,
    preempted: u64,
    /// Waiter time by holder, as the product tells it; `None` is what found no room.
    parts: BTreeMap<Option<Holder>, f64>,
    now: SchedCounters,
}

impl Grown {
    /// Waiter time behind `holder`.
    fn behind(&self, holder: Holder) -> f64 {
        self.parts.get(&Some(holder)).copied().unwrap_or_default()
    }

    fn behind_cgroup(&self, cgroup: &Cgroup) -> Result<f64> {
        Ok(self.behind(Holder::Cgroup(cgroup.id()?)))
    }

    fn other(&self) -> f64 {
        self.parts.get(&None).copied().unwrap_or_default()
    }

    /// The whole row, which must be the wait.
    fn row(&self) -> f64 {
        self.parts.values().sum()
    }

    /// Says what was seen, for whoever reads the test's output.
    fn show(&self, what: &str) {
        println!(
            "{what}: {} waits, {} of them unseen, {:.3} ms, {:.3} ms sampled, {:.3} ms other",
            self.waits,
            self.unseen,
            self.wait_ns as f64 / 1e6,
            self.sampled_ns as f64 / 1e6,
            self.other() / 1e6
        );
        for (by, ns) in &self.parts {
            println!("    {by:?}: {:.3} ms", ns / 1e6);
        }
    }
}

/// Fails unless `seen` is within `percent` of `truth`.
#[track_caller]
fn close(what: &str, seen: f64, truth: f64, percent: f64) {
    let off = (seen - truth).abs() / truth.abs().max(1.0) * 100.0;
    println!("{what}: {seen:.0}, in truth {truth:.0}: {off:.3} % apart");
    assert!(off <= percent, "{what}: {seen} is {off:.2} % from {truth}");
}
