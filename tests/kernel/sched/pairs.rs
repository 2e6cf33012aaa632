//! Who ran meanwhile: a victim that never sleeps waits exactly while others run, so their CPU time
//! is the truth.

use std::{thread::park_timeout, time::Duration};

use anyhow::Result;
use lens_agent::{
    base::clock::{Clock as _, SystemClock},
    probes::Holder,
};
use lens_tests::{
    cgroup::Cgroup,
    load::{Load, pin},
    root_or_say_not_run, until,
};

use super::{CPU, Grown, between, close, of, ready, watch};

/// What a victim has waited, and what CPU time every aggressor had meanwhile.
struct Seen {
    victim: Grown,
    usage: Vec<f64>,
    own: f64,
}

/// Runs `victim` for as long as it lasts beside `aggressors`, which last longer.
fn beside(victim: (&Cgroup, &str), aggressors: &[(&Cgroup, &str)]) -> Result<Seen> {
    let mut probes = watch(&[])?;
    let mut others = Vec::new();
    for (cgroup, load) in aggressors {
        let mut other = ready(cgroup, load)?;
        other.go()?;
        others.push(other);
    }
    let usage = || -> Result<Vec<u64>> { aggressors.iter().map(|(c, _)| c.usage_ns()).collect() };
    let mut load = ready(victim.0, victim.1)?;
    let before = probes.read();
    let (own, then) = (victim.0.usage_ns()?, usage()?);
    let truth = load.waited()?;
    load.go()?;
    load.report()?;
    let (own_now, now) = (victim.0.usage_ns()?, usage()?);
    let after = probes.read();
    let seen = between(&before, &after, victim.0)?;
    seen.show(victim.1);
    let waited = load.waited()?;
    assert_eq!(seen.waits, waited.waits - truth.waits);
    assert_eq!(seen.wait_ns, waited.wait_ns - truth.wait_ns);
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    let grown = |(now, then): (&u64, &u64)| (now - then) as f64;
    Ok(Seen {
        victim: seen,
        usage: now.iter().zip(&then).map(grown).collect(),
        own: grown((&own_now, &own)),
    })
}

#[test]
fn two_aggressors_are_blamed_for_what_each_of_them_ran() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (big, small) = (Cgroup::new("big")?, Cgroup::new("small")?);
    let victim = Cgroup::new("victim")?;
    big.set_weight(300)?;
    small.set_weight(100)?;
    let burn = "burn --for 4000 --cpu 1";
    let seen = beside(
        (&victim, "burn --for 2000 --cpu 1"),
        &[(&big, burn), (&small, burn)],
    )?;
    let [of_big, of_small] = seen.usage[..] else {
        unreachable!("two aggressors");
    };
    assert!(of_big > 2.0 * of_small, "{of_big} {of_small}");
    close("big", seen.victim.behind_cgroup(&big)?, of_big, 3.0);
    close("small", seen.victim.behind_cgroup(&small)?, of_small, 3.0);
    Ok(())
}

/// A wait so long that the others take turns thousands of times meanwhile.
#[test]
fn a_long_wait_behind_a_storm_of_switches() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (big, small) = (Cgroup::new("big")?, Cgroup::new("small")?);
    let victim = Cgroup::new("meek")?;
    victim.set_weight(3)?;
    // Each group sleeps every few rounds, so that they alternate.
    let storm =
        |burn: u32| format!("sleeper --for 9000 --cpu 1 --threads 2 --burn {burn} --sleep 10");
    let seen = beside(
        (&victim, "burn --for 6000 --cpu 1"),
        &[(&big, &storm(90)), (&small, &storm(30))],
    )?;
    let [of_big, of_small] = seen.usage[..] else {
        unreachable!("two aggressors");
    };
    close("big", seen.victim.behind_cgroup(&big)?, of_big, 10.0);
    close("small", seen.victim.behind_cgroup(&small)?, of_small, 10.0);
    let unknown = seen.victim.behind(Holder::Unattributed) / seen.victim.wait_ns as f64;
    assert!(unknown < 0.01, "{unknown} of the wait is not attributed");
    Ok(())
}

#[test]
fn the_time_of_several_waiters_adds_up() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (victim, aggressor) = (Cgroup::new("three")?, Cgroup::new("aggressor")?);
    let seen = beside(
        (&victim, "burn --for 2000 --cpu 1 --threads 3"),
        &[(&aggressor, "burn --for 4000 --cpu 1")],
    )?;
    close(
        "behind the aggressor",
        seen.victim.behind_cgroup(&aggressor)?,
        3.0 * seen.usage[0],
        3.0,
    );
    close(
        "behind each other",
        seen.victim.behind_cgroup(&victim)?,
        2.0 * seen.own,
        3.0,
    );
    Ok(())
}

