//! Waits for locks, as those who wait measure them.

use anyhow::{Context as _, Result};
use lens_agent::probes::{KernelReading, LockCounters};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run};

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
