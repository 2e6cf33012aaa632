//! Who waits for memory, and who is killed for want of it, as the kernel's own files and the work
//! itself say.

use std::path::Path;

use anyhow::{Context as _, Result};
use lens_agent::probes::{KernelReading, OomKill, ReclaimCounters, Shortage};
use lens_tests::{
    cgroup::Cgroup,
    disk::{file_of, forget},
    not_run, root_or_say_not_run,
};

use crate::objects::{Nest, Work};

const MIB: u64 = 1 << 20;
const PROGRAM: &str = env!("CARGO_BIN_EXE_load_reclaim");

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<ReclaimCounters> {
    let reclaim = reading.reclaim.as_ref().context("no reading")?;
    let counters = reclaim.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn killed(reading: &KernelReading) -> &[OomKill] {
    reading.reclaim.as_ref().map_or(&[], |r| &r.killed)
}

#[test]
fn a_cgroup_at_its_limit_reclaims_for_itself() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("reclaim")?;
    let (limited, free) = (nest.top.child("limited")?, nest.top.child("free")?);
    limited.set_memory_limit(24 * MIB)?;
    let file = file_of(64 * MIB)?;
    let read = format!("read {} 2", file.path().display());
    let mut work = Work::of(PROGRAM, &limited)?;
    forget(file.path())?;
    let (before, hits) = (of(&nest.read(), &limited)?, limited.memory_limit_hits()?);
    let took = work.run(&read)?["ns"].as_u64().context("no time")?;
    let hits = limited.memory_limit_hits()? - hits;
    let reading = nest.read();
    let after = of(&reading, &limited)?;
    let reclaims = after.limit.ended - before.limit.ended;
    assert!(hits > 0 && reclaims > 0, "{hits} {after:?}");
    // Each hit is followed by a reclaim, and some reclaim more than once.
    assert!(reclaims >= hits / 2, "{reclaims} of {hits}");
    let ns = after.limit.ns - before.limit.ns;
    assert!((1..took).contains(&ns), "{ns} of {took}");
    assert!(after.limit.max_ns <= ns, "{after:?}");
    assert_eq!(after.limit.hist.iter().sum::<u64>(), after.limit.ended);
    assert_eq!(after.limit.under_way, 0);
    // All but what fits was dropped again.
    let pages = after.pages - before.pages;
    assert!(pages > 64 * MIB / 4096, "{pages}");
    // The host itself was not short.
    assert_eq!(after.direct, before.direct);
    // The same work without a limit.
    let mut work = Work::of(PROGRAM, &free)?;
    forget(file.path())?;
    work.run(&read)?;
    let reading = nest.read();
    assert_eq!(of(&reading, &free)?.limit, ReclaimCounters::default().limit);
    assert_eq!(of(&reading, &limited)?.limit.ended, after.limit.ended);
    let quality = &reading.quality;
    assert!(quality.lost.is_empty(), "{quality:?}");
    nest.print_costs();
    Ok(())
}

#[test]
fn a_kill_names_victim_and_limit() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::with("reclaim", |config| config.only.push("memory".to_owned()))?;
    let (limited, free) = (nest.top.child("limited")?, nest.top.child("free")?);
    limited.set_memory_limit(32 * MIB)?;
    let mut work = Work::of(PROGRAM, &limited)?;
    let mut other = Work::of(PROGRAM, &free)?;
    assert_eq!(killed(&nest.read()), []);
    let said = work.run("grow 20000")?;
    assert_eq!(other.run("grow 20000")?["signal"], 0);
    assert_eq!((&said["signal"], limited.oom_kills()?), (&9.into(), 1));
    let reading = nest.read();
    let [kill] = killed(&reading) else {
        anyhow::bail!("{:?} {:?}", killed(&reading), reading.quality);
    };
    assert_eq!(u64::from(kill.tgid), said["pid"].as_u64().unwrap_or(0));
    assert_eq!((kill.cgroup, &*kill.comm), (limited.id()?, "load_reclaim"));
    // Who wanted one more page was killed for it.
    assert_eq!((kill.by_cgroup, kill.by_tgid), (kill.cgroup, kill.tgid));
    assert_eq!(kill.by_comm, kill.comm);
    let resident = kill.resident_bytes / MIB;
    assert!((24..40).contains(&resident), "{kill:?}");
    let Shortage::Limit(Some(limit)) = &kill.shortage else {
        anyhow::bail!("{kill:?}");
    };
    assert_eq!(limit.path.as_deref(), Some(limited.path()));
    assert_eq!(
        (limit.cgroup, limit.bytes, limit.is_v1),
        (limited.memory_id()?, 32 * MIB, limited.memory_is_v1())
    );
    let (grew, bytes) = kill.grew.first().context("nobody grew")?;
    assert_eq!(*grew, limited.id()?, "{kill:?}");
    assert!(*bytes >= 16 * MIB, "{kill:?}");
    // It is told once.
    assert_eq!(killed(&nest.read()), []);
    nest.print_costs();
    Ok(())
}

#[test]
fn the_limit_may_be_that_of_a_cgroup_above() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("reclaim")?;
    let pod = nest.top.child("pod")?;
    let (one, two) = (pod.child("one")?, pod.child("two")?);
    pod.set_memory_limit(48 * MIB)?;
    one.set_memory_limit(256 * MIB)?;
    let said = Work::of(PROGRAM, &one)?.run("grow 20000")?;
    assert_eq!(said["signal"], 9);
    let reading = nest.read();
    let [kill] = killed(&reading) else {
        anyhow::bail!("{:?} {:?}", killed(&reading), reading.quality);
    };
    assert_eq!(kill.cgroup, one.id()?);
    let Shortage::Limit(Some(limit)) = &kill.shortage else {
        anyhow::bail!("{kill:?}");
    };
    assert_eq!(limit.path.as_deref(), Some(pod.path()));
    assert_eq!((limit.cgroup, limit.bytes), (pod.memory_id()?, 48 * MIB));
    assert_eq!(of(&reading, &two)?, ReclaimCounters::default());
    drop((one, two));
    Ok(())
}

#[test]
fn compaction_counts_for_who_asks_for_it() -> Result<()> {
    const COMPACT: &str = "/proc/sys/vm/compact_memory";
    if !root_or_say_not_run()? {
        return Ok(());
    }
    if !Path::new(COMPACT).exists() {
        return not_run("this kernel does not compact");
    }
    let mut nest = Nest::new("reclaim")?;
    let (cgroup, idle) = (nest.top.child("compacts")?, nest.top.child("idle")?);
    let mut work = Work::of(PROGRAM, &cgroup)?;
    let took = work.run(&format!("write {COMPACT} 1"))?;
    let reading = nest.read();
    let compaction = of(&reading, &cgroup)?.compaction;
    assert!(compaction.ended > 0, "{compaction:?}");
    let took = took["ns"].as_u64().context("no time")?;
    assert!((1..took).contains(&compaction.ns), "{compaction:?} {took}");
    assert_eq!(compaction.hist.iter().sum::<u64>(), compaction.ended);
    assert_eq!(of(&reading, &idle)?, ReclaimCounters::default());
    nest.print_costs();
    Ok(())
}
