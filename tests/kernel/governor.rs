//! Probes that do without something count right, and are right again afterwards.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use lens_agent::probes::{KernelReading, Reduction, SyscallCounters};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run};

use crate::objects::{Nest, Work, do_in};

fn calls(reading: &KernelReading, cgroup: &Cgroup) -> Result<SyscallCounters> {
    let syscalls = reading.syscalls.as_ref().context("no reading")?;
    let counters = syscalls.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

/// Calls that were timed.
fn timed(counters: &SyscallCounters) -> u64 {
    counters.by_number.values().map(|n| n.times.timed).sum()
}

fn is_missing(reading: &KernelReading, what: &str) -> bool {
    reading.quality.missing.iter().any(|m| m.probe == what)
}

/// Has `probe` do without everything up to `wanted`; how many reductions that is.
fn reduce(nest: &mut Nest, probe: &'static str, wanted: Reduction) -> Result<usize> {
    for to in 1..10 {
        nest.probes.reduce(probe, to);
        if nest.probes.reductions(probe).last() == Some(&wanted) {
            return Ok(to);
        }
    }
    bail!("{probe} is never {wanted}")
}

/// A process in a watched cgroup that makes many calls at a time.
struct Storm {
    cgroup: Cgroup,
    work: Work,
}

impl Storm {
    /// Has 400,000 calls made that succeed and 40,000 that fail; how many of both were counted, and
    /// how many of all timed.
    fn count(&mut self, nest: &mut Nest) -> Result<(u64, u64, u64, KernelReading)> {
        let before = calls(&nest.read(), &self.cgroup)?;
        self.work.run("calls 400000 40000")?;
        let reading = nest.read();
        let after = calls(&reading, &self.cgroup)?;
        Ok((
            after.calls - before.calls,
            after.errors - before.errors,
            timed(&after) - timed(&before),
            reading,
        ))
    }
}

#[test]
fn calls_are_untimed_then_scaled_then_absent_and_exact_again() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("syscalls")?;
    let cgroup = nest.top.child("storm")?;
    let work = Work::start(&cgroup)?;
    let mut storm = Storm { cgroup, work };
    let (exact, errors, ..) = storm.count(&mut nest)?;
    assert_eq!(errors, 40_000);
    assert!((440_000..441_000).contains(&exact), "{exact}");

    reduce(&mut nest, "syscalls", Reduction::Untimed)?;
    let (n, errors, timed, reading) = storm.count(&mut nest)?;
    assert_eq!((errors, timed), (40_000, 0));
    assert!(n.abs_diff(exact) < 100, "{n} of {exact}");
    assert!(is_missing(&reading, "syscalls.latency"));
    assert!(!reading.quality.is_scaled());

    reduce(&mut nest, "syscalls", Reduction::Sampled(16))?;
    let (n, errors, _, reading) = storm.count(&mut nest)?;
    println!("scaled: {n} calls of {exact}, {errors} errors of 40000");
    assert!(n.abs_diff(exact) * 20 < exact, "{n} of {exact}");
    assert!(errors.abs_diff(40_000) * 5 < 40_000, "{errors}");
    assert_eq!(reading.quality.sampled.get("syscalls"), Some(&16));
    assert!(reading.quality.is_scaled());

    reduce(&mut nest, "syscalls", Reduction::Detached)?;
    storm.work.run("calls 1000 0")?;
    let reading = nest.read();
    assert!(reading.syscalls.is_none(), "absent, not 0");
    assert!(is_missing(&reading, "syscalls"));

    nest.probes.reduce("syscalls", 0);
    let (n, errors, timed, reading) = storm.count(&mut nest)?;
    assert_eq!(errors, 40_000);
    assert!(n.abs_diff(exact) < 100, "{n} of {exact}");
    assert!(timed > 40_000, "{timed}");
    assert!(!is_missing(&reading, "syscalls.latency"));
    storm.work.end()
}

#[test]
fn what_grows_while_memory_is_detached_is_known_afterwards() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("memory")?;
    let cgroup = nest.top.child("grows")?;
    let resident = |reading: &KernelReading| -> Result<i64> {
        let memory = reading.memory.as_ref().context("no reading")?;
        let counters = memory.cgroups.get(&cgroup.id()?).context("no counters")?;
        Ok(counters.resident.context("not counted")?.anon)
    };
    let mut stays = Work::start(&cgroup)?;
    let mut goes = Work::start(&cgroup)?;
    goes.run("touch 3000 0")?;
    assert!(resident(&nest.read())? >= 3000);
    reduce(&mut nest, "memory", Reduction::Detached)?;
    stays.run("touch 8000 0")?;
    goes.end()?;
    assert!(nest.read().memory.is_none());
    nest.probes.reduce("memory", 0);
    let said = fs::read_to_string(format!("/proc/{}/status", stays.pid()))?;
    let kib = said.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: i64 = kib
        .context("no RssAnon")?
        .trim_end_matches("kB")
        .trim()
        .parse()?;
    let seen = resident(&nest.read())?;
    println!("resident: {seen} pages, in truth {}", kib / 4);
    assert!(seen.abs_diff(kib / 4) <= 128, "{seen} of {}", kib / 4);
    stays.end()
}

#[test]
fn forks_are_counted_by_a_probe_that_came_back() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("lifecycle")?;
    let cgroup = nest.top.child("forks")?;
    let forks = |reading: &KernelReading| -> Result<u64> {
        let lifecycle = reading.lifecycle.as_ref().context("no reading")?;
        let counters = lifecycle.cgroups.get(&cgroup.id()?);
        Ok(counters.map_or(0, |c| c.forks))
    };
    do_in(&cgroup, "fork 10 0 0")?;
    let before = forks(&nest.read())?;
    reduce(&mut nest, "lifecycle", Reduction::Detached)?;
    do_in(&cgroup, "fork 10 0 0")?;
    assert!(nest.read().lifecycle.is_none());
    nest.probes.reduce("lifecycle", 0);
    do_in(&cgroup, "fork 10 0 0")?;
    let grown = forks(&nest.read())? - before;
    ensure!((10..20).contains(&grown), "{grown}");
    Ok(())
}
