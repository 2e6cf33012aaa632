//! Waits that have not ended when they are read.

use std::time::Duration;

use anyhow::Result;
use lens_agent::probes::Holder;
use lens_tests::{cgroup::Cgroup, load::pin, root_or_say_not_run, until};

use super::{between, close, of, ready, watch};

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_task_that_never_gets_to_run_is_counted_as_far_as_it_has_come() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (starved, spinner) = (Cgroup::new("starved")?, Cgroup::new("spinner")?);
    spinner.allow_realtime()?;
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(&spinner, "burn --for 800 --cpu 1 --policy fifo")?,
        ready(&starved, "burn --for 10 --cpu 1")?,
    ];
    for load in &loads {
        // The thread that wakes the other must not be caught behind the spinner itself.
        pin(load.pid(), 0)?;
    }
    let (before, truth) = (probes.read(), loads[1].waited()?);
    for load in &mut loads {
        load.go()?;
    }
    let mut first = probes.read();
    until("it waits", PATIENCE, || {
        first = probes.read();
        // The one that is pinned, not the one that wakes it.
        of(&first, &starved).is_ok_and(|now| now.waiting == 1)
            && between(&before, &first, &starved)
                .and_then(|g| g.behind_cgroup(&spinner))
                .is_ok_and(|ns| ns > 20e6)
    })?;
    let mut second = first.clone();
    until("its wait grows", PATIENCE, || {
        second = probes.read();
        between(&first, &second, &starved).is_ok_and(|g| g.wait_ns > 300_000_000)
    })?;
    let seen = between(&first, &second, &starved)?;
    seen.show("under way");
    // The thread that woke it may have waited too, never for long.
    assert_eq!(seen.now.waiting, 1);
    assert!(seen.now.wait_max_ns > 300_000_000);
    assert!(second.quality.censored >= 1);
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    let behind = seen.behind_cgroup(&spinner)? + seen.behind(Holder::Kernel);
    close("behind the spinner", behind, seen.wait_ns as f64, 2.0);
    for load in &mut loads {
        load.report()?;
    }
    let seen = between(&before, &probes.read(), &starved)?;
    seen.show("in all");
    let now = loads[1].waited()?;
    assert_eq!(seen.wait_ns, now.wait_ns - truth.wait_ns);
    assert_eq!(seen.now.waiting, 0);
    Ok(())
}

/// Whatever the moment of reading, a counter never goes back.
#[test]
fn readings_never_go_back() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("crowd")?;
    let mut probes = watch(&[])?;
    let mut load = ready(&cgroup, "burn --for 1500 --cpu 1 --threads 5")?;
    let mut before = probes.read();
    load.go()?;
    let mut worst: f64 = 0.0;
    let mut readings = 0;
    until("two seconds of waiting", PATIENCE, || {
        let after = probes.read();
        readings += 1;
        let (Ok(old), Ok(new)) = (of(&before, &cgroup), of(&after, &cgroup)) else {
            return false;
        };
        assert!(new.waits >= old.waits);
        assert!(
            new.wait_ns >= old.wait_ns,
            "{} < {}",
            new.wait_ns,
            old.wait_ns
        );
        let row =
            new.held.values().map(|h| h.exact_ns).sum::<u64>() + new.sampled_ns + new.other_ns;
        let off = (row as f64 - new.wait_ns as f64).abs() / new.wait_ns.max(1) as f64;
        if new.wait_ns > 10_000_000 {
            worst = worst.max(off);
        }
        before = after;
        new.wait_ns > 2_000_000_000
    })?;
    println!(
        "{readings} readings, rows at most {:.4} % off",
        worst * 100.0
    );
    assert!(worst < 0.01, "{worst}");
    Ok(())
}
