//! A cgroup that its own quota keeps off the CPU blames nobody else for that.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lens_agent::{
    base::clock::{Clock as _, SystemClock},
    probes::{Holder, KernelReading, Probes},
};
use lens_tests::{cgroup::Cgroup, load::Load, not_run, root_or_say_not_run, until};

use super::{between, close, ready, watch};

const PERIOD: Duration = Duration::from_millis(100);
const QUOTA: Duration = Duration::from_millis(20);

/// Reads between two throttlings, once `limited` has been throttled for `at_least_ns` longer: the
/// kernel tells of a throttling when it has ended, so only then the truth is known.
fn after_a_throttling(
    probes: &mut Probes,
    limited: &Cgroup,
    at_least_ns: u64,
) -> Result<(KernelReading, u64)> {
    let (_, begin) = limited.throttled()?;
    let mut last = (SystemClock.now(), begin);
    let mut seen = None;
    until("a throttling ends", Duration::from_secs(10), || {
        let (then, before) = last;
        let Ok((_, now)) = limited.throttled() else {
            return false;
        };
        last = (SystemClock.now(), now);
        if now > before && now - begin > at_least_ns {
            let reading = probes.read();
            // In less time than its quota it cannot have used it up again.
            let in_time = SystemClock.now().since(&then) < QUOTA;
            seen = in_time.then_some((reading, now));
        }
        seen.is_some()
    })?;
    seen.context("no reading")
}

/// Lets `waiters` threads burn in `victim`, which `limited` holds to a fifth of a CPU, beside a
/// neighbour; the quota's part of their wait against what the kernel says of the quota.
fn held_by_quota(victim: &Cgroup, limited: &Cgroup, waiters: u32) -> Result<()> {
    let neighbour = Cgroup::new("neighbour")?;
    if let Err(why) = limited.set_quota(QUOTA, PERIOD) {
        return not_run(&format!("no quota here: {why:#}"));
    }
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(
            victim,
            &format!("burn --for 6000 --cpu 1 --threads {waiters}"),
        )?,
        ready(&neighbour, "burn --for 6500 --cpu 1")?,
    ];
    let (start, waited) = (probes.read(), loads[0].waited()?);
    loads.iter_mut().try_for_each(Load::go)?;
    loads[0].all_run(waiters as usize)?;
    let (before, then) = after_a_throttling(&mut probes, limited, 100_000_000)?;
    let (after, now) = after_a_throttling(&mut probes, limited, 800_000_000)?;
    let seen = between(&before, &after, victim)?;
    seen.show(&format!("{waiters} waiters"));
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    let truth = f64::from(waiters) * (now - then) as f64;
    close("quota", seen.behind(Holder::Quota), truth, 2.0);
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
    if let Err(why) = limited.set_quota(PERIOD, PERIOD * 10) {
        return not_run(&format!("no quota here: {why:#}"));
    }
    // So much that it waits for nothing but its quota.
    limited.set_weight(10_000)?;
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(&limited, "burn --for 60000 --cpu 1")?,
        ready(&neighbour, "burn --for 60000 --cpu 1")?,
    ];
    let before = probes.read();
    loads.iter_mut().try_for_each(Load::go)?;
    let mut after = before.clone();
    until("it waits", Duration::from_secs(10), || {
        after = probes.read();
        between(&before, &after, &limited)
            .is_ok_and(|g| g.now.waiting > 0 && g.wait_ns > 500_000_000)
    })?;
    let seen = between(&before, &after, &limited)?;
    seen.show("under way");
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    assert!(seen.behind(Holder::Quota) > 0.9 * seen.wait_ns as f64);
    Ok(())
}
