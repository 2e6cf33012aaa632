//! Softirqs are as many as the kernel says, timers and signals are those of whoever made them.

use std::fs;

use anyhow::{Context as _, Result};
use lens_agent::probes::{InterruptCounters, KernelReading, LifecycleCounters, SOFTIRQ_NAMES};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run};

use crate::objects::{Nest, Work, do_in};

/// `/proc/softirqs`, summed over the CPUs, in the order of [`SOFTIRQ_NAMES`].
fn softirqs() -> Result<Vec<u64>> {
    let text = fs::read_to_string("/proc/softirqs")?;
    let of = |name: &str| -> Result<u64> {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, counts) = lines
            .find(|(found, _)| found.trim() == name)
            .with_context(|| format!("no {name}"))?;
        let counts = counts.split_ascii_whitespace();
        Ok(counts.map(str::parse::<u64>).sum::<Result<u64, _>>()?)
    };
    SOFTIRQ_NAMES.iter().map(|name| of(name)).collect()
}

/// The same, as the probe has counted it.
fn counted(reading: &KernelReading) -> Result<Vec<u64>> {
    let interrupts = reading.interrupts.as_ref().context("no reading")?;
    let of = |i: usize| interrupts.cpus.iter().map(|cpu| cpu.soft[i].n).sum();
    Ok((0..SOFTIRQ_NAMES.len()).map(of).collect())
}

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<InterruptCounters> {
    let interrupts = reading.interrupts.as_ref().context("no reading")?;
    let counters = interrupts.cgroups.get(&cgroup.id()?);
    Ok(counters.copied().unwrap_or_default())
}

#[test]
fn softirqs_are_those_of_proc() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("interrupts")?;
    let cgroup = nest.top.child("sleeps")?;
    // The kernel's numbers are read within the probe's on one side, and around them on the other.
    let outer = softirqs()?;
    let first = counted(&nest.read())?;
    let inner = softirqs()?;
    do_in(&cgroup, "sleep 200 2000")?;
    let inner: Vec<u64> = softirqs()?.iter().zip(inner).map(|(b, a)| b - a).collect();
    let reading = nest.read();
    let seen: Vec<u64> = counted(&reading)?
        .iter()
        .zip(first)
        .map(|(b, a)| b - a)
        .collect();
    let outer: Vec<u64> = softirqs()?.iter().zip(outer).map(|(b, a)| b - a).collect();
    println!("{SOFTIRQ_NAMES:?}\n{inner:?}\n{seen:?}\n{outer:?}");
    // The kernel counts where one begins, the probe where it ends: on each CPU one may be under way.
    let cpus = std::thread::available_parallelism()?.get() as u64;
    for i in 0..SOFTIRQ_NAMES.len() {
        assert!(
            (inner[i].saturating_sub(cpus)..=outer[i] + cpus).contains(&seen[i]),
            "{}: {} is not within {}..={}",
            SOFTIRQ_NAMES[i],
            seen[i],
            inner[i],
            outer[i]
        );
    }
    assert!(seen.iter().sum::<u64>() > 0);
    nest.print_costs();
    Ok(())
}

#[test]
fn timers_belong_to_who_starts_them() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("interrupts")?;
    let (sets, idle) = (nest.top.child("sets")?, nest.top.child("idle")?);
    let mut work = Work::start(&sets)?;
    let mut beside = Work::start(&idle)?;
    beside.run("calls 10 10")?;
    let (before, still) = (of(&nest.read(), &sets)?, of(&nest.read(), &idle)?);
    work.run("timers 20000")?;
    let reading = nest.read();
    let timers = of(&reading, &sets)?.timers - before.timers;
    // And the ticks meanwhile.
    assert!((20_000..21_000).contains(&timers), "{timers}");
    assert_eq!(of(&reading, &idle)?.timers, still.timers);
    nest.print_costs();
    work.end()?;
    beside.end()
}

#[test]
fn signals_have_a_sender_and_a_receiver() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("lifecycle")?;
    let (from, to) = (nest.top.child("from")?, nest.top.child("to")?);
    let mut sender = Work::start(&from)?;
    let receiver = Work::start(&to)?;
    let of = |reading: &KernelReading, cgroup: &Cgroup| -> Result<LifecycleCounters> {
        let lifecycle = reading.lifecycle.as_ref().context("no reading")?;
        let counters = lifecycle.cgroups.get(&cgroup.id()?);
        Ok(counters.cloned().unwrap_or_default())
    };
    let before = nest.read();
    sender.run(&format!("signals {} 5000", receiver.pid()))?;
    let after = nest.read();
    let grown = |cgroup: &Cgroup| -> Result<(u64, u64)> {
        let (now, then) = (of(&after, cgroup)?, of(&before, cgroup)?);
        Ok((
            now.signals_sent - then.signals_sent,
            now.signals - then.signals,
        ))
    };
    assert_eq!(grown(&from)?, (5000, 0));
    assert_eq!(grown(&to)?, (0, 5000));
    nest.print_costs();
    sender.end()?;
    receiver.end()
}
