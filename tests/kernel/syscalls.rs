//! Every call is counted, where it belongs.

use anyhow::{Context as _, Result};
use lens_agent::probes::{CallCounters, KernelReading, SyscallCounters};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run};

use crate::objects::{Nest, Work, do_in};

const READ: u32 = 0;
const GETPPID: u32 = 110;
const CLONE: u32 = 56;
const CLOCK_NANOSLEEP: u32 = 230;

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<SyscallCounters> {
    let syscalls = reading.syscalls.as_ref().context("no reading")?;
    let counters = syscalls.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn number(counters: &SyscallCounters, nr: u32) -> CallCounters {
    counters.by_number.get(&nr).cloned().unwrap_or_default()
}

fn counts_every_call(time_one_in: u32) -> Result<()> {
    let mut nest = Nest::with("syscalls", |config| {
        config.syscalls.time_one_in = time_one_in;
    })?;
    let (one, two) = (nest.top.child("one")?, nest.top.child("two")?);
    let outside = Cgroup::new("outside")?;
    let said = do_in(&one, "calls 200000 100000")?;
    assert_eq!(said["failed"], 100_000);
    do_in(&two, "calls 3000 1000")?;
    do_in(&outside, "calls 200000 100000")?;
    let reading = nest.read();
    let counters = of(&reading, &one)?;
    let parents = number(&counters, GETPPID);
    assert_eq!((parents.calls, parents.errors), (200_000, 0));
    let reads = number(&counters, READ);
    assert_eq!(reads.errors, 100_000);
    assert_eq!(reads.errnos.get(&9), Some(&100_000));
    assert_eq!(counters.other, 0);
    let sum: u64 = counters.by_number.values().map(|c| c.calls).sum();
    assert_eq!(counters.calls, sum);
    assert_eq!(number(&of(&reading, &two)?, GETPPID).calls, 3000);
    assert_eq!(of(&reading, &outside)?, SyscallCounters::default());
    let seen = reading.syscalls.context("no reading")?.cgroups.len();
    assert_eq!(seen, 2, "only the two that are watched");
    let sampled = reading.quality.sampled.get("syscalls.latency").copied();
    if time_one_in == 0 {
        assert_eq!((sampled, parents.times.timed), (None, 0));
        assert!(
            reading
                .quality
                .missing
                .iter()
                .any(|m| m.probe == "syscalls.latency")
        );
    } else {
        assert_eq!(sampled, Some(u64::from(time_one_in)));
        let expected = 200_000 / u64::from(time_one_in);
        let timed = parents.times.timed;
        assert!(timed.abs_diff(expected) * 20 <= expected, "{timed}");
        assert_eq!(parents.times.hist.iter().sum::<u64>(), timed);
    }
    assert_eq!(
        reading.quality.lost.keys().count(),
        0,
        "{:?}",
        reading.quality
    );
    nest.print_costs();
    Ok(())
}

#[test]
fn every_call_is_counted_and_some_are_timed() -> Result<()> {
    if root_or_say_not_run()? {
        counts_every_call(8)?;
    }
    Ok(())
}

#[test]
fn every_call_is_counted_without_timing() -> Result<()> {
    if root_or_say_not_run()? {
        counts_every_call(0)?;
    }
    Ok(())
}

#[test]
fn a_call_that_sleeps_is_timed_whole_wherever_it_ends() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::with("syscalls", |config| config.syscalls.time_one_in = 1)?;
    let cgroup = nest.top.child("sleeper")?;
    do_in(&cgroup, "sleep 100 2000")?;
    let sleeps = number(&of(&nest.read(), &cgroup)?, CLOCK_NANOSLEEP);
    assert_eq!((sleeps.calls, sleeps.times.timed), (100, 100));
    let mean = sleeps.times.ns / 100;
    assert!((2_000_000..10_000_000).contains(&mean), "{mean}");
    assert!(sleeps.times.max_ns >= mean && sleeps.times.max_ns <= sleeps.times.ns);
    // The maximum is that of one interval.
    let again = number(&of(&nest.read(), &cgroup)?, CLOCK_NANOSLEEP);
    assert_eq!((again.times.max_ns, again.calls), (0, 100));
    Ok(())
}

#[test]
fn a_call_that_returns_twice_is_one_call() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("syscalls")?;
    let cgroup = nest.top.child("forks")?;
    do_in(&cgroup, "fork 300 0 0")?;
    let counters = of(&nest.read(), &cgroup)?;
    assert_eq!(number(&counters, CLONE).calls, 300);
    Ok(())
}

#[test]
fn totals_are_exact_when_the_table_is_full() -> Result<()> {
    const FROM: u32 = 600;
    const TO: u32 = 1000;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("syscalls")?;
    let mut cgroups = Vec::new();
    for i in 0..14 {
        let cgroup = nest.top.child(&i.to_string())?;
        let mut work = Work::start(&cgroup)?;
        work.run("pin 0")?;
        let said = work.run(&format!("numbers {FROM} {TO}"))?;
        assert_eq!(said["failed"], TO - FROM);
        cgroups.push((cgroup, work));
    }
    let before = nest.read();
    for (_, work) in &mut cgroups {
        work.run(&format!("numbers {FROM} {TO}"))?;
    }
    let after = nest.read();
    let mut others = 0;
    for (cgroup, _) in &cgroups {
        let (before, after) = (of(&before, cgroup)?, of(&after, cgroup)?);
        assert_eq!(after.errors - before.errors, u64::from(TO - FROM));
        others += after.other;
    }
    assert!(others > 0);
    assert_eq!(after.quality.lost.get("syscalls.calls"), Some(&others));
    Ok(())
}

#[test]
fn a_removed_cgroup_makes_room() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("syscalls")?;
    for round in 0..30 {
        let cgroup = nest.top.child(&format!("round-{round}"))?;
        do_in(&cgroup, "numbers 600 1000")?;
        let reading = nest.read();
        let counters = of(&reading, &cgroup)?;
        assert_eq!(counters.other, 0, "round {round}");
        let numbers = counters.by_number.range(600..1000);
        assert_eq!(numbers.map(|(_, c)| c.errors).sum::<u64>(), 400);
        drop(cgroup);
        for _ in 0..3 {
            nest.read();
        }
    }
    Ok(())
}
