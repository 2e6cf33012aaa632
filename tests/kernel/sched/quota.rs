//! A cgroup that its own quota keeps off the CPU blames nobody else for that.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lens_agent::probes::{Holder, KernelReading, Probes};
use lens_tests::{cgroup::Cgroup, load::Load, not_run, root_or_say_not_run, until};

use super::{between, close, ready, watch};

const PERIOD: Duration = Duration::from_millis(100);

/// Reads while `limited` runs, once it has been throttled for `at_least_ns` longer: the kernel tells
/// of a throttling when it has ended, so only then the truth is known.
fn after_a_throttling(
    probes: &mut Probes,
    limited: &Cgroup,
    at_least_ns: u64,
) -> Result<(KernelReading, (u64, u64))> {
    let begin = limited.throttled()?;
    let mut last = begin;
    let mut seen = None;
    until("a throttling ends", Duration::from_secs(5), || {
        let Ok(now) = limited.throttled() else {
            return false;
        };
        let ended = now.1 > last.1 && now.1 - begin.1 > at_least_ns;
        last = now;
        if ended {
            let reading = probes.read();
            // Else the next one began meanwhile.
            seen = (limited.throttled().ok() == Some(now)).then_some((reading, now));
        }
        seen.is_some()
    })?;
    seen.context("no reading")
}

/// Lets `waiters` threads burn in `victim`, which `limited` holds to a tenth of a CPU, beside a
/// neighbour; the quota's part of their wait against what the kernel says of the quota.
fn held_by_quota(victim: &Cgroup, limited: &Cgroup, waiters: u32) -> Result<()> {
    let neighbour = Cgroup::new("neighbour")?;
    if let Err(why) = limited.set_quota(PERIOD / 10, PERIOD) {
        return not_run(&format!("no quota here: {why:#}"));
    }
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(
            victim,
            &format!("burn --for 5000 --cpu 1 --threads {waiters}"),
        )?,
        ready(&neighbour, "burn --for 5500 --cpu 1")?,
    ];
    let (start, waited) = (probes.read(), loads[0].waited()?);
    loads.iter_mut().try_for_each(Load::go)?;
    let (before, then) = after_a_throttling(&mut probes, limited, 100_000_000)?;
    let (after, now) = after_a_throttling(&mut probes, limited, 1_000_000_000)?;
    let seen = between(&before, &after, victim)?;
    seen.show(&format!(
        "{waiters} waiters, throttled {} times",
        now.0 - then.0
    ));
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    let truth = f64::from(waiters) * (now.1 - then.1) as f64;
    close("quota", seen.behind(Holder::Quota), truth, 1.0);
    for load in &mut loads {
        load.report()?;
    }
    let (seen, now) = (between(&start, &probes.read(), victim)?, loads[0].waited()?);
    assert_eq!(seen.wait_ns, now.wait_ns - waited.wait_ns);
    close("whole row", seen.row(), seen.wait_ns as f64, 1.0);
    Ok(())
}

#[test]
fn one_waiter_and_its_quota() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let limited = Cgroup::new("limited")?;
    held_by_quota(&limited, &limited, 1)
}

#[test]
fn several_waiters_and_their_quota() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let limited = Cgroup::new("limited")?;
    held_by_quota(&limited, &limited, 3)
}

#[test]
fn more_waiters_than_get_their_turn_between_two_throttlings() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let limited = Cgroup::new("limited")?;
    held_by_quota(&limited, &limited, 12)
}

#[test]
fn the_quota_of_a_group_above() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let limited = Cgroup::new("limited")?;
    let victim = limited.child("child")?;
    held_by_quota(&victim, &limited, 1)
}

/// A quota under way is no neighbour's fault either.
#[test]
fn a_throttling_under_way() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (limited, neighbour) = (Cgroup::new("limited")?, Cgroup::new("neighbour")?);
    if let Err(why) = limited.set_quota(PERIOD / 10, PERIOD * 10) {
        return not_run(&format!("no quota here: {why:#}"));
    }
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(&limited, "burn --for 500 --cpu 1")?,
        ready(&neighbour, "burn --for 1500 --cpu 1")?,
    ];
    let before = probes.read();
    loads.iter_mut().try_for_each(Load::go)?;
    let mut after = before.clone();
    until("it waits", Duration::from_secs(5), || {
        after = probes.read();
        between(&before, &after, &limited)
            .is_ok_and(|g| g.now.waiting > 0 && g.wait_ns > 300_000_000)
    })?;
    let seen = between(&before, &after, &limited)?;
    seen.show("under way");
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    assert!(seen.behind(Holder::Quota) > 0.8 * seen.wait_ns as f64);
    Ok(())
}
