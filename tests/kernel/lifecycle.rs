//! No process is too short-lived to be counted.

use anyhow::{Context as _, Result};
use lens_agent::probes::{AbnormalExit, KernelReading, LifecycleCounters};
use lens_common::lifecycle::{BY_KILL, BY_SEGV};
use lens_tests::{cgroup::Cgroup, root_or_say_not_run};

use crate::objects::{Nest, Work, do_in};

/// A program's name in the kernel is cut.
const COMM: &str = "load_objects";

fn of(reading: &KernelReading, cgroup: &Cgroup) -> Result<LifecycleCounters> {
    let lifecycle = reading.lifecycle.as_ref().context("no reading")?;
    let counters = lifecycle.cgroups.get(&cgroup.id()?);
    Ok(counters.cloned().unwrap_or_default())
}

fn abnormal(reading: &KernelReading) -> &[AbnormalExit] {
    reading.lifecycle.as_ref().map_or(&[], |l| &l.abnormal)
}

#[test]
fn short_lived_processes_are_counted_one_by_one() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("lifecycle")?;
    let cgroup = nest.top.child("churn")?;
    let outside = Cgroup::new("outside")?;
    let mut work = Work::start(&cgroup)?;
    let said = work.run("fork 500 50 7")?;
    assert_eq!(said["crashed"], 50);
    work.run("exec 20")?;
    work.run("threads 30")?;
    do_in(&outside, "fork 500 50 7")?;
    let pid = work.pid();
    let reading = nest.read();
    let counters = of(&reading, &cgroup)?;
    assert_eq!((counters.forks, counters.threads), (520, 30));
    // The load is one itself.
    assert_eq!(counters.execs, 21);
    assert_eq!((counters.exits, counters.thread_exits), (520, 30));
    assert_eq!(counters.failed, 7);
    let mut killed = [0; 5];
    killed[BY_SEGV] = 50;
    assert_eq!(counters.killed, killed);
    let forker = counters.forkers.get(&pid).context("not named")?;
    assert_eq!((forker.processes, forker.threads), (520, 30));
    assert_eq!(forker.comm, COMM);
    let abnormal = abnormal(&reading);
    assert_eq!(abnormal.len(), 57);
    assert_eq!(abnormal.iter().filter(|e| e.signal == 11).count(), 50);
    assert_eq!(abnormal.iter().filter(|e| e.status == 3).count(), 7);
    let id = cgroup.id()?;
    for exit in abnormal {
        assert_eq!((exit.cgroup, exit.parent), (id, pid), "{exit:?}");
        assert_eq!((&*exit.comm, &*exit.parent_comm), (COMM, COMM));
        assert!((1..1_000_000_000).contains(&exit.lifetime_ns), "{exit:?}");
    }
    assert_eq!(of(&reading, &outside)?, LifecycleCounters::default());
    work.end()?;
    assert_eq!(of(&nest.read(), &cgroup)?.exits, 521);
    nest.print_costs();
    Ok(())
}

#[test]
fn a_process_of_many_threads_ends_once() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    ends_once(false)
}

#[test]
fn a_process_of_many_threads_ends_once_where_the_kernel_does_not_say_when() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    ends_once(true)
}

fn ends_once(force_fallback: bool) -> Result<()> {
    let mut nest = Nest::with("lifecycle", |config| config.force_fallback = force_fallback)?;
    let cgroup = nest.top.child("threads")?;
    let mut work = Work::start(&cgroup)?;
    work.run("group 300 8")?;
    let counters = of(&nest.read(), &cgroup)?;
    assert_eq!((counters.forks, counters.threads), (300, 2100));
    assert_eq!((counters.exits, counters.thread_exits), (300, 2100));
    assert_eq!(counters.failed, 300);
    work.end()
}

#[test]
fn a_cgroup_below_a_watched_one_counts_from_its_first_event() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("lifecycle")?;
    let child = nest.top.child("child")?;
    let grandchild = child.child("grandchild")?;
    // Nothing has been read since they were made.
    do_in(&grandchild, "fork 10 0 0")?;
    let reading = nest.read();
    let counters = of(&reading, &grandchild)?;
    assert_eq!(
        (counters.execs, counters.forks, counters.exits),
        (1, 10, 11)
    );
    assert_eq!(of(&reading, &child)?, LifecycleCounters::default());
    drop(grandchild);
    Ok(())
}

#[test]
fn a_killed_process_says_so() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("lifecycle")?;
    let cgroup = nest.top.child("killed")?;
    let work = Work::start(&cgroup)?;
    cgroup.kill()?;
    let reading = nest.read();
    assert_eq!(of(&reading, &cgroup)?.killed[BY_KILL], 1);
    let [exit] = abnormal(&reading) else {
        anyhow::bail!("{:?}", abnormal(&reading));
    };
    assert_eq!((exit.tgid, exit.signal, exit.status), (work.pid(), 9, 0));
    Ok(())
}

#[test]
fn what_nobody_reads_is_counted_as_lost() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let mut nest = Nest::new("lifecycle")?;
    let cgroup = nest.top.child("lost")?;
    do_in(&cgroup, "fork 1500 0 1500")?;
    let reading = nest.read();
    assert_eq!(of(&reading, &cgroup)?.failed, 1500);
    let told = abnormal(&reading).len() as u64;
    let lost = reading.quality.lost.get("lifecycle.events").copied();
    let lost = lost.context("nothing lost")?;
    assert!(lost > 0);
    assert_eq!(told + lost, 1500);
    Ok(())
}
