//! What the host's files say of limits, on a host where the controllers are in cgroup v2.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lens_agent::{
    base::clock::{Clock as _, SystemClock},
    host::{self, HostReader, Root, cgroup::CgroupFiles},
};
use lens_tests::{cgroup::Cgroup, commands, load::Load, not_run, root_or_say_not_run};

use crate::objects::{Work, do_in};

const MIB: u64 = 1 << 20;

/// A cgroup that v2 can limit by `controller`; says so if there is none.
fn limitable(controller: &str) -> Result<Option<Cgroup>> {
    if !root_or_say_not_run()? {
        return Ok(None);
    }
    let cgroup = Cgroup::new(controller)?;
    if cgroup.has(controller)? {
        return Ok(Some(cgroup));
    }
    not_run(&format!("v2 does not have the controller {controller}"))?;
    Ok(None)
}

/// What lens reads of `cgroup`.
fn files_of(cgroup: &Cgroup) -> Result<CgroupFiles> {
    let mut reader = HostReader::new(Root::default())?;
    let target = host::Cgroup {
        path: cgroup.path().into(),
        id: cgroup.id()?,
        dir: cgroup.dir(),
    };
    let mut reading = reader.read(&[target], SystemClock.now());
    let found = reading.cgroups.remove(cgroup.path());
    Ok(found.context("not read")?.files)
}

#[test]
fn a_quota_and_what_it_held_back() -> Result<()> {
    const QUOTA: Duration = Duration::from_millis(20);
    const PERIOD: Duration = Duration::from_millis(100);
    let Some(cgroup) = limitable("cpu")? else {
        return Ok(());
    };
    let free = files_of(&cgroup)?.quota.context("no quota")?;
    assert_eq!((free.quota_us, free.throttled_us), (None, 0));
    cgroup.set_quota(QUOTA, PERIOD)?;
    let mut load = Load::ready(
        env!("CARGO_BIN_EXE_load"),
        &cgroup,
        "burn --for 1500 --cpu 1",
    )?;
    load.go()?;
    let said = load.report()?;
    let files = files_of(&cgroup)?;
    let quota = files.quota.context("no quota")?;
    assert_eq!(
        (quota.quota_us, quota.period_us),
        (Some(20_000), Some(100_000))
    );
    let place = (&*quota.place.path, quota.place.shared_with);
    assert_eq!(place, (cgroup.path(), 0));
    let got_ns = said[0]["cpu_ns"].as_u64().context("no CPU time")?;
    println!("{quota:?}, got {got_ns} ns");
    assert!(quota.throttled_periods > 0, "{quota:?}");
    // One thread can be held back for no longer than the periods were, and the one begun.
    let most = (quota.periods + 1) * 100_000;
    assert!((1..=most).contains(&quota.throttled_us), "{quota:?}");
    let used = files.cpu.context("no CPU time")?.usage_us;
    assert!(used >= got_ns / 1000, "{used} µs of {got_ns} ns");
    // All that it used fits into the periods that the kernel counted, and one at each end.
    assert!(used <= (quota.periods + 2) * 20_000, "{used} {quota:?}");
    Ok(())
}