#[test]
fn fifty_waiters_on_one_cpu() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let (victim, aggressor) = (Cgroup::new("fifty")?, Cgroup::new("aggressor")?);
    let mut probes = watch(&[])?;
    let mut loads = [
        ready(&aggressor, "burn --for 60000 --cpu 1")?,
        ready(&victim, "burn --for 60000 --cpu 1 --threads 50")?,
    ];
    for load in &mut loads {
        load.go()?;
    }
    loads[1].all_run(50)?;
    // While all fifty burn, 50 or 49 of them wait.
    let mut before = probes.read();
    until("all wait", Duration::from_secs(20), || {
        before = probes.read();
        of(&before, &victim).is_ok_and(|now| now.waiting >= 49)
    })?;
    let then = (aggressor.usage_ns()?, victim.usage_ns()?);
    let mut now = then;
    let mut after = before.clone();
    until("a second of CPU time", Duration::from_secs(30), || {
        (after, now) = (
            probes.read(),
            (
                aggressor.usage_ns().unwrap_or_default(),
                victim.usage_ns().unwrap_or_default(),
            ),
        );
        now.1 - then.1 > 1_000_000_000
    })?;
    let seen = between(&before, &after, &victim)?;
    seen.show("fifty waiters");
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    let behind = |waiters: f64, usage_ns: u64| waiters * usage_ns as f64;
    let (of_aggressor, own) = (behind(50.0, now.0 - then.0), behind(49.0, now.1 - then.1));
    let (by_aggressor, by_self) = (
        seen.behind_cgroup(&aggressor)?,
        seen.behind_cgroup(&victim)?,
    );
    close(
        "the aggressor against the victim, in millionths",
        by_aggressor / by_self * 1e6,
        of_aggressor / own * 1e6,
        3.0,
    );
    let unknown = seen.behind(Holder::Unattributed) / seen.wait_ns as f64;
    // Where others make fifty waiters wait for longer than a CPU remembers, that is known too.
    if seen.now.wait_max_ns < 500_000_000 {
        close("behind the aggressor", by_aggressor, of_aggressor, 3.0);
        close("behind each other", by_self, own, 3.0);
        assert!(unknown < 0.02, "{unknown} of the wait is not attributed");
    }
    Ok(())
}

#[test]
fn a_wait_that_migrations_split_is_one_wait() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroups = [
        Cgroup::new("moved")?,
        Cgroup::new("on-0")?,
        Cgroup::new("on-1")?,
    ];
    let mut probes = watch(&[])?;
    let mut load = ready(&cgroups[0], "burn --for 2000 --threads 2")?;
    let mut others = [
        ready(&cgroups[1], "burn --for 2500 --cpu 0 --threads 2")?,
        ready(&cgroups[2], "burn --for 2500 --cpu 1 --threads 2")?,
    ];
    let (before, truth) = (probes.read(), load.waited()?);
    others.iter_mut().try_for_each(Load::go)?;
    load.go()?;
    load.all_run(2)?;
    // Only threads that work: the kernel takes one that it moves while it falls asleep for one
    // that waits until it wakes.
    let mut tids = load.tids()?;
    tids.retain(|tid| *tid != load.pid());
    let start = SystemClock.now();
    let mut moves = 0;
    while SystemClock.now().since(&start) < Duration::from_millis(1500) {
        moves += 1;
        for tid in &tids {
            pin(*tid, moves % (CPU + 1))?;
        }
        park_timeout(Duration::from_micros(500));
    }
    load.report()?;
    let after = probes.read();
    let seen = between(&before, &after, &cgroups[0])?;
    seen.show(&format!("after {moves} moves"));
    let now = load.waited()?;
    assert!(moves > 100, "{moves}");
    assert_eq!(seen.waits, now.waits - truth.waits);
    assert_eq!(seen.wait_ns, now.wait_ns - truth.wait_ns);
    assert_eq!(seen.now.wait_hist.iter().sum::<u64>(), seen.now.waits);
    close("row", seen.row(), seen.wait_ns as f64, 1.0);
    let unknown = seen.behind(Holder::Unattributed) / seen.wait_ns as f64;
    assert!(unknown < 0.05, "{unknown} of the wait is not attributed");
    Ok(())
}
