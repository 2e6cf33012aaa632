//! Waits for locks, as those who wait measure them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lens_agent::probes::{CgroupFutexes, KernelReading, LockCounters};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run, until};

use crate::objects::{Nest, Work};

const PROGRAM: &str = env!("CARGO_BIN_EXE_load_locks");

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<LockCounters> {
    let locks = reading.locks.as_ref().context("no reading")?;
    let counters = locks.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

#[test]
fn threads_that_change_one_address_space_wait_for_its_lock() -> Result<()> {
    const THREADS: u64 = 8;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("locks")?;
    let (many, one) = (nest.top.child("many")?, nest.top.child("one")?);
    let mut alone = Work::of(PROGRAM, &one)?;
    let mut work = Work::of(PROGRAM, &many)?;
    let before = of(&nest.read(), &many)?;
    alone.run("map 1 4000")?;
    let said = work.run(&format!("map {THREADS} 1000"))?;
    let took = said["ns"].as_u64().context("no time")?;
    let reading = nest.read();
    let after = of(&reading, &many)?;
    let mut ns = 0;
    for ((kind, now), (_, then)) in after.by_kind().zip(before.by_kind()) {
        let waited = now.ns - then.ns;
        println!("{kind}: {} {waited} of {took}", now.ended - then.ended);
        assert!(now.max_ns <= took, "{kind} {now:?}");
        assert_eq!(now.hist.iter().sum::<u64>(), now.ended, "{kind}");
        assert_eq!(now.under_way, 0, "{kind}");
        ns += waited;
    }
    assert!((1..took * THREADS).contains(&ns), "{ns} of {took}");
    let waits = |counters: &LockCounters| counters.sleeping().map(|w| w.ended).sum::<u64>();
    let slept = waits(&after) - waits(&before);
    assert!(slept > 0, "{after:?}");
    // Nobody is there to wait for.
    assert_eq!(waits(&of(&reading, &one)?), 0);
    nest.print_costs();
    Ok(())
}

fn futexes_of(reading: &KernelReading, cgroup: &Cgroup) -> Result<CgroupFutexes> {
    let futexes = reading.futexes.as_ref().context("no reading")?;
    let counters = futexes.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn with_futexes() -> Result<Nest> {
    Nest::with("locks", |config| config.only.push("syscalls".to_owned()))
}

#[test]
fn a_convoy_waits_as_long_as_its_threads_say() -> Result<()> {
    const CALL_NS: u64 = 1_000_000;
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = with_futexes()?;
    let (cgroup, idle) = (nest.top.child("convoy")?, nest.top.child("idle")?);
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let _idle = Work::of(PROGRAM, &idle)?;
    let said = work.run("convoy 4 100")?;
    let number = |name: &str| said[name].as_u64().context("not said");
    let reading = nest.read();
    let futexes = futexes_of(&reading, &cgroup)?;
    let (tgid, address) = (work.pid(), number("address")? & ((1 << 42) - 1));
    let lock = futexes.by_key.values().find(|f| f.address == address);
    let lock = lock.context("no such address")?;
    let (waits, ns) = (number("waits")?, number("ns")?);
    assert_eq!((lock.tgid, lock.waits), (tgid, waits), "{lock:?}");
    assert_eq!((lock.wakes, lock.waiters), (number("wakes")?, 0));
    // They take the time outside of the call.
    assert!(
        lock.ns <= ns && lock.ns + waits * CALL_NS > ns,
        "{lock:?} {ns}"
    );
    let (run_ns, in_call) = (number("run_ns")?, lock.run_ns);
    println!("{in_call} ns for a CPU, {run_ns} as the threads read it");
    assert!(
        in_call > 0 && in_call <= run_ns && 10 * in_call > 8 * run_ns,
        "{lock:?} {run_ns}"
    );
    assert!(futexes.waits >= waits && futexes.ns >= lock.ns && futexes.run_ns >= in_call);
    assert_eq!(futexes_of(&reading, &idle)?, CgroupFutexes::default());
    assert!(reading.quality.lost.is_empty(), "{:?}", reading.quality);
    nest.print_costs();
    // An address at which nothing happens any more makes room; the sums stay.
    let mut left = futexes.clone();
    until("its place is free", Duration::from_secs(20), || {
        left = futexes_of(&nest.read(), &cgroup).unwrap_or_default();
        left.by_key.values().all(|f| f.address != address)
    })?;
    assert_eq!((left.waits, left.ns), (futexes.waits, futexes.ns));
    Ok(())
}

#[test]
fn a_deadlock_is_two_waiters_whom_nobody_wakes() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    // Declared first, to be dropped after what is in it.
    let mut nest;
    let top = Cgroup::new("deadlock")?;
    let (old, new) = (top.child("old")?, top.child("new")?);
    let mut before = Work::of(PROGRAM, &old)?;
    let said_before = before.run("deadlock")?;
    nest = Nest::around(top, "locks", |config| {
        config.only.push("syscalls".to_owned());
    })?;
    let mut work = Work::of(PROGRAM, &new)?;
    let said = work.run("deadlock")?;
    for (cgroup, said) in [(&old, said_before), (&new, said)] {
        let mut ages = Vec::new();
        let addresses = said["addresses"].as_array().context("not said")?.clone();
        until("two wait, and grow old", Duration::from_secs(20), || {
            let found = futexes_of(&nest.read(), cgroup).unwrap_or_default();
            let stuck = found.by_key.values().filter(|f| {
                let at = |a: &serde_json::Value| a.as_u64().map(|a| a & ((1 << 42) - 1));
                addresses.iter().any(|a| at(a) == Some(f.address))
                    && (f.waiters, f.waits, f.wakes) == (1, 0, 0)
            });
            let oldest: Vec<u64> = stuck.map(|f| f.oldest_ns).collect();
            if oldest.len() == 2 {
                ages.push(oldest[0]);
            }
            ages.len() > 3
        })?;
        assert!(ages.is_sorted(), "{ages:?}");
        assert!(ages.last() > ages.first(), "{ages:?}");
    }
    Ok(())
}