#[test]
fn a_memory_limit_and_what_dies_of_it() -> Result<()> {
    const LIMIT: u64 = 64 * MIB;
    const PAGES: u64 = 10_000;
    let Some(cgroup) = limitable("memory")? else {
        return Ok(());
    };
    let beside = Cgroup::new("beside")?;
    cgroup.limit("memory.max", &LIMIT.to_string())?;
    // Where there is no swap there is no such file.
    let _ = cgroup.limit("memory.swap.max", "0");
    let mut work = Work::start(&cgroup)?;
    work.run(&format!("touch {PAGES} 0"))?;
    let memory = files_of(&cgroup)?.memory.context("no memory")?;
    println!("{memory:?}");
    assert_eq!(memory.limit_bytes, Some(LIMIT));
    let anon = memory.anon_bytes.context("no anonymous memory")?;
    let mut in_use = PAGES * 4096..LIMIT;
    assert!(in_use.contains(&anon), "{memory:?}");
    in_use.start = anon;
    assert!(in_use.contains(&memory.current_bytes), "{memory:?}");
    assert_eq!((memory.ooms, memory.oom_kills), (Some(0), Some(0)));
    // More than the limit: the kernel kills it, and says no word to it.
    let killed = work.run(&format!("touch {} 0", LIMIT / 4096));
    ensure!(killed.is_err(), "{killed:?}");
    ensure!(work.end().is_err(), "it ended by itself");
    let memory = files_of(&cgroup)?.memory.context("no memory")?;
    println!("{memory:?}");
    assert_eq!(memory.oom_kills, Some(1));
    assert!(memory.ooms >= Some(1) && memory.limit_hits >= Some(1));
    let beside = files_of(&beside)?.memory.context("no memory")?;
    let none = (None, Some(0), Some(0));
    assert_eq!((beside.limit_bytes, beside.ooms, beside.oom_kills), none);
    Ok(())
}

#[test]
fn a_limit_of_processes_and_what_it_refused() -> Result<()> {
    let Some(cgroup) = limitable("pids")? else {
        return Ok(());
    };
    cgroup.limit("pids.max", "1")?;
    let mut work = Work::start(&cgroup)?;
    let pids = files_of(&cgroup)?.pids.context("no pids")?;
    assert_eq!((pids.current, pids.limit), (1, Some(1)));
    assert_eq!(pids.refused, Some(0));
    let refused = work.run("fork 1 0 0");
    ensure!(refused.is_err(), "{refused:?}");
    let pids = files_of(&cgroup)?.pids.context("no pids")?;
    assert_eq!(pids.refused, Some(1));
    cgroup.limit("pids.max", "max")?;
    do_in(&cgroup, "fork 1 0 0")?;
    let pids = files_of(&cgroup)?.pids.context("no pids")?;
    assert_eq!((pids.limit, pids.refused), (None, Some(1)));
    Ok(())
}

/// The same through the command: what a limit did while it looked is in the snapshot.
#[test]
fn a_snapshot_tells_of_limits() -> Result<()> {
    let Some(cgroup) = limitable("memory")? else {
        return Ok(());
    };
    cgroup.limit("memory.max", &(64 * MIB).to_string())?;
    cgroup.set_quota(Duration::from_millis(20), Duration::from_millis(100))?;
    let mut work = Work::start(&cgroup)?;
    work.run("touch 8192 0")?;
    let mut load = Load::ready(
        env!("CARGO_BIN_EXE_load"),
        &cgroup,
        "burn --for 600000 --cpu 1",
    )?;
    load.go()?;
    let said = commands::said(&[
        "snapshot",
        "memory",
        "pressure",
        "--for",
        "2s",
        "--json",
        "--cgroup",
        cgroup.path(),
    ])?;
    ensure!(said.code == Some(0), "{said:?}");
    let snapshots: serde_json::Value = serde_json::from_str(&said.out)?;
    let metric = |skill: &str, name: &str| -> Result<f64> {
        let all = snapshots.as_array().context("no list")?;
        let of = |s: &&serde_json::Value| s["skill"] == skill && s["scope"] == cgroup.path();
        let found = all.iter().find(of).context("no snapshot")?;
        found["metrics"][name]
            .as_f64()
            .with_context(|| format!("no {name}: {found}"))
    };
    let used = metric("memory", "memory_limit_percent")?;
    assert!((50.0..100.0).contains(&used), "{used}");
    let held = metric("pressure", "throttled_periods_percent")?;
    assert!(held > 50.0 && held <= 100.0, "{held}");
    assert!(metric("pressure", "throttled_ms_per_sec")? > 0.0);
    Ok(())
}
